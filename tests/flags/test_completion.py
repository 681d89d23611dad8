"""The shells complete programs, flags and values, by the scripts that `smke completion` prints."""

import shutil
import subprocess

import pytest

from smke_jax.__main__ import main
from smke_jax.flags import PROGRAMS


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of `words`, as it cuts them."""
    given = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _smke; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    # Outside of completion, bash has no compopt.
    run = subprocess.run(
        ["bash", "-c", f"compopt() {{ :; }}\n{script}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert not run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("words,found", [
    (["smke", ""], list(PROGRAMS)),
    (["smke", "se"], ["search", "serve"]),
    (["smke", "serve", "--"], ["--help", "--index=", "--model=", "--port=", "--open"]),
    (["smke", "export", "--f"], ["--format="]),
    (["smke", "export", "--format", "="], ["flax", "hf", "thesis", "onnx"]),
    (["smke", "export", "--workdir", "=", "x", "--format", "=", "h"], ["hf"]),
    (["smke", "export", "--workdir", "=", ""], []),  # so bash completes names of files
    (["smke", "prepare", "flickr"], ["flickr8k", "flickr30k"]),
    (["smke", "prepare", "folder", "--ho"], ["--holdout="]),
])  # fmt: skip
def test_bash(words, found, capsys):
    assert main(["completion", "bash"]) == 0
    assert completed(capsys.readouterr().out, *words) == found


def test_zsh_reads_its_script(capsys):
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    assert main(["completion", "zsh"]) == 0
    run = ["zsh", "-fc", f"autoload -U compinit && compinit -D -u\n{capsys.readouterr().out}\nprint ${{_comps[smke]}}"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("_smke\n", "")


def test_zsh_has_every_flag(capsys):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert "'--format=[default  flax]:format:(flax hf thesis onnx)'" in script
    assert "'*--minus=[a text to take away from the query]:minus:_files'" in script and "--no-largest[" in script
    assert all(f"        {name}) _arguments " in script for name in PROGRAMS)
