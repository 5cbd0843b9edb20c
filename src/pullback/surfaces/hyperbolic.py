"""Hyperbolic space: metrics of curvature -1 that no decoder pulls back."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pullback import _checks
from pullback.metrics import Metric
from pullback.types import Features, Matrices, Points, Scalars, Tangents


class _Hyperbolic(Metric):
    r"""A conformal metric on a convex part of R^d: :math:`G(z) = I / h(z)^2` with a height h, positive inside.

    A point is outside where h is not positive. Public methods refuse it; features, and hence chords, are NaN there, so
    that a solver's curve that strays out fails alone.
    """

    _inside: str  # what a point has to obey

    @abstractmethod
    def _height(self, z: Tensor) -> Tensor:
        """h: (..., d) -> (...)."""

    @abstractmethod
    def _slope(self, z: Tensor) -> Tensor:
        """The gradient of h: (..., d) -> (..., d)."""

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        return (u * v).sum(-1) / self._positive(z, "z") ** 2

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., d) -> (..., d, d)."""
        factor = self._positive(_checks.points(z), "z") ** -2
        return factor[..., None, None] * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        r"""The Christoffel vector of tangents u, v (..., d) at z (..., d), NaN outside: (..., d).

        .. math:: \Gamma(u, v) = \big(\langle u, v \rangle \nabla h - u \, D_v h - v \, D_u h\big) / h

        with the Euclidean inner product. Cost: one evaluation.
        """
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        height, slope = self._height(z)[..., None], self._slope(z)
        along_u, along_v = ((slope * w).sum(-1, keepdim=True) for w in (u, v))
        turned = (u * v).sum(-1, keepdim=True) * slope - u * along_v - v * along_u
        return torch.where(height > 0, turned / height, torch.nan)

    def christoffel_cost(self, d: int) -> int:
        return 1

    def features(self, z: Points) -> Features:
        """The points themselves, NaN outside: (..., d)."""
        z = _checks.points(z, finite=False)
        return torch.where(self._height(z)[..., None] > 0, z, torch.nan)

    def curvature(self, z: Points) -> Scalars:
        """The sectional curvature -1 of every plane: (..., d) -> (...)."""
        return -torch.ones_like(self._positive(_checks.points(z), "z"))

    def distance(self, a: Points, b: Points) -> Scalars:
        """The length of the geodesic between a and b (..., d): (...)."""
        a, b = _checks.pairs(a, b)
        return 2 * torch.asinh(0.5 * (b - a).norm(dim=-1) / (self._positive(a, "a") * self._positive(b, "b")).sqrt())

    def _positive(self, z: Tensor, name: str) -> Tensor:
        """h at points of the domain, or an error."""
        height = self._height(z)
        outside = ~(height > 0).reshape(-1)
        if outside.any():
            i = int(outside.nonzero()[0])
            raise _checks.outside(name, i, z.reshape(-1, z.shape[-1])[i].tolist(), self._inside)
        return height


class HyperbolicHalfPlane(_Hyperbolic):
    r"""Hyperbolic space as the upper half of R^d, where the last coordinate y is positive: :math:`G(z) = I / y^2`.

    .. math:: K = -1, \qquad d(a, b) = 2 \operatorname{arsinh} \frac{|b - a|}{2 \sqrt{a_y b_y}}

    Geodesics are half circles that meet y = 0 at right angles, and vertical lines.

    Raises:
        ValueError: A point is not in the upper half; it names the point.

    Example:
        >>> plane, a, b = HyperbolicHalfPlane(), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.718282])
        >>> round(float(plane.distance(a, b)), 4), round(float(pb.distance(plane, a, b)), 4)
        (1.0, 1.0)
    """

    _inside = "the last coordinate has to be positive"

    def _height(self, z: Tensor) -> Tensor:
        return z[..., -1]

    def _slope(self, z: Tensor) -> Tensor:
        slope = torch.zeros_like(z)
        slope[..., -1] = 1
        return slope


class PoincareBall(_Hyperbolic):
    r"""Hyperbolic space as the open unit ball of R^d: :math:`G(z) = 4 I / (1 - |z|^2)^2`.

    .. math:: K = -1, \qquad d(a, b) = 2 \operatorname{arsinh} \frac{|b - a|}{\sqrt{(1 - |a|^2) (1 - |b|^2)}}

    Geodesics are arcs that meet the unit sphere at right angles, and diameters.

    Raises:
        ValueError: A point is not in the ball; it names the point.

    Example:
        >>> ball = PoincareBall()
        >>> round(float(ball.distance(torch.zeros(3), torch.tensor([0.0, 0.0, 0.5]))), 4)  # the logarithm of 3
        1.0986
    """

    _inside = "its norm has to be below 1"

    def _height(self, z: Tensor) -> Tensor:
        return 0.5 * (1 - z.square().sum(-1))

    def _slope(self, z: Tensor) -> Tensor:
        return -z
