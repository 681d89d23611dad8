"""Retrieval metrics against numbers worked out by hand, a naive reference, and their own invariances."""

import json

import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.evaluators.median_rank import average_median_rank
from smke_jax.evaluators.recalls import (
    chance_recall,
    format_table,
    retrieval_metrics,
    top_matches,
    write_json,
)
from smke_jax.evaluators.retrieval import Retrieval, _examples, retrieval
from smke_jax.evaluators.top_k import match_ranks
from smke_jax.tasks.base import Column, Split

DIRECTIONS = ("image_to_text", "text_to_image")


def from_scores(scores, caption_image, **options):
    """Metrics of a given (N, M) score matrix: one-hot images make the products exactly these scores."""
    scores = np.asarray(scores, np.float32)
    return retrieval_metrics(
        np.eye(len(scores), dtype=np.float32),
        scores.T,
        np.asarray(caption_image),
        protocol="by hand",
        **{"bootstrap": 0, **options},
    )


def random_problem(n_images=40, dim=6, seed=0, signal=0.7):
    """Embeddings with some signal, 3 to 6 captions per image in shuffled order."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n_images, dim))
    caption_image = rng.permutation(np.repeat(np.arange(n_images), rng.integers(3, 7, n_images)))
    texts = signal * images[caption_image] + rng.normal(size=(len(caption_image), dim))
    return images, texts, caption_image


def naive_ranks(images, texts, caption_image):
    """The reference: the whole matrix, double argsort, in the words of the definition."""
    scores = np.asarray(images, np.float32) @ np.asarray(texts, np.float32).T
    places = np.argsort(np.argsort(-scores, axis=1), axis=1)
    image_ranks = [
        1 + min(places[i, j] for j in range(len(texts)) if caption_image[j] == i) for i in range(len(images))
    ]
    places = np.argsort(np.argsort(-scores.T, axis=1), axis=1)
    caption_ranks = [1 + places[j, caption_image[j]] for j in range(len(texts))]
    return {"image_to_text": np.array(image_ranks), "text_to_image": np.array(caption_ranks)}


def test_matrix_worked_out_by_hand():
    """Three images with 2, 1 and 4 captions.

    Image 0: own 0.9 leads, rank 1. Image 1: own 0.3 is behind five, rank 6. Image 2: own best 0.6 is behind
    the 0.8, rank 2. Captions, down the columns: 1, 2 (0.2 < 0.5), 2, 3, 1, 1, 2.
    """
    scores = [
        [0.9, 0.2, 0.7, 0.8, 0.1, 0.0, 0.3],
        [0.5, 0.5, 0.3, 0.6, 0.4, 0.1, 0.9],
        [0.8, 0.1, 0.2, 0.5, 0.6, 0.3, 0.4],
    ]
    metrics = from_scores(scores, [0, 0, 1, 2, 2, 2, 2])
    assert metrics["image_to_text"] == pytest.approx({"r1": 100 / 3, "r5": 200 / 3, "r10": 100, "median_rank": 2})
    assert metrics["text_to_image"] == pytest.approx({"r1": 300 / 7, "r5": 100, "r10": 100, "median_rank": 2})
    assert metrics["recall_sum"] == pytest.approx(100 / 3 + 200 / 3 + 100 + 300 / 7 + 200)
    assert metrics["mean_recall"] == pytest.approx(metrics["recall_sum"] / 6)
    assert (metrics["n_images"], metrics["n_captions"], metrics["protocol"]) == (3, 7, "by hand")
    assert metrics["ci95"] is None


def test_ties_follow_the_index():
    """Own rows lose to equal foreign rows with a smaller index and to no others."""
    gallery = np.array([[2], [1], [1], [1], [1]], np.float32)
    query = np.ones((1, 1), np.float32)
    own = lambda *places: np.isin(np.arange(5), places).astype(int)  # noqa: E731
    assert match_ranks(query, gallery, [1], own(1)) == [2]
    assert match_ranks(query, gallery, [1], own(3)) == [4]
    assert match_ranks(query, gallery, [1], own(2, 4)) == [3]
    assert match_ranks(query, gallery, [1], own(0, 4)) == [1]
    low_own_first = np.array([[0], [1], [1]], np.float32)
    assert match_ranks(query, low_own_first, [1], [1, 0, 1]) == [2]


def test_collapsed_model_is_at_chance():
    """Every score equal must not look like a perfect model."""
    images, captions = 50, 5
    metrics = from_scores(np.ones((images, images * captions)), np.repeat(np.arange(images), captions))
    for direction in DIRECTIONS:
        assert metrics[direction]["r1"] == pytest.approx(100 / images)
        assert metrics[direction]["r10"] <= 10 * 100 / images


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_naive_reference(seed):
    images, texts, caption_image = random_problem(seed=seed)
    metrics = retrieval_metrics(images, texts, caption_image, protocol="random", bootstrap=0, chunk_size=7)
    for direction, ranks in naive_ranks(images, texts, caption_image).items():
        expected = {f"r{k}": 100 * np.mean(ranks <= k) for k in (1, 5, 10)}
        assert metrics[direction] == pytest.approx({**expected, "median_rank": np.median(ranks)})
        assert 0 < metrics[direction]["r1"] < 90, "a problem this easy or this hard shows nothing"


@pytest.mark.parametrize("chunk_size", [1, 3, 16, 1000])
def test_chunk_size_changes_nothing(chunk_size):
    problem = random_problem(seed=5)
    whole = retrieval_metrics(*problem, protocol="p", bootstrap=20)
    assert retrieval_metrics(*problem, protocol="p", bootstrap=20, chunk_size=chunk_size) == whole


def test_caption_order_changes_nothing():
    images, texts, caption_image = random_problem(seed=6)
    order = np.random.default_rng(0).permutation(len(texts))
    before = retrieval_metrics(images, texts, caption_image, protocol="p", bootstrap=20)
    after = retrieval_metrics(images, texts[order], caption_image[order], protocol="p", bootstrap=20)
    assert after == before
    wrong = retrieval_metrics(images, texts[order], caption_image, protocol="p", bootstrap=0)
    assert wrong["recall_sum"] < before["recall_sum"]


def test_average_median_rank_against_a_naive_loop():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(23, 4)).astype(np.float32)  # two splits of 10; the last three are left out
    caption_image = np.concatenate([np.repeat(np.arange(20), rng.integers(5, 8, 20)), [20, 21, 22]])
    caption_image = rng.permutation(caption_image)
    texts = (0.4 * images[caption_image] + rng.normal(size=(len(caption_image), 4))).astype(np.float32)

    per_split = []
    for start in (0, 10):
        per_caption = []
        for c in range(5):
            chosen = texts[[np.flatnonzero(caption_image == i)[c] for i in range(start, start + 10)]]
            scores = images[start : start + 10] @ chosen.T
            both = []
            for matrix in (scores, scores.T):
                both.append(np.median(np.diagonal(np.argsort(np.argsort(-matrix, axis=1), axis=1)) + 1))
            per_caption.append(both)
        per_split.append(np.mean(per_caption, axis=0))
    expected = dict(zip(DIRECTIONS, np.mean(per_split, axis=0)))

    found, reason = average_median_rank(images, texts, caption_image, split_size=10)
    assert reason is None
    assert found == pytest.approx(expected)
    assert expected["image_to_text"] != expected["text_to_image"], "the directions could not be told apart"


def test_average_median_rank_says_why_it_is_missing():
    few = retrieval_metrics(*random_problem(), protocol="p", bootstrap=0)
    assert few["average_median_rank"] is None
    assert "1000 images" in few["average_median_rank_reason"]

    images = np.random.default_rng(0).normal(size=(1000, 4))
    caption_image = np.repeat(np.arange(1000), 5)
    full = retrieval_metrics(images, images[caption_image], caption_image, protocol="p", bootstrap=0)
    assert full["average_median_rank"].keys() == set(DIRECTIONS)
    assert "average_median_rank_reason" not in full
    caption_image = caption_image[:-1]
    short = retrieval_metrics(images, images[caption_image], caption_image, protocol="p", bootstrap=0)
    assert short["average_median_rank"] is None
    assert "image 999" in short["average_median_rank_reason"]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_chance_against_simulation(k):
    n_images, captions, trials = 8, 3, 20_000
    rng = np.random.default_rng(k)
    orders = rng.permuted(np.tile(np.repeat(np.arange(n_images), captions), (trials, 1)), axis=1)
    simulated = 100 * (orders[:, :k] == 0).any(axis=1).mean()
    chance = chance_recall(n_images, captions, k)
    assert chance["image_to_text"] == pytest.approx(simulated, abs=1.2)  # 3 standard errors at most 1.1
    assert chance["text_to_image"] == pytest.approx(100 * min(k / n_images, 1))


def test_chance_at_the_edges():
    assert chance_recall(1000, 5, 1)["image_to_text"] == pytest.approx(0.1)
    assert chance_recall(2, 1, 10) == {"image_to_text": 100.0, "text_to_image": 100.0}
    with pytest.raises(UserError, match="k=0"):
        chance_recall(10, 5, 0)


def hits_problem(hits, captions=4):
    """Scores under which image i and all of its captions are found at rank 1 exactly when hits[i]."""
    caption_image = np.repeat(np.arange(len(hits)), captions)
    scores = np.zeros((len(hits), len(caption_image)))
    pointed_at = np.where(hits, np.arange(len(hits)), (np.arange(len(hits)) + 1) % len(hits))
    scores[pointed_at[caption_image], np.arange(len(caption_image))] = 1.0
    return scores, caption_image


def test_bootstrap_covers_the_truth():
    """The 95 % interval holds the true share in about 95 of 100 repetitions (at least 88 of 100 here)."""
    rng, truth, covered = np.random.default_rng(2), 40.0, 0
    for _ in range(100):
        metrics = from_scores(*hits_problem(rng.random(80) < truth / 100, captions=1), bootstrap=200)
        low, high = metrics["ci95"]["text_to_image"]["r1"]
        assert low <= metrics["text_to_image"]["r1"] <= high
        covered += low <= truth <= high
    assert 88 <= covered <= 99


def test_bootstrap_resamples_images_not_captions():
    """Captions that stand or fall together: the interval must be as wide as that of 100 images."""
    hits = np.arange(100) % 2 == 0
    low, high = from_scores(*hits_problem(hits), bootstrap=2000)["ci95"]["text_to_image"]["r1"]
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.25 / 100), rel=0.12)


def test_bootstrap_divides_by_the_captions_drawn():
    """All captions found: 100 % in every resample, also where images differ in their number of captions."""
    caption_image = np.repeat(np.arange(20), np.arange(20) % 5 + 1)
    metrics = from_scores(np.arange(20)[:, None] == caption_image, caption_image, bootstrap=50)
    assert metrics["ci95"]["text_to_image"] == {"r1": [100, 100], "r5": [100, 100], "r10": [100, 100]}


def test_bootstrap_is_seeded():
    problem = hits_problem(np.arange(30) % 3 > 0)
    assert from_scores(*problem, bootstrap=50, seed=1) == from_scores(*problem, bootstrap=50, seed=1)
    assert from_scores(*problem, bootstrap=50, seed=1) != from_scores(*problem, bootstrap=50, seed=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["image_embeddings", "text_embeddings"])
def test_non_finite_embeddings_are_refused(which, bad):
    images, texts, caption_image = random_problem()
    {"image_embeddings": images, "text_embeddings": texts}[which][3, 2] = bad
    with pytest.raises(UserError, match=f"{which}: 1 of .*row 3"):
        retrieval_metrics(images, texts, caption_image, protocol="p")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i, t, c: (i, t[:-1], c), "one integer image index"),
        (lambda i, t, c: (i, t, c.astype(float)), "one integer image index"),
        (lambda i, t, c: (i, t, c + 1), "must lie in 0..39"),
        (lambda i, t, c: (i, t[:, :-1], c), "same model"),
        (lambda i, t, c: (np.concatenate([i, i[:1]]), t, c), "image 40"),
        (lambda i, t, c: (i[0], t, c), "non-empty matrix"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(UserError, match=message):
        retrieval_metrics(*change(*random_problem()), protocol="p")


def test_protocol_is_required():
    with pytest.raises(UserError, match="protocol"):
        retrieval_metrics(*random_problem(), protocol="")


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 100])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_top_matches_is_a_stable_sort(chunk_size, k):
    """Small integers make many exact ties; the answer must be the stable descending argsort all the same."""
    rng = np.random.default_rng(k)
    queries, gallery = rng.integers(-2, 3, (11, 3)), rng.integers(-2, 3, (30, 3))
    scores = (queries @ gallery.T).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    indices, values = top_matches(queries, gallery, k, chunk_size=chunk_size)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))


def test_top_matches_refuses():
    with pytest.raises(UserError, match="1 to 3"):
        top_matches(np.ones((2, 4)), np.ones((3, 4)), 5)
    with pytest.raises(UserError, match="gallery: 1 of 3"):
        top_matches(np.ones((2, 4)), np.array([[1, 2, 3, np.nan]] + [[0] * 4] * 2), 1)


def test_table_and_json(tmp_path):
    metrics = retrieval_metrics(*random_problem(), protocol="flickr30k-test any-of-5", bootstrap=50)
    table = format_table(metrics)
    assert "flickr30k-test any-of-5" in table
    assert f"40 images, {metrics['n_captions']} captions" in table
    assert f"{metrics['image_to_text']['r5']:.2f}" in table
    path = write_json(tmp_path / "new" / "retrieval.json", metrics)
    assert json.loads(path.read_text()) == metrics
    with pytest.raises(ValueError):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == metrics, "a failed write must leave the old file"
    assert [file.name for file in path.parent.iterdir()] == ["retrieval.json"]


@pytest.mark.parametrize("text, right", [("text", 0.0), ("teacher_text", 100.0)])
def test_the_pair_says_what_is_compared(text, right):
    """The student's captions lie beside the wrong images, its teacher's beside their own; the protocol tells."""
    eye = np.eye(12, dtype=np.float32)
    made = {"image/out": eye, "text/out": -eye, "teacher_text/out": eye}
    evaluator = retrieval(split="dev", pair=("image", text))
    facts = {"captions": [""] * 12, "caption_image": np.arange(12)}
    columns = {name: Column(12, None, "made up") for name in ("image", "text")}
    split = Split("d", "", columns, facts)
    found = evaluator.run(lambda names, split: {name: made[name] for name in names}, None, split)
    assert evaluator.needs == ("image/out", f"{text}/out")
    assert found.scalars["text_to_image/r10"] == right
    assert ("'teacher_text/out'" in found.record["protocol"]) == (text == "teacher_text")


def test_examples_of_more_images_than_captions():
    images = np.eye(4, dtype=np.float32)
    found = Retrieval({}, None, images, images[[0, 2]], np.array([0, 2]), ["a", "b"])
    shown = _examples(found, lambda i: int(i))
    best = {caption: images[0] for caption, images in shown["text_to_image"]}
    assert best == {"a": (0, True), "b": (2, True)}
    assert {image: captions[0][1] for image, captions in shown["image_to_text"]}.items() <= {
        0: True, 1: False, 2: True, 3: False
    }.items()  # fmt: skip
