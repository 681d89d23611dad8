"""HOG of patches against plain loops and in cases that are known in advance, and normalised pixels against PyTorch."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from smke_jax.passes.patch_targets import hog, normalised, patch_targets

RNG = np.random.default_rng(0)


def hog_by_loops(image, patch, cells):
    """One image (S, S, 3), float64 -> (N, 3 · 9 · cells²): spec B.9, pixel after pixel."""
    size, cell = len(image), patch // cells
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    sums = np.zeros((size // cell, size // cell, 3, 9))
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    for y in range(size):
        for x in range(size):
            for c in range(3):
                around = padded[y : y + 3, x : x + 3, c]
                gx, gy = (around * kernel).sum(), (around * kernel.T).sum()
                number = math.floor(9 * math.atan2(gx, gy) / math.pi) % 9
                sums[y // cell, x // cell, c, number] += math.hypot(gx, gy)
    norm = np.linalg.norm(sums, axis=-1, keepdims=True)
    sums = sums / np.maximum(norm, 1e-12)
    patches = []
    for row in range(size // patch):
        for column in range(size // patch):
            own = sums[row * cells : (row + 1) * cells, column * cells : (column + 1) * cells]
            patches.append(own.transpose(2, 3, 0, 1).reshape(-1))  # channel, bin, row, column
    return np.array(patches)


@pytest.mark.parametrize("size, patch, cells", [(32, 16, 2), (28, 14, 2), (24, 8, 1), (24, 12, 3)])
def test_hog_is_that_of_loops(size, patch, cells):
    images = RNG.integers(0, 256, (2, size, size, 3)).astype(np.float32)
    images[0] //= 64  # many equal neighbours: gradients along an axis, and none at all
    expected = np.stack([hog_by_loops(image.astype(np.float64), patch, cells) for image in images])
    found = np.asarray(hog(jnp.asarray(images), patch, cells))
    assert found.shape == (2, (size // patch) ** 2, 27 * cells**2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (224 // 16) ** 2 == 196 and hog(jnp.zeros((1, 224, 224, 3)), 16).shape == (1, 196, 108)


def test_an_image_without_gradients_is_all_zeros():
    found = np.asarray(hog(jnp.full((1, 32, 32, 3), 0.7), 16))
    np.testing.assert_array_equal(found, np.zeros((1, 4, 108)))


def bins_of(image, patch=16, cells=2):
    """(N, channel, bin, row, column) of one image (S, S, 3)."""
    return np.asarray(hog(jnp.asarray(image, jnp.float32)[None], patch, cells)).reshape(-1, 3, 9, cells, cells)


def test_a_vertical_edge_is_in_one_bin_of_its_channel():
    image = np.zeros((32, 32, 3))
    image[:, 20:, 1] = 1.0  # an edge between columns 19 and 20, which squares of columns 16-23 see
    found = bins_of(image)
    assert np.all(found[:, [0, 2]] == 0)
    green = found[:, 1]
    # Squares of 8 pixels: of the patches on the right the left column of squares holds the edge.  The gradient points
    # along a row, at atan2(±1, 0): the bin of a quarter turn, of nine over half a turn the fifth.
    expected = np.zeros_like(green)
    expected[[1, 3], 4, :, 0] = 1
    np.testing.assert_allclose(green, expected, atol=1e-6)
    edges = bins_of(image.transpose(1, 0, 2))[:, 1]
    assert np.all(edges[[2, 3]][:, 0, 0, :] == 1) and edges.sum() == 4, "a horizontal edge: no angle, the first bin"


def test_the_opposite_direction_counts_the_same():
    image = RNG.normal(size=(32, 32, 3))
    np.testing.assert_allclose(bins_of(-image), bins_of(image), atol=1e-5)


def test_every_square_has_the_length_0_or_1_in_every_channel():
    image = RNG.normal(size=(32, 32, 3))
    image[:, :, 2] = 0.3
    lengths = np.linalg.norm(bins_of(image), axis=2)
    np.testing.assert_allclose(lengths[:, :2], 1, atol=1e-6)
    np.testing.assert_array_equal(lengths[:, 2], 0)


def test_pixels_are_normalised_as_in_mae():
    patches = RNG.normal(2, 3, (2, 4, 12)).astype(np.float32)
    patches[0, 0] = 0.5  # a patch of one colour is 0, and not NaN
    target = torch.tensor(patches)
    expected = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    np.testing.assert_allclose(normalised(jnp.asarray(patches)), expected, rtol=1e-5, atol=1e-5)


def test_statistics_of_pixels_do_not_matter_to_hog():
    image = RNG.integers(0, 256, (1, 32, 32, 3)).astype(np.float64)
    other = image * [0.25, 4, 1] - [2, 1, 3]  # which rounds nothing
    np.testing.assert_allclose(hog_by_loops(other[0], 16, 2), hog(jnp.asarray(image, jnp.float32), 16)[0], atol=1e-5)


def test_the_pass_reads_normalised_pixels():
    images = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    made = patch_targets("net", 4, hog_cells=1, mean=mean, std=std).run({}, {"image": images}, None, False)
    pixels = (images / 255 - np.array(mean)) / np.array(std)
    patches = np.stack([pixels[:, y : y + 4, x : x + 4].reshape(2, -1) for y in (0, 4) for x in (0, 4)], axis=1)
    np.testing.assert_allclose(made["image/pixel"], patches, atol=1e-5)
    np.testing.assert_allclose(made["image/pixel_norm"], normalised(jnp.asarray(patches)), atol=1e-4)
    np.testing.assert_allclose(made["image/hog"][0], hog_by_loops(images[0].astype(np.float64), 4, 1), atol=1e-5)
