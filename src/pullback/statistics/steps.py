"""One step of a walk, in three ways: along the frame of the metric, along a geodesic, and by Metropolis' rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pullback._batching import map_chunks
from pullback.autodiff import PartsMap, jacobian_columns
from pullback.curvature.immersion import gram_frame
from pullback.geodesics.halves import by_halves
from pullback.metrics import Metric, Pullback
from pullback.statistics import errors
from pullback.statistics.domains import Domain
from pullback.types import Matrices, Points, Scalars, Tangents

Carry = dict[str, Tensor]  # what walks (n, ...) take from one step to the next
_FORGET = 0.5  # share of the bend of the step before that is still believed
_TRIAL = 0.1  # of a step, to measure the first bend with
_TRIALS = 8


class Scheme(ABC):
    """How walks take steps; each is given standard normal numbers and a duration h, the variance along each axis."""

    def __init__(self, metric: Metric, domain: Domain) -> None:
        self.metric = metric
        self.domain = domain

    @abstractmethod
    def begin(self, z: Points, h: float) -> Carry:
        """What walks that start at points (n, d) take along, for steps of duration h."""

    @abstractmethod
    def step(self, z: Points, h: Scalars, noise: Tangents, carry: Carry, uniform: Scalars) -> tuple[Points, Tensor]:
        """Where walks at z (k, d) are after h (k,), NaN where they are lost, and who was refused the step: bool (k,).

        `carry` is brought up to date.
        """

    @abstractmethod
    def cost(self, d: int) -> int:
        """Decoder evaluations of a step."""

    def first_cost(self, d: int) -> int:
        """Decoder evaluations of :meth:`begin`."""
        return self.metric.matrix_cost(d)

    def longest(self, carry: Carry, d: int) -> Scalars | None:
        """The longest steps (k,) that are accurate, as far as is known beforehand; None: any."""
        return None

    def _settle(self, z: Tensor, new: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Steps from z to new points (k, d), brought back into the domain, or refused."""
        new = self.domain.reflected(new, inverse)
        finite = torch.isfinite(new).all(-1)
        outside = finite & ~self.domain.contains(torch.where(finite[:, None], new, z))
        return torch.where(outside[:, None], z, new), outside


class Driftless(Scheme):
    r"""z + sqrt(h) G^{-1/2} noise: the paper's walk.

    Attributes:
        changes: How much the squared length of each step differs between its two ends, as a logarithm (k,).
    """

    def __init__(self, metric: Metric, domain: Domain) -> None:
        super().__init__(metric, domain)
        self.changes: list[Tensor] = []

    def begin(self, z: Points, h: float) -> Carry:
        return {"frame": _first_frame(self.metric, z)}

    def step(self, z: Points, h: Scalars, noise: Tangents, carry: Carry, uniform: Scalars) -> tuple[Points, Tensor]:
        frame = carry["frame"]
        v = h.sqrt()[:, None] * _times(frame, noise)
        new, refused = self._settle(z, z + v, frame @ frame.mT)
        carry["frame"] = gram_frame(matrices(self.metric, new))[0]
        seen = torch.linalg.solve_triangular(carry["frame"], v[..., None], upper=True)[..., 0]  # |seen| = |v| there
        change = (seen.square().sum(-1) / (h * noise.square().sum(-1))).log().abs()
        self.changes.append(change[torch.isfinite(change)])
        return torch.where(torch.isfinite(carry["frame"]).all(-1).all(-1)[:, None], new, torch.nan), refused

    def cost(self, d: int) -> int:
        return self.metric.matrix_cost(d)


class Metropolis(Driftless):
    r"""The driftless step, taken or refused so that the law of the volume stays as it is.

    A step v has the density sqrt(det G) exp(-v'Gv / 2h); with the volume for a target the ratio of Hastings is
    det G(new) / det G(z) times exp(-v'(G(new) - G(z))v / 2h).
    """

    def step(self, z: Points, h: Scalars, noise: Tangents, carry: Carry, uniform: Scalars) -> tuple[Points, Tensor]:
        frame = carry["frame"]
        v = h.sqrt()[:, None] * _times(frame, noise)
        new = z + v
        inside = self.domain.contains(new)
        there = torch.full_like(frame, torch.nan)
        there[inside] = gram_frame(matrices(self.metric, new[inside]))[0]
        seen = torch.linalg.solve_triangular(there, v[..., None], upper=True)[..., 0]
        stretch = frame.diagonal(dim1=-2, dim2=-1).log().sum(-1) - there.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        ratio = 2 * stretch - 0.5 * (seen.square().sum(-1) / h - noise.square().sum(-1))
        taken = uniform.log() < ratio  # False for NaN: where there is no metric there is no volume
        carry["frame"] = torch.where(taken[:, None, None], there, frame)
        return torch.where(taken[:, None], new, z), ~taken


