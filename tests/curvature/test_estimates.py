"""Scalar curvature by random planes: unbiased, with honest errors, cheap."""

import pytest
import torch

import pullback as pb
from pullback import curvature
from small import Bowl, mlp, randn


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("d", "value"), [(2, 2.0), (5, 20.0), (10, 90.0), (40, 1560.0)])
def test_on_a_sphere_every_plane_tells_all(d, value):
    found, error = curvature.scalar(pb.Pullback(pb.surfaces.Sphere()), 0.5 * randn(3, d) / d**0.5, n_probes=8)
    assert (error < 1e-9 * value).all()
    assert ((found - value).abs() < 1e-9 * value).all()


@pytest.mark.parametrize(
    "metric", [pb.Pullback(mlp(6, 20)), pb.Conformal(pb.Pullback(mlp(6, 20)), lambda z: (z**2).sum(-1).exp())]
)
def test_estimates_lie_about_the_exact_value_as_their_errors_say(metric):
    # 200 points at once are 200 repeats: each is drawn planes of its own
    z = randn(1, 6).expand(200, 6)
    exact = curvature.scalar(metric, z[:1])
    value, error = curvature.scalar(metric, z, n_probes=64, generator=seeded(1))
    off = (value - exact) / error
    assert 0.90 <= float((off.abs() < 1.96).double().mean()) <= 0.99
    mean, spread = value.mean(), value.std() / 200**0.5
    assert (mean - exact).abs() < 3 * spread  # no bias
    assert torch.allclose(error.square().mean().sqrt(), value.std(), rtol=0.2)


def test_the_error_falls_with_the_root_of_the_number_of_probes():
    metric, z = pb.Pullback(mlp(8, 20)), randn(1, 8)
    few, many = (curvature.scalar(metric, z, n_probes=n).error for n in (100, 1600))
    assert 0.7 < float(few / many) / 4 < 1.4


def test_estimates_are_the_same_for_the_same_generator_whatever_the_memory():
    f, z = mlp(5, 20), randn(7, 5)
    whole, small = pb.Pullback(f), pb.Pullback(f, memory=1)
    one, again, other = (curvature.scalar(whole, z, n_probes=9, generator=seeded(k)).value for k in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.allclose(curvature.scalar(small, z, n_probes=9, generator=seeded(1)).value, one, rtol=1e-9)
    assert torch.equal(curvature.scalar(whole, z, n_probes=9).value, curvature.scalar(whole, z, n_probes=9).value)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    curvature.scalar(pb.Pullback(mlp(5)), randn(2, 5), n_probes=4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_plane_costs_six_evaluations_beside_the_jacobian(counting):
    d, n = 30, 16
    counter = counting(mlp(d, 60, width=50))
    metric = pb.Pullback(counter)
    metric.features(randn(1, d))
    counter.reset()
    curvature.scalar(metric, randn(1, d), n_probes=n)
    assert counter.reset() <= (d + 3) + 6 * n + 10


def test_no_matrix_is_differentiated_for_metrics_without_an_immersion(monkeypatch):
    monkeypatch.setattr("pullback.curvature.tensors._matrix_jet", None)
    value, error = curvature.scalar(pb.MatrixField(Bowl()), randn(2, 18), n_probes=4)
    assert value.isfinite().all()
    assert (error > 0).all()


@pytest.mark.parametrize("n_probes", [0, 1, 2.5, -3])
def test_too_few_probes_are_refused(n_probes):
    with pytest.raises(ValueError, match=rf"`n_probes` is {n_probes}: want an integer, 2 or more"):
        curvature.scalar(pb.Pullback(mlp()), randn(2), n_probes=n_probes)
