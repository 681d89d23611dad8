"""Random views of every image, embedded once: what is kept, which of them a row gets, and what is refused."""

import json
import logging

import jax
import numpy as np
import pytest

from smke_jax.convert.params_file import save_params
from smke_jax.data import datasets, pipeline
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.models.build import param_shapes
from smke_jax.parts import bert, itc, part, projections, stored_features, text_tower
from smke_jax.training import loop
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.frozen import load_frozen
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.restore import restore_run

SCENES = make_scenes(24, 16)
SIZES = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 8}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)


def config(folder, **asset):
    c = form_of("smoke").run()
    c.batch_size, c.total_steps, c.num_devices, c.log.report = 8, 3, 1, False
    c.task = form_of("smoke").pairs(unit="images", crop_scale=(0.3, 0.6))
    vit = part("vit", image_size=28, patch_size=14, **SIZES)
    c.networks.tower = part("frozen", start="random", model=vit, makes="photo", image="photo_image")
    c.networks.words = text_tower(start="random", model=bert(max_positions=12, **SIZES), dropout=0.1)
    c.networks.student = projections(image=("photo/feature",), width=8)
    c.terms.itc = itc(levels=("out",))
    given = {"of": ("photo/feature",), "augmentations": 3, "evaluated": ("gallery",), "folder": str(folder)}
    c.assets.photos = stored_features(**given | asset)
    c.evaluators.retrieval = form_of("smoke").retrieval()
    return c


def feature_of(experiment, seed, pixels):
    frozen = load_frozen(experiment.recipe, experiment.shapes, {}, experiment.mesh, seed=seed, names=("tower",))
    (p,) = experiment.chosen(("photo/feature",), ("photo_image",))
    return np.asarray(jax.jit(lambda x: p.run(frozen, {"photo_image": x}, None, False))(pixels)["photo/feature"])


def test_a_run_reads_one_of_the_views_of_each_row(tmp_path, monkeypatch):
    c, seen = config(tmp_path / "features"), []
    real = loop.put_batch
    monkeypatch.setattr(loop, "put_batch", lambda batch, mesh: seen.append(dict(batch)) or real(batch, mesh))
    opened, picture = [], pipeline.picture
    monkeypatch.setattr(pipeline, "picture", lambda *a, **k: opened.append(1) or picture(*a, **k))
    train_and_evaluate(c, tmp_path / "run")
    seen = [batch for batch in seen if "id" in batch]
    assert not opened, "the batches of the step opened images"
    assert [set(batch) for batch in seen] == [{"id", "text", "text_mask", "photo/feature"}] * 3

    experiment = build_experiment(resolve(c), None, {"num_images": 24, "vocab_size": 300})
    views = [experiment.task.augmented(i).columns["photo_image"].read(range(24)) for i in range(3)]
    assert views[0].shape == (24, 28, 28, 3) and len({x.tobytes() for x in views}) == 3
    own = np.stack([feature_of(experiment, c.seed, x) for x in views])
    drawn = []
    for batch in seen:
        distance = np.abs(own[:, batch["id"]] - batch["photo/feature"]).max(axis=2)  # (views, rows)
        drawn.append(distance.argmin(axis=0))
        assert distance.min(axis=0).max() < 1e-5
    assert set(np.concatenate(drawn)) == {0, 1, 2} and len({x.tobytes() for x in drawn}) == 3


def test_it_is_made_once_for_all_runs_and_continues_view_by_view(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "features"
    train_and_evaluate(config(folder), tmp_path / "one")
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "photos").glob("*.npy")}
    assert set(kept) == {f"photo-feature.{x}.npy" for x in ("view0", "view1", "view2", "gallery")}
    (folder / "photos" / "photo-feature.view1.npy").unlink()
    with caplog.at_level(logging.INFO):
        train_and_evaluate(config(folder), tmp_path / "two")
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "photos").glob("*.npy")}
    assert {name for name in kept if after[name] != kept[name]} == {"photo-feature.view1.npy"}
    assert "keeps 24 images × 3 views, 0.0 MB" in caplog.text
    first, second = (json.loads((tmp_path / x / "evals/3/retrieval.json").read_text()) for x in ("one", "two"))
    assert first["recall_sum"] == second["recall_sum"]

    # Stored features of the evaluated split are those that the network makes of it.
    run = restore_run(tmp_path / "one")
    found = run.evaluate(run.experiment.recipe.evaluators["retrieval"])
    assert found.record["recall_sum"] == pytest.approx(first["recall_sum"], abs=1e-6)


