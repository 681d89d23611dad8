"""The drawn world keeps its promises: no duplicates, true captions, visible attributes, an exact ceiling."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest

from smke_jax.data.scenes import TEMPLATES, VOCABULARY, attribute_probe, ceiling, make_scenes, truth
from smke_jax.data.scenes.drawing import NOISE, draw
from smke_jax.data.scenes.meaning import FEATURES, OPEN, RELATIONS, Meanings
from smke_jax.data.scenes.probe import area_under_curve
from smke_jax.data.scenes.world import (
    ABSENT,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Layout,
    canonical_keys,
)


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(num_train=3000, num_gallery=300, seed=3)


def digest(split) -> str:
    content = hashlib.sha256(split.images.tobytes())
    content.update("\n".join("\n".join(five) for five in split.captions).encode())
    return content.hexdigest()


def layout_of(*scenes) -> Layout:
    """Scenes written as (background, nested, [(shape, colour, size, texture, cell), ...])."""
    objects = np.full((len(scenes), 3, 5), ABSENT, np.int8)
    for row, (_, _, parts) in enumerate(scenes):
        for slot, (shape, colour, size, texture, cell) in enumerate(parts):
            objects[row, slot] = (
                SHAPES.index(shape),
                COLOURS.index(colour),
                SIZES.index(size),
                TEXTURES.index(texture),
                cell,
            )
    return Layout(
        np.array([BACKGROUNDS.index(s[0]) for s in scenes], np.int8),
        np.array([s[1] for s in scenes]),
        *np.moveaxis(objects, -1, 0),
    )


def claim(*objects, relation=OPEN, count=OPEN, background=OPEN):
    """One caption's meaning: objects as (shape, colour) names, None where it does not say."""
    features = np.full((3, len(FEATURES)), OPEN, np.int8)
    for row, (shape, colour) in enumerate(objects):
        features[row, 0] = OPEN if shape is None else SHAPES.index(shape)
        features[row, 1] = OPEN if colour is None else COLOURS.index(colour)
    relation = relation if relation == OPEN else RELATIONS.index(relation)
    return features, len(objects), relation, count, background


def meanings_of(claims) -> Meanings:
    """Five claims per scene, given as a list of lists."""
    fields = zip(*(claim for five in claims for claim in five))
    return Meanings(*(np.array(f, np.int8).reshape(len(claims), 5, *np.shape(f[0])) for f in fields))


def test_same_seed_same_scenes(scenes):
    again = make_scenes(num_train=3000, num_gallery=300, seed=3)
    other = make_scenes(num_train=3000, num_gallery=300, seed=4)
    for name in ("train", "gallery"):
        assert digest(getattr(scenes, name)) == digest(getattr(again, name))
        assert digest(getattr(scenes, name)) != digest(getattr(other, name))


def test_gallery_does_not_depend_on_the_training_set(scenes):
    assert digest(make_scenes(num_train=10, num_gallery=300, seed=3).gallery) == digest(scenes.gallery)


def test_shapes_and_types(scenes):
    assert len(scenes.train) == 3000 and len(scenes.gallery) == 300
    assert scenes.gallery.images.shape == (300, 32, 32, 3) and scenes.gallery.images.dtype == np.uint8
    classes = {name: labels.shape[1] for name, labels in scenes.gallery.attributes.items()}
    assert classes == dict(
        colour=8,
        shape=5,
        texture=3,
        size=2,
        shape_colour=40,
        cell_colour=32,
        cell_shape=20,
        inside=1,
        count=2,
        background=4,
    )
    assert all(a.dtype == bool and len(a) == 300 for a in scenes.gallery.attributes.values())


def test_no_description_twice(scenes):
    keys = np.concatenate([canonical_keys(scenes.train.layout), canonical_keys(scenes.gallery.layout)])
    assert len(np.unique(keys)) == len(keys) == 3300


def test_key_ignores_the_order_of_slots():
    a, b = ("circle", "red", "small", "solid", 0), ("cross", "blue", "large", "hollow", 3)
    same, other = [("black", False, [a, b]), ("black", False, [b, a])], ("white", False, [a, b])
    keys = canonical_keys(layout_of(*same, other))
    assert keys[0] == keys[1] != keys[2]


def test_legible(scenes):
    layout = scenes.train.layout
    nested = layout.nested
    assert 0.2 < nested.mean() < 0.3
    assert (layout.colour[nested, 0] != layout.colour[nested, 1]).all()
    assert (layout.cell[nested, 0] == layout.cell[nested, 1]).all()
    assert (layout.size[nested, 0] > layout.size[nested, 1]).all()
    kinds = np.where(layout.present, layout.shape * len(COLOURS) + layout.colour, [[-1, -2, -3]])
    assert all(len(set(row)) == 3 for row in kinds.tolist())
    assert set(layout.count.tolist()) == {2, 3}


