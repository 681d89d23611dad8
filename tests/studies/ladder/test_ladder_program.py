"""`smke ladder`: which recipes and runs, mistakes at the command line, and two real rungs, interrupted on the way."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import made_ranks, make_run

from smke_jax.__main__ import main
from smke_jax.config_files import load_stages
from smke_jax.studies import jobs
from smke_jax.studies.ladder.recipes import choose, find_recipes
from smke_jax.training import loop

TESTS = Path(__file__).resolve().parents[2]
CONFIG = f"""'''The tiny recipe.'''
import sys
sys.path.insert(0, {str(TESTS)!r})
from tiny import tiny_config, tiny_stages
from smke_jax.forms import split_variant
from smke_jax.rungs import Rung

RUNGS = (RUNGS_HERE,)

def get_config(variant=""):
    kind, form = split_variant(variant, ("dark", "light"))
    c = tiny_config()
    if form.name == "flickr8k":
        c.networks.teacher = form.teacher()
    c.total_steps = 12
    c.task.jitter = 0.4 if kind == "dark" else 0.0
    return c
"""
STAGES = """
def get_stages(variant=""):
    return tiny_stages()
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Recipes name their teacher by a relative path."""
    monkeypatch.chdir(tmp_path)


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
def teacher(configs) -> Path:
    """The config of the teacher that recipes in the form flickr8k share."""
    path = configs / "teacher_flickr8k.py"
    path.write_text("from tiny import tiny_stages\n\ndef get_config():\n    return tiny_stages()['teacher']\n")
    return path


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The arguments of every `smke` that would have been started; each leaves what it should."""
    started = []

    def run(command, log, head, environment, stop):
        program, *arguments = command[len(jobs.SMKE) :]
        started.append([program, *arguments])
        flags = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
        if program == "export":
            Path(flags["out"]).mkdir()
            (Path(flags["out"]) / "params.safetensors").touch()
            return 0, []
        *_, last = load_stages(flags["config"])
        total, found = int(flags.get("config.total_steps", 40)), 0.4 + len(started) / 20
        folder = Path(flags["workdir"]) / last
        make_run(folder, total_steps=total, ranks=made_ranks(found), seed=int(flags.get("config.seed", 42)))
        (folder / "checkpoints" / str(total)).mkdir(parents=True)
        return 0, []

    monkeypatch.setattr(jobs, "_run", run)
    return started


@pytest.fixture
def planned(tmp_path, configs, capsys):
    """What `smke ladder --dry_run` prints: {run: (state, commands)}."""

    def plan(*flags) -> dict[str, tuple[str, str]]:
        assert main(["ladder", f"--configs={configs}", f"--out={tmp_path / 'out'}", "--dry_run", *flags]) == 0
        found, name = {}, ""
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("  "):
                found[name][1].append(line.strip())
            else:
                name, _, state = line.partition(": ")
                found[name] = state, []
        return {name: (state, " && ".join(commands)) for name, (state, commands) in found.items()}

    return plan


def test_every_rung_is_a_run_in_the_order_of_the_ladder(planned, configs, tmp_path):
    runs = planned("--config.networks.teacher.start=random")
    assert list(runs) == ["hue-light,seed=42", "plain,seed=42", "hue-dark,seed=42"]
    assert runs["hue-dark,seed=42"] == (
        "to be run",
        f"smke train --config={configs}/hue.py:dark,flickr8k --workdir={tmp_path}/out/hue-dark,seed=42"
        " --config.networks.teacher.start=random",
    )
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_lacks_is_said_before_it_runs(planned, configs, tmp_path, capsys):
    state, _ = planned("--recipes=plain")["plain,seed=42"]
    assert state == "cannot run as it is (config.networks.teacher.start: no weights at runs/teacher_flickr8k/export)"
    out = tmp_path / "out"
    assert main(["ladder", f"--configs={configs}", f"--out={out}", "--recipes=plain,hue"]) == 1
    said = capsys.readouterr().err
    assert "0 of 3 runs are finished" in said and said.count("failed: config.networks.teacher.start: no weights") == 3
    assert {record["state"] for record in json.loads((out / "jobs.json").read_text()).values()} == {"failed"}


