import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

import pullback as pb
from pullback._checks import GeodesicWarning
from pullback.curves import length
from pullback.geodesics.exponential import exp
from pullback.geodesics.solution import ConvergenceError, Status

F64 = torch.float64


def points(*shape, seed=0, scale=0.7):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, width=64, n_features=50, seed=0, gain=1.5):
    generator = torch.Generator().manual_seed(seed)
    layers = nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, n_features)
    for weight in nn.Sequential(*layers).parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.data = gain * torch.randn(weight.shape, generator=generator, dtype=F64) / math.sqrt(fan)
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(scope="module")
def shipped():
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(5))[:8]
    return pb.Pullback(model.decoder), model.codes[chosen[:4]], model.codes[chosen[4:]]


def great_circle(sphere, z, v):
    """The end on the sphere of the great circle with these start and velocity."""
    x, push = torch.autograd.functional.jvp(sphere, z, v)
    angle = push.norm(dim=-1, keepdim=True) / sphere.radius
    return angle.cos() * x + angle.sin() * push / angle


def partial(z):
    """A plane that is missing where z_0 > 1."""
    return torch.cat((z, torch.where(z[:, :1] > 1, torch.nan, z[:, :1].sin())), 1)


# closed forms


@pytest.mark.parametrize("d", [2, 3, 10])
def test_on_the_sphere_it_follows_great_circles(d):
    sphere = pb.surfaces.Sphere(radius=2.0)
    z, v = points(5, d, scale=0.3), points(5, d, seed=1, scale=0.3)
    way = exp(pb.Pullback(sphere), z, v)
    off = (sphere(way.end) - great_circle(sphere, z, v)).norm(dim=-1)
    assert way.converged.all()
    assert off.max() < 1e-7
    assert (off <= way.error).all()
    assert torch.allclose(way.length, pb.Pullback(sphere).norm(z, v), rtol=1e-14)


def test_the_curve_is_the_geodesic_all_along_it():
    sphere = pb.surfaces.Sphere()
    z, v = points(5, 2), points(5, 2, seed=1)
    way = exp(pb.Pullback(sphere), z, v, n_segments=10)
    for i in range(11):
        if i:
            assert torch.allclose(sphere(way.curve.nodes[:, i]), great_circle(sphere, z, i / 10 * v), atol=1e-7)
    assert torch.equal(way.curve.nodes[:, 0], z)
    assert torch.equal(way.curve.nodes[:, -1], way.end)


def test_on_a_torus_the_momentum_around_the_axis_is_kept():
    torus = pb.surfaces.Torus()
    z, v = points(3, 2), points(3, 2, seed=1)
    way = exp(pb.Pullback(torus), z, v)
    assert torch.allclose(torus.clairaut(way.end, way.velocity), torus.clairaut(z, v), rtol=1e-7)


def test_in_a_plane_it_adds_the_vector_in_one_step():
    z, v = points(4, 3), points(4, 3, seed=1)
    way = exp(pb.Pullback(pb.surfaces.Plane(3)), z, v)
    assert torch.allclose(way.end, z + v, atol=1e-12)
    assert torch.allclose(way.velocity, v, atol=1e-12)
    assert (way.evaluations < 150).all()


# learned geometry


@pytest.mark.parametrize("d", [2, 8])
def test_the_speed_is_kept_on_networks(d):
    z, v = points(3, d), points(3, d, seed=1, scale=0.3)
    metric = pb.Pullback(mlp(d))
    way = exp(metric, z, v)
    assert way.converged.all()
    assert way.drift.max() < 1e-8
    assert torch.allclose(metric.norm(way.end, way.velocity), way.length, rtol=1e-8)
    assert torch.allclose(length(metric, way.curve), way.length, rtol=1e-4)


def test_the_speed_is_kept_on_the_shipped_model(shipped):
    metric, a, b = shipped
    way = exp(metric, a[:2], 0.2 * (b - a)[:2])
    assert way.converged.all()
    assert way.drift.max() < 1e-8


def test_the_reported_error_bounds_the_error():
    metric, z, v = pb.Pullback(mlp()), points(6, 2), points(6, 2, seed=1, scale=0.2)
    truth = exp(metric, z, v, tol=1e-10)
    for tol in (1e-5, 1e-7):
        way = exp(metric, z, v, tol=tol)
        off = (metric.features(way.end) - metric.features(truth.end)).norm(dim=-1)
        assert (off <= way.error).all()
        assert (way.error < 100 * tol * way.length).all()


