"""Mixtures of Riemannian normal distributions: their parts, and the steps of expectation maximization.

The logarithms of all points at all means come in one batch a step, from the curves of the step before; the geodesics
that a normalizer is made of are cast anew only where means or covariances have changed enough to matter.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics import exp
from pullback.geodesics.starts import Start
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.logs import logarithms, moved
from pullback.statistics.normalizer import Normalizer, matched, normalizer, squares
from pullback.statistics.volume import Cast, Frames, cast
from pullback.types import Matrices, Points

_FAR = 0.05  # standard deviations that a mean may move before its normalizer is computed anew
_NEAR = 0.01  # and before the logarithms of points are
_FEW = 0.5  # of the draws have to count
_PRECISE = 1e-6  # of the geodesics on which means move
_SHORT = 1e-3  # standard deviations; a shorter way needs no integrator


@dataclass(frozen=True)
class Settings:
    """How a mixture is computed: see :class:`~pullback.statistics.land.LAND`."""

    volume: str
    frame: str
    geodesic_tol: float
    exp_tol: float
    starts: Start | Sequence[Start]
    floor: float  # of variances, in squared units of the data
    progress: bool


@dataclass(frozen=True)
class Mixture:
    """K components on their way.

    Attributes:
        weights: (K,).
        means: (K, d).
        frames: At the means; tangents are given by their components u in these.
        covariances: (K, d, d) of u.
        draws: Standard normal numbers (K, S, d), the same in all steps.
        cast: Geodesics cast from the means, or from where these were a short way before.
        drawn: (K, d, d) covariances that these were drawn with.
        strayed: (K,) standard deviations that the means have moved since.
    """

    weights: Tensor
    means: Points
    frames: Frames
    covariances: Matrices
    draws: Tensor
    cast: Cast
    drawn: Matrices
    strayed: Tensor

    @property
    def normalizer(self) -> Normalizer:
        """Of the components."""
        return normalizer(self.cast, self.drawn, self.covariances)

    def log_density(self, u: Tensor) -> Tensor:
        """Of each component (K, n) at points with logarithms u (K, n, d), by the volume; NaN where these are."""
        known = torch.isfinite(u).all(-1)
        density = -0.5 * squares(u.nan_to_num(), self.covariances) - self.normalizer.log_value[:, None]
        return torch.where(known, density, torch.nan)

    def joint(self, u: Tensor) -> Tensor:
        """The logarithms of weight times density (K, n): -inf where a logarithm failed."""
        return (self.weights.log()[:, None] + self.log_density(u)).nan_to_num(nan=-torch.inf)


@dataclass(frozen=True)
class Data:
    """The points as the components see them.

    Attributes:
        u: Logarithms (K, n, d) in the frames, NaN where none was found.
        curves: Their geodesics (K, n), from where the means are or were a short way before.
        strayed: (K,) standard deviations that the means have moved since.
    """

    u: Tensor
    curves: Curve
    strayed: Tensor

    def put(self, rows: Tensor, other: Data) -> Data:
        """The same with some components seen anew; curves are brought to one resolution."""
        n = max(self.curves.n_segments, other.curves.n_segments)
        nodes = self.curves.resample(n).nodes.index_copy(0, rows, other.curves.resample(n).nodes)
        u, strayed = self.u.index_copy(0, rows, other.u), self.strayed.index_copy(0, rows, other.strayed)
        return Data(u, Curve(nodes), strayed)


@dataclass(frozen=True)
class Motion:
    """How K means moved: along tangents `way` (K, d), `far` (K,) standard deviations, their frames turned (K, d, d)."""

    way: Tensor
    far: Tensor
    turn: Tensor

    def carry(self, u: Tensor) -> Tensor:
        """Tangents (K, n, d) of the old frames in the new ones."""
        return u @ self.turn.mT


def cast_at(
    metric: Metric, means: Points, frames: Frames, covariances: Matrices, draws: Tensor, settings: Settings
) -> Cast:
    """Geodesics cast with tangents of these covariances."""
    u = draws @ torch.linalg.cholesky(covariances).mT
    found = cast(metric, means, frames, u, volume=settings.volume, tol=settings.exp_tol)
    lost = (found.factor > 0).sum(-1) == 0
    if lost.any():
        raise errors.no_normalizer(means[lost][0].tolist())
    return found


def see(
    metric: Metric, means: Points, frames: Frames, codes: Points, settings: Settings, before: Curve | None = None
) -> Data:
    """The logarithms of codes (n, d) at means (K, d), from curves (K, n) of other means if there are some.

    What fails is tried again from a straight line and from bends; what fails then is NaN.
    """
    z, w = torch.broadcast_tensors(means[:, None], codes)
    init = None if before is None else moved(before, z)
    starts = settings.starts if init is None else "straight"
    v, path = logarithms(
        metric, z, w, tol=settings.geodesic_tol, starts=starts, init=init, progress=settings.progress
    )  # fmt: skip
    lost = ~path.converged
    nodes = path.curve.nodes
    if lost.any():
        again, other = logarithms(metric, z[lost], w[lost], tol=settings.geodesic_tol, starts=("straight", "bends"))
        v[lost] = again
        n = max(path.curve.n_segments, other.curve.n_segments)
        nodes = path.curve.resample(n).nodes.clone()
        nodes[lost] = other.curve.resample(n).nodes
        straight = Curve.straight(z[lost], w[lost], n).nodes
        failed = ~torch.isfinite(nodes[lost]).flatten(1).all(1)  # somewhere for the next step to start from
        nodes[lost] = torch.where(failed[:, None, None], straight, nodes[lost])
    return Data(frames.components(v), Curve(nodes), torch.zeros_like(means[:, 0]))


def see_after(metric: Metric, mixture: Mixture, motion: Motion, data: Data, codes: Points, settings: Settings) -> Data:
    """The logarithms after means have moved: carried along where that was hardly any way, else solved for anew."""
    strayed = data.strayed + motion.far
    data = Data(motion.carry(data.u - motion.way[:, None]), data.curves, strayed)
    rows = (strayed > _NEAR).nonzero().reshape(-1)
    if not len(rows):
        return data
    frames = mixture.frames.select(rows)
    return data.put(rows, see(metric, mixture.means[rows], frames, codes, settings, data.curves[rows]))


def expectation(mixture: Mixture, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihoods (n,), NaN where no component sees a point; responsibilities (K, n); which are seen (n,)."""
    joint = mixture.joint(data.u)
    seen = torch.isfinite(joint).any(0)
    found = torch.where(seen, torch.logsumexp(joint, 0), torch.nan)
    share = torch.where(seen, (joint - found).exp(), 0)
    return found, share, seen


