"""Each family against what its information is: the curvature of its divergence, and the covariance of its score."""

import math
from dataclasses import dataclass

import pytest
import scipy.special
import torch
from torch import distributions as td
from torch.distributions import kl_divergence

from metric_contract import F64
from pullback.metrics import FisherRao, Pullback
from pullback.metrics.information import bessel_ratio, excess

Z = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=F64)


def weights(seed):
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def a(z):
    return z @ weights(1).to(z) * 0.7 + 0.2


def b(z):
    return z @ weights(2).to(z) * 0.5 - 0.3


def c(z):
    return (z @ weights(3).to(z)).sin()


def fixed(*values, like):
    return torch.tensor(values, dtype=like.dtype)


LOWER = torch.linalg.cholesky(torch.eye(3, dtype=F64) + 0.3)

FAMILIES = {
    "Bernoulli": lambda z: td.Bernoulli(logits=a(z)),
    "Bernoulli by probabilities": lambda z: td.Bernoulli(probs=a(z).sigmoid()),
    "Binomial": lambda z: td.Binomial(fixed(3, 7, 1, like=z), logits=a(z)),
    "Geometric": lambda z: td.Geometric(logits=a(z)),
    "Geometric by probabilities": lambda z: td.Geometric(a(z).sigmoid()),
    "NegativeBinomial": lambda z: td.NegativeBinomial(fixed(2.5, 0.7, 4, like=z), logits=a(z)),
    "NegativeBinomial by probabilities": lambda z: td.NegativeBinomial(3.0, a(z).sigmoid()),
    "Poisson": lambda z: td.Poisson(a(z).exp()),
    "Categorical": lambda z: td.Categorical(logits=torch.stack((a(z), b(z), c(z)), -2)),
    "Categorical by probabilities": lambda z: td.Categorical(torch.stack((a(z), b(z), c(z)), -2).softmax(-1)),
    "OneHotCategorical": lambda z: td.OneHotCategorical(logits=a(z)),
    "OneHotCategorical by probabilities": lambda z: td.OneHotCategorical(a(z).softmax(-1)),
    "Multinomial": lambda z: td.Multinomial(5, logits=a(z)),
    "Exponential": lambda z: td.Exponential(a(z).exp()),
    "Gamma by its rate": lambda z: td.Gamma(fixed(0.5, 2, 5, like=z), b(z).exp()),
    "Gamma by its shape": lambda z: td.Gamma(b(z).exp(), 2.3),
    "Gamma": lambda z: td.Gamma(a(z).exp(), b(z).exp()),
    "Chi2": lambda z: td.Chi2(a(z).exp()),
    "InverseGamma": lambda z: td.InverseGamma(a(z).exp(), b(z).exp()),
    "Beta": lambda z: td.Beta(a(z).exp(), b(z).exp()),
    "Dirichlet": lambda z: td.Dirichlet(torch.stack((a(z), b(z), c(z)), -2).exp()),
    "Normal": lambda z: td.Normal(a(z), b(z).exp()),
    "Normal by its mean": lambda z: td.Normal(a(z), 0.7),
    "Normal by its scale": lambda z: td.Normal(1.0, b(z).exp()),
    "LogNormal": lambda z: td.LogNormal(a(z), b(z).exp()),
    "LogisticNormal": lambda z: td.LogisticNormal(a(z), b(z).exp()),
    "HalfNormal": lambda z: td.HalfNormal(b(z).exp()),
    "HalfCauchy": lambda z: td.HalfCauchy(b(z).exp()),
    "Laplace": lambda z: td.Laplace(a(z), b(z).exp()),
    "Laplace by its location": lambda z: td.Laplace(a(z), 0.7),
    "Cauchy": lambda z: td.Cauchy(a(z), b(z).exp()),
    "Cauchy by its location": lambda z: td.Cauchy(a(z), 0.7),
    "StudentT": lambda z: td.StudentT(fixed(2.5, 4, 30, like=z), a(z), b(z).exp()),
    "StudentT by its location": lambda z: td.StudentT(3.0, a(z), fixed(0.5, 1, 2, like=z)),
    "StudentT by its scale": lambda z: td.StudentT(3.0, 0.0, b(z).exp()),
    "Gumbel": lambda z: td.Gumbel(a(z), b(z).exp()),
    "Gumbel by its location": lambda z: td.Gumbel(a(z), fixed(0.5, 1, 2, like=z)),
    "Gumbel by its scale": lambda z: td.Gumbel(fixed(0.5, like=z), b(z).exp()),
    "Weibull": lambda z: td.Weibull(b(z).exp(), c(z).exp()),
    "Weibull by its scale": lambda z: td.Weibull(b(z).exp(), fixed(0.7, 1, 3, like=z)),
    "Weibull by its concentration": lambda z: td.Weibull(fixed(0.5, like=z), c(z).exp()),
    "Pareto": lambda z: td.Pareto(fixed(1.5, like=z), b(z).exp()),
    "VonMises": lambda z: td.VonMises(a(z), b(z).exp()),
    "VonMises by its location": lambda z: td.VonMises(a(z), fixed(0.2, 1, 20, like=z)),
    "VonMises by its concentration": lambda z: td.VonMises(fixed(0.5, like=z), a(z).exp()),
    "MultivariateNormal": lambda z: td.MultivariateNormal(a(z), scale_tril=LOWER.to(z) * c(z)[:, :1, None].exp()),
    "MultivariateNormal by its mean": lambda z: td.MultivariateNormal(a(z), (LOWER @ LOWER.mT).to(z)),
    "LowRankMultivariateNormal": lambda z: td.LowRankMultivariateNormal(a(z), b(z)[..., None], c(z).exp()),
    "ContinuousBernoulli": lambda z: td.ContinuousBernoulli(logits=a(z)),
}
FLAT = {
    *("Bernoulli", "Binomial", "Geometric", "NegativeBinomial", "Poisson", "Categorical", "OneHotCategorical"),
    *("Multinomial", "Exponential", "Gamma by its rate", "Pareto", "HalfNormal", "HalfCauchy"),
    *(name for name in FAMILIES if "location" in name or "mean" in name or "probabilities" in name),
    *("Normal by its scale", "StudentT by its scale", "Gumbel by its scale"),
    *("Weibull by its scale", "Weibull by its concentration"),
}


