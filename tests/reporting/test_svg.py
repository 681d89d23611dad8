"""Figures inside a page: they take its colours, leave its style alone, and hold what captions say as text."""

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from smke_jax.reporting.html import SERIES
from smke_jax.reporting.plots import NEARLY_BLACK, style_axes, with_legend
from smke_jax.reporting.svg import inline_svg


def drawn(label="a <b> & #000000 url(#x)"):
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, "loss")
    axes.plot([1, 2], [3, 4], color=SERIES[1], marker="o", label=label)
    axes.plot([1, 2], [4, 3], color=NEARLY_BLACK, label="total")
    return with_legend(figure, axes)


def test_colours_are_those_of_the_page():
    text = inline_svg(drawn("curve"), "one", "what it shows")
    assert "var(--series1)" in text and "var(--grid)" in text and "currentColor" in text
    assert not re.findall(r"#[0-9a-f]{6}", text)  # no colour that a dark page would not know
    assert "#ffffff" not in text and "<style" not in text  # transparent, and no rule for the whole page
    assert 'aria-label="what it shows"' in text


def test_it_is_sound_and_labels_stay_text():
    text = inline_svg(drawn(), "one", 'a "quoted" <caption>')
    root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns:xlink="x" ', 1))  # HTML knows this prefix
    texts = {"".join(x.itertext()).strip() for x in root.iter("text")}
    assert {"a <b> & #000000 url(#x)", "total", "loss"} <= texts
    assert root.get("aria-label") == 'a "quoted" <caption>'


def test_ids_differ_between_the_figures_of_a_page_and_references_hold():
    one, two = (inline_svg(drawn("curve"), name, "") for name in ("one", "two"))
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in (one, two)]
    assert ids[0] and len(set(ids[0])) == len(ids[0]) and not set(ids[0]) & set(ids[1])
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', one)) <= set(ids[0])
    assert inline_svg(drawn("curve"), "one", "") == one  # the same figure, the same text
