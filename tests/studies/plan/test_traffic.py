"""Bytes over the interconnect: of compiled programs whose traffic is known, and of texts as compilers write them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from smke_jax.parallel.mesh import DATA_AXES, make_mesh, replicated, sharded
from smke_jax.studies.plan.program import SIMULATED
from smke_jax.studies.plan.traffic import Traffic, traffic

DEVICES, ROWS, WIDTH = 8, 4, 16
SIZE = ROWS * WIDTH * 4  # bytes on a device


def compiled(function, options=None) -> Traffic:
    mesh, rows = make_mesh(DEVICES), PartitionSpec(DATA_AXES)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    x = jax.ShapeDtypeStruct((DEVICES * ROWS, WIDTH), jnp.float32, sharding=sharded(mesh))
    return traffic(jax.jit(mapped).lower(x).compile(options).as_text())


def to_the_next(x):
    return jax.lax.ppermute(x, DATA_AXES, [(i, (i + 1) % DEVICES) for i in range(DEVICES)])


def scatter(x):
    return jax.lax.psum_scatter(x, DATA_AXES, tiled=True)


@pytest.mark.parametrize(
    ("function", "kind", "bytes_sent", "calls"),
    [
        (lambda x: jax.lax.all_gather(x, DATA_AXES, tiled=True), "all-gather", 7 * SIZE, 1),
        (lambda x: jax.lax.psum(x, DATA_AXES), "all-reduce", 2 * 7 / 8 * SIZE, 1),
        (lambda x: scatter(jnp.tile(x, (2, 1))), "reduce-scatter", 7 / 8 * 2 * SIZE, 1),
        (to_the_next, "collective-permute", SIZE, 1),
        (lambda x: jax.lax.fori_loop(0, 8, lambda i, y: jnp.sin(to_the_next(y)), x), "collective-permute", 8 * SIZE, 8),
    ],
)  # fmt: skip
def test_what_a_compiled_program_sends(function, kind, bytes_sent, calls):
    found = compiled(function)
    assert found.sent == {kind: pytest.approx(bytes_sent)} and found.calls == {kind: calls}
    assert not found.unknown_loops


def test_loops_in_loops_multiply_and_unknown_ones_are_told():
    def inner(x):
        return jax.lax.fori_loop(0, 4, lambda i, y: jnp.cos(to_the_next(y)), x)

    assert compiled(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: inner(y) + 1, x)).calls == {"collective-permute": 12}
    found = compiled(lambda x: jax.lax.while_loop(lambda y: jnp.max(y) < 1, lambda y: y + 1 + inner(y), x))
    assert found.calls == {"collective-permute": 4} and found.unknown_loops == 1


def gradients() -> Traffic:
    """Of two matrices, the first used in bfloat16, whose gradients the partitioner sums over the devices."""
    mesh = make_mesh(DEVICES)

    def loss(first, second, x):
        hidden = x.astype(jnp.bfloat16) @ first.astype(jnp.bfloat16)
        return jnp.mean(jnp.sin(hidden.astype(jnp.float32) @ second))

    everywhere = replicated(mesh)
    run = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=everywhere)
    first, second = (jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32, sharding=everywhere) for _ in range(2))
    x = jax.ShapeDtypeStruct((DEVICES * ROWS, WIDTH), jnp.float32, sharding=sharded(mesh))
    return traffic(run.lower(first, second, x).compile(SIMULATED).as_text())


def test_sums_of_bfloat16_count_as_16_bits_though_the_cpu_widens_them():
    found = gradients()
    assert found.sent == {"all-reduce": 2 * 7 / 8 * WIDTH * WIDTH * (2 + 4)}
    assert found.calls == {"all-reduce": 2}  # one for each type


def test_sums_that_do_not_wait_for_each_other_are_one_call():
    def together(x):
        return jax.lax.psum(x, DATA_AXES) + jax.lax.psum(jnp.sin(x), DATA_AXES)

    def in_turn(x):
        return jax.lax.psum(jnp.sin(jax.lax.psum(x, DATA_AXES)), DATA_AXES)

    apart, waiting = (compiled(function, SIMULATED) for function in (together, in_turn))
    assert apart.calls == {"all-reduce": 1} and waiting.calls == {"all-reduce": 2}
    assert apart.sent == waiting.sent == {"all-reduce": 2 * 2 * 7 / 8 * SIZE}


def test_one_device_sends_nothing():
    x = jnp.ones((2, 2))
    assert traffic(jax.jit(lambda x: x @ x).lower(x).compile().as_text()) == Traffic({}, {}, 0)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'data'}", 4),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'data','fsdp'}", 8),
        ("replica_groups=mesh['data'=8] {'data':(1)2}", 2),
        ("replica_groups={}", 8),
    ],
)
def test_groups_as_compilers_write_them(groups, size):
    hlo = f"""HloModule jit_f, is_scheduled=true, num_partitions=8

ENTRY %main (x: f32[64]) -> f32[64] {{
  %x = f32[64]{{0}} parameter(0)
  ROOT %r = f32[64]{{0}} all-gather(%x), channel_id=1, {groups}, dimensions={{0}}, use_global_device_ids=true
}}
"""
    assert traffic(hlo).sent == {"all-gather": pytest.approx(64 * 4 * (size - 1) / size)}


def test_asynchronous_collectives_count_where_they_end():
    hlo = """HloModule jit_f, is_scheduled=true, num_partitions=4

%inner (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %g = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (x: bf16[8,4], y: f32[6]) -> bf16[32,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %y = f32[6]{0} parameter(1)
  %s = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %d = bf16[8,4]{1,0} collective-permute-done(%s)
  %rs = (f32[6]{0}, pred[]) all-reduce-start(%y, %z), replica_groups={{0,1},{2,3}}, to_apply=%add
  %rd = (f32[6]{0}, pred[]) all-reduce-done(%rs)
  %as = ((bf16[8,4]{1,0}), bf16[32,4]{1,0}) async-start(%x), calls=%inner
  ROOT %ad = bf16[32,4]{1,0} async-done(%as)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
"""
    assert traffic(hlo).sent == {"collective-permute": 64, "all-reduce": 25, "all-gather": 192}
