"""The metric away from the data: points at given distances from the codes, and what it does on the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Generator, Tensor

from pullback.diagnostics.records import Growth, Off, Shell, Spread
from pullback.diagnostics.spectra import Sampled, sampled
from pullback.metrics import Metric
from pullback.types import Points

SHELLS = (1 / 40, 1 / 20, 1 / 10, 1 / 5, 7 / 20, 1 / 2, 3 / 4, 1)  # of the reach
_TREE = 8  # dimensions up to which a tree finds neighbors faster than all distances do
_BLOCK = 1 << 22  # distances at once
_MARCHES = 60  # steps towards a distance
_NEAR = 0.02  # of a distance, that a point may be off
_MARGIN = 0.25  # of the codes' range, on every side of the box
_SAME = math.log(1.25)  # in nats: lengths that differ by less are the same
_WALL = math.log(2.0)  # rise of a wall, if the metric ends below what it is on the data
_PART = 0.1  # of a rise, that counts as a fall, or as going on
_ENOUGH = 0.5  # of a shell's points that must have a metric
_FEWEST = 3  # shells that make a profile


class Cloud:
    """Codes (n, d), and how far points are from them."""

    def __init__(self, codes: Points) -> None:
        self.codes = codes
        points = codes.double()
        self._points = points
        self._tree = KDTree(points.cpu().numpy()) if points.shape[1] <= _TREE else None
        self.spread = float((points - points.mean(0)).square().sum(-1).mean().sqrt())
        self.spacings = self._nearest(points, 2)[:, 1]

    def distance(self, z: Points) -> Tensor:
        """To the nearest code: (n, d) -> (n,), float64."""
        return self._nearest(z.double(), 1)[:, 0]

    def shell(self, distance: float, n: int, generator: Generator) -> Points:
        """Up to n points at this distance from the nearest code, each seen from a random code in a random direction.

        The ball around a point that reaches to the nearest code is empty, so one may march by what is missing.
        """
        home = generator.device
        z = self._points[torch.randint(len(self.codes), (n,), generator=generator, device=home).to(self.codes.device)]
        way = torch.randn(z.shape, generator=generator, dtype=torch.float64, device=home).to(z.device)
        way = way / way.norm(dim=-1, keepdim=True)
        gap = torch.full((n,), distance, dtype=torch.float64, device=z.device)
        for _ in range(_MARCHES):
            short = (gap > _NEAR * distance).nonzero()[:, 0]
            if not len(short):
                break
            z[short] += gap[short, None] * way[short]
            gap[short] = distance - self.distance(z[short])
        return z[gap <= _NEAR * distance].to(self.codes)

    def box(self, n: int, generator: Generator) -> Points:
        """Random points (n, d) of the box around the codes, a quarter larger on every side."""
        low, high = self.codes.double().aminmax(dim=0)
        share = torch.rand(n, len(low), generator=generator, dtype=torch.float64, device=generator.device).to(
            low.device
        )
        return (low + (high - low) * ((1 + 2 * _MARGIN) * share - _MARGIN)).to(self.codes)

    def _nearest(self, z: Tensor, k: int) -> Tensor:
        """Distances (n, k) to the k nearest codes."""
        if self._tree is not None:
            found = np.asarray(self._tree.query(z.cpu().numpy(), k=k)[0])
            return torch.from_numpy(found.reshape(-1, k)).to(z.device)
        rows = z.split(max(1, _BLOCK // len(self._points)))
        gaps = (torch.cdist(some, self._points, compute_mode="donot_use_mm_for_euclid_dist") for some in rows)
        return torch.cat([gap.topk(k, largest=False).values for gap in gaps])


def profile(
    metric: Metric, data: Sampled, cloud: Cloud, *, reach: float, n_points: int, generator: Generator
) -> tuple[Growth, Sampled]:
    """The metric against the distance to the data, and what was found on the last shell that has a metric."""
    rank = max(1, int(data.rank.median()))
    inside = Spread.of(data.log_stretch(rank))
    shells, last = [], data
    for share in SHELLS:
        distance = share * reach * cloud.spread
        asked = cloud.shell(distance, n_points, generator)
        found = sampled(metric, asked)
        enough = len(found.z) > _ENOUGH * found.asked
        stretch = found.log_stretch(rank)
        above = float((stretch > inside.median).double().mean()) if len(stretch) else math.nan
        shells.append(Shell(distance, len(found.z) if enough else 0, Spread.of(stretch), above))
        last = found if enough else last
    known = [shell for shell in shells if shell.n_points]
    medians = [inside.median, *(shell.log_stretch.median for shell in known)]
    distances = [0.0, *(shell.distance for shell in known)]
    top = int(np.argmax(medians[1:])) + 1 if known else 0
    verdict = judged(distances, medians)
    rise, fall = (math.exp(min(x, _MOST)) for x in (medians[top] - medians[0], medians[top] - medians[-1]))
    spacing = float(cloud.spacings.median())
    result = Growth(verdict, inside, tuple(shells), cloud.spread, spacing, rise, distances[top], fall)
    return result, last


def judged(distances: Sequence[float], medians: Sequence[float]) -> Off:
    """What a profile of log stretches says, the first on the data, the others at growing distances from these."""
    if len(medians) <= _FEWEST or math.isnan(medians[0]):
        return Off.UNKNOWN
    base, end, top = medians[0], medians[-1], max(medians)
    rise, fall = top - base, top - end
    if rise < _SAME:
        return Off.SHRINKS if end < base - _SAME else Off.FLAT
    if fall > max(_SAME, _PART * rise):
        return Off.SHRINKS if rise < min(_WALL, base - end) else Off.RING  # a bump on the way down is no wall
    half = float(np.interp(distances[-1] / 2, distances, medians))
    return Off.SATURATES if end - half < _PART * rise else Off.GROWS


_MOST = 700.0  # whose exponential is finite
