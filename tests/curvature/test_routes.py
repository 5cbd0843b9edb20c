"""Gauss' equation and derivatives of the matrix lead to the same tensor, which has the symmetries that it must."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from pullback import curvature
from small import Bowl, mlp, randn


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.SiLU])
@pytest.mark.parametrize("d", [2, 3, 5])
def test_both_routes_give_one_tensor_on_smooth_decoders(d, activation):
    metric = pb.Pullback(mlp(d, 11, activation=activation, seed=d))
    other, z = pb.MatrixField(metric.matrix), randn(3, d)
    by_gauss, by_matrix = curvature.riemann(metric, z), curvature.riemann(other, z)
    assert torch.allclose(by_gauss, by_matrix, rtol=0, atol=1e-9 * float(by_gauss.abs().max()))
    u, v = randn(3, d, seed=1), randn(3, d, seed=2)
    assert torch.allclose(curvature.sectional(metric, z, u, v), curvature.sectional(other, z, u, v), rtol=1e-8)


IMMERSED = {
    "gaussian": lambda f, g: pb.Pullback(pb.Gaussian(f, lambda z: g(z).exp())),
    "ensemble": lambda f, g: pb.Pullback(pb.Ensemble([f, g], weight=3.0)),
    "features": lambda f, g: pb.Pullback(f, features=torch.sin),
    "likelihood": lambda f, g: pb.FisherRao(f, lambda x: torch.distributions.Bernoulli(logits=x)),
    "scaled likelihood": lambda f, g: 2.0 * pb.FisherRao(f, lambda x: torch.distributions.Bernoulli(logits=x)),
    "sum": lambda f, g: pb.Pullback(f) + pb.FisherRao(g, lambda x: torch.distributions.Categorical(logits=x)),
}


@pytest.mark.parametrize("kind", IMMERSED)
def test_every_immersed_metric_takes_the_gauss_route_and_gets_what_its_matrix_says(kind, monkeypatch):
    metric, z = IMMERSED[kind](mlp(), mlp(seed=1)), randn(4, 2)
    by_matrix = curvature.gaussian(pb.MatrixField(metric.matrix), z)
    monkeypatch.setattr("pullback.curvature.tensors._matrix_jet", None)  # the other route
    assert torch.allclose(curvature.gaussian(metric, z), by_matrix, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    "metric",
    [
        pb.Pullback(mlp(), ambient=pb.MatrixField(Bowl())),
        pb.FisherRao(lambda z: torch.distributions.Normal(mlp()(z), mlp(seed=1)(z).exp())),
        pb.LocalVariance(randn(30, 2), bandwidth=0.7, floor=0.05),
    ],
)
def test_metrics_without_an_immersion_have_the_curvature_that_differences_of_their_matrix_show(metric):
    # the formula of Brioschi, with derivatives by central differences
    h, z = 1e-3, randn(1, 2)[0]
    offsets = torch.tensor([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)], dtype=z.dtype)
    g = metric.matrix(z + h * offsets).reshape(3, 3, 2, 2)
    d_u, d_v = (g[2, 1] - g[0, 1]) / (2 * h), (g[1, 2] - g[1, 0]) / (2 * h)
    uu, vv = (g[2, 1] - 2 * g[1, 1] + g[0, 1]) / h**2, (g[1, 2] - 2 * g[1, 1] + g[1, 0]) / h**2
    uv = (g[2, 2] - g[2, 0] - g[0, 2] + g[0, 0]) / (4 * h**2)
    e, f, q = g[1, 1][0, 0], g[1, 1][0, 1], g[1, 1][1, 1]
    corner = -vv[0, 0] / 2 + uv[0, 1] - uu[1, 1] / 2
    one = [corner, d_u[0, 0] / 2, d_u[0, 1] - d_v[0, 0] / 2, d_v[0, 1] - d_u[1, 1] / 2, e, f, d_v[1, 1] / 2, f, q]
    two = [0 * e, d_v[0, 0] / 2, d_u[1, 1] / 2, d_v[0, 0] / 2, e, f, d_u[1, 1] / 2, f, q]
    first, second = (torch.stack(rows).reshape(3, 3).det() for rows in (one, two))
    exact = (first - second) / (e * q - f**2) ** 2
    assert torch.allclose(curvature.gaussian(metric, z), exact, rtol=1e-3, atol=1e-5)


def test_a_table_of_a_metric_has_its_curvature_but_for_the_table_s_error():
    metric = pb.Pullback(mlp())
    table = pb.Tabulated(metric, torch.tensor([[-2.0, 2.0], [-2.0, 2.0]], dtype=torch.float64))
    z = 0.5 * randn(10, 2)
    assert torch.allclose(curvature.gaussian(table, z), curvature.gaussian(metric, z), atol=5e-3)


def tensors(d, seed, immersed):
    metric = (
        pb.Pullback(mlp(d, 9, seed=seed)) if immersed else pb.Conformal(pb.MatrixField(Bowl()), mlp_factor(d, seed))
    )
    return metric, curvature.riemann(metric, randn(2, d, seed=seed))


def mlp_factor(d, seed):
    f = mlp(d, 1, seed=seed)
    return lambda z: f(z)[:, 0].exp()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_the_tensor_has_its_symmetries_and_obeys_the_first_bianchi_identity(d, seed, immersed):
    _metric, r = tensors(d, seed, immersed)
    size = 1e-8 * max(1.0, float(r.abs().max()))
    for other in (
        -r.transpose(1, 2),  # R_jikl = -R_ijkl
        -r.transpose(3, 4),  # R_ijlk = -R_ijkl
        r.permute(0, 3, 4, 1, 2),  # R_klij = R_ijkl
    ):
        assert (r - other).abs().max() < size
    cyclic = r + r.permute(0, 1, 3, 4, 2) + r.permute(0, 1, 4, 2, 3)  # over j, k, l
    assert cyclic.abs().max() < size


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 4), st.integers(0, 10**6))
def test_ricci_and_scalar_are_contractions_and_means_over_planes(d, seed):
    metric, r = tensors(d, seed, True)
    z = randn(2, d, seed=seed)
    inverse = torch.linalg.inv(metric.matrix(z))
    ricci = torch.einsum("nik,nijkl->njl", inverse, r)
    assert torch.allclose(curvature.ricci(metric, z), ricci, rtol=1e-7, atol=1e-8)
    assert torch.allclose(curvature.scalar(metric, z), (inverse * ricci).sum((1, 2)), rtol=1e-7, atol=1e-8)
    frame = torch.linalg.cholesky(inverse)  # orthonormal columns
    planes = [
        curvature.sectional(metric, z, frame[..., i], frame[..., j]) for i in range(d) for j in range(d) if i != j
    ]
    assert torch.allclose(torch.stack(planes).sum(0), curvature.scalar(metric, z), rtol=1e-6, atol=1e-7)
