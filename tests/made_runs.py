"""Run directories as `smke train` leaves them, made up without training."""

import json
from pathlib import Path

from smke_jax.config import base
from smke_jax.training.record import flatten

SPEED = 100.0


def retrieval(r1: float, *, images: int = 500, width: float = 2.0) -> dict:
    """Figures of which the first is `r1` and the others are larger by one each."""
    directions = ("image_to_text", "text_to_image")
    values = {d: {f"r{k}": r1 + i + 3 * n for i, k in enumerate((1, 5, 10))} for n, d in enumerate(directions)}
    intervals = {d: {key: [x - width, x + width] for key, x in values[d].items()} for d in directions}
    return {"protocol": "made up", "n_images": images, "n_captions": 5 * images, "ci95": intervals, **values}


def make_run(
    path: Path, *, r1: float | None = 50.0, steps: int | None = None, evaluated_at: int | None = None,
    device: str = "NVIDIA H200", speed: float = SPEED, data: str = "photos", loss: float = 1.5, **fields,
) -> Path:  # fmt: skip
    """A run of 40 steps (of which `steps` are done), logged every 10; `fields` are config fields, dots as '__'."""
    config = base()
    config.update(batch_size=64, total_steps=40, num_devices=1)
    config.terms.itc = {"levels": ("out",)}
    given = {f"config.{key.replace('__', '.')}": value for key, value in fields.items()}
    flat = {**flatten(config), **given}
    steps = flat["config.total_steps"] if steps is None else steps
    path.mkdir(parents=True)
    record = {"config": flat, "identity": {"data": data}, "devices": [device] * max(1, flat["config.num_devices"])}
    (path / "run.json").write_text(json.dumps(record))
    lines = [
        {"step": step, "loss": loss + steps - step, "examples_per_second": speed, "data_wait": 0.02}
        for step in range(10, steps + 1, 10)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if r1 is not None:
        folder = path / "evals" / str(steps if evaluated_at is None else evaluated_at)
        folder.mkdir(parents=True)
        (folder / "retrieval.json").write_text(json.dumps(retrieval(r1)))
    return path
