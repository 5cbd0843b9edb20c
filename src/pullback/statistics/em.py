"""Expectation maximization for mixtures in the metric: first means, steps that never lose, components that collapse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.mixture import (
    Data,
    Mixture,
    Settings,
    cast_at,
    expectation,
    maximization,
    renew,
    second_moments,
    see,
    see_after,
)
from pullback.statistics.normalizer import standard_draws
from pullback.statistics.volume import Frames
from pullback.types import Points

_SHORTEST = 1 / 16  # step of the means
_RESTARTS = 3  # for each component
_NOISE = 2.0  # standard errors of the normalizers that a likelihood may seem to lose


@dataclass(frozen=True)
class Fit:
    """A mixture and the points that it is fitted to, with responsibilities (K, n), and what that is worth."""

    mixture: Mixture
    data: Data
    share: Tensor
    settings: Settings
    value: float  # mean log-likelihood of the points that are seen
    noise: float  # standard error that the normalizers give to it
    restarts: int

    @classmethod
    def judged(cls, mixture: Mixture, data: Data, settings: Settings, restarts: int) -> Fit:
        found, share, seen = expectation(mixture, data)
        by_component = share.sum(1) / seen.sum().clamp_min(1)
        noise = (by_component * mixture.normalizer.error).norm()
        return cls(mixture, data, share, settings, float(found.nanmean()), float(noise), restarts)


@dataclass(frozen=True)
class Ended:
    """How a fit ended: its mean log-likelihoods step by step, whether it converged, and after how many steps."""

    fit: Fit
    bounds: list[float]
    converged: bool
    n_iter: int


def run(
    metric: Metric,
    codes: Points,
    means: Points,
    *,
    n_samples: int,
    reg_covar: float,
    settings: Settings,
    max_iter: int,
    tol: float,
    generator: Generator,
) -> Ended:
    """Fit components that begin at means (K, d) to codes (n, d)."""
    fit = _begin(metric, codes, means, n_samples, reg_covar, settings, generator)
    step, bounds, i = 1.0, [fit.value], 0
    with tqdm(total=max_iter, desc="LAND", unit="step", disable=not settings.progress) as bar:
        for i in range(1, max_iter + 1):
            new = _advanced(metric, codes, fit, step)
            bar.update()
            gain = new.value - fit.value
            if (
                gain < -_NOISE * max(fit.noise, new.noise)
                and step > _SHORTEST
                and new.restarts == fit.restarts
                and i > 1
            ):
                step *= 0.5  # a mean went too far
                continue
            settled = abs(gain) < tol and new.restarts == fit.restarts
            fit = new
            bounds.append(fit.value)
            if settled:
                return Ended(_looked_again(metric, codes, fit), bounds, True, i)
    return Ended(_looked_again(metric, codes, fit), bounds, False, i)


def _looked_again(metric: Metric, codes: Points, fit: Fit) -> Fit:
    """A fit with logarithms from where its means are now."""
    rows = (fit.data.strayed > 0).nonzero().reshape(-1)
    if not len(rows):
        return fit
    frames = fit.mixture.frames.select(rows)
    seen = see(metric, fit.mixture.means[rows], frames, codes, fit.settings, fit.data.curves[rows])
    return Fit.judged(fit.mixture, fit.data.put(rows, seen), fit.settings, fit.restarts)


def first_means(init: Any, codes: Points, k: int, generator: Generator) -> Points:
    """K codes, or given points (K, d), for components to begin at.

    Euclidean centers may lie off the data, where no geodesic leads: the nearest codes are taken instead.
    """
    if isinstance(init, str):
        errors.one_of(init, ("kmeans", "random"), "init")
        distinct = codes.unique(dim=0)
        errors.enough_for(len(distinct), k, "n_components", "different codes")
        if init == "random":
            chosen = torch.randperm(len(distinct), generator=generator, device=generator.device)[:k]
            return distinct[chosen.to(codes.device)]
        from sklearn.cluster import KMeans

        seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
        found = KMeans(k, random_state=seed).fit(codes.cpu().double().numpy()).cluster_centers_
        apart = torch.cdist(torch.from_numpy(found).to(codes), distinct)
        means = []
        for row in range(k):  # no code twice
            nearest = int(apart[row].argmin())
            means.append(distinct[nearest])
            apart[:, nearest] = torch.inf
        return torch.stack(means)
    given = torch.as_tensor(init if isinstance(init, Tensor) else np.array(init)).detach().to(codes)
    if given.shape != (k, codes.shape[1]):
        raise errors.wrong_init(tuple(given.shape), k, codes.shape[1])
    return _checks.points(given, "init")


def _begin(
    metric: Metric,
    codes: Points,
    means: Points,
    n_samples: int,
    reg_covar: float,
    settings: Settings,
    generator: Generator,
) -> Fit:
    """Components at their first means, each with the points that are nearest to it."""
    k, d = means.shape
    frames = Frames.at(metric, means, settings.frame)
    data = see(metric, means, frames, codes, settings)
    square = data.u.square().sum(-1).nan_to_num(nan=torch.inf)
    seen = torch.isfinite(square)
    if not seen.any():
        raise errors.no_logs(len(codes))
    pooled = float(square[seen].mean()) / d
    if pooled == 0:
        raise errors.coinciding("codes")
    settings = replace(settings, floor=max(reg_covar, torch.finfo(codes.dtype).eps) * pooled)
    share = torch.zeros_like(square).scatter(0, square.argmin(0)[None], 1) * seen
    eye = torch.eye(d, dtype=codes.dtype, device=codes.device)
    own = share.sum(1)
    covariances = second_moments(data.u, share) + settings.floor * eye
    covariances[own <= d] = pooled * eye
    draws = standard_draws(k, max(n_samples + n_samples % 2, 4 * d), d, generator=generator, like=codes)
    thrown = cast_at(metric, means, frames, covariances, draws, settings)
    weights = (own + 1e-3) / (own + 1e-3).sum()
    mixture = Mixture(weights, means, frames, covariances, draws, thrown, covariances, torch.zeros_like(weights))
    fit = Fit.judged(mixture, data, settings, 0)
    return replace(fit, share=share)  # the first step is from these: soft shares would be those of wrong covariances


def _advanced(metric: Metric, codes: Points, fit: Fit, step: float) -> Fit:
    """One step from a fit; a component with too few points for a covariance is begun anew."""
    d = codes.shape[1]
    few = fit.share.sum(1) < d + 1
    k = len(few)
    restarts = fit.restarts
    share = torch.where(few[:, None], 1 / k, fit.share)  # any: it is moved afterwards
    mixture, motion = maximization(metric, fit.mixture, fit.data, share, step, fit.settings)
    if few.any() and k > 1 and restarts < _RESTARTS * k and len(codes) >= k * (d + 1):
        mixture = _revived(metric, codes, mixture, fit, few.nonzero().reshape(-1))
        motion = replace(motion, far=torch.where(few, torch.inf, motion.far))
        restarts += int(few.sum())
    data = see_after(metric, mixture, motion, fit.data, codes, fit.settings)
    return Fit.judged(mixture, data, fit.settings, restarts)


def _revived(metric: Metric, codes: Points, mixture: Mixture, fit: Fit, rows: Tensor) -> Mixture:
    """Collapsed components (m,) at the codes that are explained the least, as wide as the others in the mean."""
    found, _, seen = expectation(fit.mixture, fit.data)
    worst = torch.where(seen, found, torch.inf).argsort()[: len(rows)]
    means = mixture.means.index_copy(0, rows, codes[worst])
    frames = Frames.at(metric, means, fit.settings.frame)
    kept = torch.ones_like(mixture.weights, dtype=torch.bool).index_fill(0, rows, False)
    usual = mixture.covariances[kept] if kept.any() else mixture.covariances
    eye = torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
    width = usual.diagonal(dim1=-2, dim2=-1).mean() * eye
    covariances = mixture.covariances.index_copy(0, rows, width.expand(len(rows), -1, -1))
    weights = mixture.weights.index_fill(0, rows, 1 / len(kept))
    mixture = replace(mixture, weights=weights / weights.sum(), means=means, frames=frames, covariances=covariances)
    return renew(metric, mixture, rows, fit.settings)
