"""Decoders with creases: refused at a point, measured at a scale."""

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import curvature
from small import F64, mlp, randn, tilt

CREASED = {
    "relu": mlp(activation=nn.ReLU),
    "leaky": mlp(activation=nn.LeakyReLU),
    "relu6": mlp(activation=nn.ReLU6),
    "prelu": mlp(activation=nn.PReLU),
    "relu, then smooth": nn.Sequential(mlp(activation=nn.ReLU), nn.Sigmoid()),
    "functional": lambda z: torch.relu(z @ randn(2, 5)) @ randn(5, 4, seed=1),
}
UNNAMED = {  # no operator gives them away
    "clamp": lambda z: (z @ randn(2, 5)).clamp_min(0) @ randn(5, 4, seed=1),
    "where": lambda z: torch.where(z > 0, z, 0.1 * z) @ randn(2, 4),
    "abs": lambda z: (z @ randn(2, 5)).abs(),
}


@pytest.mark.parametrize("kind", CREASED)
def test_decoders_with_creases_are_refused_with_the_operator_and_the_way_out(kind):
    metric, z = pb.Pullback(CREASED[kind]), randn(3, 2)
    message = r"creases \((\w+) is among its operators\).*curvature at a point means nothing.*Give scale=.*smooth"
    for work in (curvature.gaussian, curvature.riemann, curvature.christoffel, curvature.mean_curvature):
        with pytest.raises(ValueError, match=message):
            work(metric, z)
    with pytest.raises(ValueError, match=message):
        curvature.sectional(metric, z, *torch.eye(2, dtype=F64))
    with pytest.raises(ValueError, match=message):
        curvature.scalar(metric, z, n_probes=4)


@pytest.mark.parametrize("kind", UNNAMED)
def test_a_map_that_is_linear_in_pieces_is_refused_whatever_it_is_made_of(kind):
    with pytest.raises(ValueError, match=r"creases .it is linear in pieces."):
        curvature.gaussian(pb.Pullback(UNNAMED[kind]), randn(3, 2))


@pytest.mark.parametrize("f", [CREASED["relu"], UNNAMED["clamp"]])
def test_a_decoder_inside_another_metric_is_looked_at_too(f):
    metric, z = pb.Pullback(f), randn(3, 2)
    for around in (
        pb.Conformal(metric, tilt),
        metric + pb.LocalVariance(randn(9, 2), bandwidth=0.5, floor=0.1),
        2.0 * pb.Conformal(metric, tilt),
        pb.Pullback(pb.Gaussian(f, lambda z: mlp()(z)[:, :1].exp())),  # a smooth part beside it
        pb.Pullback(f, ambient=pb.Conformal(pb.Pullback(nn.Identity()), lambda x: x[:, 0].exp())),
    ):
        with pytest.raises(ValueError, match="the decoder has creases"):
            curvature.gaussian(around, z)


def test_smooth_and_linear_decoders_are_not_refused():
    z = randn(3, 2)
    for f in (nn.Identity(), nn.Linear(2, 5, dtype=F64), mlp(activation=nn.ELU), mlp(activation=nn.Softplus)):
        assert curvature.gaussian(pb.Pullback(f), z).isfinite().all()
    assert curvature.gaussian(pb.Pullback(nn.Linear(2, 5, dtype=F64)), z).abs().max() < 1e-12


def test_a_crease_that_only_weights_go_through_does_not_matter():
    weight = randn(2, 5).requires_grad_()
    found = curvature.gaussian(pb.Pullback(lambda z: torch.tanh(z @ torch.relu(weight)) @ randn(5, 4)), randn(3, 2))
    assert found.isfinite().all()


def test_a_decoder_that_saturates_is_not_taken_for_creased():
    # far off, its second derivative is zero in floating point, and so is the first
    far = torch.tensor([[60.0, -60.0]], dtype=F64)
    f = pb.Gaussian(mlp(activation=nn.Softplus), lambda z: torch.exp(-z.square().sum(-1, keepdim=True)) + 1)
    assert curvature.gaussian(pb.Pullback(f), far).isfinite().all()


def test_at_a_scale_a_smooth_decoder_has_its_curvature_to_second_order():
    metric, z = pb.Pullback(mlp()), randn(5, 2)
    exact = curvature.gaussian(metric, z)
    coarse, fine = ((curvature.gaussian(metric, z, scale=h) - exact).abs().max() for h in (0.02, 0.01))
    assert fine < 1e-3
    assert 3.5 < float(coarse / fine) < 4.5
    u, v = randn(5, 2, seed=1), randn(5, 2, seed=2)
    for work in (
        lambda **scale: curvature.sectional(metric, z, u, v, **scale),
        lambda **scale: curvature.mean_curvature(metric, z, **scale),
        lambda **scale: curvature.second_fundamental_form(metric, z, u, v, **scale),
        lambda **scale: curvature.christoffel(metric, z, **scale),
        lambda **scale: curvature.scalar(metric, z, n_probes=5, **scale).value,
    ):
        assert torch.allclose(work(scale=1e-3), work(), rtol=1e-3, atol=1e-5)


def test_a_sphere_of_facets_has_the_curvature_of_the_sphere_at_a_scale_above_its_facets():
    # bilinear facets of side 0.02; between the creases f'' sees a hyperbolic paraboloid of its own
    sphere, side = pb.surfaces.Sphere(), 0.02

    def faceted(z):
        low = (z / side).floor()
        part = (z / side - low)[:, :, None]
        corner = [[sphere(side * (low + torch.tensor([i, j]).to(z))) for j in (0, 1)] for i in (0, 1)]
        left, right = ((1 - part[:, 1]) * row[0] + part[:, 1] * row[1] for row in corner)
        return (1 - part[:, 0]) * left + part[:, 0] * right

    z = 0.3 * randn(20, 2)
    k = curvature.gaussian(pb.Pullback(faceted), z, scale=0.3)
    smooth = curvature.gaussian(pb.Pullback(sphere), z, scale=0.3)
    assert torch.allclose(k, smooth, atol=0.05)
    assert (curvature.gaussian(pb.Pullback(faceted), z) - 1).abs().min() > 0.5  # at a point it is not


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_is_positive(scale):
    with pytest.raises(ValueError, match=r"`scale` is .*: want a positive, finite number"):
        curvature.gaussian(pb.Pullback(mlp()), randn(2), scale=scale)


def test_a_scale_needs_a_map_into_euclidean_space():
    with pytest.raises(ValueError, match="`scale` was given, but the metric is not that of a map"):
        curvature.gaussian(pb.surfaces.PoincareBall(), 0.1 * randn(2), scale=0.1)


def test_at_a_scale_nothing_is_differentiated():
    def rounded(z):  # no useful derivative, but values
        return torch.sin(z @ randn(2, 5)) + 0 * z[:, :1]

    class OnlyForward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return rounded(z)

        @staticmethod
        def backward(ctx, w):
            raise AssertionError("a derivative was taken")

    metric = pb.Pullback(rounded)
    metric.features(randn(1, 2))
    metric.feature_map.decoder = OnlyForward.apply
    assert curvature.gaussian(metric, randn(3, 2), scale=0.05).isfinite().all()