def test_the_teacher_that_all_share_is_made_first(planned, configs, teacher, tmp_path):
    data = "--config.task.data=elsewhere"
    runs = planned(data, "--config.total_steps=3", "--recipes=plain")
    assert list(runs) == ["teacher_flickr8k", "plain,seed=42"] and runs["plain,seed=42"][0] == "to be run"
    assert runs["teacher_flickr8k"][1] == (
        f"smke train --config={teacher} --workdir=runs/teacher_flickr8k {data} && "
        "smke export --workdir=runs/teacher_flickr8k --out=runs/teacher_flickr8k/export"
    )
    assert list(planned("--recipes=plain", "--form=smoke")) == ["plain,seed=42"]
    (tmp_path / "runs" / "teacher_flickr8k" / "export").mkdir(parents=True)
    (tmp_path / "runs" / "teacher_flickr8k" / "export" / "params.safetensors").touch()
    assert list(planned("--recipes=plain")) == ["plain,seed=42"]


def test_stages_before_the_last_get_seeds_and_places_alone(planned, configs):
    path = configs / "plain.py"
    path.write_text(path.read_text() + STAGES)
    flags = ("--config.task.data=elsewhere", "--config.total_steps=3")
    ((_, command),) = planned("--recipes=plain", "--form=smoke", "--seeds=5", *flags).values()
    stage = "--config.teacher.task.data=elsewhere --config.teacher.seed=5"
    assert command.endswith(f"{' '.join(flags)} --config.seed=5 {stage}")


def test_every_recipe_is_trained_and_compared(configs, teacher, commands, tmp_path, capsys):
    path = configs / "plain.py"
    path.write_text(path.read_text() + STAGES)
    out = tmp_path / "out"
    arguments = ["ladder", f"--configs={configs}", f"--out={out}", "--recipes=plain,hue:dark", "--write_table"]
    assert main(arguments) == 0
    printed, said = capsys.readouterr()
    where = ["/".join(Path(x[2].partition("=")[2]).parts[-2:]) for x in commands if x[0] == "train"]
    assert where == ["runs/teacher_flickr8k", "out/plain,seed=42", "out/hue-dark,seed=42"]
    assert [x[0] for x in commands] == ["train", "export", "train", "train"] and "3 of 3 runs are finished" in said
    rows = [line for line in printed.splitlines() if line.startswith(("| plain", "| hue:dark"))]
    assert len(rows) == 2 + 2 and " plain " in rows[1] and "▲" in rows[1]
    assert (out / "plain,seed=42" / "student" / "run.json").exists()
    table = (configs / "ladder.md").read_text()
    assert printed.strip() in table and "`smke ladder --configs=" in table and "- hardware: " in table
    assert (configs / "ladder.png").stat().st_size > 5000

    assert main(arguments) == 0 and len(commands) == 4
    assert capsys.readouterr().err.count("finished already") == 2
    assert main([*arguments, "--config.batch_size=2"]) == 2
    assert "plain,seed=42 holds a run of another config (config.batch_size: " in capsys.readouterr().err


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
    (state, command), *_ = planned("--minutes=5", "--config.networks.teacher.start=random").values()
    assert state == "to be run, with as many steps as a short run will tell" and "total_steps" not in command