def test_half_the_way_and_then_the_other_half_is_the_whole():
    metric, z, v = pb.Pullback(mlp()), points(5, 2), points(5, 2, seed=1)
    half = exp(metric, z, 0.5 * v)
    assert torch.allclose(exp(metric, half.end, half.velocity).end, exp(metric, z, v).end, atol=1e-7)


def test_a_vector_goes_where_it_goes_alone():
    metric, z, v = pb.Pullback(mlp()), points(6, 2), points(6, 2, seed=1)
    together, alone = exp(metric, z, v), exp(metric, z[3], v[3])
    assert torch.allclose(together[3].end, alone.end, atol=1e-10)
    assert torch.allclose(together[3].curve.nodes, alone.curve.nodes, atol=1e-10)
    assert alone.status is Status.CONVERGED


def test_evaluations_are_what_the_decoder_was_asked(counting):
    decoder = counting(mlp())
    metric, z, v = pb.Pullback(decoder), points(5, 2), points(5, 2, seed=1)
    metric.matrix(z)
    decoder.reset()
    way = exp(metric, z, v)
    assert int(way.evaluations.sum()) == decoder.reset()


def test_in_float32_it_is_as_good_as_its_digits():
    sphere = pb.surfaces.Sphere()
    z, v = points(5, 2).float(), points(5, 2, seed=1).float()
    way = exp(pb.Pullback(sphere), z, v)
    assert way.end.dtype == way.drift.dtype == torch.float32
    assert way.converged.all()
    assert (sphere(way.end) - great_circle(sphere, z, v)).norm(dim=-1).max() < 1e-4


# failures


def test_one_that_leaves_the_domain_says_so_and_returns_the_part_that_exists():
    metric = pb.Pullback(partial)
    z, v = torch.zeros(2, 2, dtype=F64), torch.tensor([[2.0, 0.5], [0.5, 0.5]], dtype=F64)
    with pytest.warns(GeodesicWarning, match="1 left the domain.*rows 0"):
        way = exp(metric, z, v)
    assert list(way.status) == [Status.LEFT_DOMAIN, Status.CONVERGED]
    for gone in (way.end, way.velocity, way.length, way.error, way.drift):
        assert gone[0].isnan().all()
        assert gone[1].isfinite().all()
    assert 0.3 < way.reached[0] < 0.8
    assert way.reached[1] == 1
    assert torch.allclose(way.curve.nodes[0, -1, 0], torch.tensor(1.0, dtype=F64), atol=1e-6)
    assert (way.curve.nodes[0].diff(dim=0)[:, 0] > 0).all()
    with pytest.raises(ConvergenceError, match="1 of 2"):
        way.raise_for_status()
    with pytest.raises(ConvergenceError, match="left the domain"):
        way[0].raise_for_status()
    way[1].raise_for_status()


def test_one_that_starts_outside_of_the_domain_says_so():
    z, v = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=F64), torch.full((2, 2), 0.3, dtype=F64)
    with pytest.warns(GeodesicWarning, match="1 not finite"):
        way = exp(pb.Pullback(partial), z, v)
    assert list(way.status) == [Status.NOT_FINITE, Status.CONVERGED]
    assert way.reached[0] == 0
    assert torch.equal(way.curve.nodes[0], z[:1].expand(65, 2))


def test_one_that_runs_through_the_missing_pole_of_the_sphere_blows_up():
    z, v = torch.zeros(1, 2, dtype=F64), torch.tensor([[2.0, 0.0]], dtype=F64)  # 4 > pi
    with pytest.warns(GeodesicWarning, match="blew up"):
        way = exp(pb.Pullback(pb.surfaces.Sphere()), z, v, tol=1e-3)
    assert way.status[0] in (Status.STALLED, Status.LEFT_DOMAIN)
    assert abs(float(way.reached[0]) - math.pi / 4) < 1e-3
    assert way.end.isnan().all()


def test_one_out_of_steps_says_so():
    with pytest.warns(GeodesicWarning, match="out of steps"):
        way = exp(pb.Pullback(mlp()), points(2), points(2, seed=1), max_steps=4)
    assert way.status is Status.MAX_STEPS
    assert way.message.startswith("out of steps")
    assert 0 < way.reached < 1


