import math

import pytest
import torch

import pullback as pb
from pullback import surfaces
from pullback.metrics import Metric, Pullback
from pullback.surfaces import (
    Catenoid,
    Cylinder,
    DisguisedPlane,
    Helicoid,
    HyperbolicHalfPlane,
    Paraboloid,
    Plane,
    PoincareBall,
    Saddle,
    Sphere,
    Torus,
)

F64 = torch.float64

DECODERS = [
    (Plane(), 2), (Plane(3, 5, seed=1), 3), (DisguisedPlane(), 2), (DisguisedPlane(-1.5), 2), (Cylinder(), 2),
    (Cylinder(2.5), 2), (Sphere(), 2), (Sphere(3.0), 10), (Torus(), 2), (Torus(5.0, 0.5), 2), (Paraboloid(), 2),
    (Paraboloid(-0.3), 2), (Saddle(), 2), (Saddle(0.4), 2), (Catenoid(), 2), (Catenoid(1.7), 2), (Helicoid(), 2),
    (Helicoid(0.6), 2),
]  # fmt: skip
FLAT = (Plane, DisguisedPlane, Cylinder)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def named(pair):
    return f"{type(pair[0]).__name__}-{pair[1]}"


@pytest.mark.parametrize(("surface", "d"), DECODERS, ids=map(named, DECODERS))
def test_the_matrix_in_closed_form_is_that_of_the_jacobian(surface, d):
    for z in (randn(6, d), randn(2, 3, d), randn(d), randn(0, d)):
        assert surface.matrix(z).shape == (*z.shape, d)
        assert torch.allclose(surface.matrix(z), Pullback(surface).matrix(z), rtol=1e-12, atol=1e-13)
        for point in z.reshape(-1, d):
            j = torch.autograd.functional.jacobian(surface, point)
            assert torch.allclose(surface.matrix(point), j.mT @ j, rtol=1e-12, atol=1e-13)


def sectional(g, z, u, v):
    """The curvature of the plane of u, v (d,) at z (d,) of a metric g: (d,) -> (d, d), by its second derivatives.

    R_1212 / det G, of the Riemann tensor with all indices below; positive on a sphere.
    """
    jacobian = torch.autograd.functional.jacobian
    first = jacobian(g, z)  # (i, j, k): d_k g_ij
    second = jacobian(lambda z: jacobian(g, z, create_graph=True), z)  # (i, j, k, l): d_k d_l g_ij
    gamma = 0.5 * (first + first.mT - first.permute(2, 0, 1))  # (k, i, j): g(e_k, Gamma(e_i, e_j))
    raised = torch.einsum("mk,kij->mij", g(z).inverse(), gamma)
    tensor = torch.einsum("njk,nil->ijkl", gamma, raised) - torch.einsum("njl,nik->ijkl", gamma, raised)
    for sign, indices in ((1, "iljk"), (1, "jkil"), (-1, "ikjl"), (-1, "jlik")):
        tensor = tensor + 0.5 * sign * torch.einsum(f"{indices}->ijkl", second)
    uu, vv, uv = (torch.einsum("ij,i,j->", g(z), x, y) for x, y in ((u, u), (v, v), (u, v)))
    return torch.einsum("ijkl,i,j,k,l->", tensor, u, v, u, v) / (uu * vv - uv**2)


CURVED = [*DECODERS[:7], (Sphere(3.0), 3), *DECODERS[8:]]
HYPERBOLIC = [(HyperbolicHalfPlane(), 2), (HyperbolicHalfPlane(), 3), (PoincareBall(), 2), (PoincareBall(), 3)]


@pytest.mark.parametrize(("surface", "d"), CURVED + HYPERBOLIC, ids=map(named, CURVED + HYPERBOLIC))
def test_the_curvature_is_that_of_the_riemann_tensor(surface, d):
    z = 0.3 * randn(3 if d == 2 else 1, d) + 0.2
    if isinstance(surface, HyperbolicHalfPlane):
        z = z.abs() + 0.1

    def g(point):  # of a decoder: from its derivatives alone
        if isinstance(surface, Metric):
            return surface.matrix(point)
        j = torch.autograd.functional.jacobian(surface, point, create_graph=True)
        return j.mT @ j

    found = torch.stack([sectional(g, point, *randn(2, d, seed=5)).detach() for point in z])
    assert surface.curvature(z).shape == z.shape[:1]
    assert torch.allclose(surface.curvature(z), found, rtol=1e-9, atol=1e-11)
    assert torch.equal(surface.curvature(z[0]), surface.curvature(z)[0])