def maximization(
    metric: Metric, mixture: Mixture, data: Data, share: Tensor, step: float, settings: Settings
) -> tuple[Mixture, Motion]:
    """Weights, means and covariances by the moments of points under responsibilities (K, n).

    A mean moves along the difference of the first moments, of the points and of the distribution; the covariance is
    that for which the second moments agree.
    """
    total = share.sum(-1)
    u, weight = data.u.nan_to_num(), share / total[:, None]
    mean = torch.einsum("kn,kni->ki", weight, u)
    way = step * (mean - mixture.normalizer.first)
    target = second_moments(u - way[:, None], share)
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    target = target + settings.floor * eye
    covariances = matched(mixture.cast, mixture.drawn, mixture.covariances, target)
    far = squares(way[:, None], covariances)[:, 0].sqrt()
    mixture = replace(mixture, weights=total / total.sum(), covariances=covariances)
    return move(metric, mixture, way, far, settings)


def second_moments(u: Tensor, share: Tensor) -> Matrices:
    """The mean of uu' (K, d, d) over tangents u (K, n, d), NaN where unknown, by shares (K, n)."""
    weight = share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    u = u.nan_to_num()
    return torch.einsum("kn,kni,knj->kij", weight, u, u)


def move(metric: Metric, mixture: Mixture, way: Tensor, far: Tensor, settings: Settings) -> tuple[Mixture, Motion]:
    """The means moved along tangents with components `way` (K, d); covariances and casts are carried along."""
    v = mixture.frames.tangents(way[:, None])[:, 0]
    end = _shifted(metric, mixture.means, v, far)
    arrived = torch.isfinite(end).all(-1)
    means = torch.where(arrived[:, None], end, mixture.means)
    frames = Frames.at(metric, means, settings.frame)
    if settings.frame == "orthonormal":
        turn = _turn(metric, mixture, frames, torch.where(arrived[:, None], v, 0))
    else:
        turn = torch.eye(way.shape[1], dtype=way.dtype, device=way.device).expand(len(way), -1, -1)
    motion = Motion(torch.where(arrived[:, None], way, 0), torch.where(arrived, far, 0), turn)
    mixture = replace(
        mixture,
        means=means,
        frames=frames,
        covariances=turn @ mixture.covariances @ turn.mT,
        drawn=turn @ mixture.drawn @ turn.mT,
        cast=replace(mixture.cast, u=motion.carry(mixture.cast.u)),
        strayed=mixture.strayed + motion.far,
    )
    stale = (mixture.strayed > _FAR) | (mixture.normalizer.share < _FEW)
    return renew(metric, mixture, stale.nonzero().reshape(-1), settings), motion


def _shifted(metric: Metric, z: Points, v: Tensor, far: Tensor) -> Points:
    """Where geodesics from z with velocities v (K, d) end, NaN where they do not; v is `far` (K,) deviations long.

    A step that is hardly any way is one along a geodesic to second order: what is left is its third power.
    """
    end = z + v - 0.5 * metric.christoffel(z, v, v).detach()
    long = far > _SHORT
    if long.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _checks.GeodesicWarning)
            end[long] = exp(metric, z[long], v[long], tol=_PRECISE, n_segments=1).end
    return end


def renew(metric: Metric, mixture: Mixture, rows: Tensor, settings: Settings) -> Mixture:
    """The same, with geodesics of components (m,) cast anew from where these are."""
    if not len(rows):
        return mixture
    covariances = mixture.covariances[rows]
    fresh = cast_at(
        metric, mixture.means[rows], mixture.frames.select(rows), covariances, mixture.draws[rows], settings
    )
    return replace(
        mixture,
        cast=mixture.cast.put(rows, fresh),
        drawn=mixture.drawn.index_copy(0, rows, covariances),
        strayed=mixture.strayed.index_fill(0, rows, 0),
    )


def _turn(metric: Metric, mixture: Mixture, frames: Frames, v: Tensor) -> Tensor:
    """How a parallel frame (K, d, d) turns against the frames at hand, on the way along v (K, d); of second order."""
    k, d = v.shape
    columns = mixture.frames.columns
    legs = columns.mT.reshape(k * d, d)  # the vectors of the frame, one below the other
    bend = metric.christoffel(mixture.means.repeat_interleave(d, 0), v.repeat_interleave(d, 0), legs).detach()
    carried = columns - bend.reshape(k, d, d).mT
    left, _, right = torch.linalg.svd(frames.inverse @ carried)  # the nearest orthogonal matrix
    return left @ right
