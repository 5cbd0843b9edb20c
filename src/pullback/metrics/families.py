"""Families of distributions: coordinates for each, and its Fisher information in these."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution, kl_divergence

from pullback.metrics import refusals
from pullback.metrics.contract import Metric
from pullback.metrics.information import (
    DirichletInformation,
    Divergence,
    DivergenceChords,
    GammaInformation,
    HalfPlane,
    VonMisesInformation,
    bessel_ratio,
)

Coordinates = Callable[[Any], tuple[Tensor, ...]]
Moving = frozenset[str]  # names of the parameters that depend on z


@dataclass(frozen=True)
class Family:
    """Coordinates of distributions (n, ...), as parts (n, ...), and the Fisher information in them.

    `information` is None where these coordinates are Euclidean: an isometric immersion.
    """

    coordinates: Coordinates
    information: Metric | None = None


def family(distribution: Distribution, moving: Moving, *, chords: bool = False) -> Family:
    """How to measure a distribution (n, ...), of which these parameters depend on z: in closed form, or by divergence.

    Args:
        distribution: Not ``Independent``.
        moving: The parameters that depend on z.
        chords: Whether neighbors on curves are to be measured by their divergence.
    """
    kind, held = type(distribution), parameters(distribution)
    if "total_count" in moving:
        raise refusals.moving_parameter(kind.__name__, "total_count")
    closed = closed_form(distribution, moving)
    if closed is not None and not chords:
        return closed
    shapes = {name: x.shape[1:] for name, x in held.items()}
    if closed is not None:
        found = DivergenceChords(kind, shapes, closed.coordinates, closed.information)
    else:
        found = DivergenceChords(kind, shapes, None, None) if chords else Divergence(kind, shapes)
    near = {name: 1.001 * x if name in moving else x for name, x in held.items()}
    here, there = (torch.cat([x.detach().reshape(len(x), -1) for x in y.values()], 1) for y in (held, near))
    try:
        with torch.enable_grad():  # torch takes derivatives for some
            kl_divergence(distribution, distribution)
            found.divergence(here, there)
    except NotImplementedError:
        raise refusals.no_divergence(kind.__name__, chords) from None
    except TypeError as error:
        raise refusals.not_rebuilt(kind.__name__, list(held), error) from error
    return Family(_all_parameters, found)


def parameters(distribution: Distribution) -> dict[str, Tensor]:
    """The tensors (n, ...) that a distribution can be made of, each once: of probabilities and logits the logits."""
    names, batch = set(distribution.arg_constraints), distribution.batch_shape
    if "logits" in names:
        names -= {"probs"}
    if "scale_tril" in names:
        names -= {"covariance_matrix", "precision_matrix"}
    found = {}
    for name in sorted(names):
        x, event = _get(distribution, name), distribution.arg_constraints[name].event_dim
        if not isinstance(x, Tensor):
            continue
        shared = x.ndim == event or x.shape[0] != batch[0]  # torch's own are never, those of others may be
        found[name] = x.expand(*batch, *x.shape[x.ndim - event :]) if shared else x
    return found


def _get(distribution: Distribution, name: str) -> Any:
    x = _logits(distribution) if name == "logits" else getattr(distribution, name)
    return x if not isinstance(x, Tensor) or x.dtype in (torch.float32, torch.float64) else x.float()


def _logits(distribution: Any) -> Tensor:
    """The logits, if need be from probabilities of any size: torch cuts these off at the precision of 1."""
    held = vars(getattr(distribution, "_categorical", distribution))
    if "logits" in held or "probs" not in held:
        return distribution.logits
    p, numbers = distribution.probs, torch.finfo(distribution.probs.dtype)
    if distribution.arg_constraints["logits"].event_dim:
        return p.clamp_min(numbers.tiny).log()
    p = p.clamp(numbers.tiny, 1 - numbers.eps / 2)
    return p.log() - (-p).log1p()


# Isometric immersions


@functools.singledispatch
def closed_form(distribution: Distribution, moving: Moving) -> Family | None:
    """The family with its Fisher information in closed form; None where there is none."""
    return None


@closed_form.register(td.Bernoulli)
def _bernoulli(distribution: Distribution, moving: Moving) -> Family:
    return Family(_arc)


@closed_form.register(td.Binomial)
@closed_form.register(td.NegativeBinomial)
@closed_form.register(td.Geometric)
def _counts(distribution: Distribution, moving: Moving) -> Family:
    if isinstance(distribution, td.Binomial):
        return Family(_arc)
    return Family(functools.partial(_negative_binomial, sign=-1 if isinstance(distribution, td.Geometric) else 1))


@closed_form.register(td.Categorical)
@closed_form.register(td.OneHotCategorical)
@closed_form.register(td.Multinomial)
def _categories(distribution: Distribution, moving: Moving) -> Family:
    return Family(_sphere)


@closed_form.register(td.Poisson)
def _poisson(distribution: Distribution, moving: Moving) -> Family:
    return Family(_twice_root)


@closed_form.register(td.Exponential)
def _exponential(distribution: Distribution, moving: Moving) -> Family:
    return Family(functools.partial(_log, name="rate"))


@closed_form.register(td.Pareto)
def _pareto(distribution: Distribution, moving: Moving) -> Family:
    if "scale" in moving:
        raise refusals.irregular_family("Pareto")
    return Family(functools.partial(_log, name="alpha"))


# Location and scale: information (a, b, c) of the standard distribution about location, log scale, and both


@closed_form.register(td.Normal)
@closed_form.register(td.LogNormal)
@closed_form.register(td.LogisticNormal)
@closed_form.register(td.HalfNormal)
@closed_form.register(td.Laplace)
@closed_form.register(td.Cauchy)
@closed_form.register(td.HalfCauchy)
@closed_form.register(td.Gumbel)
def _location_scale(distribution: Distribution, moving: Moving) -> Family:
    a, b, c = next(_STANDARD[kind] for kind in type(distribution).__mro__ if kind in _STANDARD)
    if moving <= {"scale"}:
        return Family(functools.partial(_log, name="scale", factor=b**0.5))
    if moving <= {"loc"}:
        return Family(functools.partial(_standard_location, factor=a**0.5))
    weight = b - c**2 / a
    return Family(functools.partial(_half_plane, stretch=(a / weight) ** 0.5, shift=c / a), HalfPlane(weight))


@closed_form.register(td.Weibull)
def _weibull(distribution: Distribution, moving: Moving) -> Family:
    # minus its logarithm is Gumbel's, with location -log scale and scale 1 / concentration
    a, b, c = _STANDARD[td.Gumbel]
    if moving <= {"concentration"}:
        return Family(functools.partial(_log, name="concentration", factor=b**0.5))
    if moving <= {"scale"}:
        return Family(_log_weibull)
    weight = b - c**2 / a
    return Family(functools.partial(_half_weibull, stretch=(a / weight) ** 0.5, shift=c / a), HalfPlane(weight))


@closed_form.register(td.StudentT)
def _student(distribution: Distribution, moving: Moving) -> Family:
    if "df" in moving:
        raise refusals.moving_parameter("StudentT", "df")
    if moving <= {"loc"}:
        return Family(_student_location)
    return Family(_student_scale) if moving <= {"scale"} else Family(_student_both, HalfPlane(None))


@closed_form.register(td.MultivariateNormal)
def _multivariate_normal(distribution: Distribution, moving: Moving) -> Family | None:
    return Family(_whitened) if moving <= {"loc"} else None


# Two parameters and more


@closed_form.register(td.Gamma)
@closed_form.register(td.InverseGamma)
def _gamma(distribution: Distribution, moving: Moving) -> Family:
    return Family(_log_rate) if moving <= {"rate"} else Family(_shape_and_mean, GammaInformation())


@closed_form.register(td.Beta)
def _beta(distribution: Distribution, moving: Moving) -> Family:
    return Family(_log_pair, DirichletInformation(2))


@closed_form.register(td.Dirichlet)
def _dirichlet(distribution: Distribution, moving: Moving) -> Family:
    return Family(functools.partial(_log, name="concentration"), DirichletInformation(distribution.event_shape[-1]))


@closed_form.register(td.VonMises)
def _von_mises(distribution: Distribution, moving: Moving) -> Family:
    return Family(_circle) if moving <= {"loc"} else Family(_natural, VonMisesInformation())


# The coordinates themselves


def _all_parameters(d: Distribution) -> tuple[Tensor, ...]:
    return tuple(parameters(d).values())


def _arc(d: Any) -> tuple[Tensor, ...]:
    """2 arcsin sqrt(p) = 2 arctan(e^(logit / 2)), from the side where it is small, so that no derivative is lost."""
    x = 0.5 * _get(d, "logits")
    low, high = 2 * x.clamp_max(0).exp().arctan(), math.pi - 2 * (-x.clamp_min(0)).exp().arctan()
    angle = torch.where(x <= 0, low, high)
    return (_get(d, "total_count").sqrt() * angle if isinstance(d, td.Binomial) else angle,)


def _sphere(d: Any) -> tuple[Tensor, ...]:
    count = d.total_count if isinstance(d, td.Multinomial) else 1
    return (2 * count**0.5 * (0.5 * _get(d, "logits").log_softmax(-1)).exp(),)


def _twice_root(d: Any) -> tuple[Tensor, ...]:
    rate = _get(d, "rate")
    return (2 * rate.clamp_min(torch.finfo(rate.dtype).tiny).sqrt(),)


def _negative_binomial(d: Any, sign: int) -> tuple[Tensor, ...]:
    """2 sqrt(r) arsinh sqrt(mean / r), where mean / r = e^(logit); r = 1 failure and e^(-logit) for a geometric one."""
    x = 0.5 * sign * _get(d, "logits")
    low, high = x.clamp_max(0), x.clamp_min(0)
    arsinh = torch.where(x <= 0, low.exp().arcsinh(), high + (1 + (-2 * high).exp()).sqrt().log1p())
    return (2 * _get(d, "total_count").sqrt() * arsinh if isinstance(d, td.NegativeBinomial) else 2 * arsinh,)


def _log(d: Any, name: str, factor: float = 1.0) -> tuple[Tensor, ...]:
    return (factor * _get(d, name).log(),)


def _standard_location(d: Any, factor: float) -> tuple[Tensor, ...]:
    return (factor * _get(d, "loc") / _get(d, "scale"),)


def _half_plane(d: Any, stretch: float, shift: float) -> tuple[Tensor, ...]:
    scale = _get(d, "scale")
    return stretch * (_get(d, "loc") + shift * scale), scale.log()


def _log_weibull(d: Any) -> tuple[Tensor, ...]:
    return (_get(d, "concentration") * _get(d, "scale").log(),)


def _half_weibull(d: Any, stretch: float, shift: float) -> tuple[Tensor, ...]:
    k = _get(d, "concentration")
    return stretch * (shift / k - _get(d, "scale").log()), -k.log()


def _student_location(d: Any) -> tuple[Tensor, ...]:
    df = _get(d, "df")
    return (((df + 1) / (df + 3)).sqrt() * _get(d, "loc") / _get(d, "scale"),)


def _student_scale(d: Any) -> tuple[Tensor, ...]:
    df = _get(d, "df")
    return ((2 * df / (df + 3)).sqrt() * _get(d, "scale").log(),)


def _student_both(d: Any) -> tuple[Tensor, ...]:
    df = _get(d, "df")
    return ((df + 1) / (2 * df)).sqrt() * _get(d, "loc"), _get(d, "scale").log(), 2 * df / (df + 3)


def _whitened(d: Any) -> tuple[Tensor, ...]:
    lower = _get(d, "scale_tril")
    return (torch.linalg.solve_triangular(lower, _get(d, "loc")[..., None], upper=False)[..., 0],)


def _log_rate(d: Any) -> tuple[Tensor, ...]:
    return (_get(d, "concentration").sqrt() * _get(d, "rate").log(),)


def _shape_and_mean(d: Any) -> tuple[Tensor, ...]:
    log_shape = _get(d, "concentration").log()
    return log_shape, log_shape - _get(d, "rate").log()


def _log_pair(d: Any) -> tuple[Tensor, ...]:
    return (torch.stack((_get(d, "concentration1"), _get(d, "concentration0")), -1).log(),)


def _circle(d: Any) -> tuple[Tensor, ...]:
    loc, kappa = _get(d, "loc"), _get(d, "concentration")
    radius = kappa * bessel_ratio(kappa.double().square())[0].sqrt().to(kappa)
    return radius * loc.cos(), radius * loc.sin()


def _natural(d: Any) -> tuple[Tensor, ...]:
    loc, kappa = _get(d, "loc"), _get(d, "concentration")
    return kappa * loc.cos(), kappa * loc.sin()


_EULER = 0.5772156649015329
_STANDARD = {
    td.Normal: (1.0, 2.0, 0.0),
    td.LogNormal: (1.0, 2.0, 0.0),
    td.LogisticNormal: (1.0, 2.0, 0.0),
    td.HalfNormal: (1.0, 2.0, 0.0),
    td.Laplace: (1.0, 1.0, 0.0),
    td.Cauchy: (0.5, 0.5, 0.0),
    td.HalfCauchy: (0.5, 0.5, 0.0),
    td.Gumbel: (1.0, (1 - _EULER) ** 2 + math.pi**2 / 6, _EULER - 1),
}
