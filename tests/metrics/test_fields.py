import math

import pytest
import torch
from torch import nn

import pullback as pb
from metric_contract import F64, MetricContract
from pullback.metrics import Metric
from small import Bowl, mlp, randn, tilt


def half_plane(z):
    return torch.diag_embed((1 / z[:, 1:].square()).expand(-1, 2))


class TestMatrixField(MetricContract):
    def metric(self):
        return pb.MatrixField(Bowl())


class TestLocalVariance(MetricContract):
    d = 3

    def metric(self):
        return pb.LocalVariance(randn(40, 3, seed=3), bandwidth=0.6, floor=0.05)


class TestConformalOverADecoder(MetricContract):
    def metric(self):
        return pb.Conformal(pb.Pullback(mlp()), tilt)


class TestConformalOverAMatrixField(MetricContract):
    def metric(self):
        return pb.Conformal(pb.MatrixField(Bowl()), tilt)


# MatrixField


def test_a_constant_field_has_the_distances_of_its_matrix():
    g = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    metric = pb.MatrixField(lambda z: g.expand(len(z), 2, 2))
    start, end = randn(4, 2), randn(4, 2, seed=1)
    expected = torch.einsum("ni,ij,nj->n", end - start, g, end - start).sqrt()
    assert torch.allclose(pb.geodesic(metric, start, end).length, expected, rtol=1e-12)


def test_geodesics_of_the_half_plane_have_their_closed_length():
    start = torch.tensor([[0.0, 1.0], [-1.0, 0.5], [0.2, 2.0]], dtype=F64)
    end = torch.tensor([[0.7, 1.5], [1.0, 0.7], [0.2, 0.5]], dtype=F64)
    squares = (start - end).square().sum(-1)
    expected = torch.acosh(1 + squares / (2 * start[:, 1] * end[:, 1]))
    path = pb.geodesic(pb.MatrixField(half_plane), start, end, tol=1e-7)
    assert path.converged.all()
    assert torch.allclose(path.length, expected, rtol=1e-6)
    assert ((path.length - expected).abs() <= path.length_error + 1e-12).all()


def test_exp_follows_the_half_circles_of_the_half_plane():
    z, v = torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.8, 0.0], dtype=F64)
    end = pb.exp(pb.MatrixField(half_plane), z, v, tol=1e-9).end
    assert torch.allclose(end, torch.tensor([math.tanh(0.8), 1 / math.cosh(0.8)], dtype=F64), atol=1e-7)
    back = pb.log(pb.MatrixField(half_plane), z, end)
    assert torch.allclose(back, v, atol=1e-6)


def test_a_matrix_that_is_not_symmetric_is_refused_with_its_point():
    field = pb.MatrixField(
        lambda z: torch.stack((torch.stack((1 + z[:, 0] ** 2, z[:, 0]), -1), z.new_ones(len(z), 2)), -1)
    )
    with pytest.raises(
        ValueError, match=r"point 1, \[3.0, 0.0\], is not symmetric: it differs from its transpose by 2"
    ):
        field.matrix(torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=F64))


def test_a_matrix_that_is_not_positive_definite_is_refused_with_its_point_and_eigenvalue():
    field = pb.MatrixField(lambda z: torch.diag_embed(z))
    z = torch.tensor([[[1.0, 2.0]], [[3.0, -0.25]]], dtype=F64)
    with pytest.raises(ValueError, match=r"point 1, \[3.0, -0.25\], is not positive definite: .* eigenvalue is -0.25"):
        field.inner(z, z, z)


@pytest.mark.parametrize("field", [lambda z: z, lambda z: z[:, :, None], lambda z: 1.0, lambda z: torch.eye(2)])
def test_a_field_of_another_shape_is_refused(field):
    with pytest.raises(ValueError, match=r"`field` maps points \(3, 2\) to .* want a tensor of shape \(3, 2, 2\)"):
        pb.MatrixField(field).matrix(torch.zeros(3, 2))


def test_a_field_that_is_not_finite_somewhere_is_refused():
    with pytest.raises(ValueError, match="the metric holds NaN or infinity at 1 of 2 points"):
        pb.MatrixField(lambda z: torch.diag_embed(1 / z)).matrix(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="`field` is a Tensor"):
        pb.MatrixField(torch.eye(2))
    with pytest.raises(TypeError, match="`factor` is a float"):
        pb.Conformal(pb.MatrixField(Bowl()), 2.0)
    with pytest.raises(TypeError, match="`metric` is a Linear"):
        pb.Conformal(nn.Linear(2, 2), tilt)


