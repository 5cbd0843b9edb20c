"""Curvature where it is known in closed form, by both routes; and conventions."""

import math

import pytest
import torch

import pullback as pb
from pullback import curvature
from small import F64, Bowl, Diagonal, mlp, randn, tilt

SURFACES = {
    "torus": pb.surfaces.Torus(),
    "saddle": pb.surfaces.Saddle(0.7),
    "paraboloid": pb.surfaces.Paraboloid(1.5),
    "catenoid": pb.surfaces.Catenoid(2.0),
    "helicoid": pb.surfaces.Helicoid(2.0),
    "cylinder": pb.surfaces.Cylinder(0.5),
    "disguised plane": pb.surfaces.DisguisedPlane(),
}


@pytest.mark.parametrize("name", SURFACES)
def test_the_gaussian_curvature_of_a_surface_is_that_of_its_closed_form(name):
    surface, z = SURFACES[name], randn(40, 2)
    exact = surface.curvature(z)
    for metric in (pb.Pullback(surface), pb.MatrixField(surface.matrix)):
        found = curvature.gaussian(metric, z)
        assert torch.allclose(found, exact, rtol=1e-10, atol=1e-12)
        assert torch.allclose(curvature.scalar(metric, z), 2 * exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("d", "value"), [(2, 2.0), (5, 20.0), (10, 90.0)])
