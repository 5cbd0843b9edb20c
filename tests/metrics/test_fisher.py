import itertools
import math

import pytest
import torch
from torch import distributions as td
from torch import nn

import pullback as pb
from metric_contract import F64, MetricContract
from pullback.chords import chord_energy, chord_length

softplus = nn.functional.softplus


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Heads(nn.Module):
    """A small network with several outputs (n, k), and a distribution of them."""

    def __init__(self, make, k=4, heads=1, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(2, 8), nn.Tanh()).double()
            self.heads = nn.ModuleList(nn.Linear(8, k).double() for _ in range(heads))
        self.make = make

    def forward(self, z):
        x = self.body(z)
        return self.make(*(head(x) for head in self.heads))


def bernoulli(x):
    return td.Independent(td.Bernoulli(logits=x), 1)


def categorical(x):
    return td.Categorical(logits=x)


def normal(x, y):
    return td.Independent(td.Normal(x, softplus(y)), 1)


def gamma(x, y):
    return td.Gamma(softplus(x), softplus(y))


def dirichlet(x):
    return td.Dirichlet(softplus(x))


def von_mises(x, y):
    return td.VonMises(x, softplus(y))


def multivariate_normal(x, y):
    return td.MultivariateNormal(x, scale_tril=torch.diag_embed(softplus(y)))


class TestBernoulli(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(bernoulli))


class TestCategorical(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(categorical))


class TestNormal(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(normal, heads=2))


class TestGamma(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(gamma, heads=2))


class TestDirichlet(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(dirichlet))


class TestVonMises(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(von_mises, heads=2))


class TestMultivariateNormalByItsDivergence(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(multivariate_normal, heads=2, k=2))


class TestGammaWithChordsOfDivergence(MetricContract):
    def metric(self):
        return pb.FisherRao(Heads(gamma, heads=2), chords="kl")


# Closed distances

START, END = torch.tensor([[-1.5, 0.5], [0.3, -0.8], [2, 1]], dtype=F64), torch.tensor([[1, -1.0]], dtype=F64)


def simplex(z):
    """A decoder that reaches every categorical distribution of three outcomes."""
    return td.Categorical(logits=torch.cat((z, torch.zeros_like(z[:, :1])), 1))


def half_plane(z):
    return td.Normal(z[:, 0], z[:, 1].exp())


@pytest.mark.parametrize("chords", [None, "kl"])
def test_geodesics_of_categoricals_are_great_arcs(chords):
    path = pb.geodesic(pb.FisherRao(simplex, chords=chords), START, END)
    p, q = simplex(START).probs, simplex(END).probs
    exact = 2 * torch.arccos((p * q).sqrt().sum(-1))
    assert path.converged.all()
    assert torch.allclose(path.length, exact, rtol=1e-5)
    assert ((path.length - exact).abs() <= path.length_error).all()


@pytest.mark.parametrize("chords", [None, "kl"])
def test_geodesics_of_bernoullis_have_the_lengths_of_their_angles(chords):
    path = pb.geodesic(pb.FisherRao(lambda z: td.Bernoulli(logits=z), chords=chords), START, END)
    angles = [2 * td.Bernoulli(logits=z).probs.sqrt().arcsin() for z in (START, END)]
    assert path.converged.all()
    assert torch.allclose(path.length, torch.linalg.vector_norm(angles[1] - angles[0], dim=-1), rtol=1e-5)


@pytest.mark.parametrize("chords", [None, "kl"])
def test_geodesics_of_normals_are_those_of_the_hyperbolic_half_plane(chords):
    path = pb.geodesic(pb.FisherRao(half_plane, chords=chords), START, END)
    p, q = half_plane(START), half_plane(END)
    ratio = ((p.loc - q.loc) ** 2 / 2 + (p.scale - q.scale) ** 2) / (2 * p.scale * q.scale)
    assert path.converged.all()
    assert torch.allclose(path.length, 2**0.5 * (1 + ratio).arccosh(), rtol=1e-5)


def test_exp_and_log_run_on_a_metric_without_immersion():
    metric = pb.FisherRao(Heads(gamma, heads=2))
    v = pb.log(metric, START[1], END[0])
    assert metric.norm(START[1], v) == pytest.approx(pb.distance(metric, START[1], END[0]).item(), rel=1e-4)
    assert torch.allclose(pb.exp(metric, START[1], v).end, END[0], atol=1e-4)


# The divergence as an energy


def bent(n):
    t = torch.linspace(0, 1, n + 1, dtype=F64)[:, None]
    return torch.cat((t - 0.3, 0.5 * (3 * t).sin()), 1)


