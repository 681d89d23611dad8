"""The header of every benchmark's file."""

import re

import jax
import pytest

from smke_jax.errors import UserError
from smke_jax.studies.benchmarks import record


def test_the_file_says_where_and_with_what_it_was_measured(tmp_path):
    path = record.write(tmp_path / "deep" / "x.md", "Steps", "python -m x", "| a |\n")
    text = path.read_text()
    assert text.startswith("# Steps\n\n    python -m x\n\n- hardware: 8 × cpu (cpu); ") and text.endswith("\n\n| a |\n")
    assert f"jax {jax.__version__}" in text
    assert re.search(r"- commit: ([0-9a-f]{7,}(-dirty)?|unknown), 20\d\d-\d\d-\d\d\n", text)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file"):
        record.write(tmp_path / "file" / "x.md", "t", "c", "b")
