"""The Fisher-Rao metric of a decoder that returns probability distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from pullback import _checks
from pullback.autodiff import direction, push
from pullback.decoders import FeatureMap
from pullback.metrics import refusals
from pullback.metrics.contract import Metric
from pullback.metrics.families import Family, family, parameters
from pullback.metrics.information import Divergence
from pullback.metrics.pullback import Pullback


class FisherRao(Pullback):
    r"""How well data tell latent points apart: the Fisher information of a decoder's distributions, pulled back.

    .. math:: G(z) = J_\theta^\top I(\theta(z)) J_\theta, \qquad
        \mathrm{KL}(p_z \,\|\, p_{z + \delta}) = \tfrac12 \delta^\top G(z) \delta + O(\delta^3)

    Lengths have no unit: one is a standard deviation of the best estimate of the place from one data point.

    What depends on z decides where it is measured:

    - flat, by an isometric immersion: Bernoulli and Binomial in :math:`2 \sqrt r \arcsin \sqrt p` (r: the count),
      Poisson in :math:`2 \sqrt\lambda`, Geometric and NegativeBinomial in
      :math:`2 \sqrt r \operatorname{arsinh} \sqrt{\mu / r}` (:math:`\mu`: the mean), Exponential, Pareto and Gamma with
      a constant shape a in :math:`\sqrt a \log` rate;
    - flat: Normal, LogNormal, LogisticNormal, Laplace, Cauchy, StudentT, Gumbel, Weibull, HalfNormal, HalfCauchy where
      only the location or only the scale depends on z; MultivariateNormal where only the mean does;
    - on a sphere or circle: Categorical, OneHotCategorical and Multinomial in :math:`2 \sqrt{r p_k}`; VonMises with a
      constant concentration;
    - in hyperbolic half-planes, one an output: families of location and scale where both depend on z;
    - by the closed Fisher information: Gamma, InverseGamma, Chi2, Beta, Dirichlet, VonMises;
    - by the second derivative of the divergence: whatever else ``torch.distributions.kl_divergence`` takes, such as
      MultivariateNormal.

    The first three are :attr:`immersed`: they cost what a plain :class:`Pullback` costs.

    Args:
        decoder: Maps points (n, d) to a ``torch.distributions`` object with batch shape (n, ...), or to its parameters.
            ``Independent`` makes no difference.
        family: Makes a distribution of the parameters: of a tensor ``f(x)``, of a tuple ``f(*x)``, of a mapping
            ``f(**x)``. A class, such as ``torch.distributions.Poisson``, or any function.
        chords: "kl" measures short segments of curves by the divergence there and back, KL(p, q) + KL(q, p), for
            families that have one. It agrees with the metric as segments become short. Default: chords where the family
            is immersed, else the metric at the middle of a segment.
        memory: As for :class:`Pullback`.

    Raises:
        ValueError: With the first points: for a family with neither Fisher information nor divergence, one whose
            support depends on z (Uniform), a count that depends on z, a batch shape that does not begin with the
            points, and what :class:`Pullback` refuses. Later, when the decoder turns to another family.

    Cost:
        As for :class:`Pullback`; the first call one evaluation more. What has no closed form takes two derivatives of
        the divergence for each inner product beside that.

    Reference:
        Arvanitidis, Gonzalez-Duque, Pouplin, Kalatzis, Hauberg (2022), Pulling back information geometry.
        :cite:`information`

    Example:
        >>> metric = FisherRao(lambda z: torch.distributions.Poisson(z.exp()))
        >>> metric.norm(torch.zeros(1), torch.ones(1))  # a rate of 1 has the standard deviation 1
        tensor(1.)
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], Any],
        family: Callable[..., Distribution] | None = None,
        *,
        chords: Literal["kl"] | None = None,
        memory: int | None = None,
    ) -> None:
        super().__init__(decoder, memory=memory)
        if chords not in (None, "kl"):
            raise ValueError(f"`chords` is {chords!r}: want 'kl' or None.")
        if family is not None and not callable(family):
            raise TypeError(f"`family` is a {type(family).__name__}: give a class of distributions or a function.")
        self.feature_map: Likelihood = Likelihood(decoder, family, chords=chords == "kl")

    @property
    def ambient(self) -> Metric | None:
        """The Fisher information in the family's coordinates; None for an immersed one and before the first points."""
        found = self.feature_map.family
        return None if found is None else found.information

    @property
    def immersed(self) -> bool:
        """Whether the family's coordinates are Euclidean; not known, and False, before the first points."""
        return self.feature_map.family is not None and self.ambient is None


class Likelihood(FeatureMap):
    """A decoder to distributions as a map of points (n, d) to coordinates of these in parts (n, D_k)."""

    def __init__(
        self, decoder: Callable[[Tensor], Any], make: Callable[..., Distribution] | None, *, chords: bool
    ) -> None:
        super().__init__(decoder)
        self.make = make
        self.chords = chords
        self.kind: type[Distribution] | None = None  # known after the first points, as is the family
        self.family: Family | None = None

    def _chosen(self, points: Tensor) -> list[Tensor]:
        found = self._distribution(self.decoder(points), len(points))
        if self.family is None:
            self.footprint(points)
        if type(found) is not self.kind:
            raise refusals.another_family(getattr(self.kind, "__name__", ""), type(found).__name__)
        return list(self.family.coordinates(found)) if self.family else []

    def _probe(self, points: Tensor) -> int:
        """Find out which family it is, and which of its parameters depend on z; then look at the coordinates."""
        z = points[:1].clone().requires_grad_()
        with torch.enable_grad():  # the caller may have it off
            found = self._distribution(self._decoded(z), 1)
            moving = frozenset(name for name, x in parameters(found).items() if _depends(x, z))
        if not moving:
            raise _checks.no_gradient()
        self.family, self.kind = family(found, moving, chords=self.chords), type(found)
        if isinstance(self.family.information, Divergence) and not self.family.information.closed:
            x, along = (torch.cat(parts, 1) for parts in push(self.parts, z.detach(), (direction(z),)))
            if not self.family.information.regular(x, along):
                raise refusals.irregular_family(self.kind.__name__)
        return super()._probe(points)

    def _distribution(self, result: Any, n: int) -> Distribution:
        """What the decoder returned for n points as a distribution with one entry an output."""
        if isinstance(result, Distribution):
            if self.make is not None:
                raise refusals.needless_family(result)
            found = result
        elif self.make is None:
            raise refusals.no_family(result)
        else:
            found = _made(self.make, result)
        if found.batch_shape[:1] != (n,):
            raise refusals.batch_of_distributions(
                type(found).__name__, tuple(found.batch_shape), tuple(found.event_shape), n
            )
        while isinstance(found, Independent):
            found = found.base_dist
        return found


def _made(make: Callable[..., Distribution], result: Any) -> Distribution:
    """A distribution from parameters."""
    try:
        if isinstance(result, Mapping):
            found = make(**result)
        else:
            found = make(*result) if isinstance(result, tuple | list) else make(result)
    except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
        raise refusals.family_failed(result, error) from error
    if not isinstance(found, Distribution):
        raise refusals.not_a_distribution(found)
    return found


def _depends(x: Tensor, z: Tensor) -> bool:
    if not x.requires_grad:
        return False
    return torch.autograd.grad(x.sum(), z, retain_graph=True, allow_unused=True)[0] is not None
