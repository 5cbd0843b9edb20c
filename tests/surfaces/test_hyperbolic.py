import math

import pytest
import torch

import pullback as pb
from metric_contract import MetricContract
from pullback.surfaces import HyperbolicHalfPlane, PoincareBall

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def upper(x):
    """Points of the upper half space."""
    return torch.cat((x[..., :-1], x[..., -1:].exp()), -1)


def inside(x):
    """Points of the unit ball."""
    return 0.9 * x / (1 + x.square().sum(-1, keepdim=True)).sqrt()


SPACES = [(HyperbolicHalfPlane(), upper), (PoincareBall(), inside)]
OUTSIDE = [(HyperbolicHalfPlane(), (0.5, -1.0)), (HyperbolicHalfPlane(), (0.5, 0.0)), (PoincareBall(), (0.6, 0.8))]


class TestHalfPlane(MetricContract):
    def metric(self):
        return HyperbolicHalfPlane()

    def points(self, *batch, seed=0):
        return upper(super().points(*batch, seed=seed))


class TestHalfSpace(TestHalfPlane):
    d = 4


class TestDisk(MetricContract):
    def metric(self):
        return PoincareBall()

    def points(self, *batch, seed=0):
        return 0.4 * inside(super().points(*batch, seed=seed))


class TestBall(TestDisk):
    d = 5


@pytest.mark.parametrize(("space", "into"), SPACES)
@pytest.mark.parametrize("d", [2, 3])
def test_the_distance_is_the_length_of_the_geodesic_that_is_found(space, into, d):
    a, b = into(randn(6, d)), into(randn(6, d, seed=1))
    path = pb.geodesic(space, a, b, tol=1e-6)
    assert path.converged.all()
    assert torch.allclose(path.length, space.distance(a, b), rtol=1e-6, atol=0)
    assert ((path.length - space.distance(a, b)).abs() <= path.length_error + 1e-12).all()


@pytest.mark.parametrize(("space", "into"), SPACES)
@pytest.mark.parametrize("solver", ["collocate", "shoot", "georce"])
def test_other_solvers_find_the_same_length(space, into, solver):
    a, b = into(0.7 * randn(4, 2)), into(0.7 * randn(4, 2, seed=1))
    path = pb.geodesic(space, a, b, tol=1e-5, solver=solver)
    assert torch.allclose(path.length, space.distance(a, b), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("space", "into"), SPACES)
def test_the_logarithm_is_as_long_as_the_distance_and_the_exponential_map_undoes_it(space, into):
    a, b = into(0.7 * randn(4, 2)), into(0.7 * randn(4, 2, seed=1))
    v = pb.log(space, a, b)
    assert torch.allclose(space.norm(a, v), space.distance(a, b), rtol=1e-6)
    assert torch.allclose(pb.exp(space, a, v).end, b, atol=1e-6)


def test_geodesics_of_the_half_plane_are_half_circles_around_points_of_its_edge():
    a, b = torch.tensor([-0.6, 0.8], dtype=F64), torch.tensor([0.8, 0.6], dtype=F64)  # of the unit circle
    nodes = pb.geodesic(HyperbolicHalfPlane(), a, b, tol=1e-6).curve.nodes
    assert torch.allclose(nodes.norm(dim=-1), torch.ones(len(nodes), dtype=F64), atol=1e-4)


def test_distances_are_those_of_textbooks():
    e = math.e
    up = HyperbolicHalfPlane().distance(torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([2.0, e**3], dtype=F64))
    assert float(up) == pytest.approx(3, rel=1e-12)
    center, point = torch.zeros(2, dtype=F64), torch.tensor([0.0, -0.7], dtype=F64)
    assert float(PoincareBall().distance(center, point)) == pytest.approx(2 * math.atanh(0.7), rel=1e-12)