def test_every_caption_is_true_of_its_scene(scenes):
    for split in (scenes.gallery, scenes.train):
        for start in range(0, len(split), 300):
            rows = slice(start, start + 300)
            held = truth(split.meanings[rows], split.layout[rows])
            assert held.diagonal(axis1=0, axis2=2).all()
            assert held.mean() < 0.02  # and of hardly any other


CANONICAL = {  # written out here a second time on purpose: the test reads captions as a person would
    "ball": "circle",
    "box": "square",
    "rhombus": "diamond",
    "plus": "cross",
    "turquoise": "cyan",
    "violet": "purple",
    "little": "small",
    "tiny": "small",
    "big": "large",
    "huge": "large",
    "filled": "solid",
    "plain": "solid",
    "banded": "striped",
    "empty": "hollow",
}
CUES = {
    "left": "left",
    "above": "above",
    "higher": "above",
    "over": "above",
    "inside": "inside",
    "within": "inside",
    "enclosed": "inside",
    "right": "right",
    "below": "below",
    "lower": "below",
    "under": "below",
    "contains": "contains",
    "holds": "contains",
    "surrounds": "contains",
    "encloses": "contains",
}
NUMBERS = {"two": 2, "pair": 2, "three": 3, "trio": 3}


def test_wording_follows_the_meaning(scenes):
    """Every caption, read word by word, says what its meaning records and nothing more."""
    meanings = scenes.gallery.meanings
    reading_order = [(2, SIZES), (3, TEXTURES), (1, COLOURS), (0, SHAPES)]
    named = {*SHAPES, *COLOURS, *SIZES, *TEXTURES}
    for scene, five in enumerate(scenes.gallery.captions):
        for index, caption in enumerate(five):
            words = [CANONICAL.get(word, word) for word in caption.split()]
            objects = meanings.features[scene, index, : meanings.mentioned[scene, index]]
            assert [word for word in words if word in named] == [
                names[row[f]] for row in objects for f, names in reading_order if row[f] != OPEN
            ]
            relation, count = meanings.relation[scene, index], meanings.count[scene, index]
            background = meanings.background[scene, index]
            assert [CUES[w] for w in words if w in CUES] == [RELATIONS[r] for r in [relation] if r != OPEN]
            assert [NUMBERS[w] for w in words if w in NUMBERS] == [c for c in [count] if c != OPEN]
            assert [w for w in (w.replace("grey", "gray") for w in words) if w in BACKGROUNDS] == [
                BACKGROUNDS[b] for b in [background] if b != OPEN
            ]


def test_captions_are_distinct_and_use_the_vocabulary(scenes):
    captions = scenes.train.captions
    assert all(len(set(five)) == len(TEMPLATES) == 5 for five in captions)
    words = [caption.split() for five in captions for caption in five]
    assert {word for caption in words for word in caption} == set(VOCABULARY)
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    assert all(word.isalpha() and word.islower() for word in VOCABULARY)
    assert 11 < np.mean([len(caption) for caption in words]) < 15
    assert max(len(caption) for caption in words) <= 20


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("size", SIZES)
def test_attributes_are_visible(background, size):
    """Changing one attribute of one object changes its cell by far more than the noise of 5 grey levels.

    The least visible change, a small striped circle to a square, is 1.5 grey levels on average over the
    16x16 cell, concentrated in the corners: 29 standard deviations of the noise along it.
    """
    other = ("square", "green", "large", "solid", 3)
    looks = [(shape, colour, size, texture, 0) for shape in SHAPES for texture in TEXTURES for colour in COLOURS]
    layout = layout_of(*((background, False, [look, other]) for look in looks))

    def cell(layout):  # every scene alone with the same seed: same jitter, brightness and noise
        drawn = [draw(layout[i : i + 1], np.random.default_rng(0))[0, :16, :16] for i in range(len(layout))]
        return np.stack(drawn).astype(np.float32)

    drawn = cell(layout)
    codes = np.stack([layout.shape[:, 0], layout.colour[:, 0], layout.texture[:, 0]], axis=1)
    least_mean, least_sigmas = (1.2, 25) if size == "small" else (3.5, 50)
    for a in range(len(looks)):
        one_changed = np.flatnonzero((codes != codes[a]).sum(1) == 1)
        change = (drawn[one_changed] - drawn[a]).reshape(len(one_changed), -1)
        mean, sigmas = np.abs(change).mean(1), np.linalg.norm(change, axis=1) / NOISE
        worst = looks[a], looks[one_changed[mean.argmin()]], mean.min(), sigmas.min()
        assert mean.min() > least_mean and sigmas.min() > least_sigmas, worst
    resized = dataclasses.replace(layout, size=np.where(layout.present, 1 - layout.size, ABSENT))
    assert np.abs(cell(resized) - drawn).mean((1, 2, 3)).min() > 2


