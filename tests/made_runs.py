"""Run directories as `smke train` leaves them, made up without training."""

import json
from pathlib import Path

import numpy as np

from smke_jax.evaluators.ranks import Ranks
from smke_jax.forms import form_of
from smke_jax.parts import itc
from smke_jax.training.record import flatten

SPEED = 100.0


def retrieval(r1: float, *, images: int = 500, width: float = 2.0) -> dict:
    """Figures of which the first is `r1` and the others are larger by one each."""
    directions = ("image_to_text", "text_to_image")
    values = {d: {f"r{k}": r1 + i + 3 * n for i, k in enumerate((1, 5, 10))} for n, d in enumerate(directions)}
    intervals = {d: {key: [x - width, x + width] for key, x in values[d].items()} for d in directions}
    return {"protocol": "made up", "n_images": images, "n_captions": 5 * images, "ci95": intervals, **values}


def made_ranks(found: float, *, seed: int = 0, images: int = 200) -> Ranks:
    """Of `images` images with five captions each, of whose queries a share of `found` has rank 1 and the others 20.

    The same queries are found in every gallery of one `seed`, and more of them for a larger share.
    """
    rng = np.random.default_rng(seed)
    ranks = (np.where(rng.random(count) < found, 1, 20) for count in (images, 5 * images))
    return Ranks(*ranks, np.repeat(np.arange(images), 5))


def figures_of(ranks: Ranks) -> dict:
    """What an evaluation writes of these ranks, with made-up intervals."""
    recalls = iter(ranks.recalls().tolist())
    figures = {direction: {key: next(recalls) for key in ("r1", "r5", "r10")}
               for direction in ("image_to_text", "text_to_image")}  # fmt: skip
    return {**retrieval(0.0, images=len(ranks.image_to_text)), **figures}


def make_run(
    path: Path, *, r1: float | None = 50.0, steps: int | None = None, evaluated_at: int | None = None,
    device: str = "NVIDIA H200", speed: float = SPEED, data: str = "photos", loss: float = 1.5,
    ranks: Ranks | None = None, **fields,
) -> Path:  # fmt: skip
    """A run of 40 steps (of which `steps` are done), logged every 10; `fields` are config fields, dots as '__'.

    It is of a student with the term 'itc' and the evaluator 'retrieval', as task__flip, networks__student__head.
    Its evaluation has the figures of `ranks`, or those of `retrieval(r1)` and no ranks.
    """
    form = form_of("smoke")
    config = form.run()
    config.update(batch_size=64, total_steps=40, num_devices=1)
    config.task, config.networks.student = form.pairs(), form.student()
    config.terms.itc = itc(levels=("out",))
    config.evaluators.retrieval = form.retrieval()
    given = {f"config.{key.replace('__', '.')}": value for key, value in fields.items()}
    flat = {**flatten(config), **given}
    steps = flat["config.total_steps"] if steps is None else steps
    path.mkdir(parents=True)
    record = {
        "config": flat,
        "identity": {"data": data},
        "facts": {"num_images": 16, "vocab_size": 60},
        "devices": [device] * max(1, flat["config.num_devices"]),
    }
    (path / "run.json").write_text(json.dumps(record))
    lines = [
        {"step": step, "loss": loss + steps - step, "examples_per_second": speed, "data_wait": 0.02,
         "peak_memory_gib": step / 10}
        for step in range(10, steps + 1, 10)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if r1 is not None:
        folder = path / "evals" / str(steps if evaluated_at is None else evaluated_at)
        folder.mkdir(parents=True)
        (folder / "retrieval.json").write_text(json.dumps(figures_of(ranks) if ranks else retrieval(r1)))
        if ranks:
            np.savez(folder / "retrieval.npz", **ranks._asdict())
    return path
