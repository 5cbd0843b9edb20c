import itertools
import math
import pickle

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.curves import chord_energy
from pullback.geodesics import newton
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.newton import Newton
from pullback.geodesics.solution import Status

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::pullback._checks.GeodesicWarning")


def points(n, d=2, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, n_features=50, seed=0, gain=1.5):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 64), nn.Tanh(), nn.Linear(64, n_features))
    for weight in net.parameters():
        weight.data = gain * torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[-1])
    return net.to(F64).requires_grad_(False)


def start(metric, a, b, n):
    energy = DiscreteEnergy.between(metric, a, b)
    return energy, newton._begin(energy, pb.Curve.straight(a, b, n).nodes[:, 1:-1])


# what it is


@pytest.mark.parametrize("n", [4, 8])
def test_the_model_is_the_second_derivative_of_the_energy(n):
    metric, (a, b) = pb.Pullback(mlp()), points(2, 2, 1).split(1)
    energy, state = start(metric, a, b, n)

    def value(z):
        return chord_energy(*metric.squared_chords(energy.decode(z.reshape(1, n - 1, 2))))[0]

    exact = torch.autograd.functional.hessian(value, state.z.flatten())
    assert torch.linalg.eigvalsh(exact)[0] > 0
    newton_step = torch.linalg.solve(exact, -state.gradient.flatten())
    assert torch.allclose(state.direction.flatten(), newton_step, rtol=1e-5, atol=1e-6)
    z = state.z.clone().requires_grad_()
    assert torch.allclose(state.gradient, torch.autograd.grad(value(z), z)[0], atol=1e-9)


def test_the_gradient_falls_quadratically_on_the_sphere():
    a, b = torch.tensor([[0.0, -1.0]], dtype=F64), torch.tensor([[0.5, 0.5]], dtype=F64)
    energy, state = start(pb.Pullback(pb.surfaces.Sphere()), a, b, 200)
    sizes = []
    for _ in range(6):
        sizes.append(float(state.gradient.norm()))
        state = newton._step(energy, state)
    falls = [later / size for size, later in itertools.pairwise(sizes) if size > 1e-7 * sizes[0]]
    assert falls[-1] < 1e-3
    assert falls[-1] < 0.1 * falls[-2] < 0.1 * falls[0]
    assert sizes[-1] < 1e-8 * sizes[0]


# closed forms


@pytest.mark.parametrize("d", [2, 3, 10])
def test_great_circles_have_ten_digits(d):
    sphere = pb.surfaces.Sphere()
    a, b = points(6, d, 1, 0.4), points(6, d, 2, 0.4)
    path = pb.geodesic(pb.Pullback(sphere), a, b, tol=1e-10, solver=Newton())
    off = (path.length - sphere.distance(a, b)).abs()
    assert path.converged.all()
    assert (off <= 1e-10 * path.length).all()
    assert (off <= path.length_error).all()
    assert (path.length_error <= 1.01e-10 * path.length).all()


def test_a_flat_metric_is_solved_in_no_step():
    plane = pb.surfaces.Plane()
    a, b = points(5, 2, 1), points(5, 2, 2)
    path = pb.geodesic(pb.Pullback(plane), a, b, solver=Newton())
    assert torch.allclose(path.length, plane.distance(a, b), rtol=1e-12)
    assert (path.iterations == 0).all()


def test_a_great_arc_longer_than_half_the_circle_is_a_saddle():
    a = torch.tensor([[-2.0, 0.0]], dtype=F64)
    metric = pb.Pullback(pb.surfaces.Sphere())
    path = pb.geodesic(metric, a, -a, solver=Newton())
    assert path.status[0] == Status.STALLED
    assert path.length.isnan()
    energy, state = start(metric, a, -a, 16)
    assert Newton()._descend(energy, state.z, 1e-4)[1] == Status.STALLED.code  # by its own matrix, in all directions


