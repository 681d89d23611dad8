"""A device that runs out of memory ends training with one line that says what to change."""

import jax
import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError
from two_matrices import two_matrices_config

from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.training import opening
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.memory import memory_advice, remedies
from smke_jax.training.record import flatten


def test_it_knows_what_jax_raises():
    with pytest.raises(UserError, match=r"ran out of memory \(Out of memory.* \d+ bytes\): try this, that; "):
        with memory_advice(["this", "that"]):
            jax.jit(lambda x: jnp.broadcast_to(x, (1 << 45,)) * 2)(jnp.ones(())).block_until_ready()


def test_other_errors_pass():
    with pytest.raises(JaxRuntimeError, match="INTERNAL"), memory_advice(["this"]):
        raise JaxRuntimeError("INTERNAL: something else")


def test_what_is_in_use_already_is_no_advice():
    form = form_of("smoke")
    c = form.run()
    c.networks.teacher, c.networks.student = form.teacher(dtype="float32"), form.student(dtype="float32")
    c.networks.teacher.dtype = "float32"
    assert remedies(flatten(c), 2) == [
        "config.networks.student.dtype=bfloat16", "config.networks.teacher.dtype=bfloat16", "config.sharding=fsdp",
        "config.loss_impl=ring", "config.networks.student.remat=blocks", "config.micro_batch=4",
        "a smaller config.batch_size",
    ]  # fmt: skip
    assert "config.sharding=fsdp" not in remedies(flatten(c), 1)
    c.update(sharding="fsdp", loss_impl="ring", micro_batch=2)
    c.networks.teacher.dtype = c.networks.student.dtype = "bfloat16"
    c.networks.student.remat = "blocks"
    assert remedies(flatten(c), 2) == ["config.micro_batch=1", "a smaller config.batch_size"]


def test_training_ends_with_the_advice(tmp_path, monkeypatch):
    def exhausted(state, frozen, batch):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9.30GiB.")

    built = opening.build_step
    monkeypatch.setattr(opening, "build_step", lambda *args: (*built(*args)[:3], exhausted))
    with pytest.raises(UserError) as caught:
        train_and_evaluate(two_matrices_config("alike"), tmp_path)
    assert str(caught.value) == (
        "a device ran out of memory (Out of memory while trying to allocate 9.30GiB): try "
        "config.networks.net.dtype=bfloat16, config.sharding=fsdp, config.loss_impl=ring, config.micro_batch=2, "
        "a smaller config.batch_size; `smke plan` says what fits"
    )
