import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.solver import Minimizer, along, bend

F64 = torch.float64


def points(n, d=2, seed=0, scale=1.0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=F64).to(dtype)


def mlp(d=2, width=64, n_features=50, seed=0, gain=1.5, activation=nn.Tanh, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, width), activation(), nn.Linear(width, n_features))
    for weight in net.parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.data = gain * torch.randn(weight.shape, generator=generator) / math.sqrt(fan)
    return net.to(dtype).requires_grad_(False)


@pytest.fixture(scope="module")
def shipped():
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(5))[:24]
    return pb.Pullback(model.decoder), model.codes[chosen[:12]], model.codes[chosen[12:]]


# closed forms


@pytest.mark.parametrize("d", [2, 3, 10])
def test_great_circles_have_their_length_within_the_error(d):
    sphere = pb.surfaces.Sphere(radius=2.0)
    a, b = points(30, d, 1, 0.5), points(30, d, 2, 0.5)
    path = pb.geodesic(pb.Pullback(sphere), a, b, tol=1e-7)
    off = (path.length - sphere.distance(a, b)).abs()
    assert path.converged.all()
    assert (off / path.length).max() < 1e-6
    assert (off <= path.length_error).double().mean() > 0.95


def test_a_straight_line_in_a_flat_metric_is_found_at_once_and_exactly():
    plane = pb.surfaces.Plane()
    a, b = points(10, 2, 1), points(10, 2, 2)
    path = pb.geodesic(pb.Pullback(plane), a, b)
    assert torch.allclose(path.length, plane.distance(a, b), rtol=1e-12)
    assert path.evaluations.max() < 260
    assert (path.iterations <= 1).all()


def test_geodesics_on_the_torus_keep_clairauts_constant():
    torus = pb.surfaces.Torus()
    a = torch.tensor([[0.0, -0.5], [0.3, 0.4]], dtype=F64)
    b = torch.tensor([[1.4, 0.9], [1.2, -1.0]], dtype=F64)
    path = pb.geodesic(pb.Pullback(torus), a, b, tol=1e-8)
    t = torch.linspace(0.02, 0.98, 50, dtype=F64)
    constant = torus.clairaut(path.curve(t), path.curve.velocity(t))
    assert torch.allclose(constant, constant.mean(1, keepdim=True), rtol=1e-3)


@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_geodesics_have_constant_speed(shipped, tol):
    metric, a, b = shipped
    path = pb.geodesic(metric, a, b, tol=tol)
    t = torch.linspace(0, 1, 65, dtype=F64)
    speed = metric.norm(path.curve(t), path.curve.velocity(t))
    spread = speed.std(1) / speed.mean(1)
    assert spread.median() < 0.05
    assert torch.allclose(path.energy, 0.5 * path.length**2, rtol=0.05)


# properties


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), angle=st.floats(0, 6), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_an_isometry_of_the_data_space_changes_nothing_and_scale_scales(seed, angle, scale):
    f = mlp(seed=seed)
    turn = torch.linalg.qr(points(50, 50, seed + 1))[0] * scale
    a, b = points(4, seed=seed), points(4, seed=seed + 2)
    one, other = pb.geodesic(pb.Pullback(f), a, b), pb.geodesic(pb.Pullback(lambda z: f(z) @ turn + angle), a, b)
    assert torch.allclose(other.length, scale * one.length, rtol=2e-4)
    assert (one.codes == other.codes).all()


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000))
def test_distances_are_symmetric_and_obey_the_triangle_inequality(seed):
    metric = pb.Pullback(mlp(seed=seed, gain=1.0))
    a, b, c = (points(4, seed=seed + k) for k in range(3))
    ab, ba, bc, ac = (pb.distance(metric, *pair) for pair in ((a, b), (b, a), (b, c), (a, c)))
    assert torch.allclose(ab, ba, rtol=2e-4)
    assert (ac <= (ab + bc) * (1 + 2e-4)).all()


def test_another_chart_of_the_latent_space_gives_the_same_lengths():
    f = mlp()
    a, b = points(6, seed=1), points(6, seed=2)

    def chart(y):  # a diffeomorphism of the plane
        return torch.stack((y[..., 0] + 0.3 * torch.sin(y[..., 1]), y[..., 1] * 2), -1)

    def inverse(z):
        return torch.stack((z[..., 0] - 0.3 * torch.sin(z[..., 1] / 2), z[..., 1] / 2), -1)

    here = pb.geodesic(pb.Pullback(f), a, b, tol=1e-6)
    there = pb.geodesic(pb.Pullback(lambda y: f(chart(y))), inverse(a), inverse(b), tol=1e-6)
    assert torch.allclose(here.length, there.length, rtol=1e-5)


