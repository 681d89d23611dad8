"""The ladder's table: what came out, what differs from what, what is missing, and the thesis' figures beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import SPEED, made_ranks, make_run

from smke_jax.errors import UserError
from smke_jax.rungs import Rung
from smke_jax.studies.ladder.lines import read_lines
from smke_jax.studies.ladder.plot import ladder_figure
from smke_jax.studies.ladder.recipes import Recipe
from smke_jax.studies.ladder.write import write_ladder

COCO = (50.0, 60.0, 70.0, 30.0, 40.0, 50.0)
BASE = Recipe(Path("base.py"), Rung(1, "5", "the start", coco=COCO, flickr30k=(60.0,), imagenet=40.25))
PLUS = Recipe(Path("plus.py"), Rung(2, "7", "a bank", "x", coco=tuple(x + 2 for x in COCO), flickr30k=(58.5,)))
LAST = Recipe(Path("last.py"), Rung(3, "9", "no bank", against="base"))
LADDER = [BASE, PLUS, LAST]


def add_run(out: Path, recipe: Recipe, found: float, *, seed: int = 42, images: int = 200, **fields) -> Path:
    ranks = made_ranks(found, images=images, seed=fields.pop("queries", 0))
    return make_run(out / recipe.run_name(seed), ranks=ranks, seed=seed, **fields)


def tables(text: str) -> tuple[list[dict], list[dict]]:
    """The measured table and that of the thesis, by recipe and title; titles that repeat are numbered."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    starts = [i for i, line in enumerate(lines) if line[0] == "recipe"]
    found = []
    for start, stop in zip(starts, (*starts[1:], None), strict=True):
        titles = [f"{title} {i}" if title.startswith("R@") else title for i, title in enumerate(lines[start])]
        found.append([dict(zip(titles, row, strict=True)) for row in lines[start + 2 : stop]])
    measured, thesis = found
    return measured, thesis


def ladder(out: Path, recipes=LADDER, **options) -> tuple[list[dict], str]:
    text, _ = write_ladder(recipes, out, head="head", **options)
    return tables(text)[0], text


def test_directories_have_the_recipe_and_the_seed():
    assert (BASE.run_name(42), PLUS.run_name(1)) == ("base,seed=42", "plus-x,seed=1")


def test_one_recipe_has_all_its_figures(tmp_path):
    add_run(tmp_path, BASE, 0.5, num_devices=2)
    (row,), text = ladder(tmp_path)
    recalls = made_ranks(0.5).recalls()
    cell, other = (f"{x:.1f} ±2.0" for x in recalls[[0, 3]])
    mean = row.pop("mean").split(" ±")
    assert float(mean[0]) == pytest.approx(recalls.mean(), abs=0.06) and 1.5 < float(mean[1]) < 8
    assert row == {
        "recipe": "base", "what changed": "the start", "image → text R@1": cell, "R@5 3": cell, "R@10 4": cell,
        "text → image R@1": other, "R@5 6": other, "R@10 7": other, "against": "–", "difference of the mean": "–",
        "in the thesis: COCO / Flickr30K": "–", "steps": "40", "steps/s": f"{SPEED / 64:.2f}",
        "minutes": f"{40 * 64 / SPEED / 60:.1f}", "memory, GiB": "4.0",
    }  # fmt: skip
    assert "## Measured on made up\n\nhead\n\n" in text and "made up: 200 images, 1000 captions." in text
    assert "2 × NVIDIA H200" in text and "▲" not in text


def test_what_differs_is_marked_and_what_does_not_is_not(tmp_path):
    for recipe, found in ((BASE, 0.5), (PLUS, 0.6), (LAST, 0.502)):
        add_run(tmp_path, recipe, found)
    (base, plus, last), text = ladder(tmp_path)
    assert [row["against"] for row in (base, plus, last)] == ["–", "base", "base"]
    assert "▲" not in str(base) + str(last) and "▼" not in str(base) + str(last)
    assert all(plus[title].endswith(" ▲") for title in plus if "R@" in title or title == "difference of the mean")
    expected = (made_ranks(0.6).recalls() - made_ranks(0.5).recalls()).mean()
    assert plus["difference of the mean"].startswith(f"{expected:+.1f} (+")
    # 2 points on COCO, and 1.5 less on Flickr30K.
    assert plus["in the thesis: COCO / Flickr30K"] == "+2.0 / -1.5"
    assert last["in the thesis: COCO / Flickr30K"] == "– / –"
    assert "0.1 of these 2 differences of the mean would" in text and "one seed it says nothing of other seeds." in text

    (_, _, last), _ = ladder(tmp_path, reference="plus:x")
    assert last["against"] == "plus:x" and last["difference of the mean"].endswith("▼")


def test_a_significant_recall_is_marked_alone(tmp_path):
    add_run(tmp_path, BASE, 0.5)
    ranks = made_ranks(0.5)
    better = ranks._replace(image_to_text=np.where(np.arange(200) < 40, 5, ranks.image_to_text + 4))
    make_run(tmp_path / PLUS.run_name(42), ranks=better)
    (_, plus), _ = ladder(tmp_path)
    marks = [cell[-1] if cell[-1] in "▲▼" else "" for title, cell in plus.items() if "R@" in title]
    assert marks == ["▼", "▲", "▲", "", "", ""]


