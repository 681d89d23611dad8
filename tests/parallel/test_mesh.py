"""What a mesh lays out: arrays that the host makes, on eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from smke_jax.errors import UserError
from smke_jax.parallel.mesh import FSDP_AXIS, made_on_host, make_mesh, replicated


def test_what_the_host_makes_is_laid_out_on_the_devices():
    mesh = make_mesh(8, fsdp_size=8)
    key = jax.random.key(3)

    def make():
        return {"rows": jax.random.normal(key, (16, 3)), "whole": jnp.arange(3), "rng": jax.random.fold_in(key, 1)}

    rows = NamedSharding(mesh, PartitionSpec(FSDP_AXIS))
    made = made_on_host(make, {"rows": rows, "whole": replicated(mesh), "rng": replicated(mesh)})
    np.testing.assert_array_equal(made["rows"], jax.random.normal(key, (16, 3)))
    np.testing.assert_array_equal(made["whole"], [0, 1, 2])
    assert [part.data.shape for part in made["rows"].addressable_shards] == [(2, 3)] * 8
    np.testing.assert_array_equal(made["rows"].addressable_shards[7].data, made["rows"][14:])
    assert len(made["whole"].addressable_shards) == 8
    # The key is a key still, and draws what it drew on the host.
    np.testing.assert_array_equal(
        jax.random.normal(made["rng"], (4,)), jax.random.normal(jax.random.fold_in(key, 1), (4,))
    )


def test_a_donated_start_leaves_the_copies_of_other_devices_alone():
    mesh = make_mesh(8)
    made = made_on_host(lambda: jnp.zeros((4, 4)), replicated(mesh))
    after = jax.jit(lambda x: x + 1, donate_argnums=0)(made)
    for part in after.addressable_shards:
        np.testing.assert_array_equal(part.data, np.ones((4, 4)))


def test_without_the_cpu_networks_cannot_begin(monkeypatch):
    def none(*, backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda,cpu"):
        made_on_host(lambda: jnp.zeros(2), replicated(make_mesh(1)))