def test_the_cayley_transform_is_an_isometry_of_the_half_plane_onto_the_disk():
    z = upper(randn(5, 2))
    w = upper(randn(5, 2, seed=1))

    def disk(z):
        c = torch.view_as_complex(z)
        return torch.view_as_real((c - 1j) / (c + 1j))

    assert torch.allclose(PoincareBall().distance(disk(z), disk(w)), HyperbolicHalfPlane().distance(z, w), rtol=1e-10)
    v = randn(5, 2, seed=2)
    _, pushed = torch.autograd.functional.jvp(disk, z, v)
    assert torch.allclose(PoincareBall().norm(disk(z), pushed), HyperbolicHalfPlane().norm(z, v), rtol=1e-10)


@pytest.mark.parametrize(("space", "into"), SPACES)
def test_near_points_keep_their_digits(space, into):
    a, step = into(randn(5, 3)), 1e-9 * randn(5, 3, seed=1)
    assert torch.allclose(space.distance(a, a + step), space.norm(a, step), rtol=1e-5)
    assert torch.equal(space.distance(a, a), torch.zeros(5, dtype=F64))


@pytest.mark.parametrize(("space", "point"), OUTSIDE)
def test_a_point_outside_is_named(space, point):
    good = torch.tensor((0.1, 0.2), dtype=F64)
    z = torch.stack((good, torch.tensor(point, dtype=F64), good))
    said = rf"outside of where the metric is defined at point 1, \[{point[0]}, {point[1]}\]"
    for name, call in {
        "z": lambda: space.inner(z, good, good),
        "z ": lambda: space.norm(z, good),
        "z  ": lambda: space.matrix(z),
        "z   ": lambda: space.log_volume(z),
        "z    ": lambda: space.curvature(z),
        "a": lambda: space.distance(z, good),
        "b": lambda: space.distance(good, z),
    }.items():
        with pytest.raises(ValueError, match=f"`{name.strip()}` lies {said}"):
            call()


@pytest.mark.parametrize(("space", "point"), OUTSIDE)
def test_features_chords_and_christoffel_vectors_are_nan_outside_and_only_there(space, point):
    nodes = torch.tensor(((0.1, 0.2), (0.2, 0.2), point, (0.3, 0.2), (0.4, 0.2)), dtype=F64)
    bad = torch.tensor((False, False, True, False, False))
    assert torch.equal(space.features(nodes).isnan().all(-1), bad)
    single, double = space.squared_chords(space.features(nodes))
    assert single.isnan().tolist() == [False, True, True, False]
    assert double.isnan().tolist() == [True, True]
    assert torch.equal(space.christoffel(nodes, nodes, nodes).isnan().all(-1), bad)


@pytest.mark.parametrize("solver", ["relax", "georce"])
@pytest.mark.filterwarnings("ignore::pullback.GeodesicWarning")
def test_a_curve_that_starts_outside_fails_alone(solver):
    ball, a, b = PoincareBall(), torch.tensor([0.3, 0.1], dtype=F64), torch.tensor([-0.3, 0.5], dtype=F64)
    t = torch.linspace(0, 1, 9, dtype=F64)[:, None]
    line = a + (b - a) * t
    curves = torch.stack((line, line + 8 * t * (1 - t) * torch.tensor([0.0, 1.0], dtype=F64), line))
    path = pb.geodesic(ball, a.expand(3, 2), b.expand(3, 2), init=pb.Curve(curves), solver=solver)
    assert path.converged.tolist() == [True, False, True]
    assert path.length[1].isnan()
    assert torch.allclose(path.length[[0, 2]], ball.distance(a, b), rtol=1e-4)


@pytest.mark.filterwarnings("ignore::pullback.GeodesicWarning")
def test_a_pair_with_an_end_outside_fails_alone():
    ball, a = PoincareBall(), torch.tensor([[0.3, 0.1], [1.2, 0.0]], dtype=F64)
    b = torch.tensor([-0.3, 0.5], dtype=F64)
    path = pb.geodesic(ball, a, b)
    assert path.converged.tolist() == [True, False]
    assert torch.allclose(path.length[0], ball.distance(a[0], b), rtol=1e-4)