@dataclass
class Grid:
    """Nodes x and weights of a quadrature, spectrally exact for analytic densities."""

    x: torch.Tensor
    weight: torch.Tensor


def grid(distribution):
    """Where to sum a density over the reals, the positive numbers, the unit interval, the circle or the counts."""
    u = torch.linspace(-40, 40, 3201, dtype=F64)
    support = distribution.support
    if isinstance(distribution, td.VonMises):
        x = torch.linspace(-math.pi, math.pi, 2001, dtype=F64)[:-1]
        return Grid(x, torch.full_like(x, 2 * math.pi / 2000))
    if isinstance(distribution, td.Binomial):
        x = torch.arange(8, dtype=F64)
        return Grid(x, torch.ones_like(x))
    if support.is_discrete:
        x = torch.arange(2 if isinstance(distribution, td.Bernoulli) else 3000, dtype=F64)
        return Grid(x, torch.ones_like(x))
    if isinstance(distribution, td.Beta | td.ContinuousBernoulli):
        x = (0.9 * u).sigmoid()  # never 1
        return Grid(x, 0.0225 * x * (1 - x))
    if isinstance(distribution, td.Pareto):
        return Grid(1.5 + (u / 4 - 8).exp(), 0.00625 * (u / 4 - 8).exp())
    if isinstance(distribution, td.Normal | td.Laplace | td.Cauchy | td.StudentT | td.Gumbel):
        return Grid((u / 2).sinh(), 0.0125 * (u / 2).cosh())
    return Grid((u - 20).exp(), 0.025 * (u - 20).exp())


UNIVARIATE = sorted(
    set(FAMILIES)
    - {name for name in FAMILIES if "Categorical" in name or "Multi" in name or "Dirichlet" in name}
    - {"LogisticNormal", "Pareto", "Laplace", "Laplace by its location"}
)


def score_covariance(f, z, h=1e-4):
    """Sum over outputs of the integral of p (d log p)(d log p)', (d, d), at one point (d,)."""
    steps = h * torch.eye(len(z), dtype=F64)

    def log_prob(z, x):
        p = f(z[None])
        p._validate_args = False  # a binomial grid is wider than a count
        return p.log_prob(x[:, None, None])[:, 0]

    nodes = grid(f(z[None]))
    scores = torch.stack([(log_prob(z + e, nodes.x) - log_prob(z - e, nodes.x)) / (2 * h) for e in steps], -1)
    density = nodes.weight[:, None] * log_prob(z, nodes.x).exp()
    found = torch.isfinite(scores).all(-1) & (density > 1e-30)
    scores, density = torch.where(found[..., None], scores, 0), torch.where(found, density, 0)
    assert torch.allclose(density.sum(0), torch.ones(3, dtype=F64), atol=1e-6)
    return torch.einsum("xk,xki,xkj->ij", density, scores, scores)


