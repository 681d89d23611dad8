"""The smallest whole run: 16 pictures with two captions each, random teacher, memory bank, two devices.

python tests/tiny.py train --config=FILE --workdir=DIR      `smke`, knowing the source 'tiny'; TINY_SLEEP delays steps
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from smke_jax.data.datasets import SOURCES
from smke_jax.data.sources import ArraySource
from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.parts import data2vec2, encoder, itc, target_itc, vicreg

SIZES = {"train": 16, "dev": 6}
WORDS = "red blue green dog cat bird runs sits over under big small".split()


class TinySource(ArraySource):
    """Noise pictures; an epoch of 'train' is 4 batches of 8 pairs."""

    dataset = "tiny"

    def __init__(self, split: str, digest: str = "tiny"):
        if split not in SIZES:
            raise UserError(f"no split {split!r}")
        rng = np.random.default_rng(list(SIZES).index(split))
        captions = [[" ".join(rng.choice(WORDS, 4)) for _ in range(2)] for _ in range(SIZES[split])]
        super().__init__(rng.integers(0, 256, (SIZES[split], 32, 32, 3), dtype=np.uint8), captions)
        self.digest, self.split = f"{digest}-{split}", split

    def __repr__(self) -> str:
        return f"TinySource({self.split})"


SOURCES["tiny"] = lambda split, data, weights, caps: TinySource(split)


def tiny_config():
    """Six steps across an epoch's end, saved at 2, 4 and 6, evaluated and saved at 3 and 6.

    Its parts: the task of pairs, the networks 'teacher' and 'student', the terms 'itc' and 'target_itc', and the
    evaluator 'retrieval' on the split dev.
    """
    form = form_of("smoke")
    c = form.run()
    c.update(batch_size=8, total_steps=6, num_devices=2, eval_batch_size=8)
    c.checkpoint.every = 2
    c.log.report = False  # tests/training/test_reporter.py has reports
    c.task = form.pairs()
    c.task.update(source="tiny", vocab_size=60, max_length=8)
    c.networks.teacher = form.teacher()
    c.networks.student = form.student()
    c.networks.teacher.dtype = c.networks.student.dtype = "float32"
    c.terms.itc = itc(levels=("fc1", "out"))
    c.terms.target_itc = target_itc(bank_size=form.bank(65_536))
    c.evaluators.retrieval = form.retrieval()
    c.evaluators.retrieval.update(split="dev", every=3)
    return c


def tiny_stages():
    """Two stages of two steps each, saved after both: a teacher from images alone, and a student that begins with it.

    The student is evaluated after each step.
    """
    form = form_of("smoke")
    teacher, student = form.run(), tiny_config()
    teacher.update(batch_size=8, num_devices=2)
    teacher.task = form.images(views=2)
    teacher.task.source = "tiny"
    sizes = {**form.sizes, **form.images_of, "depth": 2}
    teacher.networks.views = encoder(model=data2vec2(**sizes), projector=(16, 16))
    teacher.terms.vicreg = vicreg()
    student.networks.teacher = form_of("").teacher(start="stage:teacher", model=None, dtype="float32")
    student.networks.student.image_start = "stage:teacher"
    student.terms.target_itc.learnable_scale = True
    student.total_steps, student.evaluators.retrieval.every = 2, 1
    teacher.checkpoint.every = student.checkpoint.every = 1
    return {"teacher": teacher, "student": student}


CONFIG_FILE = f"""'''The tiny recipe.'''
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny import tiny_config as get_config
"""
STAGES_FILE = f"{CONFIG_FILE}from tiny import tiny_stages as get_stages\n"


def main(argv: list[str]) -> int:
    from smke_jax.__main__ import main as smke
    from smke_jax.training import loop

    put = loop.put_batch

    def slow_put(batch, mesh):
        time.sleep(float(os.environ.get("TINY_SLEEP", "0")))
        return put(batch, mesh)

    loop.put_batch = slow_put
    return smke(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
