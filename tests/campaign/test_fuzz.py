"""A few inputs of every kind of the campaign; `python tests/campaign/fuzz.py --inputs=10000` is the whole of it."""

import random
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "search")]  # what makes photos with known embeddings
import fuzz  # noqa: E402
from fuzz import Bench, Finding, campaign  # noqa: E402
from kinds import KINDS, Kind  # noqa: E402
from mutations import MUTATIONS, mutated  # noqa: E402

EACH = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_used_refused_or_counted(name):
    count, findings = campaign(name, EACH)
    assert not findings
    assert count.total() == EACH


def test_damage_is_the_same_each_time_and_changes_the_file():
    data = b'{"a": [1, 2, {"b": "c"}]}\n' * 40
    for mutation in MUTATIONS:
        once, again = (mutated(data, random.Random(3), (mutation,)) for _ in range(2))
        assert once == again != data, mutation.__name__


def use(folder, scratch, name, sound):
    data = (folder / name).read_bytes()
    (folder / "left behind").write_text("")
    if data == sound:
        return "used"
    if len(data) < len(sound):
        raise Finding("too short")
    return "refused" if len(data) == len(sound) else {}["a bug"]


def test_every_exception_is_a_finding_and_the_files_are_whole_again(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "made up", Kind({"a": b"x" * 100}, ("a",), use))
    found, findings = campaign("made up", 60)
    assert found["refused"] and found["found"] == len(findings) and found["refused"] + len(findings) == 60
    assert any("Finding: too short" in line for line in findings)
    assert any("KeyError: 'a bug'" in line for line in findings)
    bench = Bench("made up", KINDS["made up"], tmp_path / "files")
    for seed in range(5):
        try:
            bench.try_one(seed)
        except (Finding, KeyError):
            pass
        assert {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()} == {"a": b"x" * 100}


def test_sound_files_that_are_refused_are_a_mistake_of_the_campaign(tmp_path):
    with pytest.raises(Finding, match="sound files of 'x' were refused"):
        Bench("x", Kind({"a": b"x"}, ("a",), lambda *_: "refused"), tmp_path / "files")


def test_an_input_that_takes_too_long_is_a_finding(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    with pytest.raises(Finding, match="more than 1 s"), fuzz.time_limit():
        while True:
            pass
