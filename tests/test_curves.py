import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from pullback import surfaces
from pullback.chords import chord_energy, chord_length
from pullback.curves import Curve, squared_chords
from pullback.metrics import Metric, Pullback

F64 = torch.float64
few = settings(deadline=None, max_examples=15, derandomize=True)
seeds = st.integers(0, 10**6)
sphere = Pullback(surfaces.Sphere())


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def linspace(n):
    return torch.linspace(0, 1, n, dtype=F64)


def mlp(d=2, n_features=7):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, n_features)).double()


class HalfPlane(Metric):
    """The hyperbolic half plane, induced by no map into a Euclidean space: G = I / y^2."""

    def inner(self, z, u, v):
        return (u * v).sum(-1) / z[..., 1] ** 2

    def matrix(self, z):
        return torch.eye(2).to(z) / z[..., 1, None, None] ** 2


# the spline


@given(seed=seeds, n=st.integers(2, 12))
@few
def test_value_slope_and_second_derivative_are_continuous_at_every_interior_knot(seed, n):
    # peers' splines have jumps in the second derivative: a row (0, 0, 6t, 2) where (0, 0, 2, 6t) is right
    curve, knots, h = Curve(randn(n + 1, 3, seed=seed)), linspace(n + 1)[1:-1], 1e-12
    for derivative in (curve, curve.velocity, curve.acceleration):
        left, right = derivative(knots - h), derivative(knots + h)
        assert torch.allclose(left, right, rtol=1e-8, atol=1e-10 * n**5)


@given(seed=seeds, n=st.integers(1, 12))
@few
def test_a_curve_goes_exactly_through_its_nodes(seed, n):
    nodes = randn(2, n + 1, 3, seed=seed)
    curve = Curve(nodes)
    assert torch.equal(curve(torch.tensor([0.0, 1.0], dtype=F64)), nodes[:, [0, -1]])
    assert torch.allclose(curve(linspace(n + 1)), nodes, rtol=1e-13, atol=1e-13)


