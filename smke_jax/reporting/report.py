"""The report of a run: one HTML file that can be mailed, opened offline and read on a phone.

Built from plain data, so it knows nothing of models, checkpoints or datasets. A part that is empty is left
out and named at the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax import atomic
from smke_jax.reporting import html, plots
from smke_jax.reporting.metrics_log import count_not_finite, read_metrics
from smke_jax.reporting.svg import inline_svg

__all__ = ["Query", "Recall", "RunReport", "read_metrics", "write_report"]

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


class Recall(NamedTuple):
    """One row of the comparison; a plain tuple of the three does as well.

    metrics: what `retrieval_metrics` returns, or {direction: {r1, r5, r10}} in percent, or None when unknown.
    """

    label: str
    metrics: Mapping | None
    note: str = ""


@dataclass(frozen=True)
class Query:
    """A typed text and its top images, best first: uint8 (H, W, 3), scores, and if known which are right."""

    text: str
    images: Sequence[np.ndarray]
    scores: Sequence[float]
    correct: Sequence[bool] | None = None


@dataclass
class RunReport:
    """What a report shows; only the title is needed."""

    title: str
    summary: Sequence[str] = ()  # plain sentences
    headline: Sequence[tuple[str, str]] = ()  # (label, value) shown large at the top
    recalls: Sequence[Recall] = ()  # this run first, then what it is compared with
    metrics_rows: Sequence[Mapping] = ()  # from `read_metrics`
    queries: Sequence[Query] = ()
    text_to_image: Sequence[tuple] = ()  # (caption, [(image, is_right), …])
    image_to_text: Sequence[tuple] = ()  # (image, [(caption, is_right), …])
    facts: Mapping[str, object] = field(default_factory=dict)  # config, hardware, versions, time
    command: str = ""


def write_report(path, report: RunReport) -> Path:
    """Write `report` to `path` as one self-contained HTML file, whole or not at all.

    Raises UserError for images that are not uint8 (H, W, 3).
    """
    parts = {
        "recalls": recall_section("Retrieval", report.recalls),
        "training curves": curves_section(report.metrics_rows),
        "text queries": _queries(report.queries),
        "captions and their images": text_to_image_section(report.text_to_image),
        "images and their captions": image_to_text_section(report.image_to_text),
        "facts": facts_section(report.facts, report.command),
    }
    return atomic.write_text(path, whole_page(report.title, report.summary, report.headline, parts))


def whole_page(
    title: str, summary: Sequence[str], headline: Sequence[tuple[str, str]], parts: Mapping[str, str]
) -> str:
    """The page of these {what it is: section, '' where there is none}; what there is none of is named at the end."""
    body = [
        f"<h1>{html.escape(title)}</h1>", *map(html.paragraph, summary), _tiles(headline),
        *filter(None, parts.values()),
    ]  # fmt: skip
    missing = [name for name, part in parts.items() if not part]
    if missing:
        body.append(html.paragraph(f"Not recorded for this run: {', '.join(missing)}.", "soft"))
    return html.page(title, "\n".join(body))


def _tiles(headline):
    tiles = "".join(f"<div><b>{html.escape(value)}</b>{html.escape(label)}</div>" for label, value in headline)
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def recall_section(title: str, recalls: Sequence, *more: str) -> str:
    """A table of `Recall`s, of which the first is this run's newest, and `more` HTML under it."""
    if not recalls:
        return ""
    groups = "".join(f'<th colspan="3">{name}</th>' for name in DIRECTIONS.values())
    names = "<th>R@1</th><th>R@5</th><th>R@10</th>" * len(DIRECTIONS)
    rows = "\n".join(_recall_row(number == 0, *recall) for number, recall in enumerate(recalls))
    return html.section(
        title,
        f'<div class="scroll"><table class="recalls"><thead><tr><th></th>{groups}<th></th></tr>'
        f"<tr><th></th>{names}<th></th></tr></thead><tbody>{rows}</tbody></table></div>",
        *more,
        note="Recall at K in percent: image → text counts an image as found when any of its captions is "
        "among the top K. Small figures are 95 % bootstrap intervals over images.",
    )


def _recall_row(is_own, label, metrics, note=""):
    metrics = metrics or {}
    cells = "".join(_recall_cell(metrics, direction, key) for direction in DIRECTIONS for key in ("r1", "r5", "r10"))
    if "protocol" in metrics:
        # The numbers mean nothing without it, so it is shown even where the caller wrote no note.
        counts = f"{metrics['protocol']}: {metrics['n_images']} images, {metrics['n_captions']} captions"
        note = f"{note} ({counts})" if note else counts
    style = ' class="own"' if is_own else ""
    return f"<tr{style}><td>{html.escape(label)}</td>{cells}<td>{html.escape(note)}</td></tr>"