class Geodesic(Scheme):
    r"""z + v - Gamma(v, v) / 2 with v = sqrt(h) G^{-1/2} noise: along a geodesic, to second order.

    The expectation of the last term is the drift. An immersed metric needs no second derivative for it, but two more
    evaluations beside the Jacobian:

    .. math:: \Gamma(v, v) = G^{-1} J^\top \big(f(z + v) - 2 f(z) + f(z - v)\big) + O(|v|^4)

    Args:
        max_bend: The length of the last term, relative to that of v in the mean, above which steps are made shorter.
    """

    def __init__(self, metric: Metric, domain: Domain, max_bend: float) -> None:
        super().__init__(metric, domain)
        self.max_bend = max_bend

    def begin(self, z: Points, h: float) -> Carry:
        _first_frame(self.metric, z)
        self._move = _projected(self.metric, z) if self.metric.immersed else partial(_bent, self.metric)
        if self.max_bend == float("inf"):
            return {"bend": torch.zeros_like(z[:, 0])}
        trial, axes = torch.full_like(z[:, 0], h), torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        bend = torch.zeros_like(trial)
        for self._trials in range(1, _TRIALS + 1):  # a step that is too long does not see how much it bends
            bends = [self._moved(z, _TRIAL**2 * trial, e.expand_as(z))[3] for e in axes]
            bend = torch.maximum(bend, torch.stack(bends).nan_to_num(0.0).amax(0))
            advised = torch.minimum(trial, (self.max_bend / bend).square() / z.shape[1])
            if (advised > 0.5 * trial).all():
                break
            trial = advised
        return {"bend": bend}

    def longest(self, carry: Carry, d: int) -> Scalars | None:
        return (self.max_bend / carry["bend"]).square() / d

    def step(self, z: Points, h: Scalars, noise: Tangents, carry: Carry, uniform: Scalars) -> tuple[Points, Tensor]:
        v, correction, inverse, bend = self._moved(z, h, noise)
        carry["bend"] = torch.maximum(bend, _FORGET * carry["bend"])
        return self._settle(z, z + v - correction, inverse)

    def cost(self, d: int) -> int:
        return self.metric.matrix_cost(d) + (2 if self.metric.immersed else self.metric.christoffel_cost(d))

    def first_cost(self, d: int) -> int:
        trials = 0 if self.max_bend == float("inf") else self._trials * d * self.cost(d)
        return 2 * self.metric.matrix_cost(d) + trials  # the end is looked at, too

    def regular(self, z: Points) -> Tensor:
        """At which points (n, d) a step has a size: bool (n,)."""
        return gram_frame(matrices(self.metric, z))[1]

    def _moved(self, z: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """v, the half of Gamma(v, v), the inverse of G, and the length of the second over the squared one of v."""
        d, size = z.shape[1], self.metric.points_at_once(z)
        v, correction, frame = guarded(
            lambda *parts: map_chunks(self._move, parts, size), (z, h, noise), ((d,), (d,), (d, d))
        )
        lowered = torch.linalg.solve_triangular(frame, correction[..., None], upper=True)[..., 0]
        return v, correction, frame @ frame.mT, lowered.norm(dim=-1) / (h * noise.square().sum(-1))


def matrices(metric: Metric, z: Points) -> Matrices:
    """G at points (n, d), NaN where the metric has none."""
    d = z.shape[1]
    rows = torch.isfinite(z).all(-1).nonzero().reshape(-1)
    g = z.new_full((*z.shape, d), torch.nan)
    if not len(rows):
        return g
    with torch.no_grad():
        try:
            g[rows] = metric.matrix(z[rows])
        except (ValueError, RuntimeError):  # somewhere there is none: features tell of most such points at once
            seen = guarded(lambda z: (0 * metric.features(z).sum(-1),), (z[rows],), ((),))[0]
            rows = rows[torch.isfinite(seen)]
            g[rows] = guarded(lambda z: (metric.matrix(z),), (z[rows],), ((d, d),))[0]
    return g


def guarded(
    function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], shapes: tuple[tuple[int, ...], ...]
) -> tuple[Tensor, ...]:
    """A function of tensors (n, ...) whose results are (n, *shape), NaN at the rows where it raises an error."""
    rows = torch.arange(len(tensors[0]), device=tensors[0].device)
    if not len(rows):
        return tuple(tensors[0].new_zeros(0, *shape) for shape in shapes)
    where, found, _ = by_halves(lambda rows: function(*(t[rows] for t in tensors)), rows)
    if len(found) == 1 and found[0] is not None:
        return found[0]
    results = tuple(tensors[0].new_full((len(rows), *shape), torch.nan) for shape in shapes)
    for part, values in zip(where, found, strict=True):
        for result, value in zip(results, values or (), strict=False):
            result[part] = value
    return results


def _projected(metric: Metric, z: Tensor) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """The step of an immersed metric, from one Jacobian and two more evaluations."""
    f: PartsMap = metric.feature_map.parts if isinstance(metric, Pullback) else lambda z: (metric.features(z),)
    with torch.no_grad():
        n_features = metric.features(z[:1]).shape[-1]

    def moved(z: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        values, *columns = jacobian_columns(f, z, n_features)
        j = [torch.stack(parts, 1) for parts in zip(*columns, strict=True)]  # (n, d, D_k)
        g = torch.stack([part @ part.mT for part in j]).sum(0)
        frame = gram_frame(g + 0 * torch.stack([x.sum(-1) for x in values]).sum(0)[:, None, None])[0]
        v = h.sqrt()[:, None] * _times(frame, noise)
        bends = zip(f(z + v), values, f(z - v), j, strict=True)
        pulled = torch.stack([_times(part, 0.5 * (there + back) - x) for there, x, back, part in bends]).sum(0)
        return v, _times(frame, _times(frame.mT, pulled)), frame

    return moved


def _bent(metric: Metric, z: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """The step of any metric, from its matrix and a Christoffel vector."""
    frame, regular = gram_frame(matrices(metric, z))
    v = h.sqrt()[:, None] * _times(frame, noise)
    bent = torch.full_like(v, torch.nan)
    bent[regular] = 0.5 * metric.christoffel(z[regular], v[regular], v[regular])
    return v, bent, frame


def _first_frame(metric: Metric, z: Points) -> Matrices:
    """Frames at the starts of walks, or an error: nothing is forgiven there."""
    with torch.no_grad():
        frame, regular = gram_frame(metric.matrix(z))
    if not regular.all():
        raise errors.singular_start(z, ~regular)
    return frame


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]
