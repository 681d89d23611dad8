"""The nearest rows of a spread table against a stable sort in NumPy, on 1, 2 and 8 devices and for any block."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from over_devices import DEVICES

from smke_jax.losses.collective import Scope
from smke_jax.losses.nearest import nearest_foreign
from smke_jax.parallel.mesh import DATA_AXES, make_mesh, put_spread

BATCH, WIDTH, COUNT = 8, 4, 37  # no number of devices but 1 divides the table
IMAGES = 9

rng = np.random.default_rng(0)
QUERIES = rng.normal(size=(BATCH, WIDTH)).astype(np.float32)
OWNERS = rng.integers(0, IMAGES, COUNT).astype(np.int32)
IDS = rng.integers(0, IMAGES, BATCH).astype(np.int32)
TABLE = rng.normal(size=(COUNT, WIDTH)).astype(np.float16)
TABLE[20:] = TABLE[3:20]  # equal products, whose order is that of the table


def expected(k):
    products = (QUERIES.astype(np.float64) @ TABLE.astype(np.float64).T).astype(np.float32)
    products[IDS[:, None] == OWNERS] = -np.inf
    return np.argsort(-products, axis=1, kind="stable")[:, :k]


def found(devices, k, block):
    mesh = make_mesh(devices)
    kept = put_spread({"rows": TABLE, "id": OWNERS}, mesh)

    def local(queries, ids, table, owners):
        return nearest_foreign(queries, ids, table, owners, k, block=block, scope=Scope(DATA_AXES))

    split = PartitionSpec(DATA_AXES)
    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(split,) * 4, out_specs=split))
    return jax.device_get(run(QUERIES, IDS, kept["rows"], kept["id"]))


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("k, block", [(1, 0), (5, 0), (5, 3), (3, 2)])
def test_it_is_the_sort(devices, k, block):
    rows, numbers = found(devices, k, block)
    np.testing.assert_array_equal(numbers, expected(k))
    np.testing.assert_array_equal(rows, TABLE[numbers].astype(np.float32))
    assert not np.any(OWNERS[numbers] == IDS[:, None]), "a query finds its own image"


def test_it_holds_one_block_of_products_at_a_time():
    """Of a table of a million rows the products of all queries with all rows would be 32 MB here."""
    arrays = (
        jax.ShapeDtypeStruct((BATCH, WIDTH), np.float32),
        jax.ShapeDtypeStruct((BATCH,), np.int32),
        jax.ShapeDtypeStruct((1_000_003, WIDTH), np.float16),
        jax.ShapeDtypeStruct((1_000_003,), np.int32),
    )
    compiled = jax.jit(lambda *x: nearest_foreign(*x, 4, block=10_000)).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4e6


def test_it_holds_32_mib_of_the_table_in_fp32():
    """Of wide rows a block is bounded by its own size: a million rows of 512 channels would be 2 GB."""
    rows, width = 1_000_003, 512
    arrays = (
        jax.ShapeDtypeStruct((BATCH, width), np.float32),
        jax.ShapeDtypeStruct((BATCH,), np.int32),
        jax.ShapeDtypeStruct((rows, width), np.float16),
        jax.ShapeDtypeStruct((rows,), np.int32),
    )
    compiled = jax.jit(lambda *x: nearest_foreign(*x, 4)).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2**25
