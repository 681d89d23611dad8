"""Re-ranking: against a plain ordering of the whole table of scores, within the bound, and in little memory."""

import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.evaluators.encode import Encoder
from smke_jax.evaluators.ranks import RECALL_AT, Ranks, read_ranks
from smke_jax.evaluators.recalls import DIRECTIONS
from smke_jax.evaluators.rerank import check_bound, rerank, reranked
from smke_jax.evaluators.retrieval import retrieve
from smke_jax.parallel.mesh import make_mesh
from smke_jax.passes.base import Pass
from smke_jax.reporting.evaluations import read_evaluations
from smke_jax.reporting.evaluator_tables import evaluator_section
from smke_jax.tasks.base import Column, Split
from smke_jax.training.evaluation import write_figures
from smke_jax.training.recipe import in_order

IMAGES, EACH, WIDTH, LENGTH = 40, 3, 6, 4
rng = np.random.default_rng(0)
OWNERS = np.repeat(np.arange(IMAGES), EACH)
X = rng.normal(size=(IMAGES, 2, WIDTH)).astype(np.float32)  # tokens of images
Y = (X[OWNERS][:, :1] + 1.5 * rng.normal(size=(len(OWNERS), LENGTH, WIDTH))).astype(np.float32)  # and of captions
MASK = (np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (len(OWNERS), 1))).astype(np.int32)


def split():
    read = lambda x: lambda rows: x[np.asarray(rows)]  # noqa: E731
    columns = {"image": X, "text": Y, "text_mask": MASK}
    columns = {name: Column(len(x), read(x), "made up") for name, x in columns.items()}
    return Split("made up", "digest", columns, {"captions": ["x"] * len(OWNERS), "caption_image": OWNERS})


def match(image, text, mask, xp=np):
    """A match that cosines do not know: of the products of tokens, the largest at words."""
    products = xp.einsum("bnd,bld->bln", image, text)
    best = xp.where(mask[:, :, None] > 0, products, -9.0).max(axis=(1, 2))
    return xp.stack([0.25 * best, best], axis=1)


class Recorded(Encoder):
    """Notes how many bytes of tokens each call returned, and of how many pairs."""

    def __init__(self, devices=1, batch_size=32):
        def tower(name, needs, tokens):
            def run(params, arrays, key, train):
                return {f"{name}/states": tokens(arrays), f"{name}/out": tokens(arrays)[:, 0]}

            return Pass(name, (), needs, (f"{name}/states", f"{name}/out"), run)

        def fuse(params, arrays, key, train):
            return {"pair/match": match(*(arrays[need] for need in needs), jnp)}

        needs = ("image/states", "text/states", "text_mask")
        passes = (
            tower("image", ("image",), lambda arrays: arrays["image"]),
            tower("text", ("text", "text_mask"), lambda arrays: arrays["text"]),
            Pass("pair", (), needs, ("pair/match",), fuse),
        )
        chosen = lambda names, columns: in_order(passes, columns, {"the test": names})  # noqa: E731
        super().__init__(chosen, lambda p: {}, make_mesh(devices), batch_size=batch_size, threads=0)
        self.largest, self.pairs, self.encoded = 0, 0, 0

    def __call__(self, names, on):
        found = super().__call__(names, on)
        if names[0].endswith("/states"):
            self.largest = max(self.largest, found[names[0]].nbytes)
            self.encoded += len(found[names[0]])
        if names == ("pair/match",):
            self.pairs += len(found["pair/match"])
        return found