def test_a_curve_that_meets_no_metric_fails_alone():
    # the half-plane ends at y = 0, and no curve from below it is one
    start = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match="1 of 2"):
        path = pb.geodesic(pb.MatrixField(lambda z: half_plane(z) * z[:, 1:, None].sign()), start, -start.flip(1) + 2)
    assert path.converged.tolist() == [True, False]


# LocalVariance


def test_the_local_variance_is_the_loop_over_its_formula():
    data, z = randn(20, 2, seed=1) + 100, randn(5, 2, seed=2) + 100
    metric = pb.LocalVariance(data, bandwidth=0.8, floor=0.02)
    for point, g in zip(z, metric.matrix(z), strict=True):
        variance = torch.zeros(2, dtype=F64)
        for x in data:
            variance += torch.exp(-(x - point).square().sum() / (2 * 0.8**2)) * (x - point) ** 2
        assert torch.allclose(g, torch.diag(1 / (variance + 0.02)), rtol=1e-9)


def test_far_from_the_data_the_local_variance_metric_is_its_plateau():
    metric = pb.LocalVariance(randn(20, 2), bandwidth=0.5, floor=0.1)
    far = torch.full((2,), 50.0, dtype=F64)
    assert torch.allclose(metric.matrix(far), 10 * torch.eye(2, dtype=F64))


def test_geodesics_of_the_local_variance_solve_its_boundary_value_problem():
    # an independent solver of the geodesic equation, with Christoffel symbols by finite differences
    from scipy.integrate import solve_bvp

    angle = torch.linspace(0, math.pi, 60, dtype=F64)
    data = torch.stack((angle.cos(), angle.sin()), 1)
    metric = pb.LocalVariance(data, bandwidth=0.4, floor=0.5)
    start, end = data[5], data[-6]
    path = pb.geodesic(metric, start, end, tol=1e-7)

    def equation(t, y):
        z, v = torch.from_numpy(y[:2].T.copy()), torch.from_numpy(y[2:].T.copy())
        h, steps = 1e-5, 1e-5 * torch.eye(2, dtype=F64)
        slopes = torch.stack([metric.matrix(z + s) - metric.matrix(z - s) for s in steps], 1) / (2 * h)
        lowered = torch.einsum("nkij,nk,nj->ni", slopes, v, v) - 0.5 * torch.einsum("nkij,ni,nj->nk", slopes, v, v)
        bent = -torch.linalg.solve(metric.matrix(z), lowered[..., None])[..., 0]
        return torch.cat((v, bent), 1).numpy().T

    def ends(a, b):
        return torch.cat((torch.from_numpy(a[:2]) - start, torch.from_numpy(b[:2]) - end)).numpy()

    t = torch.linspace(0, 1, 33, dtype=F64)
    guess = torch.cat((path.curve(t), path.curve.velocity(t)), 1).numpy().T + 0.01
    solution = solve_bvp(equation, ends, t.numpy(), guess, tol=1e-7)
    assert solution.success
    fine = torch.from_numpy(solution.sol(torch.linspace(0, 1, 400).numpy())[:2].T.copy())
    assert abs(float(pb.length(metric, pb.Curve(fine)) - path.length)) < 1e-6 * float(path.length)
    assert float(path.length) < 0.999 * float(pb.length(metric, pb.Curve.straight(start, end)))  # it is bent


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"data": torch.zeros(3), "bandwidth": 1.0, "floor": 1.0}, r"`data` has shape \(3,\)"),
        ({"data": torch.tensor([[math.nan, 0.0]]), "bandwidth": 1.0, "floor": 1.0}, "`data` holds NaN"),
        ({"data": torch.zeros(3, 2), "bandwidth": 0.0, "floor": 1.0}, "`bandwidth` is 0.0: it must be positive"),
        ({"data": torch.zeros(3, 2), "bandwidth": 1.0, "floor": -1.0}, "`floor` is -1.0: it must be positive"),
    ],
)
def test_unfit_arguments_of_the_local_variance_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        pb.LocalVariance(**arguments)


def test_points_of_another_dimension_than_the_data_are_refused():
    metric = pb.LocalVariance(torch.zeros(3, 2), bandwidth=1.0, floor=1.0)
    with pytest.raises(ValueError, match="latent dimension 3 but `data` has 2"):
        metric.matrix(torch.zeros(3))


