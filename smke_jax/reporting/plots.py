"""The curves of a run as figures, and the retrieval picture grid as one PNG.

Every `*_figure` takes the rows of `metrics.jsonl` and returns a Figure, or None when the rows lack its keys.
Figures are made without pyplot: no global state, no display, nothing to close.
"""

import io
import re
import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.reporting.html import SERIES as COLOURS
from smke_jax.reporting.metrics_log import keys_of, series

SIZE = (4.8, 3.2)  # inches of a curve: on a phone its text is still 9 pixels high
NEARLY_BLACK = "#111111"  # of black, an SVG leaves the filling of markers unsaid
RIGHT, WRONG, UNKNOWN = ("✓", "#1a8a3c"), ("✗", "#c62828"), ("", "#9aa4af")


def loss_figure(rows) -> Figure | None:
    """The total loss (black) and each of its parts against the step; logarithmic when they differ widely.

    Parts are `term/loss` and, where a term logs its levels, `term/loss_out` and the like.
    """
    keys = keys_of(rows, re.compile(r"(.+/)?loss|.+/loss_\w+").fullmatch)
    if not keys:
        return None
    figure, axes = _curves("loss")
    curves = {key: series(rows, key) for key in keys}
    parts = sorted(set(keys) - {"loss"})
    # A loss of one level is that of its term, and one term may be all there is: equal curves are drawn once.
    parts = [key for i, key in enumerate(parts) if curves[key] not in [curves[other] for other in parts[:i]]]
    for number, key in enumerate(key for key in parts if curves[key] != curves.get("loss")):
        _draw(axes, rows, key, COLOURS[number % len(COLOURS)])
    if "loss" in keys:
        _draw(axes, rows, "loss", NEARLY_BLACK, label="total")
    values = np.concatenate([values for _, values in curves.values()])
    if values.min() > 0 and values.max() > 50 * values.min():
        _logarithmic(axes)
    return with_legend(figure, axes)


def logit_scale_figure(rows) -> Figure | None:
    """Each logit scale against the step; 100 is marked once a scale comes near it."""
    figure = lines_figure(rows, lambda key: "logit_scale" in key, "logit scale = 1 / temperature")
    if figure and max(max(line.get_ydata()) for line in figure.axes[0].lines) > 50:
        figure.axes[0].axhline(100, color="#888888", linewidth=1, linestyle="--", label="100, the usual ceiling")
        figure.legends.clear()
        with_legend(figure, figure.axes[0])
    return figure


def norm_figure(rows) -> Figure | None:
    """The norms of the gradient, before it is clipped, and of the update, over all trained parameters together."""
    labels = {"grad_norm": "gradient", "update_norm": "update of the parameters"}
    figure = lines_figure(rows, labels.get, "L2 norm", labels)
    values = [y for line in figure.axes[0].lines for y in line.get_ydata()] if figure else [0.0]
    if figure and min(values) > 0 and max(values) > 10 * min(values):
        _logarithmic(figure.axes[0])
    return figure


def spread_figure(rows) -> Figure | None:
    """The spread of the embeddings: 1 where they point in all directions alike, 0 where all are the same."""
    start = "embedding_std/"
    figure = lines_figure(rows, lambda key: key.startswith(start), "spread")
    if figure:
        figure.axes[0].set_ylim(0, max(1.05, figure.axes[0].get_ylim()[1]))
    return figure


def accuracy_figure(rows) -> Figure | None:
    """How often the right partner within the batch is the nearest, in percent, of every term that says so."""
    found = keys_of(rows, re.compile(r"(?!eval/).+/accuracy\w*").fullmatch)
    percent = [{"step": row.get("step"), **{k: 100 * row[k] for k in found if k in row}} for row in rows]
    figure = lines_figure(percent, found.__contains__, "right within the batch, %")
    if figure:
        figure.axes[0].set_ylim(0, 100)
    return figure


def lines_figure(rows, wanted, ylabel: str, labels=None) -> Figure | None:
    """The keys for which `wanted(key)` holds against the step; `labels` has names for some of them."""
    keys = keys_of(rows, wanted)
    if not keys:
        return None
    figure, axes = _curves(ylabel)
    for number, key in enumerate(keys):
        _draw(axes, rows, key, COLOURS[number % len(COLOURS)], label=(labels or {}).get(key))
    return with_legend(figure, axes)


def recall_figure(rows, direction: str) -> Figure | None:
    """Recall at 1, 5 and 10 of one direction (`image_to_text` or `text_to_image`) against the step.

    Of several evaluators every one is drawn, with the band between 'KEY/low' and 'KEY/high' where rows have them.
    None for fewer than two evaluations: one point is no curve, and the table has it.
    """
    found = [re.fullmatch(rf"eval/(.+)/{direction}/r(1|5|10)", key) for key in keys_of(rows, lambda key: True)]
    found = sorted((match for match in found if match), key=lambda match: (match[1], int(match[2])))
    several = len({match[1] for match in found}) > 1
    labels = {match[0]: f"{match[1]} R@{match[2]}" if several else f"R@{match[2]}" for match in found}
    figure = evaluation_figure(rows, labels, "recall, %")
    if figure:
        figure.axes[0].set_ylim(0, min(100, figure.axes[0].get_ylim()[1]))
    return figure


