"""Random walks in the latent plane (section 6.4, figures 10 and 11): how far do they leave the data?

The paper walks by z + s G(z)^(-1/2) eps, without drift, and shows that this walk stays with the data, for steps are
small where the variance makes the metric large, while the Euclidean walk leaves. Step and length are not published.

What is asserted is the excursion alone: how far the walk gets from the nearest code at the most. That it spends more
time on the data is not asserted, for it need not hold: without a drift nothing leads back from a wall, steps are small
there, and in the long run the walk is where the metric is large. Nor is it the drift that is missing: the law of true
Brownian motion in the long run is uniform by volume, and most of the volume is in the walls, too; only does it take
long to climb them. It is shown beside the walk, over the same time, reflected at the sides of a box around the codes.

The metric is evaluated at every step. A table of it would be quicker for many walks, but in the steep walls, where
these walks turn around, a table of 257 by 257 points was off by several per cent.

Models: the zeros and ones of the interpolations, and the film of ``video.py``.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import motion
import numpy as np
import torch
from context import Context, box
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Claim, Result, Verdict, rounded
from scipy.spatial import KDTree
from torch import Generator, Tensor

import pullback as pb

KINDS = {"walk": "walk of the paper", "euclidean": "Euclidean walk", "brownian": "Brownian motion"}
COLORS = {"walk": "#CC79A7", "euclidean": "#D55E00", "brownian": "#009E73"}  # told apart by color-blind people, too
NAMES = {"images": "zeros and ones", "film": "film of a ball on an eight"}
LESS = 0.6  # excursion over that of the Euclidean walk: for the claim to hold
PARTLY = 0.9
NEAR = 5.0  # times the 99% quantile of the distance between a code and the next: on the data
FLOORS = 10.0  # times zeta: below it the standard deviation saturates, and the wall ends


@dataclass(frozen=True)
class Plane:
    """What walks need of a model."""

    codes: Tensor
    decoder: pb.Gaussian
    precision: Callable[[Tensor], Tensor]
    zeta: float
    shape: tuple[int, ...]


def run(context: Context) -> Result:
    """Walk on every model, and measure."""
    planes = {name: {seed: partial(make, context, seed) for seed in context.seeds} for name, make in PLANES.items()}
    parts = {
        name: [context.once(f"{name}-{seed}", partial(walked, context, make)) for seed, make in several.items()]
        for name, several in planes.items()
    }
    flat = [part for several in parts.values() for part in several]
    return Result(
        title="Random walks",
        claims=[claim for name in parts for claim in claims_of(name, parts[name])],
        numbers={name: [numbers(part) for part in several] for name, several in parts.items()},
        caption=(
            "Left: one walk of each kind from the same code, over the log volume of the decoder. Middle: what they "
            "decode to at 15 equal times, without the standard deviation. Right: how far all walks of all models are "
            "from the nearest code, in the mean, with the range from the 10% to the 90% quantile."
        ),
        paper_figure="The Euclidean walk leaves the data, the Riemannian walk stays with them.",
        figure=figure({name: several[context.seeds[0]]() for name, several in planes.items()}, parts, context["map"]),
        solved=sum(part["chains"] * len(KINDS) for part in flat),
        failed=sum(sum(part["lost"].values()) for part in flat),
        findings=findings(parts),
    )


def images(context: Context, seed: int) -> Plane:
    """The shared model of zeros and ones."""
    _, model = context.zero_one(seed)
    return Plane(model.codes, model.decoder, model.rbf.precision, float(model.rbf.zeta.max()), model.sample_shape)


def film(context: Context, seed: int) -> Plane:
    """The model of the film, which `video.py` has, too."""
    scene = motion.film(context, seed)
    zeta = float(scene.precision.zeta.max())
    return Plane(scene.codes, scene.decoder, scene.precision.precision, zeta, scene.data.sample_shape)


PLANES = {"images": images, "film": film}


def walked(context: Context, make: Callable[[], Plane]) -> dict[str, Any]:
    """Walks of the three kinds from the code nearest to the middle, and what is to be known of them."""
    plane = make()
    codes = plane.codes
    metric = pb.Pullback(plane.decoder)
    start = codes[(codes - codes.mean(0)).norm(dim=1).argmin()]
    starts = start.expand(context["chains"], 2)
    step, n_steps = context["step"], context["steps"]
    inverse = torch.linalg.inv(metric.matrix(codes[:: max(1, len(codes) // 1000)])).diagonal(dim1=-2, dim2=-1).mean()
    size = step / float(inverse.sqrt())  # in the metric: on the codes a step is as long as the Euclidean one
    flat = pb.Pullback(torch.nn.Identity())

    def source(k: int) -> Generator:
        return Generator().manual_seed(k)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", pb.StatisticsWarning)
        walks = {
            "walk": pb.random_walk(metric, starts, n_steps, size, generator=source(1), full=True),
            "euclidean": pb.random_walk(flat, starts, n_steps, step, generator=source(2), full=True),
            "brownian": pb.brownian_motion(
                metric, starts, n_steps, n_steps * size**2, scheme="metropolis", domain=box(codes, context["margin"]),
                generator=source(3), full=True,
            ),
        }  # fmt: skip
    tree = KDTree(codes.numpy())
    spacing = float(np.quantile(tree.query(codes.numpy(), 2)[0][:, 1], 0.99))
    far = {kind: distances(tree, walk.points) for kind, walk in walks.items()}
    times = np.linspace(0, n_steps, 81).round().astype(int)
    floors = {kind: _least(plane, walks[kind].points) for kind in ("walk", "euclidean")}
    frames = np.linspace(0, n_steps, 15).round().astype(int)
    return {
        "chains": len(starts),
        "lost": {kind: int((~walk.finished).sum()) for kind, walk in walks.items()},
        "excursions": {kind: rounded(np.nanmax(d, 1)) for kind, d in far.items()},
        "off": {kind: float(np.nanmean(d > NEAR * spacing)) for kind, d in far.items()},
        "near": NEAR * spacing,
        "over_time": {
            kind: [rounded(np.nanquantile(d[:, times], q, axis=0)) for q in (0.1, 0.9)]
            + [rounded(np.nanmean(d[:, times], 0))]
            for kind, d in far.items()
        },
        "frames": {kind: rounded(walk.points[0, frames].flatten().numpy()) for kind, walk in walks.items()},
        "traces": {
            kind: rounded(walk.points[0, :: max(1, n_steps // 1000)].flatten().numpy()) for kind, walk in walks.items()
        },
        "start": start.tolist(),
        "step": size,
        "floors": floors,
        "accepted": float(walks["brownian"].acceptance.mean()),
        "warnings": [str(warning.message) for warning in told],
    }


def _least(plane: Plane, points: Tensor) -> float:
    """The least precision on walks (n, T, 2), a mean over the outputs, as a multiple of its floor."""
    points = points.flatten(0, 1)
    points = points[torch.isfinite(points).all(1)]
    with torch.no_grad():
        least = min(float(plane.precision(some).mean(-1).min()) for some in points.split(2000))
    return least / plane.zeta


def distances(tree: KDTree, points: Tensor) -> np.ndarray:
    """How far walks (n, T, 2) are from the nearest code: (n, T), NaN where they are."""
    flat = points.flatten(0, 1).numpy()
    found = np.full(len(flat), np.nan)
    known = np.isfinite(flat).all(1)
    found[known] = tree.query(flat[known])[0]
    return found.reshape(points.shape[:2])


def claims_of(name: str, parts: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The excursions, and that no walk gets through the wall."""
    mean = {kind: [statistics.mean(part["excursions"][kind]) for part in parts] for kind in KINDS}
    ratios = [a / b for a, b in zip(mean["walk"], mean["euclidean"], strict=True)]
    ratio, worst = statistics.mean(ratios), max(ratios)
    farthest = {kind: max(max(part["excursions"][kind]) for part in parts) for kind in KINDS}
    inside = sum(part["floors"]["walk"] > FLOORS and not part["lost"]["walk"] for part in parts)
    whole = not any(part["lost"]["walk"] for part in parts)
    floor, flat = (min(part["floors"][kind] for part in parts) for kind in ("walk", "euclidean"))
    what = NAMES[name]
    return [
        Claim(
            f"{name}-excursion",
            f"The {what}: the Riemannian walk stays near the data, the Euclidean walk leaves",
            "so the figure shows",
            f"largest distance to the nearest code, means over walks: {statistics.mean(mean['walk']):.2f} against "
            f"{statistics.mean(mean['euclidean']):.2f}, ratio {ratio:.2f} (worst model {worst:.2f}); farthest walk "
            f"{farthest['walk']:.2f} against {farthest['euclidean']:.2f}",
            ratio,
            0.2,
            Verdict.of(whole and worst <= LESS, partly=ratio <= PARTLY),
        ),
        Claim(
            f"{name}-wall",
            f"The {what}: no Riemannian walk gets to where the standard deviation is largest and the wall ends",
            "the variance acts as a wall",
            f"holds on {inside} of {len(parts)} models; the least precision is {floor:.2g} times its floor zeta, "
            f"on the Euclidean walks {flat:.2g} times",
            inside / len(parts),
            0.01,
            Verdict.of(inside == len(parts)),
            "the Euclidean walks do not get there either" if flat > FLOORS else "",
        ),
    ]


