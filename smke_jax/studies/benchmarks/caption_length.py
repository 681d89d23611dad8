"""What a train step gains by running captions in parts by their length.

    python -m smke_jax.studies.benchmarks.caption_length --config=FILE [--max_lengths=24,64] [--config.a.b=value …]

The step of the config with `split_by_length` and without it, in turns within one process.  Captions are as long as
those of its data; images, features and words are noise, and weights are random.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_config, override
from smke_jax.flags import names, positive, split_overrides
from smke_jax.parallel.mesh import rows_at_once
from smke_jax.passes.by_length import parts_of, share_of_tokens
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import in_turns, say, spread
from smke_jax.studies.benchmarks.sizes import made_up_captions
from smke_jax.studies.benchmarks.train_step import step_from_random, stepper
from smke_jax.tasks.base import caption_lengths
from smke_jax.training.build import Experiment, build_experiment, resolve

WHOLE, PARTS = "all at full width", "in parts by length"
TABLE = """\
| tokens of a caption | padded to | parts of a device's rows | tokens computed | examples/s | at full width | ratio |
|---|---|---|---|---|---|---|"""


def noise(experiment: Experiment, lengths: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of random rows, with captions of `lengths` drawn with replacement."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, like in experiment.batch.items():
        if like.dtype == np.uint8:
            found[name] = rng.integers(0, 256, like.shape, dtype=np.uint8)
        elif np.issubdtype(like.dtype, np.integer):
            found[name] = np.arange(like.shape[0], dtype=like.dtype)
        else:
            found[name] = rng.normal(size=like.shape).astype(like.dtype)
    rows, width = experiment.batch["text"].shape
    return found | made_up_captions(rng, rng.choice(lengths, rows), width, experiment.task.facts["vocab_size"])


def measure(config, *, rounds: int, seconds: float) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        experiment = build_experiment(config, Path(temporary))
        lengths = caption_lengths(experiment.task)
    batch = noise(experiment, lengths)
    forms = {PARTS: lengths, WHOLE: ()}
    runs = {name: stepper(*step_from_random(config, experiment, batch, of)) for name, of in forms.items()}
    for name, run in runs.items():
        say(f"{name}: the loss before the first step is {run(1):.5g}")
    speeds = in_turns(runs, rounds=rounds, seconds=seconds)
    examples = {name: [steps * config.batch_size for steps in of] for name, of in speeds.items()}
    width = experiment.batch["text"].shape[1]
    rows = rows_at_once(config.batch_size, experiment.mesh.size, config.micro_batch)
    parts = parts_of(lengths, rows, width, experiment.mesh.size)
    cells = (
        f"{lengths.mean():.1f}",
        str(width),
        ", ".join(f"{count} of {own}" for count, own in parts),
        f"{share_of_tokens(parts):.0%}",
        spread(examples[PARTS]),
        spread(examples[WHOLE]),
        spread([a / b for a, b in zip(examples[PARTS], examples[WHOLE], strict=True)]),
    )
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> int:
    """Measures and writes the table."""
    own, overrides = split_overrides(argv)
    arguments = _parser().parse_args(own)
    rows = []
    for width in arguments.max_lengths:
        config = override(load_config(arguments.config), [*overrides, f"--config.task.max_length={width}"])
        rows.append(measure(resolve(config), rounds=arguments.rounds, seconds=arguments.seconds))
        say(rows[-1])
    body = "\n".join(("Medians of rounds in turns, lowest and highest in brackets.", "", TABLE, *rows))
    command = "python -m smke_jax.studies.benchmarks.caption_length " + shlex.join(argv)
    record.write(arguments.out, "Captions in parts by their length", command, body)
    say(f"{arguments.out} is written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("caption_length", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE[:FORM]", help="what is trained")
    parser.add_argument(
        "--max_lengths", type=names, default=["24", "64"], metavar="N,…", help="tokens that captions are padded to"
    )
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="times that both run in turns")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