def _recall_cell(metrics, direction, key):
    value = (metrics.get(direction) or {}).get(key)
    if value is None:
        return "<td>–</td>"
    interval = ""
    if metrics.get("ci95"):
        low, high = metrics["ci95"][direction][key]
        interval = f"<small>{low:.1f} to {high:.1f}</small>"
    # Chance on a large gallery is far below 0.1 %, and a printed 0.0 would be wrong.
    shown = f"{value:.2g}" if 0 < value < 1 else f"{value:.1f}"
    return f"<td>{shown}{interval}</td>"


def curves_section(rows) -> str:
    """What training logged against the step, from the rows of `read_metrics`."""
    drawn = [
        (plots.loss_figure(rows), _loss_caption(rows)),
        (plots.accuracy_figure(rows), "How often the right partner is the nearest of the batch"),
        (plots.logit_scale_figure(rows), "Logit scales (inverse temperatures)"),
        (plots.norm_figure(rows), "Norms of the gradient, before clipping, and of the update"),
        (plots.spread_figure(rows), "Spread of the embeddings: 1 in all directions alike, 0 collapsed"),
        (plots.throughput_figure(rows), "Speed, and the share of the time spent waiting for data"),
    ]
    figures = drawings(drawn, "training")
    if not figures:
        return ""
    unreadable = getattr(rows, "unreadable", 0)
    note = f"Unreadable lines of the metrics file, left out: {unreadable}." if unreadable else ""
    return html.section("Training", figures, note=note)


def drawings(drawn: Iterable[tuple], name: str) -> str:
    """The figures of (figure or None, caption), beside each other; `name` is unique within the page."""
    figures = [
        html.figure(inline_svg(figure, f"{name}{number}", caption), caption)
        for number, (figure, caption) in enumerate(drawn) if figure
    ]  # fmt: skip
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _loss_caption(rows):
    broken = count_not_finite(rows, "loss")
    return "Loss and its parts" + (f"; {broken} logged values of the total are not finite" if broken else "")


def _queries(queries):
    """One strip of photos per typed text."""
    rows = []
    for query in queries:
        correct = [None] * len(query.images) if query.correct is None else query.correct
        hits = html.hits(
            html.hit(image, is_right, f"{score:.3f}", alt=f"match for: {query.text}")
            for image, score, is_right in zip(query.images, query.scores, correct, strict=True)
        )
        rows.append(f'<div class="row">{html.paragraph(query.text)}{hits}</div>')
    note = "Best first; the number under an image is its similarity to the text."
    return html.section("Text queries", *rows, note=note) if rows else ""


def text_to_image_section(examples: Sequence[tuple], at: str = "") -> str:
    """Captions with the images found for them: (caption, [(image, is right), …]); `at` ends the title."""
    rows = []
    for caption, found in examples:
        hits = html.hits(html.hit(image, is_right, alt=f"match for: {caption}") for image, is_right in found)
        rows.append(f'<div class="row">{html.paragraph(caption)}{hits}</div>')
    note = "Best first; green ✓ is the caption's own image, red ✗ another one."
    return html.section("Captions and the images found for them" + at, *rows, note=note) if rows else ""


def image_to_text_section(examples: Sequence[tuple], at: str = "") -> str:
    """Images with the captions found for them: (image, [(caption, is right), …]); `at` ends the title."""
    rows = []
    for image, found in examples:
        captions = "".join(html.caption_item(caption, is_right) for caption, is_right in found)
        query = html.hit(image, None, alt="query image")
        rows.append(f'<div class="row pair">{query}<ol>{captions}</ol></div>')
    note = "Best first; green ✓ was written for this image, red ✗ for another one."
    return html.section("Images and the captions found for them" + at, *rows, note=note) if rows else ""


def facts_section(facts: Mapping[str, object], command: str) -> str:
    """Terms with what is said of each, and the command that started the run."""
    terms = "".join(f"<dt>{html.escape(key)}</dt><dd>{_fact(value)}</dd>" for key, value in facts.items())
    parts = [f"<dl>{terms}</dl>"] if terms else []
    if command:
        parts.append(f"<h3>Command</h3><pre>{html.escape(command)}</pre>")
    return html.section("Facts", *parts) if parts else ""


def _fact(value):
    """A short value as it is; a nested or long one folded away."""
    if isinstance(value, Mapping):
        value = "\n".join(f"{key}: {item}" for key, item in value.items())
    text = str(value)
    if "\n" not in text:
        return html.escape(text)
    summary = f"{len(text.splitlines())} lines"
    return f"<details><summary>{summary}</summary><pre>{html.escape(text)}</pre></details>"
