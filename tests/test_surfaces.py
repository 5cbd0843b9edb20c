import math

import pytest
import torch

from pullback.metrics import Pullback
from pullback.surfaces import Plane, Sphere, Torus

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize(
    ("surface", "d"),
    [(Plane(), 2), (Plane(3, 5, seed=1), 3), (Sphere(), 2), (Sphere(3.0), 10), (Torus(), 2), (Torus(5.0, 0.5), 2)],
)
def test_the_matrix_in_closed_form_is_that_of_the_metric(surface, d):
    for z in (randn(6, d), randn(2, 3, d), randn(d)):
        expected = Pullback(surface).matrix(z)
        assert surface.matrix(z).shape == expected.shape
        assert torch.allclose(surface.matrix(z), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("surface", [Plane(), Sphere(), Torus()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_surfaces_compute_in_the_dtype_of_the_points(surface, dtype):
    z = randn(4, 2).to(dtype)
    assert surface(z).dtype == surface.matrix(z).dtype == dtype


def test_distances_on_a_plane_are_those_of_its_image():
    plane, a, b = Plane(3, 5), randn(4, 3), randn(4, 3, seed=1)
    assert torch.allclose(plane.distance(a, b), (plane(a) - plane(b)).norm(dim=-1))
    assert torch.allclose(plane.distance(a, b), Pullback(plane).norm(a, b - a), rtol=1e-12)


def test_planes_of_one_seed_are_the_same_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    assert torch.equal(Plane(seed=3).weight, Plane(seed=3).weight)
    assert not torch.equal(Plane(seed=3).weight, Plane(seed=4).weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_points_of_the_sphere_have_its_radius():
    assert torch.allclose(Sphere(2.0)(randn(9, 4)).norm(dim=-1), torch.tensor(2.0, dtype=F64))


def test_distances_on_the_sphere_are_angles_times_its_radius():
    sphere, a, b = Sphere(2.0), randn(9, 3), randn(9, 3, seed=1)
    angle = torch.acos((sphere(a) * sphere(b)).sum(-1) / 4)
    assert torch.allclose(sphere.distance(a, b), 2 * angle, rtol=1e-9)
    near = a + 1e-9 * randn(9, 3, seed=2)  # acos of almost one would lose all digits
    assert torch.allclose(sphere.distance(a, near), Pullback(sphere).norm(a, near - a), rtol=1e-6)
    antipode = -a / a.square().sum(-1, keepdim=True)
    assert torch.allclose(sphere.distance(a, antipode), torch.tensor(2 * math.pi, dtype=F64))


def test_points_of_the_torus_lie_on_it():
    x, y, z = Torus(5.0, 0.5)(randn(9, 2)).unbind(-1)
    assert torch.allclose(((x**2 + y**2).sqrt() - 5) ** 2 + z**2, torch.tensor(0.25, dtype=F64))


def test_clairauts_constant_is_that_of_a_geodesic():
    # the outer equator, at any speed, and a meridian
    torus, u = Torus(2.0, 1.0), torch.linspace(0, 3, 5, dtype=F64)
    equator = torch.stack((u, torch.zeros_like(u)), -1)
    assert torch.allclose(torus.clairaut(equator, torch.tensor([0.5, 0.0], dtype=F64)), torch.tensor(4.5, dtype=F64))
    assert torch.equal(torus.clairaut(equator.flip(-1), torch.tensor([0.0, 1.0], dtype=F64)), torch.zeros(5, dtype=F64))
    # its derivative along the geodesic equation u'' = 2 r sin v / (R + r cos v) u' v'
    v, speed = u, torch.stack((u.cos(), u.sin()), -1)
    bend = 2 * v.sin() / (2 + v.cos()) * speed[:, 0] * speed[:, 1]
    h = 1e-6
    there, back = (
        torus.clairaut(torch.stack((u, v + s * speed[:, 1]), -1), speed[:, :1] + s * bend[:, None]) for s in (h, -h)
    )
    assert torch.allclose(there, back, rtol=1e-9)
