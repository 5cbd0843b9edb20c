"""The figure of the k-means table, and the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

PAPER = {"012": (77.57, 94.28), "347": (77.80, 89.54), "569": (64.93, 81.13)}  # straight, Riemannian
SPREAD = {"012": (0.87, 1.14), "347": (0.91, 1.61), "569": (0.96, 2.52)}
SHOWN = "347"  # the set of the example
WAYS = {
    "straight": "k-means, straight",
    "riemannian": "k-means, Riemannian",
    "mean": "k-means, mean alone",
    "narrow": "k-means, Riemannian, a = 1",
    "straight_medians": "k-medians, straight",
    "riemannian_medians": "k-medians, Riemannian",
    "narrow_medians": "k-medians, Riemannian, a = 1",
}
COLORS = {"straight": "#999999", "riemannian": "#0072B2", "mean": "#56B4E9", "narrow": "#009E73"}  # of Okabe and Ito
CLASSES = ("#D55E00", "#0072B2", "#F0E442")


def drawn(f: Mapping[str, Mapping[str, np.ndarray]], example: Mapping[str, Any], seed: int) -> Figure:
    """F-measures of every way, set and seed beside the paper's, and an example.

    Args:
        f: ``{way: {set: (seeds,)}}``, in %.
        example: Codes, labels, and the clusters of these by two ways.
        seed: Of the example's model.
    """
    figure = plt.figure(figsize=(11, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    _bars(above.subplots(), f)
    axes = below.subplots(1, 3, sharex=True, sharey=True)
    titles = {"labels": "labels", "straight": "straight distances", "riemannian": "Riemannian distances"}
    codes, labels = np.array(example["codes"]), np.unique(example["labels"], return_inverse=True)[1]
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        clusters = labels if key == "labels" else matched(np.array(example[key]), labels)
        for j, digit in enumerate(SHOWN):
            mine = clusters == j
            ax.scatter(*codes[mine].T, s=16, color=CLASSES[j], edgecolor="0.3", linewidth=0.3, label=digit)
        wrong = clusters != labels
        if wrong.any():
            ax.scatter(*codes[wrong].T, s=42, facecolor="none", edgecolor="black", linewidth=0.8, label="wrong")
        ax.set(xlabel="$z_1$", title=title if key == "labels" else f"{title}: {100 * (~wrong).mean():.0f}% right")
        ax.set_aspect("equal")
    axes[0].set_ylabel("$z_2$")
    axes[-1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    below.suptitle(f"One subset of {braced(SHOWN)}, training seed {seed}", fontsize=10)
    return figure


def _bars(ax: Axes, f: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    sets = list(f["straight"])
    names, width = [*map(braced, sets), "average"], 0.09
    for i, way in enumerate(("straight", "riemannian")):
        heights = [PAPER[name][i] for name in sets]
        places = np.arange(len(names)) + (i - 4.4) * width
        style = {"color": "white", "edgecolor": COLORS[way], "hatch": "///", "linewidth": 1.4}
        ax.bar(places, [*heights, np.mean(heights)], 0.9 * width, label=f"paper, {WAYS[way].split(', ')[1]}", **style)
        ax.errorbar(places[:-1], heights, [SPREAD[name][i] for name in sets], fmt="none", ecolor="0.2", capsize=2)
    for i, (way, label) in enumerate(WAYS.items()):
        seeds = [*f[way].values(), average(f[way])]
        places = np.arange(len(names)) + (i - 2.2) * width
        color = COLORS[way.removesuffix("_medians")]
        hatch = "...." if way.endswith("medians") else None
        heights = [some.mean() for some in seeds]
        ax.bar(places, heights, 0.9 * width, color=color, edgecolor="white", linewidth=0, hatch=hatch, label=label)
        if len(seeds[0]) > 1:
            ax.errorbar(places, heights, [some.std(ddof=1) for some in seeds], fmt="none", ecolor="0.2", capsize=2)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="F-measure in %", ylim=(0, 102), title="Clusters of 300 codes")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def matched(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The clusters, each named after the class that it fits best; -1 stays."""
    k = int(labels.max()) + 1
    table = np.array([[np.sum((clusters == j) & (labels == i)) for j in range(k)] for i in range(k)])
    rows, columns = linear_sum_assignment(table, maximize=True)
    names = np.full(k + 1, -1)
    names[columns] = rows
    return names[clusters]


def average(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Over the sets, one entry a seed."""
    return np.mean(list(values.values()), 0)


def braced(name: str) -> str:
    """The digits of a set."""
    return "{" + ", ".join(name) + "}"
