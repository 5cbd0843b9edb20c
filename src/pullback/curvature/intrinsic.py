"""Curvature inside the latent space: tensors, their contractions, estimates, and the integral over a region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Generator, Tensor

from pullback import _checks
from pullback.curvature import errors
from pullback.curvature.planes import random_planes, sectional_curvature
from pullback.curvature.tensors import riemann_and_frame, symbols
from pullback.metrics import Metric
from pullback.types import Matrices, Points, Scalars, Tangents

_MAX_DIM = 16  # d (d + 1) / 2 second derivatives: 136 a point
_NODES = 4  # of Gauss-Legendre quadrature along an axis of a cell


class Estimate(NamedTuple):
    """Numbers (...) and their errors (...): standard errors of random estimates, estimated errors of integrals."""

    value: Tensor
    error: Tensor


def christoffel(metric: Metric, z: Points, *, max_dim: int = _MAX_DIM, scale: float | None = None) -> Tensor:
    r"""The Christoffel symbols :math:`\Gamma^k_{ij}`, at [..., k, i, j]: the upper index first.

    .. math:: \Gamma^k_{ij} = \tfrac12 G^{kl} (\partial_i G_{jl} + \partial_j G_{il} - \partial_l G_{ij})
        = \big(G^{-1} J^\top f''(e_i, e_j)\big)^k

    ``metric.christoffel(z, u, v)`` contracts them with tangents at once, for less, in any number of dimensions.

    Args:
        metric: The metric.
        z: Points (..., d).
        max_dim: The largest d that is done.
        scale: For immersed metrics with creases: the latent length of the steps of finite differences.

    Returns:
        (..., d, d, d), symmetric in the last two.

    Raises:
        ValueError: d above max_dim; the decoder has creases and no scale is given.

    Cost:
        3 + d + d (d + 1) / 2 evaluations a point, and the work of about 3 d more; for other metrics, of the matrix.

    Example:
        >>> gamma = christoffel(pb.Pullback(pb.surfaces.Torus()), torch.tensor([0.0, torch.pi / 2]))
        >>> [round(float(g), 4) for g in (gamma[1, 0, 0], gamma[0, 0, 1])]  # (R + r cos v) sin v / r, and the other
        [2.0, -0.5]
    """
    z = _exactly(z, max_dim)
    return symbols(metric, z, scale)


def riemann(metric: Metric, z: Points, *, max_dim: int = _MAX_DIM, scale: float | None = None) -> Tensor:
    r"""The Riemann curvature tensor :math:`R_{ijkl}`, all indices lowered.

    Its sign is such that in a space of constant curvature K it is :math:`K (G_{ik} G_{jl} - G_{il} G_{jk})`; hence
    :math:`R_{1212} > 0` on a sphere, and :math:`R(u, v, u, v) = K(u, v) \, (|u|^2 |v|^2 - \langle u, v \rangle^2)`.

    For an immersed metric by Gauss' equation, from second derivatives of the decoder; for others

    .. math:: R_{ijkl} = \tfrac12 (\partial_j \partial_k G_{il} + \partial_i \partial_l G_{jk} - \partial_i \partial_k
        G_{jl} - \partial_j \partial_l G_{ik}) + \langle \Gamma_{jk}, \Gamma_{il} \rangle
        - \langle \Gamma_{jl}, \Gamma_{ik} \rangle .

    Args:
        metric: The metric.
        z: Points (..., d).
        max_dim: The largest d that is done: there are d^4 entries.
        scale: For immersed metrics with creases: the latent length of the steps of finite differences of the decoder,
            in place of its derivatives. The curvature is then that of the surface smoothed at this scale.

    Returns:
        (..., d, d, d, d); 0 for d = 1.

    Raises:
        ValueError: d above max_dim; the decoder has creases and no scale is given.

    Cost:
        3 + d + d (d + 1) / 2 evaluations a point, and the work of about 3 d more; 1 + d + d^2 with a scale. For other
        metrics as many of the matrix.

    Reference:
        do Carmo (1992), chapter 6, theorem 2.5 (Gauss' equation). :cite:`docarmo`

    Example:
        >>> sphere, z = pb.Pullback(pb.surfaces.Sphere()), torch.zeros(2, dtype=torch.float64)  # there, G = 4 I
        >>> r = riemann(sphere, z)
        >>> [round(float(x), 6) for x in (r[0, 1, 0, 1], r[0, 1, 1, 0])]
        [16.0, -16.0]
    """
    z = _exactly(z, max_dim)
    return riemann_and_frame(metric, z, scale)[0]


def ricci(metric: Metric, z: Points, *, max_dim: int = _MAX_DIM, scale: float | None = None) -> Matrices:
    r"""The Ricci tensor :math:`\mathrm{Ric}_{jl} = G^{ik} R_{ijkl}`, both indices lowered.

    :math:`\mathrm{Ric}(v, v)` of a unit vector is the sum of the sectional curvatures of d - 1 planes through it that
    are perpendicular to each other; (d - 1) / r^2 on a sphere of radius r.

    Args:
        metric: The metric.
        z: Points (..., d).
        max_dim: The largest d that is done.
        scale: As for :func:`riemann`.

    Returns:
        (..., d, d), symmetric.

    Raises:
        ValueError: As for :func:`riemann`.

    Cost:
        As for :func:`riemann`.

    Example:
        >>> sphere, z = pb.Pullback(pb.surfaces.Sphere()), torch.ones(3, dtype=torch.float64)
        >>> bool(torch.allclose(ricci(sphere, z), 2 * sphere.matrix(z)))
        True
    """
    z = _exactly(z, max_dim)
    r, frame = riemann_and_frame(metric, z, scale)
    return _contracted(r, frame)


@overload
def scalar(
    metric: Metric, z: Points, *, n_probes: None = None, max_dim: int = ..., scale: float | None = None
) -> Tensor: ...


@overload
def scalar(
    metric: Metric, z: Points, *, n_probes: int, generator: Generator | None = None, scale: float | None = None
) -> Estimate: ...


def scalar(
    metric: Metric,
    z: Points,
    *,
    n_probes: int | None = None,
    generator: Generator | None = None,
    max_dim: int = _MAX_DIM,
    scale: float | None = None,
) -> Tensor | Estimate:
    r"""The scalar curvature :math:`G^{ik} G^{jl} R_{ijkl}`: d (d - 1) times the mean sectional curvature.

    d (d - 1) / r^2 on a sphere of radius r; on a surface twice the Gaussian curvature.

    In many dimensions give `n_probes`: that many planes are drawn uniformly at each point, and

    .. math:: \mathrm{scal} \approx \frac{d (d - 1)}{n} \sum_{k=1}^n K(\mathrm{plane}_k),

    without bias. No second derivative is kept: memory is that of the Jacobian of a point and of a few probes.

    Args:
        metric: The metric.
        z: Points (..., d).
        n_probes: None for the exact value, else the number of planes, 2 or more.
        generator: Source of the planes. Default: one that is seeded with 0, so that a call gives the same each time.
        max_dim: The largest d that is done exactly.
        scale: As for :func:`riemann`.

    Returns:
        Exact values (...); or an :class:`Estimate` of values and standard errors (...).

    Raises:
        ValueError: d above max_dim, and no probes; fewer than two probes; the decoder has creases and no scale is
            given.

    Cost:
        Exact: as for :func:`riemann`. Estimates: d + 3 evaluations a point and 6 a plane, with the work of six more.

    Example:
        >>> z = torch.full((10,), 0.2, dtype=torch.float64)
        >>> print(f"{scalar(pb.Pullback(pb.surfaces.Sphere()), z):.6f}")
        90.000000
        >>> decoder = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.Tanh(), torch.nn.Linear(64, 99)).double()
        >>> value, error = scalar(pb.Pullback(decoder), torch.zeros(40, dtype=torch.float64), n_probes=32)
        >>> value.shape, bool(error > 0)
        (torch.Size([]), True)
    """
    if n_probes is None:
        z = _exactly(z, max_dim, estimate=True)
        r, frame = riemann_and_frame(metric, z, scale)
        return torch.einsum("...jb,...lb,...jl->...", frame, frame, _contracted(r, frame))
    z, d = _checks.points(z), z.shape[-1]
    _checks.at_least(n_probes, 2, "n_probes")
    if d == 1:
        raise errors.no_planes()
    curvatures = d * (d - 1) * random_planes(metric, z, int(n_probes), generator, scale)
    value = curvatures.mean(-1)
    return Estimate(value, ((curvatures - value[..., None]).square().sum(-1) / ((n_probes - 1) * n_probes)).sqrt())


def gaussian(metric: Metric, z: Points, *, scale: float | None = None) -> Scalars:
    r"""The Gaussian curvature of a surface, :math:`K = R_{1212} / \det G`: 1 / r^2 on a sphere of radius r.

    Args:
        metric: A metric on two latent dimensions.
        z: Points (..., 2).
        scale: As for :func:`riemann`.

    Returns:
        (...).

    Raises:
        ValueError: d is not 2; the decoder has creases and no scale is given.

    Cost:
        8 evaluations a point, and the work of about six more.

    Example:
        >>> inside = torch.tensor([0.0, torch.pi])  # of a torus: where it is a saddle
        >>> print(f"{gaussian(pb.Pullback(pb.surfaces.Torus()), inside):.4f}")
        -1.0000
    """
    z = _checks.points(z)
    if z.shape[-1] != 2:
        raise errors.two_dimensions(z.shape[-1], "Gaussian curvature")
    r, frame = riemann_and_frame(metric, z, scale)
    return r[..., 0, 1, 0, 1] * torch.linalg.det(frame).square()  # E'GE = I: over det G


def sectional(metric: Metric, z: Points, u: Tangents, v: Tangents, *, scale: float | None = None) -> Scalars:
    r"""The curvature of the plane that two tangents span: that of the surface of geodesics in it.

    .. math:: K(u, v) = \frac{\langle II(u, u), II(v, v) \rangle - |II(u, v)|^2}{|u|^2 |v|^2 - \langle u, v \rangle^2}

    For metrics without an immersion from second derivatives of inner products along u and v; no tensor is formed.

    Args:
        metric: The metric, in any number of dimensions.
        z: Points (..., d).
        u, v: Tangents (..., d) that span the plane; their lengths and the angle between them do not matter.
        scale: As for :func:`riemann`.

    Returns:
        (...).

    Raises:
        ValueError: d = 1: a curve has no planes. u and v are parallel at a point: it names the point. The decoder has
            creases and no scale is given.

    Cost:
        d + 9 evaluations a point, and the work of six more.

    Example:
        >>> z, (u, v) = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[:2]
        >>> print(f"{sectional(pb.Pullback(pb.surfaces.Sphere(radius=2.0)), z, u, u + 0.1 * v):.4f}")
        0.2500
    """
    z, u, v = _checks.tangents(z, ("u", u), ("v", v))
    if z.shape[-1] == 1:
        raise errors.no_planes()
    return sectional_curvature(metric, z, u, v, scale)


def total(
    metric: Metric,
    bounds: Tensor,
    resolution: int | Sequence[int] = 16,
    *,
    absolute: bool = False,
    scale: float | None = None,
) -> Estimate:
    r"""The Gaussian curvature integrated over a region of a latent plane, :math:`\int K \, dA`.

    With the area that the metric measures, :math:`dA = \sqrt{\det G} \, dz`. By the theorem of Gauss and Bonnet it is 4
    pi over a whole sphere and 0 over a torus; over a geodesic triangle it is what its angles exceed pi by. No unit.

    Args:
        metric: A metric on two latent dimensions.
        bounds: (2, 2), the lower and upper end of each axis; decides dtype and device.
        resolution: Cells along each axis, 2 or more: one number, or one for each axis. Each takes 4 x 4 points of
            Gauss-Legendre quadrature.
        absolute: Integrate :math:`|K|` instead: how curved, whatever the sign.
        scale: As for :func:`riemann`.

    Returns:
        An :class:`Estimate`: the integral (), and its difference to that with half as many cells along each axis.

    Raises:
        ValueError: Bounds that are not (2, 2) or are empty; a resolution below 2; and as for :func:`gaussian`.

    Cost:
        :func:`gaussian` at 20 points a cell.

    Example:
        >>> whole = torch.tensor([[0.0, 2 * torch.pi], [0.0, 2 * torch.pi]], dtype=torch.float64)
        >>> value, error = total(pb.Pullback(pb.surfaces.Torus()), whole)
        >>> bool(value.abs() < 1e-6 and error < 1e-3)
        True
    """
    shape = _checks.grid(bounds, resolution)
    if len(shape) != 2:
        raise errors.two_dimensions(len(shape), "an integral of Gaussian curvature")

    def integral(cells: tuple[int, ...]) -> Tensor:
        z, weights = _quadrature(bounds, cells)
        r, frame = riemann_and_frame(metric, z, scale)
        # E'GE = I: det E is one over the root of det G
        density = r[:, 0, 1, 0, 1] * torch.linalg.det(frame).abs()
        return (weights * (density.abs() if absolute else density)).sum()

    value = integral(shape)
    return Estimate(value, (value - integral(tuple(-(-n // 2) for n in shape))).abs())


def _contracted(r: Tensor, frame: Matrices) -> Matrices:
    """The Ricci tensor (..., d, d) from R_ijkl and an orthonormal frame."""
    return torch.einsum("...ia,...ka,...ijkl->...jl", frame, frame, r)


def _quadrature(bounds: Tensor, cells: tuple[int, ...]) -> tuple[Points, Scalars]:
    """Points (n, 2) and weights (n,) of Gauss-Legendre quadrature in each of a grid of cells."""
    nodes, weights = (torch.from_numpy(x).to(bounds) for x in np.polynomial.legendre.leggauss(_NODES))
    places, shares = [], []
    for (low, high), n in zip(bounds, cells, strict=True):
        step = (high - low) / n
        left = low + step * torch.arange(n, dtype=bounds.dtype, device=bounds.device)
        places.append((left[:, None] + 0.5 * step * (nodes + 1)).reshape(-1))
        shares.append((0.5 * step * weights).repeat(n))
    z = torch.stack(torch.meshgrid(*places, indexing="ij"), -1).reshape(-1, 2)
    return z, torch.outer(*shares).reshape(-1)


def _exactly(z: Points, max_dim: int, *, estimate: bool = False) -> Points:
    """Points (..., d), if there are not too many dimensions for exact curvature."""
    z = _checks.points(z)
    _checks.at_least(max_dim, 1, "max_dim")
    if z.shape[-1] > max_dim:
        raise errors.too_many_dimensions(z.shape[-1], max_dim, estimate)
    return z
