"""The wording of meanings: five differently built captions per scene, with synonyms, in lower-case words."""

from __future__ import annotations

import random

from smke_jax.data.scenes.meaning import OPEN, TEMPLATES, Meanings

# Each inner tuple holds the synonyms of one value, in the order of world.py.
SHAPE_WORDS = (("circle", "ball"), ("square", "box"), ("triangle",), ("diamond", "rhombus"), ("cross", "plus"))
COLOUR_WORDS = (
    ("red",),
    ("orange",),
    ("yellow",),
    ("green",),
    ("cyan", "turquoise"),
    ("blue",),
    ("purple", "violet"),
    ("pink",),
)
SIZE_WORDS = (("small", "little", "tiny"), ("large", "big", "huge"))
TEXTURE_WORDS = (("solid", "filled", "plain"), ("striped", "banded"), ("hollow", "empty"))
BACKGROUND_WORDS = (("black",), ("white",), ("gray", "grey"), ("brown",))
UNNAMED_SHAPE = ("object", "shape", "thing")
RELATION_WORDS = (  # order of meaning.RELATIONS
    ("left of", "to the left of", "is left of", "lies to the left of"),
    ("above", "is above", "higher than", "over"),
    ("inside", "is inside", "within", "enclosed by"),
    ("right of", "to the right of", "is right of", "lies to the right of"),
    ("below", "is below", "lower than", "under"),
    ("contains", "holds", "surrounds", "encloses"),
)
COUNT_WORDS = {2: ("two", "a pair of", "exactly two"), 3: ("three", "a trio of", "exactly three")}
COUNTED = ("objects", "shapes", "things")
LIST_LEADS = ("a picture of", "an image of", "we see", "here are")
BACKGROUND_LEADS = ("on a", "against a", "in front of a")
BACKGROUND_NOUNS = ("background", "backdrop")
BACKGROUND_LINKS = (" there is", " we see", "")
PARTIAL_LEADS = ("somewhere there is", "part of a scene with", "among others", "this shows")
JOINS = ("and", "with", "together with", "as well as")
SURFACES = ("on", "against")


def write_captions(meanings: Meanings, seed: int) -> list[tuple[str, ...]]:
    """Five captions per scene, in the order of TEMPLATES and all different; deterministic in `seed`."""
    choose = random.Random(seed).choice
    features, mentioned, relation, count, background = (
        getattr(meanings, name).tolist() for name in ("features", "mentioned", "relation", "count", "background")
    )
    captions = []
    for scene in range(len(features)):
        five = []
        for index, write in enumerate(_WRITERS):
            objects = [_object(f, choose) for f in features[scene][index][: mentioned[scene][index]]]
            five.append(write(objects, relation[scene][index], count[scene][index], background[scene][index], choose))
        captions.append(tuple(five))
    return captions


def _object(features: list[int], choose) -> str:
    """A noun phrase with its article, such as `a small striped red box`."""
    shape, colour, size, texture = features
    words = [
        choose(names[value])
        for names, value in ((SIZE_WORDS, size), (TEXTURE_WORDS, texture), (COLOUR_WORDS, colour))
        if value != OPEN
    ]
    words.append(choose(UNNAMED_SHAPE if shape == OPEN else SHAPE_WORDS[shape]))
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _related(objects, relation, count, background, choose):
    return f"{objects[0]} {choose(RELATION_WORDS[relation])} {objects[1]}"


def _listed(objects, relation, count, background, choose):
    lead = choose(LIST_LEADS) if count == OPEN else f"{choose(COUNT_WORDS[count])} {choose(COUNTED)}"
    return f"{lead} {' '.join(objects[:-1])} and {objects[-1]}"


def _background_first(objects, relation, count, background, choose):
    lead = f"{choose(BACKGROUND_LEADS)} {choose(BACKGROUND_WORDS[background])} {choose(BACKGROUND_NOUNS)}"
    return f"{lead}{choose(BACKGROUND_LINKS)} {objects[0]} and {objects[1]}"


def _partial(objects, relation, count, background, choose):
    where = "" if background == OPEN else f" {choose(SURFACES)} {choose(BACKGROUND_WORDS[background])}"
    return f"{choose(PARTIAL_LEADS)} {objects[0]} {choose(JOINS)} {objects[1]}{where}"


_WRITERS = (_related, _listed, _related, _background_first, _partial)
assert len(_WRITERS) == len(TEMPLATES)


def _words(material) -> set[str]:
    if isinstance(material, str):
        return set(material.split())
    return set().union(*(_words(part) for part in material))


VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        _words(
            (
                "a an and",
                SHAPE_WORDS,
                COLOUR_WORDS,
                SIZE_WORDS,
                TEXTURE_WORDS,
                BACKGROUND_WORDS,
                UNNAMED_SHAPE,
                RELATION_WORDS,
                tuple(COUNT_WORDS.values()),
                COUNTED,
                LIST_LEADS,
                BACKGROUND_LEADS,
                BACKGROUND_NOUNS,
                BACKGROUND_LINKS,
                PARTIAL_LEADS,
                JOINS,
                SURFACES,
            )
        )
    )
)