def test_a_row_gets_its_view_whatever_the_number_of_processes(tmp_path, monkeypatch):
    c = config(tmp_path / "features")
    kept, made = [], loop.StoredAsset
    monkeypatch.setattr(loop, "StoredAsset", lambda *a, **k: kept.append(made(*a, **k)) or kept[-1])
    train_and_evaluate(c, tmp_path / "run")
    ids, (asset,) = np.arange(8), kept
    whole = asset.rows({"id": ids}, 5)["photo/feature"]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    np.testing.assert_array_equal(asset.rows({"id": ids[4:]}, 5)["photo/feature"], whole[4:])
    assert np.abs(asset.rows({"id": ids[4:]}, 6)["photo/feature"] - whole[4:]).max() > 0


def test_features_of_other_weights_are_refused(tmp_path):
    """Such as those of another version of the package that they came from; and another size in the file."""
    model = {"type": "vit", "image_size": 28, "patch_size": 14, "mean": [0.5] * 3, "std": [0.5] * 3, **SIZES}

    def written(seed, **changes):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes({**model, **changes}))
        save_params(tmp_path / "tower.safetensors", params, {"model": {**model, **changes}})

    c = config(tmp_path / "features", augmentations=1, evaluated=())
    c.networks.tower = part("frozen", start=str(tmp_path / "tower.safetensors"), makes="photo", image="photo_image")
    del c.evaluators.retrieval
    written(0)
    train_and_evaluate(c, tmp_path / "run")
    for run, change in ((1, {}), (2, {"image_size": 14})):
        written(run, **change)
        with pytest.raises(
            UserError, match=r"view0.npy was made with another tower weights \(\w+ there, \w+ here\): give"
        ):
            train_and_evaluate(c.copy_and_resolve_references(), tmp_path / f"run{run}")


def test_half_precision_takes_half_the_room(tmp_path):
    train_and_evaluate(config(tmp_path / "half", half=True, augmentations=1), tmp_path / "run")
    array = np.load(tmp_path / "half" / "photos" / "photo-feature.view0.npy")
    assert array.dtype == np.float16 and array.shape == (24, 16)


def test_a_finished_run_is_evaluated_on_what_it_has_kept(tmp_path, monkeypatch):
    """The frozen tower runs again where what was kept is of other data, of other settings or damaged."""
    folder = tmp_path / "features"
    trained = train_and_evaluate(config(folder, half=True), tmp_path / "run").figures["retrieval"]
    run = restore_run(tmp_path / "run")
    evaluator, ran = run.experiment.recipe.evaluators["retrieval"], []
    frozen = type(run).frozen
    monkeypatch.setattr(type(run), "frozen", lambda self, names: ran.extend(names) or frozen(self, names))

    def evaluated():
        ran.clear()
        return run.evaluate(evaluator).record, "tower" in ran

    assert evaluated() == (trained.record, False)
    rows = np.load(folder / "photos" / "photo-feature.gallery.npy", mmap_mode="r+")
    rows[:] = rows[::-1]
    assert evaluated()[0] != trained.record, "it does read them"
    path = folder / "photos" / "photo-feature.gallery.json"
    sound = json.loads(path.read_text())
    others = ({"data": "others"}, {"config.networks.tower.pools": "['mean']"}, {"tower weights": "others"})
    for bad in (*(json.dumps(sound | other) for other in others), "{"):
        path.write_text(bad)
        assert evaluated()[1], bad


