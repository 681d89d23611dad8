"""Limits of the values that configs and files give: each knows its own complaint."""

import math
from typing import Any, NamedTuple

from smke_jax.errors import UserError

LARGEST = 2**31 - 1  # of a whole number: no axis of an array is longer, and no run has more steps


class Range(NamedTuple):
    """Of a number; None is no limit.

    closed:     whether `highest` itself is allowed
    open_below: whether `lowest` itself is not
    """

    lowest: float | None = None
    highest: float | None = None
    closed: bool = True
    open_below: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises UserError for a number outside, and for one that is not finite.  Other types pass."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{name} is {value:.3g}: no whole number here is above {LARGEST:,}")
        if not math.isfinite(value):
            raise UserError(f"{name} is {value}: give a finite number")
        low, high = self.lowest, self.highest
        under = low is not None and (value < low or (self.open_below and value == low))
        over = high is not None and (value > high or (not self.closed and value == high))
        if under or over:
            lower = "" if low is None else f"above {low}" if self.open_below else f"at least {low}"
            upper = "" if high is None else f"{'at most' if self.closed else 'below'} {high}"
            raise UserError(f"{name} is {value}: it has to be {' and '.join(filter(None, (lower, upper)))}")


ANY, AT_LEAST_0, AT_LEAST_1, ABOVE_0 = Range(), Range(0), Range(1), Range(0, open_below=True)
SHARE, BELOW_1, ABOVE_0_TO_1 = Range(0, 1), Range(0, 1, closed=False), Range(0, 1, open_below=True)
LAYERS = Range(1, 1000)


class Entries(NamedTuple):
    """Of a tuple: the type of its entries, how many there are (None is any number), and their range."""

    kind: type
    count: int | None = None
    range: Range = ANY

    def check(self, name: str, value: Any) -> None:
        """Raises UserError where `value` is no such tuple or list."""
        known = (int, float) if self.kind is float else (self.kind,)
        is_one = isinstance(value, (list, tuple)) and self.count in (None, len(value))
        if not is_one or any(type(x) not in known for x in value):
            what = {int: "whole numbers", float: "numbers", str: "texts"}[self.kind]
            raise UserError(f"{name} is {value!r}: give {f'{self.count} ' if self.count else ''}{what} in parentheses")
        for x in value:
            self.range.check(name, x)


class OneOrMore(NamedTuple):
    """Of one text, or of a tuple of texts."""

    def check(self, name: str, value: Any) -> None:
        """Raises UserError where `value` is neither."""
        if not isinstance(value, str):
            Entries(str).check(name, value)
