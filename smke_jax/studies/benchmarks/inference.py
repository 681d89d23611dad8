"""How fast a trained model embeds photos and texts, against its PyTorch export and the same network in onnxruntime.

    python -m smke_jax.studies.benchmarks.inference --export=EXPORT --photos=DIR [--count=128]

EXPORT is a directory of `smke export --format=hf`.  All three read it, and embed the same photos from their files and
the same texts in the same process, in turns.  Each has threads that read and decode the next photos meanwhile.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import smke_jax
from smke_jax.__main__ import keep_compiled_programs, run_program
from smke_jax.errors import UserError
from smke_jax.search.photos import photos_below
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import in_turns, require_torch, say, spread

OURS, PYTORCH, ONNX = "smke_jax", "PyTorch", "onnxruntime"
SUBJECTS = ("two dogs", "a man in a red shirt", "a little girl with a yellow umbrella", "an old boat")
PLACES = ("in the snow", "on a street at night with many people", "by the sea", "in front of a brick wall")
TEXTS = [f"{subject} {place}" for subject in SUBJECTS for place in PLACES]
LEAST_ALIKE = 0.9999  # cosine: below it, they are not the same network

COLD = {
    OURS: """
import sys
import smke_jax
smke_jax.load(sys.argv[1]).encode_texts(sys.argv[3])
""",
    PYTORCH: """
import sys
sys.path.insert(0, sys.argv[1])
import tokenizers
import torch
try:
    from modeling_aligned import AlignedModel as Model
except ModuleNotFoundError:
    from modeling_smke import SmkeModel as Model
model = Model.from_directory(sys.argv[1])
encoding = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json").encode(sys.argv[3])
with torch.inference_mode():
    model(input_ids=torch.tensor([encoding.ids]), attention_mask=torch.tensor([encoding.attention_mask]))
""",
    ONNX: """
import sys
import numpy as np
import onnxruntime
import tokenizers
session = onnxruntime.InferenceSession(sys.argv[2] + "/text.onnx", providers=["CPUExecutionProvider"])
encoding = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json").encode(sys.argv[3])
session.run(None, {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])})
""",
}


def contenders(export: Path, graphs: Path) -> dict[str, tuple[Callable, Callable]]:
    """{whose: ((paths, batch size) -> (N, D), (texts, batch size) -> (N, D))}."""
    from smke_jax.studies.benchmarks.pytorch_inference import in_onnxruntime, in_pytorch

    model = smke_jax.load(export)

    def images(paths, batch_size):
        return model.encode_images(paths, batch_size=batch_size)

    def texts(given, batch_size):
        return model.encode_texts(given, batch_size=batch_size)

    return {OURS: (images, texts), PYTORCH: in_pytorch(export), ONNX: in_onnxruntime(graphs, export)}


def check_alike(made: Mapping[str, np.ndarray], what: str) -> float:
    """The lowest cosine of ours with the others'; UserError where they are not of one network."""
    lowest = min(float((made[OURS] * made[other]).sum(1).min()) for other in (PYTORCH, ONNX))
    if not lowest >= LEAST_ALIKE:
        raise UserError(f"the embeddings of {what} differ, their lowest cosine is {lowest:.4f}: this is no fair race")
    return lowest


def speeds(named: Mapping[str, Callable[[], object]], each: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """{whose: items per second in each round} of calls that embed `each` items."""

    def repeat(one):
        return lambda steps: [one() for _ in range(steps)]

    found = in_turns({name: repeat(one) for name, one in named.items()}, rounds=rounds, seconds=seconds)
    return {name: [each * x for x in values] for name, values in found.items()}


def cold(export: Path, graphs: Path, tries: int) -> dict[str, list[float]]:
    """Seconds of a process that embeds one text; each contender's first one, which compiles, is not counted."""
    found: dict[str, list[float]] = {name: [] for name in COLD}
    for attempt in range(tries + 1):
        for name, code in COLD.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, export, graphs, TEXTS[0]], check=True, capture_output=True)
            if attempt:
                found[name].append(time.perf_counter() - start)
    return found


