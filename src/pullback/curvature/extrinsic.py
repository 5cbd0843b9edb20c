"""Curvature of the surface in feature space: how it bends away from its tangents."""

from __future__ import annotations

from pullback import _checks
from pullback.curvature.planes import bending
from pullback.metrics import Metric
from pullback.types import Features, Points, Tangents


def second_fundamental_form(
    metric: Metric, z: Points, u: Tangents, v: Tangents, *, scale: float | None = None
) -> Features:
    r"""How the decoded surface bends away from its tangents: the normal part of :math:`f''(u, v)`.

    .. math:: II(u, v) = f''(u, v) - J \, G^{-1} J^\top f''(u, v)

    Symmetric, bilinear, and normal to the surface: J' II = 0. II(v, v) is the acceleration, in feature space, of the
    decoded geodesic with velocity v.

    Args:
        metric: An immersed metric.
        z: Points (..., d).
        u, v: Tangents (..., d).
        scale: For decoders with creases: the latent length of the steps of finite differences of f, in place of
            derivatives.

    Returns:
        Vectors (..., D) of feature space (for a Gaussian decoder of mean and standard deviation).

    Raises:
        ValueError: The metric is not immersed; the decoder has creases and no scale is given.

    Cost:
        d + 10 evaluations a point, and 3 + 2 d with a scale.

    Example:
        >>> sphere = pb.Pullback(pb.surfaces.Sphere())
        >>> z, v = torch.zeros(2), torch.tensor([0.5, 0.0])  # the south pole; v has length 1
        >>> bent = second_fundamental_form(sphere, z, v, v)
        >>> bool(torch.allclose(bent, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6))  # towards the center, by 1 / r
        True
    """
    z, u, v = _checks.tangents(z, ("u", u), ("v", v))
    return bending(metric, z, (u, v), scale)


def mean_curvature(metric: Metric, z: Points, *, normalized: bool = True, scale: float | None = None) -> Features:
    r"""The mean curvature vector: the mean of the second fundamental form over directions.

    .. math:: H = \frac1d \sum_{ij} G^{ij} \, II(e_i, e_j)

    On a sphere of radius r it points to the center and has length 1 / r. With ``normalized=False`` the factor 1/d is
    left out: the trace of II, of length d / r. Zero on a minimal surface.

    Args:
        metric: An immersed metric.
        z: Points (..., d).
        normalized: Whether to divide the trace by d.
        scale: As for :func:`second_fundamental_form`.

    Returns:
        Vectors (..., D) of feature space; ``.norm(dim=-1)`` is the mean curvature without its sign.

    Raises:
        ValueError: The metric is not immersed; the decoder has creases and no scale is given.

    Cost:
        d + 3 evaluations a point and 4 for each of d directions; with a scale 1 + 2 d and 3 for each.

    Example:
        >>> z = torch.tensor([0.3, 0.8], dtype=torch.float64)
        >>> print(f"{mean_curvature(pb.Pullback(pb.surfaces.Sphere(radius=2.0)), z).norm():.4f}")
        0.5000
        >>> bool(mean_curvature(pb.Pullback(pb.surfaces.Catenoid()), z).norm() < 1e-12)
        True
    """
    z = _checks.points(z)
    trace = bending(metric, z, (), scale, trace=True)
    return trace / z.shape[-1] if normalized else trace
