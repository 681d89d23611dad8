"""The smallest run: random vectors through two matrices.  For tests that need some network, and not a Transformer.

It has all that a run can have: two views of every row, a frozen network, a moving average, a memory bank, an evaluator.

python tests/two_matrices.py WORKDIR [STEPS]     trains it; STEP_SLEEP is how many seconds every step waits
"""

import math
import os
import sys
import time
from collections.abc import Mapping

import grain
import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.convert.params_file import digests, fit, load_params
from smke_jax.errors import UserError
from smke_jax.networks import NETWORKS
from smke_jax.networks.base import Network, Start
from smke_jax.networks.frozen import ROLE
from smke_jax.networks.start import RANDOM
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term, no_state
from smke_jax.parts import base, part
from smke_jax.passes.base import Pass
from smke_jax.tasks import TASKS
from smke_jax.tasks.base import BatchPlan, Column, Draft, Split, Task

SIZES = {"image": 6, "text": 5}  # channels of the vectors that stand for them
ROWS = {"train": 16, "dev": 6}  # images; each has two texts
WIDTH = 4


def vectors(
    *, known: Mapping[str, int] | None = None, digest: str = "vectors", damaged_at: int = 0, infinite_at: int = 0
) -> Draft:
    """'image' (6,) and 'text' (5,), two texts to an image, and 'id'.

    digest:      of the data, so that a test can change it
    damaged_at:  the batch, counted from 1, that cannot be read; 0 for none
    infinite_at: the batch with a number in its 'text' that is not finite
    """
    facts = dict(known) if known is not None else {"num_images": ROWS["train"], "classes": 3}

    def arrays(split):
        if split not in ROWS:
            raise UserError(f"no split {split!r}")
        rng = np.random.default_rng(list(ROWS).index(split))
        count = {"image": ROWS[split], "text": 2 * ROWS[split]}
        return {name: rng.normal(size=(n, SIZES[name])).astype(np.float32) for name, n in count.items()}

    def batches(plan: BatchPlan):
        made, share = arrays("train"), plan.batch_size // plan.process[1]

        def load(row):
            every = {"image": made["image"][row // 2], "text": made["text"][row], "id": np.int32(row // 2)}
            return {name: x for name, x in every.items() if plan.arrays is None or name in plan.arrays}

        rows = grain.MapDataset.range(2 * ROWS["train"]).seed(plan.seed).shuffle().repeat().map(load)
        whole = rows.batch(plan.batch_size).map(
            lambda batch: {name: x[plan.process[0] * share :][:share] for name, x in batch.items()}
        )
        return _Batches(whole, damaged_at, infinite_at)

    def split(name):
        made = arrays(name)
        columns = {k: Column(len(x), lambda rows, x=x: x[rows], f"{x.shape[1]} numbers") for k, x in made.items()}
        captions = [f"text {i}" for i in range(len(made["text"]))]
        about = {"captions": captions, "caption_image": np.arange(len(captions)) // 2}
        return Split(f"vectors {name}", f"{digest}-{name}", columns, about)

    example = {name: jax.ShapeDtypeStruct((size,), jnp.float32) for name, size in SIZES.items()}
    task = Task(
        facts=facts,
        example=lambda: {**example, "id": jax.ShapeDtypeStruct((), jnp.int32)},
        length=lambda: 2 * ROWS["train"],
        identity=lambda: {"data": digest},
        batches=batches,
        split=split,
        train="train",
        fixed=dict.fromkeys(SIZES, "id"),
    )
    return Draft(facts, lambda sizes: task)


class _Batches:
    def __init__(self, dataset, damaged_at, infinite_at):
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._iterator, self._next = iter(dataset.to_iter_dataset(options)), 0
        self._damaged_at, self._infinite_at = damaged_at, infinite_at

    def __next__(self):
        self._next += 1
        if self._next == self._damaged_at:
            raise UserError(f"batch {self._next} is damaged")
        batch = next(self._iterator)
        if self._next == self._infinite_at:
            batch["text"][-1, 0] = np.inf
        return batch

    def get_state(self):
        return {"next": self._next, "iterator": self._iterator.get_state()}

    def set_state(self, state):
        self._next = state["next"]
        self._iterator.set_state(state["iterator"])

    def close(self):
        self._iterator.close()


def two_matrices(*, width: int = WIDTH, dtype: str = "float32", trained: tuple[str, ...] = ()) -> Network:
    """'image/out' and 'text/out' (B, width), each by a matrix, and the same as 'image/head' and 'text/head'."""

    def init(key, specs):
        keys = jax.random.split(key)
        return {side: {"kernel": jax.random.normal(k, (SIZES[side], width))} for side, k in zip(SIZES, keys)}

    def encode(name, side):
        def run(params, arrays, key, train):
            x = (arrays[side].astype(dtype) @ params[name][side]["kernel"].astype(dtype)).astype(jnp.float32)
            return {f"{side}/out": x, f"{side}/head": x}

        made = (f"{side}/out", f"{side}/head")
        return Pass(f"{name}/{side}", (name,), (side,), made, run, watched=made[:1])

    def forward(name, specs):
        return tuple(encode(name, side) for side in SIZES)

    return Network(init, forward, trained=tuple(trained) or True)


def one_matrix(*, start: str = RANDOM, width: int = WIDTH, pixels: int = 0) -> Network:
    """A frozen matrix: 'target/cls' (B, width) of a vector 'image', or of an image of `pixels` per side."""

    def init(key, specs):
        (image,) = specs.values()
        return {"kernel": jax.random.normal(key, (math.prod(image.shape[1:]), width))}

    def begin(shapes):
        return None if start == RANDOM else Start(fit(shapes, load_params(start), source=start), {}, digests(start))

    def forward(name, specs):
        image = ROLE if ROLE in specs else "image"

        def run(params, arrays, key, train):
            rows = arrays[image].astype(jnp.float32).reshape(len(arrays[image]), -1)
            return {"target/cls": rows @ params[name]["kernel"]}

        return (Pass(name, (name,), (image,), ("target/cls",), run),)

    return Network(init, forward, begin, trained=False, sizes={ROLE: pixels} if pixels else {})


def alike() -> Term:
    """Half the squared distance of an image from its text."""

    def value(params, slots, reps, scope):
        return jnp.mean(jnp.square(reps["image/out"] - reps["text/out"])) / 2, {}

    return Term(("image/out", "text/out"), no_state, value)


TASKS["vectors"] = vectors
NETWORKS |= {"two_matrices": two_matrices, "one_matrix": one_matrix}
TERMS["alike"] = alike


def two_matrices_config(*terms: str):
    """Six steps across an epoch's end, saved at 2, 4 and 6, evaluated and saved at 3 and 6.

    Its terms are a 'target_itc' with a bank, or those of the given names as they are by default.
    """
    c = base()
    c.update(batch_size=8, total_steps=6, num_devices=2, eval_batch_size=8)
    c.checkpoint.every, c.log.every = 2, 1
    c.log.report = False  # tests/training/test_reporter.py has reports
    c.optimizer.update(learning_rate=1e-2, reference_batch=0, warmup_fraction=0.0)
    c.task = part("vectors")
    c.networks.net = part("two_matrices")
    for name in terms:
        c.terms[name] = part(name)
    if not terms:
        c.networks.target = part("one_matrix")
        c.terms.target_itc = part("target_itc", bank_size=20)
    c.evaluators.retrieval = part("retrieval", split="dev", every=3)
    return c


def keep_programs(patch) -> None:
    """Runs of an equal config share their compiled step, as long as `patch`, a MonkeyPatch, lasts."""
    from smke_jax.training import opening

    made, build_step = {}, opening.build_step

    def kept(config, experiment, lengths):
        key = config.to_json(), tuple(lengths)
        if key not in made:
            made[key] = build_step(config, experiment, lengths)
        return made[key]

    patch.setattr(opening, "build_step", kept)


def main(workdir: str, steps: str = "6") -> int:
    from smke_jax.__main__ import run_program
    from smke_jax.training import loop

    put = loop.put_batch

    def slow_put(batch, mesh):
        time.sleep(float(os.environ.get("STEP_SLEEP", "0")))
        return put(batch, mesh)

    loop.put_batch = slow_put
    config = two_matrices_config()
    config.total_steps = int(steps)

    def train(argv):
        loop.train_and_evaluate(config, workdir)
        return 0

    return run_program(train, [])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
