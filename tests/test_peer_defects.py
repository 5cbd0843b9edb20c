"""What other packages for latent geometry get wrong, and the property that each of these mistakes violates.

Here everything goes through public functions and the default solver; other solvers have their own tests.
"""

import dataclasses
import inspect
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.autodiff import jacobian, jvp
from pullback.geodesics.solver import Minimizer

F64 = torch.float64
SOLVERS = (pb.Relax, pb.Georce, pb.Collocate, pb.Shoot, pb.Newton)


def points(*shape, seed=0, scale=0.5):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(d=2, n_features=20, gain=1.5):
    layers = nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, n_features)
    for seed, weight in enumerate(nn.Sequential(*layers).parameters()):
        weight.data = points(*weight.shape, seed=seed, scale=gain / math.sqrt(weight.shape[-1]))
    return nn.Sequential(*layers).requires_grad_(False)


def unit_interval(n):
    return torch.linspace(0, 1, n, dtype=F64)


class HalfPlane(pb.Metric):
    """The hyperbolic plane in sheared coordinates w = A z, w_1 > 0: G = A'A / w_1^2, not diagonal, and no immersion."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shear", torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64))

    def matrix(self, z):
        return (self.shear.mT @ self.shear).to(z) / (z @ self.shear.mT.to(z))[..., 1, None, None] ** 2

    def inner(self, z, u, v):
        return torch.einsum("...i,...ij,...j->...", u, self.matrix(z), v)

    def distance(self, a, b):
        a, b = a @ self.shear.mT, b @ self.shear.mT
        return torch.acosh(1 + (a - b).square().sum(-1) / (2 * a[..., 1] * b[..., 1]))


class Stretched(nn.Module):
    """The sphere, seen through a linear chart: its metric is not diagonal."""

    def __init__(self):
        super().__init__()
        self.register_buffer("chart", torch.tensor([[1.0, 0.6], [-0.2, 0.8]], dtype=F64))

    def forward(self, z):
        return pb.surfaces.Sphere()(z @ self.chart.mT.to(z))


def great_arc(t, angle=1.5):
    """A great arc of the unit sphere at constant speed, in stereographic coordinates; its length is the angle."""
    radius = torch.tan((angle * t - 0.4) / 2)
    return radius[:, None] * torch.tensor([0.6, 0.8], dtype=F64)


# curves, lengths, energies


def test_t1_value_slope_and_second_derivative_are_continuous_at_inner_knots():
    # several peers have 6t, 2 in the wrong places of a row, and jumps of the second derivative
    n, h = 8, 1e-13
    curve, knots, t = pb.Curve(points(n + 1, 3)), unit_interval(n + 1)[1:-1], 0.03 + 0.9 * unit_interval(29)
    for order, derivative in enumerate((curve, curve.velocity, curve.acceleration)):
        jump = derivative(knots + h) - derivative(knots - h)
        assert jump.abs().max() < 1e-10 * n**order
    assert torch.equal(curve(torch.tensor([0.0, 1.0], dtype=F64)), curve.nodes[[0, -1]])
    for derivative, integral in ((curve.velocity, curve), (curve.acceleration, curve.velocity)):
        differences = (integral(t + 1e-6) - integral(t - 1e-6)) / 2e-6
        assert torch.allclose(derivative(t), differences, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
def test_t2_a_straight_line_in_a_flat_metric_is_exact_with_any_number_of_samples(n):
    # several peers apply the trapezoid rule to T values of T + 1, or divide by the number of samples
    plane = pb.surfaces.Plane()
    a, b = points(3, 2, seed=1), points(3, 2, seed=2)
    line, exact = pb.Curve.straight(a, b), plane.distance(a, b)
    assert torch.allclose(pb.length(pb.Pullback(plane), line, n_segments=n), exact, rtol=1e-12)
    assert torch.allclose(pb.energy(pb.Pullback(plane), line, n_segments=n), exact**2 / 2, rtol=1e-12)


@pytest.mark.parametrize(("samples", "order"), [((15, 31, 63), 2), ((16, 32, 64), 4)])
def test_t3_the_length_of_an_arc_is_of_second_order_by_chords_and_of_fourth_when_extrapolated(samples, order):
    # one peer samples at the left of each segment: first order
    arc = pb.Curve(great_arc(unit_interval(1025)))
    errors = [float(1.5 - pb.length(pb.Pullback(pb.surfaces.Sphere()), arc, n_segments=n)) for n in samples]
    for n, (coarse, fine) in zip(samples, itertools.pairwise(errors), strict=False):
        assert abs(math.log2(abs(coarse / fine)) / math.log2((2 * n + order % 4 // 2) / n) - order) < 0.2


def test_t4_the_energy_does_not_depend_on_the_number_of_samples():
    # one peer lacks the factor 1 / dt: twice the samples, half the energy
    metric, curve = pb.Pullback(network(gain=1.0)), pb.Curve(points(4, 3, 2))
    for n in (64, 65, 128):
        one, two = (pb.energy(metric, curve, n_segments=k) for k in (n, 2 * n))
        assert ((two / one - 1).abs() < 20 / n**2).all()


CALLS = {
    "length": lambda s: pb.length(s.metric, s.curve),
    "energy": lambda s: pb.energy(s.metric, s.curve, n_segments=7),
    "matrix": lambda s: (s.metric.matrix(s.a), s.metric.log_volume(s.a), s.metric.christoffel(s.a, s.v, s.v)),
    "geodesic": lambda s: pb.geodesic(s.metric, s.a, s.b).length,
    "geodesic from a curve": lambda s: pb.geodesic(s.metric, s.a, s.b, init=s.curve).length,
    "distance": lambda s: pb.distance(s.metric, s.a, s.b),
    "log": lambda s: pb.log(s.metric, s.a, s.b, tol=1e-3),
    "exp": lambda s: pb.exp(s.metric, s.a, s.v, tol=1e-4).end,
    "transport": lambda s: pb.transport(s.metric, s.curve, s.v, tol=1e-4),
    "verify": lambda s: pb.verify(s.metric, s.path).length,
    "knn_graph": lambda s: pb.knn_graph(s.metric, s.codes, 4).distances(0),
    "geodesic from a graph": lambda s: pb.geodesic(s.metric, s.a, s.b, init=s.graph).length,
    "grid_graph": lambda s: pb.grid_graph(s.metric, s.bounds, 4).distances(0),
    "georce": lambda s: pb.geodesic(s.metric, s.a, s.b, solver="georce", tol=1e-3).length,
    "newton": lambda s: pb.geodesic(s.metric, s.a, s.b, solver="newton", tol=1e-3).length,
    "collocate": lambda s: pb.geodesic(s.metric, s.a, s.b, solver="collocate", tol=1e-2).length,
    "shoot": lambda s: pb.geodesic(s.metric, s.a, s.b, solver="shoot", tol=1e-3).length,
}


class Scene:
    """Arguments for every public function."""

    def __init__(self, dtype=F64):
        self.decoder = network(gain=1.0).to(dtype)
        self.decoder[0].requires_grad_()
        self.decoder[2].eval()
        self.metric = pb.Pullback(self.decoder)
        self.a, self.b, self.v = (points(2, 2, seed=seed, scale=0.3).to(dtype) for seed in (1, 2, 3))
        self.b.requires_grad_()
        self.codes = points(12, 2, seed=4, scale=1.0).to(dtype)
        self.bounds = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]], dtype=dtype, device="cpu")
        self.curve = pb.Curve.straight(self.a, self.b.detach(), 2)
        self.path = pb.geodesic(self.metric, self.a, self.b)
        self.graph = pb.knn_graph(self.metric, self.codes, 4)

    def state(self):
        given = [self.a, self.b, self.v, self.codes, self.bounds, self.curve.nodes, self.path.curve.nodes]
        given += [self.path.length, self.path.codes, self.path.evaluations, self.graph.points]
        tensors = [*given, *self.decoder.parameters()]
        flags = [(t.shape, t.dtype, t.requires_grad, t.grad) for t in tensors]
        flags += [[m.training for m in self.decoder.modules()], torch.get_default_dtype(), torch.is_grad_enabled()]
        return flags, [t.detach().clone() for t in tensors] + [torch.get_rng_state()]


@pytest.mark.parametrize("name", CALLS)
def test_t5_no_public_function_changes_what_it_is_given(name):
    # one peer gives the caller's tensor another shape in place, another adds to the user's matrix
    scene = Scene()
    flags, values = scene.state()
    CALLS[name](scene)
    new_flags, new_values = scene.state()
    assert new_flags == flags
    assert all(torch.equal(new, old) for new, old in zip(new_values, values, strict=True))


@pytest.mark.parametrize("batch", [1, 4, 5, 7])
def test_t7_the_energy_is_that_of_each_curve_in_any_number_and_any_units_of_the_latent_space(batch):
    # two peers multiply (B,) by (B, n - 1), and divide by the latent step
    f, curves = network(), pb.Curve(points(batch, 5, 2))
    energies = pb.energy(pb.Pullback(f), curves, n_segments=5)
    x = f(curves(unit_interval(6)))
    assert energies.shape == (batch,)
    assert torch.allclose(energies, 2.5 * (x[:, 1:] - x[:, :-1]).square().sum((1, 2)), rtol=1e-12)
    rescaled = pb.energy(pb.Pullback(lambda z: f(z / 100)), pb.Curve(100 * curves.nodes), n_segments=5)
    assert torch.allclose(rescaled, energies, rtol=1e-10)


def test_t8_mean_and_deviation_of_a_gaussian_decoder_add_up_by_their_squares():
    # one peer adds |d mu| and |d sigma|: 7 here
    decoder = pb.Gaussian(lambda z: 3 * z[:, :1], lambda z: 4 * z[:, :1] + 1)
    line = pb.Curve.straight(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    assert math.isclose(float(pb.length(pb.Pullback(decoder), line)), 5, rel_tol=1e-12)


def test_t9_between_its_nodes_a_decoded_geodesic_is_the_decoder_at_the_point_and_lies_on_the_geodesic():
    # one peer interpolates decoded curves with a fraction that it forgot to scale
    sphere = pb.surfaces.Sphere()
    ends = great_arc(torch.tensor([0.0, 1.0], dtype=F64))
    path = pb.geodesic(pb.Pullback(sphere), ends[0], ends[1], tol=1e-6)
    t = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=F64)
    decoded = pb.Pullback(sphere).features(path.curve(t))
    assert torch.allclose(decoded, sphere(path.curve(t)), rtol=0, atol=1e-10)
    assert torch.allclose(decoded, sphere(great_arc(t)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("measure", [pb.length, pb.energy])
def test_t10_a_length_or_energy_is_one_call_of_the_decoder(measure):
    # one peer makes 10,000 calls for single points
    f, sizes = network(), []
    metric = pb.Pullback(lambda z: (sizes.append(len(z)), f(z))[1])
    curve = pb.Curve(points(3, 5, 2))
    measure(metric, curve)  # the decoder is looked at
    sizes.clear()
    measure(metric, curve)
    assert sizes == [3 * 129]


# metrics and Jacobians


def test_t11_the_matrix_is_the_sum_over_features_of_products_of_derivatives():
    # two peers contract the wrong axes of J, or take a corner of J J'
    f, z = network(3, 5), points(4, 3)
    g = pb.Pullback(f).matrix(z)
    assert g.shape == (4, 3, 3)
    for point, found in zip(z, g, strict=True):
        j = torch.autograd.functional.jacobian(f, point)
        for i, k in itertools.product(range(3), range(3)):
            assert math.isclose(sum(float(row[i] * row[k]) for row in j), float(found[i, k]), abs_tol=1e-12)
    assert torch.allclose(g, g.mT, rtol=0, atol=1e-14)
    assert (torch.linalg.eigvalsh(g) > -1e-12).all()


def test_t16_a_singular_metric_is_said_and_a_regular_one_is_not_and_no_nan_is_replaced():
    # one peer's test for ill conditioning never fires, another turns NaN of the inverse into zero
    dead, z = pb.Pullback(lambda z: z[:, :1].sin().expand(-1, 3)), points(4, 2)
    assert (dead.log_volume(z) == -torch.inf).all()
    assert dead.christoffel(z, z, z).isnan().all()
    with pytest.warns(pb.RankWarning):
        pb.geodesic(dead, z, z + 0.1)
    regular = pb.Pullback(network())
    assert torch.isfinite(regular.log_volume(z)).all()
    assert torch.isfinite(regular.christoffel(z, z, z)).all()
    pb.geodesic(regular, z, z + 0.1)  # a warning would be an error
    with pytest.raises(ValueError, match="NaN or infinity at 1 of 4"):
        pb.Pullback(lambda y: y / (y[:, :1] != z[0, 0])).matrix(z)


def test_t17_a_decoder_with_a_dead_latent_dimension_gives_geodesics_of_the_others_and_no_nan():
    # one peer inverts the singular matrix
    sphere, (a, b) = pb.surfaces.Sphere(), points(2, 4, 3)
    with pytest.warns(pb.RankWarning):
        path = pb.geodesic(pb.Pullback(lambda z: sphere(z[:, :2])), a, b)
    assert path.converged.all()
    assert torch.isfinite(path.curve.nodes).all()
    assert torch.allclose(path.length, sphere.distance(a[:, :2], b[:, :2]), rtol=1e-4)


LAYERS = {
    "softplus": nn.Sequential(nn.Linear(2, 6), nn.Softplus(), nn.Linear(6, 3)),
    "layer norm": nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.SiLU()),
    "group norm": nn.Sequential(nn.Linear(2, 6), nn.GroupNorm(2, 6), nn.Sigmoid()),
    "convolution": nn.Sequential(nn.Unflatten(1, (2, 1)), nn.ConvTranspose1d(2, 3, 4), nn.ELU(), nn.Flatten()),
    "softmax": nn.Sequential(nn.Linear(2, 6), nn.Softmax(1)),
    "batch norm": nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh()),
    "gelu and dropout": nn.Sequential(nn.Linear(2, 6), nn.GELU(), nn.Dropout(), nn.Linear(6, 3)),
}


def layers(name):
    """A new network with weights that depend on nothing else, batch statistics that are not zero and one."""
    f = pickle.loads(pickle.dumps(LAYERS[name])).double()
    for seed, (key, tensor) in enumerate(f.state_dict().items()):
        if tensor.is_floating_point():
            value = points(*tensor.shape, seed=seed, scale=1.0)
            tensor.copy_(value.abs() + 0.5 if key.endswith("running_var") else value)
    return f.eval().requires_grad_(False)


@pytest.mark.parametrize("name", LAYERS)
def test_t18_all_ways_to_a_jacobian_agree(name):
    # vmap over torch.autograd.functional.jacobian was silently wrong
    f, z, h = layers(name), points(4, 2), 1e-6
    j = jacobian(f, z)
    for mode in (torch.func.jacfwd, torch.func.jacrev):
        assert torch.allclose(torch.stack([mode(lambda y: f(y[None])[0])(point) for point in z]), j, rtol=0, atol=1e-12)
    basis = [e.expand(4, 2) for e in torch.eye(2, dtype=F64)]
    assert torch.allclose(torch.stack(jvp(f, z, tuple(basis)), -1), j, rtol=0, atol=1e-12)
    assert torch.allclose(
        torch.stack([(f(z + h * e) - f(z - h * e)) / (2 * h) for e in basis], -1), j, rtol=0, atol=1e-7
    )
    assert torch.allclose(pb.Pullback(f).matrix(z), j.mT @ j, rtol=0, atol=1e-12)


def test_t18_the_jacobian_of_two_layers_is_that_of_the_formula():
    # as above, by W_2 diag(softplus') W_1
    f, z = layers("softplus"), points(4, 2)
    slopes = torch.sigmoid(f[0](z))
    assert torch.allclose(jacobian(f, z), f[2].weight @ (slopes[..., None] * f[0].weight), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["batch norm", "gelu and dropout", "group norm", "softmax"])
def test_t19_the_metric_at_a_point_does_not_depend_on_the_other_points(name):
    # functions of single points lose the batch axis that some layers need
    f, z = layers(name), points(5, 2)
    together = pb.Pullback(f).matrix(z)
    for i in range(5):
        assert torch.allclose(pb.Pullback(f).matrix(z[i]), together[i], rtol=0, atol=1e-13)
        assert torch.allclose(pb.Pullback(f).matrix(z[[i, 0]])[0], together[i], rtol=0, atol=1e-13)
    if name in ("batch norm", "gelu and dropout"):
        with pytest.raises(ValueError, match="training mode"):
            pb.Pullback(f.train()).matrix(z)


def tensors_in(result):
    return [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", CALLS)
def test_t20_t21_results_follow_the_points_and_no_tensor_is_made_without_device_and_dtype(name, dtype):
    # several peers make tensors on the CPU, take a GPU for granted, or cast all to float32
    expected, scene = tensors_in(CALLS[name](Scene(dtype))), Scene(dtype)
    other = torch.float32 if dtype == F64 else F64
    torch.set_default_dtype(other)
    try:
        with torch.device("meta"):
            found = tensors_in(CALLS[name](scene))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in found} == {dtype}
    assert {t.device for t in found} == {scene.a.device}
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_t20_results_are_on_the_device_of_the_points(name):
    # as above, where there is a GPU
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    scene = Scene()
    expected = tensors_in(CALLS[name](scene))
    scene.metric.cuda()
    for key in ("a", "b", "v", "codes", "bounds"):
        setattr(scene, key, getattr(scene, key).detach().cuda())
    scene.curve = pb.Curve(scene.curve.nodes.cuda())
    scene.path = pb.geodesic(scene.metric, scene.a, scene.b)
    scene.graph = pb.knn_graph(scene.metric, scene.codes, 4)
    found = tensors_in(CALLS[name](scene))
    assert all(t.is_cuda for t in found)
    torch.testing.assert_close([t.cpu() for t in found], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["geodesic", "distance", "log", "exp", "transport"])
def test_t21_no_result_makes_a_round_trip_through_numpy(name, monkeypatch):
    # one peer returns .cpu().numpy() from every call
    scene = Scene()
    monkeypatch.setattr(torch.Tensor, "numpy", lambda *_, **__: pytest.fail("a tensor became an array"))
    monkeypatch.setattr(torch.Tensor, "__array__", lambda *_, **__: pytest.fail("a tensor became an array"))
    CALLS[name](scene)


def test_t21_gradients_flow_to_ends_and_weights():
    # as above: an array carries none
    scene = Scene()
    distances = pb.distance(scene.metric, scene.a, scene.b)
    wanted = torch.autograd.grad(distances.sum(), (scene.b, scene.decoder[0].weight))
    assert all(bool((gradient != 0).any()) for gradient in wanted)


# solvers and status


def test_t27_status_is_that_of_each_pair_and_knows_no_scale():
    # one peer has one flag for a batch, from an absolute gradient: more pairs, or larger data, and it turns
    f, (a, b) = network(gain=2.0), points(2, 12, 2, scale=1.0)
    together = pb.geodesic(pb.Pullback(f), a, b)
    scaled = pb.geodesic(pb.Pullback(lambda z: 1e3 * f(z)), a, b)
    assert together.codes.shape == (12,)
    assert torch.equal(scaled.codes, together.codes)
    for i in (0, 5, 11):
        alone = pb.geodesic(pb.Pullback(f), a[i], b[i])
        assert alone.status == together.status[i]
        assert torch.allclose(alone.length, together.length[i], rtol=1e-9)


def test_t28_a_pair_that_fails_is_said_and_has_no_length_and_is_no_straight_line():
    # several peers return a straight line, exit the interpreter, or raise a bare exception
    metric, a = pb.Pullback(network(gain=4.0)), points(4, 2)[1]
    b = a + torch.tensor([1e-4, 2.0, 1e-4, 2.1], dtype=F64)[:, None]
    with pytest.warns(pb.GeodesicWarning, match=r"2 of 4 geodesics converged; .*\(pairs 1, 3\)"):
        path = pb.geodesic(metric, a, b, solver=pb.Relax(max_steps=1))
    assert path.converged.tolist() == [True, False, True, False]
    for values in (path.length, path.length_error, path.energy):
        assert values.isnan().tolist() == [False, True, False, True]
    with pytest.raises(pb.ConvergenceError, match="pairs 1, 3"):
        path.raise_for_status()


def test_t29_every_step_keeps_what_its_slope_promised_and_the_end_is_below_the_straight_line(monkeypatch):
    # one peer tests steps with the gradient in place of their direction, and ends above the line it began as
    metric, (a, b) = pb.Pullback(network(3, 30, gain=3.0)), points(2, 20, 3, seed=3, scale=1.0)
    steps, step = [], Minimizer.step

    def watched(self, energy, state):
        new = step(self, energy, state)
        slope = (state.gradient * (new.z - state.z)).sum((1, 2))
        steps.append(((new.energy - state.energy) / state.energy, slope / state.energy))
        return new

    monkeypatch.setattr(Minimizer, "step", watched)
    path = pb.geodesic(metric, a, b)
    change, slope = (torch.cat(values) for values in zip(*steps, strict=True))
    assert path.converged.all()
    assert len(change) > 60
    assert (slope <= 0).all()
    assert (change <= 1e-4 * slope + 1e-12).all()
    assert (path.length <= pb.length(metric, pb.Curve.straight(a, b), n_segments=1024)).all()


def test_t30_data_a_thousand_times_larger_take_as_many_steps():
    # one peer stops at an absolute gradient norm
    f, (a, b) = network(), points(2, 6, 2)
    one, larger = (pb.geodesic(pb.Pullback(lambda z, c=c: c * f(z)), a, b) for c in (1, 1000))
    assert torch.equal(one.iterations, larger.iterations)
    assert torch.equal(one.evaluations, larger.evaluations)
    assert torch.allclose(larger.length, 1000 * one.length, rtol=1e-9)


@pytest.mark.parametrize("decoder", [pb.surfaces.Sphere(), Stretched()], ids=["diagonal", "full"])
def test_t33_exp_shooting_and_boundary_problems_run_with_diagonal_and_full_metrics(decoder):
    # one peer calls a function that torch removed
    metric, chart = pb.Pullback(decoder), getattr(decoder, "chart", torch.eye(2, dtype=F64))
    w = great_arc(torch.tensor([0.2, 0.9], dtype=F64))
    a, b = torch.linalg.solve(chart, w.mT).mT
    velocity = 1.5 * 0.7 * (1 + w[0].square().sum()) / 2 * torch.tensor([0.6, 0.8], dtype=F64)
    assert torch.allclose(pb.exp(metric, a, torch.linalg.solve(chart, velocity)).end, b, rtol=0, atol=1e-8)
    for solver in (pb.Shoot(), pb.Collocate()):
        path = pb.geodesic(metric, a, b, solver=solver, tol=1e-5)
        assert math.isclose(float(path.length), 1.5 * 0.7, rel_tol=1e-5)


@pytest.mark.parametrize("kind", SOLVERS)
def test_t34_every_option_of_a_solver_is_reached_from_the_top_level_calls(kind, monkeypatch):
    # peers' solvers have options that the functions that call them do not pass on
    unset = {"n_segments": 8, "gradient_tol": 1e-3}
    names = [field.name for field in dataclasses.fields(kind)]
    default = {name: getattr(kind(), name) or unset[name] for name in names}
    given = kind(**{name: 2 * default[name] for name in names})
    seen, solve = [], kind.solve
    monkeypatch.setattr(kind, "solve", lambda self, *a, **k: (seen.append((self, k["tol"])), solve(self, *a, **k))[1])
    metric, (a, b) = pb.Pullback(pb.surfaces.Sphere()), points(2, 2, scale=0.2)
    for call in (pb.geodesic, pb.distance, pb.log):
        seen.clear()
        call(metric, a, b, solver=given, tol=1e-3)
        assert set(seen) == {(given, 1e-3)}
        assert {"tol", "init", "starts", "progress"} <= set(inspect.signature(call).parameters)


def test_t35_a_geodesic_of_a_small_network_takes_few_evaluations(counting):
    # one peer took 48 s for one pair, through thousands of small Euler steps
    counter = counting(network())
    a, b = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=F64)
    path = pb.geodesic(pb.Pullback(counter), a, b)
    assert path.converged
    assert counter.evaluations < 700


def test_t36_logarithms_to_many_points_are_those_to_each():
    # one peer fails for several targets
    metric, z, w = pb.Pullback(network(gain=1.0)), points(2, 2, seed=1, scale=0.3), points(2, 2, seed=2, scale=0.3)
    each = [pb.log(metric, one, other, tol=1e-4) for one, other in ((z[0], w[0]), (z[0], w[1]), (z[1], w[1]))]
    for start, expected in ((z[0], each[:2]), (z, each[::2])):
        together = pb.log(metric, start, w, tol=1e-4)
        assert together.shape == (2, 2)
        assert torch.allclose(together, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_t37_the_logarithm_is_as_long_as_the_distance_in_the_metric_and_exp_leads_back():
    # one peer's has the distance for its Euclidean norm
    metric, (z, w) = pb.Pullback(network(gain=1.0)), points(2, 2, 2, scale=0.3)
    v = pb.log(metric, z, w, tol=1e-5)
    assert torch.allclose(metric.norm(z, v), pb.distance(metric, z, w, tol=1e-5), rtol=1e-4)
    assert torch.allclose(pb.exp(metric, z, v, tol=1e-6).end, w, rtol=0, atol=1e-4)


def test_t38_the_distance_is_the_same_in_both_directions():
    # users of one peer wonder why theirs are not
    metric, (a, b) = pb.Pullback(network(gain=2.0)), points(2, 8, 2, scale=1.0)
    assert torch.allclose(pb.distance(metric, a, b), pb.distance(metric, b, a), rtol=2e-4)


# graphs


@pytest.mark.parametrize("d", [3, 5])
def test_t41_graphs_work_in_many_dimensions_stay_sparse_and_let_errors_through(d):
    # one peer's are for the plane alone, dense, and swallow every error
    plane, codes = pb.surfaces.Plane(d), points(300, d)
    graph = pb.knn_graph(pb.Pullback(plane), codes)
    found, exact = graph.distances(0), plane.distance(codes[:1], codes)
    assert (found >= exact - 1e-12).all()
    assert (found[1:] / exact[1:]).mean() < 1.15
    assert graph.edges.nnz <= 2 * 16 * 300

    def broken(z):
        if len(z) > 3:  # not when it is looked at
            raise ZeroDivisionError("of the user")
        return plane(z)

    with pytest.raises(ZeroDivisionError, match="of the user"):
        pb.knn_graph(pb.Pullback(broken), codes)


# what goes together, what travels


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("metric", [HalfPlane(), pb.Pullback(Stretched())], ids=["inner and matrix", "decoder"])
def test_t46_every_solver_takes_every_metric(metric, kind):
    # one peer's solver takes one kind of model, and not the package's own metrics
    a, b = torch.tensor([[-0.2, 0.8], [0.3, 1.1]], dtype=F64)
    exact = metric.distance(a, b) if isinstance(metric, HalfPlane) else pb.distance(metric, a, b, tol=1e-6)
    path = pb.geodesic(metric, a, b, solver=kind())
    assert path.converged
    assert torch.allclose(path.length, exact, rtol=1e-4)


@pytest.mark.parametrize("metric", [HalfPlane(), pb.Pullback(Stretched())], ids=["inner and matrix", "decoder"])
def test_t47_metrics_survive_pickle_and_torch_save_with_the_same_numbers(metric, tmp_path):
    # one peer's metrics are closures
    a, b = torch.tensor([[-0.2, 0.8], [0.3, 1.1]], dtype=F64)
    expected = pb.geodesic(metric, a, b)  # used before it travels
    torch.save(metric, tmp_path / "metric.pt")
    for copy in (pickle.loads(pickle.dumps(metric)), torch.load(tmp_path / "metric.pt", weights_only=False)):
        again = pb.geodesic(copy, a, b)
        assert torch.equal(again.curve.nodes, expected.curve.nodes)
        assert torch.equal(again.length, expected.length)


@pytest.mark.parametrize("kind", SOLVERS)
def test_t47_solvers_survive_pickle_and_are_as_they_were(kind):
    # as above
    solver = pb.Fallback(kind(), pb.Relax(max_steps=7))
    assert pickle.loads(pickle.dumps(solver)) == solver
