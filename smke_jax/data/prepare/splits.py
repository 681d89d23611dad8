"""The names under which train, dev and test are found."""

import re

NAMES = {
    "train": ("train", "training", "trn", "restval"),
    "dev": ("dev", "devel", "development", "val", "valid", "validation"),
    "test": ("test", "tst", "testing"),
}
SPLITS = {name: split for split, names in NAMES.items() for name in names}
# Words that a folder of a split may have beside the split's name, as in train_images/ or val2017/.
FILLERS = frozenset("image images img imgs photo photos picture pictures data set split".split())
KNOWN = "train, dev (or val, valid, validation) and test"


def split_of(name: str) -> str | None:
    """'train', 'dev' or 'test' where exactly one of them is among the words of `name`; else None.

    coco.val, val2017, Validation, Flickr_8k.trainImages and test-00000-of-00004 all say a split.
    """
    splits = {SPLITS[word] for word in _words(name) if word in SPLITS}
    return splits.pop() if len(splits) == 1 else None


def split_of_folder(name: str) -> str | None:
    """`split_of` for the name of a folder, which must hold no other word: 'test tubes' may be a class of pictures."""
    words = _words(name)
    return split_of(name) if all(word in SPLITS or word in FILLERS for word in words) else None


def _words(name: str) -> list[str]:
    return [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
