"""What the loss tests share: losses spread over the eight CPU devices, with their gradients, and PyTorch tensors."""

import jax
import numpy as np
import torch
from jax.sharding import PartitionSpec

from smke_jax.losses.collective import FULL, Scope
from smke_jax.parallel.mesh import DATA_AXES, make_mesh

DEVICES = (1, 2, 8)


def spread(
    devices: int, function, *, impl: str = "auto", dtype: str = FULL, whole: tuple[int, ...] = (),
    key: jax.Array | None = None,
):  # fmt: skip
    """The mean over devices of `function(*arrays, scope)`, as a function of global arrays.

    Every device gets its rows of each array, and all of the arrays at the positions `whole`.
    """

    def over_mesh(*arrays):
        def local(key, *arrays):
            out = function(*arrays, scope=Scope(DATA_AXES, impl, key, dtype))
            return jax.tree.map(lambda x: jax.lax.pmean(x, DATA_AXES), out)

        specs = [PartitionSpec() if i in whole else PartitionSpec(DATA_AXES) for i in range(len(arrays))]
        # Eight devices are a grid, two axes that count as one.
        mesh = make_mesh(devices, fsdp_size=2 if devices == 8 else 1)
        run = jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), *specs), out_specs=PartitionSpec())
        return run(key, *arrays)

    return over_mesh


def run_together(cases: dict, arrays, *, to: tuple[int, ...]) -> dict:
    """{case: ((loss, more), gradients by the arrays `to`)} of functions that return (loss, more), in one program."""

    @jax.jit
    def run(*arrays):
        return {name: jax.value_and_grad(case, argnums=to, has_aux=True)(*arrays) for name, case in cases.items()}

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(*arrays))


def tensors(*arrays) -> list[torch.Tensor]:
    """Arrays -> float64 tensors that collect gradients."""
    return [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays]


def unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random vectors of length 1, float32."""
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def assert_near(ours, theirs, tolerance: float = 1e-5):
    """Every entry within `tolerance` of itself or of the largest entry."""
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())
