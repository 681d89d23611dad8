"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one line that names the thing and the remedy.

    Programs print it as `error: …` without a traceback and exit with status 2.
    """
