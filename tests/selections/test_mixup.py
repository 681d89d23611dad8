"""Partners for mixing: another row for each, every row once, each as often as any other, on any number of devices."""

import jax
import numpy as np
import pytest

from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.selections.mixup import mixup
from smke_jax.training.step import run_selection

BATCH = 8
IDS = np.array([5, 5, 1, 2, 3, 3, 3, 4], np.int32)


def draw(devices, *keys):
    """The partners (BATCH,) that each of the keys gives."""
    mesh = make_mesh(devices)
    arrays = put_batch({"id": IDS}, mesh)
    run = jax.jit(lambda key: run_selection(mixup(), mesh, {}, arrays, key=key)["mixup"])
    return np.stack([run(key) for key in keys])


def test_every_row_gets_another_one_and_each_is_as_likely():
    count = 400
    partners = draw(1, *jax.random.split(jax.random.key(0), count))
    assert partners.dtype == np.int32
    np.testing.assert_array_equal(np.sort(partners, axis=1), np.broadcast_to(np.arange(BATCH), partners.shape))
    drawn = np.stack([np.bincount(column, minlength=BATCH) for column in partners.T])
    assert not np.any(drawn.diagonal()), "a row is its own partner"
    share = 1 / (BATCH - 1)
    deviation = np.sqrt(share * (1 - share) / count)
    assert np.all(np.abs(drawn[~np.eye(BATCH, dtype=bool)] / count - share) < 5 * deviation)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_same_for_any_number_of_devices(devices):
    key = jax.random.key(3)
    np.testing.assert_array_equal(draw(devices, key), draw(1, key))
