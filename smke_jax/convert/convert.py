"""A file of weights from elsewhere -> a directory of our own."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from smke_jax.convert.layouts import LAYOUTS, detect
from smke_jax.convert.params_file import PARAMS, TOKENIZER, save_params
from smke_jax.convert.rules import Layout, Report, to_flax
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.models.build import param_shapes

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt")


class Conversion(NamedTuple):
    """params: nested dict of fp32 arrays, whole where `report.sound`; description: of the model they are of."""

    layout: Layout
    description: dict
    params: Any
    report: Report


def convert(source: Source, layout: str = "auto", **fields: Any) -> Conversion:
    """`source` read by the rules of `layout`; `fields` (num_heads, …) overrule what the file says of its model.

    Raises UserError for an unknown layout and for a file that is plainly of another one.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}: known are auto, {', '.join(sorted(LAYOUTS))}")
    chosen = detect(source) if layout == "auto" else LAYOUTS[layout]
    state = chosen.clean(source.state)
    absent = [name for name in chosen.marks if name not in state]
    if absent:
        raise UserError(f"{source.path} is no {chosen.name} (it has no {absent[0]}): try --from=auto")
    try:
        description = {**chosen.describe(state, source.config), **fields}
        shapes = param_shapes(description)
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise UserError(f"{source.path} does not describe a model of layout {chosen.name}: {what}") from None
    params, report = to_flax(chosen, state, description, shapes)
    return Conversion(chosen, description, params, report)


def write(directory: Path, conversion: Conversion, source: Source) -> None:
    """Writes the parameters, their description and the tokenizer files beside the source, all or nothing."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        origin = {"layout": conversion.layout.name, "file": source.path.name, "sha256": source.digest}
        save_params(partial / PARAMS, conversion.params, {"model": conversion.description, "source": origin})
        for name in TOKENIZER_FILES:
            if source.path.with_name(name).is_file():
                (partial / TOKENIZER).mkdir(exist_ok=True)
                shutil.copyfile(source.path.with_name(name), partial / TOKENIZER / name)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