def divergence_hessian(f, z, h=1e-4):
    """Second differences of torch's divergence (n, d, d): symmetric ones, so that only even terms count."""

    def both(v):
        with torch.no_grad():
            p = f(z)
            around = kl_divergence(p, f(z + h * v)) + kl_divergence(p, f(z - h * v))
        return around.reshape(len(z), -1).sum(1) / h**2

    e, f_ = torch.eye(2, dtype=F64)
    mixed = (both(e + f_) - both(e - f_)) / 4
    return torch.stack((both(e), mixed, mixed, both(f_)), -1).unflatten(-1, (2, 2))


def has_divergence(f):
    try:
        kl_divergence(f(Z), f(Z + 0.1))
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, f in FAMILIES.items() if has_divergence(f)])
def test_the_metric_is_the_curvature_of_the_divergence(name):
    g, expected = FisherRao(FAMILIES[name]).matrix(Z), divergence_hessian(FAMILIES[name], Z)
    assert torch.allclose(g, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", UNIVARIATE)
def test_the_metric_is_the_covariance_of_the_score(name):
    g = FisherRao(FAMILIES[name]).matrix(Z)
    expected = torch.stack([score_covariance(FAMILIES[name], z) for z in Z])
    assert torch.allclose(g, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_a_torch_divergence_or_a_score_that_the_metric_is_compared_with(name):
    assert has_divergence(FAMILIES[name]) or name in UNIVARIATE or name == "Multinomial"


def test_a_multinomial_is_as_many_categoricals_as_it_has_draws():
    g, one = FisherRao(FAMILIES["Multinomial"]).matrix(Z), FisherRao(FAMILIES["OneHotCategorical"]).matrix(Z)
    assert torch.allclose(g, 5 * one, rtol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_metric_is_positive_and_its_inner_product_is_that_of_the_matrix(name):
    metric, u, v = FisherRao(FAMILIES[name]), Z.flip(0) + 1, Z.flip(1)
    g = metric.matrix(Z)
    assert (torch.linalg.eigvalsh(g) > 0).all()
    assert torch.allclose(metric.inner(Z, u, v), torch.einsum("ni,nij,nj->n", u, g, v), rtol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_metric_is_immersed_exactly_where_a_flat_map_is_known(name):
    metric = FisherRao(FAMILIES[name])
    assert not metric.immersed
    metric.matrix(Z)
    assert metric.immersed == (name in FLAT)
    if metric.immersed:
        plain = Pullback(lambda z: torch.cat(metric.feature_map.parts(z), 1))
        assert torch.allclose(metric.matrix(Z), plain.matrix(Z), rtol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_single_precision_gives_the_same_numbers(name):
    g = FisherRao(FAMILIES[name]).matrix(Z.float())
    expected = FisherRao(FAMILIES[name]).matrix(Z)
    assert g.dtype == torch.float32
    assert torch.allclose(g.double(), expected, rtol=2e-4, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_christoffel_vector_is_that_of_differences_of_the_matrix(name):
    # third derivatives of what the coordinates and their information are made of
    metric, u, v, h = FisherRao(FAMILIES[name]), Z.flip(0) + 1, Z.flip(1), 1e-4
    g, steps = metric.matrix(Z), h * torch.eye(2, dtype=F64)
    slopes = (metric.matrix(Z[:, None] + steps) - metric.matrix(Z[:, None] - steps)) / (2 * h)  # (n, k, i, j)
    lowered = torch.einsum("nkij,nk,nj->ni", slopes, v, u) + torch.einsum("nkij,nk,nj->ni", slopes, u, v)
    lowered = 0.5 * (lowered - torch.einsum("nkij,ni,nj->nk", slopes, u, v))
    expected = torch.linalg.solve(g, lowered)
    size = 1e-5 * (1 + expected.abs().max().item())
    assert torch.allclose(metric.christoffel(Z, u, v), expected, rtol=1e-5, atol=size)


@pytest.mark.parametrize("family", ["bernoulli", "negative binomial", "categorical"])
def test_saturated_outputs_keep_their_small_information_in_single_precision(family):
    logits = torch.tensor([[-60.0], [-30.0], [0.0], [30.0], [60.0]])
    if family == "bernoulli":
        metric, expected = FisherRao(lambda z: td.Bernoulli(logits=z)), (logits.sigmoid() * (-logits).sigmoid())[:, 0]
    elif family == "categorical":
        metric = FisherRao(lambda z: td.Categorical(logits=torch.cat((z, torch.zeros_like(z)), 1)))
        expected = (logits.sigmoid() * (-logits).sigmoid())[:, 0]
    else:
        metric, expected = FisherRao(lambda z: td.NegativeBinomial(2.0, logits=z)), 2 * logits.sigmoid()[:, 0]
    assert torch.allclose(metric.matrix(logits)[:, 0, 0], expected, rtol=1e-4, atol=0)
    assert torch.isfinite(metric.christoffel(logits, torch.ones(1), torch.ones(1))[1:4]).all()
    beyond = torch.tensor([[-400.0], [400.0]])  # their exponentials overflow
    assert torch.allclose(metric.matrix(beyond)[:, 0, 0], torch.tensor([0.0, 2 if family[0] == "n" else 0]))


def test_probabilities_of_zero_and_one_and_categories_that_are_ruled_out_do_no_harm():
    z = torch.tensor([[-200.0], [0.1], [200.0]])
    by_probabilities = FisherRao(lambda z: td.Bernoulli(torch.cat((z, 0.1 * z), 1).sigmoid()))
    ruled_out = FisherRao(lambda z: td.Categorical(logits=torch.cat((z, -z, torch.full_like(z, -torch.inf)), 1)))
    without = FisherRao(lambda z: td.Categorical(logits=torch.cat((z, -z), 1)))
    assert torch.isfinite(by_probabilities.matrix(z)).all()
    assert torch.allclose(ruled_out.matrix(z), without.matrix(z))
    assert torch.isfinite(ruled_out.matrix(z)).all()


@pytest.mark.parametrize("chords", [None, "kl"])
def test_small_probabilities_are_not_cut_off_at_the_precision_of_one(chords):
    # torch clamps probabilities at 1e-7 before it takes logits; a dark pixel would carry no information
    metric = FisherRao(lambda z: td.Bernoulli((z - 25).exp()), chords=chords)
    assert metric.matrix(torch.zeros(1)).item() == pytest.approx(math.exp(-25), rel=1e-4)


@pytest.mark.parametrize("start", [-30.0, 0.0, 30.0])
@pytest.mark.parametrize("make", [td.Poisson, lambda x: td.Bernoulli(logits=x.log()), lambda x: td.Gamma(1 + x, 1.0)])
def test_a_first_point_that_tells_nothing_is_no_reason_to_refuse_a_family(make, start):
    metric = FisherRao(lambda z: make((z + start).exp()), chords="kl")
    assert torch.isfinite(metric.matrix(torch.zeros(1, dtype=F64)))


def test_a_fixed_parameter_that_is_trained_later_is_followed():
    scale = torch.nn.Parameter(torch.ones(3, dtype=F64))
    for f in (lambda z: td.Normal(a(z), scale), lambda z: td.StudentT(scale, a(z), b(z).exp())):
        metric = FisherRao(f)
        metric.matrix(Z)
        with torch.no_grad():
            scale.mul_(3)
        assert torch.allclose(metric.matrix(Z), FisherRao(f).matrix(Z), rtol=1e-12)


def test_the_excess_of_the_trigamma_function_is_exact_from_tiny_to_huge_shapes():
    shapes = torch.logspace(-8, 3, 200, dtype=F64)
    expected = shapes**2 * torch.from_numpy(scipy.special.polygamma(1, shapes.numpy())) - shapes
    assert torch.allclose(excess(shapes), expected, rtol=1e-9)
    assert torch.allclose(excess(torch.tensor([1e-30, 1e8, 1e20])), torch.tensor([1.0, 0.5, 0.5]))
    around = torch.tensor([16 - 1e-9, 16 + 1e-9], dtype=F64)  # where the series takes over
    assert excess(around).diff().abs() < 1e-11


def test_the_ratio_of_bessel_functions_and_its_derivative_are_exact_from_zero_to_huge_concentrations():
    k = torch.logspace(-6, 5, 400, dtype=F64)
    q = k.square().requires_grad_()
    across, turn = bessel_ratio(q)
    expected = torch.from_numpy(scipy.special.ive(1, k.numpy()) / scipy.special.ive(0, k.numpy())) / k
    assert torch.allclose(across, expected, rtol=1e-12)
    (slope,) = torch.autograd.grad(across.sum(), q)
    assert torch.allclose(turn, 2 * slope, rtol=1e-9)
    along = (across + q * turn).detach()  # A', which is 1 / (2 k^2) for large k
    assert (along > 0).all()
    assert along[-1].item() == pytest.approx(0.5e-10, rel=1e-4)
    assert [x.item() for x in bessel_ratio(torch.zeros((), dtype=F64))] == pytest.approx([0.5, -0.125])


def test_a_von_mises_distribution_is_smooth_where_its_concentration_vanishes():
    metric = FisherRao(lambda z: td.VonMises(torch.atan2(z[:, 1], z[:, 0]), torch.linalg.vector_norm(z, dim=1)))
    z = torch.tensor([[1e-9, 1e-9]], dtype=F64)
    assert torch.allclose(metric.matrix(z), 0.5 * torch.eye(2, dtype=F64))
