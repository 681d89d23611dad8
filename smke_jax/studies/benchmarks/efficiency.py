"""Sizes, speeds and recalls of models beside each other, the first being what the others are compared with.

    python -m smke_jax.studies.benchmarks.efficiency TEACHER STUDENT [STUDENT …] [--data=data/flickr8k --split=test]

Each is a run, an export, converted weights, or a directory of `smke export --format=onnx`, which runs in onnxruntime on
the CPU; all others run in JAX, on one device: where it shows more, each of them does the same work.  Images and texts
are embedded apart, from pixels and tokens that are ready: neither decoding nor tokenizing counts.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Var
from safetensors import safe_open

from smke_jax.__main__ import keep_compiled_programs, run_program
from smke_jax.convert.int8 import quantised
from smke_jax.convert.params_file import PARAMS
from smke_jax.data.gallery import gallery_of
from smke_jax.data.pipeline import pixels
from smke_jax.data.sources import PreparedSource, open_prepared
from smke_jax.embedder import Embedder, load
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import RECALL_HEADS, recall_cells, retrieval_metrics
from smke_jax.flags import positive
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import in_turns, reason_of, say, spread

SIDES = ("image", "text")
WORDS = "tokenizer.json"  # beside graphs
TEXTS = (
    "a man in a red shirt rides a bicycle along the beach",
    "two dogs play with a ball in the snow",
    "a little girl holds a yellow umbrella in front of a brick wall",
    "people wait for a train at night",
)
BYTES = {"fp32": 4, "fp16": 2}
PRECISIONS = (*BYTES, "int8")


class Model(NamedTuple):
    """A model that is measured.

    sizes:  {side: {precision: MiB}}, and of 'both' together, from the precision in which the model is kept on; one that
            is not known is left out
    counts: {side: parameters}, {} where they are not known
    speeds: {side: (batch size) -> (steps) -> anything}: embeds that batch so many times
    tokens: (batch size) -> the tokens of each text of that batch
    embed:  (uint8 images, texts) -> L2-normalised (N, D), (M, D)
    """

    sizes: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, int]
    speeds: Mapping[str, Callable[[int], Callable[[int], Any]]]
    tokens: Callable[[int], int]
    embed: Callable[[Iterable[np.ndarray], Sequence[str]], tuple[np.ndarray, np.ndarray]]


def open_model(path: Path) -> Model:
    """The model in `path`; UserError where it does not embed images and texts."""
    return _onnx(path) if (path / "image.onnx").is_file() else _ours(path)


def _ours(path: Path) -> Model:
    model = load(path)
    if not model.reads_texts or not model.image_sizes:
        raise UserError(f"{path} does not embed both images and texts: give image-text models with their vocabulary")
    used = {side: _used(model, side) for side in SIDES}
    used["both"] = {**used["image"], **used["text"]}
    known = PRECISIONS[PRECISIONS.index(_kept(path)) :]
    sizes = {side: {x: mib for x, mib in _mib(leaves).items() if x in known} for side, leaves in used.items()}
    counts = {side: sum(x.size for x in leaves.values()) for side, leaves in used.items()}

    def speed(side):
        def prepared(batch_size):
            params, run = model.program(side)
            arrays = jax.device_put(_arrays(model, side, batch_size))

            def repeat(steps):
                for _ in range(steps):
                    found = run(params, arrays)
                return jax.block_until_ready(found)

            return repeat

        return prepared

    def embed(images, texts):
        return model.encode_images(images, progress=True), model.encode_texts(texts, progress=True)

    def tokens(count):
        return _arrays(model, "text", count)["text"].shape[1]

    return Model(sizes, counts, {side: speed(side) for side in SIDES}, tokens, embed)


def _kept(path: Path) -> str:
    """The precision in which the weights lie in `path`; a run's are fp32."""
    if not (path / PARAMS).is_file():
        return "fp32"
    with safe_open(path / PARAMS, "np") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    return "int8" if "I8" in types else "fp16" if types & {"F16", "BF16"} else "fp32"


def _arrays(model: Embedder, side: str, count: int) -> dict[str, np.ndarray]:
    """What the program of a side takes: noise, or TEXTS."""
    if side == "image":
        rng = np.random.default_rng(0)
        return {
            name: rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
            for name, size in model.image_sizes.items()
        }
    ids, mask = model.tokenizer.encode([TEXTS[i % len(TEXTS)] for i in range(count)], model.max_length)
    length = int(mask.sum(1).max())
    return {"text": ids[:, :length], "text_mask": mask[:, :length]}


