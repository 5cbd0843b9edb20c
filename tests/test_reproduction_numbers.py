"""What paper_repro/latent_space_oddity measures by: scores, smoothness, likelihoods, against closed forms."""

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pullback as pb

FOLDER = Path(__file__).parents[1] / "paper_repro" / "latent_space_oddity"
MODULES = ("clusters", "smoothness", "marginal", "variance", "near_and_far", "sensitivity")
NEEDED = ("context", "results", "zero_one", "motion")


@pytest.fixture
def module(monkeypatch):
    """A function that imports a module of the folder; none of them stays imported."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in (*MODULES, *NEEDED):
        sys.modules.pop(name, None)


def test_scores_of_clusters_are_those_of_a_table_by_hand(module):
    scores = module("clusters").scores
    classes = np.repeat([0, 1, 2], 10)
    assert scores(np.repeat([2, 0, 1], 10), classes) == pytest.approx((1, 1, 1, 1))  # names do not matter
    f, accuracy, rand, information = scores(np.zeros(30, dtype=np.int64), classes)
    assert f == pytest.approx(0.5)  # precision 1/3, recall 1
    assert accuracy == pytest.approx(1 / 3)
    assert (rand, information) == pytest.approx((0, 0))
    moved = np.repeat([0, 1, 2], 10)
    moved[:4] = 1  # precision 1 and 10/14, recall 6/10 and 1
    assert scores(moved, classes)[0] == pytest.approx((2 * 0.6 / 1.6 + 2 * (10 / 14) / (1 + 10 / 14) + 1) / 3)
    assert scores(moved, classes)[1] == pytest.approx(26 / 30)


def test_points_in_no_cluster_count_as_wrong(module):
    clusters = np.repeat([0, 1], 10)
    clusters[:5] = -1
    f, accuracy, *_ = module("clusters").scores(clusters, np.repeat([0, 1], 10))
    assert accuracy == pytest.approx(0.75)
    assert f == pytest.approx((2 * 0.5 / 1.5 + 1) / 2)


def test_subsets_are_disjoint_and_have_as_many_of_each_class(module):
    labels = torch.arange(60) % 3
    chosen = module("clusters").subsets(labels, 4, 5)
    assert len(torch.cat(chosen).unique()) == 60
    assert all(labels[rows].bincount().tolist() == [5, 5, 5] for rows in chosen)


def test_jumps_and_correlations_of_frames_are_those_of_a_step_and_of_an_even_change(module):
    smoothness = module("smoothness")
    even = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    step = torch.tensor([0.0, 0, 0, 1, 1], dtype=torch.float64)[:, None]
    assert smoothness.jump(torch.stack((even, step))).tolist() == pytest.approx([1, 4])
    assert smoothness.weakest_link(step).item() == pytest.approx(-1)
    turned = torch.linspace(0, 2 * math.pi, 9, dtype=torch.float64)[:-1]  # once around, the mean frame is the middle
    around = torch.stack((turned.cos(), turned.sin()), -1)
    assert torch.allclose(smoothness.correlations(around), (turned[:, None] - turned).cos())
    assert smoothness.stray(even[None], torch.tensor([[0.0], [1.0]])).item() == pytest.approx(0.5)


def test_likelihoods_of_a_linear_decoder_are_those_of_its_normal_distribution(module):
    # x = W z + b + noise: N(b, W W' + s^2), by quadrature, by samples of the prior, by importance sampling
    marginal, variance = module("marginal"), module("variance")
    generator = torch.Generator().manual_seed(0)
    w, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 2), (5,)))
    constant = torch.nn.Linear(2, 5, dtype=torch.float64).requires_grad_(False)
    constant.weight.zero_()
    constant.bias.fill_(math.log(math.expm1(0.5)))  # softplus gives a variance of 0.5
    model = variance.StandardVariance(constant, reads="variance")
    x = b + torch.randn(20, 2, generator=generator, dtype=torch.float64) @ w.T
    exact = torch.distributions.MultivariateNormal(b, w @ w.T + 0.5 * torch.eye(5, dtype=torch.float64)).log_prob(x)

    def decoder(z):
        return z @ w.T + b

    by_grid, best = marginal.log_likelihood(x, decoder, model, 0.0, *marginal.quadrature(6.0, 120))
    assert torch.allclose(by_grid, exact, atol=1e-6)
    by_prior, _ = marginal.log_likelihood(x, decoder, model, 0.0, *marginal.prior_samples(20_000, 1))
    assert float((by_prior - exact).abs().median()) < 0.05  # far in the tail of the prior samples are few
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / 0.5
    posterior = (x - b) @ w / 0.5 @ torch.linalg.inv(precision)
    assert torch.allclose(marginal.quadrature(6.0, 120)[0][best], posterior, atol=0.1)
    proposal = (posterior, torch.full_like(posterior, 1.5 * float(torch.linalg.inv(precision).diagonal().max().sqrt())))
    by_importance = marginal.by_importance(x, proposal, decoder, model, 0.0, n=4000, seed=2)
    assert torch.allclose(by_importance, exact, atol=0.1)


def test_triples_have_b_near_the_border_and_a_far_away_in_its_class(module):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    labels = (codes[:, 0] > 0).long()
    model = SimpleNamespace(codes=codes, labels=labels)
    a, b, c = module("near_and_far").triples(model, 20, 0.3, 2.0, seed=1)
    of_a, of_b, of_c = (labels[torch.cdist(points, codes).argmin(1)] for points in (a, b, c))
    assert of_b.bincount().tolist() == [10, 10]
    assert torch.equal(of_a, of_b)
    assert torch.equal(of_c, 1 - of_b)
    assert ((a - b).norm(dim=1) > 2 * (b - c).norm(dim=1)).all()
    nearest = torch.cdist(codes, codes).masked_fill(labels[:, None] == labels, torch.inf).amin(1)
    gap_a, gap_b = (nearest[torch.cdist(points, codes).argmin(1)] for points in (a, b))
    assert torch.allclose(gap_b, (b - c).norm(dim=1))  # C is the nearest of the other class
    assert (gap_a > 2 * gap_b).all()
    assert gap_b.max() < nearest.quantile(0.35)


def test_another_floor_changes_nothing_but_the_floor(module):
    rbf = pb.models.RBFPrecision(torch.zeros(1, 2), torch.ones(1), 3, zeta=1e-10)
    rbf.weight.data.fill_(4.0)
    other = module("sensitivity").with_floor(rbf, 1e-2)
    near, far = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), 9.0, dtype=torch.float64)
    assert torch.allclose(other(near), rbf(near), rtol=1e-2)
    assert other(far).tolist() == [pytest.approx([10.0] * 3)]
