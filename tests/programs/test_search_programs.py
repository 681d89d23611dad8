"""`smke index` and `smke search` with the smallest model and a few photos."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from made_up import jpeg
from tiny_export import save_model

import smke_jax
from smke_jax.__main__ import main
from smke_jax.convert.params_file import save_params
from smke_jax.embedder import Embedder
from smke_jax.models.build import param_shapes

NAMES = ("a.jpg", "b.jpg", "trip/c.jpg", "trip/d.jpg", "trip/new\nline.jpg")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def embedder(model) -> Embedder:
    return smke_jax.load(model)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> tuple[Path, Path]:
    """(photos, index): not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(NAMES):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(jpeg(seed))
        os.utime(folder / "photos" / name, (1_700_000_000 + seed * 86_400,) * 2)
    (folder / "photos/broken.jpg").write_bytes(b"no photo")
    assert index(model, folder / "photos", folder / "index") == 0
    return folder / "photos", folder / "index"


@pytest.fixture
def copy(made, tmp_path) -> tuple[Path, Path]:
    """(photos, index) to change; the index is still of the first photos."""
    shutil.copytree(made[1], tmp_path / "index")
    return made[0], tmp_path / "index"


def index(model: Path, photos: Path, out: Path, *more: str) -> int:
    return main(["index", f"--model={model}", f"--photos={photos}", f"--out={out}", *more])


def search(capsys, index, *argv) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["search", f"--index={index}", *map(str, argv)])
    return status, *capsys.readouterr()


def as_json(capsys, *argv) -> dict:
    status, out, _ = search(capsys, *argv, "--json")
    assert status == 0
    return json.loads(out)


def test_indexing_counts_and_lists(model, made, tmp_path, capsys):
    photos, out = made
    assert index(model, photos, tmp_path / "index") == 0
    printed = capsys.readouterr().out
    assert "6 photos found: 0 unchanged, 0 moved or copied, 5 new, 0 changed, 1 skipped" in printed
    assert "1 × not an image file (first: 'broken.jpg')" in printed and "skipped.jsonl" in printed
    assert index(model, photos, tmp_path / "index") == 0
    assert "5 unchanged, 0 moved or copied, 0 new, 0 changed, 1 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "plus", "images", "minus"),
    [
        (["red dog"], ["red dog"], [], []),
        (["red dog", "snow"], ["red dog", "snow"], [], []),
        (["dog", "--minus=snow", "--minus=blue"], ["dog"], [], ["snow", "blue"]),
        (["--image=PHOTOS/b.jpg"], [], ["b.jpg"], []),
        (["blue", "--image=PHOTOS/trip/c.jpg", "--minus=dog"], ["blue"], ["trip/c.jpg"], ["dog"]),
    ],
)
def test_photos_in_the_order_of_the_embedders_cosines(argv, plus, images, minus, made, embedder, capsys):
    photos, out = made
    argv = [x.replace("PHOTOS", str(photos)) for x in argv]
    hits = as_json(capsys, out, *argv, "--min_score=-1")["hits"]
    vector = sum(embedder.encode_texts(text) for text in plus) + sum(
        embedder.encode_images(photos / image) for image in images
    )
    vector = vector - sum(embedder.encode_texts(text) for text in minus)
    scores = embedder.encode_images([photos / name for name in NAMES]) @ (vector / np.linalg.norm(vector))
    np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=2e-3)
    best = NAMES[int(np.argmax(scores))]
    assert hits[0]["path"] == str(photos / best) or np.ptp(np.sort(scores)[-2:]) < 2e-3
    assert (hits[0]["fit"] is None) == (len(plus) != 1 or bool(images) or bool(minus))


def test_a_text_without_an_answer_says_so(made, capsys, monkeypatch):
    monkeypatch.setattr("smke_jax.search.cutoff.ABOVE_CHANCE", 100.0)
    status, out, err = search(capsys, made[1], "red dog")
    assert (status, out) == (1, "") and 'no photo answers "red dog"; the closest of 5, ' in err
    assert "--min_score=-1 shows all" in err
    status, out, _ = search(capsys, made[1], "red dog", "--json")
    assert status == 1 and json.loads(out)["hits"] == []


def test_dates_folders_and_their_order(made, capsys):
    photos, out = made
    hits = as_json(capsys, out, "dog", "--min_score=-1", "--sort=date", "--folder=trip")["hits"]
    assert [hit["path"] for hit in hits] == [str(photos / name) for name in NAMES[:1:-1]]
    hits = as_json(capsys, out, "dog", "--min_score=-1", "--since=2023-11-17")["hits"]
    assert {hit["path"] for hit in hits} == {str(photos / name) for name in NAMES[3:]}
    status, _, err = search(capsys, out, "dog", "--min_score=-1", "--since=2030")
    assert status == 1 and err == 'no photo answers "dog" (--min_score=-1 shows all)\n'


def test_lines_and_paths(made, capfdbinary):
    photos, out = made
    main(["search", "dog", f"--index={out}", "--min_score=-1", "--folder=trip", "--paths", "--sort=date"])
    assert capfdbinary.readouterr().out == b"".join(os.fsencode(photos / name) + b"\n" for name in NAMES[:1:-1])
    main(["search", "dog", f"--index={out}", "--min_score=-1", "--top=3", "--folder=trip"])
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert len(lines) == 3 and sum(line.endswith(r"new\nline.jpg") for line in lines) == 1
    assert all(-1 <= float(line.split()[0]) <= 1 and line.split()[1].startswith("2023-11-") for line in lines)