@given(seed=seeds, n=st.integers(1, 12))
@few
def test_derivatives_agree_with_finite_differences(seed, n):
    curve, t, h = Curve(randn(2, n + 1, 3, seed=seed)), 0.001 + 0.998 * linspace(37) ** 1.1, 1e-6
    for derivative, integral in ((curve.velocity, curve), (curve.acceleration, curve.velocity)):
        differences = (integral(t + h) - integral(t - h)) / (2 * h)
        assert torch.allclose(derivative(t), differences, rtol=1e-6, atol=1e-5 * n**2)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_polynomials_up_to_the_degree_that_nodes_can_tell_are_reproduced(degree):
    coefficients, t = randn(degree + 1, 3), linspace(33)
    for n in range(max(degree, 1), 9):

        def polynomial(t):
            return sum(c * t[:, None] ** k for k, c in enumerate(coefficients))

        assert torch.allclose(Curve(polynomial(linspace(n + 1)))(t), polynomial(t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("times", [1, 2, 3, 8])
def test_a_curve_by_a_multiple_of_its_segments_is_the_same_curve(n, times):
    curve, t = Curve(randn(2, n + 1, 3)), linspace(101)
    finer = curve.resample(n * times)
    assert finer.n_segments == n * times
    for a, b, scale in (
        (finer(t), curve(t), 1),
        (finer.velocity(t), curve.velocity(t), n * times),
        (finer.acceleration(t), curve.acceleration(t), (n * times) ** 2),
    ):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12 * scale)


def test_a_spline_comes_near_a_smooth_curve_with_the_fourth_power_of_the_step():
    def circle(t):
        return torch.stack(((3 * t).cos(), (3 * t).sin()), -1)

    t = linspace(1001)
    errors = [float((Curve(circle(linspace(n + 1)))(t) - circle(t)).abs().max()) for n in (16, 32, 64)]
    assert errors[0] / errors[1] > 12
    assert errors[1] / errors[2] > 12


def test_each_curve_of_a_batch_may_have_its_own_parameters():
    curves, t = Curve(randn(2, 3, 5, 2)), torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    together = curves(t)
    assert together.shape == (2, 3, 7, 2)
    assert torch.allclose(together[1, 2], curves[1, 2](t[1, 2]), rtol=1e-14)
    assert torch.allclose(curves.velocity(t)[0, 1], curves[0, 1].velocity(t[0, 1]), rtol=1e-13)


def test_shapes_are_those_of_batch_parameters_and_coordinates():
    for batch in ((), (3,), (2, 3), (0,)):
        curve = Curve(randn(*batch, 5, 2))
        assert curve(linspace(7)).shape == (*batch, 7, 2)
        assert curve(linspace(7)[:0]).shape == (*batch, 0, 2)
        assert curve.resample(8).nodes.shape == (*batch, 9, 2)
        assert pb.length(Pullback(nn.Identity()), curve).shape == batch
    assert repr(Curve(randn(4, 6, 2))) == "Curve(batch (4,), 5 segments, d = 2)"
    curve = Curve(randn(4, 2))
    assert curve.resample(3) is curve


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_curve_has_the_dtype_of_its_nodes_whatever_that_of_the_parameters(dtype):
    curve = Curve(randn(5, 2).to(dtype))
    for t in (linspace(5), linspace(5).float()):
        assert curve(t).dtype == dtype
        assert torch.allclose(curve(t).double(), Curve(randn(5, 2))(linspace(5)), atol=1e-5)
    assert pb.length(Pullback(nn.Identity()), curve).dtype == dtype


def test_gradients_flow_to_nodes_through_points_lengths_and_energies():
    metric, nodes = Pullback(mlp()), randn(2, 4, 2).requires_grad_()
    t = linspace(5)
    assert torch.autograd.gradcheck(lambda x: (Curve(x)(t), Curve(x).velocity(t), Curve(x).acceleration(t)), nodes)
    assert torch.autograd.gradcheck(lambda x: pb.length(metric, Curve(x), n_segments=8), nodes)
    assert torch.autograd.gradcheck(lambda x: pb.energy(metric, Curve(x), n_segments=7), nodes)
    assert torch.autograd.gradgradcheck(lambda x: pb.energy(metric, Curve(x), n_segments=4), nodes)


def test_chords_that_are_nan_make_lengths_and_energies_nan():
    single, double = torch.tensor([1.0, torch.nan, 1.0, 1.0]), torch.tensor([torch.nan, 4.0])
    assert torch.isnan(chord_length(single, double))
    assert torch.isnan(chord_energy(single, double))


def test_the_gradient_of_the_length_of_a_curve_that_rests_is_finite():
    nodes = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [3.0, 1.0]], dtype=F64, requires_grad=True)
    for curve in (Curve(nodes), Curve(nodes[1:3])):
        for n in (4, 3):
            (gradient,) = torch.autograd.grad(pb.length(Pullback(mlp()), curve, n_segments=n), nodes)
            assert torch.isfinite(gradient).all()


def test_curves_made_in_inference_mode_do_not_spoil_later_ones():
    # weights of the spline are kept: they must not be inference tensors
    nodes = randn(11, 2)
    curve = Curve(nodes)
    with torch.inference_mode():
        curve(linspace(3))
    curve = Curve(nodes.requires_grad_())
    assert torch.autograd.grad(curve(linspace(3)).sum(), nodes)[0].isfinite().all()


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (torch.zeros(2), r"`nodes` has shape \(2,\): a curve needs two nodes or more"),
        (torch.zeros(1, 2), r"`nodes` has shape \(1, 2\)"),
        (torch.zeros(3, 2, dtype=torch.long), "`nodes` has dtype int64"),
        (torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), "`nodes` holds NaN or infinity at 1 of 2 points"),
    ],
)
def test_nodes_that_make_no_curve_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        Curve(nodes)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0.0, 1.1]), r"`t` reaches from 0 to 1.1: a curve is defined on \[0, 1\]"),
        (torch.tensor([-0.1]), "`t` reaches from -0.1"),
        (torch.tensor([torch.nan]), "`t` reaches from nan"),
        (torch.tensor(0.5), r"`t` has shape \(\): give parameters \(n,\)"),
        (torch.zeros(2, 3), r"`t` has shape \(2, 3\): give parameters \(n,\) or \(4, 'n'\)"),
        (torch.tensor([0, 1]), "`t` has shape"),
    ],
)
def test_parameters_outside_of_the_curve_are_refused(t, message):
    with pytest.raises(ValueError, match=message):
        Curve(randn(4, 3, 2))(t)