def evaluation_figure(rows, labels, ylabel: str) -> Figure | None:
    """The keys of `labels` against the step, each with its name and its band; None where none was measured twice."""
    # A label has the same colour in every picture, whatever else is measured.
    colours = {key: COLOURS[number % len(COLOURS)] for number, key in enumerate(labels)}
    keys = [key for key in labels if len(series(rows, key)[0]) > 1]
    if not keys:
        return None
    figure, axes = _curves(ylabel)
    for key in keys:
        colour = colours[key]
        _draw(axes, rows, key, colour, label=labels[key])
        (steps, low), (_, high) = series(rows, f"{key}/low"), series(rows, f"{key}/high")
        if steps:
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    return with_legend(figure, axes)


def throughput_figure(rows) -> Figure | None:
    """Examples per second, and under it the share of the time spent waiting for data, in percent."""
    steps, shares = series(rows, "data_wait")
    percent = [{"step": step, "data_wait": 100 * share} for step, share in zip(steps, shares)]
    rows = [*({**row, "data_wait": None} for row in rows), *percent]
    labels = {"examples_per_second": "examples/s", "data_wait": "data wait, %"}
    panels = [key for key in labels if series(rows, key)[0]]
    if not panels:
        return None
    figure = Figure(figsize=(SIZE[0], 1.0 + 1.1 * len(panels)), layout="constrained")
    for number, key in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, number + 1)
        style_axes(axes, labels[key])
        _draw(axes, rows, key, COLOURS[number % len(COLOURS)])
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel("step")
    return figure


def png_bytes(figure: Figure, dpi: int = 130) -> bytes:
    """`figure` as a PNG file; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def retrieval_grid(path, *, text_to_image=(), image_to_text=(), title: str = "", dpi: int = 130):
    """Write one PNG: each caption with its top images, each image with its top captions; returns the path.

    text_to_image: [(caption, [(image, is_right), …]), …]; image_to_text: [(image, [(caption, is_right), …]),
    …]; images are uint8 (H, W, 3), shown cropped to their central square. Right ones are green
    with a tick, wrong ones red with a cross. Raises UserError when both are empty.
    """
    rows = len(text_to_image) + len(image_to_text)
    if not rows:
        raise UserError("retrieval_grid: nothing to draw; give text_to_image or image_to_text")
    columns = 1 + max([len(found) for _, found in text_to_image], default=5)
    figure = Figure(figsize=(1.5 * (columns + 0.6), 1.5 * rows + (0.5 if title else 0)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    # The first column holds captions, hence wider than a picture.
    grid = figure.add_gridspec(rows, columns, width_ratios=[1.6] + [1] * (columns - 1))
    if title:
        figure.suptitle(title, parse_math=False)
    for row, (caption, found) in enumerate(text_to_image):
        _text(figure.add_subplot(grid[row, 0]), [(caption, None)], width=32)
        for column, (image, is_right) in enumerate(found):
            _picture(figure.add_subplot(grid[row, column + 1]), image, is_right)
    for row, (image, found) in enumerate(image_to_text, start=len(text_to_image)):
        _picture(figure.add_subplot(grid[row, 0]), image, None)
        _text(figure.add_subplot(grid[row, 1:]), found, width=18 * (columns - 1))
    return atomic.write_bytes(path, png_bytes(figure, dpi))


def _curves(ylabel):
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, ylabel)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)
    return figure, axes


def style_axes(axes, ylabel: str) -> None:
    """The look of every plot: a light grid, and no frame on the sides without a scale."""
    axes.set_ylabel(ylabel)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Numbers between powers of ten overlap where there are many powers.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _draw(axes, rows, key, colour, label=None):
    """One curve: few points with markers, many as a faint line under their running mean."""
    steps, values = series(rows, key)
    window = len(values) // 50
    if window > 1:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
        # Windows shrink at both ends, so that the curve starts and ends where the data do.
        sums = np.concatenate([[0.0], np.cumsum(values)])
        low = np.maximum(np.arange(len(values)) - window, 0)
        high = np.minimum(np.arange(len(values)) + window + 1, len(values))
        values = (sums[high] - sums[low]) / (high - low)
    marker = "o" if len(values) <= 30 else None
    axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label or key)


def with_legend(figure: Figure, axes) -> Figure:
    """`figure` with the labels of `axes` above it; labels are data, so `$` starts no formula."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(
        1, min(len(handles), 3, int(11 * figure.get_size_inches()[0]) // (max(map(len, labels), default=0) + 6))
    )
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _picture(axes, image, is_right):
    image = np.asarray(image)
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    axes.imshow(image[top : top + side, left : left + side], cmap="gray")
    axes.set_anchor("W")
    axes.set_xticks([])
    axes.set_yticks([])
    mark, colour = _verdict(is_right)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=4 if mark else 1)
    if mark:
        axes.text(
            0.05,
            0.94,
            mark,
            color="white",
            va="top",
            fontsize=9,
            transform=axes.transAxes,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 2},
        )


def _text(axes, lines, width):
    """Lines from top to bottom, each with its tick or cross; captions are data, so `$` starts no formula."""
    axes.set_axis_off()
    for number, (line, is_right) in enumerate(lines):
        mark, colour = _verdict(is_right)
        limit = 5 if len(lines) == 1 else 1
        wrapped = "\n".join(textwrap.wrap(f"{mark} {line}".strip(), width, max_lines=limit, placeholder=" …"))
        axes.text(
            0,
            1 - (number + 0.5) / len(lines),
            wrapped,
            color=colour if mark else "black",
            va="center",
            fontsize=9,
            parse_math=False,
            transform=axes.transAxes,
        )


def _verdict(is_right):
    """Mark and colour: colour alone would leave out colour-blind readers."""
    return UNKNOWN if is_right is None else RIGHT if is_right else WRONG
