"""What one look at the machine found."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the doctor.

    what: was looked at, in a word or two
    ok:   False where something has to be done about it
    said: what was found; where it is not ok, also what to do about it
    """

    what: str
    ok: bool
    said: str


def judged(what: str, said: str, wrong: list[str]) -> Finding:
    """A finding that is ok where nothing is `wrong`; each of `wrong` says what to do."""
    return Finding(what, not wrong, "; ".join([*wrong, f"found: {said}"]) if wrong else said)
