"""What a task is: the rows of a data set, and the arrays that they become."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smke_jax.data.tokenizer import Tokenizer

TEXT_NUMBER = "text_id"  # the array that says which of all captions of a split a row has
BLOCKS = 32  # of rows of which several columns are kept while a split is read


class BatchPlan(NamedTuple):
    """Which batches are asked for.

    batch_size: of the global batch
    seed:       of the order of the rows and of their augmentation
    process:    (number of this process, count of processes)
    arrays:     those that are read; others need not be made.  None is all of them
    """

    batch_size: int
    seed: int
    process: tuple[int, int] = (0, 1)
    arrays: frozenset[str] | None = None


class Column(NamedTuple):
    """One array of a split, in the form in which it is evaluated.

    rows:  how many rows it has
    read:  numbers of rows -> the rows, stacked
    about: what a protocol says of it, such as '96 px squashed'
    """

    rows: int
    read: Callable[[Sequence[int]], np.ndarray]
    about: str = ""


class Split(NamedTuple):
    """What evaluators see of a split.

    name:    for people, such as 'flickr8k dev'
    digest:  of its content
    columns: the arrays that passes read.  Images and captions have different numbers of rows
    facts:   what else is known of the rows: 'captions', 'caption_image', 'labels', 'attributes', …
    """

    name: str
    digest: str
    columns: Mapping[str, Column]
    facts: Mapping[str, Any] = {}


class Task(NamedTuple):
    """The data of a run.  Nothing is opened before it is asked for, but for the vocabulary.

    facts:     {name: number} that networks and terms may ask for: 'vocab_size', 'num_images', 'classes', …, and the
               names of classes, 'class_names'; a run records them
    example:   () -> {array: shape and type of one row} of a training batch
    length:    () -> rows of an epoch
    identity:  () -> {what: digest} of the data
    batches:   (BatchPlan) -> an endless iterator of {array: this process's rows}, with `get_state` and `set_state`
               and, where rows that cannot be read are replaced by others, their number `damaged`;
               the same rows in the same order for any number of processes.  'id' (b,) is the number of the image
    split:     (name) -> Split
    train:     the name of the split that is trained on
    fixed:     {array of training batches that is the same in every epoch, and as it is evaluated: the array that says
               which row of the split it is, 'id' or 'text_id'}
    augmented: (number) -> the split that is trained on, with its images in the random view of that number, which is the
               same in every run; None where the task has no such views
    tokenizer: of a task that reads text
    counts:    (split) -> [{'data', 'images', 'captions', …}], of text [{'data', 'rows', 'tokens'}], what a report says
               of the data sets in it
    threads:   for reading the rows of a split; with 0 the caller reads them itself
    """

    facts: Mapping[str, Any]
    example: Callable[[], dict[str, Any]]
    length: Callable[[], int]
    identity: Callable[[], dict[str, str]]
    batches: Callable[[BatchPlan], Iterator[dict[str, np.ndarray]]]
    split: Callable[[str], Split]
    train: str
    fixed: Mapping[str, str] = {}
    augmented: Callable[[int], Split] | None = None
    tokenizer: Tokenizer | None = None
    counts: Callable[[str], list[dict[str, Any]]] = lambda split: []
    threads: int = 2


class Draft(NamedTuple):
    """A task before the networks have said what size of images they take.

    facts:  see Task
    finish: ({array: pixels per side}) -> Task
    """

    facts: Mapping[str, Any]
    finish: Callable[[Mapping[str, int]], Task]


def caption_lengths(task: Task, most: int = 2_048) -> np.ndarray:
    """(n,) int: the tokens of about `most` captions as a training draws them, the same ones in every process and run.

    Empty where the rows of `task` have no captions.
    """
    if "text_mask" not in task.example():
        return np.zeros(0, int)
    rows = min(512, task.length())
    batches = task.batches(BatchPlan(rows, 0, arrays=frozenset({"text_mask"})))
    return np.concatenate([next(batches)["text_mask"].sum(1) for _ in range(-(-most // rows))])


def columns_of(
    names: Sequence[str], rows: int, read: Callable[[Sequence[int]], Sequence[np.ndarray]], about: str
) -> dict[str, Column]:
    """Columns that are made together: `read` makes all arrays of a block of rows, in the order of `names`, at once.

    about: of the first of them
    """
    # The columns of a block are read one after another, by each of a few threads.
    made = functools.lru_cache(maxsize=BLOCKS)(read)

    def column(place: int) -> Column:
        return Column(rows, lambda some: made(tuple(some))[place], "" if place else about)

    return {name: column(place) for place, name in enumerate(names)}


def first_rows(split: Split, count: int) -> Split:
    """`split` with at most `count` rows in each column; what else is known of it stays."""
    return some_rows(split, 0, count)


def chosen_rows(split: Split, rows: Sequence[int]) -> Split:
    """`split` with these rows of each column, in this order; what else is known of it stays."""

    def part(column: Column) -> Column:
        return column._replace(rows=len(rows), read=lambda places: column.read([int(rows[i]) for i in places]))

    return split._replace(columns={name: part(column) for name, column in split.columns.items()})


def some_rows(split: Split, first: int, count: int) -> Split:
    """`split` with at most `count` rows in each column, from row `first` on; what else is known of it stays."""

    def part(column: Column) -> Column:
        rows = max(0, min(count, column.rows - first))
        read = column.read if first == 0 else lambda rows: column.read([first + row for row in rows])
        return column._replace(rows=rows, read=read)

    return split._replace(columns={name: part(column) for name, column in split.columns.items()})
