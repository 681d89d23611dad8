"""Mixup and CutMix: each batch is mixed as the papers define it, with the shares that the labels get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from smke_jax.passes.classify import Mixing, mix

RNG = np.random.default_rng(0)
SIZE = 12
X, OTHER = RNG.normal(size=(2, 3, SIZE, SIZE, 3)).astype(np.float32)
DRAWS = 600


def draws(**fields):
    """(mixed (N, 3, S, S, 3), shares (N,)) of many keys."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jax.device_get(jax.jit(jax.vmap(lambda key: mix(key, X, OTHER, Mixing(**fields))))(keys))


def test_mixup_blends_by_a_beta_share():
    mixed, share = draws(cutmix_alpha=0.0, probability=1.0)
    s = share[:, None, None, None, None]
    np.testing.assert_allclose(mixed, s * X + (1 - s) * OTHER, rtol=1e-5, atol=1e-6)
    assert stats.kstest(share, stats.beta(0.8, 0.8).cdf).pvalue > 0.01


def test_cutmix_pastes_one_box_whose_area_is_the_share_of_the_other():
    mixed, share = draws(mixup_alpha=0.0, probability=1.0)
    pasted = mixed[..., 0] == OTHER[..., 0]
    np.testing.assert_array_equal(np.where(pasted[..., None], OTHER, X), mixed)
    np.testing.assert_array_equal(pasted, np.broadcast_to(pasted[:, :1], pasted.shape))  # the same box in every image
    boxes = pasted[:, 0]
    np.testing.assert_allclose(boxes.mean((1, 2)), 1 - share, atol=1e-6)
    whole = 0
    for box in boxes:
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        if not len(rows):
            continue
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "one rectangle"
        inside = rows[0] > 0 and rows[-1] < SIZE - 1 and columns[0] > 0 and columns[-1] < SIZE - 1
        whole += inside
        assert not inside or len(rows) == len(columns), "a square, unless it is cut at the border"
    assert whole > 50
    # A box of the share 1 - λ with λ uniform, around a random centre, cut at the border: computed apart.
    rng, expected = np.random.default_rng(1), []
    for lam in rng.uniform(size=4000):
        side = int(SIZE * np.sqrt(1 - lam)) // 2
        sizes = [min(c + side, SIZE) - max(c - side, 0) for c in rng.integers(0, SIZE, 2)]
        expected.append(1 - sizes[0] * sizes[1] / SIZE**2)
    assert abs(np.mean(share) - np.mean(expected)) < 0.04


def test_nine_batches_of_ten_are_mixed_half_of_them_by_boxes():
    mixed, share = draws()
    unmixed = np.all(mixed == X, axis=(1, 2, 3, 4))
    assert np.all(share[unmixed] == 1)
    boxes = np.any(mixed == OTHER, axis=(1, 2, 3, 4)) & ~unmixed
    blends = ~boxes & ~unmixed
    assert abs(unmixed.mean() - 0.1) < 0.05, "and a few boxes are too small to be seen"
    assert abs(blends.mean() - 0.45) < 0.06


@pytest.mark.parametrize("fields", [{"probability": 0.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}])
def test_nothing_is_mixed_where_nothing_is_asked_for(fields):
    mixed, share = draws(**fields)
    assert np.all(share == 1) and np.all(mixed == X)


def test_each_way_takes_its_own_alpha():
    """An alpha of a thousand halves: mixup then blends by about one half, while CutMix's shares spread out."""
    mixed, share = draws(mixup_alpha=1e3, cutmix_alpha=1.0, probability=1.0)
    boxes = np.any(mixed == OTHER, axis=(1, 2, 3, 4))
    assert 0.4 < boxes.mean() < 0.55, "half of the batches, and a few boxes are too small to be seen"
    blends = share[~boxes & (share < 1)]
    assert np.all(np.abs(blends - 0.5) < 0.05) and np.std(share[boxes]) > 0.15


@pytest.mark.parametrize("fields", [{"mixup_alpha": 0.0}, {"cutmix_alpha": 0.0}])
def test_the_gradient_of_each_image_is_its_share(fields):
    """Of the sum of all pixels: the share of the pixels that an image keeps, or with which it is blended."""
    for seed in range(5):
        key, mixing = jax.random.key(seed), Mixing(probability=1.0, **fields)
        total = lambda x, other, key=key, mixing=mixing: jnp.sum(mix(key, x, other, mixing)[0])  # noqa: E731
        slope, other = jax.grad(total, (0, 1))(jnp.asarray(X), jnp.asarray(OTHER))
        share = float(mix(key, X, OTHER, mixing)[1])
        np.testing.assert_allclose(slope.mean((1, 2, 3)), share, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(slope + other, 1, rtol=1e-5)
