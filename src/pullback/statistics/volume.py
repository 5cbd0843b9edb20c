r"""How the exponential map spreads volume: geodesics cast from means, with the factor of each.

For a tangent u in an orthonormal frame the exact factor is :math:`\theta(u) = \sqrt{\det G(\exp u)} \, |\det d\exp_u|`,
on the unit sphere :math:`(\sin r / r)^{d-1}`. It is zero from the first conjugate point on, for from there no geodesic
is shortest. The paper's factor leaves the determinant of the exponential map out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback import _checks
from pullback.curvature import gaussian
from pullback.curvature.immersion import gram_frame
from pullback.geodesics import Status, exp
from pullback.geodesics.halves import by_halves
from pullback.geodesics.integrate import integrate
from pullback.metrics import Metric
from pullback.statistics import errors

_SEGMENTS = 32  # of a geodesic, for Jacobi's equation: of fourth order
_STEPS = 2_000  # of the integrator
_FINE = 3e-5  # tolerance of neighbors: half of the digits of their difference


@dataclass(frozen=True)
class Frames:
    r"""Coordinates u (..., d) of tangents v at points (K, d).

    "orthonormal": :math:`v = E u` with E'GE = I, so that |u| is the length; E is upper triangular with a positive
    diagonal. "euclidean": those of the reference code, in which a tangent is scaled to have its length for a Euclidean
    norm, :math:`u = v \, |v|_G / |v|`; directions keep their latent angles.
    """

    columns: Tensor  # E (K, d, d)
    inverse: Tensor  # (K, d, d)
    euclidean: bool

    @classmethod
    def at(cls, metric: Metric, z: Tensor, kind: str) -> Frames:
        """The frames at points (K, d)."""
        with torch.no_grad():
            columns, regular = gram_frame(metric.matrix(z))
        if not regular.all():
            raise errors.singular_mean(z[~regular][0].tolist())
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand_as(columns)
        return cls(columns, torch.linalg.solve_triangular(columns, eye, upper=True), kind == "euclidean")

    def components(self, v: Tensor) -> Tensor:
        """The coordinates (K, n, d) of tangents (K, n, d)."""
        u = v @ self.inverse.mT
        return u if not self.euclidean else v * _ratio(u, v)

    def tangents(self, u: Tensor) -> Tensor:
        """The tangents (K, n, d) of coordinates (K, n, d)."""
        return u @ self.columns.mT if not self.euclidean else u * _ratio(u, u @ self.inverse.mT)

    def log_jacobians(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of how much larger volume is in an orthonormal frame than in u: (K, n); of det E^-1: (K, 1)."""
        if not self.euclidean:
            return torch.zeros_like(u[..., 0]), torch.zeros_like(u[:, :1, 0])
        linear = self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
        return linear + u.shape[-1] * _ratio(u, u @ self.inverse.mT)[..., 0].log(), linear

    def select(self, rows: Tensor) -> Frames:
        return replace(self, columns=self.columns[rows], inverse=self.inverse[rows])


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """|a| / |b| (..., 1), one where b is zero."""
    size = b.norm(dim=-1, keepdim=True)
    return torch.where(size > 0, a.norm(dim=-1, keepdim=True) / size, 1)


@dataclass(frozen=True)
class Cast:
    """Geodesics cast from K means in S directions each.

    Attributes:
        u: Their tangents in the frames of the means (K, S, d).
        ends: (K, S, d), NaN where it was not reached.
        factor: (K, S) by which volume is spread; zero where there is no end, and past the first conjugate point.
        failed: (K, S) whether the end was not reached, or the factor is not known.
        beyond: (K, S) whether it lies past a conjugate point; all False for the paper's factor.
    """

    u: Tensor
    ends: Tensor
    factor: Tensor
    failed: Tensor
    beyond: Tensor

    def put(self, rows: Tensor, other: Cast) -> Cast:
        names = self.__dataclass_fields__
        return Cast(*(getattr(self, name).index_copy(0, rows, getattr(other, name)) for name in names))


def cast(metric: Metric, means: Tensor, frames: Frames, u: Tensor, *, volume: str, tol: float) -> Cast:
    """Cast geodesics from means (K, d) with tangents u (K, S, d) in their frames.

    Args:
        metric: The metric.
        means: (K, d).
        frames: At these.
        u: (K, S, d).
        volume: "exact" or "paper".
        tol: Of the integrator.
    """
    v = frames.tangents(u)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _checks.GeodesicWarning)  # callers count
        way = exp(metric, means[:, None], v, tol=tol, n_segments=_SEGMENTS)
    arrived = way.converged
    whole, linear = frames.log_jacobians(u)
    factor, beyond = torch.full_like(u[..., 0], torch.nan), torch.zeros_like(arrived)
    start = means[:, None].expand_as(u)[arrived]
    if not len(start):
        return Cast(u, way.end, torch.zeros_like(factor), ~arrived, beyond)
    if volume == "paper":
        stretch = metric.log_volume(way.end[arrived]) - metric.log_volume(start)
        factor[arrived] = (stretch + linear.expand_as(factor)[arrived]).exp()
    else:
        spread, beyond[arrived] = _spread(metric, start, v[arrived], way.curve.nodes[arrived], way.length[arrived], tol)
        factor[arrived] = spread * whole[arrived].exp()
    failed = ~torch.isfinite(factor)
    return Cast(u, way.end, factor.masked_fill(failed | beyond, 0), failed, beyond)


