"""Every kind of file that weights come in and go out as.  A new one is a file here and a line in LAYOUTS."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from smke_jax.convert.layouts import (
    aligned,
    beit,
    beit_hf,
    bert,
    clip,
    data2vec2,
    efficientnet_lite,
    resnet,
    student,
    vit,
    vit_hf,
)
from smke_jax.convert.rules import Layout
from smke_jax.convert.source import Source
from smke_jax.errors import UserError

LAYOUTS = {layout.name: layout for layout in (
    beit.UNILM, beit_hf.HF, bert.BERT, data2vec2.FAIRSEQ,
    vit.TIMM, vit.AUGREG, vit_hf.VIT, vit_hf.DINOV2, resnet.TIMM, resnet.TRANSFORMERS, clip.OPENAI, clip.OPEN_CLIP,
    clip.TRANSFORMERS,
    student.SMKE_HF, student.THESIS, aligned.ALIGNED_HF, efficientnet_lite.EFFICIENTNET_LITE,
)}  # fmt: skip
DEEPEST = 4  # parts of a prefix


class Fit(NamedTuple):
    """layout: of the network under `prefix`, which stands before all names of it in the file; '' for none."""

    layout: Layout
    prefix: str


def detect(source: Source, among: Iterable[Layout] = LAYOUTS.values(), prefix: str | None = None) -> Fit:
    """The one layout of `among` whose marks are all among the names in `source`.

    Where no layout fits the names as they are, training code may have put the network into another: what all of its
    names begin with is searched for.  `prefix` says it.

    Raises UserError where none or several have.
    """
    among = list(among)
    prefixes = [""] if prefix is None else [prefix]
    found = _fitting(source, among, prefixes)
    if not found and prefix is None:
        found = _fitting(source, among, _prefixes(source.state))
        # What has the shortest prefix holds the others: a part of its names may have marks of their own.
        found = [x for x in found if not any(x.prefix != y.prefix and x.prefix.startswith(y.prefix) for y in found)]
    if len(found) == 1:
        return found[0]
    if len({x.prefix for x in found}) > 1:
        several = ", ".join(f"{x.prefix} ({x.layout.name})" for x in found)
        raise UserError(f"{source.path} holds several networks, under {several}: give one of these as --prefix")
    if found:
        several = "; ".join(f"--from={x.layout.name} is {x.layout.summary}" for x in found)
        raise UserError(f"{source.path} fits {' and '.join(x.layout.name for x in found)}: say which it is. {several}")
    names = ", ".join(sorted(source.state)[:3])
    known = ", ".join(sorted(LAYOUTS))
    if len(among) == 1:
        absent = [mark for mark in among[0].marks if mark not in among[0].clean(under(source.state, prefix or ""))]
        lacks = absent[0] if absent else "config.json that says so"
        raise UserError(f"{source.path} is no {among[0].name} (it has no {lacks}): try --from=auto")
    raise UserError(
        f"{source.path} is of no known layout (it has {names}, …): the networks that are read are {known}, and --from "
        "only chooses among them"
    )


def under(state: Mapping, prefix: str) -> dict:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def _fitting(source: Source, among: list[Layout], prefixes: Iterable[str]) -> list[Fit]:
    return [
        Fit(layout, prefix)
        for prefix in prefixes
        for part in [under(source.state, prefix)]
        for layout in among
        if layout.has_marks(part, source.config)
    ]


def _prefixes(state: Mapping) -> list[str]:
    """What several names begin with, up to a dot, without the numbers of layers; the short ones first."""
    found: set[str] = set()
    for name in state:
        parts = name.split(".")[:-1]
        for count in range(1, min(len(parts), DEEPEST) + 1):
            if parts[count - 1].isdigit():
                break
            found.add(".".join(parts[:count]) + ".")
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))
