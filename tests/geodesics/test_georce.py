import math
import pickle

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import pullback as pb
from pullback.geodesics import georce
from pullback.geodesics.georce import Georce
from pullback.geodesics.solution import Status
from pullback.metrics import Metric

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::pullback._checks.GeodesicWarning")


def points(n, d=2, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def published(d):
    """The end points of the authors' experiments on spheres, in stereographic coordinates."""
    return -torch.linspace(0, 1, d, dtype=F64), torch.full((d,), 0.5, dtype=F64)


def mlp(d=2, n_features=50, seed=0, gain=1.5):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 64), nn.Tanh(), nn.Linear(64, n_features))
    for weight in net.parameters():
        weight.data = gain * torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[-1])
    return net.to(F64).requires_grad_(False)


class HalfPlane(Metric):
    """The hyperbolic plane: y > 0, G = I / y^2, by nothing but inner and matrix."""

    def inner(self, z, u, v):
        return (u * v).sum(-1) / z[..., 1].square()

    def matrix(self, z):
        return torch.eye(2, dtype=z.dtype, device=z.device) / z[..., 1, None, None].square()

    def distance(self, a, b):
        return torch.acosh(1 + (b - a).square().sum(-1) / (2 * a[..., 1] * b[..., 1]))


# what it is


@pytest.mark.parametrize(("d", "steps", "length"), [(2, 9, 2.300524), (3, 45, 2.461919), (10, 17, 1.975170)])
def test_it_takes_the_published_number_of_steps(d, steps, length):
    a, b = published(d)
    solver = Georce(n_segments=100, max_segments=100, gradient_tol=1e-4)
    path = pb.geodesic(pb.Pullback(pb.surfaces.Sphere()), a, b, tol=1e-2, solver=solver)
    assert path.iterations == steps
    assert path.curve.n_segments == 100
    assert abs(path.length - length) <= path.length_error


@pytest.mark.parametrize(("d", "rate"), [(2, 0.65), (3, 0.95)])
@pytest.mark.parametrize("n", [50, 200])
def test_it_converges_linearly_at_a_rate_of_the_chart_not_of_the_mesh(d, rate, n):
    metric, ends = pb.Pullback(pb.surfaces.Sphere()), published(d)
    state = georce._begin(metric, pb.Curve.straight(*ends, n).nodes[None])
    rates = []
    for _ in range(30):
        before = state.decrement
        state = georce._aim(metric, georce._line_search(metric, state))
        rates.append(float((state.decrement / before).sqrt()))
    assert rates[-1] == pytest.approx(rate, abs=0.04)


def test_it_ends_at_the_minimum_of_its_sum_that_scipy_finds():
    metric, (a, b) = pb.Pullback(mlp()), points(2, seed=1)
    line = pb.Curve.straight(a, b, 8).nodes

    def value_and_gradient(flat):
        z = torch.from_numpy(flat).reshape(-1, 2).requires_grad_()
        x = torch.cat((a[None], z, b[None]))
        steps = x.diff(dim=0)
        value = metric.inner(x[:-1], steps, steps).sum()
        return value.item(), torch.autograd.grad(value, z)[0].flatten().numpy()

    best = minimize(value_and_gradient, line[1:-1].flatten().numpy(), jac=True, method="BFGS", options={"gtol": 1e-9})
    solver = Georce(n_segments=8, max_segments=8, gradient_tol=1e-8)
    path = pb.geodesic(metric, a, b, tol=0.9, solver=solver)
    state, codes = solver._descend(metric, line[None], 0.9, _Silent())
    assert codes == Status.CONVERGED.code
    assert path.converged
    assert torch.allclose(state.x[0, 1:-1].flatten(), torch.from_numpy(best.x), atol=1e-6)


class _Silent:
    def set_postfix(self, **_):
        pass


# closed forms


def test_great_circles_have_their_length_within_the_error():
    sphere = pb.surfaces.Sphere(radius=2.0)
    a, b = points(10, 3, 1, 0.5), points(10, 3, 2, 0.5)
    path = pb.geodesic(pb.Pullback(sphere), a, b, solver=Georce())
    assert path.converged.all()
    assert ((path.length - sphere.distance(a, b)).abs() <= path.length_error).all()
    assert (path.length_error <= 1.001e-4 * path.length).all()


