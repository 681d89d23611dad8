"""Training on a frozen network's stored features is training on the network, without its forward in the step."""

import json

import numpy as np
import pytest
import two_matrices
from two_matrices import two_matrices_config

from smke_jax.assets import ASSETS
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Asset
from smke_jax.forms import form_of
from smke_jax.losses.collective import gather
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term, no_state
from smke_jax.parts import part
from smke_jax.selections import SELECTIONS
from smke_jax.selections.base import Selection
from smke_jax.training import loop
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.loop import train_and_evaluate


def config(stored):
    c = two_matrices_config()
    c.total_steps, c.evaluators.retrieval.every = 4, 0
    if stored:
        c.assets.kept = part("stored_features")
    return c


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["target_itc/loss"] for line in lines if "target_itc/loss" in line]


def test_the_run_is_the_same_and_continues_from_disk(tmp_path, monkeypatch):
    two_matrices.keep_programs(monkeypatch)
    train_and_evaluate(config(False), tmp_path / "seen")
    real, steps = loop.put_batch, []

    def stop_after_two(batch, mesh):
        steps.append(set(batch))
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config(True), tmp_path / "kept")
    assert all(names == {"image", "text", "id", "target/cls"} for names in steps)
    features = tmp_path / "kept" / "assets" / "kept" / "target-cls.npy"
    assert np.load(features).shape == (16, 4)
    written = features.stat().st_mtime_ns
    monkeypatch.setattr(loop, "put_batch", real)
    train_and_evaluate(config(True), tmp_path / "kept")
    assert features.stat().st_mtime_ns == written, "computed a second time"
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "seen"), rtol=2e-5)

    features.write_bytes(features.read_bytes()[:200])
    with pytest.raises(UserError, match="target-cls.npy is damaged .*: delete it, and it is computed again"):
        train_and_evaluate(config(True), tmp_path / "kept")
    np.save(features, np.zeros((3, 2), np.float32))
    with pytest.raises(UserError, match="has 3 rows for 16 images: delete it"):
        train_and_evaluate(config(True), tmp_path / "kept")


def test_the_network_has_no_part_in_the_step_and_its_input_is_not_read():
    form = form_of("smoke")
    c = form.run()
    c.task = form.pairs(teacher_view="fixed")
    c.networks.teacher, c.networks.student = form.teacher(), form.student()
    c.terms.regress = part("regress")
    c.assets.kept = part("stored_features")
    experiment = build_experiment(resolve(c), None)
    assert {network for p in experiment.recipe.forward for network in p.networks} == {"student"}
    assert "target/cls" in experiment.batch and "teacher_image" not in experiment.batch
    assert "teacher_image" in experiment.whole
    assert [p.name for p in experiment.chosen(("target/cls",), experiment.whole)] == ["teacher"]


def test_what_is_made_of_a_view_that_changes_cannot_be_stored():
    form = form_of("smoke")
    for view in ("shared", "same", "independent"):
        c = form.run()
        c.task = form.pairs(teacher_view=view)
        c.networks.teacher, c.networks.student = form.teacher(), form.student()
        c.terms.regress = part("regress")
        c.assets.kept = part("stored_features")
        with pytest.raises(UserError, match="config.assets.kept: .* of (teacher_)?image, which changes "):
            build_experiment(resolve(c), None)


def test_one_vector_of_every_patch_is_too_much_to_store():
    with pytest.raises(UserError, match="target/tokens is one of every patch"):
        c = config(True)
        c.assets.kept.of = ("target/tokens",)
        build_experiment(resolve(c), None)


# ---- a corpus: an asset that a selection looks into as a whole


def corpus() -> Asset:
    """What the frozen matrix makes of every image of the train split."""
    return Asset(("target/cls",), by_id=False, whole=True)


def farthest() -> Selection:
    """'far' (b,): the row of the batch whose target is least like the corpus' first."""

    def run(state, arrays, scope):
        first = gather(state["assets/corpus"]["target/cls"], scope)[0]
        worst = (gather(arrays["target/cls"], scope) @ first).argmin()
        return {"far": 0 * arrays["id"] + worst.astype("int32")}

    return Selection("farthest", ("target/cls", "id"), ("far",), run, reads=("assets/corpus",))


def far() -> Term:
    """Moves every image away from the chosen text."""

    def value(params, slots, reps, scope):
        loss = (reps["image/out"] * reps["text/out@far"]).mean()
        return loss, {"chosen": reps["far"].mean() * 1.0}

    return Term(("image/out", "text/out@far", "far"), no_state, value)


def test_a_selection_reads_a_whole_asset(tmp_path, monkeypatch):
    for table, part_of in ((ASSETS, corpus), (SELECTIONS, farthest), (TERMS, far)):
        monkeypatch.setitem(table, part_of.__name__, part_of)
    c = config(False)
    del c.terms.target_itc
    c.total_steps = 1
    c.assets.corpus, c.selections.farthest, c.terms.far = part("corpus"), part("farthest"), part("far")
    real, seen = loop.put_batch, []
    monkeypatch.setattr(loop, "put_batch", lambda batch, mesh: seen.append(batch) or real(batch, mesh))
    train_and_evaluate(c, tmp_path)
    features = np.load(tmp_path / "assets" / "corpus" / "target-cls.npy")
    expected = np.argmin(features[seen[0]["id"]] @ features[0])
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["far/chosen"] == expected
