"""Three steps of a few recipes, from the config to the files of a run, give the losses that were written down.

    python tests/frozen/test_numbers.py     # writes them anew, after a change that is meant to change them

The losses are those of batches of noise, so that they depend neither on how images are decoded nor on a vocabulary.
Every kind of part occurs in the recipes.  So code is moved without harm, and no part stops working in a run.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import conftest  # noqa: F401  the flags of XLA

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from smke_jax import evaluators, networks, objectives, selections, tasks  # noqa: E402
from smke_jax.config_files import load_config  # noqa: E402
from smke_jax.data import datasets  # noqa: E402
from smke_jax.data.scenes import make_scenes  # noqa: E402
from smke_jax.parts import part  # noqa: E402
from smke_jax.training import loop, optimizer  # noqa: E402

NUMBERS = Path(__file__).with_name("numbers.json")
STEPS = 3
WORDS = 40  # of the vocabulary: captions of noise have no others
# Another processor adds in another order, and Adam's first updates divide small gradients by themselves.
TOLERANCE = 1e-4

# {config: terms and selections that are added to it}.  All others are these with other terms, fields and sizes, which
# are tested where they are defined.
COVERING = {
    "momentum": ("proximal_itc", "siglip", "relational_kl"),  # an average; banks of three kinds beside one another
    "itm": ("target_itc", "cosine", "mixup", "structure"),  # selections, and passes and a term on what they chose
    "s_smke_vq": ("cmli",),  # a quantiser: a second frozen network that reads of the first
    "target_cmli:cosine": ("target_cmli",),  # tokens of the towers and of the teacher
    "shre_ranking": (),  # a teacher of classes, and an MLP as the shared layers
    "image_vq": (),  # images alone, an autoencoder, and slots that a pass reads
    "mamo": ("momentum_itc",),  # towers with a fusion, masked views of both, an average that sees the same masks
    "mim_image": (),  # hidden patches: a selection that draws, and an evaluator that adds an array
    "teacher_scenes": ("vicreg", "reconstruct"),  # two views of an image, an encoder, Muon, a probe as the evaluator
}
# Of what is added.  The order of rows does not matter to `structure`, so that it can read the rows that `mixup` names.
FIELDS = {"structure": {"before": ("image/fc1@mixup",), "after": ("image/out@mixup",)}}
ELSEWHERE = {
    "projections", "text_tower",  # tests/training/test_stored_views.py trains them
    "layered_image", "layered_text", "layer_means", "layer_agreement", "text",  # tests/training/test_layered.py
}  # fmt: skip
ELSEWHERE |= {"labelled_text", "text_classifier", "classify", "score", "labels"}  # tests/training/test_finetune_text.py
ELSEWHERE |= {"labelled_images", "classifier", "accuracy", "probe", "zero_shot"}  # tests of their own
ELSEWHERE |= {"image_tower", "corpus_negatives", "intra_modal", "score_kl", "hard_itc", "captions"}  # test_two_stage.py
ROUNDED = "shre_ranking"  # runs in bfloat16, as its config has it: no number is expected of it


def covering(name: str):
    """The config of that name in its smallest form, with the terms of COVERING, in fp32 but for ROUNDED."""
    stem, _, kind = name.partition(":")
    c = load_config(f"{ROOT / 'configs' / stem}.py:{','.join(filter(None, (kind, 'smoke')))}")
    assert c.total_steps == 2 and c.log.every == 1
    c.total_steps, c.log.report = STEPS, False
    for added in COVERING[name]:
        section = c.selections if added in selections.SELECTIONS else c.terms
        section[added] = part(added, **FIELDS.get(added, {}))
    if name == "itm":
        c.terms.target_itc.bank_size = 40
    if "cmli" in COVERING[name]:
        c.evaluators.words = part("word_patches", split="gallery")
    c.num_devices = 1 if "student" in c.networks else 2
    if "retrieval" in c.evaluators and name != ROUNDED:  # once is enough
        del c.evaluators.retrieval
    if name != ROUNDED:
        for network in c.networks.values():
            if "dtype" in network:
                network.dtype = "float32"
        if "student" in c.networks:  # what is drawn at random is the same too
            c.networks.student.text.dropout = 0.2
            c.networks.student.image.token_drop = 0.0 if stem == "target_cmli" else 0.5
        # The first update is as large as the others, so that the second step is that of other parameters.
        c.optimizer.update(learning_rate=2e-3, reference_batch=0, warmup_fraction=0.0, clip_norm=1.0)
    return c


def noise(batch, seed: int) -> dict[str, np.ndarray]:
    """A batch of the same shapes: two captions each of images 0, 1, …, with 4 and more tokens."""
    rng, made = np.random.default_rng(seed), {}
    for name in sorted(batch):
        shape, dtype = batch[name].shape, batch[name].dtype
        if name == "id":
            made[name] = (np.arange(shape[0]) // 2).astype(dtype)
        elif name == "text":
            mask = np.arange(shape[1]) < rng.integers(4, shape[1] + 1, shape[0])[:, None]
            made["text_mask"] = mask.astype(dtype)
            made["text"] = (rng.integers(5, WORDS, shape) * mask).astype(dtype)
            place = np.arange(shape[1])
            words = np.where((place > 0) & (place < mask.sum(1, keepdims=True) - 1), place - 1, -1)
            made |= {"text_words": words.astype(dtype)} if "text_words" in batch else {}
        elif name not in made and name != "text_mask":
            made[name] = rng.integers(0, 256, shape, dtype)
    return made


def run(name: str, workdir: Path) -> tuple[loop.Outcome, list[dict[str, float]]]:
    """(how the run ended, {'loss', 'grad_norm', '<term>/loss': number} of every step)."""
    scenes, put, seeds = make_scenes(96, 16), loop.put_batch, iter(range(STEPS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "scenes", lambda *_: scenes)
        patch.setattr(loop, "put_batch", lambda batch, mesh: put(noise(batch, next(seeds)), mesh))
        outcome = loop.train_and_evaluate(covering(name), workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    steps = [{key: x for key, x in line.items() if key in ("step", "loss", "grad_norm") or key.endswith("/loss")}
             for line in lines if "loss" in line]  # fmt: skip
    assert [step.pop("step") for step in steps] == list(range(1, STEPS + 1))
    return outcome, steps


def of_package(table: dict) -> set[str]:
    """The names in a table of builders, less those that other tests have put there."""
    return {name for name, builder in table.items() if builder.__module__.startswith("smke_jax.")}


def test_the_covering_set_covers():
    """Every kind of part occurs in it but assets, of which tests/training/test_assets.py trains runs."""
    configs = [covering(name) for name in COVERING]
    for section, table in (
        ("networks", networks.NETWORKS), ("selections", selections.SELECTIONS), ("terms", objectives.TERMS),
        ("evaluators", evaluators.EVALUATORS),
    ):  # fmt: skip
        assert {own.type for c in configs for own in c[section].values()} == of_package(table) - ELSEWHERE, section
    assert {c.task.type for c in configs} == of_package(tasks.TASKS) - ELSEWHERE
    assert {c.optimizer.name for c in configs} == set(optimizer.OPTIMIZERS)
    assert {c.networks.student.shared.type for c in configs if "student" in c.networks} == {"mlp", "transformer"}


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERING)
def test_it_runs_and_its_losses_are_those_that_were_written_down(name, tmp_path):
    outcome, found = run(name, tmp_path)
    config = covering(name)
    assert outcome.step == STEPS and set(outcome.figures) == set(config.evaluators)
    for term in config.terms:
        assert all(math.isfinite(step[f"{term}/loss"]) for step in found), term
    assert (tmp_path / "checkpoints" / str(STEPS)).is_dir()
    for evaluator in config.evaluators:
        assert json.loads((tmp_path / "evals" / str(STEPS) / f"{evaluator}.json").read_text())
    if name == ROUNDED:
        return
    expected = json.loads(NUMBERS.read_text())[name]
    assert [sorted(step) for step in found] == [sorted(step) for step in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            np.testing.assert_allclose(ours[key], value, rtol=TOLERANCE, atol=1e-6, err_msg=key)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        numbers = {name: run(name, Path(folder) / str(i))[1] for i, name in enumerate(COVERING) if name != ROUNDED}
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
