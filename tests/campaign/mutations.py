"""Damage that files really meet, and damage that somebody means: seeded, and the same on every machine."""

import json
import random
from collections.abc import Callable

# What numbers, strings and lists of a text file are replaced with.
VALUES = (
    b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"',
    b'"\\u0000"', b"[" * 5000, b'{"a":' * 2000, b"../../x.jpg", b"/etc/passwd", b"C:\\\\x.jpg", b"<script>",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\t", b"\x00", "\u202e\U0001f600é".encode(), b"'", b'"', b"a" * 70000,
)  # fmt: skip


def flip(data: bytearray, rng: random.Random) -> None:
    """Some bits are wrong."""
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    """The rest was never written."""
    del data[rng.randrange(len(data)) :]


def lose(data: bytearray, rng: random.Random) -> None:
    """A piece is missing."""
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 100, 600))]


def zero(data: bytearray, rng: random.Random) -> None:
    """A block of the disk was never written."""
    start = rng.randrange(len(data))
    length = min(rng.choice((16, 512, 4096)), len(data) - start)
    data[start : start + length] = bytes(length)


def repeat(data: bytearray, rng: random.Random) -> None:
    """A piece is there twice."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 20, 600))]
    data[start:start] = piece


def noise(data: bytearray, rng: random.Random) -> None:
    """Bytes of something else."""
    start = rng.randrange(len(data))
    data[start : start + rng.choice((0, 8, 40))] = rng.randbytes(rng.choice((1, 8, 300)))


def value(data: bytearray, rng: random.Random) -> None:
    """A word of a text, or a number of a header, is another."""
    start = rng.randrange(len(data))
    data[start : start + rng.choice((0, 1, 4, 12))] = rng.choice(VALUES)


def extreme(data: bytearray, rng: random.Random) -> None:
    """A length in a header lies."""
    start, width = rng.randrange(len(data)), rng.choice((1, 2, 4, 8))
    data[start : start + width] = rng.choice((bytes(width), b"\xff" * width, b"\x7f" + b"\xff" * (width - 1)))


NODES = (
    None, True, 0, -1, 2**70, 1e308, float("nan"), "", "a", "../x", "\x00", "\ud800", "x" * 3000, [], [[]], {},
    {"a": 1}, [1, "a"],
)  # fmt: skip


def node(data: bytearray, rng: random.Random) -> None:
    """JSON of another shape: in a file of it, in one line of a file, or in the header of safetensors."""
    start, end = 0, len(data)
    if 0 < int.from_bytes(data[:8], "little") <= len(data) - 8:
        start, end = 8, 8 + int.from_bytes(data[:8], "little")
    elif data[:1] == b"{" and data.count(b"\n{"):
        starts = [0, *(i + 1 for i in range(len(data)) if data[i : i + 2] == b"\n{")]
        start = rng.choice(starts)
        end = data.find(b"\n", start) if b"\n" in data[start:] else len(data)
    try:
        tree = json.loads(data[start:end])
    except (ValueError, RecursionError):
        flip(data, rng)
        return
    text = json.dumps(_with_another_node(tree, rng)).encode()
    data[start:end] = text
    if start == 8:
        data[:8] = len(text).to_bytes(8, "little")


def _with_another_node(tree, rng: random.Random):
    """`tree` where one entry, at any depth, is another, is gone or has another name."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return rng.choice(NODES)
    places = list(tree) if isinstance(tree, dict) else range(len(tree))
    place = rng.choice(places)
    if rng.random() < 0.2:
        gone = tree.pop(place)
        if isinstance(tree, dict) and rng.random() < 0.5:
            tree[rng.choice(("", "a", "__metadata__", place + "x"))] = gone
        return tree
    tree[place] = _with_another_node(tree[place], rng)
    return tree


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip, cut, lose, zero, repeat, noise, value, extreme, node,
)  # fmt: skip


def mutated(data: bytes, rng: random.Random, mutations=MUTATIONS) -> bytes:
    """One to three of `mutations`, one after the other; an empty file stays empty."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if out:
            rng.choice(mutations)(out, rng)
    return bytes(out)
