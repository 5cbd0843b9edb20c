"""What a decoder's variance says where there are no data, on a toy of two clusters.

The paper (section 4, with two figures): a standard network with softplus output extrapolates its standard deviation
arbitrarily, while radial basis functions for the precision let it grow away from the data and between clusters; so the
volume measure, the root of det G, follows the data with the second and not with the first. The paper shows maps without
numbers and does not say where its data come from; ours are two blobs on a curved surface in R^3, and maps are counted:

- on a ring around all codes, and on the line between the middles of the clusters, against the median at the codes;
- by the rank correlation over the map of the log volume with the distance to the nearest code.

Both models share encoder and mean, which are trained first, and the loss, at codes drawn from the encoder.
"""

from __future__ import annotations

import math
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import torch
from context import Context, labels_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Claim, Result, Verdict, spread
from scipy.stats import rankdata
from torch import Generator, Tensor
from variance import StandardVariance, fit, layers

import pullback as pb
from pullback.datasets import Dataset
from pullback.models import RBFVAE

KINDS = {"standard": "softplus network", "rbf": "radial basis functions"}
COLORS = {"standard": "#d55e00", "rbf": "#0072b2"}  # apart for color-blind eyes
WALL, LOW, GAP, CORRELATED = 10.0, 3.0, 1.5, 0.7  # thresholds of the claims, set before the final run


def run(context: Context) -> Result:
    """Train both models for each seed, measure their maps, draw those of the first seed."""
    parts = {seed: context.once(f"seed-{seed}", partial(measure, context, seed)) for seed in context.seeds}
    rows = list(parts.values())
    return Result(
        title="Variance away from the data, on two clusters",
        claims=claims(rows),
        numbers={str(seed): {name: part[name] for name in KINDS} for seed, part in parts.items()},
        caption="Log of the summed standard deviation (left) and log volume (middle) of both variance models, seed "
        f"{context.seeds[0]}, codes as dots; right: both over the distance to the nearest code, median and the middle "
        "90% of the map, all seeds.",
        paper_figure="maps of the log summed standard deviation and of the volume measure for both models.",
        figure=draw(rows),
        findings=findings(rows),
    )