def test_the_steps_that_fill_the_minutes_are_measured_first(configs, commands, tmp_path, capsys):
    path = configs / "plain.py"
    path.write_text(path.read_text() + STAGES)
    out, teacher = tmp_path / "out", "--config.networks.teacher.start=stage:teacher"
    arguments = ["ladder", f"--configs={configs}", f"--out={out}", "--recipes=plain", "--minutes=1", teacher]
    assert main(arguments) == 0
    measuring, training = commands
    assert {"--config.total_steps=11", "--config.teacher.total_steps=1"} <= set(measuring)
    assert "--config.total_steps=94" in training, "100 examples per second in batches of 64"
    assert not (out / "calibrating").exists() and "its speed is measured first" in capsys.readouterr().err
    assert main([*arguments[:-2], "--minutes=2", teacher]) == 2
    assert "--minutes: 1 there, 2 now" in capsys.readouterr().err


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
    assert main(["ladder", f"--configs={configs}", f"--out={tmp_path / 'out'}", flag]) == 2
    assert f"{flag.partition('=')[2]!r} is no" in capsys.readouterr().err


def test_rungs_that_are_none_are_refused(configs, tmp_path, capsys):
    (configs / "plain.py").write_text(CONFIG.replace("RUNGS_HERE", "3"))
    assert main(["ladder", f"--configs={configs}", f"--out={tmp_path / 'out'}"]) == 2
    assert f"RUNGS of {configs / 'plain.py'} has to be a tuple" in capsys.readouterr().err


def logged_steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [row["step"] for row in rows if "loss" in row]


# Two matrices in place of a student: the ladder runs them as it runs any network.
TWO_MATRICES = f"""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
from two_matrices import two_matrices_config
from smke_jax.rungs import Rung
from smke_jax.training import loop

RUNGS = (Rung(ORDER, "8", "CHANGED", "VARIANT"),)
VARIANTS = ("VARIANT",)

def get_config(variant=""):
    c = two_matrices_config()
    c.total_steps, c.checkpoint.every, c.evaluators.retrieval.every = 12, 0, 0
    c.optimizer.learning_rate = RATE
    return c

put_batch = loop.put_batch

def slow_put(batch, mesh):
    time.sleep(0.1)
    return put_batch(batch, mesh)

if put_batch.__name__ != "slow_put":  # the files of several recipes are loaded in one process
    loop.put_batch = slow_put
"""


@pytest.mark.slow
def test_two_rungs_are_timed_trained_interrupted_continued_and_compared(configs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "put_batch", loop.put_batch)  # what the config files put there goes with this test
    for order, (name, variant, rate) in enumerate((("plain", "", 0.01), ("hue", "dark", 0.02))):
        text = TWO_MATRICES.replace("ORDER", str(order)).replace("CHANGED", name).replace("RATE", str(rate))
        (configs / f"{name}.py").write_text(text.replace("VARIANT", variant))
    out, minutes = tmp_path / "out", "--minutes=0.05"
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    command = ["ladder", f"--configs={configs}", f"--out={out}", "--form=smoke", "--recipes=plain,hue:dark", minutes,
               "--config.log.every=1", "--write_table"]  # fmt: skip
    first, second = out / "plain,seed=42", out / "hue-dark,seed=42"

    started = subprocess.Popen(
        [sys.executable, "-m", "smke_jax", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
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

    capsys.readouterr()
    status = main(command)
    printed, said = capsys.readouterr()
    assert status == 0, said
    assert "continuing from step" in said and "2 of 2 runs are finished" in said
    after = json.loads((out / "calibration.json").read_text())
    assert after["plain"] == measured and after["hue:dark"]["total_steps"] > 3
    assert logged_steps(first) == list(range(1, total + 1))
    assert json.loads((second / "config.json").read_text())["total_steps"] == after["hue:dark"]["total_steps"]

    rows = [line for line in printed.splitlines() if line.startswith(("| plain", "| hue:dark"))]
    assert len(rows) == 2 + 2 and " plain " in rows[1] and f" {total} " in rows[0]
    table = (configs / "ladder.md").read_text()
    assert printed.strip() in table and "`smke ladder --configs=" in table and "- hardware: " in table
    assert (configs / "ladder.png").stat().st_size > 5000

    times = [path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")]
    assert main(command) == 0 and capsys.readouterr().err.count("finished already") == 2
    assert times == [path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")]
    assert main([*command[:-3], "--minutes=1"]) == 2
    assert "--minutes: 0.05 there, 1 now" in capsys.readouterr().err
