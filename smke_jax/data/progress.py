"""One line of progress now and then, readable in a terminal and in a log file."""

import sys
import time


class Progress:
    """Prints `label: done/total, rate, time left` to stderr at most every `every` seconds.

    `total` 0 means unknown.
    """

    def __init__(self, label: str, total: int, *, every: float = 3.0):
        self.label, self.total, self.every = label, total, every
        self.start = self.shown = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        rate = done / (now - self.start)
        line = f"{self.label}: {done}{f'/{self.total}' if self.total else ''}, {rate:.0f}/s"
        if self.total and rate > 0:
            left = round(max(0, self.total - done) / rate)
            line += f", {left // 60} min {left % 60:02d} s left"
        print(line, file=sys.stderr, flush=True)
