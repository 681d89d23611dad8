"""Confusion matrices and sample predictions in the report of a run."""

import json

import numpy as np
import pytest
from made_runs import make_run
from pages import HOSTILE, Page

from smke_jax.evaluators.accuracy import accuracy_figures
from smke_jax.reporting.classes import Confusion, confusion_rows, confusion_section, read_confusions
from smke_jax.reporting.evaluations import Evaluation, write_examples
from smke_jax.reporting.run_report import write_run_report
from smke_jax.tasks.base import Split
from smke_jax.training.evaluation import write_figures

HOSTILE = HOSTILE.replace("\ud800", "")  # classes are UTF-8
NAMES = ("daisy", "rose", HOSTILE)
LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 0])
SCORES = np.eye(3, dtype=np.float32)[PREDICTED] * [[3], [1], [9], [1], [1], [2]] + [0.0, 0.01, 0.0]


def figures(names=NAMES):
    photo = lambda i: np.full((8, 8, 3), 20 * i, np.uint8)  # noqa: E731
    facts = {"labels": LABELS, "classes": names, "pixels": photo}
    return accuracy_figures(SCORES, Split("flowers dev", "", {}, facts), "by a test")


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "mine", r1=50.0)
    found = figures()
    write_figures(path / "evals" / "40" / "accuracy", found)
    write_examples(path / "evals", "accuracy", 40, found.examples())
    record = json.loads((path / "run.json").read_text())
    record["data"] = [{"split": "train", "data": "flowers", "images": 1200, "classes": 3}]
    (path / "run.json").write_text(json.dumps(record))
    return path


def test_the_report_has_the_matrix_and_the_predictions(run):
    page, markdown = (path.read_text(encoding="utf-8") for path in write_run_report(run, {}))
    Page(run / "report.html")  # whatever a class is called, it stays text
    assert "Trained on 1,200 images in 3 classes of flowers." in page
    assert "Which classes are confused (accuracy, step 40)" in page and "The surest mistakes" in page
    assert "| daisy " in markdown and "66.7 %" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| daisy") and "%" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["daisy", "2", "1", "0", "66.7 %"]
    assert "66.67 (30.0 to 90.3)" in markdown, "the share of all, with its interval"


def test_the_surest_mistake_comes_first_and_a_row_is_shown_with_its_class():
    shown = figures().examples()
    assert [own for _, own, _ in shown["mistakes"]] == ["daisy", HOSTILE] and len(shown["predictions"]) == 6
    image, own, found = shown["mistakes"][0]
    assert image[0, 0, 0] == 40 and found[0] == ("rose", False) and len(found) == 3
    assert [ok for _, _, rows in shown["predictions"] for name, ok in rows].count(True) == 6


def test_of_many_classes_the_confused_pairs_are_listed():
    counts = np.diag(np.full(30, 9))
    counts[3, 4], counts[20, 1], counts[5, 5] = 7, 2, 0
    heads, rows = confusion_rows(Confusion([f"class {i}" for i in range(30)], counts))
    assert heads == ("class", "taken for", "images", "of the class")
    assert rows == [["class 3", "class 4", "7", "43.8 %"], ["class 20", "class 1", "2", "18.2 %"]]
    assert "class 3" in confusion_section("a", 1, Confusion([f"class {i}" for i in range(30)], counts))


def test_every_cell_has_its_number_and_no_shade_hides_it():
    section = confusion_section("a", 1, Confusion(["x", "y"], np.array([[8, 2], [0, 0]])))
    for text in (">8</td>", ">2</td>", "80.0 %", "0.0 %", "var(--series0) 44%", "var(--series0) 11%"):
        assert text in section
    assert section.count("<td") == 6 and section.count("font-weight: 600") == 2


def test_sentences_are_counted_as_rows(tmp_path):
    write_figures(tmp_path / "labels", figures())
    problems, found = [], Evaluation("labels", 1, figures().record | {"samples": {}}, tmp_path / "labels.npz")
    for record, unit in ((found.record, "rows"), (figures().record, "images")):
        ((_, confusion),) = read_confusions([found._replace(record=record)], problems).values()
        assert f"{unit} counted" in confusion_section("labels", 1, confusion) and not problems


@pytest.mark.parametrize("share", (0.0, 0.5, 0.9))
def test_damaged_arrays_leave_the_rest_of_the_report(run, share):
    path = run / "evals" / "40" / "accuracy.npz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)] if share else b"broken")
    page, markdown = (path.read_text(encoding="utf-8") for path in write_run_report(run, {}))
    assert "accuracy.npz is damaged or missing: its confusion matrix is left out" in page
    assert "Which classes are confused" not in markdown and "Images and the classes found for them" in page