def test_the_scalar_curvature_of_the_unit_sphere_is_d_times_d_minus_one(d, value):
    sphere, z = pb.Pullback(pb.surfaces.Sphere()), 0.7 * randn(5, d)
    assert torch.allclose(curvature.scalar(sphere, z), torch.full((5,), value, dtype=F64), rtol=1e-9)
    assert torch.allclose(curvature.ricci(sphere, z), (d - 1) * sphere.matrix(z), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("d", [2, 3, 5])
@pytest.mark.parametrize("space", [pb.surfaces.PoincareBall(), pb.surfaces.HyperbolicHalfPlane()])
def test_every_plane_of_hyperbolic_space_has_curvature_minus_one(space, d):
    z = 0.3 * randn(8, d) / d**0.5
    z[:, -1] = 0.1 + z[:, -1].abs()
    u, v = randn(8, d, seed=1), randn(8, d, seed=2)
    assert torch.allclose(curvature.sectional(space, z, u, v), space.curvature(z), rtol=1e-9)
    g = space.matrix(z)
    constant = torch.einsum("nik,njl->nijkl", g, g) - torch.einsum("nil,njk->nijkl", g, g)
    assert torch.allclose(curvature.riemann(space, z), -constant, rtol=1e-9, atol=1e-8)


def test_curvature_scales_with_one_over_the_square_of_lengths():
    z = randn(4, 2)
    for metric in (pb.Pullback(mlp()), pb.Conformal(pb.Pullback(mlp()), tilt), pb.surfaces.PoincareBall()):
        z = 0.3 * z.clamp(-1, 1)
        one, more = curvature.gaussian(metric, z), curvature.gaussian(9.0 * metric, z)
        assert torch.allclose(more, one / 9, rtol=1e-9)


def test_curvature_does_not_depend_on_the_chart():
    sphere, chart = pb.surfaces.Sphere(2.0), torch.tensor([[1.0, 0.6], [-0.2, 0.8]], dtype=F64)
    sheared = pb.Pullback(lambda z: sphere(z @ chart.mT + 0.2 * z.square()))
    assert torch.allclose(curvature.gaussian(sheared, randn(6, 2)), torch.full((6,), 0.25, dtype=F64), rtol=1e-9)


def test_a_conformal_factor_bends_the_plane_by_the_laplacian_of_its_logarithm():
    # K = -Laplacian(log phi) / (2 phi); here log phi = a |z|^2, with the Laplacian 4 a
    a, z = 0.3, randn(6, 2)

    def factor(z):
        return (a * z.square().sum(-1)).exp()

    metric = pb.Conformal(pb.Pullback(torch.nn.Identity()), factor)
    assert torch.allclose(curvature.gaussian(metric, z), -2 * a / factor(z), rtol=1e-9)


def test_curvature_sees_an_ambient_metric_change():
    # a peer differentiates the matrix as if the metric of the output space were constant (T14). A slice of the
    # half-space {y > 0} with the metric I / y^2 at fixed x is a hyperbolic plane; a horosphere y = 1 is flat
    def lifted(z):
        return torch.stack((z[:, 0], 0 * z[:, 0], z[:, 1].exp()), -1)

    def horosphere(z):
        return torch.stack((z[:, 0], z[:, 1], torch.ones_like(z[:, 0])), -1)

    z = randn(5, 2)
    for f, k in ((lifted, -1.0), (horosphere, 0.0)):
        metric = pb.Pullback(f, ambient=pb.surfaces.HyperbolicHalfPlane())
        assert torch.allclose(curvature.gaussian(metric, z), torch.full((5,), k, dtype=F64), rtol=1e-9, atol=1e-12)


def test_christoffel_symbols_of_the_torus_are_those_of_its_closed_form():
    z = randn(6, 2)
    gamma, v = curvature.christoffel(pb.Pullback(pb.surfaces.Torus()), z), z[:, 1]
    exact = torch.zeros(6, 2, 2, 2, dtype=F64)
    exact[:, 1, 0, 0] = (2 + v.cos()) * v.sin()
    exact[:, 0, 0, 1] = exact[:, 0, 1, 0] = -v.sin() / (2 + v.cos())
    assert torch.allclose(gamma, exact, atol=1e-12)


METRICS = {
    "pullback": lambda d: pb.Pullback(mlp(d)),
    "field": lambda d: pb.MatrixField(Bowl()),
    "ambient": lambda d: pb.Pullback(mlp(d), ambient=Diagonal()),
    "sum": lambda d: pb.Pullback(mlp(d)) + pb.LocalVariance(randn(20, d), bandwidth=0.8, floor=0.1),
    "conformal": lambda d: pb.Conformal(pb.Pullback(mlp(d)), tilt),
    "constant": lambda d: pb.MatrixField(lambda z: torch.eye(d).to(z).expand(len(z), d, d)),
}


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", METRICS)
def test_symbols_contract_to_christoffel_vectors_and_the_tensor_to_sectional_curvature(kind, d):
    metric, z, u, v = METRICS[kind](d), randn(4, d), randn(4, d, seed=1), randn(4, d, seed=2)
    gamma = torch.einsum("nkij,ni,nj->nk", curvature.christoffel(metric, z), u, v)
    assert torch.allclose(gamma, metric.christoffel(z, u, v), rtol=1e-8, atol=1e-10)
    r = torch.einsum("nijkl,ni,nj,nk,nl->n", curvature.riemann(metric, z), u, v, u, v)
    area = metric.inner(z, u, u) * metric.inner(z, v, v) - metric.inner(z, u, v) ** 2
    assert torch.allclose(curvature.sectional(metric, z, u, v), r / area, rtol=1e-8, atol=1e-10)


def test_the_tensor_says_how_transport_around_a_small_loop_turns_a_vector():
    # sign and order of the indices: around the loop +e_k, +e_l, -e_k, -e_l of side h a vector w changes by
    # -h^2 R^i_jkl w^j, where the first index of R_ijkl is raised
    metric, z, h = pb.Pullback(mlp(3)), randn(1, 3)[0], 1e-2
    w = torch.tensor([0.3, -1.0, 0.5], dtype=F64)
    e_k, e_l = torch.eye(3, dtype=F64)[[0, 1]]
    turned = w
    start = z - 0.5 * h * (e_k + e_l)
    for side in (e_k, e_l, -e_k, -e_l):
        turned = pb.transport(metric, pb.Curve.straight(start, start + h * side, 8), turned)
        start = start + h * side
    r = torch.linalg.solve(metric.matrix(z), torch.einsum("ij,j->i", curvature.riemann(metric, z)[:, :, 0, 1], w))
    assert torch.allclose((turned - w) / h**2, -r, rtol=1e-3, atol=3e-3 * float(r.norm()))


def test_batches_points_and_chunks_give_the_same_numbers():
    f, z, u, v = mlp(3), randn(2, 3, 1, 3), randn(2, 3, 1, 3, seed=1), randn(3, seed=2)
    whole, small = pb.Pullback(f), pb.Pullback(f, memory=1)
    for work in (
        lambda metric, z: curvature.riemann(metric, z),
        lambda metric, z: curvature.christoffel(metric, z),
        lambda metric, z: curvature.mean_curvature(metric, z),
        lambda metric, z: curvature.scalar(metric, z, n_probes=3).value,
        lambda metric, z: curvature.scalar(metric, z),
        lambda metric, z: curvature.sectional(metric, z, u.reshape(-1, 3)[: z.numel() // 3].reshape(z.shape), v),
    ):
        found = work(whole, z)
        assert found.shape[:3] == (2, 3, 1)
        assert torch.allclose(work(small, z), found, rtol=1e-9)
        assert torch.allclose(work(whole, z.reshape(6, 3)), found.reshape(6, *found.shape[3:]), rtol=1e-9)
        assert torch.allclose(work(whole, z[0, 0, 0]), found[0, 0, 0], rtol=1e-9)
        assert work(whole, z[:0]).shape == (0, *found.shape[1:])


def test_results_have_the_dtype_of_the_points():
    z = randn(4, 2)
    for metric in (pb.Pullback(mlp().float()), pb.surfaces.PoincareBall()):
        found = curvature.gaussian(metric, 0.3 * z.float().tanh())
        assert found.dtype == torch.float32
        double = pb.Pullback(mlp()) if isinstance(metric, pb.Pullback) else metric
        assert torch.allclose(found.double(), curvature.gaussian(double, 0.3 * z.tanh()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["pullback", "field", "conformal"])
def test_curvature_carries_gradients_to_points(kind):
    metric, z, h = METRICS[kind](2), randn(1, 2).requires_grad_(), 1e-5
    (slope,) = torch.autograd.grad(curvature.gaussian(metric, z).sum(), z)
    steps = h * torch.eye(2, dtype=F64)
    with torch.no_grad():
        moved = (curvature.gaussian(metric, z + steps) - curvature.gaussian(metric, z - steps)) / (2 * h)
    assert torch.allclose(slope[0], moved, rtol=1e-5, atol=1e-7)


def test_curvature_can_be_a_penalty_of_training():
    decoder, z = mlp(), randn(8, 2)
    loss = curvature.gaussian(pb.Pullback(decoder), z.clone().requires_grad_()).square().mean()
    slopes = torch.autograd.grad(loss, list(decoder.parameters())[:1])[0]
    weight, h = next(iter(decoder.parameters())), 1e-5
    with torch.no_grad():
        changed = []
        for sign in (1, -1):
            weight[0, 0] += sign * h
            changed.append(curvature.gaussian(pb.Pullback(decoder), z).square().mean())
            weight[0, 0] -= sign * h
    assert math.isclose(float(slopes[0, 0]), float(changed[0] - changed[1]) / (2 * h), rel_tol=1e-4)


def test_without_gradients_nothing_is_kept():
    assert not curvature.gaussian(pb.Pullback(mlp()), randn(3, 2)).requires_grad
    assert not curvature.sectional(pb.MatrixField(Bowl()), randn(3, 2), *randn(2, 3, 2)).requires_grad