# Conformal


def test_a_factor_times_a_metric_is_the_matrix_times_the_factor():
    base, z = pb.Pullback(mlp()), randn(6, 2)
    assert torch.allclose(pb.Conformal(base, tilt).matrix(z), tilt(z)[:, None, None] * base.matrix(z), rtol=1e-13)


def test_the_sphere_is_a_conformal_plane():
    # stereographic projection: G = 4 / (1 + |z|^2)^2 I
    plane = pb.Pullback(nn.Identity())
    metric = pb.Conformal(plane, lambda z: 4 / (1 + z.square().sum(-1)) ** 2)
    start, end = 0.6 * randn(10, 2), 0.6 * randn(10, 2, seed=1)
    path = pb.geodesic(metric, start, end, tol=1e-7)
    assert torch.allclose(path.length, pb.surfaces.Sphere().distance(start, end), rtol=1e-6)


def test_geodesics_that_trade_a_potential_for_length_are_those_of_its_conformal_metric():
    # Maupertuis: curves that minimize the integral of |f'|^2 + 2 V in fixed time keep c = |f'|^2 - 2 V, and are the
    # geodesics of (c + 2 V) G; here by a direct minimization on a fine polyline
    def potential(z):
        return 3 * torch.exp(-4 * ((z - torch.tensor([0.1, 0.05], dtype=F64)) ** 2).sum(-1))

    start, end, n = torch.tensor([-1.0, 0.0], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64), 200
    nodes = pb.Curve.straight(start, end, n).nodes
    inner = (nodes[1:-1] + torch.tensor([0.0, -0.2], dtype=F64)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [inner],
        max_iter=4000,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def whole():
        return torch.cat((start[None], inner, end[None]))

    def action():
        optimizer.zero_grad()
        z = whole()
        value = n * z.diff(dim=0).square().sum() + 2 * potential(0.5 * (z[1:] + z[:-1])).mean()
        value.backward()
        return value

    optimizer.step(action)
    z = whole().detach()
    kept = (n * z.diff(dim=0)).square().sum(-1) - 2 * potential(0.5 * (z[1:] + z[:-1]))
    assert kept.std() < 2e-3 * kept.mean()
    metric = pb.Conformal(pb.Pullback(nn.Identity()), lambda z: kept.mean() + 2 * potential(z))
    path = pb.geodesic(metric, start, end, tol=1e-6, init=pb.Curve(z[::10].contiguous()))
    apart = torch.cdist(path.curve(torch.linspace(0, 1, 50, dtype=F64)), pb.Curve(z).resample(4000).nodes).amin(1)
    assert path.converged
    assert apart.max() < 1e-3
    assert z[:, 1].abs().max() > 0.1  # it went around


def test_a_factor_that_is_not_positive_is_refused_with_its_point():
    metric = pb.Conformal(pb.Pullback(nn.Identity()), lambda z: z[:, 0])
    z = torch.tensor([[1.0, 0.0], [-2.0, 5.0]])
    for method in (metric.matrix, metric.log_volume, lambda z: metric.norm(z, z)):
        with pytest.raises(ValueError, match=r"`factor` is -2 at the point \[-2.0, 5.0\]: it must be positive"):
            method(z)


def test_a_factor_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`factor` maps points .* to shape \(3, 2\): want a tensor of shape \(3,\)"):
        pb.Conformal(pb.Pullback(nn.Identity()), lambda z: z).matrix(torch.ones(3, 2))


@pytest.mark.parametrize("base", [lambda: pb.Pullback(mlp()), lambda: pb.MatrixField(Bowl())])
def test_the_short_formula_for_a_conformal_christoffel_vector_is_the_long_one(base):
    metric, z, u, v = pb.Conformal(base(), tilt), randn(5, 2), randn(5, 2, seed=1), randn(5, 2, seed=2)
    assert torch.allclose(metric.christoffel(z, u, v), Metric.christoffel(metric, z, u, v), rtol=1e-9, atol=1e-11)


def test_weights_of_a_factor_can_be_trained_on_a_distance():
    factor = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Softplus(), nn.Flatten(0)).double()
    metric = pb.Conformal(pb.Pullback(nn.Identity()), factor)
    pb.distance(metric, randn(2), randn(2, seed=1)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in factor.parameters())