def table(rows: Sequence[tuple[str, Mapping[str, list[float]], bool]]) -> str:
    """Markdown of (what, {whose: values}, whether more is better): ratios above 1 are in our favour."""
    lines = [
        f"| what | {OURS} | {PYTORCH} | {ONNX} | ratio to {PYTORCH} | ratio to {ONNX} |",
        "|---|---|---|---|---|---|",
    ]
    for what, values, more_is_better in rows:
        ours = values[OURS]
        ratios = [
            spread([x / y if more_is_better else y / x for x, y in zip(ours, values[other], strict=True)])
            for other in (PYTORCH, ONNX)
        ]
        lines.append(f"| {' | '.join([what, *(spread(values[x]) for x in (OURS, PYTORCH, ONNX)), *ratios])} |")
    return "\n".join(lines)


BODY = """\
{count} photos of {folder} in batches of {batch}, {texts} texts in batches of {batch}; the lowest cosine between ours
and the others' embeddings is {cosine:.7f}. Medians of {rounds} rounds in turns, lowest and highest in brackets. Ratios
above 1 are in favour of smke_jax. The cold process has compiled before.

{table}
"""


def main(argv: list[str]) -> int:
    """Measures and writes the table."""
    require_torch()
    arguments = _parser().parse_args(argv)
    keep_compiled_programs()
    paths = [arguments.photos / photo.name for photo in photos_below(arguments.photos)][: arguments.count]
    if not paths:
        raise UserError(f"{arguments.photos} holds no photos")
    texts = (TEXTS * -(-arguments.texts // len(TEXTS)))[: arguments.texts]
    from smke_jax.studies.benchmarks.pytorch_inference import write_graphs

    with tempfile.TemporaryDirectory() as temporary:
        graphs = Path(temporary)
        write_graphs(arguments.export, graphs)
        runs = contenders(arguments.export, graphs)
        # The same calls as below, so that all is compiled.
        cosine = min(
            check_alike({name: run[0](paths, arguments.batch_size) for name, run in runs.items()}, "photos"),
            check_alike({name: run[1](texts, arguments.batch_size) for name, run in runs.items()}, "texts"),
            check_alike({name: run[1](TEXTS[:1], 1) for name, run in runs.items()}, "one text"),
        )
        say("measuring photos")
        one = {name: lambda run=run: run[0](paths, arguments.batch_size) for name, run in runs.items()}
        of_photos = speeds(one, len(paths), arguments.rounds, arguments.seconds)
        say("measuring texts")
        one = {name: lambda run=run: run[1](texts, arguments.batch_size) for name, run in runs.items()}
        of_texts = speeds(one, len(texts), arguments.rounds, arguments.seconds)
        one = {name: lambda run=run: run[1](TEXTS[:1], 1) for name, run in runs.items()}
        of_one = speeds(one, 1, arguments.rounds, min(1.0, arguments.seconds))
        say("measuring cold processes")
        of_cold = cold(arguments.export, graphs, arguments.tries)
    rows = [
        ("photos/s", of_photos, True),
        ("texts/s", of_texts, True),
        ("one text, ms", {name: [1000 / x for x in values] for name, values in of_one.items()}, False),
        ("cold process to the first text, s", of_cold, False),
    ]
    body = BODY.format(
        count=len(paths), folder=arguments.photos.name, batch=arguments.batch_size, texts=len(texts), cosine=cosine,
        rounds=arguments.rounds, table=table(rows),
    )  # fmt: skip
    command = f"python -m smke_jax.studies.benchmarks.inference --export=EXPORT --photos=DIR --count={len(paths)}"
    record.write(arguments.out, "Embedding photos and texts", command, body)
    print(table(rows))
    say(f"{arguments.out} is written: {statistics.median(of_photos[OURS]):.1f} photos/s on {os.cpu_count()} cores")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("inference", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--export", type=Path, required=True, metavar="DIR", help="of smke export --format=hf")
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos")
    parser.add_argument("--count", type=int, default=128, metavar="N", help="how many of the photos")
    parser.add_argument("--texts", type=int, default=256, metavar="N", help="how many texts")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that all run in turns")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="of a cold process")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