def test_it_polishes_relaxed_curves_of_a_trained_decoder():
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(5))[:24]
    a, b = model.codes[chosen[7:9]], model.codes[chosen[19:21]]
    metric = pb.Pullback(model.decoder)
    relaxed = pb.geodesic(metric, a, b)
    path = pb.geodesic(metric, a, b, tol=1e-8, solver=Newton(), init=relaxed.curve)
    finer = pb.geodesic(metric, a, b, tol=1e-10, solver=Newton(), init=path.curve)
    assert path.converged.all()
    assert (path.iterations < 12).all()
    assert ((path.length - finer.length).abs() <= path.length_error).all()
    assert ((relaxed.length - path.length).abs() <= relaxed.length_error).all()


@pytest.mark.filterwarnings("ignore::pullback.RankWarning")
def test_t17_a_dead_latent_dimension_gives_no_nan():
    path = pb.geodesic(pb.Pullback(lambda z: z[:, :1].sin()), *points(2, 2, 1, 0.3).split(1), solver=Newton())
    assert path.converged.all()
    assert torch.isfinite(path.curve.nodes).all()


# defects of peers


def test_t29_steps_from_a_bad_start_are_damped_and_lower_the_energy():
    metric = pb.Pullback(mlp(4, 100, gain=2.5))
    energy, state = start(metric, points(6, 4, 1), points(6, 4, 2), 16)
    values, damped = [], False
    for _ in range(10):
        values.append(state.value)
        state = newton._step(energy, state)
        damped |= bool((state.damping > 0).any())
    sequence = torch.stack(values)
    assert damped
    assert (sequence[1:] <= sequence[:-1] * (1 + 1e-12)).all()


def test_t27_a_pair_does_not_notice_the_others_of_its_batch():
    metric = pb.Pullback(mlp(gain=2.0))
    a, b = points(5, 2, 1), points(5, 2, 2)
    together = pb.geodesic(metric, a, b, solver=Newton(), tol=1e-6)
    for i in range(5):
        alone = pb.geodesic(metric, a[i], b[i], solver=Newton(), tol=1e-6)
        assert torch.allclose(alone.length, together.length[i], rtol=1e-10, equal_nan=True)
        for name in ("codes", "iterations", "evaluations"):
            assert getattr(alone, name) == getattr(together, name)[i]


def test_t28_one_step_fails_exactly_the_pairs_that_need_more():
    metric = pb.Pullback(pb.surfaces.Sphere())
    a = points(4, 2, 1, 0.5)
    b = a + torch.tensor([1e-4, 1.0, 1e-4, 1.0], dtype=F64)[:, None]
    path = pb.geodesic(metric, a, b, solver=Newton(max_steps=1), tol=1e-8)
    assert [s.name for s in path.status] == ["CONVERGED", "MAX_STEPS", "CONVERGED", "MAX_STEPS"]
    assert path.length.isnan().tolist() == [False, True, False, True]
    assert "pairs 1, 3" in path.message


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_t30_the_scale_of_the_decoder_changes_neither_steps_nor_status(scale):
    f = mlp()
    a, b = points(5, 2, 1), points(5, 2, 2)
    one = pb.geodesic(pb.Pullback(f), a, b, solver=Newton())
    other = pb.geodesic(pb.Pullback(lambda z: scale * f(z)), a, b, solver=Newton())
    assert torch.equal(one.iterations, other.iterations)
    assert torch.equal(one.codes, other.codes)
    assert torch.allclose(other.length, scale * one.length, rtol=1e-9)


def test_t34_every_setting_is_reached_from_the_top_level_call():
    solver = Newton(n_segments=8, max_segments=8, max_steps=2)
    path = pb.geodesic(pb.Pullback(mlp()), *points(2, 2, 1).split(1), solver=solver, tol=1e-12, progress=True)
    assert path.iterations == 2
    assert path.curve.n_segments == 8
    assert pickle.loads(pickle.dumps(solver)) == solver


# bad input and faults


def test_a_decoder_that_is_nan_for_some_pairs_fails_these_alone():
    def holed(z):
        return torch.where((z[:, :1] > 3).expand(-1, 3), torch.nan, pb.surfaces.Sphere()(z))

    a, b = points(5, 2, 1, 0.3), points(5, 2, 2, 0.3)
    b[[1, 4], 0] = 4.0
    path = pb.geodesic(pb.Pullback(holed), a, b, solver=Newton())
    assert [s.name for s in path.status] == ["CONVERGED", "NOT_FINITE", "CONVERGED", "CONVERGED", "NOT_FINITE"]
    assert path.length.isnan().tolist() == [False, True, False, False, True]
    whole = pb.geodesic(pb.Pullback(pb.surfaces.Sphere()), a, b, solver=Newton())
    assert torch.allclose(path.length[[0, 2, 3]], whole.length[[0, 2, 3]], rtol=1e-10)