def expected(k, cosine_weight=0.0):
    """Ranks by whole tables: the best k by cosine, ordered by their score, then the others by cosine."""
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (X[:, 0], Y[:, 0]))
    cosines = image @ text.T
    a, b = np.meshgrid(np.arange(IMAGES), np.arange(len(OWNERS)), indexing="ij")
    both = match(X[a.ravel()], Y[b.ravel()], MASK[b.ravel()])
    scores = (both[:, 1] - both[:, 0]).reshape(cosines.shape) + cosine_weight * cosines

    def ranks(cosines, scores, right):
        found = []
        for c, s, own in zip(cosines, scores, right, strict=True):
            first = np.argsort(-c, kind="stable")
            head = sorted(first[:k], key=lambda i: (-s[i], i))
            found.append(1 + min(np.flatnonzero(own[[*head, *first[k:]]])))
        return np.array(found)

    right = np.arange(IMAGES)[:, None] == OWNERS
    return ranks(cosines, scores, right), ranks(cosines.T, scores.T, right.T)


@pytest.mark.parametrize("devices", [1, 8])
def test_it_orders_the_best_of_each_query_anew(devices):
    encode = Recorded(devices)
    figures = rerank(k=12, sweep=(1, 5)).run(encode, None, split())
    for k in (1, 5, 12):
        for direction, ranks in zip(DIRECTIONS, expected(k), strict=True):
            name = direction if k == 12 else f"at_{k}_{direction}"
            np.testing.assert_array_equal(figures.arrays[name], ranks)
            for at in RECALL_AT:
                value = figures.record["reranked"][str(k)][direction][f"r{at}"]
                assert value == pytest.approx(100 * np.mean(ranks <= at))
                first = np.mean(figures.arrays[f"first_{direction}"] <= max(k, at))
                assert value <= 100 * first + 1e-9, "no more than the first stage holds"
    first, last = figures.record["first_stage"], figures.record["reranked"]["12"]
    assert figures.scalars["recall_sum"] == last["recall_sum"] != first["recall_sum"]
    assert figures.record["reranked"]["1"]["image_to_text"] == first["image_to_text"], "of one there is no other order"
    assert figures.scalars["first/text_to_image/r5"] == first["text_to_image"]["r5"]
    assert encode.pairs == figures.record["pairs_scored"] <= 12 * (IMAGES + len(OWNERS))
    assert "best 12" in figures.summary and "first stage" in figures.summary
    assert {key: figures.record[key] for key in last} == last, "the record is one of retrieval, at the k asked for"


def test_the_cosine_can_be_added_to_the_match():
    found = rerank(k=12, cosine_weight=3.0).run(Recorded(), None, split())
    for direction, ranks, alone in zip(DIRECTIONS, expected(12, 3.0), expected(12), strict=True):
        np.testing.assert_array_equal(found.arrays[direction], ranks)
        assert np.any(ranks != alone)
    assert "ordered by the match + 3 × cosine" in found.record["protocol"]
    by_cosine = rerank(k=12, cosine_weight=1e6).run(Recorded(), None, split())
    for direction in DIRECTIONS:
        np.testing.assert_array_equal(by_cosine.arrays[direction], by_cosine.arrays[f"first_{direction}"])


def test_a_report_shows_both_stages(tmp_path):
    figures = rerank(k=12, sweep=(5,)).run(Recorded(), None, split())
    write_figures(tmp_path / "7" / "rerank", figures)
    problems = []
    (found,) = read_evaluations(tmp_path, problems)
    assert not problems and found.has_recalls
    page = evaluator_section("rerank", [found])
    for what, record in (
        ("first stage", figures.record["first_stage"]), ("the best 5 ordered anew", figures.record["reranked"]["5"])
    ):  # fmt: skip
        row = page.partition(f"<td>{what}</td>")[2].partition("</tr>")[0]
        assert (
            f"{record['text_to_image']['r5']:.1f}" in row and f"{record['ci95']['text_to_image']['r5'][0]:.1f}" in row
        )
    ranks = read_ranks(tmp_path / "7" / "rerank.npz")
    np.testing.assert_array_equal(ranks.text_to_image, expected(12)[1])


def test_the_whole_gallery_is_the_ranking_by_match_alone():
    encode = Recorded()
    figures = rerank(k=500).run(encode, None, split())
    assert encode.pairs == IMAGES * len(OWNERS), "every pair once"
    for direction, ranks in zip(DIRECTIONS, expected(500), strict=True):
        np.testing.assert_array_equal(figures.arrays[direction], ranks)


