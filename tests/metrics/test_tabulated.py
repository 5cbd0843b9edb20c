import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

import pullback as pb
from metric_contract import F64, MetricContract
from small import mlp, randn


def box(d, size=3.0):
    return torch.tensor([[-size, size]], dtype=F64).expand(d, 2)


class TestOneDimension(MetricContract):
    d = 1

    def metric(self):
        return pb.Tabulated(pb.Pullback(mlp(1, 3)), box(1), 257)


class TestTwoDimensions(MetricContract):
    def metric(self):
        return pb.Tabulated(pb.Pullback(mlp()), box(2), 65)


class TestThreeDimensions(MetricContract):
    d = 3

    def metric(self):
        return pb.Tabulated(pb.Pullback(mlp(3, 5)), box(3, 2.5), 17)


def test_the_error_falls_with_the_fourth_power_of_the_resolution():
    errors = [pb.Tabulated(pb.Pullback(pb.surfaces.Sphere()), box(2, 1.0), n).error.max for n in (17, 33, 65)]
    assert all(12 < coarse / fine < 22 for coarse, fine in pairwise(errors))


def test_the_stored_error_is_that_of_the_matrices():
    metric = pb.Pullback(mlp())
    table = pb.Tabulated(metric, box(2), 17)
    z = randn(20, 2)
    ratio = torch.linalg.eigvals(torch.linalg.solve(metric.matrix(z), table.matrix(z))).real
    assert torch.allclose(table.error_at(z), (ratio - 1).abs().amax(1), rtol=1e-6)
    assert table.error.median <= table.error.quantile95 <= table.error.max
    held = pb.Tabulated(metric, box(2), 17, at=z).error
    assert math.isclose(held.max, float(table.error_at(z).max()), rel_tol=1e-12)


def test_the_table_has_the_matrices_of_the_metric_at_its_points():
    metric, nodes = pb.Pullback(mlp()), torch.linspace(-3, 3, 9, dtype=F64)
    z = torch.cartesian_prod(nodes, nodes)
    assert torch.allclose(pb.Tabulated(metric, box(2), 9).matrix(z), metric.matrix(z), rtol=1e-9, atol=1e-12)


def test_great_circles_are_as_long_as_they_are():
    sphere = pb.surfaces.Sphere()
    table = pb.Tabulated(pb.Pullback(sphere), box(2, 2.5), 129)
    start, end = 0.6 * randn(10, 2), 0.6 * randn(10, 2, seed=1)
    path = pb.geodesic(table, start, end, tol=1e-6)
    assert path.converged.all()
    off = (path.length - sphere.distance(start, end)).abs()
    assert (off <= path.length_error + table.error.max * path.length).all()


def test_geodesics_are_polished_on_the_metric_itself():
    metric = pb.Pullback(mlp())
    table = pb.Tabulated(metric, box(2), 33)
    start, end = randn(4, 2), randn(4, 2, seed=1)
    found = pb.geodesic(table, start, end)
    polished, plain = pb.geodesic(table.metric, start, end, init=found.curve), pb.geodesic(metric, start, end)
    assert torch.allclose(polished.length, plain.length, rtol=1e-4)


def test_the_shipped_model_is_tabulated_well_enough():
    # the bar: a relative error of 1e-3 at 95% of the codes
    model = pb.models.pretrained("mnist012")
    low, high = model.codes.amin(0), model.codes.amax(0)
    table = pb.Tabulated(pb.Pullback(model.decoder), torch.stack((low - 0.1, high + 0.1), 1), at=model.codes[::10])
    assert table.error.quantile95 < 1e-3


def test_points_outside_are_refused_and_named():
    table = pb.Tabulated(pb.Pullback(mlp()), box(2), 9)
    z = torch.tensor([[0.0, 0.0], [0.0, 3.5]], dtype=F64)
    for method in (table.matrix, table.log_volume, lambda z: table.norm(z, z)):
        with pytest.raises(ValueError, match=r"3\.5"):
            method(z)


def test_a_pair_with_an_end_outside_fails_alone():
    table = pb.Tabulated(pb.Pullback(mlp()), box(2), 17)
    start, end = torch.zeros(2, 2, dtype=F64), torch.tensor([[1.0, 1.0], [4.0, 0.0]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match="1 of 2"):
        path = pb.geodesic(table, start, end)
    assert path.converged.tolist() == [True, False]


def test_tables_survive_pickle_with_their_error():
    table = pb.Tabulated(pb.Pullback(mlp()), box(2), 9)
    again = pickle.loads(pickle.dumps(table))
    assert torch.equal(again.matrix(randn(3, 2)), table.matrix(randn(3, 2)))
    assert again.error == table.error


def test_a_singular_metric_is_refused():
    with pytest.raises(ValueError, match="singular"):
        pb.Tabulated(pb.Pullback(lambda z: z[:, :1] * torch.ones(3, dtype=F64)), box(2), 9)


@pytest.mark.parametrize(
    ("bounds", "resolution", "text"),
    [
        (box(4), 5, "`bounds` has 4 axes"),
        (box(2), 3, "`resolution` is 3"),
        (box(2).flip(1), 9, "`bounds` of axis 0"),
        (torch.zeros(2, dtype=F64), 9, "`bounds` has shape"),
    ],
)
def test_unfit_arguments_are_named(bounds, resolution, text):
    with pytest.raises(ValueError, match=text):
        pb.Tabulated(pb.Pullback(nn.Identity()), bounds, resolution)


def test_what_is_no_metric_is_refused():
    with pytest.raises(TypeError, match="`metric` is a Identity"):
        pb.Tabulated(nn.Identity(), box(2))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_its_derivatives_in_closed_form_are_those_of_its_matrix(d):
    def surface(z):
        return torch.cat((z, z.square().sum(-1, keepdim=True).sin(), z[:, :1].exp() * z[:, -1:]), -1)

    table = pb.Tabulated(pb.Pullback(surface), torch.tensor([[-1.0, 1.0]] * d, dtype=torch.float64), 21)
    z = 1.6 * torch.rand(6, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.8
    g, slopes, bends = table.jet(z)
    for i in range(len(z)):
        once = torch.func.jacrev(table.matrix)(z[i]).permute(2, 0, 1)
        twice = torch.autograd.functional.jacobian(
            lambda z: torch.autograd.functional.jacobian(table.matrix, z, create_graph=True), z[i]
        ).permute(2, 3, 0, 1)
        torch.testing.assert_close(g[i], table.matrix(z[i]))
        torch.testing.assert_close(slopes[i], once, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(bends[i], twice, rtol=1e-8, atol=1e-8)
