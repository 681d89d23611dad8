"""Makes small datasets on disk, prepares them, and reads back what came of it."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from smke_jax.data.clip_tokenizer import END, START
from smke_jax.data.prepare.items import Item
from smke_jax.data.sources import Source, open_prepared
from smke_jax.programs.prepare import main


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def clip_vocabulary(root: Path, merges: tuple[str, ...]) -> list[str]:
    """Writes CLIP's two files for bytes and what `merges` makes of them.  Returns the tokens, by their ids."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{x}</w>" for x in letters), *(m.replace(" ", "") for m in merges), START, END]
    numbers = json.dumps({token: i for i, token in enumerate(tokens)})
    write(root, {"vocab.json": numbers, "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n"})
    return tokens


def prepare(dataset: str, source: Path, out: Path, *options: str) -> dict:
    assert main([dataset, f"--source={source}", f"--out={out}", *options]) == 0
    return json.loads((out / "manifest.json").read_text())


def skipped(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]


def contents(out: Path, split: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.name, example.captions) for example in open_prepared(out, split)]


def tiny_items(n: int = 3) -> list[Item]:
    return [Item(f"{i}.jpg", [f"picture {i}"] * (i + 1), jpeg(i), f"row {i}") for i in range(n)]


class Damaged(Source):
    """A source whose images number `bad` have lost their second half since preparation."""

    def __init__(self, source, bad=(1,)):
        self.source, self.bad = source, frozenset(bad)
        self.dataset, self.digest, self.names = source.dataset, source.digest, source.names
        self.num_captions = source.num_captions

    def __getitem__(self, index):
        example = self.source[index]
        return example._replace(image=example.image[: len(example.image) // 2]) if index in self.bad else example

    def captions(self, index):
        return self.source.captions(index)

    def all_captions(self):
        return self.source.all_captions()

    def __repr__(self):
        return repr(self.source)