def test_a_metric_without_immersion_is_enough():
    metric = HalfPlane()
    a, b = points(10, 2, 1, 0.5), points(10, 2, 2, 0.5)
    a[:, 1], b[:, 1] = a[:, 1].exp(), b[:, 1].exp()
    path = pb.geodesic(metric, a, b, solver=Georce())
    assert path.converged.all()
    assert ((path.length - metric.distance(a, b)).abs() <= path.length_error).all()


def test_a_flat_metric_is_solved_at_once():
    plane = pb.surfaces.Plane()
    a, b = points(5, 2, 1), points(5, 2, 2)
    path = pb.geodesic(pb.Pullback(plane), a, b, solver=Georce())
    assert torch.allclose(path.length, plane.distance(a, b), rtol=1e-10)
    assert (path.iterations == 0).all()


def test_it_finds_the_geodesics_that_relaxation_finds_on_a_trained_decoder():
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(5))[:24]
    a, b = model.codes[chosen[7:9]], model.codes[chosen[19:21]]
    metric = pb.Pullback(model.decoder)
    path, other = pb.geodesic(metric, a, b, solver=Georce()), pb.geodesic(metric, a, b, tol=1e-6)
    assert path.converged.all()
    assert ((path.length - other.length).abs() <= path.length_error).all()


# defects of peers


def test_t29_no_step_raises_the_sum_and_the_end_is_below_the_start():
    # one of them checks its steps against another direction than it takes, and ends above the straight line
    metric = pb.Pullback(mlp(8, 200, gain=2.5))
    a, b = points(4, 8, 1), points(4, 8, 2)
    line = pb.Curve.straight(a, b, 32)
    state, values = georce._begin(metric, line.nodes), []
    for _ in range(15):
        values.append(state.value)
        state = georce._aim(metric, georce._line_search(metric, state))
    sequence = torch.stack(values)
    assert (sequence[1:] <= sequence[:-1] * (1 + 1e-14)).all()
    assert (pb.length(metric, pb.Curve(state.x)) < pb.length(metric, line)).all()


def test_t29_a_step_that_goes_too_far_is_shortened_for_that_pair_alone():
    metric = pb.Pullback(mlp(8, 200, gain=2.5))
    state = georce._begin(metric, pb.Curve.straight(points(8, 8, 1), points(8, 8, 2), 16).nodes)
    sizes = []
    for _ in range(8):
        found = georce._line_search(metric, state)
        size = (found.x - state.x).flatten(1).norm(dim=1) / state.direction.flatten(1).norm(dim=1)
        assert (found.value <= state.value - 1e-4 * size * state.decrement + 1e-12).all()
        sizes.append(size)
        state = georce._aim(metric, found)
    taken = torch.stack(sizes)
    halvings = torch.log2(taken)
    assert torch.allclose(halvings, halvings.round(), atol=1e-6)
    mixed = (taken.amin(1) < 0.9) & (taken.amax(1) > 0.9)
    assert mixed.any()


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_t30_the_scale_of_the_decoder_changes_neither_steps_nor_status(scale):
    f = mlp()
    a, b = points(5, 2, 1), points(5, 2, 2)
    one = pb.geodesic(pb.Pullback(f), a, b, solver=Georce(n_segments=32))
    other = pb.geodesic(pb.Pullback(lambda z: scale * f(z)), a, b, solver=Georce(n_segments=32))
    assert torch.equal(one.iterations, other.iterations)
    assert torch.equal(one.codes, other.codes)
    assert torch.allclose(other.length, scale * one.length, rtol=1e-9)


def test_t27_a_pair_does_not_notice_the_others_of_its_batch():
    metric = pb.Pullback(mlp())
    a, b = points(6, 2, 1), points(6, 2, 2)
    together = pb.geodesic(metric, a, b, solver=Georce(n_segments=32))
    for i in range(6):
        alone = pb.geodesic(metric, a[i], b[i], solver=Georce(n_segments=32))
        assert torch.allclose(alone.length, together.length[i], rtol=1e-10, equal_nan=True)
        for name in ("codes", "iterations", "evaluations"):
            assert getattr(alone, name) == getattr(together, name)[i]


