"""RandAugment and random erasing against the published definitions, computed apart with NumPy."""

import numpy as np
import pytest
from PIL import Image

from smke_jax.data.augment import FILL, MEAN, OPERATIONS, STD, rand_augment, random_erasing

RNG = np.random.default_rng(0)
PIXELS = np.clip(RNG.normal(120, 40, (24, 20, 3)), 10, 240).astype(np.uint8)
IMAGE = Image.fromarray(PIXELS)
LEVEL = 0.9


def apply(name, level=LEVEL, sign=1, image=IMAGE):
    return np.asarray(OPERATIONS[name](image, level, sign)).astype(int)


def grey(x):
    return x @ [0.299, 0.587, 0.114]


def blended(towards, factor):
    """factor · image + (1 - factor) · towards: what a factor of an enhancement means."""
    return np.clip(factor * PIXELS + (1 - factor) * towards, 0, 255)


def equalised(channel):
    """Each value goes to the share of the pixels below it, in the integers of the TensorFlow implementation."""
    counts = np.bincount(channel.ravel(), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    below = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.clip((below + step // 2) // step, 0, 255)[channel]


SIGNED = 1 + 0.9 * LEVEL
X = PIXELS.astype(int)
DEFINITIONS = {
    "invert": 255 - X,
    "solarize": np.where(X < 256 - int(LEVEL * 256), X, 255 - X),
    "solarize_add": np.where(X < 128, np.minimum(255, X + 99), X),
    "posterize": X // 2**7 * 2**7,  # of 4 - 3 = 1 bits
    "autocontrast": np.stack([(c - c.min()) * 255 / (c.max() - c.min()) for c in np.moveaxis(X, 2, 0)], axis=2),
    "equalize": np.stack([equalised(c) for c in np.moveaxis(X, 2, 0)], axis=2),
    "brightness": blended(0, SIGNED),
    "colour": blended(grey(X)[:, :, None], SIGNED),
    "contrast": blended(np.round(grey(X).mean()), SIGNED),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_an_operation_on_colours_is_what_its_formula_says(name):
    np.testing.assert_allclose(apply(name), DEFINITIONS[name], atol=2.0)  # of rounding, up to 1.81 times


def test_sharpness_goes_from_the_smoothed_image_to_beyond_the_image():
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    windows = np.lib.stride_tricks.sliding_window_view(X, (3, 3), axis=(0, 1))
    smooth = np.einsum("hwcij,ij->hwc", windows, weights)
    inside = slice(1, -1), slice(1, -1)
    for sign in (1, -1):
        factor = 1 + sign * 0.9 * LEVEL
        expected = np.clip(factor * X[inside] + (1 - factor) * smooth, 0, 255)
        np.testing.assert_allclose(apply("sharpness", sign=sign)[inside], expected, atol=2.0)


def test_a_level_of_zero_changes_nothing_where_the_definition_says_so():
    for name in ("solarize", "solarize_add", "rotate", "shear_x", "shear_y", "translate_x", "translate_y",
                 "brightness", "colour", "contrast", "sharpness"):  # fmt: skip
        np.testing.assert_array_equal(apply(name, level=0.0), X, name)


GRADIENT = np.broadcast_to(np.arange(60)[None, :, None] * 4, (40, 60, 3)).astype(np.uint8)  # 4 per pixel to the right


@pytest.mark.parametrize("sign", (1, -1))
def test_shifts_and_shears_move_by_what_they_say(sign):
    """The colour of a gradient says where a pixel came from."""
    middle = slice(15, 25), slice(22, 38)
    wide, tall = Image.fromarray(GRADIENT), Image.fromarray(np.ascontiguousarray(GRADIENT.transpose(1, 0, 2)))
    level = 0.5
    moved = apply("translate_x", level, sign, wide)
    np.testing.assert_allclose(moved[middle], GRADIENT[middle] + sign * 4 * 0.45 * level * 60, atol=1.5)
    down = apply("translate_y", level, sign, tall).transpose(1, 0, 2)
    np.testing.assert_allclose(down[middle], GRADIENT[middle] + sign * 4 * 0.45 * level * 60, atol=1.5)
    rows = np.arange(15, 25)[:, None, None] + 0.5
    sheared = apply("shear_x", level, sign, wide)
    np.testing.assert_allclose(sheared[middle], GRADIENT[middle] + sign * 4 * 0.3 * level * rows, atol=1.5)
    sheared = apply("shear_y", level, sign, tall).transpose(1, 0, 2)
    np.testing.assert_allclose(sheared[middle], GRADIENT[middle] + sign * 4 * 0.3 * level * rows, atol=1.5)


def test_rotation_is_by_thirty_degrees_at_the_most_and_uncovered_corners_get_the_mean_colour():
    square = Image.fromarray(GRADIENT[:, :40])
    turned = apply("rotate", 1.0, 1, square)
    assert tuple(turned[0, 0]) == FILL
    y, x = np.mgrid[14:26, 14:26] - 19.5
    angle = np.deg2rad(30)  # against the clock, the y axis pointing down
    source = np.cos(angle) * x - np.sin(angle) * y
    np.testing.assert_allclose(turned[14:26, 14:26, 0], 4 * (source + 19.5), atol=3)


def test_operations_are_drawn_alike_and_half_of_them_applied(monkeypatch):
    seen = []
    for name in OPERATIONS:
        note = lambda image, level, sign, name=name: seen.append((name, level, sign)) or image  # noqa: E731
        monkeypatch.setitem(OPERATIONS, name, note)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        rand_augment(IMAGE, rng, magnitude=9)
    names, levels, signs = map(np.array, zip(*seen, strict=True))
    assert len(OPERATIONS) == 15 and abs(len(seen) - 3000) < 150, "two operations, each with probability 1/2"
    counts = np.array([np.sum(names == name) for name in OPERATIONS])
    assert counts.min() > 150 and counts.max() < 250
    assert abs(levels.mean() - 0.9) < 0.01 and levels.max() == 1.0 and 0.035 < levels.std() < 0.055
    assert abs(signs.mean()) < 0.05


def test_an_image_keeps_its_size_and_the_generator_decides():
    first, second, other = (
        np.asarray(rand_augment(IMAGE, np.random.default_rng(seed), magnitude=9, count=4)) for seed in (3, 3, 4)
    )
    assert first.shape == PIXELS.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def test_erasing_makes_one_rectangle_of_normal_noise():
    rng, plain = np.random.default_rng(0), np.full((40, 50, 3), 7, np.uint8)
    shares, ratios, noise, erased = [], [], [], 0
    for _ in range(800):
        out = random_erasing(plain, rng, 0.25)
        changed = np.any(out != 7, axis=2)
        if out is plain:
            continue
        erased += 1
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed.sum() > 0.97 * box.shape[0] * box.shape[1], "a rectangle, but for noise that is 7 itself"
        shares.append(box.shape[0] * box.shape[1] / changed.size)
        ratios.append(box.shape[0] / box.shape[1])
        noise.append(box.reshape(-1, 3))
    assert np.all(plain == 7) and abs(erased / 800 - 0.25) < 0.04
    assert min(shares) > 0.012 and max(shares) < 0.36 and abs(np.mean(shares) - 0.16) < 0.04
    assert min(ratios) > 0.25 and max(ratios) < 4 and abs(np.median(np.log(ratios))) < 0.25
    values = (np.concatenate(noise) / 255 - MEAN) / STD
    assert np.all(np.abs(values.mean(0)) < 0.06) and np.all(np.abs(values.std(0) - 0.97) < 0.04)


def test_a_probability_of_one_always_erases_and_of_zero_never():
    rng = np.random.default_rng(0)
    assert random_erasing(PIXELS, rng, 0.0) is PIXELS
    assert all(np.any(random_erasing(PIXELS, rng, 1.0) != PIXELS) for _ in range(20))