def findings(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What else was found, in sentences."""
    lines = []
    for name, several in parts.items():
        off = {kind: statistics.mean(part["off"][kind] for part in several) for kind in KINDS}
        brownian = statistics.mean(statistics.mean(part["excursions"]["brownian"]) for part in several)
        accepted = statistics.mean(part["accepted"] for part in several)
        near = statistics.mean(part["near"] for part in several)
        lines.append(
            f"The {NAMES[name]}: share of the time off the data (farther than {near:.2f} from all codes): "
            f"{off['walk']:.0%} for the walk of the paper, {off['euclidean']:.0%} for the Euclidean one, "
            f"{off['brownian']:.0%} for Brownian motion."
        )
        lines.append(
            f"The {NAMES[name]}: Brownian motion of the same time gets {brownian:.2f} away from the codes in the mean "
            f"over walks. Metropolis' rule accepted {accepted:.0%} of its steps."
        )
        told = sorted({warning for part in several for warning in part["warnings"]})
        lines += [f"The {NAMES[name]}: pullback warned: {warning}" for warning in told[:2]]
    return lines


def numbers(part: Mapping[str, Any]) -> dict[str, Any]:
    """What of a part is kept with the result."""
    kept = ("excursions", "off", "near", "lost", "step", "floors", "accepted", "start", "warnings")
    return {key: part[key] for key in kept}


def figure(planes: Mapping[str, Plane], parts: Mapping[str, Sequence[Mapping[str, Any]]], resolution: int) -> Figure:
    """A row a model: map, decoded frames, distances over time."""
    drawn = Figure(figsize=(15, 5.4 * len(planes)), layout="constrained")
    axes = drawn.subplots(len(planes), 3, width_ratios=(1, 1.5, 0.8))
    for row, (name, plane) in zip(axes, planes.items(), strict=True):
        part = parts[name][0]
        wide(row[0], plane, part, resolution)
        row[0].set_title(f"{NAMES[name][0].upper()}{NAMES[name][1:]}")
        frames = {KINDS[kind]: pb.Curve(points(part["frames"][kind])) for kind in KINDS}

        def decode(z: Tensor, plane: Plane = plane) -> Tensor:
            with torch.no_grad():
                return plane.decoder.mean(z)

        pb.plot.interpolation(decode, frames, n=15, shape=plane.shape, ax=row[1])
        row[1].set_title("decoded at 15 equal times (the mean)")
        row[1].set_xlabel("share of the steps taken")
        over_time(row[2], parts[name])
    return drawn


def wide(ax: Axes, plane: Plane, part: Mapping[str, Any], resolution: int) -> None:
    """The map around the codes, with a walk of each kind."""
    low, high = (f(0) for f in (plane.codes.amin, plane.codes.amax))
    side = 0.5 * float((high - low).max())
    middle = 0.5 * (low + high)
    bounds = tuple((float(m) - 1.5 * side, float(m) + 1.5 * side) for m in middle)
    few = plane.codes[:: max(1, len(plane.codes) // 1000)]
    pb.plot.magnification(pb.Pullback(plane.decoder), codes=few, bounds=bounds, resolution=resolution, ax=ax)
    for kind in KINDS:
        ax.plot(*points(part["traces"][kind]).T, color=COLORS[kind], lw=1, label=KINDS[kind])
    ax.set_xlim(*bounds[0])
    ax.set_ylim(*bounds[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8, facecolor="0.8")


def over_time(ax: Axes, parts: Sequence[Mapping[str, Any]]) -> None:
    """The distance to the nearest code over time."""
    for kind, label in KINDS.items():
        low, high, mean = (np.mean([part["over_time"][kind][i] for part in parts], 0) for i in range(3))
        t = np.linspace(0, 1, len(mean))
        ax.fill_between(t, low, high, color=COLORS[kind], alpha=0.2, lw=0)
        ax.plot(t, mean, color=COLORS[kind], lw=2, label=label)
    ax.set_xlabel("share of the steps taken")
    ax.set_ylabel("distance to the nearest code (latent units)")
    ax.legend(fontsize=8)


def points(values: Sequence[float]) -> Tensor:
    """Points (n, 2) from what a part holds."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 2)
