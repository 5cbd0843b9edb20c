"""The map behind an immersed metric with its first and second derivatives, exact or at a scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback import _checks
from pullback._batching import chunk_size
from pullback.autodiff import Parts, PartsMap, jacobian_columns, jet
from pullback.curvature import errors
from pullback.curvature.creases import refuse_creased_operators, refuse_creases
from pullback.metrics import Conformal, Metric, Pullback, Scaled, Sum
from pullback.types import Matrices, Points, Tangents

Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Immersion:
    """A map of points (n, d) to R^D whose Euclidean metric is pulled back.

    Args:
        parts: The map, its values in parts (n, D_k).
        n_features: D.
        footprint: Bytes that one point takes while it is evaluated and differentiated once.
        memory: Bytes that one evaluation may take, or None.
        scale: None for derivatives, else the latent length of the steps of finite differences.
    """

    parts: PartsMap
    n_features: int
    footprint: int
    memory: int | None
    scale: float | None = None

    def jet(self, z: Points, vectors: Sequence[Tangents], pairs: Pairs) -> tuple[Tensor, Tensor]:
        """J v for k vectors and f''(u, v) for m pairs, all (n, d): (n, k, D), NaN where f is, and (n, m, D)."""
        found = jet if self.scale is None else _differences(self.scale)
        (values, *first), second = found(self.parts, z, vectors, pairs)
        return _stacked(first, z) + _nan_outside(values), _stacked(second, z)

    def columns(self, z: Points) -> Tensor:
        """J' at points (n, d): (n, d, D)."""
        if self.scale is not None:
            return self.jet(z, axes(z), ())[0]
        values, *columns = jacobian_columns(self.parts, z, self.n_features)
        return _stacked(columns, z) + _nan_outside(values)

    def points_at_once(self, z: Points, held: int) -> int:
        """How many points fit in memory when each holds that many vectors of D features beside its graphs."""
        peak = _GRAPHS * self.footprint + 2 * held * self.n_features * z.element_size()
        return chunk_size(peak // _TOUCHED, z.device, self.memory, peak=peak)


def immersion(metric: Metric, z: Points, scale: float | None = None) -> Immersion | None:
    """The immersion behind a metric, looked at once with points (..., d); None when there is none.

    Raises:
        ValueError: The decoder has creases and no scale is given; a scale is not positive, or given where there is no
            immersion.
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    found = _immersion(metric, z)
    if scale is not None:
        _checks.positive_and_finite(scale, "scale")
        if found is None:
            raise errors.scale_without_immersion()
        return Immersion(found.parts, found.n_features, found.footprint, found.memory, float(scale))
    at = z.detach().reshape(-1, z.shape[-1])
    if found is not None:
        refuse_creases(found.parts, at)
    else:
        refuse_creased_operators(lambda z: (metric.matrix(z),), at[:1])
        for decoder in _decoders(metric):
            refuse_creases(decoder.feature_map.parts, at)
    return found


def axes(z: Points) -> list[Tensor]:
    """The d unit vectors at points (n, d), each (n, d)."""
    return [e.expand_as(z) for e in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)]


def gram_frame(g: Matrices) -> tuple[Matrices, Tensor]:
    """Frames E (n, d, d), orthonormal by matrices G (n, d, d), E'GE = I, in columns; and where G is regular (n,).

    The coordinates are first brought to one scale: a short axis is not a singular one. Where G is singular to working
    precision, or not finite, the frame is NaN.
    """
    diagonal = g.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.clamp_min(torch.finfo(g.dtype).tiny).rsqrt()
    lower, info = torch.linalg.cholesky_ex(scale[:, :, None] * g * scale[:, None, :])
    rounding = 10 * g.shape[-1] * torch.finfo(g.dtype).eps
    regular = (info == 0) & (lower.detach().diagonal(dim1=-2, dim2=-1).square() > rounding).all(-1)
    eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
    lower = torch.where(regular[:, None, None], lower, eye)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    return torch.where(regular[:, None, None], scale[:, :, None] * inverse.mT, torch.nan), regular


def tangent_basis(columns: Tensor) -> tuple[Tensor, Matrices]:
    """Orthonormal tangents (n, d, D) of a surface from the columns of J (n, d, D); E (n, d, d) with E'GE = I.

    The tangents are J E, NaN where G is singular. One pass loses as many digits as G has in its condition; a second one
    brings them back.
    """
    frame, _ = gram_frame(columns @ columns.mT)
    basis = frame.mT @ columns
    again, _ = gram_frame(basis @ basis.mT)
    return again.mT @ basis, frame @ again


def normal(y: Tensor, basis: Tensor) -> Tensor:
    """The parts of feature vectors y (n, m, D) that are normal to orthonormal tangents (n, d, D)."""
    return y - (y @ basis.mT) @ basis


def _immersion(metric: Metric, z: Tensor) -> Immersion | None:
    if isinstance(metric, Pullback):
        footprint = metric.feature_map.footprint(z)  # a likelihood knows its family only now
        if not metric.immersed:
            return None
        return Immersion(metric.feature_map.parts, metric.feature_map.n_features, footprint, metric.memory)
    if isinstance(metric, Scaled):
        found = _immersion(metric.metric, z)
        return None if found is None else _stretched(found, metric.factor**0.5)
    if isinstance(metric, Sum):
        members = [_immersion(part, z) for part in metric.parts]
        return _side_by_side([member for member in members if member is not None], len(members))
    return None


def _decoders(metric: Metric) -> list[Pullback]:
    """The metrics of decoders that a metric is made of."""
    if isinstance(metric, Pullback):
        return [metric]
    inside = metric.parts if isinstance(metric, Sum) else [metric.metric] if isinstance(metric, _AROUND) else []
    return [decoder for part in inside for decoder in _decoders(part)]


def _stretched(base: Immersion, factor: float) -> Immersion:
    def parts(z: Tensor) -> Parts:
        return tuple(factor * x for x in base.parts(z))

    return Immersion(parts, base.n_features, base.footprint, base.memory)


def _side_by_side(members: list[Immersion], n: int) -> Immersion | None:
    if len(members) < n:
        return None

    def parts(z: Tensor) -> Parts:
        return tuple(x for member in members for x in member.parts(z))

    budgets = [member.memory for member in members if member.memory is not None]
    sizes, footprints = [m.n_features for m in members], [m.footprint for m in members]
    return Immersion(parts, sum(sizes), sum(footprints), min(budgets) if budgets else None)


def _differences(scale: float) -> Callable[..., tuple[list[Parts], list[Parts]]]:
    """Central differences in place of :func:`jet`, with steps of the latent length `scale`."""

    def found(f: PartsMap, z: Tensor, vectors: Sequence[Tensor], pairs: Pairs) -> tuple[list[Parts], list[Parts]]:
        values = f(z)
        seen: dict[int, tuple[Tensor, Parts, Parts]] = {}

        def either_side(v: Tensor) -> tuple[Tensor, Parts, Parts]:
            """|v| (n, 1) over the scale, and f at a step of that scale there and back."""
            if id(v) not in seen:
                length = v.norm(dim=-1, keepdim=True) / scale
                step = v / length.clamp_min(torch.finfo(v.dtype).tiny)
                seen[id(v)] = length, f(z + step), f(z - step)
            return seen[id(v)]

        def slope(v: Tensor) -> Parts:
            length, there, back = either_side(v)
            return tuple(0.5 * length * (x - y) for x, y in zip(there, back, strict=True))

        def bend(v: Tensor) -> Parts:
            length, there, back = either_side(v)
            return tuple(
                length.square() * (x - 2 * middle + y) for x, middle, y in zip(there, values, back, strict=True)
            )

        def mixed(u: Tensor, v: Tensor) -> Parts:
            if u is v:
                return bend(u)
            whole = u + v
            kept.append(whole)  # its id must stay its own
            return tuple(0.5 * (x - a - b) for x, a, b in zip(bend(whole), bend(u), bend(v), strict=True))

        kept: list[Tensor] = []
        return [values, *map(slope, vectors)], [mixed(u, v) for u, v in pairs]

    return found


def _stacked(vectors: Sequence[Parts], z: Tensor) -> Tensor:
    """Feature vectors in parts (n, D_k) as one (n, m, D)."""
    if not vectors:
        return z.new_zeros(len(z), 0, 1)
    stacked = [torch.stack(part, 1) for part in zip(*vectors, strict=True)]
    return stacked[0] if len(stacked) == 1 else torch.cat(stacked, -1)


def _nan_outside(values: Parts) -> Tensor:
    """Zeros (n, 1, 1), NaN where a feature is NaN or infinite: derivatives may look finite there."""
    return 0 * torch.stack([x.detach().sum(-1) for x in values]).sum(0)[:, None, None]


_AROUND = (Conformal, Scaled)
_GRAPHS = 6  # a value's graph, that of its derivative, and what is in flight between them
_TOUCHED = 4  # of the peak, what the cache has to hold at a time
