"""Points that are uniform with respect to the Riemannian volume."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Generator, Tensor

from pullback import _checks
from pullback.curvature.immersion import gram_frame
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.domains import Box
from pullback.statistics.steps import Metropolis, matrices
from pullback.statistics.walks import walked
from pullback.types import Points, Scalars

_CELLS = {1: 512, 2: 64, 3: 16}  # along each axis, by dimension
_HEADROOM = 1.1  # of the bound in a cell above what was found at its corners and in the middle
_TRUST = 0.5  # the power of the ratio of these that is added, for what lies between
_PARTS = 64  # of the points asked for: proposals come in blocks of no less
_ROUNDS = 10_000
_CANDIDATES = 16  # a point, that the first ones are drawn from in many dimensions
_STEPS = 100  # that these then walk
_ACCEPTED = 0.6  # of the steps
_TRIED = 256  # points that the first step is chosen by


@dataclass(frozen=True)
class Sample:
    """Points that are uniform by volume, and how they were had.

    Attributes:
        points: (n, d).
        acceptance: The share of the proposals that was accepted.
        volume: The Riemannian volume of the box, by the way.
        volume_error: Its standard error.
        method: "rejection", which is exact and gives independent points, or "walk".
    """

    points: Tensor
    acceptance: float
    volume: float
    volume_error: float
    method: Literal["rejection", "walk"]


@overload
def sample_uniform(
    metric: Metric, bounds: Tensor, n: int, *, generator: Generator | None = None, full: Literal[False] = False
) -> Points: ...


@overload
def sample_uniform(
    metric: Metric, bounds: Tensor, n: int, *, generator: Generator | None = None, full: Literal[True]
) -> Sample: ...


def sample_uniform(
    metric: Metric, bounds: Tensor, n: int, *, generator: Generator | None = None, full: bool = False
) -> Points | Sample:
    r"""Points in a box, uniform with respect to the Riemannian volume: their density is :math:`\sqrt{\det G} / V`.

    In up to three dimensions by rejection: a bound of the density in each cell of a grid is measured at its corners and
    its middle and raised for what lies between. Each proposal checks it; where one exceeds it, the bound is raised and
    all points are drawn anew, so that those that are returned never met an excess. They are independent.

    In more dimensions points are drawn out of 16 n by their volume, and each then walks 100 steps by Metropolis' rule
    (see :func:`brownian_motion`), which keep the uniform law exactly and forget the start.

    Args:
        metric: The metric.
        bounds: (d, 2), the lower and upper end of each axis; dtype and device of the points.
        n: How many points.
        generator: For random numbers. Default: torch's global one.
        full: Return a :class:`Sample`, which also tells the acceptance and the volume.

    Returns:
        (n, d).

    Raises:
        ValueError: The bounds are empty, or have no volume in the metric.

    Warns:
        StatisticsWarning: The metric is not finite in a part of the box, which then has no points.

    Cost:
        d <= 3: a matrix for each cell and corner, 8,300 for d = 2, and one a proposal. Else 120 n matrices.

    Reference:
        Bou-Rabee, Donev, Vanden-Eijnden (2014) for Metropolis' rule. :cite:`selfadjoint`

    Example:
        >>> sphere, box = pb.surfaces.Sphere(), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
        >>> z = sample_uniform(pb.Pullback(sphere), box, 4000, generator=torch.Generator().manual_seed(0))
        >>> disk = z.norm(dim=1) < 1  # the lower half of the sphere, of the area 2 pi
        >>> height = sphere(z[disk])[:, 2]
        >>> round(float(height.mean()), 1)  # Archimedes: heights are uniform
        -0.5
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    bounds = _checks.points(bounds, "bounds").detach()
    bounds = errors.box(bounds, bounds.new_empty(len(bounds)))
    _checks.at_least(n, 1, "n")
    with torch.no_grad():
        metric.matrix(bounds.mean(1))  # what does not fit the metric is told by it
        found = (_by_rejection if len(bounds) <= 3 else _by_walks)(metric, bounds, int(n), generator)
    return found if full else found.points