def test_the_error_falls_with_the_tolerance():
    sphere = pb.surfaces.Sphere()
    a, b = points(20, 2, 3, 0.6), points(20, 2, 4, 0.6)
    errors = []
    for tol in (1e-2, 1e-4, 1e-6):
        length = pb.distance(pb.Pullback(sphere), a, b, tol=tol)
        errors.append(float((length / sphere.distance(a, b) - 1).abs().mean()))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


# batches, and what one pair may not do to another


def test_a_pair_is_solved_alike_alone_and_in_a_batch(shipped):
    metric, a, b = shipped
    together = pb.geodesic(metric, a, b)
    for k in (0, 5):
        alone = pb.geodesic(metric, a[k], b[k])
        assert alone.status is pb.Status.CONVERGED
        assert alone.evaluations == together.evaluations[k]
        assert torch.allclose(alone.length, together.length[k], rtol=1e-9)


def test_one_start_may_have_many_ends():
    metric = pb.Pullback(mlp())
    a, b = points(1)[0], points(6, seed=3).reshape(2, 3, 2)
    path = pb.geodesic(metric, a, b)
    assert path.length.shape == (2, 3)
    assert path.curve(torch.linspace(0, 1, 20)).shape == (2, 3, 20, 2)
    assert torch.allclose(path.length, pb.distance(metric, a.expand(2, 3, 2), b), rtol=1e-9)


def test_equal_points_are_at_distance_zero_and_no_pairs_are_no_error():
    metric = pb.Pullback(mlp())
    a, b = points(3, seed=1), points(3, seed=2)
    b[1] = a[1]
    path = pb.geodesic(metric, a, b)
    assert path.converged.all()
    assert path.length[1] == 0
    assert path.length_error[1] == 0
    assert torch.equal(path.curve.nodes[1], a[1].expand_as(path.curve.nodes[1]))
    assert pb.geodesic(metric, a[:0], b[:0]).length.shape == (0,)
    assert pb.geodesic(metric, a[0], a[0]).status is pb.Status.CONVERGED


