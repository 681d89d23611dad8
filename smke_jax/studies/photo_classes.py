"""Classes of photos out of captions: a test of zero-shot classification where photos have captions and no labels.

    python -m smke_jax.studies.photo_classes --data=data/flickr8k --split=dev --out=data/flickr8k_classes

A photo belongs to a class if at least three of its captions have a word of the class, or all of fewer captions, and no
caption has a word of another class.  Each class becomes a folder in OUT/SPLIT with its photos as they are stored, as
the evaluators `zero_shot` and `probe` read them.  Nobody looked at the photos: people who wrote captions named what
they found worth naming, so that a photo may show things of other classes that no caption names.

`--classes=FILE` takes other classes: a line is a name, a colon and its words, as in 'bicycle: bicycle, bike, bikes'.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError

NAMED_BY = 3  # captions of the five that most data sets have

# Things and places that the captions of Flickr8k name often and that are seldom named together.
FLICKR8K = """
baby: baby, babies, infant, toddler
baseball: baseball
basketball: basketball
beach: beach, shore
bench: bench
bicycle: bicycle, bicycles, bicyclist, bike, bikes, biker, cyclist
boat: boat, boats, canoe, kayak, raft, sailboat
car: car, cars, truck, van
football: football
frisbee: frisbee
guitar: guitar, guitars, guitarist
hockey: hockey
horse: horse, horses
mountain: mountain, mountains, cliff
skateboard: skateboard, skateboards, skateboarder, skateboarding
snow: snow, snowy, snowboard, snowboarder, snowboarding, ski, skier, skiers, skiing, sled
soccer: soccer
surfing: surf, surfer, surfers, surfing, surfboard
swimming pool: pool
tennis: tennis
"""


def parse_classes(text: str, where: str) -> dict[str, frozenset[str]]:
    """{name of a class: its words in lower case} of lines 'name: word, word'; empty lines are left out.

    Raises:
      UserError: a line is no such line, a name or a word stands twice, or there are fewer than two classes.
    """
    classes: dict[str, frozenset[str]] = {}
    owner: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, colon, words = (part.strip() for part in line.partition(":"))
        found = [word.strip().lower() for word in words.split(",") if word.strip()]
        if not (name and colon and found) or "/" in name or name.startswith("."):
            raise UserError(f"{where}, line {number}: {line.strip()!r} is not of the form 'name: word, word'")
        for word in found:
            if not re.fullmatch(r"\w+", word):
                raise UserError(f"{where}, line {number}: {word!r} is not one word of letters: give single words")
            if word in owner:
                raise UserError(f"{where}, line {number}: {word!r} stands for {owner[word]!r} already; take out one")
            owner[word] = name
        if name in classes:
            raise UserError(f"{where}, line {number}: the class {name!r} stands there already; take out one")
        classes[name] = frozenset(found)
    if len(classes) < 2:
        raise UserError(f"{where} has {len(classes)} classes: give two or more")
    return classes


def class_of(captions: Sequence[str], classes: Mapping[str, frozenset[str]]) -> str | None:
    """The one class that captions of a photo name, or None where they name no class, several, or one too seldom."""
    named = Counter()
    for caption in captions:
        words = set(re.findall(r"\w+", caption.lower()))
        named.update(name for name, own in classes.items() if own & words)
    if len(named) != 1:
        return None
    ((name, times),) = named.items()
    return name if times >= min(NAMED_BY, len(captions)) else None


def main(argv: list[str]) -> int:
    """Writes the folders and says how many photos each has."""
    arguments = _parser().parse_args(argv)
    text, where = FLICKR8K, "the list"
    if arguments.classes is not None:
        where = str(arguments.classes)
        try:
            text = arguments.classes.read_text("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{where} is not UTF-8 text: save the file as UTF-8") from None
    classes = parse_classes(text, where)
    source = open_prepared(arguments.data, arguments.split)
    named = {row: class_of(captions, classes) for row, captions in enumerate(source.all_captions())}
    chosen = {row: name for row, name in named.items() if name}
    count = Counter(chosen.values())
    if missing := [name for name in classes if not count[name]]:
        raise UserError(f"no photo of {arguments.split} is of {', '.join(missing)}: leave them out of --classes")
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists: remove it or give another --out")
    for row, name in chosen.items():
        folder = arguments.out / arguments.split / name
        folder.mkdir(parents=True, exist_ok=True)
        example = source[row]
        place = folder / example.name.replace("/", "_")  # names of photos may hold folders
        place = folder / f"{row}_{place.name}" if place.exists() else place
        place.write_bytes(example.image)
    for name, photos in sorted(count.items()):
        print(f"{photos:6,} {name}")
    print(f"{count.total():6,} of {len(source):,} photos in {len(classes)} classes: {arguments.out} is written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("photo_classes", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `smke prepare`")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="classes and their words; else 20 of Flickr8k")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder that does not exist yet")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