def test_numbers_of_segments_are_positive():
    curve = Curve(randn(4, 2))
    for call in (
        lambda: curve.resample(0),
        lambda: Curve.straight(torch.zeros(2), torch.ones(2), 0),
        lambda: pb.length(sphere, curve, n_segments=0),
        lambda: pb.energy(sphere, curve, n_segments=-2),
    ):
        with pytest.raises(ValueError, match=r"`n_segments` is .*must be positive"):
            call()


def test_straight_lines_are_broadcast_over_their_ends():
    start, end = randn(2), randn(3, 2, seed=1)
    lines = Curve.straight(start, end, 4)
    assert lines.nodes.shape == (3, 5, 2)
    assert torch.equal(lines.nodes[:, 0], start.expand(3, 2))
    assert torch.equal(lines.nodes[:, -1], end)
    assert torch.allclose(lines.nodes[:, 1], 0.75 * start + 0.25 * end)
    with pytest.raises(ValueError, match="`start` has shape"):
        Curve.straight(torch.zeros(3, 2), torch.zeros(4, 2))


# length and energy


@pytest.mark.parametrize("n", [1, 2, 3, 10, 17, 100])
def test_a_straight_line_in_a_flat_metric_has_its_exact_length_and_energy_at_every_resolution(n):
    # several peers lose a factor (n - 1) / n here, or divide by the number of samples
    plane = Pullback(surfaces.Plane(2, 7))
    start, end = randn(4, 2), randn(4, 2, seed=1)
    exact = plane.norm(start, end - start)
    for segments in (1, 2, 5):
        line = Curve.straight(start, end, segments)
        assert torch.allclose(pb.length(plane, line, n_segments=n), exact, rtol=1e-12)
        assert torch.allclose(pb.energy(plane, line, n_segments=n), 0.5 * exact**2, rtol=1e-12)
    assert torch.allclose(pb.length(plane, Curve.straight(start, end)), exact, rtol=1e-12)


def great_circle(n=3):
    """A great arc of the unit sphere, at changing speed, and its length."""
    angle = lambda t: 1.3 * (t + 0.3 * t**2)  # noqa: E731

    def point(t):
        x = torch.stack((angle(t).cos(), torch.zeros_like(t), angle(t).sin()), -1)
        x = x @ torch.linalg.qr(randn(3, 3)).Q.mT
        return x[..., :2] / (1 - x[..., 2:])  # back to the plane by stereographic projection

    return point, 1.3 * 1.3


def test_length_and_energy_converge_with_the_fourth_power_of_the_step_on_the_sphere():
    point, length = great_circle()
    curve = Curve(point(linspace(129)))
    speed2 = (1.3 * (1 + 0.6 * linspace(100_001))) ** 2
    energy = 0.5 * torch.trapezoid(speed2, linspace(100_001))
    for measure, exact in ((pb.length, length), (pb.energy, energy)):
        errors = [abs(float(measure(sphere, curve, n_segments=n) - exact)) for n in (8, 16, 32)]
        assert errors[0] < 1e-2
        assert errors[0] / errors[1] > 12
        assert errors[1] / errors[2] > 12
        assert abs(float(measure(sphere, curve) - exact)) < 1e-6


def test_chords_alone_are_of_second_order():
    point, length = great_circle()
    curve, errors = Curve(point(linspace(129))), []
    for n in (17, 35, 71):  # odd numbers of segments have no double chords
        errors.append(abs(float(pb.length(sphere, curve, n_segments=n) - length)))
        assert errors[-1] < 1.2 / n**2
    assert 3 < errors[0] / errors[1] < 5.5
    assert 3 < errors[1] / errors[2] < 5.5


