"""`smke ladder`: which recipes and runs, mistakes at the command line, and two real rungs, interrupted on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smke_jax.__main__ import main
from smke_jax.programs.ladder import choose, find_recipes

TESTS = Path(__file__).resolve().parents[1]
CONFIG = f"""'''The tiny recipe.'''
import sys
sys.path.insert(0, {str(TESTS)!r})
from tiny import tiny_config
from smke_jax.config import split_variant, variant_of
from smke_jax.rungs import Rung

RUNGS = (RUNGS_HERE,)

def get_config(variant=""):
    kind, form = split_variant(variant, ("dark", "light"))
    c = variant_of(tiny_config(), form)
    c.data.update(source="tiny", vocab_size=60, max_length=8)
    c.update(batch_size=8, total_steps=12, num_devices=2)
    c.data.jitter = 0.4 if kind == "dark" else 0.0
    c.eval.update(split="dev", batch_size=8)
    return c
"""


@pytest.fixture
def configs(tmp_path) -> Path:
    """Three rungs in two files, and a config that is none."""
    folder = tmp_path / "configs"
    folder.mkdir()
    rungs = {
        "plain": 'Rung(order=2, section="8", changed="nothing")',
        "hue": 'Rung(3, "9", "darker", "dark", against="plain"), Rung(1, "9", "lighter", "light")',
    }
    for name, rung in rungs.items():
        (folder / f"{name}.py").write_text(CONFIG.replace("RUNGS_HERE", rung))
    (folder / "other.py").write_text("from tiny import tiny_config as get_config\n")
    return folder


@pytest.fixture
def planned(tmp_path, configs, capsys):
    """What `smke ladder --dry_run` prints: {run: (state, command)}."""

    def plan(*flags) -> dict[str, tuple[str, str]]:
        assert main(["ladder", f"--configs={configs}", f"--out={tmp_path / 'out'}", "--dry_run", *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {
            name: (state, command.strip())
            for (name, _, state), command in zip((line.partition(": ") for line in lines[::2]), lines[1::2])
        }

    return plan


def test_every_rung_is_a_run_in_the_order_of_the_ladder(planned, configs, tmp_path):
    runs = planned("--config.teacher.checkpoint=random")
    assert list(runs) == ["hue-light,seed=42", "plain,seed=42", "hue-dark,seed=42"]
    assert runs["hue-dark,seed=42"] == (
        "to be run",
        f"smke train --config={configs}/hue.py:dark,flickr8k --workdir={tmp_path}/out/hue-dark,seed=42"
        " --config.teacher.checkpoint=random",
    )
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_lacks_is_said_before_it_runs(planned, configs, tmp_path, capsys):
    state, _ = planned("--recipes=plain")["plain,seed=42"]
    assert state.startswith("cannot run as it is (no weights at runs/teacher_flickr8k/export")
    out = tmp_path / "out"
    assert main(["ladder", f"--configs={configs}", f"--out={out}", "--recipes=plain,hue"]) == 1
    said = capsys.readouterr().err
    assert "0 of 3 runs are finished" in said and said.count("FAILED: no weights at") + said.count("failed: no w") == 3
    assert {record["state"] for record in json.loads((out / "jobs.json").read_text()).values()} == {"failed"}


def test_the_form_and_overrides_hold_for_all(planned, configs):
    runs = planned("--form=smoke", "--config.batch_size=4", "--config.seed=7", "--recipes=plain")
    ((name, (_, command)),) = runs.items()
    assert name == "plain,seed=7" and f"--config={configs}/plain.py:smoke" in command
    assert command.endswith("--config.batch_size=4 --config.seed=7")


def test_seeds_are_runs_of_their_own(planned):
    runs = planned("--seeds=1,2,1", "--recipes=plain")
    assert list(runs) == ["plain,seed=1", "plain,seed=2"]
    assert runs["plain,seed=2"][1].endswith(" --config.seed=2")


def test_minutes_are_steps_once_they_are_measured(planned, tmp_path):
    (state, command), *_ = planned("--minutes=5", "--config.teacher.checkpoint=random").values()
    assert state == "to be run, with as many steps as a short run will tell" and "total_steps" not in command


def test_recipes_are_chosen_by_file_or_variant(configs):
    recipes = find_recipes(configs)

    def chosen(*names):
        return [recipe.name for recipe in choose(recipes, names)]

    assert chosen() == ["hue:light", "plain", "hue:dark"]
    assert chosen("hue") == ["hue:light", "hue:dark"]
    assert chosen("plain", "hue:light") == ["hue:light", "plain"]


@pytest.mark.parametrize("flags,parts", [
    (["--recipes=plane"], ["no recipe plane", "did you mean plain?"]),
    (["--recipes=hue:darc"], ["no recipe hue:darc", "did you mean hue:dark?"]),
    (["--reference=hue"], ["no recipe hue", "did you mean hue:"]),
    (["--minutes=5", "--config.total_steps=3"], ["config.total_steps and --minutes say the same"]),
    (["--minutes=5", "--config.epochs=3"], ["config.epochs and --minutes"]),
    (["--seeds=1", "--config.seed=3"], ["config.seed and --seeds"]),
    (["--config.bach_size=3"], ["unknown config key config.bach_size", "did you mean config.batch_size?"]),
    (["--configs=nowhere"], ["no config in nowhere has a constant RUNGS"]),
])  # fmt: skip
def test_mistakes_are_named_before_anything_runs(configs, tmp_path, capsys, flags, parts):
    assert main(["ladder", f"--configs={configs}", f"--out={tmp_path / 'out'}", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--minutes=x", "--minutes=0", "--minutes=-1", "--minutes=nan", "--seeds=a"])
def test_numbers_that_are_none(configs, tmp_path, capsys, flag):
    with pytest.raises(SystemExit):
        main(["ladder", f"--configs={configs}", f"--out={tmp_path / 'out'}", flag])
    assert f"{flag.partition('=')[2]!r} is no" in capsys.readouterr().err


def test_rungs_that_are_none_are_refused(configs, tmp_path, capsys):
    (configs / "plain.py").write_text(CONFIG.replace("RUNGS_HERE", "3"))
    assert main(["ladder", f"--configs={configs}", f"--out={tmp_path / 'out'}"]) == 2
    assert f"RUNGS of {configs / 'plain.py'} has to be a tuple" in capsys.readouterr().err


def logged_steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [row["step"] for row in rows if "loss" in row]


SLOW = """
import time
from smke_jax.training import loop
put_batch = loop.put_batch

