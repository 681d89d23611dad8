"""The vocabulary of a task that reads text: given, kept from the start of the run, or trained on its captions."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from smke_jax import atomic
from smke_jax.data.clip_tokenizer import load_vocabulary
from smke_jax.data.tokenizer import UNCASED, Normaliser, Tokenizer, train_wordpiece
from smke_jax.errors import UserError
from smke_jax.parallel.process import check_shared, failing_together

MARK = "made_by_smke"  # an empty file beside a vocabulary that a run wrote itself, and so may replace


class Assumed(NamedTuple):
    """A vocabulary of which only the size is known; any id stands for its [MASK], and none is special."""

    vocab_size: int
    mask_id: int = 0
    special_ids: tuple[int, ...] = ()


def words_of(keep: Path | None, *, size: int, **options: Any) -> "Tokenizer | Assumed":
    """The vocabulary of the run in the folder `keep`; only its size where `keep` is None, for plans.

    options: of `open_vocabulary`
    """
    return Assumed(size) if keep is None else open_vocabulary(Path(keep) / "tokenizer", size=size, **options)


def open_vocabulary(
    directory: Path,
    *,
    begun: bool,
    given: str,
    size: int,
    captions: Callable[[], Iterable[str]],
    normaliser: Normaliser = UNCASED,
) -> Tokenizer:
    """The tokenizer in `directory`, which lies there from the first use on.

    begun:    whether the run has begun: then what lies there is the run's own, else it is left over and replaced
    given:    a folder with vocab.txt or tokenizer.json, of BERT or CLIP; '' trains a WordPiece of at most `size` tokens
              on `captions()`, whose text passes through the `normaliser`
    """
    # Process 0 alone looks at what is there and writes; on a network file system others may not see it before then.
    tokenizer = None
    with failing_together():
        if jax.process_index() == 0:
            tokenizer = _opened(directory, begun, given, size, captions, normaliser)
    check_shared(directory)
    return tokenizer or load_vocabulary(directory)


def _opened(directory, begun, given, size, captions, normaliser) -> Tokenizer:
    if given and normaliser != UNCASED:
        names = ", ".join(name for name in Normaliser._fields if getattr(normaliser, name) != getattr(UNCASED, name))
        raise UserError(f"config.task.tokenizer={given} says itself what it does to text: leave {names} out")
    if begun:
        if not directory.is_dir():
            raise UserError(f"no tokenizer at {directory}: this run did not get as far as writing one")
        return load_vocabulary(directory)
    if directory.exists() and not is_left_over(directory):
        raise UserError(f"{directory} was not made by a run, which would replace it: move it or give another --workdir")
    tokenizer = load_vocabulary(given) if given else train_wordpiece(captions(), size, normaliser)
    shutil.rmtree(directory, ignore_errors=True)
    with atomic.replacing(directory) as neighbour:  # a run killed now must find a whole vocabulary, or none
        tokenizer.save(neighbour)
        (neighbour / MARK).touch()
    return tokenizer


def is_left_over(path: Path) -> bool:
    """Whether `path`, in a folder where no run has begun, is a vocabulary of a command that was refused."""
    return (path / MARK).is_file()
