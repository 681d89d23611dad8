"""What `pip install` brings without an extra is enough for the programs that need no extra."""

import configparser
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from made_up import jpeg
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_export import save_model

ROOT = Path(__file__).resolve().parents[2]

# Imports every program, then indexes and searches; sys.argv: model, photos, index, packages that are not to be found.
CODE = """
import importlib, importlib.machinery, sys
model, photos, index, *hidden = sys.argv[1:]

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Installed
from smke_jax.__main__ import main
from smke_jax.flags import PROGRAMS
for name in PROGRAMS:
    importlib.import_module(f"smke_jax.programs.{name}")
assert main(["index", f"--model={model}", f"--photos={photos}", f"--out={index}"]) == 0
assert main(["search", "a red dog", f"--index={index}", "--min_score=-1"]) == 0
"""


def brought_along() -> set[str]:
    """Names of the distributions that `install_requires` of setup.cfg brings, directly and through others."""
    said = configparser.ConfigParser()
    said.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in said["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    waiting, found = [Requirement(line) for line in lines], {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.extras <= found.get(name, set()) and name in found:
            continue
        found[name] = found.get(name, set()) | requirement.extras
        try:
            needed = [Requirement(line) for line in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # needed on other systems only
            continue
        extras = ("", *requirement.extras)
        waiting += [x for x in needed if not x.marker or any(x.marker.evaluate({"extra": extra}) for extra in extras)]
    return set(found)


def test_an_index_and_a_search_need_no_extra(tmp_path):
    brought = brought_along() | {"smke-jax"}
    hidden = [
        module
        for module, names in metadata.packages_distributions().items()
        if not brought & {canonicalize_name(name) for name in names} and module not in sys.stdlib_module_names
    ]
    assert "torch" in hidden and "jax" not in hidden
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(jpeg(0))
    places = save_model(tmp_path / "model"), tmp_path / "photos", tmp_path / "index"
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, places), *hidden], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