def slow_put(batch, mesh):
    time.sleep(0.1)
    return put_batch(batch, mesh)

loop.put_batch = slow_put
"""


@pytest.mark.slow
def test_two_rungs_are_timed_trained_interrupted_continued_and_compared(configs, tmp_path):
    for path in (configs / "plain.py", configs / "hue.py"):
        path.write_text(path.read_text() + SLOW)
    out, minutes = tmp_path / "out", "--minutes=0.05"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-m", "smke_jax", "ladder", f"--configs={configs}", f"--out={out}", "--form=smoke",
               "--recipes=plain,hue:dark", minutes, "--config.log.every=1", "--write_readme"]  # fmt: skip
    first, second = out / "plain,seed=42", out / "hue-dark,seed=42"

    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 500
    while len(logged_steps(first)) < 3:
        assert time.monotonic() < deadline and started.poll() is None, started.communicate()[1]
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    printed, said = started.communicate(timeout=300)
    assert started.returncode == 128 + signal.SIGTERM and printed == "", said
    assert "stopped by SIGTERM; the same command continues" in said and not second.exists()
    measured = json.loads((out / "calibration.json").read_text())["plain"]
    total = measured["total_steps"]
    assert total == round(3 * measured["steps_per_second"]) and 3 < total < 30  # a step takes more than 0.1 s
    assert not (out / "calibrating").exists()

    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert "continuing from step" in done.stderr and "2 of 2 runs are finished" in done.stderr
    after = json.loads((out / "calibration.json").read_text())
    assert after["plain"] == measured and after["hue:dark"]["total_steps"] > 3
    assert logged_steps(first) == list(range(1, total + 1))
    assert json.loads((second / "config.json").read_text())["total_steps"] == after["hue:dark"]["total_steps"]

    rows = [line for line in done.stdout.splitlines() if line.startswith(("| plain", "| hue:dark"))]
    assert len(rows) == 2 + 2 and " plain " in rows[1] and f" {total} " in rows[0]
    readme = (configs / "README.md").read_text()
    assert done.stdout.strip() in readme and "`smke ladder --configs=" in readme and "- hardware: " in readme
    assert (configs / "ladder.png").stat().st_size > 5000

    times = [path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")]
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert again.returncode == 0 and again.stderr.count("finished already") == 2
    assert times == [path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")]
    refused = subprocess.run([*command[:-3], "--minutes=1"], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "--minutes: 0.05 there, 1 now" in refused.stderr
