"""A report's tables of labelled sentences."""

from pathlib import Path

from smke_jax.reporting.evaluations import Evaluation
from smke_jax.reporting.sentences import sample_tables


def test_samples_become_rows_and_damaged_ones_a_line():
    row = {"sentences": ["It rains.", "It is wet."], "label": "entailment", "predicted": 0.5}
    sound = Evaluation("dev", 1200, {"samples": {"right": [row], "wrong": []}}, Path("x"))
    others = [Evaluation("retrieval", 1, {"r1": 2.0}, Path("x"))]
    others += [
        Evaluation(name, 3, {"samples": x}, Path("x")) for name, x in (("a", {}), ("b", {"right": [1]}), ("c", 5))
    ]
    problems = []
    ((title, heads, rows),) = sample_tables([sound, *others], problems)
    assert title == "Sentences (dev, step 1,200)" and len(heads) == 4
    assert rows == [["right", "It rains. — It is wet.", "entailment", "0.5"]]
    assert problems == [f"the sentences of {name} at step 3 are damaged: left out" for name in "abc"]