@pytest.mark.parametrize("measure", [pb.length, pb.energy])
def test_a_metric_without_feature_map_is_integrated_to_fourth_order(measure):
    # the segment from (0, 1) to (1, 1) has speed 1 / y and y bends: 1 + sin(3 t) / 2
    t = linspace(65)
    curve = Curve(torch.stack((t, 1 + (3 * t).sin() / 2), -1))
    fine = linspace(200_001)
    x, v = curve(fine), curve.velocity(fine)
    speed = v.norm(dim=-1) / x[:, 1]
    exact = torch.trapezoid(speed if measure is pb.length else 0.5 * speed**2, fine)
    errors = [abs(float(measure(HalfPlane(), curve, n_segments=n) - exact)) for n in (16, 32, 64)]
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] > 11
    assert errors[1] / errors[2] > 11


def test_a_vertical_line_of_the_half_plane_has_length_log_2():
    line = Curve.straight(torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.0, 2.0], dtype=F64))
    assert math.isclose(float(pb.length(HalfPlane(), line)), math.log(2), rel_tol=1e-8)


def test_the_energy_at_twice_the_resolution_is_the_same():
    # a peer lacks the factor 1 / dt and doubles it
    metric, curve = Pullback(mlp()), Curve(randn(3, 5, 2))
    one, two = (pb.energy(metric, curve, n_segments=n) for n in (64, 128))
    assert torch.allclose(one, two, rtol=1e-3)


@given(seed=seeds)
@few
def test_the_energy_is_at_least_half_the_squared_length_and_equal_at_constant_speed(seed):
    metric, curve = Pullback(mlp()), Curve(randn(3, 5, 2, seed=seed))
    energy, length = pb.energy(metric, curve), pb.length(metric, curve)
    assert (energy >= 0.5 * length**2 * (1 - 1e-6)).all()
    point, length = great_circle()
    constant = Curve(point(((1 + 4 * 0.39 * linspace(257)).sqrt() - 1) / 0.6))  # undoes the change of speed
    assert torch.allclose(pb.energy(sphere, constant), torch.tensor(0.5 * length**2, dtype=F64), rtol=1e-7)


@given(seed=seeds)
@few
def test_running_through_a_curve_otherwise_changes_its_energy_but_not_its_length(seed):
    metric, curve = Pullback(mlp()), Curve(randn(4, 2, seed=seed))
    t = linspace(513)
    other = Curve(curve(0.4 * t + 0.6 * t**2))
    assert torch.allclose(pb.length(metric, other), pb.length(metric, curve, n_segments=2048), rtol=1e-6)
    plane, line = Pullback(surfaces.Plane()), Curve.straight(randn(2, seed=seed), randn(2, seed=seed + 1))
    expected = 1.12 * pb.energy(plane, line)  # the integral of (0.4 + 1.2 t)^2
    assert torch.allclose(pb.energy(plane, Curve(line(0.4 * t + 0.6 * t**2))), expected, rtol=1e-9)
    backward = Curve(curve.nodes.flip(-2))
    assert torch.allclose(pb.length(metric, backward), pb.length(metric, curve), rtol=1e-10)


@given(seed=seeds)
@few
def test_at_constant_speed_equal_steps_of_t_are_equal_steps_of_length(seed):
    metric = Pullback(mlp())
    curve = Curve(torch.arange(4, dtype=F64)[:, None] + 0.2 * randn(2, 3, 4, 2, seed=seed).tanh())  # it never rests
    even = pb.constant_speed(metric, curve, n_segments=1024)
    t = torch.linspace(0.01, 0.99, 50, dtype=F64)
    points, velocities = even(t), even.velocity(t)
    speed = metric.norm(points, velocities)
    assert torch.allclose(speed, pb.length(metric, curve)[..., None].expand_as(speed), rtol=1e-2)
    assert torch.allclose(pb.length(metric, even), pb.length(metric, curve), rtol=1e-4)
    assert torch.equal(even.nodes[..., [0, -1], :], curve.nodes[..., [0, -1], :])