def test_no_failure_goes_unsaid_and_success_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exp(pb.Pullback(partial), torch.zeros(2, dtype=F64), torch.full((2,), 0.2, dtype=F64)).converged


# the door


def test_a_zero_vector_rests():
    z = points(2, 2)
    v = torch.tensor([[0.0, 0.0], [0.1, 0.2]], dtype=F64)
    way = exp(pb.Pullback(mlp()), z, v)
    assert torch.equal(way.end[0], z[0])
    assert way.length[0] == way.drift[0] == way.error[0] == 0
    assert torch.equal(way.curve.nodes[0], z[:1].expand(65, 2))
    assert way.converged.all()
    assert exp(pb.Pullback(mlp()), z[0], v[0]).converged


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3), (2, 0)])
def test_batches_of_any_shape_come_back_in_that_shape(batch):
    z, v = points(*batch, 2), points(*batch, 2, seed=1, scale=0.1)
    way = exp(pb.Pullback(mlp()), z, v, n_segments=5)
    assert way.end.shape == way.velocity.shape == (*batch, 2)
    assert way.curve.nodes.shape == (*batch, 6, 2)
    assert way.length.shape == way.codes.shape == way.reached.shape == batch


def test_one_point_may_have_many_vectors():
    z, v = points(2), points(3, 2, seed=1, scale=0.2)
    assert exp(pb.Pullback(mlp()), z, v).end.shape == (3, 2)


def test_nothing_of_the_callers_is_changed_and_nothing_carries_gradients():
    z, v = points(2).requires_grad_(), points(2, seed=1, scale=0.2)
    before = z.detach().clone()
    way = exp(pb.Pullback(mlp()), z, v)
    assert not way.end.requires_grad
    assert torch.equal(z, before)


def test_a_trajectory_can_be_copied_and_pickled():
    way = exp(pb.Pullback(mlp()), points(2), points(2, seed=1, scale=0.2))
    for other in (copy.deepcopy(way), pickle.loads(pickle.dumps(way))):
        assert torch.equal(other.end, way.end)
    assert "reached its end" in repr(way)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tol": 0.0}, "`tol`"),
        ({"tol": 1.0}, "below 1"),
        ({"max_steps": 0}, "`max_steps`"),
        ({"n_segments": 0}, "`n_segments`"),
        ({"v": torch.zeros(3, dtype=F64)}, "latent dimension"),
        ({"z": torch.zeros(2)}, "dtype"),
    ],
)
def test_what_cannot_be_done_is_refused(change, text):
    arguments = {"z": torch.zeros(2, dtype=F64), "v": torch.ones(2, dtype=F64), **change}
    with pytest.raises(ValueError, match=text):
        exp(pb.Pullback(mlp()), arguments.pop("z"), arguments.pop("v"), **arguments)


def test_a_vector_that_is_not_finite_fails_alone():
    # a logarithm that failed is NaN; the others go on
    metric, z, v = pb.Pullback(mlp()), points(3, 2), points(3, 2)
    v[1, 0] = torch.nan
    with pytest.warns(pb.GeodesicWarning, match=r"not finite: the vector is.*rows 1\)"):
        lost = exp(metric, z, v)
    assert lost.status.tolist() == [pb.Status.CONVERGED, pb.Status.NOT_FINITE, pb.Status.CONVERGED]
    assert lost.end.isnan().all(1).tolist() == [False, True, False]
    assert torch.allclose(lost.end[2], exp(metric, z[2], v[2]).end, rtol=1e-12)


def test_on_a_decoder_with_creases_the_speed_is_not_kept_and_that_is_said():
    relu = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 50)).double()
    with pytest.warns(pb.GeodesicWarning, match="does not see creases"):
        flight = exp(pb.Pullback(relu), -2 * torch.ones(2, dtype=F64), 4 * torch.ones(2, dtype=F64))
    assert flight.status is pb.Status.NON_SMOOTH
    assert flight.end.isnan().all()


def test_a_decoder_is_no_metric():
    with pytest.raises(TypeError, match="wrapped as Pullback"):
        exp(mlp(), points(2), points(2))  # pyright: ignore[reportArgumentType]
