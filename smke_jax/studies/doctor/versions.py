"""The versions of what is installed, against the bounds of the package."""

import configparser
import importlib.metadata
import platform
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from smke_jax.config_files import repository
from smke_jax.studies.doctor.findings import Finding, judged

SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check_versions() -> Finding:
    """Python and every package that the installed ones depend on, and extras where they are installed."""
    python, needed, extras = stated()
    wrong = []
    if platform.python_version() not in SpecifierSet(python):
        wrong.append(f"Python {platform.python_version()} is outside {python}: make a virtual environment with another")
    wrong += outside(needed, installed, optional=False) + outside(extras, installed, optional=True)
    found = [f"{name} {version}" for name in SHOWN if (version := installed(name))]
    return judged("versions", ", ".join([f"Python {platform.python_version()}", *found]), wrong)


def stated() -> tuple[str, list[Requirement], list[Requirement]]:
    """(bounds of Python, requirements, those of extras) of setup.cfg in a clone, else of the installed package."""
    if root := repository():
        said = configparser.ConfigParser()
        said.read(root / "setup.cfg", encoding="utf-8")
        extras = "\n".join(said["options.extras_require"].values())
        return said["options"]["python_requires"], _parsed(said["options"]["install_requires"]), _parsed(extras)
    about = importlib.metadata.metadata("smke_jax")
    every = [Requirement(line) for line in about.get_all("Requires-Dist") or ()]
    return about["Requires-Python"] or "", [x for x in every if not x.marker], [x for x in every if x.marker]


def _parsed(text: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def installed(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def outside(requirements: Iterable[Requirement], version_of, *, optional: bool) -> list[str]:
    """What to do about each requirement that is not met; an `optional` package may be absent."""
    wrong = {}
    for requirement in requirements:
        version = version_of(requirement.name)
        if requirement.name == "smke_jax" or (version is None and optional):
            continue
        command = f"pip install '{requirement.name}{requirement.specifier}'"
        if version is None:
            wrong[requirement.name] = f"{requirement.name} is not installed: {command}"
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong[requirement.name] = (
                f"{requirement.name} {version} is outside {requirement.specifier}, with which this code is tested: "
                f"{command}"
            )
    return list(wrong.values())
