"""The one exception a user is meant to read, and the name that a user may have meant."""

import difflib


class UserError(Exception):
    """Something the user can mend: one line that names the thing and the remedy.

    Programs print it as `error: …` without a traceback and exit with status 2.
    """


def nearest(name: str, known: list[str]) -> str:
    """': did you mean X?' for the name among `known` that `name` is most like, or nothing."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f": did you mean {close[0]}?" if close else ""
