"""Ranks on disk, and paired intervals against plain loops, theory, and what chance alone would mark."""

from pathlib import Path

import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Figures
from smke_jax.evaluators.bootstrap import interval95, mean_recalls, paired_difference, resampled_recalls
from smke_jax.evaluators.ranks import RECALL_AT, Ranks, read_ranks, retrieval_ranks
from smke_jax.training.evaluation import write_figures


def random_ranks(images=60, seed=0, scale=12.0) -> Ranks:
    """2 to 6 captions per image in shuffled order; the ranks of an image's queries rise and fall together."""
    rng = np.random.default_rng(seed)
    caption_image = rng.permutation(np.repeat(np.arange(images), rng.integers(2, 7, images)))
    hard = rng.exponential(scale, images)
    return Ranks(*(1 + rng.poisson(mean) for mean in (hard, hard[caption_image])), caption_image)


def written(path, ranks) -> Path:
    """The .npz file of an evaluation that found these ranks."""
    return write_figures(path, Figures({}, {}, ranks._asdict()))[0]


def test_recalls_by_hand():
    ranks = Ranks(np.array([1, 6, 2, 11]), np.array([1, 5, 5, 10, 99]), np.array([0, 0, 1, 2, 3]))
    assert ranks.recalls().tolist() == [25, 50, 75, 20, 60, 80]


def test_ranks_come_back_from_disk(tmp_path):
    ranks = random_ranks()
    path = written(tmp_path / "new" / "retrieval", ranks)
    for before, after in zip(ranks, read_ranks(path), strict=True):
        assert np.array_equal(before, after)
    assert sorted(file.name for file in path.parent.iterdir()) == ["retrieval.json", "retrieval.npz"]


def test_ranks_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="none.npz is missing: `smke evaluate`"):
        read_ranks(tmp_path / "none.npz")
    path = written(tmp_path / "retrieval", random_ranks())
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", image_to_text=np.ones(3))
    for content in (b"", b"hello", whole[: len(whole) // 2], (tmp_path / "other.npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match="retrieval.npz is damaged"):
            read_ranks(path)


def test_ranks_are_those_of_the_scores():
    images, texts = np.eye(3), np.array([[0.9, 0.1, 0], [0.2, 0.5, 0.3], [0.8, 0.3, 0.1], [0, 0, 1.0]])
    ranks = retrieval_ranks(images, texts, [0, 0, 1, 2])
    assert (ranks.image_to_text.tolist(), ranks.text_to_image.tolist()) == ([1, 2, 1], [1, 3, 2, 1])


def test_resamples_are_those_of_a_plain_loop():
    ranks = random_ranks(images=25)
    rng = np.random.default_rng(3)
    captions = [np.flatnonzero(ranks.caption_image == image) for image in range(25)]
    for found in resampled_recalls(ranks, 20, seed=3):
        drawn = rng.integers(0, 25, 25)
        rows = np.concatenate([captions[image] for image in drawn])
        expected = [np.mean(ranks.image_to_text[drawn] <= k) for k in RECALL_AT]
        expected += [np.mean(ranks.text_to_image[rows] <= k) for k in RECALL_AT]
        np.testing.assert_allclose(found, 100 * np.array(expected), rtol=1e-12)


def test_a_recipe_does_not_differ_from_itself():
    value, interval = paired_difference([random_ranks()], [random_ranks()])
    assert not value.any() and not interval.any()


def test_the_difference_is_paired():
    """Every seventh image is found a little worse: far less than the gallery's own error, and yet plain to see."""
    ours = random_ranks(images=400)
    worse = (np.arange(400) % 7 == 0).astype(int)
    theirs = Ranks(ours.image_to_text + 3 * worse, ours.text_to_image + 3 * worse[ours.caption_image],
                   ours.caption_image)  # fmt: skip
    value, (low, high) = paired_difference([ours], [theirs])
    np.testing.assert_allclose(value[:6], ours.recalls() - theirs.recalls())
    assert value[6] == pytest.approx(value[:6].mean())
    assert (low > 0).all() and (low < value).all() and (value < high).all()
    unpaired = interval95(resampled_recalls(ours, 500, seed=1) - resampled_recalls(theirs, 500, seed=2))
    assert (unpaired[0] < 0).all()


def test_its_width_is_that_of_theory():
    ours, theirs = random_ranks(images=600, seed=1), random_ranks(images=600, seed=2)
    theirs = theirs._replace(caption_image=ours.caption_image, text_to_image=ours.text_to_image)
    _, interval = paired_difference([ours], [theirs], resamples=8000)
    for i, k in enumerate(RECALL_AT):
        each = (ours.image_to_text <= k).astype(float) - (theirs.image_to_text <= k)
        expected = 2 * 1.96 * 100 * each.std(ddof=1) / np.sqrt(600)
        assert interval[1, i] - interval[0, i] == pytest.approx(expected, rel=0.06)
    assert not interval[:, 3:6].any()


def test_chance_marks_about_one_in_twenty():
    rng = np.random.default_rng(0)
    caption_image = np.repeat(np.arange(150), 2)

    def recipe():
        hard = np.tile([0.2, 0.6, 0.9], 50)
        hits = [rng.random(n) < p for n, p in ((150, hard), (300, hard[caption_image]))]
        return [Ranks(*(np.where(hit, 1, 20) for hit in hits), caption_image)]

    marked = np.array([
        (interval[0] > 0) | (interval[1] < 0)
        for interval in (paired_difference(recipe(), recipe(), resamples=200)[1] for _ in range(300))
    ])  # fmt: skip
    assert (marked.mean(axis=0) < 0.10).all() and (marked.mean(axis=0) > 0.02).all()


def constant(rank: int) -> Ranks:
    """Images do not matter: all are found at `rank`."""
    return Ranks(np.full(30, rank), np.full(30, rank), np.arange(30))


def test_seeds_count_with_the_error_of_their_mean():
    """Recalls 100, 100 and 0: standard error 33.3, times 4.303 of Student's t with two degrees of freedom."""
    seeds = [constant(1), constant(1), constant(50)]
    value, interval = mean_recalls(seeds, resamples=40_000)
    np.testing.assert_allclose(value, 200 / 3)
    np.testing.assert_allclose((interval[1] - interval[0]) / 2, 4.303 * 100 / 3, rtol=0.05)
    _, alone = paired_difference(seeds, [constant(1)], resamples=40_000)
    np.testing.assert_allclose(alone[1] - alone[0], interval[1] - interval[0], rtol=1e-9)
    _, both = paired_difference(seeds, seeds, resamples=40_000)
    assert (both[1] - both[0] > 1.2 * (alone[1] - alone[0])).all(), "seeds of two recipes are not paired"
    _, equal = mean_recalls([constant(1)] * 3)
    assert not (equal[1] - equal[0]).any()


def test_other_galleries_do_not_compare():
    ours = random_ranks()
    with pytest.raises(UserError, match="different galleries"):
        paired_difference([ours], [random_ranks(images=61)])
    with pytest.raises(UserError, match="different galleries"):
        paired_difference([ours, random_ranks(seed=1)], [ours])
