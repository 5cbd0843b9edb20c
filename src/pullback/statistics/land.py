"""LAND: mixtures of normal distributions that follow the metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import torch
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted
from torch import Generator, Tensor

from pullback import _checks
from pullback.curvature import Estimate
from pullback.geodesics.starts import Start
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.em import Ended, first_means, run
from pullback.statistics.estimators import Estimator, generator_from, like
from pullback.statistics.mixture import Data, Settings, expectation, renew, see
from pullback.statistics.normalizer import standard_draws
from pullback.statistics.volume import cast
from pullback.types import Points

_ROUNDS = 100  # of rejection
_LOST = 0.05  # share of a normalizer's geodesics above which a fit warns
_FINE = 1e-6  # tolerance of the geodesics to sampled points


class Failures(NamedTuple):
    """What went wrong in a fit, or since.

    Attributes:
        logs: Pairs (m, 2) of a component and a point between which no geodesic was found: for that component the point
            does not count.
        unseen: Points (k,) that no component sees: they are left out.
        casts: Geodesics of the normalizers, of K S, that had no end: their volume counts as zero.
        beyond: Those past a conjugate point, where no geodesic is shortest: their volume is zero.
        restarts: How often a component had collapsed and was begun anew.
    """

    logs: list[tuple[int, int]]
    unseen: list[int]
    casts: int
    beyond: int
    restarts: int

    def describe(self, n_casts: int) -> list[str]:
        """What of it a user should hear, where there were so many casts."""
        said = []
        if self.logs:
            shown = ", ".join(map(str, self.logs[:5])) + (", ..." if len(self.logs) > 5 else "")
            said.append(
                f"no geodesic was found for {len(self.logs)} pairs of a component and a point ({shown}): there the "
                "point does not count; try other `starts`, or a larger `geodesic_tol`"
            )
        if self.casts > _LOST * n_casts:
            said.append(
                f"{self.casts} of the {n_casts} geodesics of the normalizers have no end: their volume counts as zero; "
                "a table may be too small, or the data not resolved by the metric"
            )
        if self.restarts:
            said.append(
                f"components collapsed, with fewer points than a covariance needs, and were begun anew {self.restarts} "
                "times: try fewer components"
            )
        return said


class LAND(DensityMixin, Estimator):
    r"""A mixture of locally adaptive normal distributions: normal in the metric, around means of the data.

    .. math:: p(z) = \sum_k \pi_k \, \frac{1}{C_k} \exp\big(-\tfrac12 u_k' \Sigma_k^{-1} u_k\big), \qquad
        u_k = E_k^{-1} \log_{\mu_k} z, \qquad C_k = \int e^{-u' \Sigma_k^{-1} u / 2} \, \theta_k(u) \, du

    a density with respect to the volume :math:`\sqrt{\det G} \, dz`. It is fitted by expectation maximization, by the
    moments of u: the first tells how a mean moves, the second has to be that of the distribution. In flat space this is
    :class:`sklearn.mixture.GaussianMixture`.

    The columns of E are orthonormal in the metric at the mean: the length of u is a distance, and the covariance has
    squared units of the data. ``frame="euclidean"`` scales tangents as the reference code does, to have their length
    for the Euclidean norm of latent space.

    The factor :math:`\theta` is how much volume a geodesic finds at its end. ``volume="exact"`` is the change of
    variables, :math:`\sqrt{\det G(\exp u)} \, |\det d\exp_u|`, by Jacobi's equation; past the first conjugate point it
    is zero. ``volume="paper"`` leaves out the second part, and divides by :math:`\sqrt{\det G(\mu)}`, that of the
    frame: what the reference code computes. With it p does not integrate to one, and depends on coordinates.

    Normalizers are Monte Carlo estimates with a standard error. No failure is covered up: a point that no geodesic
    reaches from a mean does not count for it, and :attr:`failures_` tells which.

    Args:
        metric: The metric, smooth.
        n_components: K.
        volume: "exact" or "paper".
        frame: "orthonormal" or "euclidean".
        n_samples: S, geodesics that each normalizer is made of.
        max_iter: Steps of expectation maximization.
        tol: The fit ends when the mean log-likelihood gains less in a step.
        init: Means to begin with: "kmeans", Euclidean centers moved to the nearest code; "random" codes; or (K, d).
        reg_covar: Least variance along each axis, relative to that of all data.
        starts: For the first geodesics, as for :func:`pullback.geodesic`; later ones start from those before.
        geodesic_tol: Of the geodesics to points, as for :func:`pullback.geodesic`.
        exp_tol: Of those cast, as for :func:`pullback.exp`.
        random_state: For the draws and "random".
        progress: Whether to show bars.

    Attributes:
        weights_: (K,).
        means_: (K, d).
        covariances_: (K, d, d), of u.
        frames_: E (K, d, d): the covariance of tangents is E Sigma E'.
        log_normalizers_, log_normalizer_errors_: log C (K,), from draws of their own, and standard errors.
        lower_bounds_: Mean log-likelihoods, step by step.
        converged_, n_iter_: Whether the gain fell below tol, and after how many steps.
        failures_: :class:`Failures`.

    Raises:
        ValueError: Fewer codes than components; codes that are all one point; a setting is out of range.

    Warns:
        StatisticsWarning: Logarithms failed; a component collapsed and was restarted; many of the cast geodesics have
            no end; the fit has not converged.

    Cost:
        A step: N K geodesics from warm starts; where components moved, S geodesics by :func:`pullback.exp` and, exact
        with d = 2, 33 curvatures on each, else d + 1 times as many geodesics. On the shipped model 100 points, K = 2
        and S = 200 take ten seconds a step.

    Reference:
        Arvanitidis, Hansen, Hauberg (2016). :cite:`land`

    Example:
        >>> codes = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + torch.tensor([8.0, 0.0])))
        >>> land = LAND(pb.Pullback(torch.nn.Identity()), n_components=2, random_state=0).fit(codes)
        >>> bool((land.predict(codes[:50]) != land.predict(codes[50:])).all())
        True
    """

    def __init__(
        self,
        metric: Metric,
        n_components: int = 2,
        *,
        volume: Literal["exact", "paper"] = "exact",
        frame: Literal["orthonormal", "euclidean"] = "orthonormal",
        n_samples: int = 200,
        max_iter: int = 50,
        tol: float = 1e-3,
        init: Any = "kmeans",
        reg_covar: float = 1e-6,
        starts: Start | Sequence[Start] = "straight",
        geodesic_tol: float = 1e-3,
        exp_tol: float = 1e-2,
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        self.metric = metric
        self.n_components = n_components
        self.volume = volume
        self.frame = frame
        self.n_samples = n_samples
        self.max_iter = max_iter
        self.tol = tol
        self.init = init
        self.reg_covar = reg_covar
        self.starts = starts
        self.geodesic_tol = geodesic_tol
        self.exp_tol = exp_tol
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to points (n, d)."""
        self._check()
        codes = self._codes(X, reset=True, least=2)
        errors.enough_for(len(codes), self.n_components, "n_components")
        generator = generator_from(self.random_state)
        settings = Settings(
            self.volume, self.frame, self.geodesic_tol, self.exp_tol, self.starts, 0.0, bool(self.progress)
        )  # fmt: skip
        ended = run(
            self.metric, codes, first_means(self.init, codes, self.n_components, generator), n_samples=self.n_samples,
            reg_covar=self.reg_covar, settings=settings, max_iter=self.max_iter, tol=self.tol, generator=generator,
        )  # fmt: skip
        self._keep(ended, X, generator)
        return self

    def score_samples(self, X: Any, *, measure: Literal["volume", "latent"] = "volume") -> Any:
        """The logarithm of the density (n,) at points (n, d); NaN where no component sees the point.

        Args:
            X: Points (n, d).
            measure: By what the density is: by the metric's volume, or by the latent coordinates' own, as densities of
                Euclidean mixtures are; the second is larger by :meth:`Metric.log_volume`.

        Warns:
            StatisticsWarning: No geodesic was found from any mean to some points; it lists them.

        Cost: K geodesics a point.
        """
        codes, data = self._seen(X)
        return like(self._log_density(codes, data, measure), X)

    def score(self, X: Any, y: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The mean of :meth:`score_samples` over points (n, d) that some component sees."""
        codes, data = self._seen(X)
        return float(self._log_density(codes, data, "volume").nanmean())

    def log_likelihood(self, X: Any, *, measure: Literal["volume", "latent"] = "volume") -> Estimate:
        """The mean log-likelihood of points (n, d), such as held-out ones, and its standard error: each ().

        The error is that of a mean over n points, and that of the normalizers.
        """
        codes, data = self._seen(X)
        found = self._log_density(codes, data, measure)
        _, share, seen = expectation(self._mixture, data)
        found, share = found[seen], share[:, seen]
        by_points = found.std() / math.sqrt(max(1, len(found)))
        by_normalizers = (share.mean(1) * self._mixture.normalizer.error).norm()
        return Estimate(found.mean(), torch.hypot(by_points, by_normalizers))

    def predict_proba(self, X: Any) -> Any:
        """The share (n, K) that each component has in points (n, d); NaN where none sees the point."""
        _, data = self._seen(X)
        _, share, seen = expectation(self._mixture, data)
        return like(torch.where(seen, share, torch.nan).mT, X)

    def predict(self, X: Any) -> Any:
        """The component (n,) with the largest share in each point (n, d); -1 where none sees the point."""
        _, data = self._seen(X)
        _, share, seen = expectation(self._mixture, data)
        return like(torch.where(seen, share.argmax(0), -1), X)

    def fit_predict(self, X: Any, y: Any = None) -> Any:
        """Fit, and the component (n,) of each point."""
        return self.fit(X).predict(X)

    def bic(self, X: Any, *, measure: Literal["volume", "latent"] = "volume") -> float:
        """Bayes' information criterion on points (n, d), the lower the better: -2 log-likelihood + parameters log n.

        To compare with Euclidean mixtures take ``measure="latent"``, as for :meth:`score_samples`.
        """
        codes, data = self._seen(X)
        found = self._log_density(codes, data, measure)
        found = found[torch.isfinite(found)]
        k, d = self._mixture.means.shape
        n_parameters = k * (d + d * (d + 1) // 2) + k - 1
        return float(-2 * found.sum() + n_parameters * math.log(len(found)))

    def sample(self, n_samples: int = 1) -> tuple[Any, Any]:
        """Points (n, d) drawn from the distribution, and their components (n,), these in order.

        Tangents are drawn, and geodesics followed to their ends. With the exact volume a tangent is kept with a
        probability in proportion to its factor (the largest among those drawn has one), so that the points have the
        density that :meth:`score_samples` gives; with the paper's all are kept, as there. A geodesic that has no end
        gives no point, and another is drawn in its place: a warning counts these, for they are missing where they
        would have ended.

        Warns:
            StatisticsWarning: Geodesics were lost so.
        """
        check_is_fitted(self)
        _checks.at_least(n_samples, 1, "n_samples")
        generator, mixture = generator_from(self.random_state), self._mixture
        shares = mixture.weights.double().to(generator.device)
        labels = torch.multinomial(shares, n_samples, True, generator=generator).sort().values
        counts = torch.bincount(labels, minlength=len(shares)).tolist()
        drawn = [self._drawn(k, count, generator) for k, count in enumerate(counts) if count]
        parts, lost, thrown = zip(*drawn, strict=True)
        if sum(lost):
            warnings.warn(
                f"{sum(lost)} of the {sum(thrown)} geodesics followed for samples have no end: points are missing "
                "where they would have ended; a table may be too small, or the data not resolved by the metric.",
                _checks.StatisticsWarning,
                stacklevel=2,
            )
        return like(torch.cat(parts), self._like), like(labels.to(mixture.means.device), self._like)

    def _check(self) -> None:
        if not isinstance(self.metric, Metric):
            raise _checks.not_a_metric(self.metric)
        _checks.at_least(self.n_components, 1, "n_components")
        _checks.at_least(self.n_samples, 10, "n_samples")
        _checks.at_least(self.max_iter, 1, "max_iter")
        errors.not_negative(self.tol, "tol")
        errors.not_negative(self.reg_covar, "reg_covar")
        _checks.relative(self.geodesic_tol, "geodesic_tol")
        _checks.relative(self.exp_tol, "exp_tol")
        errors.one_of(self.volume, ("exact", "paper"), "volume")
        errors.one_of(self.frame, ("orthonormal", "euclidean"), "frame")

    def _keep(self, ended: Ended, X: Any, generator: Generator) -> None:
        """The results of a fit as attributes; normalizers from new draws, for those of the fit were fitted, too."""
        fit, settings = ended.fit, ended.fit.settings
        mixture, data = fit.mixture, fit.data
        draws = standard_draws(*mixture.draws.shape, generator=generator, like=mixture.draws)
        every = torch.arange(len(mixture.means), device=mixture.means.device)
        mixture = renew(self.metric, replace(mixture, draws=draws), every, settings)
        self._mixture, self._settings, self._like = mixture, replace(settings, progress=False), like(mixture.means, X)
        normalizer = mixture.normalizer
        for name, value in (
            ("weights_", mixture.weights), ("means_", mixture.means), ("covariances_", mixture.covariances),
            ("frames_", mixture.frames.columns), ("log_normalizers_", normalizer.log_value),
            ("log_normalizer_errors_", normalizer.error),
        ):  # fmt: skip
            setattr(self, name, like(value, X))
        self.converged_, self.n_iter_, self.lower_bounds_ = ended.converged, ended.n_iter, ended.bounds
        failed = ~torch.isfinite(data.u).all(-1)
        pairs = [(int(k), int(i)) for k, i in failed.nonzero()]
        unseen = failed.all(0).nonzero().reshape(-1).tolist()
        thrown = mixture.cast
        self.failures_ = Failures(pairs, unseen, int(thrown.failed.sum()), int(thrown.beyond.sum()), fit.restarts)
        said = self.failures_.describe(thrown.failed.numel())
        if not ended.converged:
            gain = abs(ended.bounds[-1] - ended.bounds[-2]) if len(ended.bounds) > 1 else math.inf
            said.append(
                f"the fit has not converged: the last of {ended.n_iter} steps gained {gain:.2g}; raise `max_iter`, or "
                f"`tol`, which is {self.tol:g}"
            )
        if said:
            warnings.warn("; ".join(said) + ".", _checks.StatisticsWarning, stacklevel=3)

    def _seen(self, X: Any) -> tuple[Points, Data]:
        """Points and their logarithms at the means."""
        check_is_fitted(self)
        codes = self._codes(X)
        mixture = self._mixture
        data = see(self.metric, mixture.means, mixture.frames, codes, self._settings)
        unseen = (~torch.isfinite(data.u).all(-1)).all(0).nonzero().reshape(-1).tolist()
        if unseen:
            warnings.warn(errors.no_geodesic_to(unseen, len(codes)), _checks.StatisticsWarning, stacklevel=3)
        return codes, data

    def _log_density(self, codes: Points, data: Data, measure: str) -> Tensor:
        errors.one_of(measure, ("volume", "latent"), "measure")
        found, _, seen = expectation(self._mixture, data)
        if measure == "latent":
            found[seen] += self.metric.log_volume(codes[seen]).detach()
        return found

    def _drawn(self, k: int, count: int, generator: Generator) -> tuple[Points, int, int]:
        """Points (count, d) of component k; how many geodesics were lost on the way, and of how many."""
        mixture = self._mixture
        mean, frames = mixture.means[k : k + 1], mixture.frames.select(torch.tensor([k], device=mixture.means.device))
        lower, d = torch.linalg.cholesky(mixture.covariances[k : k + 1]), mixture.means.shape[1]
        bound, kept, n_kept = mixture.cast.factor[k].max(), [], 0
        n_lost, n_thrown = 0, 0
        for _ in range(_ROUNDS):
            shape = (1, max(16, 2 * (count - n_kept)), d)
            noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device).to(mean)
            chance = torch.rand(shape[:2], generator=generator, dtype=torch.float64, device=generator.device).to(mean)
            thrown = cast(self.metric, mean, frames, noise @ lower.mT, volume=self.volume, tol=_FINE)
            good = ~thrown.failed
            n_lost, n_thrown = n_lost + int(thrown.failed.sum()), n_thrown + thrown.failed.numel()
            if self.volume == "exact":
                bound = torch.maximum(bound, thrown.factor.max())
                good &= chance * bound < thrown.factor
            kept.append(thrown.ends[good])
            n_kept += len(kept[-1])
            if n_kept >= count:
                return torch.cat(kept)[:count], n_lost, n_thrown
        raise errors.no_normalizer(mean[0].tolist())