def test_without_the_run_that_it_stands_against_a_rung_is_not_compared(tmp_path):
    add_run(tmp_path, PLUS, 0.5)
    add_run(tmp_path, LAST, 0.9)
    rows, text = ladder(tmp_path)
    assert [row["against"] for row in rows] == ["base", "base"]
    assert [row["difference of the mean"] for row in rows] == ["not compared"] * 2 and "▲" not in text
    rows, _ = ladder(tmp_path, reference="last")
    assert [row["against"] for row in rows] == ["last", "–"] and "▼" in str(rows[0])
    rows, text = ladder(tmp_path, reference="base")
    assert {row["difference of the mean"] for row in rows} == {"not compared"} and "base has no run in" in text


def test_seeds_of_other_configs_are_left_out(tmp_path):
    for seed, steps in ((1, 40), (2, 80)):
        add_run(tmp_path, BASE, 0.5, seed=seed, total_steps=steps)
    (base,), text = ladder(tmp_path)
    assert base["steps"] == "40" and "seed=2 is left out, a run of another config" in text
    assert "config.total_steps: 40 there, 80 now" in text


def test_other_budgets_and_other_eyes_are_named(tmp_path):
    add_run(tmp_path, BASE, 0.5)
    path = add_run(tmp_path, PLUS, 0.5, total_steps=80) / "evals" / "80" / "retrieval.json"
    path.write_text(path.read_text().replace('"made up"', '"made up, 128 px"'))
    _, text = ladder(tmp_path)
    assert "plus:x and base also differ in their training: 80 steps of 64 against 40 steps of 64" in text
    assert "plus:x and base also differ in how they see the gallery: 128 px against " in text


def test_it_says_what_the_networks_start_from(tmp_path):
    fields = {"networks__teacher__start": "runs/t/export", "networks__teacher__stand_in_classes": 9}
    run = BASE.run_name(42)
    fields["networks__student__image_start"] = "runs/s/export"
    fields["networks__codes__start"] = f"{tmp_path}/{run}/vq/export"
    make_run(tmp_path / run / "student", ranks=made_ranks(0.5), **fields)
    said = {"state": "finished", "error": "", "stages": ["vq", "student"]}
    (tmp_path / "jobs.json").write_text(json.dumps({run: said}))
    (base,), text = ladder(tmp_path)
    assert "so: codes from its stage vq, student (image) from runs/s/export, teacher from runs/t/export." in text
    assert "the cosines of its [CLS] with 9 fixed random directions" in text
    assert base["recipe"] == "base" and base["mean"] != "–"


def test_other_evaluators_have_columns(tmp_path):
    path = add_run(tmp_path, BASE, 0.5) / "evals" / "40" / "probe.json"
    path.write_text('{"auc": 0.75}')
    (base,), _ = ladder(tmp_path)
    assert base["probe auc"] == "0.75"


def test_seeds_are_put_together(tmp_path):
    for seed, found in ((1, 0.5), (2, 0.6)):
        add_run(tmp_path, BASE, found, seed=seed)
    add_run(tmp_path, PLUS, 0.58)
    (base, plus), text = ladder(tmp_path)
    low, high = (made_ranks(found).recalls()[0] for found in (0.5, 0.6))
    assert base["image → text R@1"] == f"{(low + high) / 2:.1f} ({low:.1f}–{high:.1f})"
    assert base["steps"] == "40, 2 seeds" and plus["steps"] == "40"
    assert float(base["mean"].split("±")[1]) > 20, "two seeds say little"
    assert "▲" not in str(plus) and "other seeds might give" in text


def test_unfinished_runs_are_no_result(tmp_path):
    add_run(tmp_path, BASE, 0.5)
    add_run(tmp_path, PLUS, 0.9, steps=20)
    add_run(tmp_path, BASE, 0.9, seed=2, steps=10)
    (base, plus), text = ladder(tmp_path)
    assert base["steps"] == "40" and f"- {tmp_path}/base,seed=2: 10 of 40, not finished" in text
    assert plus["steps"] == "20 of 40, not finished"
    assert plus["mean"] == "–" and plus["difference of the mean"] == "not compared" and "▲" not in str(plus)


def test_runs_without_ranks_are_not_compared(tmp_path):
    add_run(tmp_path, BASE, 0.5)
    path = add_run(tmp_path, PLUS, 0.9)
    (path / "evals" / "40" / "retrieval.npz").unlink()
    (base, plus), text = ladder(tmp_path)
    assert base["mean"] != "–" and plus["image → text R@1"].endswith("±2.0")
    assert (
        plus["mean"] == "–" and plus["difference of the mean"] == "not compared" and "retrieval.npz is missing" in text
    )


OTHER = [{"data": "other photos"}, {"images": 201}, {"evaluators__retrieval__split": "test"}]