def _used(model: Embedder, side: str) -> dict[str, np.ndarray]:
    """{path: parameter} of those that an embedding of this side depends on."""
    params, run = model.program(side)
    found, needed = jax.tree.leaves_with_path(params), _needed_inputs(run, params, _arrays(model, side, 1))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for (path, x), read in zip(found, needed, strict=False)
        if read
    }


def _needed_inputs(run, params: Any, arrays: Mapping[str, np.ndarray]) -> list[bool]:
    """Whether the result depends on each leaf of `params`: followed backwards through the program."""
    jaxpr = run.trace(params, arrays).jaxpr.jaxpr
    wanted = {x for x in jaxpr.outvars if isinstance(x, Var)}
    for equation in reversed(jaxpr.eqns):
        if wanted & set(equation.outvars):
            wanted |= {x for x in equation.invars if isinstance(x, Var)}
    return [x in wanted for x in jaxpr.invars]


def _mib(leaves: Mapping[str, np.ndarray]) -> dict[str, float]:
    count = sum(x.size for x in leaves.values())
    small = sum(x.nbytes for x in quantised(leaves).values())
    return {**{name: count * size / 2**20 for name, size in BYTES.items()}, "int8": small / 2**20}


def _onnx(path: Path) -> Model:
    try:
        import onnxruntime
        import tokenizers
    except ModuleNotFoundError as error:
        raise UserError(f"{path} holds graphs: pip install 'smke_jax[onnx]' ({error})") from None
    from smke_jax.convert.export.onnx import PREPROCESSOR, onnx_pixels

    files = [*(f"{side}.onnx" for side in SIDES), WORDS, PREPROCESSOR]
    if absent := [name for name in files if not (path / name).is_file()]:
        raise UserError(f"{path} has no {absent[0]}: write a model of both sides with `smke export --format=onnx`")
    try:
        words = tokenizers.Tokenizer.from_file(str(path / WORDS))
        sessions = {
            side: onnxruntime.InferenceSession(path / f"{side}.onnx", providers=["CPUExecutionProvider"])
            for side in SIDES
        }
    except Exception as error:  # both libraries raise classes of their own
        raise UserError(f"{path} is damaged ({reason_of(error)}): write it again with `smke export`") from None
    shape = sessions["image"].get_inputs()[0].shape

    def image(pictures):
        return {"pixel_values": onnx_pixels(path, pictures, shape)}

    def text(given):
        encodings = words.encode_batch_fast(list(given))
        return {
            "input_ids": np.array([x.ids for x in encodings]),
            "attention_mask": np.array([x.attention_mask for x in encodings]),
        }

    def speed(side):
        def prepared(count):
            noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            given = [noise] * count if side == "image" else [TEXTS[i % len(TEXTS)] for i in range(count)]
            inputs = {"image": image, "text": text}[side](given)
            return lambda steps: [sessions[side].run(None, inputs) for _ in range(steps)]

        return prepared

    def embed(images, texts):
        made = [sessions["image"].run(None, image([x]))[0] for x in images]
        return np.concatenate(made), np.concatenate([sessions["text"].run(None, text([x]))[0] for x in texts])

    def tokens(count):
        return text([TEXTS[i % len(TEXTS)] for i in range(count)])["input_ids"].shape[1]

    mib = {side: (path / f"{side}.onnx").stat().st_size / 2**20 for side in SIDES}
    sizes = {side: {"fp32": size} for side, size in (*mib.items(), ("both", sum(mib.values())))}
    return Model(sizes, {}, {side: speed(side) for side in SIDES}, tokens, embed)


def size_table(models: Mapping[str, Model]) -> str:
    """Markdown: parameters, and MiB by precision, of each model's sides."""
    lines = ["| model | side | parameters | MiB fp32 | fp16 | int8 | of the first |", "|---|---|---|---|---|---|---|"]
    first = next(iter(models.values()))
    for name, model in models.items():
        for side in (*SIDES, "both"):
            sizes = model.sizes[side]
            count = f"{model.counts[side]:,}" if model.counts else ""
            mib = [f"{sizes[x]:.1f}" if x in sizes else "" for x in PRECISIONS]
            share = f"{_as_kept(sizes) / _as_kept(first.sizes[side]):.1%}"
            lines.append(f"| {' | '.join([name, side, count, *mib, share])} |")
    return "\n".join(lines)


