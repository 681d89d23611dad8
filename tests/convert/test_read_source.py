"""Files from elsewhere are opened without running them, and what cannot be read is said in one line."""

import argparse
import json
import operator
import os
import pickle
import runpy
import subprocess
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from smke_jax.convert.source import read_source
from smke_jax.errors import UserError

RNG = np.random.default_rng(0)
STATE = {f"layer.{i}.{name}": RNG.normal(size=(30, 7)).astype(np.float32) for i in range(2) for name in ("a", "b")}
TENSORS = {name: torch.tensor(x) for name, x in STATE.items()}


class Settings:
    """What a training framework keeps beside the weights: an object, and so code."""

    depth = 12


class Intruder:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (intrude, (self.marker,))


def intrude(marker: Path):
    marker.touch()


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = {
    "weights.safetensors": lambda path: safetensors.numpy.save_file(STATE, path),
    "weights.npz": lambda path: np.savez_compressed(path, **STATE),
    "weights.pt": lambda path: torch.save(TENSORS, path),
    "weights.bin": lambda path: legacy(TENSORS, path),
}


def same(state) -> bool:
    return set(state) == set(STATE) and all(state[name].tobytes() == STATE[name].tobytes() for name in STATE)


def refusal(path, **arguments) -> str:
    """The line that reading `path` ends with; it names the file and says what to do."""
    with pytest.raises(UserError) as caught:
        read_source(path, **arguments)
    line = str(caught.value)
    assert str(path) in line and ": " in line and "\n" not in line and "\x1b" not in line
    return line


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    source = read_source(path)
    assert same(source.state) and source.path == path and source.config == {}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_cut_anywhere_is_refused(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    # Not within the old format's list of names: part of a name is another name.
    for length in {0, 1, 8, len(whole) - 1, *RNG.integers(len(whole) // 2, len(whole), size=40).tolist()}:
        path.write_bytes(whole[:length])
        line = refusal(path)
        assert "damaged" in line and "fetch it again" in line and "trust" not in line, (length, line)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_with_flipped_bytes_never_ends_in_a_traceback(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(60):
        flipped = whole.copy()
        flipped[RNG.integers(len(whole), size=3)] ^= RNG.integers(1, 256, size=3, dtype=np.uint8)
        path.write_bytes(flipped.tobytes())
        try:
            read_source(path)  # bytes of the weights themselves carry no check
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><title>Sign in</title>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"]
)
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_downloaded_instead_of_the_file(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    line = refusal(tmp_path / name)
    assert "fetch it again" in line and "trust" not in line


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_sixteen_bit_floats_come_bit_for_bit(name, dtype, tmp_path):
    half = STATE["layer.0.a"].astype(dtype)
    tensor = {"a": torch.tensor(half.astype(np.float32)).to(getattr(torch, half.dtype.name))}
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(tensor, tmp_path / name)
    read = read_source(tmp_path / name).state["a"]
    assert read.dtype == dtype and read.tobytes() == half.tobytes()


@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save])
def test_what_numpy_has_no_dtype_for(save, tmp_path):
    path = tmp_path / ("weights.safetensors" if save is safetensors.torch.save_file else "weights.pt")
    save({"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}, path)
    assert "save it" in refusal(path)


def test_object_arrays(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.array([Intruder(tmp_path / "marker")], object))
    assert "object" in refusal(tmp_path / "weights.npz").lower()
    assert not (tmp_path / "marker").exists()


def test_code_is_not_run(tmp_path):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    content = TENSORS | {"intruder": Intruder(marker)}
    for save in (torch.save, legacy, lambda _, path: path.write_bytes(pickle.dumps(content["intruder"], protocol=2))):
        save(content, path)
        line = refusal(path)
        assert f"contains code ({__name__}.intrude), which was not run" in line and "--trust_code" in line
        assert not marker.exists()


@pytest.mark.parametrize("save", [torch.save, legacy])
def test_code_runs_where_it_is_trusted(save, tmp_path):
    path, marker = tmp_path / "weights.pt", tmp_path / "marker"
    save(TENSORS | {"intruder": Intruder(marker)}, path)
    assert same(read_source(path, trust_code=True).state) and marker.exists()


def test_a_checkpoint_with_objects_in_it(tmp_path):
    path = tmp_path / "last.ckpt"
    settings = Settings()
    settings.width, settings.parts = 768, [Settings()]
    torch.save({"state_dict": TENSORS, "hyper_parameters": {"cfg": settings}, "epoch": 3}, path)
    source = read_source(path)
    assert same(source.state)
    assert source.config == {"hyper_parameters": {"cfg": {"width": 768, "parts": [None]}}}
    assert f"not run     {__name__}.Settings: read as plain settings" in source.notes
    source = read_source(path, trust_code=True)
    assert same(source.state) and source.config["hyper_parameters"]["cfg"].depth == 12


def test_settings_of_omegaconf_are_read_without_it(tmp_path, monkeypatch):
    """As its containers pickle themselves: the content, its parent, and metadata with types in it."""
    module = types.ModuleType("omegaconf")

    class DictConfig:
        def __getstate__(self):
            return self.__dict__

        def __setstate__(self, state):
            raise AssertionError("it was called")

    class AnyNode(DictConfig):
        pass

    for kind in (DictConfig, AnyNode):
        kind.__module__, kind.__qualname__ = "omegaconf", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "omegaconf", module)

    def node(value, parent):
        made = AnyNode()
        made.__dict__ |= {"_metadata": Settings, "_parent": parent, "_val": value}
        return made

    def container(content):
        made = DictConfig()
        inner = {k: container(x) if isinstance(x, dict) else node(x, made) for k, x in content.items()}
        made.__dict__ |= {"_metadata": {"ref_type": Settings}, "_parent": None, "_content": inner}
        return made

    cfg = {"model": {"depth": 6, "name": "s_smke"}, "lr": 1e-3}
    torch.save({"state_dict": TENSORS, "hyper_parameters": {"cfg": container(cfg)}}, tmp_path / "last.ckpt")
    monkeypatch.delitem(sys.modules, "omegaconf")
    source = read_source(tmp_path / "last.ckpt")
    assert same(source.state) and source.config == {"hyper_parameters": {"cfg": cfg}}


class Reaches:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize(
    "call, name",
    [
        (os.system, "posix.system"), (subprocess.Popen, "commands.Popen"), (eval, "builtins.eval"),
        (getattr, "builtins.getattr"), (operator.attrgetter, "operator.attrgetter"), (print, "builtins.print"),
        (runpy.run_path, "runpy.run_path"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [{}, {"cfg": Settings()}])
def test_what_reaches_the_machine_is_refused(call, name, beside, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": TENSORS, **beside, "hyper_parameters": Reaches(call, f"touch {marker}")}, path)
    assert f"contains code ({name}), which was not run" in refusal(path).replace("__builtin__", "builtins")
    assert not marker.exists()


def test_a_pickled_module_is_no_state_dict(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    assert "contains code (torch.nn.modules.linear.Linear), which was not run" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model_state_dict", "net", "my_own_name"])
def test_wrappers_are_reported(name, tmp_path):
    content = {"epoch": 3, name: TENSORS, "optimizer_state_dict": {"a": torch.ones(3)}, "loss": torch.tensor(0.5)}
    torch.save(content, tmp_path / "a.pt")
    source = read_source(tmp_path / "a.pt")
    assert same(source.state) and source.notes == (f"taken off   {name} around the weights",)


def test_several_sets_of_tensors_are_named(tmp_path):
    torch.save({"first": TENSORS, "second": TENSORS}, tmp_path / "a.pt")
    assert "several sets of tensors (first, second): save the one you want" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("mark", ["_orig_mod.", "_fsdp_wrapped_module.", "_forward_module."])
def test_marks_of_wrappers_within_names(mark, tmp_path):
    safetensors.numpy.save_file(
        {mark + name.replace(".", f".{mark}", 1): x for name, x in STATE.items()}, tmp_path / "a.safetensors"
    )
    source = read_source(tmp_path / "a.safetensors")
    assert same(source.state) and source.notes == (f"taken off   {mark[:-1]} within names",)


@pytest.mark.parametrize("best", [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
def test_numbers_of_numpy_are_no_code(best, tmp_path):
    torch.save({"state_dict": TENSORS, "best": best}, tmp_path / "last.ckpt")
    assert same(read_source(tmp_path / "last.ckpt").state)


def test_code_of_a_package_that_is_not_there(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    monkeypatch.setitem(sys.modules, "framework", sys.modules[__name__])
    monkeypatch.setattr(Settings, "__module__", "framework")
    torch.save({"state_dict": TENSORS, "cfg": Settings()}, path)
    monkeypatch.undo()
    assert "No module named 'framework'): install it" in refusal(path, trust_code=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_torchscript(tmp_path):
    path = tmp_path / "weights.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    assert "a TorchScript program, which was not run" in refusal(path)
    assert set(read_source(path, trust_code=True).state) == {"weight", "bias"}


@pytest.mark.parametrize("names", [("model",), ("state_dict",), ("module",), ("teacher",), ("state_dict", "model")])
def test_weights_inside_what_training_code_saves(names, tmp_path):
    content = TENSORS
    for name in reversed(names):
        content = {name: content, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(depth=12)}
    torch.save(content, tmp_path / "weights.pth")
    source = read_source(tmp_path / "weights.pth")
    assert same(source.state) and source.config["args"].depth == 12


def test_a_file_without_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    assert "holds no tensors" in refusal(tmp_path / "weights.pt")


def test_pytorch_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    for name, write in WRITERS.items():
        write(tmp_path / name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'smke_jax[torch]', or give safetensors" in refusal(tmp_path / "weights.pt")
    assert same(read_source(tmp_path / "weights.safetensors").state)
    assert same(read_source(tmp_path / "weights.npz").state)


def test_a_directory_of_transformers(tmp_path):
    assert "neither model.safetensors nor pytorch_model.bin: name the file itself" in refusal(tmp_path)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 12}))
    source = read_source(tmp_path)
    assert same(source.state) and source.config == {"num_attention_heads": 12}


def test_a_directory_of_parts(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    safetensors.numpy.save_file(STATE, tmp_path / "model-00001-of-00002.safetensors")
    assert "split over several files: join them" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_damaged_config(content, tmp_path):
    WRITERS["weights.npz"](tmp_path / "weights.npz")
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match="config.json is damaged: fetch it again"):
        read_source(tmp_path / "weights.npz")


def test_no_file_and_a_file_of_no_known_kind(tmp_path):
    assert "no file" in refusal(tmp_path / "weights.pt")
    (tmp_path / "weights.h5").touch()
    assert "give one of .safetensors, .npz, .pt" in refusal(tmp_path / "weights.h5")
