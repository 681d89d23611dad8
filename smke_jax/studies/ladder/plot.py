"""The picture of the ladder: the mean recall of every recipe, here and in the thesis, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from smke_jax.reporting.plots import COLOURS, style_axes, with_legend

MARKERS = {
    1: ("^", COLOURS[2], "significantly better than what it stands against"),
    -1: ("v", COLOURS[1], "significantly worse"),
    0: ("o", COLOURS[0], "neither"),
    None: ("D", COLOURS[6], "not compared"),
}
FAR = 15  # points below the median: figures of the thesis that are lower stand at the edge, with their value


def ladder_figure(lines: Sequence) -> Figure:
    """`lines` (of `ladder.Line`) from the first rung at the top to the last, with the 95 % intervals of those run."""
    figure = Figure(figsize=(9.6, 1.6 + 0.32 * len(lines)), layout="constrained")
    here, coco, flickr30k = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    places = np.arange(len(lines))
    for sign, (marker, colour, meaning) in MARKERS.items():
        chosen = [i for i, line in enumerate(lines) if line.recalls is not None and line.sign(-1) == sign]
        if not chosen:
            continue
        means = np.array([lines[i].recalls[-1] for i in chosen])
        bounds = np.array([lines[i].interval[:, -1] for i in chosen]).reshape(-1, 2).T
        here.errorbar(
            means, places[chosen], xerr=np.abs(bounds - means), linestyle="", marker=marker, color=colour, capsize=3,
            label=meaning,
        )  # fmt: skip
    for axes, name in ((coco, "coco"), (flickr30k, "flickr30k")):
        figures = [getattr(line.recipe.rung, name) for line in lines]
        known = [i for i, x in enumerate(figures) if x]
        means = np.array([np.mean(figures[i]) for i in known])
        near = means > (np.median(means) if known else 0) - FAR
        axes.plot(means[near], places[known][near], "s", color=COLOURS[6], markersize=5)
        edge = min(means[near], default=0)
        for mean, place in zip(means[~near], places[known][~near]):
            axes.annotate(f"← {mean:.1f}", (edge, place), va="center", fontsize=8, color=COLOURS[6])
    for axes, title in ((here, "here"), (coco, "thesis, COCO"), (flickr30k, "thesis, Flickr30K")):
        style_axes(axes, "")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("mean recall, %")
    here.set_yticks(places, [line.recipe.name for line in lines])
    here.set_ylim(len(lines) - 0.5, -0.5)
    return with_legend(figure, here)
