"""Draws the picture of docs/curvature.md into docs/_static, and logs what the page states.

OMP_NUM_THREADS=1 python tools/figures_curvature.py                 # about a minute
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

import pullback as pb

STATIC = Path(__file__).parents[1] / "docs" / "_static"
PAIRS, RESOLUTION = 300, 160

log = logging.getLogger("figures_curvature")


def grid(codes: Tensor) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Points (n, n, 2) over the range of the codes and 10% more, and that as an extent."""
    low, high = codes.amin(0), codes.amax(0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    x, y = (torch.linspace(float(a), float(b), RESOLUTION, dtype=codes.dtype) for a, b in zip(low, high, strict=True))
    z = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return z, (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


def draw(metric: pb.Metric, codes: Tensor) -> Figure:
    """The Gaussian curvature over the plane; the share that straight lines lose against the curvature on the way."""
    chosen = torch.randperm(len(codes), generator=torch.Generator().manual_seed(2))[: 2 * PAIRS]
    start, end = codes[chosen[:PAIRS]], codes[chosen[PAIRS:]]
    path = pb.geodesic(metric, start, end)
    ok = path.converged
    lost = (pb.length(metric, pb.Curve.straight(start, end), n_segments=512) / path.length - 1)[ok]
    t = torch.linspace(0, 1, 64, dtype=codes.dtype)
    along = pb.curvature.gaussian(metric, path.curve(t)[ok])
    strength = along.abs().mean(1) * path.length[ok].square()  # |K| L^2: no unit
    for name, value in (("|K| L^2", strength), ("K L^2", along.mean(1) * path.length[ok] ** 2), ("L", path.length[ok])):
        log.info("rank correlation of what lines lose with %s: %.2f", name, spearmanr(lost, value).statistic)
    z, extent = grid(codes)
    k = pb.curvature.gaussian(metric, z)
    log.info("K at the codes: 5%%, 50%%, 95%%: %s", pb.curvature.gaussian(metric, codes).quantile(
        torch.tensor([0.05, 0.5, 0.95], dtype=codes.dtype)).tolist())  # fmt: skip
    log.info("share of codes with K < 0: %.2f", float((pb.curvature.gaussian(metric, codes) < 0).double().mean()))

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    size = float(k.abs().quantile(0.98))
    image = left.imshow(
        k, origin="lower", extent=extent, cmap="RdBu_r", norm=SymLogNorm(1e-3, vmin=-size, vmax=size), aspect="auto"
    )
    figure.colorbar(image, ax=left, label="Gaussian curvature K (logarithmic on both sides)")
    few = codes[::10]
    left.plot(few[:, 0], few[:, 1], "k.", ms=1.5, alpha=0.5)
    left.set_title("Gaussian curvature of the shipped model, and codes")
    left.set_xlabel("$z_1$")
    left.set_ylabel("$z_2$")
    right.loglog(strength, lost.clamp_min(1e-5), ".", ms=5)
    right.set_xlabel("mean |K| along the geodesic, times its squared length")
    right.set_ylabel("what the straight line is longer by (relative)")
    right.set_title(f"{int(ok.sum())} random pairs of codes")
    return figure


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = pb.models.pretrained("mnist012")
    draw(pb.Pullback(model.decoder), model.codes).savefig(STATIC / "curvature.png", dpi=80)


if __name__ == "__main__":
    main()