def test_t28_one_step_fails_exactly_the_pairs_that_need_more():
    metric = pb.Pullback(pb.surfaces.Sphere())
    a = points(4, 2, 1, 0.5)
    b = a + torch.tensor([1e-4, 1.0, 1e-4, 1.0], dtype=F64)[:, None]
    path = pb.geodesic(metric, a, b, solver=Georce(n_segments=16, max_steps=1))
    assert path.converged.tolist() == [True, False, True, False]
    assert path.length.isnan().tolist() == [False, True, False, True]
    assert [s.name for s in path.status] == ["CONVERGED", "MAX_STEPS", "CONVERGED", "MAX_STEPS"]
    assert "pairs 1, 3" in path.message


def test_t17_a_dead_latent_dimension_gives_no_nan():
    path = pb.geodesic(pb.Pullback(lambda z: z[:, :1].sin()), *points(2, 2, 1, 0.3).split(1), solver=Georce())
    assert path.converged.all()
    assert torch.isfinite(path.curve.nodes).all()


def test_t34_every_setting_is_reached_from_the_top_level_call():
    solver = Georce(n_segments=10, max_segments=20, max_steps=3, gradient_tol=1e-12)
    path = pb.geodesic(pb.Pullback(mlp()), *points(2, 2, 1).split(1), solver=solver, progress=True)
    assert path.iterations == 3
    assert path.curve.n_segments == 10
    assert pickle.loads(pickle.dumps(solver)) == solver


# bad input and faults


def test_a_decoder_that_is_nan_for_some_pairs_fails_these_alone():
    def holed(z):
        return torch.where((z[:, :1] > 3).expand(-1, 3), torch.nan, pb.surfaces.Sphere()(z))

    a, b = points(5, 2, 1, 0.3), points(5, 2, 2, 0.3)
    b[[1, 4], 0] = 4.0
    path = pb.geodesic(pb.Pullback(holed), a, b, solver=Georce(n_segments=16))
    assert [s.name for s in path.status] == ["CONVERGED", "NOT_FINITE", "CONVERGED", "CONVERGED", "NOT_FINITE"]
    assert path.length.isnan().tolist() == [False, True, False, False, True]
    whole = pb.geodesic(pb.Pullback(pb.surfaces.Sphere()), a, b, solver=Georce(n_segments=16))
    assert torch.allclose(path.length[[0, 2, 3]], whole.length[[0, 2, 3]], rtol=1e-10)


def test_too_few_segments_for_the_tolerance_are_said():
    metric, ends = pb.Pullback(mlp()), points(2, 2, 1).split(1)
    path = pb.geodesic(metric, *ends, solver=Georce(8, 8), tol=1e-5)
    assert path.status[0] == Status.WALL
    assert path.length.isnan()
    assert pb.geodesic(metric, *ends, solver=Georce(8, 256), tol=1e-5).converged.all()


def test_a_metric_that_hides_its_gradient_is_refused_and_a_constant_one_is_not():
    class Hidden(HalfPlane):
        def inner(self, z, u, v):
            return super().inner(z.detach(), u, v)

    class Constant(HalfPlane):
        def inner(self, z, u, v):
            return 4 * (u * v).sum(-1)

        def matrix(self, z):
            return 4 * torch.eye(2, dtype=z.dtype).expand(*z.shape, 2)

    a, b = torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([3.0, 5.0], dtype=F64)
    with pytest.raises(ValueError, match="carries no gradient"):
        georce._turning(Hidden(), pb.Curve.straight(a, b, 4).nodes[None])
    assert pb.geodesic(Constant(), a, b, solver=Georce(8)).length == pytest.approx(10.0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`n_segments` is 7"):
        Georce(n_segments=7)
    with pytest.raises(ValueError, match="`max_steps` is 0"):
        Georce(max_steps=0)
    with pytest.raises(ValueError, match="`gradient_tol` is -1"):
        Georce(gradient_tol=-1)


def test_the_reported_evaluations_are_those_that_the_decoder_saw(counting):
    counter = counting(mlp(8, 200, gain=2.0))
    metric = pb.Pullback(counter)
    a, b = points(5, 8, 1), points(5, 8, 2)
    metric.points_at_once(a)
    counter.reset()
    path = pb.geodesic(metric, a, b, solver=Georce(n_segments=16, max_segments=64), tol=1e-2)
    assert path.converged.any()
    assert counter.evaluations == path.evaluations.sum()