def _as_kept(sizes: Mapping[str, float]) -> float:
    return next(sizes[x] for x in PRECISIONS if x in sizes)


def speed_table(models: Mapping[str, Model], batch_sizes: Sequence[int], rounds: int, seconds: float) -> str:
    """Markdown: queries per second of each model's sides, in turns, and the ratio to the first model's."""
    lines = ["| queries/s | batch | " + " | ".join(models) + " |", "|---|---|" + "---|" * len(models)]
    for side in SIDES:
        for batch_size in batch_sizes:
            say(f"measuring {side}s in batches of {batch_size}")
            runs = {name: model.speeds[side](batch_size) for name, model in models.items()}
            for run in runs.values():
                run(1)  # compiled before it counts
            found = in_turns(runs, rounds=rounds, seconds=seconds)
            rates = {name: [batch_size * x for x in values] for name, values in found.items()}
            first = rates[next(iter(models))]
            cells = [
                f"{spread(values)}, × {statistics.median(x / y for x, y in zip(values, first, strict=True)):.2f}"
                for values in rates.values()
            ]
            length = "/".join(dict.fromkeys(str(model.tokens(batch_size)) for model in models.values()))
            what = "images" if side == "image" else f"texts of {length} tokens"
            lines.append(f"| {' | '.join([what, str(batch_size), *cells])} |")
    return "\n".join(lines)


def recall_table(models: Mapping[str, Model], source: PreparedSource) -> str:
    """Markdown: recalls in percent, with the folds of 1,000 images where there are several."""
    gallery = gallery_of(source, pixels)
    lines = [f"| model | gallery | {RECALL_HEADS} |", "|---" * 8 + "|"]
    for name, model in models.items():
        embedded = model.embed(gallery.pictures, gallery.texts)
        metrics = retrieval_metrics(*embedded, gallery.caption_image, protocol=f"{source!r}", bootstrap=0)
        for where, found in ((f"{metrics['n_images']:,}", metrics), ("1K folds", metrics.get("folds_1k"))):
            if found is not None:
                lines.append(f"| {' | '.join([name, where, *recall_cells(found)])} |")
    return "\n".join(lines)


BODY = """\
Models: {models}. JAX on one {device}; ONNX graphs in onnxruntime on the CPU. Sizes are those of the parameters that an
embedding of the side depends on, from the precision on in which they are kept, which is compared with the first
model's; int8 is of matrices alone, with a scale for each channel (`smke export --dtype=int8`). Of a graph the size is
that of its file. Texts are padded to the longest of their batch. Speeds: medians of {rounds} rounds in turns, lowest
and highest in brackets, and the median ratio to the first model's of the same round.

{tables}
"""


def main(argv: list[str]) -> int:
    """Measures and writes the tables."""
    arguments = _parser().parse_args(argv)
    keep_compiled_programs()
    names = [path.name if path.name != "export" else path.parent.name for path in arguments.models]
    if len(set(names)) < len(names):
        names = [str(path) for path in arguments.models]
    models = {name: open_model(path) for name, path in zip(names, arguments.models, strict=True)}
    source = arguments.data and open_prepared(arguments.data, arguments.split)  # first: it may not be there
    batches = sorted({1, arguments.batch_size})
    tables = [size_table(models), speed_table(models, batches, arguments.rounds, arguments.seconds)]
    if source is not None:
        tables.append(recall_table(models, source))
    whole = "\n\n".join(tables)
    body = BODY.format(
        models=", ".join(models), device=jax.devices()[0].device_kind,
        rounds=arguments.rounds, tables=whole,
    )  # fmt: skip
    command = f"python -m smke_jax.studies.benchmarks.efficiency {shlex.join(argv)}"
    record.write(arguments.out, "Compressed models beside their teacher", command, body)
    print(whole)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("efficiency", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="the teacher first")
    parser.add_argument("--data", type=Path, metavar="DIR", help="of smke prepare: recalls are measured there")
    parser.add_argument("--split", default="test", metavar="NAME")
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N", help="the large one, besides 1")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="times that all run in turns")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--out", type=Path, default=Path("efficiency.md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