def test_in_little_memory_it_finds_the_same():
    free, tight = Recorded(), Recorded()
    whole = rerank(k=6).run(free, None, split())
    memory = 2 * 7 * Y[0].nbytes / 2**20  # half of it holds 7 captions, or 14 images
    blocks = rerank(k=6, memory_mib=memory).run(tight, None, split())
    for name, ranks in whole.arrays.items():
        np.testing.assert_array_equal(blocks.arrays[name], ranks)
    assert tight.largest <= memory / 2 * 2**20 < free.largest
    assert free.encoded == IMAGES + len(OWNERS) + 2 < tight.encoded, "and encodes captions several times"


def test_scores_that_are_not_finite_are_refused():
    class Broken(Recorded):
        def __call__(self, names, on):
            found = super().__call__(names, on)
            if names == ("pair/match",):
                found["pair/match"] = np.where(np.arange(2) == 1, np.nan, found["pair/match"])
            return found

    with pytest.raises(UserError, match="rerank: [0-9]+ of [0-9]+ match scores are NaN or infinity"):
        rerank(k=3).run(Broken(), None, split())


def test_equal_scores_keep_the_order_of_the_gallery():
    best = np.array([[7, 2, 5], [7, 2, 5], [1, 0, 3]])
    right = np.array([[True, False, False], [False, True, True], [False] * 3])
    scores = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    assert reranked(np.array([1, 2, 9]), best, scores, right).tolist() == [3, 2, 9]


def test_more_than_the_first_stage_holds_is_an_error_of_ours():
    first = Ranks(np.array([1, 30]), np.array([40, 2]), np.array([0, 1]))
    check_bound(first, Ranks(np.array([5, 30]), np.array([40, 1]), first.caption_image), 5)
    with pytest.raises(AssertionError, match="text_to_image recall at 1 is above the first stage's at 5"):
        check_bound(first, Ranks(np.array([5, 30]), np.array([1, 1]), first.caption_image), 5)


def test_lists_that_hold_more_than_the_first_stage_finds_do_not_pass(monkeypatch):
    def own_captions(*args):
        found = retrieve(*args)
        return found._replace(best=(np.arange(len(OWNERS)).reshape(IMAGES, EACH), found.best[1]))

    monkeypatch.setitem(rerank.__globals__, "retrieve", own_captions)
    with pytest.raises(AssertionError, match="image_to_text recall at 1 is above the first stage's at 3"):
        rerank(k=3).run(Recorded(), None, split())


def test_among_equal_cosines_both_stages_keep_the_order_of_the_gallery(monkeypatch):
    """Of three captions in turn all embeddings are the same: the own one's rank decides whether the list holds it."""
    monkeypatch.setitem(globals(), "Y", Y[:3][np.arange(len(OWNERS)) % 3])
    figures = rerank(k=5).run(Recorded(), None, split())
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (X[:, 0], Y[:, 0]))
    held = figures.arrays["first_image_to_text"] <= 5
    assert 0 < held.sum() < IMAGES
    lists = np.argsort(-(image @ text.T), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(held, (OWNERS[lists] == np.arange(IMAGES)[:, None]).any(axis=1))
    assert np.all((figures.arrays["image_to_text"] <= 5) == held)


def test_what_cannot_be_is_refused():
    for options, message in (
        ({"k": 0}, "k is 0: it has to be at least 1"),
        ({"sweep": (4, 0)}, "sweep is 0: it has to be at least 1"),
        ({"cosine_weight": -1.0}, "cosine_weight is -1.0: it has to be at least 0"),
        ({"memory_mib": 0.0}, "memory_mib is 0.0: it has to be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            rerank(**options)
    photos = split()._replace(facts={})
    with pytest.raises(UserError, match="rerank reads images and their captions: made up has none"):
        rerank().check(None, photos)