def _by_rejection(metric: Metric, bounds: Tensor, n: int, generator: Generator | None) -> Sample:
    d = len(bounds)
    bound, shift = _bounds_of_cells(metric, bounds, _CELLS[d])  # (cells,), relative to exp(shift)
    size = (bounds[:, 1] - bounds[:, 0]) / _CELLS[d]
    kept: list[Tensor] = []
    proposed = accepted = 0
    for _ in range(_ROUNDS):
        wanted = n - accepted
        share = (accepted + 1) / (proposed + 2)
        count = max(math.ceil(1.1 * wanted / share), math.ceil(n / _PARTS), 64)
        cells = torch.multinomial(_on(generator, bound), min(count, 1 << 20), replacement=True, generator=generator)
        cells = cells.to(bounds.device)
        index = torch.stack(torch.unravel_index(cells, (_CELLS[d],) * d), -1)
        z = bounds[:, 0] + (index + _uniform(index.shape, generator, bounds)) * size
        density = (_log_volumes(metric, z) - shift).exp().nan_to_num(0.0)
        excess = density > bound[cells]
        if excess.any():
            raised = _HEADROOM * density[excess]
            bound = bound.scatter_reduce(0, cells[excess], raised, "amax")
            kept, proposed, accepted = [], 0, 0
            continue
        taken = _uniform(z.shape[:1], generator, bounds) * bound[cells] < density
        kept.append(z[taken])
        proposed, accepted = proposed + len(z), accepted + int(taken.sum())
        if accepted >= n:
            break
    else:
        raise errors.too_few_accepted(n, accepted, proposed)
    share = accepted / proposed
    whole = float(bound.sum() * size.prod()) * math.exp(shift)
    error = whole * (share * (1 - share) / proposed) ** 0.5
    return Sample(torch.cat(kept)[:n], share, whole * share, error, "rejection")


def _bounds_of_cells(metric: Metric, bounds: Tensor, count: int) -> tuple[Tensor, float]:
    """Bounds (count^d,) of the density of the volume in cells, relative to exp(shift); the shift."""
    d = len(bounds)
    middle, corner = (_nodes(bounds, count, half) for half in (True, False))
    logs = _log_volumes(metric, torch.cat((middle, corner)))
    lost = int(logs.isnan().sum())
    if lost:
        warnings.warn(
            f"the metric is not finite at {lost} of {len(logs)} points of the box: there will be no points there.",
            _checks.StatisticsWarning,
            stacklevel=4,
        )
    logs = logs.nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)
    shift = float(logs.max())
    if not math.isfinite(shift):
        raise errors.no_volume()
    inner, outer = (logs[: len(middle)] - shift).exp(), (logs[len(middle) :] - shift).exp().reshape((count + 1,) * d)
    high = low = inner.reshape((count,) * d)
    for k in range(2**d):
        at = tuple(slice(k >> axis & 1, count + (k >> axis & 1)) for axis in range(d))
        high, low = torch.maximum(high, outer[at]), torch.minimum(low, outer[at])
    ratio = (high / low.clamp_min(torch.finfo(high.dtype).tiny)).clamp(1, 4)
    return (_HEADROOM * high * ratio**_TRUST).reshape(-1).clamp_min(1e-12), shift


def _by_walks(metric: Metric, bounds: Tensor, n: int, generator: Generator | None) -> Sample:
    z = bounds[:, 0] + _uniform((_CANDIDATES * n, len(bounds)), generator, bounds) * (bounds[:, 1] - bounds[:, 0])
    logs = _log_volumes(metric, z).nan_to_num(-math.inf)
    shift = float(logs.max())
    if not math.isfinite(shift):
        raise errors.no_volume()
    weights = (logs - shift).exp()
    chosen = torch.multinomial(_on(generator, weights), n, replacement=True, generator=generator).to(bounds.device)
    start = z[chosen]
    scheme = Metropolis(metric, Box(bounds))
    sizes = matrices(metric, start[:_TRIED]).diagonal(dim1=-2, dim2=-1) * (bounds[:, 1] - bounds[:, 0]).square()
    h = float(sizes.mean(1).median())  # steps across the box, which are then made shorter
    for _ in range(60):
        trial = walked(scheme, start, 2, h, generator=generator)
        if float(trial.acceptance.mean()) > _ACCEPTED:
            break
        h *= 0.5
    walk = walked(scheme, start, _STEPS, h, generator=generator)
    box = float((bounds[:, 1] - bounds[:, 0]).prod()) * math.exp(shift)
    error = box * float(weights.std()) / len(weights) ** 0.5
    return Sample(walk.points[:, -1], float(walk.acceptance.mean()), box * float(weights.mean()), error, "walk")


def _log_volumes(metric: Metric, z: Points) -> Scalars:
    """The logarithm of sqrt(det G) at points (n, d): -inf where G is singular, NaN where it is not finite."""
    g = matrices(metric, z)
    frame, regular = gram_frame(g)
    logs = torch.where(regular, -frame.diagonal(dim1=-2, dim2=-1).log().sum(-1), -torch.inf)
    return torch.where(torch.isfinite(g).all(-1).all(-1), logs, torch.nan)


def _nodes(bounds: Tensor, count: int, half: bool) -> Tensor:
    """The middles (count^d, d) of cells, or their corners."""
    t = torch.arange(count + (not half), dtype=bounds.dtype, device=bounds.device) + 0.5 * half
    axes = [low + (high - low) * t / count for low, high in bounds.unbind(0)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(bounds))


def _uniform(shape: tuple[int, ...], generator: Generator | None, like: Tensor) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def _on(generator: Generator | None, weights: Tensor) -> Tensor:
    """Weights where the generator is."""
    return weights if generator is None else weights.to(generator.device)