def measure(context: Context, seed: int) -> dict[str, Any]:
    """Maps of both models of one seed and what they come to."""
    data = pb.datasets.two_clusters(context["samples"], noise=context["noise"], seed=seed)
    model = context.model(data, seed, **context["vae"])
    codes = model.codes
    stds = {"standard": standard(context, data, model, seed), "rbf": model.rbf}
    grid, window = plane(codes, context["margin"], context["resolution"])
    apart = nearest(grid, codes)
    ring, line = around(codes, context["ring"]), between(codes, labels_of(data))
    part: dict[str, Any] = {"window": window, "codes": codes[:: len(codes) // 200].tolist(), "apart": apart.tolist()}
    for kind, std in stds.items():
        metric = pb.Pullback(pb.Gaussian(model.vae.decoder, std))
        total = std(codes).sum(-1).median()
        volume = metric.log_volume(grid)
        part[kind] = {
            "ring_lowest": (std(ring).sum(-1).min() / total).item(),
            "ring_highest": (std(ring).sum(-1).max() / total).item(),
            "gap": (std(line).sum(-1).max() / total).item(),
            "correlation": rank_correlation(volume, apart),
        }
        part[f"{kind}_maps"] = {"std": std(grid).sum(-1).log().tolist(), "volume": volume.tolist()}
        part[f"{kind}_at_codes"] = {"std": total.log().item(), "volume": metric.log_volume(codes).median().item()}
    return part


def standard(context: Context, data: Dataset, model: RBFVAE, seed: int) -> StandardVariance:
    """The softplus network, trained on the codes and residuals of the model's encoder and mean."""
    x = data.samples.double()
    std = StandardVariance(layers((2, *context["hidden"], x.shape[1]), torch.nn.Tanh, seed)).double()

    def draw_codes(batch: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        z = model.vae.sample(batch, generator=generator)
        return z, batch - model.vae.decoder(z)

    fit(std, x, draw_codes, seed=seed, floor=0.0, **context["fit"])
    return std.requires_grad_(False)


def plane(codes: Tensor, margin: float, resolution: int) -> tuple[Tensor, list[float]]:
    """Centers of square cells (n, 2), row by row, and the window around the codes: left, right, bottom, top."""
    center = (codes.amin(0) + codes.amax(0)) / 2
    half = (1 + margin) * (codes.amax(0) - codes.amin(0)).max() / 2
    steps = (torch.arange(resolution, dtype=codes.dtype) + 0.5) / resolution * 2 - 1
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    window = [center[0] - half, center[0] + half, center[1] - half, center[1] + half]
    return center + half * torch.stack((x, y), -1).reshape(-1, 2), [float(side) for side in window]


def nearest(points: Tensor, codes: Tensor) -> Tensor:
    """Euclidean distance of each point to the nearest code."""
    return torch.cdist(points, codes).amin(1)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, between -1 and 1."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def around(codes: Tensor, further: float, n: int = 360) -> Tensor:
    """A circle around the mean of the codes, some of their standard deviations further out than the last of them."""
    angles = torch.arange(n, dtype=codes.dtype) * (2 * math.pi / n)
    offsets = codes - codes.mean(0)
    radius = offsets.norm(dim=1).max() + further * offsets.square().mean().sqrt()
    return codes.mean(0) + radius * torch.stack((angles.cos(), angles.sin()), 1)


def between(codes: Tensor, labels: Tensor) -> Tensor:
    """The line from the mean of one cluster to that of the other."""
    a, b = codes[labels == 0].mean(0), codes[labels == 1].mean(0)
    return a + torch.linspace(0, 1, 201, dtype=codes.dtype)[:, None] * (b - a)


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """The paper's statements, counted over the seeds."""
    rbf, other = [row["rbf"] for row in rows], [row["standard"] for row in rows]
    enough = math.ceil(0.8 * len(rows))
    walls = [row["ring_lowest"] for row in rbf]
    lows = [row["ring_lowest"] for row in other]
    gaps = [row["gap"] for row in rbf]
    better = [a["correlation"] > max(CORRELATED, b["correlation"]) for a, b in zip(rbf, other, strict=True)]
    low, ridges = sum(v < LOW for v in lows), sum(v >= GAP for v in gaps)
    return [
        Claim(
            "wall",
            "With radial basis functions the standard deviation is large everywhere away from the data",
            "map only",
            f"its lowest value on a ring around the codes is {min(walls):.3g} times the median at the codes or more",
            math.log10(min(walls)),
            2.5,
            Verdict.of(min(walls) >= WALL, partly=sum(v >= WALL for v in walls) >= enough),
        ),
        Claim(
            "arbitrary",
            "A softplus network's standard deviation is arbitrarily high or low away from the data",
            "map only",
            f"its lowest value there is {spread(lows, '.2f')} times the median, below {LOW:g} in {low} of "
            f"{len(rows)} models",
            low / len(rows),
            0.4,
            Verdict.of(low >= enough, partly=low > 0),
        ),
        Claim(
            "between",
            "With radial basis functions the standard deviation rises between the clusters",
            "map only",
            f"on the line between their middles it reaches {spread(gaps, '.2f')} times the median at the codes, "
            f"{GAP:g} or more in {ridges} of {len(rows)} models",
            ridges / len(rows),
            0.4,
            Verdict.of(ridges >= enough, partly=ridges > 0),
        ),
        Claim(
            "volume",
            "The volume measure follows the trend of the data with radial basis functions, not with the other network",
            "map only",
            "rank correlation of log volume and distance to the nearest code "
            f"{spread([row['correlation'] for row in rbf], '.2f')} against "
            f"{spread([row['correlation'] for row in other], '.2f')}",
            mean(row["correlation"] for row in rbf),
            0.15,
            Verdict.of(
                all(better), partly=all(a["correlation"] > b["correlation"] for a, b in zip(rbf, other, strict=True))
            ),
        ),
    ]


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """What the claims leave out."""
    ratios = [row["standard"]["ring_highest"] / row["standard"]["ring_lowest"] for row in rows]
    gaps = [row["standard"]["gap"] for row in rows]
    return [
        "Around the ring the softplus network's summed standard deviation varies by a factor of "
        f"{min(ratios):.1f} to {max(ratios):.1f}.",
        f"On the line between the clusters the softplus network reaches {spread(gaps, '.2f')} times its median at "
        f"the codes.",
    ]


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Maps of the first seed in two rows, one a model; profiles of all seeds at the right."""
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    axes = figure.subplots(2, 3)
    names = {"std": r"$\log \sum_j \sigma_j(z)$", "volume": r"log volume $\frac{1}{2} \log \det G(z)$"}
    for i, kind in enumerate(KINDS):
        for j, quantity in enumerate(names):
            show_map(axes[i, j], rows[0], kind, quantity, names[quantity])
    for j, quantity in enumerate(names):
        profile(axes[j, 2], rows, quantity)
    axes[0, 2].set_ylabel("summed std. dev. / median at codes")
    axes[1, 2].set_ylabel("volume / median at codes")
    return figure


def show_map(ax: Axes, row: dict[str, Any], kind: str, quantity: str, name: str) -> None:
    """One quantity over the latent plane, the codes on top."""
    values = np.asarray(row[f"{kind}_maps"][quantity])
    side = math.isqrt(len(values))
    image = ax.imshow(values.reshape(side, side), origin="lower", extent=row["window"], cmap="viridis")
    ax.figure.colorbar(image, ax=ax, label=name, shrink=0.9)
    ax.scatter(*np.asarray(row["codes"]).T, s=4, color="white", edgecolor="black", linewidth=0.3)
    ax.set(title=KINDS[kind], xlabel="$z_1$", ylabel="$z_2$", xlim=row["window"][:2], ylim=row["window"][2:])


def profile(ax: Axes, rows: list[dict[str, Any]], quantity: str) -> None:
    """A quantity, relative to its median at the codes, over the distance to the nearest code: all maps together."""
    apart = np.concatenate([row["apart"] for row in rows])
    edges = np.linspace(0, min(max(row["apart"]) for row in rows), 16)
    bins = np.digitize(apart, edges)
    for kind, name in KINDS.items():
        parts = [np.asarray(row[f"{kind}_maps"][quantity]) - row[f"{kind}_at_codes"][quantity] for row in rows]
        values = np.exp(np.concatenate(parts))
        shares = np.array([np.quantile(values[bins == k], (0.05, 0.5, 0.95)) for k in range(1, len(edges))])
        centers = (edges[1:] + edges[:-1]) / 2
        ax.fill_between(centers, shares[:, 0], shares[:, 2], color=COLORS[kind], alpha=0.25, linewidth=0)
        ax.plot(centers, shares[:, 1], color=COLORS[kind], marker="so"[kind == "rbf"], markersize=4, label=name)
    ax.axhline(1, color="black", linewidth=0.8, linestyle=":")
    ax.set(yscale="log", xlabel="distance to the nearest code", xlim=(0, edges[-1]))
    ax.legend(loc="upper left")
