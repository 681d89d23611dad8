"""Pickles of PyTorch read without running anything that they name: unknown classes come out as plain settings.

PyTorch's own safe reader refuses a file for one unknown class, such as the settings (an omegaconf.DictConfig, say) that
Lightning saves beside the weights.
"""

import importlib
import pickle
from types import SimpleNamespace
from typing import Any

# Functions and classes that build tensors and plain containers, and do nothing else.
HARMLESS = {
    ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"), ("torch", "device"), ("collections", "OrderedDict"), ("_codecs", "encode"),
    ("numpy", "dtype"), ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
}  # fmt: skip
PLAIN = {"dict": dict, "list": list, "set": set, "tuple": tuple, "int": int, "float": float, "str": str, "bool": bool,
         "bytes": bytes, "complex": complex, "frozenset": frozenset, "bytearray": bytearray}  # fmt: skip
# Whatever is called there reaches the machine.
REACHING = frozenset(
    "os posix nt subprocess sys builtins __builtin__ socket shutil runpy importlib pty ctypes code codeop commands "
    "webbrowser tempfile multiprocessing threading asyncio signal platform pip setuptools".split()
)


class Code(Exception):
    """The file names `name`, which is no class, or one that reaches the machine."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class Inert:
    """Stands for an object of a class that was not imported; its state is kept, and nothing is called."""

    def __new__(cls, *args, **kwargs):
        made = object.__new__(cls)
        made.args, made.state, made.items = args, None, {}
        return made

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return Inert(*args)

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        self.items[key] = value

    def append(self, value):
        self.items[len(self.items)] = value

    def extend(self, values):
        for value in values:
            self.append(value)

    def __hash__(self):
        return id(self)


def load_inert(torch, path) -> tuple[Any, list[str]]:
    """(content of the file, names of the classes in it that were not imported).

    Raises:
      Code: it names a function, or a class that reaches the machine.
    """
    names: list[str] = []

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) in HARMLESS or (
                module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            ):
                return getattr(importlib.import_module(module), name)
            if module == "torch" and name.endswith("Storage"):
                return getattr(torch, name)
            if module in ("builtins", "__builtin__") and name in PLAIN:
                return PLAIN[name]
            full = f"{module}.{name}"
            # By the custom of Python, a name with a capital letter is a class.
            if module.partition(".")[0] in REACHING or not name.rpartition(".")[2].lstrip("_")[:1].isupper():
                raise Code(full)
            if full not in names:
                names.append(full)
            return type(name, (Inert,), {})

    reader = SimpleNamespace(Unpickler=Unpickler, load=lambda file, **k: Unpickler(file, **k).load(), __name__="inert")
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader), names


def plain(x: Any) -> Any:
    """Settings without the classes that held them: dicts, lists, numbers and texts; None for what had no content."""
    if isinstance(x, Inert):
        state = x.state if x.state is not None else x.items or (x.args[0] if len(x.args) == 1 else None)
        if isinstance(state, dict):
            # omegaconf's containers keep their content in one of these, and its leaves their value in the other
            for name in ("_content", "_val"):
                if name in state:
                    return plain(state[name])
            state = {key: value for key, value in state.items() if key != "_parent"}
        return plain(state)
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, set, frozenset)):
        return [plain(value) for value in x]
    return x
