"""Codes that follow their vectors, against plain NumPy."""

import jax
import numpy as np
import pytest

from smke_jax.losses import codebook


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def made_up(seed, rows, width=4):
    return unit(np.random.default_rng(seed).normal(size=(rows, width))).astype(np.float32)


def followed(codes, x, nearest, decay):
    codes = codes.astype(np.float64)
    for j in range(len(codes)):
        mine = x[nearest == j].astype(np.float64)
        if len(mine):
            codes[j] = unit(decay * codes[j] + (1 - decay) * unit(mine.mean(axis=0)))
    return codes


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_follow(decay):
    """The mean of a code's vectors is normalised before it is mixed in; a code without vectors stays (spec 16)."""
    codes, x = made_up(0, 7), made_up(1, 9)
    nearest = np.asarray(codebook.nearest_code(x, codes))
    np.testing.assert_array_equal(nearest, np.argmax(x @ codes.T, axis=1))
    moved = np.asarray(jax.jit(codebook.follow, static_argnames="decay")(codes, x, nearest, decay=decay))
    np.testing.assert_allclose(moved, followed(codes, x, nearest, decay), atol=1e-6)
    without = np.setdiff1d(np.arange(7), nearest)
    assert len(without), "the test tests something"
    np.testing.assert_array_equal(moved[without], codes[without])
    np.testing.assert_array_equal(codebook.counts(nearest, 7), np.bincount(nearest, minlength=7))


@pytest.mark.parametrize("rows,size", [(60, 5), (4, 7)])
def test_k_means(rows, size):
    """Ten rounds from the first rows; where there are fewer rows than codes, rows are taken again."""
    x = made_up(2, rows)
    codes = x[np.arange(size) % rows].astype(np.float64)
    for _ in range(10):
        codes = followed(codes, x, np.argmax(x @ codes.T, axis=1), 0.0)
    found = np.asarray(codebook.k_means(x, size))
    np.testing.assert_allclose(found, codes, atol=1e-5)
    assert np.mean(np.max(x @ found.T, axis=1)) > np.mean(np.max(x @ x[np.arange(size) % rows].T, axis=1)) - 1e-6


def test_clusters_are_found():
    centres = np.eye(4, dtype=np.float32)
    rng = np.random.default_rng(0)
    x = unit(np.tile(centres, (20, 1)) + 0.1 * rng.normal(size=(80, 4))).astype(np.float32)
    found = np.asarray(codebook.k_means(x, 4))
    np.testing.assert_allclose(np.sort(np.max(found @ centres.T, axis=1)), np.ones(4), atol=0.01)
    assert sorted(np.argmax(found @ centres.T, axis=1)) == [0, 1, 2, 3]


def test_restarted_codes_are_the_vectors_described_worst():
    codes = np.eye(4, dtype=np.float32)
    x = unit(np.array([[9, 1, 0, 0], [1, 0, 0, 5], [3, 2, 0, 0], [8, 0, 1, 0], [4, 3, 0, 0]], np.float32))
    nearest = np.zeros(5, np.int32)  # all with the first code, however far
    dead = np.array([False, True, False, True])
    after, renewed = map(np.asarray, codebook.restart(codes, dead, x, nearest))
    np.testing.assert_array_equal(renewed, dead)
    np.testing.assert_array_equal(after[[0, 2]], codes[[0, 2]])
    np.testing.assert_allclose(after[1], x[1])  # cosine 0.2
    np.testing.assert_allclose(after[3], x[4])  # cosine 0.8
    np.testing.assert_array_equal(codebook.restart(codes, np.zeros(4, bool), x, nearest)[0], codes)
    few, renewed = codebook.restart(codes, np.ones(4, bool), x[:2], nearest[:2])
    np.testing.assert_array_equal(renewed, [True, True, False, False])
    np.testing.assert_allclose(few, [x[1], x[0], codes[2], codes[3]])