def test_a_line_at_constant_speed_follows_the_arc_length_in_closed_form():
    # of the half plane, from y = 1 to y = e: the length up to y is log y
    line = Curve(torch.stack((torch.zeros(9, dtype=F64), torch.linspace(1, math.e, 9, dtype=F64)), -1))
    t = linspace(11)
    even = pb.constant_speed(HalfPlane(), line, n_segments=512)
    assert torch.allclose(even(t)[..., 1], t.exp(), atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_at_constant_speed_a_curve_may_have_any_number_of_segments(n):
    line = pb.constant_speed(Pullback(nn.Identity()), Curve.straight(torch.zeros(2), torch.ones(2)), n_segments=n)
    assert torch.allclose(line.nodes, torch.linspace(0, 1, n + 1)[:, None].expand(-1, 2))


def test_a_curve_without_length_has_no_speed_to_make_constant():
    rest = Curve(torch.ones(5, 2, dtype=F64))
    assert torch.equal(pb.constant_speed(sphere, rest, n_segments=4).nodes, rest.nodes)


@given(seed=seeds)
@few
def test_lengths_add_up_when_curves_are_joined(seed):
    metric, curve, t = Pullback(mlp()), Curve(randn(5, 2, seed=seed)), linspace(129)
    parts = [Curve(curve(0.3 * t)), Curve(curve(0.3 + 0.7 * t))]
    whole = pb.length(metric, curve, n_segments=1024)
    assert torch.allclose(sum(pb.length(metric, part) for part in parts), whole, rtol=1e-5)


def test_scaling_latent_coordinates_with_the_decoder_changes_nothing():
    f, curve = mlp(), Curve(randn(3, 5, 2))
    scaled = Pullback(lambda z: f(z / 10)), Curve(10 * curve.nodes)
    for measure in (pb.length, pb.energy):
        assert torch.allclose(measure(*scaled), measure(Pullback(f), curve), rtol=1e-12)


def test_scaling_the_output_scales_length_and_squared_energy():
    # a constant multiple c I of the ambient metric
    f, curve = mlp(), Curve(randn(3, 5, 2))
    one, three = Pullback(f), Pullback(lambda z: 3 * f(z))
    assert torch.allclose(pb.length(three, curve), 3 * pb.length(one, curve), rtol=1e-12)
    assert torch.allclose(pb.energy(three, curve), 9 * pb.energy(one, curve), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 128])
def test_chords_of_a_curve_in_pieces_are_those_of_the_whole(n):
    f, nodes = mlp(), randn(6, n + 1, 2)
    whole = squared_chords(Pullback(f), nodes)
    x = f(nodes)
    assert torch.allclose(whole[0], x.diff(dim=1).square().sum(-1))
    assert torch.allclose(whole[1], (x[:, 2::2] - x[:, : n - 1 : 2]).square().sum(-1))
    footprint = Pullback(f).feature_map.footprint(nodes)
    for points in (1, 2, 3, 5, 40):
        pieces = squared_chords(Pullback(f, memory=points * footprint), nodes)
        for a, b in zip(pieces, whole, strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


def test_the_energy_of_chords_is_that_of_parabolas_and_never_below_that_of_lines():
    x = randn(4, 9, 7)
    single, double = x.diff(dim=1).square().sum(-1), (x[:, 2::2] - x[:, :-2:2]).square().sum(-1)
    # on each pair of segments the parabola through a, b, c
    a, b, c = x[:, :-2:2], x[:, 1::2], x[:, 2::2]
    t, weights = (
        torch.tensor([0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5], dtype=F64),
        torch.tensor([5, 8, 5], dtype=F64) / 18,
    )  # Gauss
    velocity = [a * (4 * s - 3) + b * (4 - 8 * s) + c * (4 * s - 1) for s in t]
    exact = 0.5 * 4 * sum(w * v.square().sum((1, 2)) for w, v in zip(weights, velocity, strict=True))
    assert torch.allclose(chord_energy(single, double), exact, rtol=1e-12)
    assert (chord_energy(single, double) >= 0.5 * 8 * single.sum(-1)).all()
    assert torch.equal(chord_energy(single[:, :3], double[:, :1]), 1.5 * single[:, :3].sum(-1))
    assert torch.equal(chord_length(single[:, :3], double[:, :1]), single[:, :3].sqrt().sum(-1))