def test_curvature_has_the_sign_that_a_look_at_the_surface_tells():
    z = randn(9, 2)
    assert (Sphere().curvature(z) > 0).all()
    assert (Paraboloid().curvature(z) > 0).all()
    assert (Saddle().curvature(z) < 0).all()
    assert (Catenoid().curvature(z) < 0).all()
    assert all((flat().curvature(z) == 0).all() for flat in FLAT)
    outside, inside = torch.tensor([[0.0, 0.0], [0.0, math.pi]], dtype=F64)
    assert Torus().curvature(outside) > 0 > Torus().curvature(inside)


def test_the_torus_has_the_total_curvature_zero():
    # Gauss and Bonnet: 2 pi times the Euler characteristic
    angles = torch.linspace(0, 2 * math.pi, 401, dtype=F64)[:-1]
    z = torch.cartesian_prod(angles[:1], angles)
    torus = Torus(3.0, 1.2)
    total = torus.curvature(z) * torus.matrix(z).det().sqrt()
    assert abs(float(total.mean())) < 1e-12
    assert float(total.abs().mean()) > 0.1


@pytest.mark.parametrize(("surface", "d"), DECODERS[:7], ids=map(named, DECODERS[:7]))
def test_the_distance_is_the_length_of_the_geodesic_that_is_found(surface, d):
    a, b = 0.8 * randn(5, d), 0.8 * randn(5, d, seed=1)
    path = pb.geodesic(Pullback(surface), a, b, tol=1e-6)
    assert torch.allclose(path.length, surface.distance(a, b), rtol=1e-6, atol=0)


def test_distances_on_a_cylinder_count_every_turn():
    # shortest curves are those of the latent plane, where an angle of 2 pi is not that of 0
    cylinder, turns = Cylinder(2.0), torch.tensor([4 * math.pi, 3.0], dtype=F64)
    origin = torch.zeros(2, dtype=F64)
    assert float(cylinder.distance(origin, turns)) == pytest.approx(math.hypot(8 * math.pi, 3), rel=1e-12)
    assert torch.allclose(cylinder(turns), cylinder(origin) + torch.tensor([0.0, 0, 3], dtype=F64))
    assert float(pb.distance(Pullback(cylinder), origin, turns, tol=1e-6)) == pytest.approx(25.3112, rel=1e-5)


def test_the_disguised_plane_is_undone_by_its_inverse_and_keeps_areas():
    plane, z = DisguisedPlane(1.7), 3 * randn(50, 2)
    assert torch.allclose(plane.inverse(plane(z)), z, atol=1e-12)
    assert torch.allclose(plane(plane.inverse(z)), z, atol=1e-12)
    assert Pullback(plane).log_volume(z).abs().max() < 1e-12


@pytest.mark.parametrize(
    "surface", [surface for surface, d in DECODERS if d == 2 and not isinstance(surface, Plane | Sphere)]
)
@pytest.mark.parametrize("shape", [(3,), (4, 1), ()])
def test_points_of_another_dimension_are_refused(surface, shape):
    for call in (surface, surface.matrix):
        with pytest.raises(ValueError, match=r"`z` has shape .*: this surface has two coordinates"):
            call(torch.zeros(shape))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Sphere(0.0),
        lambda: Sphere(math.nan),
        lambda: Cylinder(-1.0),
        lambda: Catenoid(0.0),
        lambda: Helicoid(math.inf),
        lambda: Torus(1.0, 1.0),
        lambda: Torus(1.0, 0.0),
    ],
)
def test_sizes_that_no_surface_has_are_refused(build):
    with pytest.raises(ValueError, match="want a positive, finite number"):
        build()


def test_every_surface_is_there_for_users():
    assert set(surfaces.__all__) == {type(surface).__name__ for surface, _ in DECODERS + HYPERBOLIC}


@pytest.mark.parametrize("surface", [surface for surface, d in DECODERS if d == 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_surfaces_compute_in_the_dtype_of_the_points(surface, dtype):
    z = randn(4, 2).to(dtype)
    assert {surface(z).dtype, surface.matrix(z).dtype, surface.curvature(z).dtype} == {dtype}


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
