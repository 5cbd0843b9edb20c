import math
import pickle

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.geodesics.collocate import Collocate
from pullback.geodesics.solution import Status
from pullback.metrics import Metric

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::pullback._checks.GeodesicWarning")


def points(n, d=2, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, n_features=50, seed=0, gain=1.0):
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


@pytest.mark.parametrize(("d", "tol"), [(2, 1e-4), (3, 1e-4), (2, 1e-8)])
def test_great_circles_have_their_length_within_the_error(d, tol):
    sphere = pb.surfaces.Sphere(radius=2.0)
    a, b = points(4, d, 1, 0.4), points(4, d, 2, 0.4)
    path = pb.geodesic(pb.Pullback(sphere), a, b, solver=Collocate(), tol=tol)
    assert path.converged.all()
    assert ((path.length - sphere.distance(a, b)).abs() <= path.length_error).all()
    assert (path.length_error <= 1.001 * tol * path.length).all()
    assert torch.equal(path.curve.nodes[:, 0], a)
    assert torch.equal(path.curve.nodes[:, -1], b)


def test_solutions_satisfy_the_geodesic_equation():
    metric = pb.Pullback(mlp())
    path = pb.geodesic(metric, *points(2, 2, 1).split(1), solver=Collocate(), tol=1e-8)
    t = torch.linspace(0.1, 0.9, 20, dtype=F64)
    z, v, acceleration = (part[0] for part in (path.curve(t), path.curve.velocity(t), path.curve.acceleration(t)))
    residual = acceleration + metric.christoffel(z, v, v)
    assert residual.norm(dim=1).max() < 1e-2 * acceleration.norm(dim=1).max()


def test_a_metric_without_immersion_is_enough():
    a, b = torch.tensor([[0.0, 1.0]], dtype=F64), torch.tensor([[1.5, 0.7]], dtype=F64)
    path = pb.geodesic(HalfPlane(), a, b, solver=Collocate())
    exact = torch.acosh(1 + (b - a).square().sum(-1) / (2 * a[:, 1] * b[:, 1]))
    assert path.converged.all()
    assert ((path.length - exact).abs() <= path.length_error).all()


def test_it_finds_the_geodesics_that_relaxation_finds_on_a_trained_decoder():
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(5))[:24]
    a, b = model.codes[chosen[7:9]], model.codes[chosen[19:21]]
    metric = pb.Pullback(model.decoder)
    path, other = pb.geodesic(metric, a, b, solver=Collocate()), pb.geodesic(metric, a, b, tol=1e-6)
    assert path.converged.all()
    assert ((path.length - other.length).abs() <= path.length_error).all()


def test_the_long_way_round_satisfies_the_equation_and_is_not_called_shortest():
    a = torch.tensor([[-2.0, 0.0]], dtype=F64)
    path = pb.geodesic(pb.Pullback(pb.surfaces.Sphere()), a, -a, solver=Collocate())
    assert path.status[0] == Status.STALLED
    assert path.length.isnan()


def test_it_goes_on_from_the_curve_that_it_is_given():
    metric = pb.Pullback(mlp(gain=1.5))
    a, b = points(2, 2, 3).split(1)
    first = pb.geodesic(metric, a, b, tol=1e-6)
    path = pb.geodesic(metric, a, b, solver=Collocate(), init=first.curve)
    assert torch.allclose(path.length, first.length, rtol=1e-4)
    assert path.iterations <= 1


def test_t28_too_few_nodes_fail_exactly_the_pairs_that_need_more():
    metric = pb.Pullback(mlp(gain=2.0))
    a = points(4, 2, 1)
    b = a + torch.tensor([1e-3, 3.0, 1e-3, 3.0], dtype=F64)[:, None]
    path = pb.geodesic(metric, a, b, solver=Collocate(max_nodes=12), tol=1e-8)
    assert [s.name for s in path.status] == ["CONVERGED", "MAX_STEPS", "CONVERGED", "MAX_STEPS"]
    assert path.length.isnan().tolist() == [False, True, False, True]
    assert "pairs 1, 3" in path.message


def test_no_more_refinements_are_made_than_allowed():
    metric = pb.Pullback(mlp(gain=1.5))
    a, b = points(2, 2, 1).split(1)
    path = pb.geodesic(metric, a, b, solver=Collocate(max_refinements=0), tol=1e-9)
    assert path.status[0] == Status.WALL
    assert pb.geodesic(metric, a, b, solver=Collocate(), tol=1e-9).converged.all()


def test_t27_a_pair_does_not_notice_the_others_of_its_batch():
    metric = pb.Pullback(mlp())
    a, b = points(3, 2, 1), points(3, 2, 2)
    together = pb.geodesic(metric, a, b, solver=Collocate())
    for i in range(3):
        alone = pb.geodesic(metric, a[i], b[i], solver=Collocate())
        assert torch.allclose(alone.length, together.length[i], rtol=1e-10)
        for name in ("codes", "iterations", "evaluations"):
            assert getattr(alone, name) == getattr(together, name)[i]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_t30_the_scale_of_the_decoder_changes_neither_steps_nor_status(scale):
    f = mlp()
    a, b = points(2, 2, 1), points(2, 2, 2)
    one = pb.geodesic(pb.Pullback(f), a, b, solver=Collocate())
    other = pb.geodesic(pb.Pullback(lambda z: scale * f(z)), a, b, solver=Collocate())
    assert torch.equal(one.iterations, other.iterations)
    assert torch.equal(one.codes, other.codes)
    assert torch.allclose(other.length, scale * one.length, rtol=1e-9)


def test_t34_every_setting_is_reached_from_the_top_level_call():
    solver = Collocate(max_nodes=500, max_refinements=2)
    path = pb.geodesic(pb.Pullback(mlp()), *points(2, 2, 1).split(1), solver=solver, progress=True)
    assert path.converged.all()
    assert pickle.loads(pickle.dumps(solver)) == solver


def test_a_decoder_that_is_nan_for_some_pairs_fails_these_alone():
    def holed(z):
        return torch.where((z[:, :1] > 2).expand(-1, 3), torch.nan, pb.surfaces.Sphere()(z))

    a, b = points(3, 2, 1, 0.3), points(3, 2, 2, 0.3)
    b[1, 0] = 4.0
    path = pb.geodesic(pb.Pullback(holed), a, b, solver=Collocate())
    assert [s.name for s in path.status] == ["CONVERGED", "NOT_FINITE", "CONVERGED"]
    assert path.length.isnan().tolist() == [False, True, False]


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`max_nodes` is 0"):
        Collocate(max_nodes=0)
    with pytest.raises(ValueError, match="`max_refinements` is -1"):
        Collocate(max_refinements=-1)


def test_float32_points_are_solved_and_stay_float32():
    sphere = pb.surfaces.Sphere()
    a, b = points(2, 2, 1, 0.4).float(), points(2, 2, 2, 0.4).float()
    path = pb.geodesic(pb.Pullback(sphere), a, b, solver=Collocate(), tol=1e-3)
    assert path.length.dtype == path.curve.nodes.dtype == torch.float32
    assert torch.allclose(path.length, sphere.distance(a, b), rtol=1e-3)


def test_the_reported_evaluations_are_those_that_the_decoder_saw(counting):
    counter = counting(mlp())
    metric = pb.Pullback(counter)
    a, b = points(3, 2, 1), points(3, 2, 2)
    metric.points_at_once(a)
    counter.reset()
    path = pb.geodesic(metric, a, b, solver=Collocate())
    assert counter.evaluations == path.evaluations.sum()
