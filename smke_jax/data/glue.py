"""GLUE's nine tasks as tab-separated files: what the files are called, their columns, their labels.

Source: Wang et al. 2019, "GLUE", and its files as published; CoLA's raw layout by Warstadt et al. 2019.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError, nearest

log = logging.getLogger("smke_jax")

TRAIN, DEV = ("train.tsv",), ("dev.tsv",)
UNLABELLED = ("", "-")  # what stands in place of a label that nobody gave


class GlueTask(NamedTuple):
    """How a task is written down.

    texts:   columns of the one sentence or the two
    label:   column of the label
    classes: labels as they are written, in the order of their numbers; () where the label is a score
    score:   (lowest, highest) of a score
    files:   {split: names that its file may have}; '+' joins the names of files that are one split together
    parts:   {such a file: name of the part that it is}, of a split that is whole with the other files alone
    places:  (fields of a row, number of each text's column, number of the label's) of files without a header
    """

    texts: tuple[str, ...]
    label: str = "label"
    classes: tuple[str, ...] = ("0", "1")
    score: tuple[float, float] = (0.0, 0.0)
    files: Mapping[str, tuple[str, ...]] = {"train": TRAIN, "dev": DEV}
    parts: Mapping[str, str] = {}
    places: tuple[int, tuple[int, ...], int] | None = None

    @property
    def outputs(self) -> int:
        """Numbers that a model of the task makes: one for each class, or one score."""
        return len(self.classes) or 1


_ENTAILS = ("entailment", "not_entailment")
GLUE = {
    "cola": GlueTask(
        ("sentence",),
        # GLUE's dev set is both raw ones; its training set is that of the domain.
        files={
            "train": (*TRAIN, "in_domain_train.tsv"),
            "dev": (*DEV, "in_domain_dev.tsv+out_of_domain_dev.tsv", "in_domain_dev.tsv"),
        },
        parts={"in_domain_dev.tsv": "in-domain dev"},
        places=(4, (3,), 1),
    ),
    "rte": GlueTask(("sentence1", "sentence2"), classes=_ENTAILS),
    "stsb": GlueTask(("sentence1", "sentence2"), "score", (), (0.0, 5.0), places=(10, (7, 8), 9)),
    "wnli": GlueTask(("sentence1", "sentence2")),
    "mrpc": GlueTask(
        ("#1 String", "#2 String"),
        "Quality",
        files={
            "train": (*TRAIN, "msr_paraphrase_train.txt"),
            "dev": DEV,
            "test": ("msr_paraphrase_test.txt",),  # GLUE's own test.tsv has no labels
        },
    ),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate"),
    "sst2": GlueTask(("sentence",)),
    "qnli": GlueTask(("question", "sentence"), classes=_ENTAILS),
    "mnli": GlueTask(
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        files={"train": TRAIN, "dev_matched": ("dev_matched.tsv",), "dev_mismatched": ("dev_mismatched.tsv",)},
    ),
}


class Sentences(NamedTuple):
    """Labelled sentences, or pairs of them.

    name:    for people, such as 'rte dev'
    texts:   N texts, or N firsts and N seconds
    labels:  (N,) int32 classes, or float32 scores
    digest:  of texts and labels
    skipped: {why: rows} of the files that were left out
    """

    name: str
    texts: tuple[Sequence[str], ...]
    labels: np.ndarray
    digest: str
    skipped: Mapping[str, int] = {}


def glue_task(name: str) -> GlueTask:
    """The task of GLUE of that name; raises UserError where there is none."""
    if name not in GLUE:
        raise UserError(f"GLUE has no task {name!r} among {', '.join(GLUE)}{nearest(name, list(GLUE))}")
    return GLUE[name]


def sentences(name: str, texts: Sequence[Sequence[str]], labels: np.ndarray, skipped: Mapping[str, int]) -> Sentences:
    """The record of these texts and labels, with the digest of both."""
    content = hashlib.sha256(labels.tobytes())
    for column in texts:
        content.update("\0".join(column).encode("utf-8", "surrogatepass") + b"\1")
    return Sentences(name, tuple(texts), labels, content.hexdigest(), dict(skipped))


def splits_in(name: str, folder: str | Path) -> tuple[str, ...]:
    """The splits of the task `name` of GLUE of which `folder` has the files, in the order of the task's own."""
    task = glue_task(name)
    return tuple(split for split in task.files if _found(task, Path(folder), split) is not None)