def test_the_page_holds_the_photos(made, tmp_path, capsys):
    page = tmp_path / "found.html"
    status, _, err = search(capsys, made[1], "<b>dog</b>", "--min_score=-1", "--top=2", f"--html={page}")
    text = page.read_text()
    assert status == 0 and text.count("data:image/jpeg") == 2 and "2 of 5 photos that pass are shown" in text
    assert "photos that pass" not in search(capsys, made[1], f"--image={made[0]}/b.jpg", "--top=2")[2]  # no cut-off
    assert "&lt;b&gt;dog&lt;/b&gt;" in text and "<b>dog" not in text and f"wrote {page}" in err


def test_photos_that_are_nearly_the_same(made, model, tmp_path, capsys):
    photos = shutil.copytree(made[0], tmp_path / "photos")
    shutil.copy(photos / "a.jpg", photos / "trip/z.jpg")
    assert index(model, photos, tmp_path / "index") == 0
    status, out, err = search(capsys, tmp_path / "index", "--similar", "--min_score=0.9999")
    assert status == 0 and sorted(line.split("  ")[-1] for line in out.splitlines()) == [
        str(photos / "a.jpg"), str(photos / "trip/z.jpg"),
    ]  # fmt: skip
    assert "1 groups of photos that are nearly the same (cosine 0.9999 or more)" in err
    groups = as_json(capsys, tmp_path / "index", "--similar", "--min_score=0.9999")["groups"]
    assert [len(group) for group in groups] == [2]
    status, out, _ = search(capsys, tmp_path / "index", "--similar", "--min_score=0.9999", "--folder=trip")
    assert (status, out) == (1, "")


def test_mistakes_are_one_line(made, copy, model, fails, tmp_path):
    photos, out = made
    assert "give a text in quotes" in fails("search", f"--index={out}")
    assert "holds no index: make one" in fails("search", "dog", f"--index={tmp_path}")
    said = fails("search", f"--image={tmp_path}/none.jpg", f"--index={out}")
    assert said == f"error: the image ({tmp_path}/none.jpg) cannot be read: there is no such file"
    assert "leave texts, --image and --minus out" in fails("search", "dog", "--similar", f"--index={out}")
    assert "give a cosine above 0" in fails("search", "--similar", "--min_score=-1", f"--index={out}")
    assert "no photo of the index lies there" in fails("search", "dog", "--folder=x", f"--index={out}")
    assert "is no folder: give --photos a folder" in fails(
        "index", f"--model={model}", f"--photos={tmp_path}/none", f"--out={tmp_path}/x"
    )
    other = save_model(tmp_path / "other", seed=1)
    assert "was made by another model" in fails("index", f"--model={other}", f"--photos={photos}", f"--out={copy[1]}")
    assert f"was made by another model than {other}: give the right one by --model" in fails(
        "search", "dog", f"--index={out}", f"--model={other}"
    )
    for argv in (["--top=0"], ["--since=soon"], ["--json", "--paths"]):
        assert "`smke search --help` explains" in fails("search", "dog", f"--index={out}", *argv)


def test_a_model_or_photos_that_are_gone(made, copy, model, fails, tmp_path, capsys):
    _, out = copy
    about = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(about | {"model": str(tmp_path / "gone")}))
    photo = f"--image={made[0]}/b.jpg"
    assert "--model=… says where it is now" in fails("search", photo, f"--index={out}")
    assert search(capsys, out, photo, f"--model={model}")[0] == 0
    assert search(capsys, out, "dog", "--min_score=-1")[0] == 0  # a text needs what the index holds alone
    (out / "index.json").write_text(json.dumps(about | {"photos": str(tmp_path / "disk")}))
    assert "connect its disk" in fails("search", "dog", f"--index={out}")


def test_models_that_cannot_search(fails, tmp_path, made):
    bert = {"type": "bert", "vocab_size": 20, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    bert |= {"max_positions": 8, "pooler": False}
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), param_shapes(bert))
    save_params(tmp_path / "params.safetensors", params, {"model": bert})
    line = fails("index", f"--model={tmp_path}", f"--photos={made[0]}", f"--out={tmp_path}/index")
    assert "a model of type bert embeds no images" in line and not (tmp_path / "index").exists()


def test_an_image_teacher_searches_by_photo(made, tmp_path, capsys, fails):
    beit = {"type": "beit", "image_size": 32, "patch_size": 16, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    beit |= {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(beit))
    save_params(tmp_path / "params.safetensors", params, {"model": beit})
    assert index(tmp_path, made[0], tmp_path / "index") == 0
    hits = as_json(capsys, tmp_path / "index", f"--image={made[0]}/b.jpg", "--top=1")["hits"]
    assert hits[0]["path"] == str(made[0] / "b.jpg") and hits[0]["score"] > 0.999
    assert "embeds no texts" in fails("search", "dog", f"--index={tmp_path}/index")


def test_a_text_needs_neither_the_model_nor_what_builds_one(made):
    code = (
        "import sys\nfrom smke_jax.__main__ import main\n"
        f"status = main(['search', 'dog', '--index={made[1]}', '--min_score=-1'])\n"
        "slow = {'torch', 'flax', 'grain', 'orbax', 'transformers', 'PIL', 'scipy', 'smke_jax.embedder'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 5, done.stderr


def test_words_that_are_damaged_are_kept_anew(copy, model, capsys):
    photos, out = copy
    right = as_json(capsys, out, "dog", "--min_score=-1")
    data = bytearray((out / "words/params.safetensors").read_bytes())
    data[-3] ^= 1
    (out / "words/params.safetensors").write_bytes(data)
    _, printed, err = search(capsys, out, "dog", "--min_score=-1", "--json")
    assert "words is damaged or of another JAX: opening the model" in err
    assert [hit["path"] for hit in json.loads(printed)["hits"]] == [hit["path"] for hit in right["hits"]]
    assert index(model, photos, out) == 0
    assert not search(capsys, out, "dog", "--min_score=-1")[2]
