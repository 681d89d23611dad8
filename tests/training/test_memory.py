"""A device that runs out of memory ends training with one line that says what to change."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.errors import JaxRuntimeError

from smke_jax.errors import UserError
from smke_jax.training import experiment
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.memory import memory_advice


def test_it_knows_what_jax_raises():
    with pytest.raises(UserError, match=r"ran out of memory \(Out of memory.* \d+ bytes\): try config"):
        with memory_advice(tiny.tiny_config(), 2):
            jax.jit(lambda x: jnp.broadcast_to(x, (1 << 45,)) * 2)(jnp.ones(())).block_until_ready()


def test_other_errors_pass():
    with pytest.raises(JaxRuntimeError, match="INTERNAL"), memory_advice(tiny.tiny_config(), 2):
        raise JaxRuntimeError("INTERNAL: something else")


def test_what_is_in_use_already_is_no_advice():
    config = tiny.tiny_config()
    config.update(sharding="fsdp", loss_impl="ring", micro_batch=2)
    config.student.update(dtype="bfloat16", remat="blocks")
    with pytest.raises(UserError, match="try config.micro_batch=1, a smaller config.batch_size; `smke plan`"):
        with memory_advice(config, 2):
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9.30GiB.\nMore lines")


def test_training_ends_with_the_advice(tmp_path, monkeypatch):
    def exhausted(state, frozen, batch):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9.30GiB.")

    built = experiment.build_step
    monkeypatch.setattr("smke_jax.training.loop.build_step", lambda *args: built(*args)._replace(run=exhausted))
    with pytest.raises(UserError) as caught:
        train_and_evaluate(tiny.tiny_config(), tmp_path)
    assert str(caught.value) == (
        "a device ran out of memory (Out of memory while trying to allocate 9.30GiB): try "
        "config.student.dtype=bfloat16, config.sharding=fsdp, config.loss_impl=ring, config.student.remat=blocks, "
        "config.micro_batch=2, a smaller config.batch_size; `smke plan` says what fits"
    )
