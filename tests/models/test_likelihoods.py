import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import pullback as pb
from pullback import datasets
from pullback.datasets import Dataset
from pullback.models import VAE

D64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(n=400, genes=20, seed=0):
    """Negative binomial counts of two cell types with libraries of many sizes; the types."""
    generator = seeded(seed)
    types = torch.arange(n) % 2
    profiles = torch.randn(2, genes, generator=generator).mul(1.5).softmax(1)
    library = 200 * torch.rand(n, 1, generator=generator) + 100
    mean, r = library * profiles[types], 3.0
    # a Poisson variable whose rate is gamma distributed
    shape = torch.full_like(mean, r)
    rate = torch._standard_gamma(shape, generator=generator) * mean / r
    return Dataset(torch.poisson(rate, generator=generator), types, (genes,), "cells"), profiles


def small(likelihood, **options):
    return VAE(5, hidden=(8, 6), likelihood=likelihood, generator=seeded(), **options).double()


def test_log_probabilities_are_those_of_scipy():
    z = torch.randn(7, 2, dtype=D64, generator=seeded())
    x = torch.randint(0, 9, (7, 5), generator=seeded(1)).double()
    binary = (x > 4).double()
    total = x.sum(1)
    gaussian, bernoulli = small("gaussian", output_std=0.3), small("bernoulli")
    poisson, negative = small("poisson"), small("negative_binomial")
    negative.likelihood.log_dispersion.data.copy_(torch.linspace(-1, 1, 5))
    r = np.exp(np.linspace(-1, 1, 5))
    shares = {m: (m.decoder(z).detach() * total[:, None]).numpy() for m in (poisson, negative)}  # library 1 as yet
    wanted = [
        (gaussian, binary, scipy.stats.norm.logpdf(binary, gaussian.decoder(z).detach(), 0.3)),
        (bernoulli, binary, scipy.stats.bernoulli.logpmf(binary, bernoulli.decoder(z).detach())),
        (poisson, x, scipy.stats.poisson.logpmf(x, shares[poisson])),
        (negative, x, scipy.stats.nbinom.logpmf(x, r, r / (r + shares[negative]))),
    ]
    for model, data, terms in wanted:
        found = model.distribution(z, total).log_prob(data)
        assert found.shape == (7,)
        assert torch.allclose(found, torch.as_tensor(terms).sum(1), rtol=1e-9)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson", "negative_binomial"])
def test_the_decoder_gives_the_mean_of_the_distribution(likelihood):
    model = small(likelihood)
    if likelihood in ("poisson", "negative_binomial"):
        model.likelihood.library.fill_(40.0)
    z = torch.randn(7, 2, dtype=D64, generator=seeded())
    assert torch.allclose(model.decoder(z), model.distribution(z).mean, rtol=1e-10)
    assert model.distribution(z).event_shape == (5,)
    assert model.distribution(z[0]).batch_shape == ()


def test_the_variance_of_a_negative_binomial_exceeds_its_mean_by_its_square_over_r():
    model = small("negative_binomial")
    model.likelihood.log_dispersion.data.fill_(0.7)
    model.likelihood.library.fill_(40.0)
    law = model.distribution(torch.ones(1, 2, dtype=D64))
    assert torch.allclose(law.variance, law.mean + law.mean.square() / torch.tensor(0.7, dtype=D64).exp())


def test_counts_are_shares_of_the_library_unless_that_is_not_wanted():
    z = torch.randn(7, 2, dtype=D64, generator=seeded())
    model = small("poisson")
    library = torch.arange(1.0, 8.0, dtype=D64)
    assert torch.allclose(model.distribution(z, library).mean.sum(1), library)
    free = small("poisson", shares=False)
    assert torch.allclose(free.decoder(z), free.decoder[:-1](z).exp())
    assert torch.equal(free.distribution(z, library).mean, free.distribution(z).mean)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "negative_binomial"])
def test_the_loss_is_the_evidence_bound(likelihood):
    model = small(likelihood)
    x = torch.randint(0, 2, (9, 5), generator=seeded(1)).double()
    x[:, 0] = 1
    mean, std = model.encode(x)
    prior = torch.distributions.Normal(0.0, 1.0)
    divergence = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), prior).sum(1)
    z = mean + std * torch.randn(9, 2, dtype=D64, generator=seeded(5))
    for warmup in (0.0, 0.3, 1.0):
        wanted = (warmup * divergence - model.distribution(z, x.sum(1)).log_prob(x)).mean()
        assert torch.allclose(model.loss(x, warmup=warmup, generator=seeded(5)), wanted)


def test_the_encoder_sees_the_logarithm_of_counts():
    model, plain = small("poisson"), small("gaussian")
    x = torch.randint(0, 900, (4, 5), generator=seeded()).double()
    assert torch.equal(model.encode(x)[0], plain.encode(x.log1p())[0])


@pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")  # two types are told apart by one number
@pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")  # two types need one dimension alone
def test_the_profiles_of_two_cell_types_are_found_whatever_their_library():
    data, profiles = counts()
    model = VAE(20, likelihood="negative_binomial").fit(data, epochs=60, batch_size=50, learning_rate=0.01)
    codes = model.encode(data.samples)[0].detach()
    centers = torch.stack([codes[data.labels == k].mean(0) for k in (0, 1)])
    nearest = torch.cdist(codes, centers).argmin(1)
    assert float((nearest == data.labels).double().mean()) > 0.97
    found = model.decoder(centers) / model.likelihood.library
    assert torch.allclose(found, profiles, atol=0.05)
    assert float(model.likelihood.library) == float(data.samples.sum(1).median())
    r = model.likelihood.log_dispersion.detach().exp()
    assert 1.5 < float(r.median()) < 6  # 3


@pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")
def test_overdispersed_counts_are_better_explained_by_a_negative_binomial():
    data, _ = counts()
    bounds = []
    for likelihood in ("poisson", "negative_binomial"):
        model = VAE(20, likelihood=likelihood).fit(data, epochs=40, batch_size=50, learning_rate=0.01)
        bounds.append(model.loss(data.samples, generator=seeded()).item())
    assert bounds[1] < bounds[0] - 5  # nats a cell


@pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson", "negative_binomial"])
def test_the_information_metric_is_that_of_the_mean_and_geodesics_run(likelihood):
    data, _ = counts(100)
    if likelihood in ("gaussian", "bernoulli"):
        data = Dataset((data.samples > 3).float(), data.labels, (20,), "binary")
    model = VAE(20, likelihood=likelihood, output_std=0.3).fit(data, epochs=10, learning_rate=0.01).double()
    metric = pb.FisherRao(model.distribution)
    z = torch.tensor([[-0.4, 0.2], [0.5, 0.1]], dtype=D64)
    mean, j = model.decoder(z), torch.func.vmap(torch.func.jacrev(model.decoder))(z)
    r = model.likelihood.log_dispersion.exp() if likelihood == "negative_binomial" else None
    fisher = {
        "gaussian": lambda: torch.full_like(mean, 0.3**-2),
        "bernoulli": lambda: 1 / (mean * (1 - mean)),
        "poisson": lambda: 1 / mean,
        "negative_binomial": lambda: 1 / (mean + mean.square() / r),
    }[likelihood]()
    wanted = torch.einsum("nDi,nD,nDj->nij", j, fisher, j)
    assert torch.allclose(metric.matrix(z), wanted, rtol=1e-6)
    assert bool(pb.geodesic(metric, z[0], z[1]).converged)


def test_an_unknown_likelihood_or_spread_is_refused():
    with pytest.raises(ValueError, match="`likelihood` is 'cauchy': wanted one of gaussian, bernoulli, poisson"):
        VAE(3, likelihood="cauchy")
    for std in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"`output_std` is {std}: wanted a positive number"):
            VAE(3, output_std=std)


CELLS = Path(os.environ.get("PULLBACK_DATA", "")) / "singlecell" / "pbmc68k_reduced.npz"


@pytest.mark.slow
@pytest.mark.skipif(not CELLS.is_file(), reason="PULLBACK_DATA has no single cells")
def test_blood_cells_of_a_type_lie_together_and_simulated_counts_have_as_many_zeros():
    with np.load(CELLS) as file:
        x, labels = torch.from_numpy(file["counts"].astype(np.float32)), torch.from_numpy(file["bulk_label"]).long()
    data = Dataset(x, labels, (x.shape[1],), "blood")
    model = VAE(x.shape[1], likelihood="negative_binomial").fit(data, epochs=100, batch_size=64, learning_rate=5e-3)
    codes = model.encode(x)[0].detach()
    distances = torch.cdist(codes, codes).fill_diagonal_(float("inf"))
    nearest = labels[distances.topk(10, largest=False).indices].mode(1).values
    assert float((nearest == labels).double().mean()) > 0.7  # the most frequent type has 0.34
    with torch.random.fork_rng():
        torch.manual_seed(0)
        simulated = model.distribution(codes, x.sum(1)).sample()
    assert float((simulated == 0).double().mean()) == pytest.approx(float((x == 0).double().mean()), abs=0.02)
    metric = pb.Pullback(model.double().decoder)
    pairs = codes.double()[torch.randint(700, (2, 6), generator=seeded())]
    assert bool(pb.geodesic(metric, *pairs).converged.all())


def test_digits_as_binary_images_are_learned_by_a_bernoulli_decoder():
    data = datasets.digits()
    binary = Dataset((data.samples > 0.5).float(), data.labels, (8, 8), "binary")
    model = VAE(64, likelihood="bernoulli").fit(binary, epochs=25, batch_size=64, learning_rate=5e-3)
    codes = model.encode(binary.samples)[0]
    bits = -model.distribution(codes).log_prob(binary.samples).mean().detach()
    p = binary.samples.mean(0).clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    assert float(bits) < 0.75 * float(entropy)  # of pixels on their own