DIVERGENT = {
    "categorical": (categorical, 1),
    "normal": (normal, 2),
    "gamma": (gamma, 2),
    "multivariate normal": (multivariate_normal, 2),
    "poisson": (lambda x: td.Poisson(x.exp()), 1),
}


@pytest.mark.parametrize("name", DIVERGENT)
def test_the_sum_of_divergences_tends_to_the_energy_of_the_metric_at_second_order(name):
    make, heads = DIVERGENT[name]
    decoder = Heads(make, heads=heads)
    plain, divergent = pb.FisherRao(decoder), pb.FisherRao(decoder, chords="kl")
    exact = chord_energy(*plain.squared_chords(plain.features(bent(1024))))
    errors, finer = [], []
    for n in (8, 16, 32):
        single, double = divergent.squared_chords(divergent.features(bent(n)))
        errors.append(abs((0.5 * n * single.sum() / exact - 1).item()))
        finer.append(abs((chord_energy(single, double) / exact - 1).item()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([2, 2], abs=0.15)
    assert math.log2(finer[0] / finer[1]) > 3.5  # an even expansion: extrapolated, it is of fourth order


def test_the_divergence_of_near_nodes_does_not_drown_in_rounding_in_single_precision():
    nodes, decoder = bent(512), Heads(normal, heads=2)
    metric = pb.FisherRao(decoder.float(), chords="kl")
    single, _ = metric.squared_chords(metric.features(nodes.float()))
    expected = pb.FisherRao(decoder.double(), chords="kl")
    assert torch.allclose(single.double(), expected.squared_chords(expected.features(nodes))[0], rtol=2e-2)


def test_a_divergence_with_a_crease_still_goes_with_the_smooth_metric():
    # by autograd, |x| has no curvature at zero: torch's divergence of Laplace distributions seems flat in the location
    decoder = Heads(lambda x, y: td.Laplace(x, softplus(y)), heads=2)
    plain, divergent = pb.FisherRao(decoder), pb.FisherRao(decoder, chords="kl")
    assert torch.allclose(plain.matrix(START), divergent.matrix(START), rtol=1e-9)
    energy = chord_energy(*plain.squared_chords(plain.features(bent(256))))
    assert 128 * divergent.squared_chords(divergent.features(bent(256)))[0].sum() == pytest.approx(
        energy.item(), rel=1e-2
    )


# Two peers' defects: sqrt(2 sum KL) as the length, and energies that depend on the batch


@pytest.mark.parametrize("chords", [None, "kl"])
@pytest.mark.parametrize("make", [categorical, normal, gamma])
def test_length_adds_up_along_a_curve_and_stays_when_segments_are_halved(make, chords):
    metric = pb.FisherRao(Heads(make, heads=1 if make is categorical else 2), chords=chords)

    def length(nodes):
        return chord_length(*metric.squared_chords(metric.features(nodes)))

    whole = length(bent(32))
    assert length(bent(32)[:17]) + length(bent(32)[16:]) == pytest.approx(whole.item(), rel=1e-9)
    assert length(bent(64)) == pytest.approx(whole.item(), rel=1e-4)
    assert pb.length(metric, pb.Curve(bent(64))) == pytest.approx(whole.item(), rel=1e-4)


@pytest.mark.parametrize("chords", [None, "kl"])
def test_energy_has_one_entry_a_curve_and_ignores_the_unit_of_the_latent_space(chords):
    decoder = Heads(gamma, heads=2)
    metric = pb.FisherRao(decoder, chords=chords)
    stretched = pb.FisherRao(lambda z: decoder(z / 1000), chords=chords)
    for batch in (1, 3, 4):
        nodes = torch.stack([bent(4) + 0.1 * i for i in range(batch)])
        energy = chord_energy(*metric.squared_chords(metric.features(nodes)))
        assert energy.shape == (batch,)
        alone = chord_energy(*metric.squared_chords(metric.features(nodes[-1])))
        assert torch.allclose(energy[-1], alone, rtol=1e-9)
        other = chord_energy(*stretched.squared_chords(stretched.features(1000 * nodes)))
        assert torch.allclose(other, energy, rtol=1e-8)


# What data say


@pytest.mark.parametrize("make", [gamma, dirichlet, lambda x: td.NegativeBinomial(3.0, logits=x)])
def test_the_metric_is_the_covariance_of_the_score_of_draws(make):
    decoder = Heads(make, heads=2 if make is gamma else 1)
    z, h = torch.tensor([[0.3, -0.2]], dtype=F64), 1e-4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = decoder(z).sample((100_000,))

    def log_prob(z):
        return decoder(z).log_prob(x).reshape(len(x), -1).sum(1).detach()

    steps = h * torch.eye(2, dtype=F64)
    scores = torch.stack([(log_prob(z + e) - log_prob(z - e)) / (2 * h) for e in steps], 1)
    g = pb.FisherRao(decoder).matrix(z)[0]
    assert torch.allclose(scores.T @ scores / len(x), g, rtol=0.03, atol=0.02 * g.abs().max().item())


# What a decoder may return


def test_parameters_and_a_family_are_as_good_as_a_distribution():
    net = Heads(lambda x, y: (x, softplus(y)), heads=2)
    expected = pb.FisherRao(Heads(normal, heads=2)).matrix(START)
    ways = [
        pb.FisherRao(net, td.Normal),
        pb.FisherRao(lambda z: dict(zip(("loc", "scale"), net(z), strict=True)), td.Normal),
        pb.FisherRao(net, family=lambda loc, scale: td.Independent(td.Normal(loc, scale), 1)),
        pb.FisherRao(lambda z: torch.stack(net(z), -1), family=lambda x: td.Normal(x[..., 0], x[..., 1])),
    ]
    for metric in ways:
        assert torch.allclose(metric.matrix(START), expected, rtol=1e-12)


def test_the_first_call_may_come_where_gradients_are_off():
    decoder, z = nn.Linear(2, 3).double(), torch.zeros(1, 2, dtype=F64)

    def make(z):
        return td.Bernoulli(logits=decoder(z))

    with torch.no_grad():
        found = pb.FisherRao(make).matrix(z)
    assert torch.allclose(found, pb.FisherRao(make).matrix(z), rtol=1e-12)


def test_images_of_any_shape_are_summed_over_their_pixels():
    net = Heads(lambda x: x, k=12)
    images = pb.FisherRao(lambda z: td.Independent(td.Bernoulli(logits=net(z).reshape(-1, 3, 2, 2)), 3))
    flat = pb.FisherRao(net, lambda x: td.Bernoulli(logits=x))
    assert torch.allclose(images.matrix(START), flat.matrix(START), rtol=1e-12)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_distribution_of_a_single_number_will_do(heads):
    decoder = (lambda z: td.Poisson(z.sum(-1).exp())) if heads == 1 else (lambda z: td.Normal(z[:, 0], z[:, 1].exp()))
    metric = pb.FisherRao(decoder)
    assert metric.matrix(START).shape == (3, 2, 2)


def test_inner_products_of_very_many_outputs_form_no_matrix_of_them():
    wide = randn(2, 30_000)  # a matrix of 60,000 x 60,000 would take 29 GB
    metric = pb.FisherRao(lambda z: td.Normal(z @ wide, (0.1 * z @ wide).exp()))
    assert metric.norm(START, END).shape == (3,)
    assert metric.squared_chords(metric.features(bent(4)))[0].shape == (4,)


@pytest.mark.parametrize("make", [categorical, gamma, multivariate_normal])
def test_gradients_reach_the_weights_and_agree_with_differences(make):
    decoder = Heads(make, heads=1 if make is categorical else 2, k=3)
    metric, weight = pb.FisherRao(decoder), decoder.heads[0].weight
    z = START.clone().requires_grad_()
    (slope,) = torch.autograd.grad(metric.log_volume(z).sum(), weight)
    change, h = randn(*weight.shape), 1e-6
    values = []
    for step in (h, -2 * h):
        with torch.no_grad():
            weight += step * change
        values.append(metric.log_volume(START).sum().item())
    assert (slope * change).sum().item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_a_family_of_the_users_own_goes_by_the_divergence_that_is_registered_for_it():
    plain = pb.FisherRao(lambda z: td.Poisson(z.exp())).matrix(START)
    assert torch.allclose(pb.FisherRao(lambda z: Counts(z.exp())).matrix(START), plain, rtol=1e-9)
    shared = torch.full((), 2.0, dtype=F64)
    assert torch.allclose(pb.FisherRao(lambda z: Counts(z.exp(), shared)).matrix(START), 2 * plain, rtol=1e-9)


class Counts(td.Distribution):
    """Poisson by another name, with a time of observation that need not have the shape of the batch."""

    arg_constraints = {"intensity": td.constraints.positive, "time": td.constraints.positive}  # noqa: RUF012

    def __init__(self, intensity, time=None, validate_args=None):
        self.intensity = intensity
        self.time = torch.ones_like(intensity) if time is None else time
        super().__init__(intensity.shape, validate_args=validate_args)


@td.register_kl(Counts, Counts)
def _counts(p, q):
    return p.time * (p.intensity * (p.intensity / q.intensity).log() - p.intensity + q.intensity)


# Bad input


class Unknown(td.Distribution):
    arg_constraints = {"x": td.constraints.real}  # noqa: RUF012

    def __init__(self, x):
        self.x = x
        super().__init__(x.shape)


class Rigid(Counts):
    def __init__(self, rate):
        super().__init__(rate)


REFUSED = {
    "Unknown has no known Fisher information: supported are Bernoulli": lambda z: Unknown(z),
    "Uniform has no Fisher information": lambda z: td.Uniform(z, z + 1),
    "Pareto has no Fisher information": lambda z: td.Pareto(z.exp(), 1.0),
    "Wishart has no Fisher information": lambda z: td.Wishart(
        3 + z[:, 0].exp(), torch.eye(2).to(z) * z[:, :1, None].exp()
    ),
    "`total_count` of NegativeBinomial depends on z": lambda z: td.NegativeBinomial(z.exp(), logits=z),
    "`df` of StudentT depends on z": lambda z: td.StudentT(z.exp()),
    "Rigid cannot be made from its parameters intensity, time": lambda z: Rigid(z.exp()),
    r"3 points to a Normal with batch shape \(1,": lambda z: td.Normal(z.sum(0, keepdim=True), 1.0),
    r"Independent with batch shape \(\) and event": lambda z: td.Independent(td.Normal(z, 1.0), 2),
    "carries no gradient": lambda z: td.Normal(z.detach(), 1.0),
    "the decoder returns a Tensor: return a torch.distributions object, or give `family`": lambda z: z,
    "the decoder failed on a point": lambda z: td.Poisson(-z.exp()),
    "mixes the points of a batch": lambda z: td.Normal(z - z.mean(0), 1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_fisher_information_is_refused_with_a_reason(message):
    with pytest.raises(ValueError, match=message.replace("3 points", r"\d points")):
        pb.FisherRao(REFUSED[message]).matrix(START)


@pytest.mark.parametrize("decoder", [lambda z: td.StudentT(3.0, z), lambda z: td.Weibull(z.exp(), (0.1 * z).exp())])
def test_chords_of_divergence_are_refused_where_torch_knows_none(decoder):
    pb.FisherRao(decoder).matrix(START)
    with pytest.raises(ValueError, match="chords='kl' needs a divergence, and torch has none for"):
        pb.FisherRao(decoder, chords="kl").matrix(START)


def test_a_decoder_must_stay_with_one_family():
    seen = []

    def decoder(z):
        return td.Normal(z, 1.0) if not seen else td.Laplace(z, 1.0)

    metric = pb.FisherRao(decoder)
    metric.matrix(START)
    seen.append(1)
    with pytest.raises(ValueError, match="returned a Normal first and a Laplace now"):
        metric.matrix(START)


def test_arguments_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="`family` was given, but the decoder returns a Poisson already"):
        pb.FisherRao(lambda z: td.Poisson(z.exp()), td.Poisson).matrix(START)
    with pytest.raises(ValueError, match=r"`family` failed on the tuple .* TypeError"):
        pb.FisherRao(lambda z: (z, z, z, z, z), td.Normal).matrix(START)
    with pytest.raises(ValueError, match="`family` returns a Tensor"):
        pb.FisherRao(lambda z: z, torch.exp).matrix(START)
    with pytest.raises(ValueError, match="`chords` is 'jeffreys': want 'kl' or None"):
        pb.FisherRao(simplex, chords="jeffreys")
    with pytest.raises(TypeError, match="`family` is a str: give a class of distributions or a function"):
        pb.FisherRao(simplex, family="normal")


def test_outside_of_where_the_decoder_is_finite_the_metric_says_so():
    metric = pb.FisherRao(lambda z: td.Exponential(z, validate_args=False))
    with pytest.raises(ValueError, match="NaN or infinity"):
        metric.matrix(torch.tensor([[1.0, 2.0], [-1.0, 2.0]], dtype=F64))


def test_on_curves_a_distribution_that_does_not_exist_gives_no_number_instead_of_an_error():
    # a solver has other curves to go on with
    decoder = lambda z: td.Gamma(z[:, 0], z[:, 1], validate_args=False)  # noqa: E731
    metric = pb.FisherRao(decoder, chords="kl")
    nodes = torch.tensor([[[1, 2], [2, 2], [3, 2]], [[1, 2], [-1, 2], [-3, 2]]], dtype=F64)
    single, double = metric.squared_chords(metric.features(nodes))
    assert torch.isfinite(single[0]).all()
    assert torch.isfinite(double[0]).all()
    assert not torch.isfinite(single[1]).any()
