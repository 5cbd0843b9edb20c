"""Principal geodesics: the directions in which codes spread, seen from their Frechet mean."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback import _checks
from pullback.curvature.immersion import gram_frame
from pullback.curves import Curve
from pullback.geodesics import exp
from pullback.geodesics.starts import Start
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.logs import logarithms
from pullback.statistics.means import frechet_mean
from pullback.types import Points, Tangents


@dataclass(frozen=True)
class PrincipalGeodesics:
    """Where codes spread, seen from their mean: m directions, the longest first.

    Attributes:
        mean: (d,).
        directions: Tangents (m, d) at the mean, of length one in the metric and orthogonal to each other.
        explained_variance: (m,) variance of the scores, in squared units of the data.
        explained_variance_ratio: (m,) as a share of the variance of all tangents.
        scores: Coordinates (n, m) of the codes' logarithms along the directions; NaN where none was found.
        failed: Indices of codes that no geodesic led to: they count for nothing.
        metric: The metric.
    """

    mean: Tensor
    directions: Tensor
    explained_variance: Tensor
    explained_variance_ratio: Tensor
    scores: Tensor
    failed: Tensor
    metric: Metric
    tol: float

    def transform(self, codes: Points, *, starts: Start = "straight") -> Tensor:
        r"""The scores (..., m) of points (..., d): :math:`\langle \log_\mu z, v_k \rangle`, NaN where there is none.

        Warns:
            StatisticsWarning: No geodesic was found to some points; it lists them.

        Cost: a geodesic a point.
        """
        codes = _checks.points(codes, "codes").detach()
        flat = codes.reshape(-1, codes.shape[-1])
        _checks.same_kind(flat, self.mean, "codes", "mean")
        v, _ = logarithms(self.metric, self.mean, flat, tol=self.tol, starts=starts)
        _tell(v)
        return self._scores(v).reshape(*codes.shape[:-1], -1)

    def inverse_transform(self, scores: Tensor) -> Points:
        r"""The points (..., d) with these scores (..., m) and no others: :math:`\exp_\mu(\sum_k s_k v_k)`.

        NaN where the geodesic has no end; :func:`exp` warns.
        """
        if not isinstance(scores, Tensor) or scores.shape[-1:] != self.explained_variance.shape:
            raise errors.wrong_scores(scores, len(self.directions))
        return exp(self.metric, self.mean, scores.to(self.mean) @ self.directions).end

    def geodesics(self, *, extent: float = 2.0, n_segments: int = 64) -> Curve:
        """The principal geodesics (m), to `extent` standard deviations to both sides of the mean, which is at t = 1/2.

        Where one runs out of the region in which the metric is regular, it ends there.

        Args:
            extent: Standard deviations.
            n_segments: Of each, even.
        """
        _checks.positive_and_finite(extent, "extent")
        _checks.at_least(n_segments, 2, "n_segments")
        half = -(-n_segments // 2)
        v = extent * self.explained_variance.sqrt()[:, None] * self.directions
        to, fro = (exp(self.metric, self.mean, sign * v, n_segments=half).curve.nodes for sign in (1, -1))
        return Curve(torch.cat((fro.flip(-2), to[:, 1:]), -2))

    def _scores(self, v: Tangents) -> Tensor:
        return _along(self.metric, self.mean, v, self.directions)


def principal_geodesics(
    metric: Metric,
    codes: Points,
    n_components: int = 2,
    *,
    mean: Points | None = None,
    tol: float = 1e-4,
    starts: Start = "straight",
    progress: bool = False,
) -> PrincipalGeodesics:
    r"""The geodesics through the Frechet mean along which codes spread most.

    Principal components of the logarithms, by the inner product of the metric at the mean:

    .. math:: \mathrm{cov} = \frac{1}{n - 1} \sum_i u_i u_i', \qquad u_i = E^{-1} \log_\mu z_i, \qquad E' G(\mu) E = I

    with eigenvectors w and directions v = E w; they do not depend on the frame E. In flat space these are the principal
    components of the decoded points, and the scores theirs. Each direction points to where its largest latent
    coordinate is positive.

    Args:
        metric: The metric.
        codes: Points (n, d).
        n_components: m, at most d.
        mean: A point (d,) to look from. Default: :func:`frechet_mean`.
        tol: Of the geodesics, and of the mean.
        starts: For the geodesics, as for :func:`geodesic`.
        progress: Whether to show a bar.

    Returns:
        A record with the mean, directions, variances and scores; it transforms other points, too, and back.

    Raises:
        ValueError: Fewer than two codes that a geodesic leads to; all codes are one point; more components than d.

    Warns:
        StatisticsWarning: No geodesic was found to some codes, which do not count; it lists them.

    Cost:
        That of the mean, and a geodesic a code.

    Reference:
        Fletcher, Lu, Pizer, Joshi (2004), the algorithm in the tangent space. :cite:`pga`

    Example:
        >>> codes = torch.tensor([[0.0, 0.0], [2.0, 0.1], [4.0, -0.1], [6.0, 0.0]]).double()
        >>> found = principal_geodesics(pb.Pullback(torch.nn.Identity()), codes)
        >>> [round(x, 3) + 0.0 for x in found.mean.tolist()], round(float(found.explained_variance_ratio[0]), 3)
        ([3.0, 0.0], 0.999)
        >>> bool(torch.allclose(found.inverse_transform(found.scores), codes, atol=1e-5))
        True
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    codes = _checks.cloud(codes, "codes").detach()
    errors.enough_codes(len(codes), 2)
    _checks.at_least(n_components, 1, "n_components")
    if n_components > codes.shape[1]:
        raise errors.too_many_components(n_components, codes.shape[1])
    if (codes == codes[0]).all():
        raise errors.coinciding("codes")
    center = _center(metric, codes, mean, tol, progress)
    v, _ = logarithms(metric, center, codes, tol=tol, starts=starts, progress=progress)
    known = torch.isfinite(v).all(-1)
    if int(known.sum()) < 2:
        raise errors.no_logs(len(codes))
    _tell(v)
    frame, regular = gram_frame(metric.matrix(center[None]).detach())
    if not regular.all():
        raise errors.singular_mean(center.tolist())
    u = torch.linalg.solve_triangular(frame[0], v[known].mT, upper=True).mT
    values, vectors = torch.linalg.eigh(u.mT @ u / (len(u) - 1))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    directions = (frame[0] @ vectors[:, :n_components]).mT
    directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return PrincipalGeodesics(
        mean=center,
        directions=directions,
        explained_variance=values[:n_components],
        explained_variance_ratio=values[:n_components] / values.sum(),
        scores=_along(metric, center, v, directions),
        failed=(~known).nonzero().reshape(-1),
        metric=metric,
        tol=tol,
    )


def _along(metric: Metric, mean: Points, v: Tangents, directions: Tangents) -> Tensor:
    """Inner products (n, m) of tangents (n, d) at the mean with directions (m, d)."""
    return v @ (metric.matrix(mean).detach() @ directions.mT)


def _center(metric: Metric, codes: Points, mean: Points | None, tol: float, progress: bool) -> Points:
    """The point (d,) to look from."""
    if mean is None:
        center = frechet_mean(metric, codes, tol=tol, progress=progress)
        if not torch.isfinite(center).all():
            raise errors.no_mean()
        return center
    center = _checks.points(mean, "mean").detach()
    if center.shape != codes.shape[1:]:
        raise errors.wrong_mean(tuple(center.shape), codes.shape[1])
    _checks.same_kind(center, codes, "mean", "codes")
    return center


def _tell(v: Tangents) -> None:
    """Warn of logarithms (n, d) that were not found."""
    lost = (~torch.isfinite(v).all(-1)).nonzero().reshape(-1).tolist()
    if lost:
        warnings.warn(errors.no_geodesic_to(lost, len(v)), _checks.StatisticsWarning, stacklevel=3)
