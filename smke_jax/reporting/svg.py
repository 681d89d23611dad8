"""Figures as SVG inside a page: they follow the page's light or dark colours, and their text stays text."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from smke_jax.reporting.html import SERIES, escape

# What is drawn in black is drawn in the page's own colour of text.  The style sheet has the other variables.
INK, GRID = ("#000000", "#111111"), "#e6e6e6"


def inline_svg(figure: Figure, name: str, caption: str) -> str:
    """`figure` as an <svg> element that is as wide as its place.

    name:    other figures of the page have other names: ids and references begin with it
    caption: what a screen reader says of it
    The same figure gives the same text.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "smke"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    body = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]  # what is before styles the whole page
    # What a label says lies between the tags, and stays as it is.
    body = re.sub(r"<[^>]*>", lambda tag: _in_page(tag[0], name), body)
    body = re.sub(r"\n\s*", " ", body)
    return f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(caption)}">{body}</svg>'


def _in_page(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    return re.sub(r'style="[^"]*"', lambda style: _themed(style[0]), tag)


def _themed(style: str) -> str:
    for black in INK:
        style = style.replace(black, "currentColor")
    style = style.replace(GRID, "var(--grid)")
    for number, colour in enumerate(SERIES):
        style = style.replace(colour.lower(), f"var(--series{number})")
    return style
