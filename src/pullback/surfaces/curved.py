"""Surfaces with curvature: sphere, torus, paraboloid and saddle, catenoid and helicoid."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pullback import _checks
from pullback.types import Matrices, Points, Scalars


class Sphere(nn.Module):
    r"""The d-sphere of radius r in R^{d+1} by inverse stereographic projection, the whole but its north pole.

    .. math:: f(z) = r \, \frac{(2 z, |z|^2 - 1)}{|z|^2 + 1}, \qquad G(z) = \frac{4 r^2}{(1 + |z|^2)^2} I, \qquad
        K = \frac{1}{r^2}

    Example:
        >>> sphere = Sphere(radius=2.0)
        >>> pole, equator = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> round(float(sphere.distance(pole, equator)), 4)
        3.1416
    """

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        _checks.positive_and_finite(radius, "radius")
        self.radius = radius

    def forward(self, z: Points) -> Tensor:
        square = z.square().sum(-1, keepdim=True)
        return self.radius * torch.cat((2 * z, square - 1), -1) / (square + 1)

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., d) -> (..., d, d)."""
        factor = (2 * self.radius / (1 + z.square().sum(-1))) ** 2
        return factor[..., None, None] * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def curvature(self, z: Points) -> Scalars:
        """The sectional curvature 1 / r^2 of every plane: (..., d) -> (...)."""
        return torch.full_like(z[..., 0], 1 / self.radius**2)

    def distance(self, a: Points, b: Points) -> Scalars:
        """The length of the shorter great arc: (...)."""
        chord = (self(b) - self(a)).norm(dim=-1)
        return 2 * self.radius * torch.asin((chord / (2 * self.radius)).clamp_max(1))


class Torus(nn.Module):
    r"""The torus of revolution in R^3 by its angles (u, v), G = diag((R + r cos v)^2, r^2).

    .. math:: f(u, v) = ((R + r \cos v) \cos u, \, (R + r \cos v) \sin u, \, r \sin v), \qquad
        K = \frac{\cos v}{r \, (R + r \cos v)}

    Args:
        major: R, from the center to the middle of the tube.
        minor: r, the radius of the tube, below R.
    """

    def __init__(self, major: float = 2.0, minor: float = 1.0) -> None:
        super().__init__()
        _checks.positive_and_finite(minor, "minor")
        _checks.positive_and_finite(major - minor, "major - minor")
        self.major = major
        self.minor = minor

    def forward(self, z: Points) -> Tensor:
        u, v = _checks.plane(z).unbind(-1)
        ring = self.major + self.minor * v.cos()
        return torch.stack((ring * u.cos(), ring * u.sin(), self.minor * v.sin()), -1)

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., 2) -> (..., 2, 2)."""
        ring = self.major + self.minor * _checks.plane(z)[..., 1].cos()
        return torch.diag_embed(torch.stack((ring**2, torch.full_like(ring, self.minor**2)), -1))

    def curvature(self, z: Points) -> Scalars:
        """The Gaussian curvature, positive outside and negative inside: (..., 2) -> (...)."""
        cosine = _checks.plane(z)[..., 1].cos()
        return cosine / (self.minor * (self.major + self.minor * cosine))

    def clairaut(self, z: Points, velocity: Tensor) -> Scalars:
        """(R + r cos v)^2 u', constant along every geodesic of constant speed (Clairaut): (...)."""
        return (self.major + self.minor * z[..., 1].cos()) ** 2 * velocity[..., 0]


