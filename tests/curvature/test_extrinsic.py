"""Second fundamental form and mean curvature."""

import pytest
import torch

import pullback as pb
from pullback import curvature
from pullback.autodiff import jacobian, second_derivative
from small import F64, Diagonal, mlp, randn


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_mean_curvature_of_a_sphere_is_one_over_its_radius_and_d_times_that_without_the_mean(d):
    # a peer's docstring has the factor 1 / d, its code does not (T39)
    sphere, z = pb.surfaces.Sphere(radius=4.0), randn(3, d)
    metric = pb.Pullback(sphere)
    mean, trace = curvature.mean_curvature(metric, z), curvature.mean_curvature(metric, z, normalized=False)
    assert torch.allclose(mean, -sphere(z) / 16, rtol=1e-9, atol=1e-12)  # to the center
    assert torch.allclose(mean.norm(dim=-1), torch.full((3,), 1 / 4, dtype=F64), rtol=1e-9)
    assert torch.allclose(trace.norm(dim=-1), torch.full((3,), d / 4, dtype=F64), rtol=1e-9)


@pytest.mark.parametrize("surface", [pb.surfaces.Catenoid(), pb.surfaces.Helicoid()])
def test_minimal_surfaces_have_no_mean_curvature(surface):
    assert curvature.mean_curvature(pb.Pullback(surface), randn(9, 2)).norm(dim=-1).max() < 1e-12


def test_the_second_fundamental_form_is_normal_symmetric_and_bilinear():
    f, z, u, v, w = mlp(3, 9), randn(4, 3), *(randn(4, 3, seed=k) for k in (1, 2, 3))
    metric = pb.Pullback(f)

    def form(u, v):
        return curvature.second_fundamental_form(metric, z, u, v)

    assert (jacobian(f, z).mT @ form(u, v)[..., None]).abs().max() < 1e-12
    assert torch.allclose(form(u, v), form(v, u), rtol=1e-9, atol=1e-12)
    assert torch.allclose(form(2 * u - w, v), 2 * form(u, v) - form(w, v), rtol=1e-9, atol=1e-12)
    tangent = (jacobian(f, z) @ metric.christoffel(z, u, v)[..., None])[..., 0]
    assert torch.allclose(form(u, v) + tangent, second_derivative(f, z, u, v), rtol=1e-9, atol=1e-12)


def test_it_is_the_acceleration_of_the_decoded_geodesic():
    f, h = mlp(2, 9), 1e-3
    metric, z, v = pb.Pullback(f), randn(2), randn(2, seed=1)
    there, back = (f(pb.exp(metric, z, sign * h * v, tol=1e-10).end[None])[0] for sign in (1, -1))
    acceleration = (there - 2 * f(z[None])[0] + back) / h**2
    assert torch.allclose(acceleration, curvature.second_fundamental_form(metric, z, v, v), rtol=1e-3, atol=1e-4)


def test_the_scalar_curvature_is_the_square_of_the_trace_less_that_of_the_form():
    metric, z = pb.Pullback(mlp(3, 9)), randn(4, 3)
    frame = torch.linalg.cholesky(torch.linalg.inv(metric.matrix(z)))
    trace = curvature.mean_curvature(metric, z, normalized=False).square().sum(-1)
    e = frame.unbind(-1)
    form = sum(curvature.second_fundamental_form(metric, z, a, b).square().sum(-1) for a in e for b in e)
    assert torch.allclose(curvature.scalar(metric, z), trace - form, rtol=1e-8)


def test_the_mean_curvature_takes_no_more_memory_or_evaluations_than_its_directions(counting):
    d = 40  # above what is done exactly for tensors
    counter = counting(mlp(d, 60, width=50))
    metric = pb.Pullback(counter)
    metric.features(randn(1, d))
    counter.reset()
    curvature.mean_curvature(metric, randn(2, d))
    assert counter.reset() / 2 <= (d + 3) + 4 * d + 10


@pytest.mark.parametrize("metric", [pb.surfaces.PoincareBall(), pb.Pullback(mlp(), ambient=Diagonal())])
def test_metrics_without_an_immersion_have_no_normals(metric):
    z = 0.1 * randn(2, 2)
    with pytest.raises(ValueError, match=r"not that of a map into Euclidean space.*Pullback without `ambient`"):
        curvature.mean_curvature(metric, z)
    with pytest.raises(ValueError, match="no normal vectors"):
        curvature.second_fundamental_form(metric, z, z, z)
