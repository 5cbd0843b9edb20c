"""Gaussian curvature over regions: the theorem of Gauss and Bonnet."""

import itertools
import math

import pytest
import torch

import pullback as pb
from pullback import curvature
from small import F64, mlp

TURN = 2 * math.pi


def bounds(*sides):
    return torch.tensor(sides, dtype=F64)


def globe(z):
    """The unit sphere by angles; singular at the poles, which no point of the quadrature hits."""
    theta, phi = z.unbind(-1)
    return torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), -1)


@pytest.mark.parametrize("resolution", [2, 6, (5, 3)])
def test_a_sphere_has_four_pi_and_a_torus_nothing(resolution):
    value, error = curvature.total(pb.Pullback(globe), bounds((0, math.pi), (0, TURN)), resolution)
    assert abs(float(value) - 4 * math.pi) < 1e-3
    assert abs(float(value) - 4 * math.pi) <= float(error) + 1e-9
    value, error = curvature.total(pb.Pullback(pb.surfaces.Torus()), bounds((0, TURN), (0, TURN)), resolution)
    assert abs(float(value)) < 1e-3
    assert value.shape == error.shape == ()


def test_the_absolute_curvature_of_a_torus_is_eight_pi():
    value, error = curvature.total(pb.Pullback(pb.surfaces.Torus()), bounds((0, TURN), (0, TURN)), absolute=True)
    assert abs(float(value) - 8 * math.pi) < 1e-3
    assert float(error) < 0.1


def test_the_whole_sphere_in_its_chart_is_approached_from_below():
    # stereographic; outside of [-a, a]^2 there is the cap, about pi * 4 / a^2 times 4 / pi of it
    values = [
        float(curvature.total(pb.Pullback(pb.surfaces.Sphere(3.0)), bounds((-a, a), (-a, a)), 96)[0]) for a in (5, 20)
    ]
    assert values[0] < values[1] < 4 * math.pi
    assert values[1] > 4 * math.pi * (1 - 1 / 20**2)


def test_the_total_is_what_transport_around_the_boundary_turns():
    # a vector that is carried around a region turns by the curvature inside: no formula for curvature is used
    metric = pb.Pullback(mlp(2, 9, seed=4))
    box = bounds((-0.6, 0.5), (-0.3, 0.7))
    corners = torch.stack([box[[0, 1], [i, j]] for i, j in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))])
    start = torch.tensor([1.0, 0.2], dtype=F64)
    v = start
    for a, b in itertools.pairwise(corners):
        v = pb.transport(metric, pb.Curve.straight(a, b, 64), v)
    z = corners[0]
    g = metric.matrix(z)
    cross = g.det().sqrt() * (start[0] * v[1] - start[1] * v[0])
    angle = torch.atan2(cross, metric.inner(z, start, v))
    value, error = curvature.total(metric, box)
    assert error < 1e-6
    assert abs(float(value - angle)) < 1e-4


def test_a_geodesic_triangle_exceeds_pi_by_the_curvature_inside():
    # an octant of the sphere: three right angles
    value, _ = curvature.total(pb.Pullback(globe), bounds((0, math.pi / 2), (0, math.pi / 2)))
    assert abs(float(value) - math.pi / 2) < 1e-9


def test_the_error_is_that_of_a_coarser_grid():
    metric, box = pb.Pullback(mlp(2, 9, seed=4)), bounds((-3, 3), (-3, 3))
    coarse, fine, best = (curvature.total(metric, box, n) for n in (2, 4, 24))
    assert torch.allclose(fine.error, (fine.value - coarse.value).abs())
    for found in (coarse, fine):
        assert (found.value - best.value).abs() < 2 * found.error


@pytest.mark.parametrize(
    ("sides", "resolution", "message"),
    [
        (((0, 1),) * 3, 4, "`z` has latent dimension 3, but an integral of Gaussian curvature"),
        (((0, 1),), 4, "latent dimension 1"),
        (((0, 1), (1, 1)), 4, "`bounds` of axis 1 are 1 and 1"),
        (((0, 1), (0, 1)), 1, "`resolution` is 1: want an integer, 2 or more"),
    ],
)
def test_what_is_no_region_is_refused(sides, resolution, message):
    with pytest.raises(ValueError, match=message):
        curvature.total(pb.Pullback(mlp()), bounds(*sides), resolution)