def read_glue(name: str, folder: str | Path, split: str) -> Sentences:
    """A split of the task `name` of GLUE from the files in `folder`.

    Every line is a row and every tab ends a field: a quotation mark is a letter as any other, as in STS-B, where many
    have no partner.  Rows that end before their columns do, as a few of QQP, rows with an empty sentence and rows
    without a label are left out, counted and reported.

    Raises UserError for a file or column that is not there, for a label that is none of the task's, and where no row
    is left.
    """
    task = glue_task(name)
    files = _files(name, task, Path(folder), split)
    texts: list[list[str]] = [[] for _ in task.texts]
    labels, skipped = [], Counter()
    for line, fields in chain.from_iterable(_rows(path, name, task) for path in files):
        if fields is None:
            skipped["cut short"] += 1
            continue
        *own, label = (field.strip() for field in fields)
        if why := "an empty sentence" if not all(own) else "no label" if label in UNLABELLED else "":
            skipped[why] += 1
            continue
        labels.append(_label(label, task, line, name))
        for column, text in zip(texts, own, strict=True):
            column.append(text)
    where = " and ".join(map(str, files))
    if skipped:
        said = ", ".join(f"{count} {why}" for why, count in sorted(skipped.items()))
        log.warning("%s: %d rows are left out (%s)", where, skipped.total(), said)
    if not labels:
        raise UserError(f"{where} has no rows of {name}: give the folder with GLUE's own files")
    part = task.parts.get(files[0].name, split) if len(files) == 1 else split
    return sentences(f"{name} {part}", texts, np.asarray(labels, np.int32 if task.classes else np.float32), skipped)


def _files(name: str, task: GlueTask, folder: Path, split: str) -> list[Path]:
    """Those of the split; UserError where they are not there."""
    if split not in task.files:
        raise UserError(f"{name} has no split {split!r}: it has {', '.join(task.files)}")
    found = _found(task, folder, split)
    if found is None:
        there = splits_in(name, folder)
        wanted = " or ".join(dict.fromkeys(names.split("+")[0] for names in task.files[split]))
        other = f", or another split: there is {' and '.join(there)}" if there else ""
        raise UserError(f"no {wanted} in {folder}: give the folder of {name}'s files{other}")
    return found


def _found(task: GlueTask, folder: Path, split: str) -> list[Path] | None:
    candidates = ([folder / name for name in names.split("+")] for names in task.files[split])
    return next((paths for paths in candidates if all(path.is_file() for path in paths)), None)


def _rows(path: Path, name: str, task: GlueTask) -> Iterator[tuple[str, list[str] | None]]:
    """(which line, its texts and its label) of every row; None in place of these where the row ends before them."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # other line breaks belong to the sentences
    begin = next((number for number, line in enumerate(lines) if line), 0)
    first, wanted = lines[begin].split("\t"), [*task.texts, task.label]
    if set(wanted) <= set(first):
        begin, places = begin + 1, [first.index(column) for column in wanted]
    elif task.places and len(first) == task.places[0]:
        _, own, label = task.places
        places = [*own, label]
    else:
        missing = next(column for column in wanted if column not in first)
        raise UserError(
            f"{path} has no column {missing!r} among {', '.join(first)[:80]!r}: is it a file of {name} with labels?"
        )
    for number, line in enumerate(lines[begin:], begin + 1):
        if line:
            fields = line.split("\t")
            yield f"{path}, line {number}", [fields[place] for place in places] if len(fields) > max(places) else None


def _label(text: str, task: GlueTask, where: str, name: str) -> float:
    if task.classes:
        if text not in task.classes:
            raise UserError(
                f"{where}: the label {text[:40]!r} is none of {', '.join(task.classes)}: is it a file of {name}?"
            )
        return task.classes.index(text)
    lowest, highest = task.score
    try:
        score = float(text)
    except ValueError:
        raise UserError(f"{where}: the score {text[:40]!r} is no number: is it a file of {name}?") from None
    if not lowest <= score <= highest:  # NaN is not, either
        raise UserError(f"{where}: the score {text} of {name} is not between {lowest:g} and {highest:g}: mend the row")
    return score
