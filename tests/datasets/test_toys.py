import numpy as np
import pytest
import torch

from pullback.datasets import noisy_surface, two_clusters

TOYS = [two_clusters, noisy_surface, lambda n, **options: two_clusters(n, shape="moons", **options)]


@pytest.mark.parametrize("toy", TOYS)
def test_a_seed_gives_the_same_samples_and_leaves_the_global_state_alone(toy):
    state = torch.get_rng_state()
    first, again, other = toy(50, seed=1), toy(50, seed=1), toy(50, seed=2)
    assert torch.equal(first.samples, again.samples)
    assert not torch.equal(first.samples, other.samples)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("n", [2, 7, 300])
def test_there_are_as_many_samples_as_asked_for(toy, n):
    assert toy(n).samples.shape == (n, 3)


@pytest.mark.parametrize("shape", ["blobs", "moons"])
def test_clusters_are_of_equal_size_and_apart(shape):
    data = two_clusters(401, shape=shape, noise=0.01)
    assert data.labels.bincount().tolist() == [201, 200]
    distances = torch.cdist(data.samples, data.samples).fill_diagonal_(torch.inf)
    same = data.labels[distances.argmin(1)] == data.labels
    assert same.float().mean() > 0.99


@pytest.mark.parametrize("shape", ["blobs", "moons"])
def test_the_lift_is_the_formula_and_bends_in_every_dimension(shape):
    x = two_clusters(200, shape=shape, n_features=6, noise=0).samples.double()
    for k in range(4):
        along = x[:, 0] * np.cos(k) + x[:, 1] * np.sin(k)
        assert torch.allclose(x[:, 2 + k], 0.5 * torch.sin(k + 1.5 * along), atol=1e-6)
        plane = torch.cat((x[:, :2], torch.ones(200, 1, dtype=torch.float64)), 1)
        flat = plane @ torch.linalg.lstsq(plane, x[:, 2 + k : 3 + k]).solution
        assert (x[:, 2 + k : 3 + k] - flat).norm() > 0.15 * x[:, 2 + k].norm()


def test_blobs_and_moons_lie_where_the_docstring_says():
    blobs = two_clusters(20_000, n_features=2, noise=0)
    left = blobs.samples[blobs.labels == 0]
    assert torch.allclose(left.mean(0), torch.tensor([-1.5, 0.0]), atol=0.03)
    assert torch.allclose(left.std(0), torch.tensor([0.5, 0.5]), atol=0.02)
    moons = two_clusters(400, shape="moons", n_features=2, noise=0)
    for side, sign in ((0, 1), (1, -1)):
        radius = (sign * moons.samples[moons.labels == side] + torch.tensor([0.5, 0.25])).norm(dim=1)
        assert torch.allclose(radius, torch.ones(200), atol=1e-6)


def test_noise_has_the_deviation_that_was_asked_for():
    noisy, clean = (two_clusters(5000, noise=noise).samples for noise in (0.1, 0.0))
    assert torch.allclose((noisy - clean).std(0), torch.full((3,), 0.1), atol=0.004)
    noisy, clean = (noisy_surface(5000, noise=noise).samples for noise in (0.1, 0.0))
    assert torch.equal(noisy[:, :2], clean[:, :2])
    assert float((noisy - clean)[:, 2].std()) == pytest.approx(0.1, abs=0.004)


def test_the_surface_is_a_wave_over_a_square_with_a_hole():
    x = noisy_surface(4000, noise=0).samples
    assert torch.allclose(x[:, 2], 0.25 * torch.sin(2 * torch.pi * x[:, 0]), atol=1e-6)
    assert x[:, :2].abs().max() <= 0.5
    assert x[:, :2].norm(dim=1).min() >= 0.2
    # uniform outside of the hole: a quarter of the square has its share of the area
    share = float(((x[:, :2] > 0.25).all(1)).float().mean())
    assert share == pytest.approx(0.0625 / (1 - torch.pi * 0.04), abs=0.015)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_clusters(1), "`n` is 1: want an integer, 2 or more"),
        (lambda: two_clusters(10, n_features=1), "`n_features` is 1"),
        (lambda: two_clusters(10, shape="rings"), "`shape` is 'rings': wanted one of blobs, moons"),
        (lambda: two_clusters(10, noise=-1), "`noise` is -1"),
        (lambda: two_clusters(10, noise=float("nan")), "`noise` is nan"),
        (lambda: noisy_surface(0), "`n` is 0"),
        (lambda: noisy_surface(10, noise=float("inf")), "`noise` is inf"),
        (lambda: noisy_surface(10, hole=0.8), r"`hole` is 0\.8: wanted a radius from 0 to 0\.65"),
        (lambda: noisy_surface(10, hole=-0.1), r"`hole` is -0\.1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
