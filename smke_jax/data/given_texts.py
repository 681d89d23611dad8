"""Texts as callers give them -> what a tokenizer takes, or a plain reason why not."""

from typing import Any


class BadText(ValueError):
    """No text, or one with characters that cannot be encoded; says why in a few words."""


def text_of(x: Any) -> str:
    """`x` where it is a text; BadText where it is none or cannot be encoded."""
    if not isinstance(x, str):
        raise BadText(f"a {type(x).__name__} is no text")
    try:
        x.encode()
    except UnicodeEncodeError as error:
        raise BadText(f"character {error.start} is half a surrogate pair, which cannot be encoded") from None
    return str(x)