def _spread(metric: Metric, z: Tensor, v: Tensor, nodes: Tensor, length: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """The exact factors (B,) of geodesics by starts, velocities (B, d) and curves; whether they are past a zero."""
    d = z.shape[-1]
    if d == 1:
        return torch.ones_like(length), torch.zeros_like(length, dtype=torch.bool)
    if d == 2:
        return _jacobi(_curvature(metric, nodes), length)
    return _bundle(metric, z, v, length, tol)


def _curvature(metric: Metric, nodes: Tensor) -> Tensor:
    """The Gaussian curvature (B, T + 1) along curves, NaN on those where there is none."""
    found = nodes.new_full(nodes.shape[:-1], torch.nan)
    every = torch.arange(len(nodes), device=nodes.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _checks.CurvatureWarning)  # callers count
        where, parts, error = by_halves(lambda rows: gaussian(metric, nodes[rows]).detach(), every)
    if error is not None and all(part is None for part in parts):
        raise error
    for rows, part in zip(where, parts, strict=True):
        if part is not None:
            found[rows] = part
    return found


def _jacobi(k: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    r"""The factors (B,) on a surface by Jacobi's equation :math:`j'' = -K |v|^2 j`, j(0) = 0, j'(0) = 1, at t = 1.

    By Numerov's method from curvatures k (B, T + 1) at equal steps.
    """
    h = 1 / (k.shape[1] - 1)
    q = h**2 / 12 * k * length[:, None].square()
    before, here = torch.zeros_like(length), h * (1 - q[:, 0] - q[:, 1])
    past = here <= 0
    for i in range(1, k.shape[1] - 1):
        after = (2 * (1 - 5 * q[:, i]) * here - (1 + q[:, i - 1]) * before) / (1 + q[:, i + 1])
        before, here = here, after
        past |= here <= 0
    return here, past


def _bundle(metric: Metric, z: Tensor, v: Tensor, length: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """The factors (B,) in any dimension from d + 1 neighbors, integrated with the same steps as one geodesic.

    Then the difference of two of them is smooth in what they differ by, however large the steps.
    """
    d = z.shape[1]
    frame, _ = gram_frame(metric.matrix(z).detach())
    apart = torch.finfo(z.dtype).eps ** (1 / 3) * length.clamp_min(length.mean())
    thrown = torch.cat((v[:, None] + apart[:, None, None] * frame.mT, v[:, None]), 1)  # (B, d + 1, d)
    size = d * (d + 1)

    def equation(_: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        place, speed = y.unflatten(-1, (2, d + 1, d)).unbind(1)
        return torch.cat((speed, -metric.christoffel(place, speed, speed)), 1).flatten(1)

    y = torch.cat((z[:, None].expand_as(thrown), thrown), 1).flatten(1)
    with torch.no_grad():
        way = integrate(equation, y, d=size, tol=torch.full_like(length, min(tol, _FINE)), max_steps=_STEPS)
    t = torch.linspace(0, 1, _SEGMENTS + 1, dtype=z.dtype, device=z.device)[1:]
    places = way.sample(way.time[:, None] * t).unflatten(-1, (d + 1, d))
    fields = (places[:, :, :d] - places[:, :, d:]) / (apart[:, None, None, None] * t[:, None, None])  # (B, T, d, d)
    arrived = (way.codes == Status.CONVERGED.code) & torch.isfinite(fields).flatten(1).all(1)
    fields = torch.where(arrived[:, None, None, None], fields, torch.eye(d, dtype=z.dtype, device=z.device))
    steps = torch.linalg.solve_ex(fields[:, :-1], fields[:, 1:]).result.nan_to_num(0, 0, 0)
    turned = torch.linalg.eigvals(steps)  # a conjugate point between two nodes turns a direction around
    past = ((turned.real <= 0) & (turned.imag.abs() <= turned.real.abs())).any(-1).any(-1)
    at_end = torch.full_like(length, torch.nan)
    at_end[arrived] = metric.log_volume(places[arrived, -1, d]).detach()
    return (at_end + torch.linalg.slogdet(fields[:, -1]).logabsdet).exp(), past & arrived