def test_a_pair_that_runs_into_nan_fails_alone():
    metric = pb.Pullback(lambda z: torch.stack((z[:, 0].log(), z[:, 1]), 1))
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64)
    b = torch.tensor([[2.0, 1.0], [-1.0, 1.0]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match=r"pairs 1\)"):
        path = pb.geodesic(metric, a, b)
    assert path.converged.tolist() == [True, False]
    assert path.status[1] is pb.Status.NOT_FINITE
    assert path.length[1].isnan()
    assert math.isclose(path.length[0], math.hypot(math.log(2), 1), rel_tol=1e-4)


def test_too_few_steps_are_reported_with_nan_for_exactly_those_pairs():
    f = mlp(gain=2.5)
    a, b = points(6, seed=1), points(6, seed=2)
    a[0], b[0] = torch.zeros(2), torch.full((2,), 1e-3)  # nearly flat: needs no step
    solver = pb.Relax(max_steps=1, max_segments=16)
    with pytest.warns(pb.GeodesicWarning, match="max_segments|max_steps"):
        path = pb.geodesic(pb.Pullback(f), a, b, solver=solver)
    assert path.converged[0]
    assert not path.converged[1:].all()
    assert torch.equal(path.length.isnan(), ~path.converged)
    assert torch.equal(path.length_error.isnan(), ~path.converged)
    with pytest.raises(pb.ConvergenceError):
        path.raise_for_status()


# hard metrics


def ridge(z, height=5.0, width=0.03, at=0.2):
    return torch.cat((z, height * torch.exp(-(((z[:, :1] - at) / width) ** 2))), 1)


def test_chords_that_jump_over_a_wall_are_not_believed():
    # from 8 nodes the wall is invisible: the straight line has length 2, the way over the wall nearly 12
    a, b = torch.tensor([[-1.0, 0.0]], dtype=F64), torch.tensor([[1.0, 0.3]], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        path = pb.geodesic(pb.Pullback(ridge), a, b)
    if path.converged.item():
        fine = pb.length(pb.Pullback(ridge), path.curve, n_segments=20_000)
        assert fine > 11
        assert torch.allclose(path.length, fine, rtol=1e-3)


def test_a_wall_beyond_the_finest_resolution_is_flagged():
    a, b = torch.tensor([[-1.0, 0.0]], dtype=F64), torch.tensor([[1.0, 0.3]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match="metric jumps"):
        path = pb.geodesic(pb.Pullback(ridge), a, b, solver=pb.Relax(max_segments=16))
    assert path.status[0] is pb.Status.WALL


def test_a_curve_that_costs_too_much_is_given_up_and_says_so():
    a, b = torch.tensor([[-1.0, 0.0]], dtype=F64), torch.tensor([[1.0, 0.3]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match="out of steps"):
        path = pb.geodesic(pb.Pullback(ridge), a, b, solver=pb.Relax(max_evaluations=300))
    assert path.status[0] is pb.Status.MAX_STEPS
    assert path.evaluations[0] < 3000


def test_a_geodesic_is_not_longer_than_the_curve_it_began_as():
    # the way over the pole at infinity is stationary too; a coarse step may jump there
    metric = pb.Pullback(pb.surfaces.Sphere())
    a, b = points(300, 2, 5), points(300, 2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        path = pb.geodesic(metric, a, b)
    straight = pb.length(metric, pb.Curve.straight(a, b), n_segments=1024)
    assert path.converged.double().mean() > 0.98
    assert (path.length[path.converged] < math.pi).all()
    assert (path.length <= straight * (1 + 1e-3))[path.converged].all()


def test_errors_on_a_sphere_are_reported_too_small_for_one_pair_in_a_hundred_at_most():
    # all of them far apart; the last step, taken without a trial, makes it one in seventy
    sphere, (a, b) = pb.surfaces.Sphere(), (0.8 * points(2000, 2, seed) for seed in (3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)  # some points lie nearly opposite
        path = pb.geodesic(pb.Pullback(sphere), a, b, tol=1e-5)
    off = (path.length - sphere.distance(a, b)).abs()[path.converged]
    assert path.converged.double().mean() > 0.995
    assert (off > path.length_error[path.converged]).double().mean() <= 0.01


def _at(energy, z):
    return Minimizer(1e-6).init(energy, z, energy.grams(z), torch.tensor([10_000]))


@pytest.mark.parametrize("angle", [1.0, 2.0, 2.8])
def test_the_stiffness_of_a_great_arc_is_that_of_the_second_variation(angle):
    # of the lowest mode: 1 - (angle / pi)^2; beyond pi the long way round is a saddle
    t = torch.linspace(0, 1, 65, dtype=F64)[1:-1, None] * angle - angle / 2
    arc = torch.tan(t / 2) * torch.tensor([[1.0, 0.0]], dtype=F64)  # through the south pole
    ends = torch.tan(torch.tensor([[-angle / 4, 0.0], [angle / 4, 0.0]], dtype=F64))
    energy = DiscreteEnergy.between(pb.Pullback(pb.surfaces.Sphere()), ends[:1], ends[1:])
    _, stiffness = bend(energy, _at(energy, arc[None]))
    assert math.isclose(float(stiffness), 1 - (angle / math.pi) ** 2, abs_tol=0.03)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("angle", [1.0, 2.0, 2.8])
def test_the_stiffness_along_a_step_is_that_of_the_mode_it_takes_back(angle, k):
    # a great arc, pushed to the side by its mode k: the second variation is 1 - (angle / (k pi))^2 of the first term
    s = torch.linspace(0, 1, 65, dtype=F64)[1:-1]
    x = torch.tan((s - 0.5) * angle / 2)
    y = 1e-3 * torch.sin(k * math.pi * s) * (1 + x.square()) / 2  # a millionth of the length to gain, or less
    ends = torch.tan(torch.tensor([[-angle / 4, 0.0], [angle / 4, 0.0]], dtype=F64))
    energy = DiscreteEnergy.between(pb.Pullback(pb.surfaces.Sphere()), ends[:1], ends[1:])
    state = _at(energy, torch.stack((x, y), 1)[None])
    stiffness = along(energy, state)
    assert math.isclose(float(stiffness), 1 - (angle / (k * math.pi)) ** 2, abs_tol=0.03)
    steps = (0, 1, 1 / float(stiffness))
    least = energy.measure(torch.stack((x, 0 * x), 1)[None])[0]
    excess = [float(energy.measure(state.z + size * state.direction)[0] - least) for size in steps]
    assert abs(excess[2]) < 0.01 * excess[0]
    assert math.isclose(excess[1] / excess[0], (1 - float(stiffness)) ** 2, abs_tol=0.03)


def test_where_a_step_is_lost_in_rounding_the_energy_counts_as_stiff_as_the_model():
    a, b = points(3, 2, 1), points(3, 2, 2)
    energy = DiscreteEnergy.between(pb.Pullback(pb.surfaces.Plane()), a, b)
    state = _at(energy, pb.Curve.straight(a, b, 16).nodes[:, 1:-1])
    assert (along(energy, state) == 1).all()


def test_the_long_way_round_is_seen_as_a_saddle():
    angle = 4.0
    t = torch.linspace(0, 1, 65, dtype=F64)[1:-1, None] * angle - angle / 2
    arc = torch.tan(t / 2) * torch.tensor([[1.0, 0.0]], dtype=F64)
    ends = torch.tensor([[-math.tan(angle / 4), 0.0], [math.tan(angle / 4), 0.0]], dtype=F64)
    metric = pb.Pullback(pb.surfaces.Sphere())
    energy = DiscreteEnergy.between(metric, ends[:1], ends[1:])
    step, stiffness = bend(energy, _at(energy, arc[None]))
    assert stiffness < -0.3
    assert energy.measure(arc[None] + step)[0] < energy.measure(arc[None])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)  # the short way leads over the pole at infinity
        path = pb.geodesic(metric, ends[:1], ends[1:], init=pb.Curve(energy.nodes(arc[None])))
    assert not path.converged or abs(float(path.length) - (2 * math.pi - angle)) < path.length_error


def test_relu_decoders_converge_to_a_loose_tolerance_or_are_flagged():
    metric = pb.Pullback(mlp(activation=nn.ReLU, gain=1.0))
    a, b = points(6, seed=1), points(6, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        path = pb.geodesic(metric, a, b, tol=1e-2)
        finer = pb.geodesic(metric, a, b, tol=1e-3)
    both = path.converged & finer.converged
    assert path.converged.double().mean() > 0.8
    assert ((path.length - finer.length)[both] <= 2e-2 * finer.length[both]).all()
    assert (path.length <= pb.length(metric, pb.Curve.straight(a, b)) * (1 + 1e-2))[path.converged].all()


def test_a_dead_latent_dimension_is_solved_with_a_warning():
    f = mlp(d=1)
    a, b = points(4, seed=1), points(4, seed=2)
    with pytest.warns(pb.RankWarning, match="dead latent dimension"):
        path = pb.geodesic(pb.Pullback(lambda z: f(z[:, :1])), a, b)
    exact = pb.distance(pb.Pullback(f), a[:, :1], b[:, :1])
    assert path.converged.all()
    assert torch.allclose(path.length, exact, rtol=1e-3)


def test_points_that_differ_only_in_a_dead_direction_are_at_distance_zero():
    f = mlp(d=1)
    with pytest.warns(pb.RankWarning):
        path = pb.geodesic(
            pb.Pullback(lambda z: f(z[:, :1])), torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)[1:]
        )
    assert path.converged.all()
    assert path.length.item() < 1e-12


# a trained decoder


def test_geodesics_of_the_shipped_model_are_never_longer_than_straight_lines(shipped):
    metric, a, b = shipped
    path = pb.geodesic(metric, a, b)
    straight = pb.length(metric, pb.Curve.straight(a, b), n_segments=1024)
    assert path.converged.all()
    assert (path.length <= straight * (1 + 1e-4)).all()
    assert (straight / path.length).median() > 1.005


def test_lengths_of_the_shipped_model_agree_with_a_finer_solve_within_their_error(shipped):
    metric, a, b = shipped
    path = pb.geodesic(metric, a, b)
    finer = pb.geodesic(metric, a, b, tol=1e-6, init=path.curve)
    measured = pb.length(metric, path.curve, n_segments=4096)
    assert ((path.length - finer.length).abs() <= path.length_error).double().mean() >= 0.9
    assert ((measured - path.length).abs() <= path.length_error).all()
    assert (path.length_error <= 4.1e-4 * path.length).all()


def test_a_good_curve_to_start_from_leads_to_the_same_length(shipped):
    metric, a, b = shipped
    path = pb.geodesic(metric, a, b)
    again = pb.geodesic(metric, a, b, init=path.curve)
    assert torch.allclose(again.length, path.length, rtol=1e-3)


# cost


def test_a_geodesic_of_a_small_network_stays_below_a_ceiling_of_evaluations():
    metric = pb.Pullback(mlp())
    path = pb.geodesic(metric, torch.tensor([-1.0, -1.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64))
    assert path.evaluations < 1000


def test_the_reported_evaluations_are_those_that_the_decoder_saw(shipped, counting):
    metric, a, b = shipped
    counter = counting(metric.feature_map.decoder)
    counted = pb.Pullback(counter)
    counted.points_at_once(a)  # looks at the decoder once
    counter.reset()
    path = pb.geodesic(counted, a, b)
    assert counter.evaluations == path.evaluations.sum()


def test_float32_gives_the_lengths_of_float64():
    a, b = points(8, 8, 1), points(8, 8, 2)
    double = pb.geodesic(pb.Pullback(mlp(d=8, n_features=300)), a, b)
    single = pb.geodesic(pb.Pullback(mlp(d=8, n_features=300, dtype=torch.float32)), a.float(), b.float())
    assert single.converged.all()
    assert single.length.dtype == torch.float32
    assert torch.allclose(single.length.double(), double.length, rtol=1e-3)


# the door


def test_inputs_and_decoder_are_left_as_they_were():
    f = mlp().requires_grad_(True).train()
    a, b = points(3, seed=1).requires_grad_(), points(3, seed=2)
    before = [w.clone() for w in (*f.parameters(), a, b)]
    state = torch.get_rng_state()
    path = pb.geodesic(pb.Pullback(f), a, b)
    assert all(torch.equal(x, y) for x, y in zip(before, (*f.parameters(), a, b), strict=True))
    assert f.training
    assert all(w.grad is None for w in f.parameters())
    assert a.requires_grad
    assert not path.length.requires_grad
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (torch.zeros(5, 2), torch.zeros(4, 2), "same number of points"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "latent dimension"),
        (torch.zeros(5, 3), torch.zeros(5, 3), "the decoder failed on a point of shape"),
        (torch.tensor([[float("nan"), 0]]), torch.zeros(1, 2), "NaN or infinity at 1 of 1"),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2), "floating-point"),
        (torch.zeros(1, 2), torch.zeros(1, 2, dtype=F64), "dtype"),
        (torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64), "the decoder has float32"),
    ],
)
def test_points_that_do_not_fit_are_refused_by_name(start, end, message):
    metric = pb.Pullback(mlp(dtype=torch.float32))
    with pytest.raises(ValueError, match=message):
        pb.geodesic(metric, start, end)


def test_a_bad_tolerance_or_start_curve_is_refused():
    metric = pb.Pullback(mlp())
    a, b = points(3, seed=1), points(3, seed=2)
    with pytest.raises(ValueError, match="`tol` is 0"):
        pb.geodesic(metric, a, b, tol=0)
    with pytest.raises(ValueError, match="`init` holds curves"):
        pb.geodesic(metric, a, b, init=pb.Curve.straight(a[0], b[0]))
    with pytest.raises(ValueError, match="ends are not `start` and `end`"):
        pb.geodesic(metric, a, b, init=pb.Curve.straight(b, a))
    with pytest.raises(TypeError, match="`init` is a Tensor"):
        pb.geodesic(metric, a, b, init=a)
    with pytest.raises(TypeError, match=r"wrapped as Pullback\(decoder\)"):
        pb.geodesic(mlp(), a, b)
    with pytest.raises(ValueError, match="`tol` is 10"):
        pb.geodesic(metric, a, b, tol=10)
    with pytest.raises(ValueError, match="`first_segments` is 7"):
        pb.Relax(first_segments=7)


@pytest.mark.gpu
def test_geodesics_on_a_gpu_are_those_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    f = mlp(d=8, n_features=300)
    a, b = points(50, 8, 1), points(50, 8, 2)
    here = pb.geodesic(pb.Pullback(f), a, b)
    there = pb.geodesic(pb.Pullback(f.cuda()), a.cuda(), b.cuda())
    assert there.length.is_cuda
    assert torch.allclose(there.length.cpu(), here.length, rtol=1e-4)
