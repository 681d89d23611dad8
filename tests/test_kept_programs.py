"""Programs and shapes that a process keeps for the next one: never another model's answer, and damage is said."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_export import TOWER, save_hf

import smke_jax
from smke_jax import embedder, embedder_networks, embedder_passes
from smke_jax.convert.rules import Stored
from smke_jax.errors import UserError
from smke_jax.parallel import kept_programs
from smke_jax.parallel.mesh import make_mesh

TEXT = "a red dog"
TEXT_TOWER = {"max_positions": 8, "norm_eps": 1e-12, **TOWER}
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 18, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Programs are kept on one device."""
    monkeypatch.setattr(embedder_networks, "make_mesh", lambda: make_mesh(1))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("export"))


@pytest.fixture
def no_networks(monkeypatch):
    """A function after which nothing can be traced."""
    return lambda: monkeypatch.setattr(embedder_passes, "passes_of", None)


def files(program_cache, kind: str) -> list:
    return sorted(program_cache.glob(f"smke-{kind}-*"))


def unkept(path) -> dict[str, np.ndarray]:
    """The embeddings of the text and of the image by a process that keeps nothing."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", "")
    model = smke_jax.load(path)
    found = {"text": model.encode_texts(TEXT), "image": model.encode_images(IMAGE)}
    jax.config.update("jax_compilation_cache_dir", before)
    return found


def test_a_kept_program_answers_as_the_one_that_was_compiled(export, program_cache, no_networks):
    expected = unkept(export)
    assert not program_cache.exists()
    compiled = smke_jax.load(export)
    np.testing.assert_array_equal(compiled.encode_texts(TEXT), expected["text"])
    np.testing.assert_array_equal(compiled.encode_images(IMAGE), expected["image"])
    assert [len(files(program_cache, kind)) for kind in ("text", "image", "shapes")] == [1, 1, 1]
    no_networks()
    kept = smke_jax.load(export)
    np.testing.assert_array_equal(kept.encode_texts(TEXT), expected["text"])
    np.testing.assert_array_equal(kept.encode_images(IMAGE), expected["image"])
    assert kept.digest == compiled.digest


def test_a_new_process_with_a_kept_program_does_without_flax(export, tmp_path):
    code = (
        "import sys, smke_jax\n"
        f"smke_jax.load(sys.argv[1]).encode_texts({TEXT!r})\n"
        "print([name for name in ('flax', 'jax.extend.core') if name in sys.modules])"
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(export)]
    said = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2)]
    assert [process.stdout.strip() for process in said] == ["['flax', 'jax.extend.core']", "[]"]
    assert not said[1].stderr


def test_the_program_of_one_model_answers_for_the_weights_of_another(export, program_cache, tmp_path, no_networks):
    other = save_hf(tmp_path, seed=1)
    expected = unkept(other)["text"]
    first = smke_jax.load(export).encode_texts(TEXT)
    no_networks()
    found = smke_jax.load(other).encode_texts(TEXT)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - first).max() > 0.01


def test_a_model_of_the_same_shapes_that_computes_otherwise_has_its_own_program(export, program_cache, tmp_path):
    other = save_hf(tmp_path, text={**TEXT_TOWER, "norm_eps": 0.5})
    expected = unkept(other)["text"]
    first = smke_jax.load(export).encode_texts(TEXT)
    found = smke_jax.load(other).encode_texts(TEXT)
    np.testing.assert_array_equal(found, expected)
    assert len(files(program_cache, "text")) == 2 and np.abs(found - first).max() > 1e-3


def test_a_text_is_the_same_at_every_padded_length(program_cache, tmp_path):
    """A short text is computed for few tokens."""
    model = smke_jax.load(save_hf(tmp_path, max_length=64, text={**TEXT_TOWER, "depth": 1, "max_positions": 64}))
    ids, mask = model.tokenizer.encode([TEXT], 64)
    lengths = [length for length in range(1, 65) if embedder._length(length) == length]
    assert lengths == [8, 12, 16, 24, 32, 48, 64]
    found = [model._run("text", {"text": ids[:, :x], "text_mask": mask[:, :x]}, 1)[0] for x in lengths]
    np.testing.assert_allclose(found, [found[-1]] * len(found), atol=1e-6, rtol=0)
    np.testing.assert_array_equal(model.encode_texts(TEXT), found[0])


def cut(content):
    return content[: len(content) // 2]


def flipped(place):
    def damage(content):
        place_ = int(place * (len(content) - 1))
        return content[:place_] + bytes([content[place_] ^ 1]) + content[place_ + 1 :]

    return damage


def of_no_jax(content):
    """Sound, but what JAX cannot read."""
    head = content[kept_programs.DIGEST :].partition(b"\n")[0]
    rest = head + b"\nno program"
    return hashlib.sha256(rest).hexdigest().encode() + rest


def of_another(content):
    """Sound, but of another fingerprint than its name."""
    head, _, program = content[kept_programs.DIGEST :].partition(b"\n")
    rest = json.dumps({**json.loads(head), "fingerprint": "0" * 64}).encode() + b"\n" + program
    return hashlib.sha256(rest).hexdigest().encode() + rest


DAMAGES = {
    "empty": lambda content: b"", "cut": cut, "first byte": flipped(0), "in the head": flipped(0.002),
    "in the program": flipped(0.7), "last byte": flipped(1), "of no JAX": of_no_jax, "of another": of_another,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_costs_one_line_and_is_made_anew(damage, export, program_cache, caplog, no_networks):
    expected = unkept(export)["text"]
    smke_jax.load(export).encode_texts(TEXT)
    whole = {}
    for kind in ("text", "shapes"):
        (path,) = files(program_cache, kind)
        whole[path] = path.read_bytes()
    damaged = [path for path in whole if "text" in path.name or damage != "of no JAX"]  # shapes hold no program
    for path in damaged:
        path.write_bytes(DAMAGES[damage](whole[path]))
    np.testing.assert_array_equal(smke_jax.load(export).encode_texts(TEXT), expected)
    lines = [record.getMessage() for record in caplog.records if record.name == "smke_jax"]
    assert len(lines) == len(damaged)
    for path in damaged:
        (line,) = [line for line in lines if str(path) in line]
        assert "cannot be used and is made anew: " in line and "\n" not in line
    caplog.clear()
    no_networks()
    np.testing.assert_array_equal(smke_jax.load(export).encode_texts(TEXT), expected)
    assert not caplog.records


def test_a_folder_that_takes_no_files_costs_one_line(export, program_cache, caplog):
    expected = unkept(export)["text"]
    program_cache.write_text("a file, no folder")
    np.testing.assert_array_equal(smke_jax.load(export).encode_texts(TEXT), expected)
    lines = {record.getMessage() for record in caplog.records if record.name == "smke_jax"}
    assert any(str(program_cache) in line for line in lines)


def test_the_folder_does_not_grow_without_end(program_cache, monkeypatch):
    monkeypatch.setattr(kept_programs, "MOST", 3)
    program_cache.mkdir()
    (program_cache / "other").write_bytes(b"of someone else")
    for i in range(5):
        kept_programs.write("facts", f"{i}", {"i": i})
        os.utime(program_cache / f"smke-facts-{i}", (i, i))
    found = [kept_programs.read("facts", f"{i}") for i in range(5)]
    assert [kept and kept.facts["i"] for kept in found] == [None, None, 2, 3, 4]
    assert (program_cache / "other").is_file()


def test_a_device_whose_programs_cannot_be_written_costs_one_line(export, program_cache, caplog, monkeypatch):
    def refuse(compiled):
        raise ValueError("this device serializes nothing")

    expected = unkept(export)["text"]
    monkeypatch.setattr(kept_programs, "serialize", refuse)
    np.testing.assert_array_equal(smke_jax.load(export).encode_texts(TEXT), expected)
    assert [record.getMessage() for record in caplog.records if record.name == "smke_jax"] == [
        "compiled programs are not kept: this device serializes nothing"
    ]
    assert not files(program_cache, "text")


def test_what_a_changed_source_traces_is_not_kept(export, program_cache, monkeypatch):
    """The files then say another program than the one in memory."""
    monkeypatch.setattr(smke_jax, "IMPORTED", 0.0)
    expected = unkept(export)["text"]
    np.testing.assert_array_equal(smke_jax.load(export).encode_texts(TEXT), expected)
    assert not files(program_cache, "text") and not files(program_cache, "shapes")


def test_a_fingerprint_is_of_settings_flags_and_every_part(monkeypatch):
    names = {kept_programs.fingerprint(*parts) for parts in (("a", "b"), ("ab",), ("a",), ("b", "a"))}
    with jax.default_matmul_precision("bfloat16"):
        names.add(kept_programs.fingerprint("a"))
    monkeypatch.setenv("XLA_FLAGS", "--another")
    names.add(kept_programs.fingerprint("a"))
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    names.add(kept_programs.fingerprint("a"))
    assert len(names) == 7


def test_only_the_half_that_is_asked_for_is_read(export, program_cache, monkeypatch):
    names, read = set(), Stored.read

    def noted(stored):
        names.add(stored.name)
        return read(stored)

    monkeypatch.setattr(Stored, "read", noted)
    for _ in range(2):  # compiled, then kept
        names.clear()
        model = smke_jax.load(export)
        assert not names
        model.encode_texts(TEXT)
        assert names and not [name for name in names if "image" in name]
    model.encode_images(IMAGE)
    assert [name for name in names if "image" in name]


def with_tensors(export, folder, change):
    """A copy of the export, its tensors changed by `change`."""
    for file in export.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(export / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_is_read_late_is_checked(export, program_cache, tmp_path):
    smke_jax.load(export).encode_images(IMAGE)  # the program is kept
    image = next(name for name in load_file(export / "model.safetensors") if "image" in name)

    def spoil(tensors):
        tensors[image] = np.full_like(tensors[image], np.nan)

    model = smke_jax.load(with_tensors(export, tmp_path, spoil))
    model.encode_texts(TEXT)
    with pytest.raises(UserError, match=f"{image} holds NaN or infinity"):
        model.encode_images(IMAGE)


def test_a_file_that_was_written_to_is_not_read_further(export, program_cache, tmp_path):
    model = smke_jax.load(with_tensors(export, tmp_path, lambda tensors: None))
    model.encode_texts(TEXT)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate(len(content) - 4)
    with pytest.raises(UserError, match="has changed since it was opened: open the model again"):
        model.encode_images(IMAGE)


@pytest.mark.parametrize("what", ["shape", "missing"])
def test_a_file_that_does_not_fit_is_refused_at_once(what, export, program_cache, tmp_path):
    smke_jax.load(export)  # its shapes are kept
    image = next(name for name in load_file(export / "model.safetensors") if "image" in name)

    def spoil(tensors):
        x = tensors.pop(image)
        if what == "shape":
            tensors[image] = np.zeros((*x.shape, 2), np.float32)

    with pytest.raises(UserError, match="does not fit smke-hf"):
        smke_jax.load(with_tensors(export, tmp_path, spoil))