@pytest.mark.parametrize("field", ["close_up", "model.norm_eps"])
def test_a_record_that_is_older_than_a_field_holds_for_its_default(tmp_path, field):
    """`field` stands for one that a later version adds to networks, or to the parts within them."""
    folder, name = tmp_path / "features", f"config.networks.tower.{field}"
    train_and_evaluate(config(folder), tmp_path / "run")
    for path in (folder / "photos").glob("*.json"):
        said = json.loads(path.read_text())
        default = said.pop(name)
        path.write_text(json.dumps(said))
    train_and_evaluate(config(folder), tmp_path / "again")
    other = config(folder)
    with other.unlocked():
        other.networks.tower.update_from_flattened_dict({field: 0.5})
    with pytest.raises(UserError, match=rf"made with another {name} \({default} there, 0.5 here\)"):
        train_and_evaluate(other, tmp_path / "other")


def test_features_of_something_else_are_refused(tmp_path):
    folder = tmp_path / "features"
    train_and_evaluate(config(folder), tmp_path / "run")
    other = config(folder)
    other.networks.tower.pools = ("mean",)
    with pytest.raises(UserError, match=r"view0.npy was made with another config.networks.tower.pools .*cls.*mean"):
        train_and_evaluate(other, tmp_path / "pools")
    other = config(folder)
    other.task.crop_scale = (0.9, 1.0)
    with pytest.raises(UserError, match="was made with another views .*: give another folder"):
        train_and_evaluate(other, tmp_path / "crop")
    other = config(folder)  # at another size
    other.networks.tower.model.image_size = 42
    with pytest.raises(UserError, match="view0.npy was made with another config.networks.tower.model.image_size"):
        train_and_evaluate(other, tmp_path / "size")
    other = config(folder)
    other.networks.tower.close_up = 0.5
    with pytest.raises(UserError, match=r"made with another config.networks.tower.close_up \(1.0 there, 0.5 here\)"):
        train_and_evaluate(other, tmp_path / "close_up")
    record = folder / "photos" / "photo-feature.view0.json"
    record.write_text("{")
    with pytest.raises(UserError, match="view0.json is missing or damaged: delete photo-feature.view0.npy"):
        train_and_evaluate(config(folder), tmp_path / "damaged")


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(UserError, match="words/feature is made by 'words', which is trained"):
        build_experiment(resolve(config(tmp_path, of=("words/feature",))), None)
    with pytest.raises(UserError, match="augmentations is -1: it has to be at least 0"):
        build_experiment(resolve(config(tmp_path, augmentations=-1)), None)
    with pytest.raises(UserError, match="made of photo_image, which changes with the epoch"):
        build_experiment(resolve(config(tmp_path, augmentations=0)), None)


def test_too_little_room_is_said_before_anything_is_made(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("smke_jax.training.stored.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="takes 0.0 GB and .* has 0.0 GB free: give another folder, or fewer augment"):
        train_and_evaluate(config(tmp_path / "features"), tmp_path / "run")
    assert not (tmp_path / "features").exists()


def test_one_forward_makes_all_that_is_missing_of_a_view(tmp_path, monkeypatch):
    calls, real = [], loop.Encoder.__call__

    def noting(self, names, split):
        calls.append(tuple(names))
        return real(self, names, split)

    monkeypatch.setattr(loop.Encoder, "__call__", noting)
    both = ("photo/feature", "photo/cls")
    c = config(tmp_path / "features", of=both, augmentations=1)
    with pytest.raises(UserError, match="config.assets.photos keeps photo/cls, which nothing in the step reads"):
        train_and_evaluate(c, tmp_path / "unread")
    c.networks.student.image = both
    train_and_evaluate(c, tmp_path / "run")
    assert calls[:2] == [both] * 2  # of the random view, and of the gallery
    kept = {path.name for path in (tmp_path / "features" / "photos").glob("*.npy")}
    assert kept == {f"photo-{what}.{kind}.npy" for what in ("feature", "cls") for kind in ("view0", "gallery")}
