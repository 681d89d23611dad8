"""`%smke` in Jupyter: the programs in the notebook's own process, so that both do not ask for the same GPU's memory.

    %load_ext smke_jax.notebook
    %smke train --config=configs/scenes.py --workdir=runs/scenes --config.total_steps={steps}

IPython puts Python's values in the place of {names}.
"""

import shlex

from smke_jax.__main__ import keep_compiled_programs, main, start_logging


class ProgramFailed(Exception):
    """A program ended with another status than 0; what it printed says why."""

    def _render_traceback_(self) -> list[str]:  # IPython shows this in place of a traceback
        return [str(self)]


def smke(line: str) -> None:
    """Runs `smke LINE`; raises ProgramFailed where a shell would see another status than 0."""
    arguments = shlex.split(line)
    try:
        status = main(arguments)
    except SystemExit as stop:  # --help, and flags that argparse refuses
        status = stop.code or 0
    if status:
        raise ProgramFailed(f"smke {' '.join(arguments[:1])} ended with status {status}: see above")


def load_ipython_extension(ipython) -> None:
    """What `%load_ext smke_jax.notebook` calls."""
    keep_compiled_programs()  # before the notebook imports JAX, which reads once where they lie
    start_logging()  # and before it imports libraries that set up logging their own way
    ipython.register_magic_function(smke, "line", "smke")