def test_too_few_segments_for_the_tolerance_are_said():
    metric, ends = pb.Pullback(mlp()), points(2, 2, 1).split(1)
    path = pb.geodesic(metric, *ends, solver=Newton(8, 8), tol=1e-7)
    assert path.status[0] == Status.WALL
    assert path.length.isnan()
    assert pb.geodesic(metric, *ends, solver=Newton(8, 64), tol=1e-7).converged.all()


def half_plane(z):
    return torch.diag_embed((1 / z[:, 1:].square()).expand(-1, 2))


def test_a_metric_without_immersion_is_solved_to_ten_digits():
    a = torch.tensor([[0.0, 1.0], [-1.0, 0.5], [0.2, 2.0]], dtype=torch.float64)
    b = torch.tensor([[0.7, 1.5], [1.0, 0.7], [0.3, 0.5]], dtype=torch.float64)
    exact = torch.acosh(1 + (a - b).square().sum(-1) / (2 * a[:, 1] * b[:, 1]))
    first = pb.geodesic(pb.MatrixField(half_plane), a, b)
    path = pb.geodesic(pb.MatrixField(half_plane), a, b, solver=Newton(), tol=1e-9, init=first.curve)
    assert path.converged.all()
    assert torch.allclose(path.length, exact, rtol=1e-9)
    assert (path.iterations < 30).all()  # quadratic convergence: a few steps at each resolution


@pytest.mark.parametrize("n", [3, 5, 15])
def test_the_blocks_of_a_general_metric_are_those_of_its_whole_second_derivative(n):
    # the same matrix by torch.autograd.functional.hessian, entry by entry
    from pullback.chords import chord_energy
    from pullback.geodesics.energy import DiscreteEnergy
    from pullback.geodesics.newton import _second_derivatives

    metric = pb.MatrixField(half_plane)
    curve = pb.Curve.straight(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[0.7, 1.5]]).double(), n + 1)
    z = curve.nodes[:, 1:-1] + 0.05 * points(n, 2, 3)
    energy = DiscreteEnergy.between(metric, curve.nodes[:, 0], curve.nodes[:, -1])

    def whole(flat):
        return chord_energy(*metric.squared_chords(energy.nodes(flat.reshape(1, n, 2))))[0]

    hessian = torch.autograd.functional.hessian(whole, z.flatten()).reshape(n, 2, n, 2)
    _, _, *blocks = _second_derivatives(energy, z)
    scale = hessian.abs().max()
    for m, found in enumerate(blocks):
        for i in range(n - m):
            assert torch.allclose(found[0, i] / scale, hessian[i, :, i + m] / scale, atol=1e-12)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`n_segments` is 7"):
        Newton(n_segments=7)
    with pytest.raises(ValueError, match="`max_steps` is 0"):
        Newton(max_steps=0)


def test_a_batch_in_small_pieces_gives_the_same():
    f = mlp(2, 50)
    a, b = points(5, 2, 1), points(5, 2, 2)
    whole = pb.geodesic(pb.Pullback(f), a, b, solver=Newton(), tol=1e-6)
    pieces = pb.geodesic(pb.Pullback(f, memory=50_000), a, b, solver=Newton(), tol=1e-6)
    assert torch.allclose(whole.length, pieces.length, rtol=1e-10)


def test_float32_is_as_good_as_its_precision_allows():
    sphere = pb.surfaces.Sphere()
    a, b = points(4, 2, 1, 0.4).float(), points(4, 2, 2, 0.4).float()
    path = pb.geodesic(pb.Pullback(sphere), a, b, solver=Newton(), tol=1e-3)
    assert path.length.dtype == torch.float32
    assert torch.allclose(path.length, sphere.distance(a, b), rtol=1e-3)
