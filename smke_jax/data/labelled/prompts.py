"""Sentences about classes: names of classes put into templates, as zero-shot classification reads them (spec 23)."""

from collections.abc import Sequence
from pathlib import Path

from smke_jax.data.labelled.source import counted
from smke_jax.errors import UserError

PLACE = "{}"  # where the name of the class goes

# Used where no file of templates is given.  Captions of photos are what these models have read.
TEMPLATES = (
    "a photo of {}",
    "a close photo of {}",
    "{} in the middle of the picture",
    "a picture with {} in it",
    "many {} together",
    "one of the {} outside",
    "a small picture of {}",
    "{} in front of a plain background",
)


def read_templates(path: str) -> tuple[str, ...]:
    """The templates in a file, one a line, each with one {} for the name of the class; '' is TEMPLATES.

    Empty lines and lines that begin with # are left out.  Quotes around a template and a comma behind it are taken off,
    as they stand in the notebook in which the 80 templates of CLIP were published.  The same as functions, such as
    open_clip's `lambda c: …`, are refused: {} has to be all that is between braces.
    Raises UserError for a template without its place or with several, and for a file without templates.
    """
    if not path:
        return TEMPLATES
    found = []
    for number, line in _lines(path, "templates"):
        text = line.rstrip(",").strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            text = text[1:-1]
        if text.count(PLACE) != 1:
            places = text.count(PLACE)
            raise UserError(
                f"{path}:{number}: {text!r} has {counted(places, 'place')} for a class: write each line as "
                f"'a photo of {PLACE}', with one {PLACE}"
            )
        found.append(text)
    if not found:
        raise UserError(f"{path} has no template: put one into each line, such as 'a photo of {PLACE}'")
    return tuple(found)


def read_names(path: str, classes: Sequence[str]) -> list[str]:
    """What the classes are called in prompts: the lines of a file, in the order of `classes`.

    path: '' takes `classes` themselves, with spaces for underscores
    Raises UserError where there are not as many lines as classes.
    """
    if not path:
        return [name.replace("_", " ") for name in classes]
    names = [line for _, line in _lines(path, "class_names")]
    if len(names) != len(classes):
        raise UserError(
            f"{path} has {counted(len(names), 'name')} for {len(classes)} classes: give one a line, in the order of "
            f"the classes ({', '.join(classes[:3])}, …)"
        )
    return names


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, all of the first name first."""
    return [template.replace(PLACE, name) for name in names for template in templates]


def _lines(path: str, what: str) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise UserError(f"{what}: {path} cannot be read ({reason})") from None
    numbered = enumerate((line.strip() for line in text.splitlines()), start=1)
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]
