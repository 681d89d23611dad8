"""The digest notices every change of content and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smke_jax.training import digest
from smke_jax.training.digest import leaf_table, tree_digest

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool", "float8_e4m3fn"]


@pytest.fixture(params=["small arrays in NumPy", "every array where it lies"], autouse=True)
def way(request, monkeypatch):
    if request.param == "every array where it lies":
        monkeypatch.setattr(digest, "_SMALL", -1)


def array(dtype: str, shape=(3, 5), seed: int = 0) -> jax.Array:
    values = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 100, shape)
    return jnp.asarray(values).astype(dtype)


def reference(x: np.ndarray) -> int:
    """The same digest, one element at a time, in Python integers."""

    def mix(h: int) -> int:
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    words = [int(word) for word in x.reshape(-1).view(f"u{x.dtype.itemsize}")]
    linear = sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**32
    mixed = sum(mix(word ^ mix(i)) for i, word in enumerate(words)) % 2**32
    return linear << 32 | mixed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_agrees_with_plain_python(dtype, shape):
    x = array(dtype, shape)
    assert tree_digest({"x": x}) == {"x": reference(np.asarray(x))}


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_single_element_changes_it(dtype):
    x = array(dtype)
    flat = np.asarray(x).reshape(-1)
    other = ~flat if dtype == "bool" else (flat.view(f"u{flat.dtype.itemsize}") ^ 1).view(flat.dtype)
    index = np.arange(flat.size)
    variants = {str(i): jnp.asarray(np.where(index == i, other, flat)) for i in index}
    digests = tree_digest(variants | {"original": jnp.asarray(flat)})
    assert len(set(digests.values())) == flat.size + 1


def test_swaps_and_sign_flips_change_it():
    x = jax.random.normal(jax.random.key(0), (64,))
    two_signs = x.at[jnp.array([3, 9])].mul(-1)
    digests = tree_digest({"x": x, "swapped": x[::-1], "negated": -x, "two signs": two_signs})
    assert len(set(digests.values())) == 4


def test_negative_zero_and_nan_are_content():
    digests = tree_digest([jnp.array([0.0]), jnp.array([-0.0]), jnp.array([jnp.nan])])
    assert len(set(digests.values())) == 3
    assert digests == tree_digest([jnp.array([0.0]), jnp.array([-0.0]), jnp.array([jnp.nan])])


def test_typed_keys_and_paths():
    digests = tree_digest({"rng": jax.random.key(1), "layers": [jnp.ones(2), (jnp.zeros(()),)]})
    assert sorted(digests) == ["layers/0", "layers/1/0", "rng"]
    assert digests["rng"] != tree_digest({"rng": jax.random.key(2)})["rng"]
    assert digests["rng"] == tree_digest({"rng": jax.random.key_data(jax.random.key(1))})["rng"]


def test_empty_trees_and_arrays():
    assert tree_digest({"none": None}) == {}
    assert tree_digest({"empty": jnp.zeros((0, 4))}) == {"empty": 0}


@pytest.mark.parametrize("spec", [("data", None), (None, "data"), (None, None)])
def test_independent_of_sharding(spec):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x = array("bfloat16", (16, 24))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert mesh.size > 1, "run with several devices"
    assert tree_digest({"x": sharded}) == tree_digest({"x": x})


def test_leaf_table_of_arrays_and_their_abstract_twin():
    tree = {"kernel": jnp.ones((2, 3), jnp.bfloat16), "rng": jax.random.key(0), "step": jnp.int32(1)}
    assert leaf_table(tree)["kernel"] == "bfloat16[2,3]"
    assert leaf_table(tree) == leaf_table(jax.eval_shape(lambda: tree))
