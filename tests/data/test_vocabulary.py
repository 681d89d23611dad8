"""The vocabulary of a run: replaced only where a run wrote it."""

import pytest

from smke_jax.data.tokenizer import Normaliser, train_wordpiece
from smke_jax.errors import UserError
from smke_jax.tasks.vocabulary import open_vocabulary
from smke_jax.training.record import check_workdir


def opened(workdir, words, given="", begun=False):
    return open_vocabulary(workdir / "tokenizer", begun=begun, given=str(given or ""), size=60, captions=lambda: words)


def test_what_a_refused_command_left_over_is_replaced(tmp_path):
    first = opened(tmp_path, ["a red dog"])
    check_workdir(tmp_path)
    second = opened(tmp_path, ["two blue cats"])
    assert second.digest != first.digest and opened(tmp_path, [], begun=True).digest == second.digest


def test_a_vocabulary_of_the_users_own_is_refused_and_stays(tmp_path):
    train_wordpiece(["a red dog"], 60).save(tmp_path / "tokenizer")
    before = {path: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    with pytest.raises(UserError, match="is no run, it holds tokenizer: give an empty --workdir"):
        check_workdir(tmp_path)
    with pytest.raises(UserError, match="tokenizer was not made by a run, .*: move it or give another --workdir"):
        opened(tmp_path, [], given=tmp_path / "tokenizer")
    assert {path: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()} == before


def test_a_given_vocabulary_says_itself_what_it_does_to_text(tmp_path):
    train_wordpiece(["a red dog"], 60).save(tmp_path / "given")
    with pytest.raises(UserError, match="says itself what it does to text: leave strip_accents out"):
        open_vocabulary(
            tmp_path / "run/tokenizer", begun=False, given=str(tmp_path / "given"), size=60, captions=list,
            normaliser=Normaliser(strip_accents=False),
        )  # fmt: skip