class _Quadric(nn.Module):
    """The graph of h(u, v) = p u^2 + q v^2 in R^3."""

    def __init__(self, p: float, q: float) -> None:
        super().__init__()
        self.p, self.q = p, q

    def forward(self, z: Points) -> Tensor:
        u, v = _checks.plane(z).unbind(-1)
        return torch.stack((u, v, self.p * u**2 + self.q * v**2), -1)

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., 2) -> (..., 2, 2)."""
        slope = self._slope(z)
        return slope[..., :, None] * slope[..., None, :] + torch.eye(2, dtype=z.dtype, device=z.device)

    def curvature(self, z: Points) -> Scalars:
        """The Gaussian curvature: (..., 2) -> (...)."""
        return 4 * self.p * self.q / (1 + self._slope(z).square().sum(-1)) ** 2

    def _slope(self, z: Tensor) -> Tensor:
        """The gradient (..., 2) of h."""
        u, v = _checks.plane(z).unbind(-1)
        return torch.stack((2 * self.p * u, 2 * self.q * v), -1)


class Paraboloid(_Quadric):
    r"""The bowl in R^3 over its plane.

    .. math:: f(u, v) = (u, \, v, \, a (u^2 + v^2)), \qquad G = I + 4 a^2 \, z z^\top, \qquad
        K = \frac{4 a^2}{(1 + 4 a^2 |z|^2)^2}

    Args:
        steepness: a, in units of one over a length.
    """

    def __init__(self, steepness: float = 1.0) -> None:
        super().__init__(steepness, steepness)


class Saddle(_Quadric):
    r"""The saddle in R^3 over its plane. The diagonals of the plane lie in it as straight lines.

    .. math:: f(u, v) = (u, \, v, \, a (u^2 - v^2)), \qquad G = I + 4 a^2 \, w w^\top, \quad w = (u, -v), \qquad
        K = -\frac{4 a^2}{(1 + 4 a^2 |z|^2)^2}

    Args:
        steepness: a, in units of one over a length.
    """

    def __init__(self, steepness: float = 1.0) -> None:
        super().__init__(steepness, -steepness)


class _Catenary(nn.Module, ABC):
    """A surface in R^3 with G = c^2 cosh^2 v I by coordinates (u, v)."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        _checks.positive_and_finite(scale, "scale")
        self.scale = scale

    @abstractmethod
    def forward(self, z: Points) -> Tensor:
        """Points in R^3: (..., 2) -> (..., 3)."""

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., 2) -> (..., 2, 2)."""
        factor = (self.scale * _checks.plane(z)[..., 1].cosh()) ** 2
        return factor[..., None, None] * torch.eye(2, dtype=z.dtype, device=z.device)

    def curvature(self, z: Points) -> Scalars:
        """The Gaussian curvature: (..., 2) -> (...)."""
        return -1 / (self.scale**2 * _checks.plane(z)[..., 1].cosh() ** 4)


class Catenoid(_Catenary):
    r"""The minimal surface of revolution in R^3, by angle u and height v: the geometry of :class:`Helicoid`.

    .. math:: f(u, v) = c \, (\cosh v \cos u, \, \cosh v \sin u, \, v), \qquad G = c^2 \cosh^2 v \; I, \qquad
        K = -\frac{1}{c^2 \cosh^4 v}

    Args:
        scale: c, the radius of its waist.
    """

    def forward(self, z: Points) -> Tensor:
        u, v = _checks.plane(z).unbind(-1)
        return self.scale * torch.stack((v.cosh() * u.cos(), v.cosh() * u.sin(), v), -1)


class Helicoid(_Catenary):
    r"""The minimal surface that a turning line sweeps in R^3: the same G and K as those of :class:`Catenoid`.

    .. math:: f(u, v) = c \, (\sinh v \cos u, \, \sinh v \sin u, \, u)

    Args:
        scale: c; the height of a full turn is 2 pi c.

    Example:
        >>> z = torch.tensor([0.3, 1.2])
        >>> difference = pb.Pullback(Helicoid()).matrix(z) - pb.Pullback(Catenoid()).matrix(z)
        >>> bool(difference.abs().max() < 1e-5)
        True
    """

    def forward(self, z: Points) -> Tensor:
        u, v = _checks.plane(z).unbind(-1)
        return self.scale * torch.stack((v.sinh() * u.cos(), v.sinh() * u.sin(), u), -1)
