"""Metrics of the output space, and maps behind the decoder."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import pullback as pb
from metric_contract import F64, MetricContract
from pullback.metrics import Metric
from small import Bowl, Diagonal, mlp, randn


class TestAmbientMatrixField(MetricContract):
    def metric(self):
        return pb.Pullback(mlp(n_features=3), ambient=pb.MatrixField(Bowl()))


class TestAmbientByInnerProducts(MetricContract):
    d = 3

    def metric(self):
        return pb.Pullback(pb.Gaussian(mlp(3, 4), nn.Sequential(mlp(3, 4, seed=1), nn.Softplus())), ambient=Diagonal(8))


class TestFeatures(MetricContract):
    def metric(self):
        return pb.Pullback(nn.Sequential(mlp(), nn.Unflatten(1, (1, 7))), features=nn.Tanh())


def explicit(f, z):
    """J (n, D, d) row by row, the slow way."""
    return torch.stack([torch.autograd.functional.jacobian(lambda y: f(y[None])[0], point) for point in z])


def test_the_matrix_with_an_ambient_metric_is_the_explicit_product():
    # the names are those of the formula: G = J'HJ
    f, z = mlp(n_features=5), randn(6, 2)
    j, h = explicit(f, z), Bowl()(f(z))
    metric = pb.Pullback(f, ambient=pb.MatrixField(Bowl()))
    assert torch.allclose(metric.matrix(z), j.mT @ h @ j, rtol=1e-8)
    u, v = randn(6, 2, seed=1), randn(6, 2, seed=2)
    assert torch.allclose(metric.inner(z, u, v), torch.einsum("ni,nij,nj->n", u, j.mT @ h @ j, v), rtol=1e-8)


def test_an_ambient_multiple_of_the_euclidean_metric_scales_lengths_by_its_root():
    # a peer takes an ambient metric and then refuses all but the Euclidean one; another used the default in silence
    f, start, end = mlp(), randn(3, 2), randn(3, 2, seed=1)
    plain = pb.distance(pb.Pullback(f), start, end)
    for ambient in (
        4.0 * pb.Pullback(nn.Identity()),
        pb.MatrixField(lambda x: 4 * torch.eye(7).to(x).expand(len(x), 7, 7)),
    ):
        assert torch.allclose(pb.distance(pb.Pullback(f, ambient=ambient), start, end), 2 * plain, rtol=1e-7)


def test_a_constant_ambient_matrix_is_a_linear_map_behind_the_decoder():
    f, a = mlp(n_features=4), randn(4, 4)
    h, root = a @ a.mT + torch.eye(4, dtype=F64), torch.linalg.cholesky(a @ a.mT + torch.eye(4, dtype=F64))
    inside = pb.Pullback(f, ambient=pb.MatrixField(lambda x: h.expand(len(x), 4, 4)))
    behind = pb.Pullback(f, features=lambda x: x @ root)
    z, u, v = randn(5, 2), randn(5, 2, seed=1), randn(5, 2, seed=2)
    assert torch.allclose(inside.matrix(z), behind.matrix(z), rtol=1e-10)
    assert torch.allclose(inside.christoffel(z, u, v), behind.christoffel(z, u, v), rtol=1e-8, atol=1e-10)
    one, other = pb.geodesic(inside, z[:2], z[2:4]), pb.geodesic(behind, z[:2], z[2:4])
    assert torch.allclose(one.length, other.length, rtol=1e-6)


def test_the_derivative_of_the_matrix_sees_the_ambient_metric_change():
    # a peer's derivative of the pulled-back matrix ignores the ambient metric
    metric, z, h = pb.Pullback(mlp(), ambient=Diagonal()), randn(1, 2).requires_grad_(), 1e-5
    slope = torch.autograd.grad(metric.matrix(z)[0, 0, 1], z)[0]
    steps = h * torch.eye(2, dtype=F64)
    expected = (metric.matrix(z + steps) - metric.matrix(z - steps))[:, 0, 1] / (2 * h)
    assert torch.allclose(slope[0], expected, rtol=1e-6)


def test_an_ambient_christoffel_vector_needs_no_matrix_of_the_output_space():
    f, ambient = mlp(), Diagonal()
    metric, z, u, v = pb.Pullback(f, ambient=ambient), randn(4, 2), randn(4, 2, seed=1), randn(4, 2, seed=2)
    full = pb.Pullback(f, ambient=pb.MatrixField(lambda x: torch.diag_embed(ambient.heights(x))))
    assert torch.allclose(metric.christoffel(z, u, v), full.christoffel(z, u, v), rtol=1e-9, atol=1e-11)
    assert torch.allclose(metric.christoffel(z, u, v), Metric.christoffel(metric, z, u, v), rtol=1e-9, atol=1e-11)


def test_geodesics_under_an_ambient_metric_are_those_of_the_weighted_outputs():
    f, start, end = mlp(), randn(4, 2), randn(4, 2, seed=1)
    metric = pb.Pullback(f, ambient=Diagonal())
    path = pb.geodesic(metric, start, end, tol=1e-6)
    assert path.converged.all()
    fine = pb.Curve(path.curve.nodes).resample(1024).nodes
    x = f(fine)
    middle, steps = 0.5 * (x[:, 1:] + x[:, :-1]), x.diff(dim=1)
    length = (Diagonal().heights(middle) * steps.square()).sum(-1).sqrt().sum(-1)
    assert torch.allclose(path.length, length, rtol=1e-5)
    end_found = pb.exp(metric, start, pb.log(metric, start, end)).end
    assert torch.allclose(end_found, end, atol=1e-5)


def test_an_ambient_pullback_is_a_map_behind_the_decoder():
    f, g = mlp(n_features=3), mlp(3, 5, seed=4)
    inner, outer = pb.Pullback(f, ambient=pb.Pullback(g)), pb.Pullback(lambda z: g(f(z)))
    assert inner.immersed
    assert torch.allclose(inner.matrix(randn(5, 2)), outer.matrix(randn(5, 2)), rtol=1e-12)
    deep = pb.Pullback(f, ambient=pb.Pullback(g, ambient=Diagonal(5)))
    flat = pb.Pullback(lambda z: g(f(z)), ambient=Diagonal(5))
    assert not deep.immersed
    assert torch.allclose(deep.matrix(randn(5, 2)), flat.matrix(randn(5, 2)), rtol=1e-12)


def test_features_get_the_output_in_its_shape():
    shapes = []

    def corner(image):
        shapes.append(tuple(image.shape[1:]))
        return image[:, 0, :2, :2]

    f = nn.Sequential(mlp(n_features=9), nn.Unflatten(1, (1, 3, 3)))
    metric = pb.Pullback(f, features=corner)
    assert metric.features(randn(4, 2)).shape == (4, 4)
    assert set(shapes) == {(1, 3, 3)}
    picked = pb.Pullback(lambda z: f(z)[:, 0, :2, :2])
    assert torch.allclose(metric.matrix(randn(4, 2)), picked.matrix(randn(4, 2)), rtol=1e-12)


def test_features_go_behind_the_chosen_output():
    f = mlp()
    metric = pb.Pullback(lambda z: {"image": f(z), "other": z}, output="image", features=torch.sin)
    assert torch.allclose(metric.matrix(randn(4, 2)), pb.Pullback(lambda z: f(z).sin()).matrix(randn(4, 2)), rtol=1e-12)


def test_features_in_training_mode_are_refused():
    with pytest.raises(ValueError, match="training mode and holds Dropout"):
        pb.Pullback(mlp(), features=nn.Sequential(nn.Linear(7, 3), nn.Dropout(0.5)))


def test_features_are_part_of_the_module_and_move_with_it():
    metric = pb.Pullback(mlp(), features=nn.Linear(7, 3))
    assert len(list(metric.parameters())) == 6
    assert metric.double().matrix(randn(3, 2)).dtype == F64


def test_an_ambient_metric_of_another_dimension_is_refused():
    metric = pb.Pullback(mlp(), ambient=pb.LocalVariance(randn(10, 5), bandwidth=1.0, floor=1.0))
    with pytest.raises(ValueError, match="dimension 7 but `data` has 5"):
        metric.matrix(randn(3, 2))


def test_what_is_no_metric_or_function_is_refused():
    with pytest.raises(TypeError, match="`ambient` is a Tensor: give a metric"):
        pb.Pullback(mlp(), ambient=torch.eye(7))
    with pytest.raises(TypeError, match="`features` is a int: give a module or a function"):
        pb.Pullback(mlp(), features=3)


def test_a_decoder_that_is_not_finite_somewhere_fails_there_alone():
    def f(z):
        return torch.cat((z, (z[:, :1] - 5).sqrt()), 1)

    metric = pb.Pullback(f, ambient=Diagonal(3))
    start = torch.tensor([[6.0, 0.0], [1.0, 0.0]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match="1 of 2"):
        path = pb.geodesic(metric, start, start + 1)
    assert path.converged.tolist() == [True, False]
    with pytest.raises(ValueError, match="NaN or infinity at 1 of 2 points"):
        metric.matrix(start)


def test_a_million_outputs_take_no_matrix_of_them():
    # D x D would be 8 TB; the run may take 1.5 GiB above what torch itself takes
    program = """
    import resource, sys, torch
    import pullback as pb
    from pullback.metrics import Metric

    class Weights(Metric):
        def inner(self, z, u, v):
            return ((1 + 0.1 * z.square()) * u * v).sum(-1)
        def matrix(self, z):
            raise RuntimeError("formed")

    w = torch.linspace(0, 1, 1_000_000, dtype=torch.float64)
    f = lambda z: torch.sin(z[:, :1] + w) + z[:, 1:] * w
    metric = pb.Pullback(f, ambient=Weights(), memory=1 << 29)
    z, v = torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    metric.norm(z[:1, :], v[:1, :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metric.inner(z, v, v), metric.matrix(z)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 1.5
