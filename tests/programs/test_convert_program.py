"""`smke convert`: what it writes, what it says, and that a file it cannot take ends in one line and writes nothing."""

import json
import os
import resource
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from smke_jax.__main__ import main
from smke_jax.convert import convert as convert_module
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import file_digest, load_params, read_description
from smke_jax.convert.rules import to_torch
from smke_jax.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from smke_jax.models.build import param_shapes

WORDS = "embeddings.word_embeddings.weight"

BERT = {
    "type": "bert", "vocab_size": 24, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 40, "max_positions": 10,
    "type_vocab_size": 2, "norm_eps": 1e-12, "activation": "gelu", "pooler": True,
}  # fmt: skip
BEIT = {
    "type": "beit", "image_size": 8, "patch_size": 4, "width": 12, "depth": 1, "num_heads": 2, "mlp_dim": 20,
    "shared_bias": True, "final_norm": True,
}  # fmt: skip
QUERY = "encoder.layer.1.attention.self.query.weight"


def random_state(layout: str, description: dict) -> dict[str, np.ndarray]:
    """What a file of that layout holds."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(description))
    return to_torch(LAYOUTS[layout], params, description)


def write_vocabulary(folder: Path, size: int) -> None:
    words = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(size - len(SPECIAL_TOKENS)))]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    return random_state("bert", BERT)


@pytest.fixture
def folder(tmp_path, state) -> Path:
    """A BERT as transformers saves it, with its vocabulary."""
    path = tmp_path / "bert"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert", "num_attention_heads": 2}))
    write_vocabulary(path, BERT["vocab_size"])
    safetensors.numpy.save_file(state, path / "model.safetensors")
    return path


@pytest.fixture
def refuses(tmp_path, capsys):
    """Runs `smke convert`, which is to write nothing; returns (its one error line, what it printed before)."""

    def run(checkpoint, *more, out=tmp_path / "out") -> tuple[str, str]:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(["convert", f"--checkpoint={checkpoint}", f"--out={out}", *more]) == 2
        printed, errors = capsys.readouterr()
        assert errors.startswith("error: ") and len(errors.splitlines()) == 1, errors
        assert sorted(tmp_path.rglob("*")) == before
        return errors.strip(), printed

    return run


def test_what_is_written(folder, state, tmp_path, capsys):
    out = tmp_path / "made" / "out"
    assert main(["convert", f"--checkpoint={folder}", f"--out={out}"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    description = read_description(out)
    digest = file_digest(folder / "model.safetensors")
    assert description == {"model": BERT, "source": {"layout": "bert", "file": "model.safetensors", "sha256": digest}}
    back = to_torch(LAYOUTS["bert"], load_params(out), BERT)
    assert all(back[name].tobytes() == x.tobytes() for name, x in state.items())
    assert load_tokenizer(out / "tokenizer", BERT["vocab_size"]).vocab_size == 24
    assert sorted(file.name for file in out.iterdir()) == ["params.safetensors", "tokenizer"]
    assert (out / "params.safetensors").stat().st_mode & 0o077, "others may read it"


def test_a_dry_run_writes_nothing(folder, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", f"--checkpoint={folder}", "--dry_run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    assert f"  {QUERY} -> block_1/attention/query/kernel\n" in printed and "num_heads 2" in printed


def test_a_vocabulary_of_another_size(folder, refuses):
    write_vocabulary(folder, 30)
    error, _ = refuses(folder)
    assert str(folder) in error and "has 30 tokens, the model expects 24" in error


def test_settings_of_a_tokenizer_without_its_vocabulary(folder, tmp_path):
    (folder / "vocab.txt").rename(folder / "tokenizer_config.json")
    assert main(["convert", f"--checkpoint={folder}", f"--out={tmp_path / 'out'}"]) == 0
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_a_vocabulary_beside_a_model_that_reads_no_text(tmp_path):
    write_vocabulary(tmp_path, 30)
    safetensors.numpy.save_file(random_state("beit-unilm", BEIT), tmp_path / "beit.safetensors")
    assert main(["convert", f"--checkpoint={tmp_path / 'beit.safetensors'}", f"--out={tmp_path / 'out'}"]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["params.safetensors"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bits_are_widened_exactly(folder, state, dtype, tmp_path, capsys):
    half = {name: x.astype(dtype) for name, x in state.items()}
    safetensors.numpy.save_file(half, folder / "model.safetensors")
    assert main(["convert", f"--checkpoint={folder}", f"--out={tmp_path / 'out'}"]) == 0
    assert f"widened     {len(state)} of them from 16-bit floats to fp32, exactly" in capsys.readouterr().out
    back = to_torch(LAYOUTS["bert"], load_params(tmp_path / "out"), BERT, dtype=dtype)
    assert all(back[name].tobytes() == x.tobytes() for name, x in half.items())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: s | {QUERY: s[QUERY].astype(np.float64)}, f"wrong       {QUERY}: float64, which fp32 cannot hold"),
        (lambda s: s | {QUERY: s[QUERY].astype(np.int32)}, f"wrong       {QUERY}: int32 where a float is expected"),
        (lambda s: s | {QUERY: s[QUERY][:, :-1]}, f"wrong       {QUERY}: shape (16, 15) gives (15, 16) for block_1/"),
        (lambda s: s | {QUERY: s[QUERY][0]}, f"wrong       {QUERY}: shape (16,): it has 1 dimensions, not 2"),
        (lambda s: {name: x for name, x in s.items() if name != QUERY}, f"missing     {QUERY}"),
        (lambda s: s | {"encoder.extra": s[QUERY]}, "unexpected  encoder.extra"),
    ],
)
def test_a_tensor_that_does_not_fit(folder, state, change, line, refuses):
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(x) for k, x in change(state).items()}, folder / "model.safetensors"
    )
    error, printed = refuses(folder)
    assert f"{folder / 'model.safetensors'} does not fit bert, see above; nothing was written" in error
    assert [x for x in printed.splitlines() if x.startswith(line)], printed


def test_every_problem_is_listed(folder, state, refuses):
    changed = {name.replace("layer.1", "layer.2"): x for name, x in state.items()}
    safetensors.numpy.save_file(changed | {"extra": state[QUERY]}, folder / "model.safetensors")
    printed = refuses(folder)[1].splitlines()
    layer = [name for name in state if "layer.1" in name]
    assert [x for x in printed if x.startswith("missing")] == [f"missing     {name}" for name in layer]
    assert [x for x in printed if x.startswith("unexpected")] == ["unexpected  extra"]


def test_another_architecture(tmp_path, refuses):
    path = tmp_path / "beit.safetensors"
    safetensors.numpy.save_file(random_state("beit-unilm", BEIT), path)
    error, _ = refuses(path, "--from=bert")
    assert error == f"error: {path} is no bert (it has no embeddings.word_embeddings.weight): try --from=auto"


def test_no_known_architecture(tmp_path, refuses):
    path = tmp_path / "other.npz"
    np.savez(path, **{"conv.weight": np.zeros(3, np.float32)})
    error, _ = refuses(path)
    assert (
        f"{path} is of no known layout (it has conv.weight, …): the networks that are read are" in error
        and "bert" in error
    )


def test_a_misspelt_layout(folder, refuses):
    assert "unknown layout 'bret': did you mean bert" in refuses(folder, "--from=bret")[0]
    assert "unknown layout 'x': known are auto, " in refuses(folder, "--from=x")[0]


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ("3", "width 16 does not divide into 3 heads"),
        ("0", "--num_heads=0: give"),
        ("-2", "--num_heads=-2: give"),
    ],
)
def test_an_impossible_number_of_heads(folder, heads, says, refuses):
    error, _ = refuses(folder, f"--num_heads={heads}")
    assert says in error


def test_pixel_statistics_can_be_given(folder, tmp_path, refuses):
    file = tmp_path / "beit.safetensors"
    safetensors.numpy.save_file(random_state("beit-unilm", BEIT), file)
    out = tmp_path / "given"
    flags = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    assert main(["convert", f"--checkpoint={file}", f"--out={out}", *flags]) == 0
    model = read_description(out)["model"]
    assert (model["mean"], model["std"]) == ([0.5] * 3, [0.25] * 3)
    assert "a bert takes none" in refuses(folder, *flags)[0]


def test_the_number_of_heads_is_asked_for(folder, refuses, tmp_path):
    (folder / "config.json").unlink()
    error, _ = refuses(folder)
    assert str(folder) in error and error.endswith("give --num_heads")
    assert main(["convert", f"--checkpoint={folder}", f"--out={tmp_path / 'out'}", "--num_heads=2"]) == 0
    assert read_description(tmp_path / "out")["model"] == BERT


def test_nowhere_to_write(folder, refuses, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    assert f"{taken} is already there: remove it or choose another --out" in refuses(folder, out=taken)[0]
    inside_a_file = folder / "vocab.txt" / "out"
    assert f"{inside_a_file} cannot be written (" in refuses(folder, out=inside_a_file)[0]
    assert main(["convert", f"--checkpoint={folder}"]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written(folder, refuses, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert f"{closed / 'out'} cannot be written (Permission denied)" in refuses(folder, out=closed / "out")[0]


@pytest.mark.parametrize("limit", [4096, 10**5], ids=["params", "tokenizer"])
def test_a_full_disk(folder, refuses, limit, tmp_path):
    (folder / "tokenizer_config.json").write_text(json.dumps({"filler": " " * 2 * 10**5}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        error, _ = refuses(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path / 'out'} cannot be written (File too large): make room" in error
    assert main(["convert", f"--checkpoint={folder}", f"--out={tmp_path / 'out'}"]) == 0


def test_a_stop_while_writing_leaves_nothing(folder, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module.shutil, "copyfile", stop)
    assert main(["convert", f"--checkpoint={folder}", f"--out={tmp_path / 'out'}"]) == 130
    assert sorted(tmp_path.iterdir()) == [folder]


class Settings:
    """What a training framework keeps beside the weights: an object, and so code."""


def test_a_checkpoint_with_objects_is_read_without_them(folder, state, tmp_path, capsys):
    path = folder / "last.ckpt"
    tensors = {f"bert.{name}": torch.tensor(x) for name, x in state.items()}
    torch.save({"state_dict": tensors, "hyper_parameters": Settings()}, path)
    assert main(["convert", f"--checkpoint={path}", f"--out={tmp_path / 'out'}"]) == 0
    assert read_description(tmp_path / "out")["model"] == BERT
    printed = capsys.readouterr().out
    assert f"not run     {__name__}.Settings: read as plain settings" in printed
    assert "taken off   state_dict around the weights" in printed


@pytest.mark.parametrize("padded", [True, False])
def test_a_word_table_padded_to_a_multiple_of_8(padded, folder, state, tmp_path, capsys):
    size = len(state[WORDS])
    rows = size + (-size % 8 or 8) if padded else size + 3
    table = np.concatenate([state[WORDS], np.ones((rows - size, state[WORDS].shape[1]), np.float32)])
    safetensors.numpy.save_file({**state, WORDS: table}, folder / "model.safetensors")
    command = ["convert", f"--checkpoint={folder}", f"--out={tmp_path / 'out'}"]
    if not padded:
        for dry in ([], ["--dry_run"]):  # the dry run says what the real one says
            assert main([*command, *dry]) == 2
            assert f"has {size} tokens, the model expects {rows}" in capsys.readouterr().err
        return
    assert main(command) == 0
    assert read_description(tmp_path / "out")["model"] == BERT
    assert f"{rows - size} rows of the word table behind the tokenizer's last token" in capsys.readouterr().out


def damaged(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return path


def empty(folder: Path) -> Path:
    (folder / "weights.npz").touch()
    return folder / "weights.npz"


def split(folder: Path) -> Path:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").touch()
    return folder


@pytest.mark.parametrize("make", [damaged, empty, split, lambda folder: folder / "nothing.pt"])
def test_a_file_that_cannot_be_read(folder, make, refuses):
    """All kinds of them are in tests/convert/test_read_source.py."""
    path = make(folder)
    assert f"error: {path} " in refuses(path)[0] or f"no file {path}:" in refuses(path)[0]


def test_the_kinds_of_files_are_listed(capsys, fails):
    assert main(["convert", "--layouts"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == sorted(LAYOUTS) and LAYOUTS["bert"].summary in "\n".join(listed)
    assert "give --checkpoint=FILE, the file to read, or --layouts" in fails("convert", "--out=x")
