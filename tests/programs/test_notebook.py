"""`%smke`: the programs in a notebook's own process."""

import pytest

from smke_jax.notebook import ProgramFailed, load_ipython_extension, smke


class Shell:
    """What of IPython's shell an extension is given."""

    def __init__(self):
        self.magics = {}

    def register_magic_function(self, function, kind, name):
        self.magics[kind, name] = function


def test_the_line_magic_runs_a_program(capsys):
    shell = Shell()
    load_ipython_extension(shell)
    shell.magics["line", "smke"]("--help")
    assert "photos" in capsys.readouterr().out


def test_a_quoted_argument_stays_whole(capsys):
    with pytest.raises(ProgramFailed):
        smke("search 'two dogs' --index='no such index'")
    assert "no such index" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["search dog --index=nowhere", "search dog --unknown=1", "nonsense"])
def test_what_fails_stops_the_notebook_without_a_traceback(line, capsys):
    with pytest.raises(ProgramFailed, match=f"smke {line.split()[0]} ended with status 2") as failed:
        smke(line)
    assert "error: " in capsys.readouterr().err
    assert failed.value._render_traceback_() == [str(failed.value)]


def test_help_of_a_program_is_no_failure(capsys):
    smke("search --help")
    assert "smke search" in capsys.readouterr().out
