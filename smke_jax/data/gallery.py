"""The pictures of a prepared split beside one another, and all of their captions: what retrieval is measured on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from smke_jax.data.sources import Example, PreparedSource


class Pictures:
    """A split's pictures in an order, each read when it is asked for: all of them together may not fit in memory."""

    def __init__(self, source: PreparedSource, order: Sequence[int], picture: Callable[[Example], Any]):
        # `encode_images` takes what has a `read` for a file.
        self._source, self._order, self._picture = source, order, picture

    def __length_hint__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        return (self._picture(self._source[row]) for row in self._order)


class Gallery(NamedTuple):
    """What is retrieved.

    pictures:      N, in the order of their ids
    texts:         M captions, those of one picture after those of another
    caption_image: (M,), the number of each caption's picture
    """

    pictures: Pictures
    texts: list[str]
    caption_image: np.ndarray


def gallery_of(source: PreparedSource, picture: Callable[[Example], Any]) -> Gallery:
    """The whole split; `picture` makes one of an example."""
    order, captions = np.argsort(source.image_ids, kind="stable").tolist(), source.all_captions()
    texts = [text for row in order for text in captions[row]]
    return Gallery(
        Pictures(source, order, picture), texts, np.repeat(np.arange(len(order)), source.num_captions[order])
    )
