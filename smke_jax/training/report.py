"""The report of a run while it is trained: made at evaluations, and never a reason for the run to end."""

import logging
import time
from pathlib import Path

from smke_jax.evaluators.base import Figures
from smke_jax.parts import departures, filled
from smke_jax.reporting.evaluations import write_examples
from smke_jax.training.record import read_config

log = logging.getLogger("smke_jax")

SHARE = 0.05  # of the time of a run that its reports may take


def report_run(workdir: Path) -> list[Path]:
    """Writes report.html and report.md of the run in `workdir` anew.  Raises UserError where there is no run."""
    from smke_jax.reporting.run_report import write_run_report  # brings matplotlib, which takes most of a second

    return write_run_report(workdir, departures(filled(read_config(workdir))))


class Reporter:
    """Makes the report of the run in `workdir` at evaluations.

    Where evaluations follow each other so fast that the reports would take more than a SHARE of the time, some of them
    get none; the last one gets one in any case.  What goes wrong is said in one line, whatever it is: the training is
    worth more than its report.
    """

    def __init__(self, workdir: Path, clock=time.monotonic):
        self._workdir, self._clock = workdir, clock
        self._done, self._took = clock(), 0.0

    def keep_examples(self, name: str, step: int, figures: Figures) -> None:
        """Keeps what the evaluator `name` has to show; the pictures may be unreadable, and the disk full."""
        if figures.examples is None:
            return
        try:
            write_examples(self._workdir / "evals", name, step, figures.examples())
        except Exception as error:
            log.warning("step %d: no examples of %s (%s: %s); the run goes on", step, name, type(error).__name__, error)

    def evaluated(self, step: int, *, last: bool) -> None:
        """Makes the report."""
        start = self._clock()
        if not last and (start - self._done) * SHARE < self._took:
            return
        try:
            report_run(self._workdir)
        except Exception as error:
            log.warning("step %d: no report (%s: %s); the run goes on", step, type(error).__name__, error)
        self._done = self._clock()
        self._took = self._done - start
