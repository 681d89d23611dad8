"""The two pictures of a scaling study: quality against the global batch, throughput against the devices."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from smke_jax.reporting.plots import COLOURS, style_axes, with_legend

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def quality_figure(rows: Sequence) -> Figure | None:
    """R@1 of both directions against the global batch, with the spans of the table's `rows` (of `compare.Row`).

    Finished and evaluated runs alone are drawn; None for fewer than two batch sizes.
    """
    rows = [row for row in rows if row.runs[0].is_finished and row.mean(_image_to_text) is not None]
    lines = _lines(rows, x=lambda run: run.batch_size, label=_devices)
    if len({row.runs[0].batch_size for row in rows}) < 2:
        return None
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    for number, (direction, name) in enumerate(DIRECTIONS.items()):
        axes = figure.add_subplot(1, 2, number + 1)
        style_axes(axes, f"{name}, R@1, %")
        for style, (label, line) in zip(_styles(), lines.items()):
            means = [row.mean(lambda run: run.recall(direction, "r1")) for row in line]  # noqa: B023
            spans = [row.span(direction, "r1") or (mean, mean) for row, mean in zip(line, means)]
            below, above = zip(*((mean - low, high - mean) for mean, (low, high) in zip(means, spans)))
            batches = [row.runs[0].batch_size for row in line]
            axes.errorbar(batches, means, (below, above), label=label, capsize=3, **style)
        _doubling(axes, sorted({row.runs[0].batch_size for row in rows}))
        axes.set_xlabel("global batch")
    return with_legend(figure, axes)


def throughput_figure(rows: Sequence) -> Figure | None:
    """Examples per second against the devices, and what the fewest of them would give times their number, dashed.

    Finished runs alone are drawn; None for fewer than two numbers of devices.
    """
    rows = [row for row in rows if row.runs[0].is_finished and row.mean(_speed) is not None]
    lines = _lines(rows, x=lambda run: run.devices, label=lambda run: f"batch {run.batch_size}")
    if len({row.runs[0].devices for row in rows}) < 2:
        return None
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, "examples per second")
    for style, (label, line) in zip(_styles(), lines.items()):
        devices, speeds = [row.runs[0].devices for row in line], [row.mean(_speed) for row in line]
        axes.plot(devices, speeds, label=label, **style)
        ideal = [speeds[0] * count / devices[0] for count in devices]
        axes.plot(devices, ideal, color=style["color"], linewidth=1, linestyle="--", alpha=0.6)
    axes.plot([], [], color="#666666", linewidth=1, linestyle="--", label="ideal: linear from the fewest devices")
    _doubling(axes, sorted({row.runs[0].devices for row in rows}))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))  # the speeds may lie within a factor of two
    axes.yaxis.set_major_formatter("{x:,.4g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("devices")
    return with_legend(figure, axes)


def _lines(rows: Sequence, *, x: Callable, label: Callable) -> dict[str, list]:
    """{label: rows along `x`}, apart for every other difference of the configs and for the kinds of devices."""
    lines: dict[str, list] = {}
    kinds = {row.runs[0].device for row in rows}
    for row in sorted(rows, key=lambda row: x(row.runs[0])):
        run = row.runs[0]
        others = [f"{key.rpartition('.')[2]}={value}" for key, value in row.different.items() if key != "config.seed"]
        parts = [*others, label(run), *([run.device] if len(kinds) > 1 else [])]
        lines.setdefault(", ".join(parts), []).append(row)
    return lines


def _devices(run) -> str:
    return f"{run.devices} {'device' if run.devices == 1 else 'devices'}"


def _image_to_text(run) -> float | None:
    return run.recall("image_to_text", "r1")


def _speed(run) -> float | None:
    return run.examples_per_second


def _styles():
    """A colour and marker for each line; the colours repeat with another marker."""
    for marker in "osD^v<>*":
        for colour in COLOURS:
            yield {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.8}


def _doubling(axes, values: list[int]) -> None:
    """A logarithmic axis with a plain number at each of `values`."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
