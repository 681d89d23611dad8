"""The benchmark of the corpus search runs on a small corpus, with and without faiss, and both find the same rows."""

import importlib.util

import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.studies.benchmarks import corpus_search

SMALL = ["--rows=300", "--queries=8", "--k=3", "--width=8", "--rounds=2", "--seconds=0.01"]
HAVE_FAISS = importlib.util.find_spec("faiss") is not None


def test_the_table_has_a_row_for_every_size(tmp_path):
    out = tmp_path / "table.md"
    assert corpus_search.main([*SMALL, f"--out={out}"]) == 0
    (row,) = (line for line in out.read_text().splitlines() if line.startswith("| 300 |"))
    cells = [x.strip() for x in row.split("|")[1:-1]]
    assert len(cells) == 7 and float(cells[1].split()[0]) > 0, "no time was measured"
    assert cells[6] == ("1.00000" if HAVE_FAISS else ""), "faiss finds other rows"
    assert (cells[3] == "not installed") != HAVE_FAISS


def test_how_many_rows_two_searches_share():
    a, b = np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 5]])
    assert corpus_search.agreement(a, b) == 0.75
    assert corpus_search.agreement(a, a + 10) == 0


def test_the_search_on_devices_finds_the_nearest_of_other_images():
    """The table's first column, against a sort in NumPy."""
    made = corpus_search.make(60, 8, 4)
    run, memory = corpus_search.on_devices(made, 6)
    products = made.queries @ made.rows.astype(np.float32).T
    products[made.ids[:, None] == made.owners] = -np.inf
    np.testing.assert_array_equal(run(1), np.argsort(-products, axis=1, kind="stable")[:, :6])
    assert memory > made.rows.nbytes / 8, "a device holds its part of the corpus"


def test_without_faiss_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpus_search.importlib.util, "find_spec", lambda name: None)
    assert corpus_search.main([*SMALL, f"--out={tmp_path / 'table.md'}"]) == 0
    assert "faiss is not installed, so it is left out: pip install faiss-cpu" in capsys.readouterr().err
    assert "| not installed |" in (tmp_path / "table.md").read_text()


def test_a_corpus_without_enough_negatives_is_refused(tmp_path):
    with pytest.raises(UserError, match="--rows=7 with --k=3: 5 rows .* so that 8 are needed: give --rows=8 or more"):
        corpus_search.main([*SMALL, "--rows=300,7", f"--out={tmp_path / 'table.md'}"])


@pytest.mark.skipif(not HAVE_FAISS, reason="faiss is not installed")
def test_own_rows_are_taken_out_of_what_faiss_finds():
    made = corpus_search.make(60, 8, 4)
    found = corpus_search.in_faiss(made, 6)[0](1)
    products = made.queries @ made.rows.astype(np.float32).T
    products[made.ids[:, None] == made.owners] = -np.inf
    np.testing.assert_array_equal(found, np.argsort(-products, axis=1, kind="stable")[:, :6])
