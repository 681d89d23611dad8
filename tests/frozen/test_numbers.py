"""Three steps of a few recipes give the losses that they gave when they were written down: code is moved without harm.

    python tests/frozen/test_numbers.py     # writes them anew, after a change that is meant to change them

The recipes together run an average, banks, a quantiser, an autoencoder and two views.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import conftest  # noqa: F401  the flags of XLA

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from smke_jax import parts  # noqa: E402
from smke_jax.config_files import load_config  # noqa: E402
from smke_jax.parallel.mesh import put_batch  # noqa: E402
from smke_jax.training.build import build_experiment, build_step, resolve  # noqa: E402
from smke_jax.training.frozen import load_frozen, networks_of  # noqa: E402
from smke_jax.training.step import init_state  # noqa: E402

NUMBERS = Path(__file__).with_name("numbers.json")
RECIPES = ("s_smke", "momentum", "s_smke_vq", "image_vq", "teacher_flickr8k")
SIZES = {"image_size": 32, "patch_size": 16, "width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
VOCAB, IMAGES, STEPS = 300, 96, 3
# Another processor adds in another order, and Adam's first updates divide small gradients by themselves.
TOLERANCE = 1e-4


def small(name: str):
    """The config of that name in its form for Flickr8k, in fp32 and of test size."""
    c = load_config(f"{ROOT / 'configs' / name}.py:flickr8k")
    c.update(batch_size=16, num_devices=2, total_steps=10, epochs=0.0)
    for part in c.networks.values():
        if part.type == "two_towers":
            for tower in (part.image, part.text, part.shared):
                tower.update({key: x for key, x in SIZES.items() if key in tower})
            part.update(start="random", image_start="random", text_start="random")
            part.head = 24 if "quantizer" in c.networks else 32
        elif part.type == "frozen":
            with part.unlocked():
                part.model = parts.part("beit", **SIZES)
            part.start = "random"
        elif part.type == "encoder":
            part.model.update({key: x for key, x in SIZES.items() if key in part.model})
            part.projector = (24, 24)
        elif part.type == "autoencoder":
            part.update(num_codes=24, code_dim=4, num_heads=2, mlp_dim=48)
        elif part.type == "quantizer":
            part.update(num_codes=24, code_dim=4, start="random")
    for term in c.terms.values():
        if term.get("bank_size"):
            term.bank_size = 40
    if "max_length" in c.task:
        c.task.update(vocab_size=VOCAB, max_length=12)
    return resolve(c)


def batch_of(shapes, seed: int) -> dict[str, np.ndarray]:
    """Noise for images, two captions each for images 0, 1, …, and captions of 4 and more tokens."""
    rng, batch = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape, dtype = shapes[name].shape, shapes[name].dtype
        if name == "id":
            batch[name] = (np.arange(shape[0]) // 2).astype(dtype)
        elif name == "text":
            mask = np.arange(shape[1]) < rng.integers(4, shape[1] + 1, shape[0])[:, None]
            batch["text_mask"] = mask.astype(dtype)
            batch["text"] = (rng.integers(5, VOCAB, shape) * mask).astype(dtype)
        elif name != "text_mask":
            batch[name] = rng.integers(0, 256, shape, dtype)
    return batch


def measured(name: str) -> list[dict[str, float]]:
    """{'loss', 'grad_norm', '<term>/loss': number} of every step."""
    c = small(name)
    experiment = build_experiment(c, None, {"vocab_size": VOCAB, "num_images": IMAGES})
    recipe, mesh = experiment.recipe, experiment.mesh
    names = sorted(networks_of(recipe, recipe.forward))
    frozen = load_frozen(recipe, experiment.shapes, {}, mesh, seed=c.seed, names=names)
    tx, _, _, run = build_step(c, experiment)
    state, found = init_state(recipe, tx, mesh, experiment.batch, seed=c.seed, sharding=c.sharding), []
    for seed in range(STEPS):
        state, values = run(state, frozen, put_batch(batch_of(experiment.batch, seed), mesh))
        kept = [key for key in sorted(values) if key in ("loss", "grad_norm") or key.endswith("/loss")]
        found.append({key: float(values[key]) for key in kept})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_losses_are_those_that_were_written_down(name):
    expected, found = json.loads(NUMBERS.read_text())[name], measured(name)
    assert [list(step) for step in found] == [list(step) for step in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=TOLERANCE, err_msg=str(list(ours)))


if __name__ == "__main__":
    NUMBERS.write_text(json.dumps({name: measured(name) for name in RECIPES}, indent=1) + "\n")
