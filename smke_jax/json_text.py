"""JSON of files that anybody may have written."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which also raises RecursionError, with ValueError for whatever cannot be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists within lists, without end") from None
