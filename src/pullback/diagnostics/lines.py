"""Straight latent lines against geodesics: does it matter that the space is curved?"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Generator, Tensor

from pullback._checks import GeodesicWarning, RankWarning
from pullback.curves import Curve, length
from pullback.diagnostics.growth import Cloud
from pullback.diagnostics.records import Lines, Spread
from pullback.geodesics import GeodesicSolver, Solution, Status, geodesic
from pullback.geodesics.halves import by_halves
from pullback.metrics import Metric
from pullback.types import Points

_COARSE, _FINE = 64, 256  # segments of a straight line: of all; of those that the coarse ones do not tell
_AGREE = 1e-4  # relative difference of the lengths by 32 and 64 segments
_RESAMPLES = 2000
_FEWEST = 10  # ratios that an interval is made of
_SAMPLES = 33  # places along a curve where it may be off the data
_ON = 0.99  # quantile of the codes' distances to the next one: farther is off the data


def random_pairs(codes: Points, n_pairs: int, generator: Generator) -> tuple[Tensor, bool]:
    """Indices (m, 2) of m <= n_pairs pairs of different codes (n, d), and whether all of these indices differ.

    No pair comes twice, and no code as long as there are enough of them.
    """
    n, home = len(codes), generator.device
    disjoint = 2 * n_pairs <= n
    if disjoint:
        pairs = torch.randperm(n, generator=generator, device=home)[: 2 * n_pairs].reshape(-1, 2)
    else:
        n_all = n * (n - 1) // 2
        if n_all <= 4 * n_pairs:
            every = torch.combinations(torch.arange(n, device=home))
            pairs = every[torch.randperm(n_all, generator=generator, device=home)[:n_pairs]]
        else:
            first = torch.randint(n, (4 * n_pairs,), generator=generator, device=home)
            step = torch.randint(1, n, (4 * n_pairs,), generator=generator, device=home)
            pairs = torch.stack((first, (first + step) % n), -1).sort(-1).values
            pairs = pairs.unique(dim=0)
            pairs = pairs[torch.randperm(len(pairs), generator=generator, device=home)[:n_pairs]]
    pairs = pairs.to(codes.device)
    return pairs[(codes[pairs[:, 0]] != codes[pairs[:, 1]]).any(-1)], disjoint


def straight_against_geodesic(
    metric: Metric,
    cloud: Cloud,
    *,
    n_pairs: int,
    tol: float,
    solver: GeodesicSolver | str,
    generator: Generator,
    progress: bool = False,
) -> tuple[Lines, Solution]:
    """Lengths of straight lines and of geodesics between random codes, and these geodesics."""
    pairs, disjoint = random_pairs(cloud.codes, n_pairs, generator)
    start, end = cloud.codes[pairs[:, 0]], cloud.codes[pairs[:, 1]]
    with warnings.catch_warnings():
        for known in (GeodesicWarning, RankWarning):  # failures are counted, dead directions named
            warnings.simplefilter("ignore", known)
        path = geodesic(metric, start, end, tol=tol, solver=solver, progress=progress)
    straight = straight_lengths(metric, start, end)
    ratio = (straight / path.length).double()
    used = path.converged & (path.length > 0) & torch.isfinite(ratio)
    ratio, slack = ratio[used], (path.length_error / path.length).double()[used] + _AGREE
    names = [list(Status)[code].name for code in path.codes.tolist()]
    line_off, geodesic_off = (_off(cloud, curve) for curve in (Curve.straight(start, end)[used], path.curve[used]))
    found = Lines(
        n_pairs=len(pairs),
        n_used=len(ratio),
        statuses={name: names.count(name) for name in dict.fromkeys(names)},
        ratio=Spread.of(ratio),
        mean=float(ratio.mean()) if len(ratio) else math.nan,
        worst=float(ratio.max()) if len(ratio) else math.nan,
        interval=bootstrap(ratio, generator) if len(ratio) >= _FEWEST else None,
        disjoint=disjoint,
        n_shorter=int((ratio < 1 - slack).sum()),
        line_off=line_off,
        geodesic_off=geodesic_off,
        ratios=tuple(ratio.tolist()),
    )
    return found, path


def straight_lengths(metric: Metric, start: Points, end: Points) -> Tensor:
    """Riemannian lengths (n,) of straight latent lines; NaN where one leaves the region where the metric is defined."""

    def measured(rows: Tensor) -> Tensor:
        line = Curve.straight(start[rows], end[rows])
        found = length(metric, line, n_segments=_COARSE)
        coarse = length(metric, line, n_segments=_COARSE // 2)
        rough = ((found - coarse).abs() > _AGREE * found).nonzero()[:, 0]
        if len(rough):
            found[rough] = length(metric, line[rough], n_segments=_FINE)
        return found

    with torch.no_grad():
        every = torch.arange(len(start), device=start.device)
        lengths = torch.full((len(start),), torch.nan, dtype=start.dtype, device=start.device)
        where, parts, _ = by_halves(measured, every)
        for rows, part in zip(where, parts, strict=True):
            if part is not None:
                lengths[rows] = part
    return lengths


def bootstrap(x: Tensor, generator: Generator) -> tuple[float, float]:
    """A 95% interval of the median of numbers (n,): quantiles of the medians of resamples."""
    chosen = torch.randint(len(x), (_RESAMPLES, len(x)), generator=generator, device=generator.device).to(x.device)
    medians = np.median(x[chosen].cpu().numpy(), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975)).tolist()
    return low, high


def _off(cloud: Cloud, curve: Curve) -> float:
    """The share of the inner points of curves that are off the data."""
    if not len(curve.nodes):
        return math.nan
    t = torch.linspace(0, 1, _SAMPLES + 2, dtype=curve.nodes.dtype, device=curve.nodes.device)[1:-1]
    limit = float(cloud.spacings.quantile(_ON))
    return float((cloud.distance(curve(t).reshape(-1, curve.nodes.shape[-1])) > limit).double().mean())
