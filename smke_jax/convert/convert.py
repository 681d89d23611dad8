"""A file of weights from elsewhere -> a directory of our own."""

import difflib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from smke_jax.convert.layouts import LAYOUTS, detect, under
from smke_jax.convert.params_file import PARAMS, TOKENIZER, file_digest, new_directory, save_params
from smke_jax.convert.rules import Layout, Report, to_flax
from smke_jax.convert.source import Source
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.errors import UserError
from smke_jax.parallel import kept_programs
from smke_jax.paths import flat, nested

WORDS, HEAD = "word_embedding", "word_head"  # of a BERT
MOST_PADDING = 128  # rows
SHAPES = "shapes"  # what their kept files are called
VOCABULARIES = ("vocab.txt", "tokenizer.json", "vocab.json")
TOKENIZER_FILES = (
    *VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip


class Conversion(NamedTuple):
    """params: nested dict of fp32 arrays or `Stored`, whole where `report.sound`; description: of their model."""

    layout: Layout
    description: dict
    params: Any
    report: Report


def convert(
    source: Source, layout: str = "auto", *, prefix: str | None = None, lazy: bool = False, **fields: Any
) -> Conversion:
    """`source` read by the rules of `layout`; `fields` (num_heads, …) overrule what the file says of its model.

    prefix: what the names of the network begin with, where the file holds several; None finds it
    lazy: names, types and shapes of all parameters are checked, but they stay in the file, as `Stored`

    Raises UserError for an unknown layout and for a file that is plainly of another one.
    """
    if layout != "auto" and layout not in LAYOUTS:
        close = difflib.get_close_matches(layout, LAYOUTS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are auto, {', '.join(sorted(LAYOUTS))}"
        raise UserError(f"unknown layout {layout!r}: {hint}")
    chosen, prefix = detect(source, LAYOUTS.values() if layout == "auto" else [LAYOUTS[layout]], prefix)
    inside = under(source.state, prefix)
    state = chosen.clean(inside)
    if len(state) < len(inside):
        raise UserError(f"{source.path} holds the same parameters twice, with and without a prefix: keep one of them")
    try:
        description = {**chosen.describe(state, {**source.config, **fields}), **fields}
        assumed = tuple(name for name in description.pop("assumed", ()) if name not in fields)
        shapes = _shapes(description)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None
    except (KeyError, ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{source.path} does not describe a model of layout {chosen.name}: {what}") from error
    params, report = to_flax(chosen, state, description, shapes, stored=source.check if lazy else None)
    if (size := _padded(source, description)) is not None:
        padding = f"{description['vocab_size'] - size} rows of the word table behind the tokenizer's last token"
        description = {**description, "vocab_size": size}
        params = {**params, WORDS: params[WORDS][:size]}
        if description.get(HEAD):
            params[HEAD] = {**params[HEAD], "bias": params[HEAD]["bias"][:size]}
        report.ignored[f"{WORDS}, padded"] = padding
    outside = {name: f"outside of {prefix}" for name in source.state if not name.startswith(prefix)}
    return Conversion(chosen, description, params, report._replace(assumed=assumed, ignored=report.ignored | outside))


def _shapes(description: dict) -> Any:
    """The shapes of the parameters of the model, a tree of ShapeDtypeStruct, from its description alone.

    Tracing networks for them takes longer than all else that opens a model, so what is found is kept.
    """
    name = None
    if (code := kept_programs.code_digest("models", "passes")) is not None:
        name = kept_programs.fingerprint(code, json.dumps(description, sort_keys=True, default=repr))
        if (kept := kept_programs.read(SHAPES, name)) is not None:
            return nested({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in kept.facts.items()})
    # Only here: they import Flax.
    from smke_jax.models.build import param_shapes
    from smke_jax.passes.aligned import shapes_of

    found = shapes_of(description) if description["type"] == "aligned" else param_shapes(description)
    if name is not None:
        kept_programs.write(SHAPES, name, {path: x.shape for path, x in flat(found).items()})
    return found


def _padded(source: Source, description: dict) -> int | None:
    """The size of the vocabulary beside the file, where the word table of a text model is padded beyond it.

    Training code rounds tables up to a multiple of 8, of 64 or of 128, which is faster.
    """
    size = description.get("vocab_size") if description["type"] == "bert" else None
    if size is None or not any((source.path.parent / name).is_file() for name in VOCABULARIES):
        return None
    own = load_tokenizer(source.path.parent).vocab_size
    return own if own < size < own + MOST_PADDING and size % 8 == 0 else None


def tokenizer_files(source: Source, description: dict) -> list[Path]:
    """The tokenizer's files beside `source`, where the model described reads text.

    Raises UserError where a WordPiece vocabulary has another number of tokens than the model.
    """
    folder = source.path.parent
    reads_text = "vocab_size" in {**description, **description.get("text", {})}
    if not reads_text or not any((folder / name).is_file() for name in VOCABULARIES):
        return []
    if "vocab_size" in description:
        load_tokenizer(folder, description["vocab_size"])
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def write(directory: Path, conversion: Conversion, source: Source) -> None:
    """Writes the parameters, their description and the tokenizer files beside the source, all or nothing."""
    tokenizer = tokenizer_files(source, conversion.description)
    origin = {"layout": conversion.layout.name, "file": source.name, "sha256": file_digest(source.path)}
    with new_directory(directory) as partial:
        save_params(partial / PARAMS, conversion.params, {"model": conversion.description, "source": origin})
        for file in tokenizer:
            (partial / TOKENIZER).mkdir(exist_ok=True)
            shutil.copyfile(file, partial / TOKENIZER / file.name)
