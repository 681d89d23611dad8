"""What is found, by planted embeddings."""

import os
from pathlib import Path

import numpy as np
import pytest
from planted import WIDTH, Planted, embedding, picture, run, write_photos

from smke_jax.errors import UserError
from smke_jax.search.cutoff import ABOVE_CHANCE, PHRASES, answering, by_chance, fits, usual_scores
from smke_jax.search.dates import seconds_of
from smke_jax.search.query import chosen, find, groups_alike, query_vector
from smke_jax.search.store import Index

NAMES = {f"{folder}/{i}.png": 10 * i + len(folder) for folder in ("a", "ab", "a/deep") for i in range(8)}


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", NAMES)


@pytest.fixture
def index(photos, tmp_path):
    run(photos, tmp_path / "index")
    return Index(tmp_path / "index")


def cosines(photos: Path, vector: np.ndarray) -> dict[Path, float]:
    return {path: float(embedding(path.read_bytes()) @ vector) for path in photos.rglob("*.png")}


def query(seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return x / np.linalg.norm(x)


def found(index, vector, **more):
    options = {"mask": index.live, "top": 5, "min_score": None, "is_text": False} | more
    return find(index, vector, options.pop("mask"), **options)


@pytest.mark.parametrize("top", [1, 5, 100])
def test_the_best_photos_come_first_with_their_cosines(photos, index, top):
    answer, expected = found(index, query(), top=top), cosines(photos, query())
    ranked = sorted(expected, key=expected.get, reverse=True)[:top]
    assert [hit.path for hit in answer.hits] == ranked
    np.testing.assert_allclose([hit.score for hit in answer.hits], [expected[path] for path in ranked], atol=2e-3)
    assert (answer.searched, answer.fitting, answer.closest) == (24, 24, None)
    assert all(hit.fit is None and hit.taken == "2023-11-14 22:13:20" for hit in answer.hits)


def test_the_lowest_score_is_kept_to(photos, index):
    least = sorted(cosines(photos, query()).values())[-7] - 5e-4
    answer = found(index, query(), min_score=least, top=100)
    assert len(answer.hits) == 7 == answer.fitting
    answer = found(index, query(), min_score=1.1)
    assert not answer.hits and answer.closest.path == found(index, query()).hits[0].path


def test_deleted_moved_and_damaged_photos_are_not_shown(photos, index):
    first = [hit.path for hit in found(index, query()).hits]
    first[0].unlink()
    number = next(i for i in range(24) if index.path(i) == first[1])
    with open(index.directory / "rows.bin", "r+b") as file:
        file.seek(2 * WIDTH * number)
        file.write(np.float16(index.rows[number, 0] * 1.01).tobytes())
    answer = found(Index(index.directory), query(), top=3)
    assert [hit.path for hit in answer.hits] == first[2:] and (answer.missing, answer.damaged) == (1, 1)


def test_folders_and_dates(photos, index, tmp_path):
    def names(mask):
        return {index.name(i) for i in np.flatnonzero(mask)}

    assert names(chosen(index, folder="a")) == {name for name in NAMES if name.startswith("a/")}
    assert names(chosen(index, folder=str(photos / "a/deep/"))) == {n for n in NAMES if n.startswith("a/deep/")}
    assert names(chosen(index, folder=".")) == set(NAMES)
    for folder in ("b", "..", "/", str(tmp_path), "a/0.png"):
        with pytest.raises(UserError, match=f"--folder={folder}: no photo of the index lies there"):
            chosen(index, folder=folder)
    (photos / "a/0.png").write_bytes(picture(99, taken="2024:05:06 07:08:09"))
    run(photos, index.directory)
    later = Index(index.directory)
    assert [later.name(i) for i in np.flatnonzero(chosen(later, since=seconds_of("2024-05-06")))] == ["a/0.png"]
    assert not chosen(later, since=seconds_of("2024-05-07")).any()
    assert chosen(later, since=seconds_of("2023")).sum() == 24
    with pytest.raises(ValueError):
        seconds_of("yesterday")


class Words:
    """Texts and images that stand for unit vectors."""

    def encode_texts(self, texts):
        return np.array([3 * np.eye(WIDTH)[int(text)] for text in texts], np.float32)

    def encode_images(self, image):
        return self.encode_texts([image])[0]


def test_queries_are_added_up_and_taken_away():
    vector = query_vector(Words(), texts=["0", "1"], images=["2", "4"], minus=["3"])
    np.testing.assert_allclose(vector, np.array([1, 1, 1, -1, 1, 0, 0, 0]) / 5**0.5, atol=1e-6)
    with pytest.raises(UserError, match="nothing to search for"):
        query_vector(Words())
    with pytest.raises(UserError, match="take each other away"):
        query_vector(Words(), texts=["1"], minus=["1"])


def album(count: int, seed: int, tmp_path) -> tuple[Index, np.ndarray, np.ndarray]:
    """An index whose photos score with phrases as chance has it, and the two parts of its embeddings."""
    rng = np.random.default_rng(seed)
    photos = write_photos(tmp_path / "photos", {f"{i}.png": i for i in range(count)})
    phrases = rng.normal(size=(400, WIDTH)).astype(np.float32)
    phrases /= np.linalg.norm(phrases, axis=1, keepdims=True)
    run(photos, tmp_path / "index", phrases=phrases)
    return Index(tmp_path / "index"), phrases


QUANTILE = 0.967421566  # 1 - 1 / 6 of the normal distribution, from a table


def test_a_text_has_the_photos_that_answer_or_says_so(tmp_path):
    """Queries of chance and one that is a photo's own embedding, by the rule written out in plain NumPy."""
    index, phrases = album(6, 0, tmp_path)
    rows = np.array(index.rows, np.float32)
    usual = rows @ phrases.T
    seen = set()
    for vector in [rows[2], *(query(seed) for seed in range(40))]:
        fit = (rows @ vector - usual.mean(1)) / usual.std(1)
        answer = found(index, vector, is_text=True, top=9)
        expected = fit >= QUANTILE if fit.max() >= QUANTILE + ABOVE_CHANCE else np.zeros(6, bool)
        assert {hit.path for hit in answer.hits} == {index.path(i) for i in np.flatnonzero(expected)}
        if not expected.any():
            assert answer.closest.path == index.path(int(np.argmax(rows @ vector)))
        seen.add(bool(expected.any()))
    assert seen == {True, False}
    assert found(index, rows[2], is_text=True, min_score=-1, top=9).fitting == 6
    assert len(found(index, rows[2]).hits) == 5  # a photo has no cut-off


def test_the_fit_of_a_hit_is_its_own(tmp_path):
    index, phrases = album(6, 0, tmp_path)
    rows = np.array(index.rows, np.float32)
    usual = rows @ phrases.T
    for hit in found(index, rows[2], is_text=True, min_score=-1, top=9).hits:
        i = next(i for i in range(6) if index.path(i) == hit.path)
        assert abs(hit.fit - (rows[i] @ rows[2] - usual[i].mean()) / usual[i].std()) < 1e-2


def test_the_rule_of_the_cut_off():
    chance = by_chance(3)
    assert abs(by_chance(6) - QUANTILE) < 1e-8 and by_chance(100_000) > 4
    assert answering([chance + ABOVE_CHANCE, chance, chance - 0.1]).tolist() == [True, True, False]
    assert not answering([chance + ABOVE_CHANCE - 0.01, chance, 0]).any()
    assert answering([]).tolist() == [] and answering([9.0]).tolist() == [True]
    assert not answering([np.nan, 0.0]).any()


def test_the_fit_does_not_depend_on_the_scale_of_a_models_scores():
    """A model whose embeddings all lie in a narrow cone has the same answers."""
    rng = np.random.default_rng(0)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    photos, texts = unit(rng.normal(size=(50, 400))), unit(rng.normal(size=(102, 400)))
    texts[100] = photos[7]  # and texts[101] describes none of them
    made = []
    for cone in (0.0, 3.0):
        x, y = (
            unit(np.concatenate([z, np.full((len(z), 1), cone)], axis=1)).astype(np.float32) for z in (photos, texts)
        )
        usual = usual_scores(x, y[:100])
        made.append(((x @ y.T).min(), *(fits(x @ y[text], *usual) for text in (100, 101))))
    (lowest, right, none), (narrow, right_too, none_too) = made
    assert lowest < 0 and narrow > 0.85  # no one cosine could tell for both
    assert np.argmax(right) == 7 and answering(right)[7]
    np.testing.assert_array_equal(answering(right), answering(right_too))
    assert not answering(none).any() and not answering(none_too).any()


def test_the_phrases_are_a_hundred_different_ones():
    assert len(set(PHRASES)) == len(PHRASES) == 100 and all(phrase.strip() == phrase != "" for phrase in PHRASES)


def test_groups_of_photos_that_are_nearly_the_same(photos, tmp_path):
    for name, seed in (("x1", 11), ("x2", 11), ("y1", 21), ("z1", 500)):
        (photos / f"{name}.png").write_bytes(picture(seed, taken="2021:01:01 00:00:00"))
    (photos / "z2.png").write_bytes(picture(500))
    out = tmp_path / "index"
    run(photos, out, Planted())
    index = Index(out)
    groups = [sorted(hit.path.name for hit in group) for group in groups_alike(index, index.live, 0.999)]
    expected = {}
    for path in photos.rglob("*.png"):
        expected.setdefault(embedding(path.read_bytes()).tobytes(), []).append(path.name)
    expected = sorted(sorted(group) for group in expected.values() if len(group) > 1)
    assert sorted(groups) == expected and ["z1.png", "z2.png"] in groups
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert all(hit.score > 0.999 for group in groups_alike(index, index.live, 0.999) for hit in group)
    os.unlink(photos / "z1.png")
    assert ["z2.png"] not in [[hit.path.name for hit in group] for group in groups_alike(index, index.live, 0.999)]
    assert groups_alike(index, chosen(index, folder="ab"), 0.999) == []
