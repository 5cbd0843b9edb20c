import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from metric_contract import MetricContract
from pullback.metrics import Metric, Scaled, Sum
from small import Bowl, mlp, randn, tilt


class TestSumOfDifferentKinds(MetricContract):
    def metric(self):
        return pb.Pullback(mlp()) + pb.MatrixField(Bowl()) + pb.Conformal(pb.Pullback(mlp(seed=1)), tilt)


class TestSumOfDecoders(MetricContract):
    def metric(self):
        return pb.Pullback(mlp()) + 0.5 * pb.Pullback(mlp(seed=1, n_features=3))


class TestScaled(MetricContract):
    def metric(self):
        return 3.0 * pb.MatrixField(Bowl())


def test_matrices_of_a_sum_add_up_and_those_of_a_multiple_are_multiplied():
    a, b, z = pb.Pullback(mlp()), pb.MatrixField(Bowl()), randn(5, 2)
    assert torch.allclose((a + 2.5 * b).matrix(z), a.matrix(z) + 2.5 * b.matrix(z), rtol=1e-13)
    assert torch.allclose((a * 3 + b).matrix(z), 3 * a.matrix(z) + b.matrix(z), rtol=1e-13)


def test_a_sum_of_decoders_is_the_pullback_of_both_side_by_side():
    # so that chords, Newton steps and curvature know a surface
    f, g = mlp(), mlp(seed=1)
    metric = pb.Pullback(f) + 4.0 * pb.Pullback(g)
    assert metric.immersed
    assert type(metric) is pb.Pullback
    start, end = randn(3, 2), randn(3, 2, seed=1)
    stacked = pb.Pullback(lambda z: torch.cat((f(z), 2 * g(z)), 1))
    assert torch.allclose(pb.distance(metric, start, end), pb.distance(stacked, start, end), rtol=1e-10)


def test_sums_flatten_and_say_whether_they_are_immersed():
    metric = pb.MatrixField(Bowl()) + pb.Pullback(mlp()) + pb.MatrixField(Bowl())
    assert isinstance(metric, Sum)
    assert len(metric.metrics) == 3
    assert not metric.immersed


@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_lengths_grow_by_the_root_of_a_factor_and_geodesics_stay(factor, seed):
    start, end = 0.5 * randn(2, seed=seed), 0.5 * randn(2, seed=seed + 1)
    for metric in (pb.MatrixField(Bowl()), pb.Pullback(mlp())):
        one, other = pb.geodesic(metric, start, end), pb.geodesic(factor * metric, start, end)
        assert torch.allclose(other.length, factor**0.5 * one.length, rtol=1e-9)
        assert torch.allclose(other.curve.nodes, one.curve.nodes, atol=1e-8)
        assert other.status == one.status


@pytest.mark.parametrize(
    "metric",
    [
        lambda: pb.Pullback(mlp()) + pb.MatrixField(Bowl()),
        lambda: 0.3 * pb.MatrixField(Bowl()),
        lambda: 0.3 * (pb.Pullback(mlp()) + pb.MatrixField(Bowl())),
    ],
)
def test_the_short_formulas_for_christoffel_vectors_are_the_long_one(metric):
    z, u, v = randn(5, 2), randn(5, 2, seed=1), randn(5, 2, seed=2)
    assert torch.allclose(metric().christoffel(z, u, v), Metric.christoffel(metric(), z, u, v), rtol=1e-9, atol=1e-11)


def test_a_sum_works_on_features_that_another_copy_made():
    # a batch of curves may be decoded in one process and measured in another
    metric = pb.Pullback(mlp()) + pb.MatrixField(Bowl())
    x = metric.features(randn(5, 2))
    other = pb.Pullback(mlp()) + pb.MatrixField(Bowl())
    other.features(randn(1, 2))
    assert torch.equal(other.squared_chords(x)[0], metric.squared_chords(x)[0])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_a_factor_that_is_no_positive_number_is_refused(factor):
    for metric in (pb.Pullback(nn.Identity()), pb.MatrixField(Bowl())):
        with pytest.raises(ValueError, match=r"`factor` is .*: want a positive, finite number"):
            factor * metric


def test_what_is_no_metric_and_no_number_is_refused():
    for wrong in (lambda m: m + 1, lambda m: m + nn.Identity(), lambda m: m * m, lambda m: "3" * m):
        for metric in (pb.Pullback(nn.Identity()), pb.MatrixField(Bowl())):
            with pytest.raises(TypeError):
                wrong(metric)


def test_a_multiple_of_a_multiple_is_one():
    assert isinstance(2.0 * pb.MatrixField(Bowl()), Scaled)
    assert torch.allclose((2.0 * (2.0 * pb.Pullback(nn.Identity()))).matrix(torch.zeros(2)), 4 * torch.eye(2))