def test_inside_and_cell_are_visible():
    ring, dot = ("circle", "red", "large", "hollow", 0), ("circle", "blue", "small", "solid", 0)
    apart = ("circle", "blue", "small", "solid", 3)
    layout = layout_of(("white", True, [ring, dot]), ("white", False, [ring, apart]))
    images = draw(layout, np.random.default_rng(0))
    middle = images[:, 7:9, 7:9].astype(int).mean((1, 2))
    assert middle[0, 2] - middle[0, 0] > 80  # blue
    assert np.ptp(middle[1]) < 25  # background seen through the ring


def test_oracle_on_cases():
    red, blue = ("circle", "red", "large", "solid"), ("square", "blue", "small", "striped")
    layout = layout_of(
        ("black", False, [(*red, 0), (*blue, 3)]),  # red top left, blue bottom right
        ("black", False, [(*red, 1), (*blue, 0)]),  # red right of blue
        ("white", True, [(*red, 2), (*blue, 2)]),
    )  # blue inside red
    r, b = ("circle", "red"), ("square", "blue")
    cases = [
        (claim(r, b, relation="left"), [1, 0, 0]),
        (claim(r, b, relation="above"), [1, 0, 0]),
        (claim(r, b, relation="right"), [0, 1, 0]),
        (claim(b, r, relation="below"), [1, 0, 0]),
        (claim(b, r, relation="inside"), [0, 0, 1]),
        (claim(r, b, relation="contains"), [0, 0, 1]),
        (claim(r, b, relation="inside"), [0, 0, 0]),
        (claim(r, b), [1, 1, 1]),
        (claim(r, r), [0, 0, 0]),
        (claim((None, "red"), (None, None)), [1, 1, 1]),
        (claim(r, b, count=3), [0, 0, 0]),
        (claim(r, b, background=0), [1, 1, 0]),
        (claim(r, b, (None, None)), [0, 0, 0]),
        (claim(r, ("square", "red")), [0, 0, 0]),
        (claim(r, b, count=2), [1, 1, 1]),
    ]
    held = truth(meanings_of([[c] * 5 for c, _ in cases]), layout)
    np.testing.assert_array_equal(held[:, 0], np.array([expected for _, expected in cases], bool))


def test_ceiling_of_three_scenes_by_hand():
    r, b, g = ("circle", "red"), ("square", "blue"), ("cross", "green")
    objects = [(*r, "large", "solid", 0), (*b, "small", "striped", 1)]
    layout = layout_of(
        ("black", False, objects), ("white", False, objects), ("black", False, [objects[0], (*g, "small", "solid", 2)])
    )
    shared = claim(r, b)  # true of scenes 0 and 1
    meanings = meanings_of(
        [
            [shared] + [claim(r, b, background=0)] * 4,
            [claim(r, b, background=1)] * 5,
            [claim(r, g)] * 4 + [claim((None, None), r)],
        ]
    )  # the last is true of all three
    got = ceiling(meanings, layout)
    assert got["t2i_r@1"] == pytest.approx(100 * (13 + 1 / 2 + 1 / 3) / 15)
    assert got["t2i_r@5"] == got["t2i_r@10"] == 100
    assert got["t2i_r@1/relation"] == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)
    # Scene 0: 5 own + 1 foreign true captions; scene 1: 5 own + 2; scene 2: 5 own.
    assert got["i2t_r@1"] == pytest.approx(100 * (5 / 6 + 5 / 7 + 1) / 3)
    assert got["i2t_r@5"] == got["i2t_specific_r@1"] == 100
    assert got["ambiguous_captions"] == pytest.approx(100 * 2 / 15)


def test_ceiling_refuses_shuffled_scenes(scenes):
    with pytest.raises(ValueError, match="order"):
        ceiling(scenes.gallery.meanings, scenes.gallery.layout[::-1])


def test_ceiling_of_a_gallery(scenes):
    got = ceiling(scenes.gallery.meanings, scenes.gallery.layout)
    assert 94 < got["t2i_r@1"] < 99 and 92 < got["i2t_r@1"] < 98 and got["i2t_specific_r@1"] > 99.5


def test_probe_finds_what_is_there_and_nothing_else(scenes):
    labels = scenes.train.attributes
    known = attribute_probe(np.concatenate(list(labels.values()), axis=1), labels)
    assert min(known.values()) > 0.99, known
    noise = attribute_probe(np.random.default_rng(0).normal(size=(3000, 32)), labels)
    assert all(abs(area - 0.5) < 0.06 for area in noise.values()), noise
    with pytest.raises(ValueError, match="'colour' has 3000 rows"):
        attribute_probe(np.zeros((7, 2)), labels)


def test_area_under_curve():
    scores = np.array([[0.1, 0.0, 1.0], [0.4, 0.0, 2.0], [0.35, 0.0, 3.0], [0.8, 0.0, 4.0]])
    labels = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    areas = area_under_curve(scores, labels)
    assert areas[:2].tolist() == [0.75, 0.5] and math.isnan(areas[2])
