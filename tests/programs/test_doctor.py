"""`smke doctor` as a program: what it prints, its exit status, and a config's data and weights."""

import json

import pytest
import tiny_pairs

from smke_jax.__main__ import main
from smke_jax.programs import doctor
from smke_jax.studies.doctor.findings import Finding


@pytest.fixture
def sound(monkeypatch):
    """The machine is sound and looked at elsewhere: one line stands for it."""
    monkeypatch.setattr(doctor, "_look", lambda workdir, stages: [Finding("machine", True, "fine"), *looked(stages)])


def looked(stages):
    return doctor.check_config(stages) if stages else []


def test_everything_is_looked_at(capsys):
    """The real machine: its findings may be good or bad, and the status says which."""
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    names = [x["what"] for x in found["findings"]]
    assert names == ["versions", "devices", "settings", "cache", "disk", "memory", "collective", "step float32",
                     "step bfloat16"]  # fmt: skip
    assert status == (0 if found["ok"] else 1)
    assert all(x["ok"] for x in found["findings"] if x["what"] not in ("disk", "memory"))  # others use these


def test_one_line_each_and_the_status(capsys, monkeypatch):
    findings = [Finding("disk", True, "fast"), Finding("memory", False, "full: add some")]
    monkeypatch.setattr(doctor, "_look", lambda workdir, stages: findings)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["ok     disk           fast", "WRONG  memory         full: add some"]
    assert lines[2].startswith("1 of 2 are wrong") and len(lines) == 3


def test_a_config_that_could_be_trained(sound, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(tiny_pairs.CONFIG_FILE)
    assert main(["doctor", f"--config={path}"]) == 0
    printed = capsys.readouterr().out
    assert "32 rows an epoch, 6 steps" in printed and "the first batch of 8 was read" in printed
    assert sorted(x.name for x in tmp_path.iterdir() if x.name != "__pycache__") == ["config.py"]


def test_a_config_whose_weights_are_missing(sound, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(tiny_pairs.CONFIG_FILE)
    assert main(["doctor", f"--config={path}", "--config.networks.target.start=nowhere"]) == 1
    assert "WRONG  config         config.networks.target: no weights at nowhere" in capsys.readouterr().out


def test_an_override_needs_a_config(fails):
    assert "give --config=FILE too" in fails("doctor", "--config.batch_size=8")
