"""Surfaces without curvature: a plane, a plane in curved coordinates, a cylinder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback import _checks
from pullback.types import Matrices, Points, Scalars


class Plane(nn.Module):
    """An isometric image of flat R^d in disguise: a random linear map into R^D.

    Args:
        d: Latent dimension.
        n_features: D.
        seed: Of the random map.
    """

    weight: Tensor

    def __init__(self, d: int = 2, n_features: int = 7, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(n_features, d, generator=generator, dtype=torch.float64, device="cpu")
        self.register_buffer("weight", weight)

    def forward(self, z: Points) -> Tensor:
        return z @ self.weight.mT.to(z)

    def matrix(self, z: Points) -> Matrices:
        """G = W'W: (..., d) -> (..., d, d)."""
        weight = self.weight.to(z)
        return (weight.mT @ weight).expand(*z.shape[:-1], -1, -1)

    def curvature(self, z: Points) -> Scalars:
        """0 everywhere: (..., d) -> (...)."""
        return torch.zeros_like(z[..., 0])

    def distance(self, a: Points, b: Points) -> Scalars:
        """The length of ``W (b - a)``: (...)."""
        return (self(b) - self(a)).norm(dim=-1)


class DisguisedPlane(nn.Module):
    r"""The plane in curved coordinates: f is a diffeomorphism of R^2, so that G is flat without looking it.

    .. math:: f(u, v) = (x, \, v + a \sin x), \qquad x = u + a \sin v, \qquad G = J^\top J, \qquad
        J = \begin{pmatrix} 1 & 0 \\ a \cos x & 1 \end{pmatrix} \begin{pmatrix} 1 & a \cos v \\ 0 & 1 \end{pmatrix}

    Geodesics are the curves whose images are straight. Both shears keep areas: the magnification factor is 1
    everywhere, and yet straight latent lines are not shortest.

    Args:
        shear: a, how far from the usual coordinates it is; 0 is the plane itself.

    Example:
        >>> plane, a, b = DisguisedPlane(), torch.zeros(2), torch.tensor([2.0, 1.0])
        >>> path = pb.geodesic(pb.Pullback(plane), a, b)
        >>> bool((path.length - plane.distance(a, b)).abs() < 1e-3)
        True
    """

    def __init__(self, shear: float = 0.8) -> None:
        super().__init__()
        self.shear = shear

    def forward(self, z: Points) -> Tensor:
        u, v = _checks.plane(z).unbind(-1)
        x = u + self.shear * v.sin()
        return torch.stack((x, v + self.shear * x.sin()), -1)

    def inverse(self, x: Points) -> Points:
        """The latent points (..., 2) of points x (..., 2) of the plane."""
        x, y = _checks.plane(x).unbind(-1)
        v = y - self.shear * x.sin()
        return torch.stack((x - self.shear * v.sin(), v), -1)

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., 2) -> (..., 2, 2)."""
        u, v = _checks.plane(z).unbind(-1)
        p, q = self.shear * v.cos(), self.shear * (u + self.shear * v.sin()).cos()
        columns = torch.stack((torch.ones_like(p), p, q, 1 + p * q), -1)  # J, row by row
        j = columns.unflatten(-1, (2, 2))
        return j.mT @ j

    def curvature(self, z: Points) -> Scalars:
        """0 everywhere: (..., 2) -> (...)."""
        return torch.zeros_like(z[..., 0])

    def distance(self, a: Points, b: Points) -> Scalars:
        """The length of the straight line between the images: (...)."""
        return (self(b) - self(a)).norm(dim=-1)


class Cylinder(nn.Module):
    r"""The cylinder in R^3 by angle and height (u, v), G = diag(r^2, 1): it unrolls to a plane.

    .. math:: f(u, v) = (r \cos u, \, r \sin u, \, v)

    Args:
        radius: r.
    """

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        _checks.positive_and_finite(radius, "radius")
        self.radius = radius

    def forward(self, z: Points) -> Tensor:
        u, v = _checks.plane(z).unbind(-1)
        return torch.stack((self.radius * u.cos(), self.radius * u.sin(), v), -1)

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., 2) -> (..., 2, 2)."""
        ones = torch.ones_like(_checks.plane(z))
        return torch.diag_embed(ones * ones.new_tensor((self.radius**2, 1.0)))

    def curvature(self, z: Points) -> Scalars:
        """0 everywhere: (..., 2) -> (...)."""
        return torch.zeros_like(z[..., 0])

    def distance(self, a: Points, b: Points) -> Scalars:
        """The length of the helix from a to b: (...). Angles are not taken modulo 2 pi, as in the latent space."""
        step = _checks.plane(b) - _checks.plane(a)
        return torch.hypot(self.radius * step[..., 0], step[..., 1])
