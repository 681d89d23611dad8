"""When a photo was taken, as its record in the index has it: seconds since 1970 by the clock of the camera."""

import calendar
import datetime
import time

EPOCH = datetime.datetime(1970, 1, 1)


def seconds_of(date: str) -> int:
    """'YYYY', 'YYYY-MM' or 'YYYY-MM-DD' -> its first second; ValueError otherwise."""
    for form in ("%Y-%m-%d", "%Y-%m", "%Y"):
        try:
            return calendar.timegm(time.strptime(date, form))
        except ValueError:
            continue
    raise ValueError(date)


def date_of(seconds: int) -> str:
    """'YYYY-MM-DD HH:MM:SS' of a photo's record."""
    return f"{EPOCH + datetime.timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}"