@pytest.mark.parametrize("fields", OTHER)
def test_other_galleries_are_not_compared(tmp_path, fields):
    add_run(tmp_path, BASE, 0.5)
    add_run(tmp_path, PLUS, 0.9, **fields)
    (_, plus), text = ladder(tmp_path)
    assert plus["difference of the mean"] == "not compared" and plus["mean"] != "–"
    assert "- plus:x does not compare with base: they were evaluated on different galleries" in text


def test_the_thesis_figures_of_all_recipes(tmp_path):
    add_run(tmp_path, LAST, 0.5)
    text, _ = write_ladder(LADDER, tmp_path, head="")
    base, plus, last = tables(text)[1]
    assert base == {
        "recipe": "base", "what changed": "the start", "COCO image → text": "50 / 60 / 70",
        "COCO text → image": "30 / 40 / 50", "COCO mean": "50", "Flickr30K image → text": "–",
        "Flickr30K text → image": "–", "Flickr30K mean": "60", "ImageNet zero-shot": "40.25",
    }  # fmt: skip
    assert plus["COCO mean"] == "52" and plus["ImageNet zero-shot"] == "–"
    assert set(list(last.values())[2:]) == {"–"}


def test_published_runs_of_another_kind_are_not_compared(tmp_path):
    other = BASE._replace(rung=BASE.rung._replace(published="words from elsewhere"))
    alike = PLUS._replace(rung=PLUS.rung._replace(published="words from elsewhere"))
    for recipe in (BASE, PLUS):
        add_run(tmp_path, recipe, 0.5)
    for recipes, expected in (([other, PLUS], "–"), ([other, alike], "+2.0 / -1.5")):
        rows, text = ladder(tmp_path, recipes)
        assert rows[1]["in the thesis: COCO / Flickr30K"] == expected
        assert tables(text)[1][0]["what changed"] == "the start; published with words from elsewhere"


def test_everything_stands_in_the_json(tmp_path):
    add_run(tmp_path, BASE, 0.5)
    add_run(tmp_path, PLUS, 0.6)
    _, text = ladder(tmp_path)
    assert {path.name for path in tmp_path.glob("ladder.*")} == {"ladder.md", "ladder.json", "ladder.png"}
    assert text in (tmp_path / "ladder.md").read_text()
    base, plus = json.loads((tmp_path / "ladder.json").read_text())["recipes"]
    assert base["difference"] is None and plus["against"] == "base" and plus["rung"]["flickr30k"] == [58.5]
    recalls = made_ranks(0.6).recalls()
    assert [x["value"] for x in plus["recalls"].values()] == pytest.approx([*recalls, recalls.mean()])
    mean = plus["difference"]["mean"]
    assert mean["significant"] == 1 and 0 < mean["ci95"][0] < mean["value"] < mean["ci95"][1]
    (run,) = plus["runs"]
    assert (run["seed"], run["step"], run["peak_memory_gib"]) == (42, 40, 4.0)


def test_the_picture_has_a_line_for_every_recipe(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "smke_jax.studies.ladder.write.ladder_figure", lambda lines: drawn.append(lines) or ladder_figure(lines)
    )
    for recipe, found in ((BASE, 0.5), (PLUS, 0.6), (LAST, 0.4)):
        add_run(tmp_path, recipe, found, steps=20 if recipe is LAST else None)
    _, picture = write_ladder(LADDER, tmp_path, head="")
    assert picture == (tmp_path / "ladder.png").read_bytes() and picture[:4] == b"\x89PNG"
    figure = ladder_figure(*drawn)
    here, coco, flickr30k = figure.axes
    assert [label.get_text() for label in here.get_yticklabels()] == ["base", "plus:x", "last"]
    assert coco.lines[0].get_xydata().tolist() == [[50, 0], [52, 1]]
    assert flickr30k.lines[0].get_xydata().tolist() == [[60, 0], [58.5, 1]]
    markers = {line.get_marker(): line.get_xydata() for line in here.lines if line.get_marker() in "^vo"}
    assert markers["^"].tolist() == [[pytest.approx(made_ranks(0.6).recalls().mean()), 1]]
    assert "v" not in markers and "o" not in markers  # the first has nothing to be compared with
    assert [line.get_xydata()[:, 1].tolist() for line in here.lines if line.get_marker() == "D"] == [[0]]


def test_figures_far_from_the_others_stand_at_the_edge(tmp_path):
    low = LAST._replace(rung=LAST.rung._replace(coco=(0.12,)))
    for recipe in (BASE, PLUS, low):
        add_run(tmp_path, recipe, 0.5)
    lines, _ = read_lines([BASE, PLUS, low], tmp_path)
    coco = ladder_figure(lines).axes[1]
    assert coco.lines[0].get_xydata().tolist() == [[50, 0], [52, 1]]
    assert [text.get_text() for text in coco.texts] == ["← 0.1"]


def test_nothing_to_show_is_said(tmp_path):
    with pytest.raises(UserError, match="has no run of base, plus:x, last"):
        write_ladder(LADDER, tmp_path, head="")
    make_run(tmp_path / "something_else")
    with pytest.raises(UserError, match="has no run of base"):
        write_ladder(LADDER, tmp_path, head="")
