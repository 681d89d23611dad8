"""What tests of several programs share."""

import pytest

from smke_jax.__main__ import main


@pytest.fixture
def fails(capsys):
    """Runs `smke …`; returns the one line it printed as its error."""

    def run(*argv) -> str:
        capsys.readouterr()
        assert main([str(a) for a in argv]) == 2
        printed = capsys.readouterr().err.splitlines()
        errors = [line for line in printed if line.startswith("error: ")]
        assert len(errors) == 1 and printed[-1] == errors[0], printed
        assert not [line for line in printed if "Traceback" in line]
        return errors[0]

    return run
