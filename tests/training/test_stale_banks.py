"""What the thesis saw of banks, on a small run (spec 11, 12): the student's own past ruins it, its average does not."""

import json

import pytest

from smke_jax.config import base, smoke, towers
from smke_jax.training.loop import train_and_evaluate

STEPS, BANK = 500, 256


def trained(workdir, passes, **options):
    """The last figures of ITC against a bank on the built-in scenes: spread of the embeddings and mean R@10."""
    c = base()
    c.terms.bank_itc = {}
    c.passes = passes
    c = smoke(c)
    c.update(batch_size=32, total_steps=STEPS, num_devices=1, ema_decay=0.99)
    c.teacher.checkpoint = ""
    c.terms.bank_itc = {"bank_size": BANK, **options}
    towers(c, init_std=0.0, norm_order="pre")
    c.optimizer.update(learning_rate=2e-3, reference_batch=0)
    c.eval.every, c.checkpoint.every, c.log.every = 0, 0, 50
    metrics = train_and_evaluate(c, workdir).metrics
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    last = [row for row in rows if "grad_norm" in row][-1]
    spread = min(last["embedding_std/image/out"], last["embedding_std/text/out"])
    return spread, (metrics["image_to_text"]["r10"] + metrics["text_to_image"]["r10"]) / 2


@pytest.mark.slow
def test_the_past_of_a_student_ruins_it_and_a_momentum_encoder_repairs_that(tmp_path):
    """A bank 8 times the batch of features that the student has long moved away from: negatives that it cannot move,
    and that it escapes by leaving them all at once.  Chance is a mean R@10 of 2 %."""
    spread, recall = trained(tmp_path / "fifo", ("student",))
    assert spread < 0.1 and recall < 3.5, (spread, recall)
    spread, recall = trained(tmp_path / "momentum", ("momentum", "student"), keys="momentum/")
    assert spread > 0.15 and recall > 3.5, (spread, recall)
