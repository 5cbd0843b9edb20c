"""What is said of decoders whose distributions cannot be measured."""

from __future__ import annotations

from typing import Any


def no_family(result: Any) -> ValueError:
    """The error for a decoder that returns parameters when their family was not given."""
    return ValueError(
        f"the decoder returns a {type(result).__name__}: return a torch.distributions object, or give `family`, which "
        "makes one of it, e.g. family=torch.distributions.Poisson or family=lambda x: Bernoulli(logits=x)."
    )


def needless_family(result: Any) -> ValueError:
    """The error for a family that was given though the decoder returns distributions."""
    return ValueError(f"`family` was given, but the decoder returns a {type(result).__name__} already: leave it out.")


def family_failed(result: Any, error: Exception) -> ValueError:
    """The error for a family that takes no distribution out of what a decoder returned."""
    return ValueError(
        f"`family` failed on the {type(result).__name__} that the decoder returns (tuples are spread over its "
        f"arguments, mappings over its keywords). It said: {type(error).__name__}: {error}"
    )


def not_a_distribution(result: Any) -> ValueError:
    """The error for a family that makes something else than a distribution."""
    return ValueError(f"`family` returns a {type(result).__name__}: it must return a torch.distributions object.")


def another_family(first: str, now: str) -> ValueError:
    """The error for a decoder whose distributions are not all of one family."""
    return ValueError(f"the decoder returned a {first} first and a {now} now: it must stay with one family.")


def batch_of_distributions(kind: str, batch: tuple[int, ...], event: tuple[int, ...], n: int) -> ValueError:
    """The error for distributions whose batch does not begin with the points."""
    return ValueError(
        f"the decoder maps {n} points to a {kind} with batch shape {batch} and event shape {event}: its batch shape "
        "must begin with the points. Let parameters be (n, ...), and Independent leave the first axis alone."
    )


def moving_parameter(kind: str, name: str) -> ValueError:
    """The error for a parameter that may not depend on z."""
    return ValueError(
        f"`{name}` of {kind} depends on z, and the Fisher information by it has no closed form: keep it constant "
        f"(a number, a weight, or {name}.detach())."
    )


def irregular_family(kind: str) -> ValueError:
    """The error for a family that has no Fisher information."""
    return ValueError(
        f"{kind} has no Fisher information in the parameters that depend on z, or none that torch can tell: where it "
        "is positive depends on them, or its divergence is not differentiable. Keep these constant, or choose another "
        "family."
    )


def no_divergence(kind: str, chords: bool) -> ValueError:
    """The error for a family whose Kullback-Leibler divergence torch does not know."""
    if chords:
        return ValueError(f"chords='kl' needs a divergence, and torch has none for {kind}: leave `chords` out.")
    return ValueError(
        f"{kind} has no known Fisher information: supported are Bernoulli, Beta, Binomial, Categorical, Cauchy, Chi2, "
        "Dirichlet, Exponential, Gamma, Geometric, Gumbel, HalfCauchy, HalfNormal, InverseGamma, Laplace, LogNormal, "
        "LogisticNormal, Multinomial, NegativeBinomial, Normal, OneHotCategorical, Pareto, Poisson, StudentT, "
        "VonMises, Weibull, and families that torch.distributions.kl_divergence takes; register_kl makes it take yours."
    )


def not_rebuilt(kind: str, names: list[str], error: Exception) -> ValueError:
    """The error for a family that is not made by its parameters."""
    return ValueError(
        f"{kind} cannot be made from its parameters {', '.join(names)}: its constructor must take them by these names, "
        f"and validate_args. It said: {error}"
    )
