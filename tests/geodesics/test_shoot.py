import math
import pickle

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.curves import Curve
from pullback.geodesics.exponential import exp
from pullback.geodesics.shoot import Shoot, aim
from pullback.geodesics.solution import Status

F64 = torch.float64


def points(*shape, seed=0, scale=0.5):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, width=64, n_features=50, seed=0, gain=1.5):
    generator = torch.Generator().manual_seed(seed)
    layers = nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, n_features)
    for weight in nn.Sequential(*layers).parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.data = gain * torch.randn(weight.shape, generator=generator, dtype=F64) / math.sqrt(fan)
    return nn.Sequential(*layers).requires_grad_(False)


def relaxed(metric, a, b):
    """The curves of geodesics at tol 1e-4, to start from, and their initial velocities."""
    curve = pb.geodesic(metric, a, b, tol=1e-4).curve
    return curve.nodes, curve.velocity(torch.zeros(1, dtype=a.dtype))[:, 0]


@pytest.mark.parametrize("name", ["sphere2", "sphere3", "sphere10", "mlp2", "mlp8"])
def test_the_exponential_of_the_logarithm_is_the_point(name):
    d = int(name.removeprefix("sphere").removeprefix("mlp"))
    metric = pb.Pullback(pb.surfaces.Sphere() if name.startswith("sphere") else mlp(d))
    a, b = points(3, d, scale=0.3), points(3, d, seed=1, scale=0.3)
    velocity, miss, codes, _ = aim(metric, a, b, relaxed(metric, a, b)[1], tol=1e-6)
    assert (codes == Status.CONVERGED.code).all()
    assert miss.max() <= 1e-6
    back = exp(metric, a, velocity)
    off = (metric.features(back.end) - metric.features(b)).norm(dim=-1)
    assert (off / back.length).max() <= 1e-6


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_great_circles_have_their_length_within_the_error(tol):
    sphere = pb.surfaces.Sphere()
    a, b = points(6, 2), points(6, 2, seed=1)
    path = Shoot().solve(pb.Pullback(sphere), a, b, tol=tol, nodes=relaxed(pb.Pullback(sphere), a, b)[0])
    assert path.converged.all()
    assert ((path.length - sphere.distance(a, b)).abs() <= path.length_error).all()
    assert (path.length_error <= 3 * tol * path.length).all()
    assert torch.allclose(path.energy, 0.5 * path.length**2)


def test_on_the_shipped_model_it_agrees_with_relaxation():
    model = pb.models.pretrained("mnist012")
    metric, a, b = pb.Pullback(model.decoder), model.codes[:2], model.codes[2:4]
    truth = pb.geodesic(metric, a, b, tol=1e-4)
    path = Shoot().solve(metric, a, b, tol=1e-3, nodes=truth.curve.nodes)
    assert path.converged.all()
    assert ((path.length - truth.length).abs() <= path.length_error + truth.length_error).all()


def test_the_curve_is_a_geodesic_between_the_points():
    sphere = pb.surfaces.Sphere()
    metric, a, b = pb.Pullback(sphere), points(4, 2), points(4, 2, seed=1)
    path = Shoot(n_segments=16).solve(metric, a, b, tol=1e-6, nodes=Curve.straight(a, b).nodes)
    assert path.curve.nodes.shape == (4, 17, 2)
    assert torch.equal(path.curve.nodes[:, 0], a)
    assert torch.equal(path.curve.nodes[:, -1], b)
    chords = metric.features(path.curve.nodes).diff(dim=-2).norm(dim=-1)
    arcs = 2 * torch.asin(0.5 * chords)
    assert torch.allclose(arcs, path.length[:, None] / 16, rtol=1e-5)


def test_in_a_plane_the_first_shot_hits():
    metric, a, b = pb.Pullback(pb.surfaces.Plane(3)), points(4, 3), points(4, 3, seed=1)
    path = Shoot().solve(metric, a, b, tol=1e-6, nodes=Curve.straight(a, b).nodes)
    assert path.converged.all()
    assert (path.iterations <= 2).all()
    assert torch.allclose(path.length, pb.surfaces.Plane(3).distance(a, b), rtol=1e-9)


