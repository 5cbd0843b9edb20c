"""Draws the picture of docs/geomstats.md into docs/_static, and logs what the page states.

OMP_NUM_THREADS=1 python tools/figures_geomstats.py                 # a few minutes
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from geomstats.learning.frechet_mean import FrechetMean
from geomstats.learning.kmeans import RiemannianKMeans
from geomstats.learning.pca import TangentPCA
from matplotlib.figure import Figure

import pullback as pb

STATIC = Path(__file__).parents[1] / "docs" / "_static"
CODES, RESOLUTION = 60, 129
RED = "#e6194b"  # as pb.plot draws geodesics

log = logging.getLogger("figures_geomstats")


def timed(name: str, work: Callable[[], Any]) -> Any:
    """What the work gives; its processor time is logged."""
    begin = time.process_time()
    found = work()
    log.info("%s: %.1f s", name, time.process_time() - begin)
    return found


def draw() -> Figure:
    """Mean and principal geodesics; clusters."""
    model = pb.models.pretrained("mnist012")
    metric = pb.Pullback(model.decoder)
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(0))[:CODES]
    codes, labels = model.codes[chosen].numpy(), model.labels[chosen].numpy()
    low, high = model.codes.amin(0) - 0.5, model.codes.amax(0) + 0.5
    bounds = torch.stack((low, high), 1)
    table = timed("table", lambda: pb.Tabulated(metric, bounds, resolution=RESOLUTION))
    space, framed = (pb.interop.to_geomstats(table, 2, tol=1e-4, frame=f) for f in ("coordinate", "orthonormal"))
    start = codes.mean(0)
    mean = timed("mean", lambda: FrechetMean(space).set(epsilon=1e-6, init_point=start).fit(codes).estimate_)
    exact = pb.interop.to_geomstats(metric, 2, tol=1e-4)
    found = timed("mean, decoder", lambda: FrechetMean(exact).set(epsilon=1e-6, init_point=start).fit(codes).estimate_)
    log.info("means differ by %.3g in data space", exact.metric.dist(mean, found))
    log.info("distance of the mean from that of the coordinates: %.3g", exact.metric.dist(mean, start))
    axes = timed("tangent PCA", lambda: TangentPCA(framed, n_components=2).fit(codes, base_point=mean))
    log.info("shares of variance %s, variances %s", axes.explained_variance_ratio_, axes.explained_variance_)
    init = np.stack([codes[labels == digit][0] for digit in range(3)])
    clusters = timed("k-means", lambda: RiemannianKMeans(space, n_clusters=3, init=init).fit(codes))
    log.info("share of codes that share their cluster's digit: %.2f", agreement(clusters.labels_, labels))

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    pb.plot.magnification(metric, codes=codes, labels=labels, ax=left)
    pb.plot.magnification(metric, codes=codes, labels=clusters.labels_, ax=right)
    for i, style in enumerate(("-", "--")):
        reach = np.sqrt(axes.explained_variance_[i])
        line = framed.metric.geodesic(mean, initial_tangent_vec=reach * axes.components_[i])(np.linspace(-1.5, 1.5, 61))
        left.plot(*line.T, style, color=RED, lw=2, label=f"axis {i + 1}: deviation {reach:.1f}")
    left.plot(*mean, "*", color=RED, ms=16, mec="white", label="Frechet mean")
    left.plot(*start, "x", color=RED, ms=9, mew=2, label="mean of the coordinates")
    left.legend(loc="center right", bbox_to_anchor=(-0.15, 0.5), fontsize=8)
    left.set_title("Digits, Frechet mean, principal geodesics")
    right.plot(*clusters.cluster_centers_.T, "*", color=RED, ms=16, mec="white", ls="none")
    right.set_title("k-means with three clusters")
    return figure


def agreement(found: np.ndarray, digits: np.ndarray) -> float:
    """The share of codes whose digit is the most frequent one of their cluster."""
    return sum(np.bincount(digits[found == k]).max() for k in np.unique(found)) / len(digits)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    draw().savefig(STATIC / "geomstats.png", dpi=80)


if __name__ == "__main__":
    main()
