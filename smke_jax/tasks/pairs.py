"""Images with captions, from one prepared folder or several, and images alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from smke_jax.data.datasets import open_source
from smke_jax.data.pipeline import epoch_rows, picture, pixels, train_batches
from smke_jax.data.sources import Source, has_split
from smke_jax.data.tokenizer import Normaliser, Tokenizer
from smke_jax.data.transforms import StudentTeacherViews, TwoViews, View, squash
from smke_jax.errors import UserError
from smke_jax.parallel.process import failing_together
from smke_jax.tasks.base import TEXT_NUMBER, BatchPlan, Column, Draft, Split, Task, columns_of
from smke_jax.tasks.vocabulary import words_of

TEXT = ("text", "text_mask")
WORDS = "text_words"
TEACHER_JITTER = 0.4  # of an independent view of the teacher, as in the thesis' code (register 6)


def pairs(
    *,
    keep: Path | None,
    known: Mapping[str, int] | None = None,
    source: str = "prepared",
    data: tuple[str, ...] = (),
    weights: tuple[int, ...] = (),
    caps: tuple[int, ...] = (),
    data_fraction: float = 1.0,
    split: str = "train",
    unit: str = "pairs",
    in_memory: bool = False,
    tokenizer: str = "",
    vocab_size: int = 30_522,
    lowercase: bool = True,
    strip_accents: bool = True,
    split_cjk: bool = True,
    max_length: int = 64,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
    grayscale: float = 0.0,
    teacher_view: str = "shared",
    threads: int = 2,
    prefetch_mib: float = 256.0,
) -> Draft:
    """Image-caption pairs: 'image', 'teacher_image', 'text', 'text_mask', 'id' and 'text_id'.

    With a vocabulary that has [MASK] also 'text_words': the word that each token belongs to, -1 at special tokens.

    keep:       folder of the run, where the vocabulary lies; None opens nothing, for plans
    known:      the facts that a run recorded; None where it is about to begin
    source:     of smke_jax.data.datasets.SOURCES: prepared | scenes | few_scenes (to try code)
    data:       folders written by `smke prepare`, read as one shuffled set
    weights:    how often the rows of each folder come in an epoch; () is once
    caps:       most images of each folder, always the same ones; () or 0 is all
    data_fraction: of the images that are trained on, which stay the same ones: a smaller share is part of a larger one
    unit:       pairs: every caption is a row; images: a row is an image, with one of its captions drawn each epoch
    in_memory:  decode every image once and keep it: for small sets
    tokenizer:  folder with vocab.txt or tokenizer.json; '' trains a WordPiece on the training captions,
    vocab_size: of at most so many tokens
    lowercase, strip_accents, split_cjk: what such a WordPiece does to text; see `smke_jax.data.tokenizer.Normaliser`
    max_length: tokens per caption, [CLS] and [SEP] included
    crop_scale, crop_ratio: area and aspect ratio of the random crop
    flip:       probability of mirroring
    jitter:     strength of brightness, contrast and saturation jitter on the student's view
    grayscale:  probability of dropping colour
    teacher_view: of smke_jax.data.transforms.TEACHER_VIEWS: shared | same | independent | fixed
    threads:    for reading, decoding and cropping, in training and in evaluation
    prefetch_mib: most memory of examples that wait for the devices
    """
    opened = Opened(
        source, tuple(data), tuple(weights), tuple(caps), in_memory, threads, prefetch_mib, split, data_fraction
    )
    with failing_together():
        facts = dict(known) if known is not None else {"num_images": len(opened.open(split))}
    captions = lambda: (caption for captions in opened.open(split).all_captions() for caption in captions)  # noqa: E731
    words = words_of(
        keep,
        size=vocab_size,
        begun=known is not None,
        given=tokenizer,
        captions=captions,
        normaliser=Normaliser(lowercase, strip_accents, split_cjk),
    )
    facts["vocab_size"] = words.vocab_size
    if words.mask_id is not None:
        facts |= {"mask_token": words.mask_id, "special_tokens": words.special_ids}
    crop = {"crop_scale": tuple(crop_scale), "crop_ratio": tuple(crop_ratio), "flip": flip}

    def finish(sizes: Mapping[str, int]) -> Task:
        if not sizes:
            raise UserError("no network takes the images of this task: name one in config.networks, such as two_towers")
        student = View(sizes.get("image", max(sizes.values())), jitter=jitter, grayscale=grayscale, **crop)
        teachers = {
            array: View(size, jitter=TEACHER_JITTER, **crop) for array, size in sizes.items() if array != "image"
        }
        views = StudentTeacherViews(student, teachers, teacher_view, with_student="image" in sizes)
        return _task(opened, facts, views, sizes, split, unit, words, max_length)

    return Draft(facts, finish)


def images(
    *,
    known: Mapping[str, int] | None = None,
    source: str = "prepared",
    data: tuple[str, ...] = (),
    weights: tuple[int, ...] = (),
    caps: tuple[int, ...] = (),
    data_fraction: float = 1.0,
    split: str = "train",
    views: int = 1,
    in_memory: bool = False,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
    grayscale: float = 0.0,
    teacher_view: str = "shared",
    threads: int = 2,
    prefetch_mib: float = 256.0,
) -> Draft:
    """Images without their captions: 'image' and 'id', or with two `views` 'view1', 'view2' and 'id'.

    teacher_view: of 'teacher_image' and other arrays beside 'image'; without 'image' its network reads what it would be
    The other fields are those of `pairs`.
    """
    if views not in (1, 2):
        raise UserError(f"views is {views}: give 1, or 2 for self-supervised training")
    opened = Opened(
        source, tuple(data), tuple(weights), tuple(caps), in_memory, threads, prefetch_mib, split, data_fraction
    )
    with failing_together():
        facts = dict(known) if known is not None else {"num_images": len(opened.open(split))}

    def finish(sizes: Mapping[str, int]) -> Task:
        size = sizes.get("image") or max(sizes.values())
        view = View(size, tuple(crop_scale), tuple(crop_ratio), flip, jitter, grayscale)
        if views == 2:
            return _task(opened, facts, TwoViews(view), {"image": size}, split, "images", None, 0)
        beside = {array: own for array, own in sizes.items() if array != "image"} if "image" in sizes else {}
        crop = {"crop_scale": tuple(crop_scale), "crop_ratio": tuple(crop_ratio), "flip": flip}
        teachers = {array: View(own, jitter=TEACHER_JITTER, **crop) for array, own in beside.items()}
        made = StudentTeacherViews(view, teachers, teacher_view)
        return _task(opened, facts, made, {"image": size, **beside}, split, "images", None, 0)

    return Draft(facts, finish)


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """The splits of a data set, each opened on its first use and kept as long as the task."""

    source: str
    data: tuple[str, ...]
    weights: tuple[int, ...]
    caps: tuple[int, ...]
    in_memory: bool
    threads: int
    prefetch_mib: float
    trained: str
    fraction: float
    _kept: dict[str, Source] = dataclasses.field(default_factory=dict)
    _kept_for_evaluation: dict[str, Source] = dataclasses.field(default_factory=dict)

    def open(self, split: str) -> Source:
        """A split as it is trained on; only of the one that is, a fraction."""
        if split not in self._kept:
            self._kept[split] = open_source(
                self.source, split, data=self.data, weights=self.weights, caps=self.caps, in_memory=self.in_memory,
                fraction=self.fraction if split == self.trained else 1.0,
            )  # fmt: skip
        return self._kept[split]

    def evaluation(self, split: str) -> Source:
        """A split that is not trained on: of those folders that have it, each once and whole."""
        if self.source != "prepared":
            return self.open(split)
        if split not in self._kept_for_evaluation:
            having = [folder for folder in self.data if has_split(folder, split)]
            self._kept_for_evaluation[split] = open_source(
                self.source, split, data=having or self.data, in_memory=self.in_memory
            )
        return self._kept_for_evaluation[split]


class Captions(Sequence):
    """All captions of a source, image after image; each is read when it is asked for."""

    def __init__(self, source: Source):
        self._source, self._ends = source, np.cumsum(source.num_captions)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"{self._source!r} has {len(self)} captions, no number {row}")
        image = int(np.searchsorted(self._ends, row, side="right"))
        return self._source.captions(image)[row - int(self._ends[image])]


def _task(
    opened: Opened, facts, views, sizes: Mapping[str, int], split: str, unit: str, words: Tokenizer | None, length: int
) -> Task:
    def example():
        blank = views(Image.new("RGB", (64, 64)), np.random.default_rng(0))
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in blank.items()}
        text = {name: jax.ShapeDtypeStruct((length,), jnp.int32) for name in of_text(words)}
        numbers = ("id", TEXT_NUMBER) if words is not None else ("id",)
        return {**shapes, **text, **dict.fromkeys(numbers, jax.ShapeDtypeStruct((), jnp.int32))}

    def identity():
        digests = {"data": opened.open(split).digest}
        return digests if words is None else {**digests, "tokenizer": words.digest}

    def batches(plan: BatchPlan):
        wanted = frozenset(example()) if plan.arrays is None else plan.arrays
        made = views.narrowed(wanted) if isinstance(views, StudentTeacherViews) else views
        return train_batches(
            opened.open(split), made, batch_size=plan.batch_size, seed=plan.seed, unit=unit,
            tokenizer=words if wanted & {*TEXT, WORDS} else None, max_length=length, words=WORDS in wanted,
            numbered=TEXT_NUMBER if TEXT_NUMBER in wanted else "", process=plan.process,
            threads=opened.threads, prefetch_mib=opened.prefetch_mib,
        )  # fmt: skip

    def evaluated(name: str) -> Split:
        return evaluation_split(source_of(name), name, sizes, words, length)

    def source_of(name: str) -> Source:
        return opened.open(name) if name == split else opened.evaluation(name)

    def augmented(number: int) -> Split:
        source = opened.open(split)
        columns = {
            array: Column(len(source), _random_views(source, views, array, number), f"{size} px, random view {number}")
            for array, size in sizes.items()
        }
        return Split(f"{source.dataset} {split}", source.digest, columns, {"views": repr(views)})

    return Task(
        facts=facts,
        example=example,
        length=lambda: len(epoch_rows(opened.open(split), unit)),
        identity=identity,
        batches=batches,
        split=evaluated,
        train=split,
        fixed={
            **dict.fromkeys(views.teachers if getattr(views, "teacher_view", "") == "fixed" else (), "id"),
            **dict.fromkeys(TEXT if words is not None else (), TEXT_NUMBER),
        },
        augmented=augmented if isinstance(views, StudentTeacherViews) else None,
        tokenizer=words,
        counts=lambda name: source_of(name).counts(),
        threads=opened.threads,
    )


def of_text(words: Tokenizer | None) -> tuple[str, ...]:
    """The arrays that a caption becomes."""
    return () if words is None else TEXT if words.mask_id is None else (*TEXT, WORDS)


def _random_views(source: Source, views: StudentTeacherViews, array: str, number: int):
    """(rows) -> `array` of these rows in the random view `number`, which is the same in every run."""
    alone = views.narrowed({array})

    def view(row):
        return alone(picture(source[row], min_side=alone.min_side), np.random.default_rng((number, row)))[array]

    return lambda rows: np.stack([view(row) for row in rows])


def evaluation_split(
    source: Source, name: str, sizes: Mapping[str, int], words: Tokenizer | None, length: int
) -> Split:
    """All images of `source` as they are evaluated, squashed to each of `sizes`, and all of their captions."""

    def image_column(size):
        read = lambda rows: np.stack([squash(pixels(source[i]), size) for i in rows])  # noqa: E731
        return Column(len(source), read, ", ".join(filter(None, (f"{size} px squashed", source.about))))

    columns = {array: image_column(size) for array, size in sizes.items()}
    captions = Captions(source)
    if words is not None:

        def encode(rows):
            ids, mask = words.encode([captions[i] for i in rows], length)
            return (ids, mask) if words.mask_id is None else (ids, mask, words.word_numbers(ids))

        columns |= columns_of(of_text(words), len(captions), encode, f"{length} tokens")
    facts = {
        "captions": captions,
        "caption_image": np.repeat(np.arange(len(source)), source.num_captions),
        "pixels": lambda i: pixels(source[i]),
    }
    return Split(f"{source.dataset} {name}", source.digest, columns, facts)