def test_in_many_dimensions_no_derivative_is_formed_where_none_is_needed():
    metric, a, b = pb.Pullback(mlp(20, gain=0.7)), points(2, 20), points(2, 20, seed=1)
    _, _, codes, evaluations = aim(metric, a, b, relaxed(metric, a, b)[1], tol=1e-4)
    assert (codes == Status.CONVERGED.code).all()
    assert (evaluations < 20 * metric.christoffel_cost(20) * 16).all()  # d shots of two steps, or three


def test_a_pair_costs_and_ends_as_it_does_alone():
    metric, a, b = pb.Pullback(mlp()), points(3, 2, scale=0.3), points(3, 2, seed=1, scale=0.3)
    guess = relaxed(metric, a, b)[1]
    together, alone = aim(metric, a, b, guess, tol=1e-5), aim(metric, a[1:2], b[1:2], guess[1:2], tol=1e-5)
    for many, one in zip(together, alone, strict=True):
        assert torch.allclose(many[1].double(), one[0].double(), rtol=1e-6)


def test_evaluations_are_what_the_decoder_was_asked(counting):
    decoder = counting(mlp())
    metric, a, b = pb.Pullback(decoder), points(3, 2), points(3, 2, seed=1)
    nodes = relaxed(metric, a, b)[0]
    decoder.reset()
    path = Shoot().solve(metric, a, b, tol=1e-4, nodes=nodes)
    assert int(path.evaluations.sum()) == decoder.reset()


def test_a_bad_guess_is_shortened_until_the_trajectory_arrives():
    # the guess runs through the missing pole of the sphere
    metric, a = pb.Pullback(pb.surfaces.Sphere()), torch.zeros(1, 2, dtype=F64)
    b = torch.tensor([[0.5, 0.2]], dtype=F64)
    velocity, _, codes, _ = aim(metric, a, b, 4 * b, tol=1e-5, solver=Shoot(max_integrator_steps=200))
    assert codes[0] == Status.CONVERGED.code
    assert torch.allclose(exp(metric, a, velocity).end, b, atol=1e-4)


def test_an_end_outside_of_the_domain_fails_alone():
    def decoder(z):
        return torch.cat((z, torch.where(z[:, :1] > 1, torch.nan, z[:, :1].sin())), 1)

    a, b = torch.zeros(2, 2, dtype=F64), torch.tensor([[2.0, 0.0], [0.5, 0.3]], dtype=F64)
    path = Shoot().solve(pb.Pullback(decoder), a, b, tol=1e-4, nodes=Curve.straight(a, b).nodes)
    assert list(path.status) == [Status.NOT_FINITE, Status.CONVERGED]
    for gone in (path.length, path.length_error, path.energy):
        assert gone[0].isnan()
        assert gone[1].isfinite()


def test_one_that_has_to_cross_a_hole_says_that_it_left_the_domain():
    def decoder(z):
        return torch.cat((z, torch.where((z[:, :1] - 1).abs() < 0.2, torch.nan, z[:, :1].sin())), 1)

    a, b = torch.zeros(1, 2, dtype=F64), torch.tensor([[2.0, 0.0]], dtype=F64)
    path = Shoot().solve(pb.Pullback(decoder), a, b, tol=1e-4, nodes=Curve.straight(a, b).nodes)
    assert path.status[0] in (Status.LEFT_DOMAIN, Status.STALLED)
    assert path.length.isnan().all()


def test_one_out_of_steps_says_so_and_has_no_length():
    metric, a, b = pb.Pullback(mlp()), points(1, 2), points(1, 2, seed=1)
    path = Shoot(max_steps=1).solve(metric, a, b, tol=1e-9, nodes=Curve.straight(a, b).nodes)
    assert path.status[0] is Status.MAX_STEPS
    assert path.length.isnan().all()
    assert path.curve.nodes.isfinite().all()


def test_settings_are_checked_and_travel():
    for name in ("max_steps", "max_integrator_steps", "n_segments"):
        with pytest.raises(ValueError, match=name):
            Shoot(**{name: 0})
    assert pickle.loads(pickle.dumps(Shoot(max_steps=7))) == Shoot(max_steps=7)
