"""Likelihoods of a variational autoencoder: what ends its decoder, and the distribution of the data that it gives."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent

from pullback.datasets import Dataset
from pullback.types import Features, Scalars

LIKELIHOODS = ("gaussian", "bernoulli", "poisson", "negative_binomial")


class Likelihood(nn.Module, ABC):
    """The last module of a decoder: from what its last linear layer returns (raw values) to the mean of the data.

    Nothing about a distribution is checked when it is made: the checks of torch would wait for the device in each step,
    and refuse gray values for a Bernoulli variable.
    """

    @abstractmethod
    def forward(self, raw: Features) -> Features:
        """The mean of the data: (..., D) -> (..., D)."""

    @abstractmethod
    def distribution(self, raw: Features, library: Scalars | None = None) -> Distribution:
        """The distribution of a sample, batch shape (...), event shape (D,); the library (...) for counts alone."""

    @abstractmethod
    def check(self, dataset: Dataset) -> None:
        """Raise ValueError if the data cannot have this distribution."""

    def inputs(self, x: Features) -> Features:
        """What the encoder gets of the data."""
        return x

    def keep(self, dataset: Dataset) -> None:
        """Keep what the mean needs to know of the data."""


class Gaussian(Likelihood):
    """N(mean, std^2) with one std for all outputs; the mean ends in a sigmoid or in nothing."""

    def __init__(self, output: str, std: float) -> None:
        super().__init__()
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"`output_std` is {std}: wanted a positive number, in units of the data")
        self.output, self.std = output, std

    def forward(self, raw: Features) -> Features:
        return raw.sigmoid() if self.output == "sigmoid" else raw

    def distribution(self, raw: Features, library: Scalars | None = None) -> Distribution:
        mean = self(raw)
        return Independent(distributions.Normal(mean, torch.full_like(mean, self.std), validate_args=False), 1)

    def check(self, dataset: Dataset) -> None:
        if self.output == "sigmoid":
            check_unit_interval(dataset, "a sigmoid only", "set output to 'linear'")


class Bernoulli(Likelihood):
    """Pixels that are on or off; gray values between 0 and 1 are taken as probabilities (cross entropy)."""

    def forward(self, raw: Features) -> Features:
        return raw.sigmoid()

    def distribution(self, raw: Features, library: Scalars | None = None) -> Distribution:
        return Independent(distributions.Bernoulli(logits=raw, validate_args=False), 1)

    def check(self, dataset: Dataset) -> None:
        check_unit_interval(dataset, "a Bernoulli variable only", "use another likelihood")


class Counts(Likelihood):
    r"""Counts whose log mean is the raw value, or log library plus log softmax of the raw values.

    Attributes:
        library: The total of a sample for which :meth:`forward` gives the mean, (): the median of those trained on,
            1 before. None: the mean is no share of a total.
    """

    library: Tensor | None

    def __init__(self, *, shares: bool) -> None:
        super().__init__()
        self.register_buffer("library", torch.ones(()) if shares else None)

    def log_mean(self, raw: Features, library: Scalars | None = None) -> Features:
        """Logarithm of the mean, for the observed total of each sample (...) or the one that is kept."""
        if self.library is None:
            return raw
        library = self.library if library is None else library[..., None]
        return raw.log_softmax(-1) + library.log()

    def forward(self, raw: Features) -> Features:
        return self.log_mean(raw).exp()

    def inputs(self, x: Features) -> Features:
        return x.log1p()

    def keep(self, dataset: Dataset) -> None:
        if self.library is not None:
            self.library.copy_(dataset.samples.sum(1).median())

    def check(self, dataset: Dataset) -> None:
        x = dataset.samples
        if not bool(((x >= 0) & (x == x.floor())).all()):
            worst = x[(x < 0) | (x != x.floor())][0]
            raise ValueError(
                f"`dataset` holds {float(worst):.6g}: wanted counts, whole numbers of at least 0; give the raw counts, "
                "not normalized or log-transformed ones"
            )
        if self.library is not None and (empty := int((x.sum(1) == 0).sum())):
            raise ValueError(f"`dataset` has {empty} samples without any count: remove them, or set shares=False")


class Poisson(Counts):
    """Counts with a variance equal to their mean."""

    def distribution(self, raw: Features, library: Scalars | None = None) -> Distribution:
        return Independent(distributions.Poisson(self.log_mean(raw, library).exp(), validate_args=False), 1)


class NegativeBinomial(Counts):
    r"""Counts with variance :math:`\mu + \mu^2 / r_j`; the inverse dispersion :math:`r_j` of an output is a parameter.

    Attributes:
        log_dispersion: :math:`\log r` (D,), initially 0.
    """

    def __init__(self, data_dim: int, *, shares: bool) -> None:
        super().__init__(shares=shares)
        self.log_dispersion = nn.Parameter(torch.zeros(data_dim))

    def distribution(self, raw: Features, library: Scalars | None = None) -> Distribution:
        logits = self.log_mean(raw, library) - self.log_dispersion  # mean = r exp(logits)
        r = self.log_dispersion.exp().expand_as(logits)
        return Independent(distributions.NegativeBinomial(r, logits=logits, validate_args=False), 1)


def likelihood(name: str, data_dim: int, *, output: str, output_std: float, shares: bool) -> Likelihood:
    """The likelihood of a name, with the options that it has."""
    if name == "gaussian":
        return Gaussian(output, output_std)
    if name == "bernoulli":
        return Bernoulli()
    if name == "poisson":
        return Poisson(shares=shares)
    if name == "negative_binomial":
        return NegativeBinomial(data_dim, shares=shares)
    raise ValueError(f"`likelihood` is {name!r}: wanted one of {', '.join(LIKELIHOODS)}")


def check_unit_interval(dataset: Dataset, what: str, remedy: str) -> None:
    """Raise ValueError if a sample is not in [0, 1]."""
    x = dataset.samples
    if not is_unit(x):
        raise ValueError(
            f"`dataset` reaches from {float(x.min()):.4g} to {float(x.max()):.4g}, but {what} from 0 to 1: "
            f"scale the samples to [0, 1] or {remedy}"
        )


def is_unit(x: Float[Tensor, "n D"]) -> bool:
    """Whether all numbers lie in [0, 1]."""
    return bool(((x >= 0) & (x <= 1)).all())
