"""Decoders whose geometry is known in closed form: truth for tests, tutorials and other people's solvers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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

    def distance(self, a: Points, b: Points) -> Scalars:
        """The length of ``W (b - a)``: (...)."""
        return (self(b) - self(a)).norm(dim=-1)


class Sphere(nn.Module):
    r"""The d-sphere of radius r in R^{d+1} by inverse stereographic projection, the whole but its north pole.

    .. math:: f(z) = r \, \frac{(2 z, |z|^2 - 1)}{|z|^2 + 1}, \qquad G(z) = \frac{4 r^2}{(1 + |z|^2)^2} I .

    Example:
        >>> sphere = Sphere(radius=2.0)
        >>> pole, equator = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> round(float(sphere.distance(pole, equator)), 4)
        3.1416
    """

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, z: Points) -> Tensor:
        square = z.square().sum(-1, keepdim=True)
        return self.radius * torch.cat((2 * z, square - 1), -1) / (square + 1)

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., d) -> (..., d, d)."""
        factor = (2 * self.radius / (1 + z.square().sum(-1))) ** 2
        return factor[..., None, None] * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def distance(self, a: Points, b: Points) -> Scalars:
        """The length of the shorter great arc: (...)."""
        chord = (self(b) - self(a)).norm(dim=-1)
        return 2 * self.radius * torch.asin((chord / (2 * self.radius)).clamp_max(1))


class Torus(nn.Module):
    r"""The torus of revolution in R^3 by its angles (u, v), G = diag((R + r cos v)^2, r^2).

    .. math:: f(u, v) = ((R + r \cos v) \cos u, \, (R + r \cos v) \sin u, \, r \sin v)

    Args:
        major: R, from the center to the middle of the tube.
        minor: r, the radius of the tube, below R.
    """

    def __init__(self, major: float = 2.0, minor: float = 1.0) -> None:
        super().__init__()
        self.major = major
        self.minor = minor

    def forward(self, z: Points) -> Tensor:
        u, v = z.unbind(-1)
        ring = self.major + self.minor * v.cos()
        return torch.stack((ring * u.cos(), ring * u.sin(), self.minor * v.sin()), -1)

    def matrix(self, z: Points) -> Matrices:
        """G in closed form: (..., 2) -> (..., 2, 2)."""
        ring = self.major + self.minor * z[..., 1].cos()
        return torch.diag_embed(torch.stack((ring**2, torch.full_like(ring, self.minor**2)), -1))

    def clairaut(self, z: Points, velocity: Tensor) -> Scalars:
        """(R + r cos v)^2 u', constant along every geodesic of constant speed (Clairaut): (...)."""
        return (self.major + self.minor * z[..., 1].cos()) ** 2 * velocity[..., 0]
