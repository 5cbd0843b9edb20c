"""Where walks may go: a box that reflects them, or a region that refuses steps out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.statistics import errors
from pullback.types import Matrices, Points

_BOUNCES = 4  # per axis, before a step is refused


class Domain(ABC):
    """A part of R^d, or all of it."""

    @abstractmethod
    def contains(self, z: Points) -> Tensor:
        """Which points (n, d) lie in it: bool (n,)."""

    def reflected(self, z: Points, inverse: Matrices) -> Points:
        """Points (n, d), brought back if the boundary can; `inverse` is that of the metric (n, d, d)."""
        return z


class Everywhere(Domain):
    """All of R^d."""

    def contains(self, z: Points) -> Tensor:
        return torch.ones(len(z), dtype=torch.bool, device=z.device)


@dataclass(frozen=True)
class Box(Domain):
    r"""What lies within bounds (d, 2): a step that leaves is mirrored at the face, in the metric.

    The mirror moves a point along :math:`G^{-1} n`, the direction that is orthogonal to the face in the metric, and not
    along the normal n of its picture: only so is the law of a diffusion left as it is.
    """

    bounds: Tensor

    def contains(self, z: Points) -> Tensor:
        return ((z >= self.bounds[:, 0]) & (z <= self.bounds[:, 1])).all(-1)

    def reflected(self, z: Points, inverse: Matrices) -> Points:
        low, high = self.bounds.unbind(-1)
        diagonal = inverse.diagonal(dim1=-2, dim2=-1)
        for _ in range(_BOUNCES * len(low)):
            over = (z - high).clamp_min(0) - (low - z).clamp_min(0)  # (n, d), zero inside
            if not over.any():
                break
            face = (over.abs() / diagonal.sqrt()).argmax(-1, keepdim=True)
            towards = inverse.gather(-1, face[..., None].expand(-1, z.shape[-1], 1))[..., 0]
            z = z - 2 * over.gather(-1, face) / diagonal.gather(-1, face) * towards
        return z


@dataclass(frozen=True)
class Region(Domain):
    """Where a function of points (n, d) says True: a step that leaves is not made."""

    inside: Callable[[Tensor], Tensor]

    def contains(self, z: Points) -> Tensor:
        found = self.inside(z)
        if not isinstance(found, Tensor) or found.shape != z.shape[:1] or found.dtype != torch.bool:
            raise errors.no_region(found, len(z))
        return found


def domain_of(domain: Tensor | Callable[[Tensor], Tensor] | None, start: Points) -> Domain:
    """The domain that was asked for, with start (n, d) in it; else an error that names the point."""
    if domain is None:
        return Everywhere()
    if isinstance(domain, Tensor):
        found = Box(errors.box(domain, start, "domain"))
    elif callable(domain):
        found = Region(domain)
    else:
        raise errors.no_domain(domain)
    outside = ~found.contains(start)
    if outside.any():
        raise errors.outside_domain(start, outside)
    return found
