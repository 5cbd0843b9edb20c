import math
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from metric_contract import F64, MetricContract
from pullback import surfaces
from pullback.curves import Curve
from pullback.metrics import Metric, Pullback

seeds = st.integers(0, 10**6)
few = settings(deadline=None, max_examples=10, derandomize=True)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, n_features=7, *, width=16, activation=nn.Tanh, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, width), activation(), nn.Linear(width, n_features)).double()


def explicit(f, z):
    """J (n, D, d) row by row, the slow way."""
    return torch.stack([torch.autograd.functional.jacobian(lambda y: f(y[None])[0], point) for point in z])


class Conformal(Metric):
    """A metric of no feature map: G = exp(2 a.z) I."""

    def __init__(self, a):
        super().__init__()
        self.register_buffer("a", a)

    def matrix(self, z):
        return (2 * (z * self.a).sum(-1)).exp()[..., None, None] * torch.eye(z.shape[-1]).to(z)

    def inner(self, z, u, v):
        return (2 * (z * self.a).sum(-1)).exp() * (u * v).sum(-1)


class Ambient(Metric):
    """The pullback of a Riemannian metric h(x) by f: G = J' h(f(z)) J; needs no feature map to be a metric."""

    def __init__(self, f, h):
        super().__init__()
        self.f, self.h = f, h

    def matrix(self, z):
        flat = z.reshape(-1, z.shape[-1])
        j = torch.func.vmap(torch.func.jacfwd(lambda y: self.f(y[None])[0]))(flat)
        return (j.mT @ self.h(self.f(flat)) @ j).reshape(*z.shape, z.shape[-1])

    def inner(self, z, u, v):
        return (u[..., None, :] @ self.matrix(z) @ v[..., :, None])[..., 0, 0]


class TestSphere(MetricContract):
    d = 3

    def metric(self):
        return Pullback(surfaces.Sphere(radius=2.0))


class TestTorus(MetricContract):
    def metric(self):
        return Pullback(surfaces.Torus())


class TestPlane(MetricContract):
    d = 4

    def metric(self):
        return Pullback(surfaces.Plane(4, 6))


class TestNetwork(MetricContract):
    def metric(self):
        return Pullback(mlp())


class TestLineInSpace(MetricContract):
    d = 1

    def metric(self):
        return Pullback(mlp(d=1, n_features=3))


class TestSquareMapWithMoreDimensionsThanTwo(MetricContract):
    d = 5

    def metric(self):
        return Pullback(mlp(5, 5, width=5, activation=nn.Softplus).requires_grad_(False))


class TestGaussianWithPartsOfTheOutput(MetricContract):
    def metric(self):
        return Pullback(pb.Gaussian(mlp(), nn.Sequential(mlp(seed=1), nn.Softplus())))


class TestGaussianWithOneSharedDeviation(MetricContract):
    d = 3

    def metric(self):
        return Pullback(pb.Gaussian(mlp(d=3), nn.Sequential(mlp(d=3, n_features=1, seed=1), nn.Softplus())))


class TestMetricThatNoFeatureMapInduces(MetricContract):
    d = 3

    def metric(self):
        return Conformal(torch.tensor([0.5, -0.2, 0.1], dtype=F64))


# the matrix


@pytest.mark.parametrize(("d", "n_features"), [(1, 5), (2, 7), (3, 3), (5, 2), (8, 3), (4, 1)])
def test_the_matrix_is_the_explicit_loop_over_jacobians_for_every_shape(d, n_features):
    # a peer computes J J' or its corner: only D != d tells
    f, z = mlp(d, n_features), randn(6, d)
    j = explicit(f, z)
    assert j.shape == (6, n_features, d)
    g = Pullback(f).matrix(z)
    assert g.shape == (6, d, d)
    assert torch.allclose(g, j.mT @ j, rtol=1e-12, atol=1e-14)
    assert (torch.linalg.eigvalsh(g) > -1e-12).all()


@given(seed=seeds)
@few
def test_rotating_the_data_space_changes_nothing(seed):
    f, z = mlp(seed=seed), randn(4, 2, seed=seed)
    rotation = torch.linalg.qr(randn(7, 7, seed=seed + 1)).Q
    rotated = Pullback(lambda z: f(z) @ rotation.mT + randn(7, seed=3))
    assert torch.allclose(rotated.matrix(z), Pullback(f).matrix(z), rtol=1e-9, atol=1e-12)


@given(seed=seeds)
@few
def test_an_affine_change_of_latent_coordinates_gives_a_transformed_matrix(seed):
    f, a, b, y = mlp(d=3, seed=seed), randn(3, 3, seed=seed), randn(3, seed=seed), randn(4, 3, seed=seed + 1)
    changed = Pullback(lambda y: f(y @ a.mT + b)).matrix(y)
    assert torch.allclose(changed, a.mT @ Pullback(f).matrix(y @ a.mT + b) @ a, rtol=1e-9, atol=1e-11)


@given(seed=seeds)
@few
def test_the_matrix_is_symmetric_and_positive_semi_definite_also_where_features_are_fewer_than_dimensions(seed):
    for n_features in (1, 2, 7):
        g = Pullback(mlp(3, n_features, seed=seed)).matrix(randn(4, 3, seed=seed))
        assert torch.allclose(g, g.mT, rtol=1e-14)
        assert (torch.linalg.eigvalsh(g) > -1e-13 * g.abs().amax((-1, -2))[:, None]).all()


def test_scaling_the_output_scales_lengths_and_the_inverse_is_the_inverse():
    # peers mix up G and its inverse
    f, z, v = mlp(), randn(4, 2), randn(4, 2, seed=1)
    one, three = Pullback(f), Pullback(lambda z: 3 * f(z))
    assert torch.allclose(three.norm(z, v), 3 * one.norm(z, v))
    assert torch.allclose(three.log_volume(z), one.log_volume(z) + 2 * math.log(3))
    g = one.matrix(z)
    assert torch.allclose(g @ torch.linalg.inv(g), torch.eye(2, dtype=F64).expand(4, 2, 2), atol=1e-8)


def test_a_constant_metric_of_the_data_space_is_a_linear_map_behind_the_decoder():
    f, z, root = mlp(), randn(4, 2), randn(7, 7, seed=3)
    ambient = Ambient(f, lambda x: (root.mT @ root).expand(len(x), 7, 7))
    immersed = Pullback(lambda z: f(z) @ root.mT)
    assert torch.allclose(immersed.matrix(z), ambient.matrix(z), rtol=1e-10)
    curve = Curve(randn(2, 4, 2, seed=4))
    for measure in (pb.length, pb.energy):
        assert torch.allclose(measure(ambient, curve, n_segments=256), measure(immersed, curve), rtol=1e-5)


def test_a_metric_of_the_data_space_that_varies_is_used_where_the_curve_is():
    f = mlp()

    def h(x):  # strongly anisotropic: off-diagonal entries count
        ones = torch.ones(len(x), 7, 1, dtype=F64)
        return torch.eye(7, dtype=F64) + (1 + x[:, :1, None].square()) * (ones @ ones.mT)

    metric, curve = Ambient(f, h), Curve(randn(4, 2))
    t = torch.linspace(0, 1, 20001, dtype=F64)
    x, v = f(curve(t)), f(curve(t))
    v = torch.gradient(x, spacing=(t,), dim=0, edge_order=2)[0]
    speed2 = (v[:, None, :] @ h(x) @ v[:, :, None])[:, 0, 0]
    assert torch.allclose(pb.energy(metric, curve, n_segments=256), 0.5 * torch.trapezoid(speed2, t), rtol=1e-5)
    assert torch.allclose(pb.length(metric, curve, n_segments=256), torch.trapezoid(speed2.sqrt(), t), rtol=1e-5)


def test_the_derivative_of_the_matrix_agrees_with_finite_differences():
    metric = Pullback(mlp(d=3))
    z, h = randn(3), 1e-5
    derivative = torch.autograd.functional.jacobian(metric.matrix, z)  # (d, d, d)
    for k, e in enumerate(torch.eye(3, dtype=F64)):
        difference = (metric.matrix(z + h * e) - metric.matrix(z - h * e)) / (2 * h)
        assert torch.allclose(derivative[..., k], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_features", [7, 1])
def test_gradients_reach_the_weights_of_the_decoder(n_features):
    metric, z = Pullback(mlp(n_features=n_features)), randn(3, 2).requires_grad_()
    names = [name for name, _ in metric.named_parameters()]

    def results(z, *weights):
        def on(method, *arguments):
            return torch.func.functional_call(_Call(metric, method), _prefixed(names, weights), arguments)

        outputs = [on("matrix", z), on("inner", z, randn(3, 2, seed=1), randn(3, 2, seed=2)), on("norm", z, z)]
        return (*outputs, on("log_volume", z)) if n_features > 1 else tuple(outputs)

    weights = tuple(w.detach().clone().requires_grad_() for w in metric.parameters())
    assert torch.autograd.gradcheck(results, (z, *weights), eps=1e-6, atol=1e-6, rtol=1e-5)


class _Call(nn.Module):
    def __init__(self, metric, method):
        super().__init__()
        self.metric, self.method = metric, method

    def forward(self, *arguments):
        return getattr(self.metric, self.method)(*arguments)


def _prefixed(names, weights):
    return {f"metric.{name}": weight for name, weight in zip(names, weights, strict=True)}


def test_different_vectors_of_equal_value_get_each_their_gradient():
    metric, z = Pullback(mlp()), randn(3, 2)
    u, v = randn(3, 2, seed=1).requires_grad_(), randn(3, 2, seed=1).requires_grad_()
    grads = torch.autograd.grad(metric.inner(z, u, v).sum(), (u, v))
    expected = torch.einsum("nij,nj->ni", metric.matrix(z), v.detach())
    assert torch.allclose(grads[0], expected)
    assert torch.allclose(grads[1], expected)


def test_the_gradient_of_the_norm_of_a_zero_vector_is_zero():
    metric, z = Pullback(mlp()), randn(3, 2).requires_grad_()
    v = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]], dtype=F64, requires_grad=True)
    to_z, to_v = torch.autograd.grad(metric.norm(z, v).sum(), (z, v))
    for gradient in (to_z, to_v):
        assert (gradient[[0, 2]] == 0).all()
        assert torch.isfinite(gradient).all()


def test_weights_that_require_gradients_alone_do_not_make_graphs_or_gradients():
    f, z = mlp(), randn(3, 2)
    metric = Pullback(f)
    results = metric.matrix(z), metric.norm(z, z), metric.log_volume(z), metric.features(z), *metric.grams(z)
    assert not any(result.requires_grad for result in results)
    assert all(w.requires_grad and w.grad is None for w in f.parameters())


# the expected metric


def test_the_expected_metric_adds_the_metrics_of_mean_and_deviation():
    mean, std, z = mlp(), nn.Sequential(mlp(seed=1), nn.Softplus()), randn(5, 2)
    apart = Pullback(mean).matrix(z) + Pullback(std).matrix(z)
    assert torch.allclose(Pullback(pb.Gaussian(mean, std)).matrix(z), apart, rtol=1e-12)
    shared = nn.Sequential(mlp(n_features=1, seed=1), nn.Softplus())
    apart = Pullback(mean).matrix(z) + 7 * Pullback(shared).matrix(z)
    assert torch.allclose(Pullback(pb.Gaussian(mean, shared)).matrix(z), apart, rtol=1e-12)


def test_the_expected_metric_is_the_mean_over_samples_of_the_decoder():
    model = pb.models.pretrained("mnist012")
    z = torch.cat((model.codes[:2], model.codes[:2].mean(0, keepdim=True), torch.tensor([[1.7, -1.4]], dtype=F64)))
    metric = Pullback(model.decoder)
    mean, std = explicit(model.decoder.mean, z), explicit(model.decoder.std, z)
    total, generator, n = torch.zeros(4, 2, 2, dtype=F64), torch.Generator().manual_seed(0), 50_000
    for _ in range(100):
        noise = torch.randn(n // 100, 784, 1, generator=generator, dtype=F64)
        for i in range(4):
            sampled = mean[i] + noise * std[i]  # the Jacobian of mu + sigma * noise
            total[i] += (sampled.mT @ sampled).sum(0)
    g = metric.matrix(z)
    assert torch.allclose(total / n, g, rtol=0, atol=0.02 * float(g.abs().amax((-1, -2)).min()))
    assert ((total / n - g).abs() <= 0.02 * g.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]).all()


def test_the_length_of_a_gaussian_decoder_is_that_of_mean_and_deviation_together():
    # a peer adds |d mu| and |d sigma| instead of taking the root of squares
    mean, std = mlp(), nn.Sequential(mlp(seed=1), nn.Softplus())
    curve = Curve(randn(3, 5, 2))
    both = torch.cat((mean(curve.resample(4096).nodes), std(curve.resample(4096).nodes)), -1)
    polyline = (both[:, 1:] - both[:, :-1]).norm(dim=-1).sum(-1)
    assert torch.allclose(pb.length(Pullback(pb.Gaussian(mean, std)), curve), polyline, rtol=1e-5)


def test_the_jacobian_of_the_shipped_decoder_is_right():
    model = pb.models.pretrained("mnist012")
    z, h = torch.cat((model.codes[:20], 2 * randn(20, 2))), 1e-6
    metric = Pullback(model.decoder)
    j = torch.func.vmap(torch.func.jacfwd(lambda y: model.decoder(y[None])[0]))(z)
    assert torch.allclose(metric.matrix(z), j.mT @ j, rtol=1e-12)
    columns = [(model.decoder(z + h * e) - model.decoder(z - h * e)) / (2 * h) for e in torch.eye(2, dtype=F64)]
    differences = torch.stack(columns, -1)
    for g, by_differences in zip(metric.matrix(z), differences.mT @ differences, strict=True):
        assert torch.allclose(g, by_differences, rtol=0, atol=1e-6 * float(g.abs().max()))


# singular metrics, points outside


def dead(z):
    """A decoder that ignores its last latent dimension."""
    return torch.stack((z[:, 0].sin(), z[:, 0] + z[:, 1], z[:, 0] * z[:, 1]), -1)


def test_a_dead_latent_dimension_gives_zeros_and_a_log_volume_of_minus_infinity_and_no_nan():
    # peers replace NaN by zero, or test for a condition number that never occurs
    metric, z = Pullback(dead), randn(5, 3)
    assert (metric.matrix(z)[:, 2] == 0).all()
    assert (metric.norm(z, torch.tensor([0.0, 0.0, 1.0], dtype=F64)) == 0).all()
    assert (metric.log_volume(z) == -torch.inf).all()
    assert torch.isfinite(Pullback(lambda z: dead(z)).log_volume(z[:, :2])).all()


def test_the_gradient_of_a_log_volume_of_minus_infinity_is_no_nan():
    z = randn(5, 3).requires_grad_()
    volumes = Pullback(dead).log_volume(z)
    (gradient,) = torch.autograd.grad(volumes, z, torch.ones_like(volumes))
    assert torch.isfinite(gradient).all()


def logarithm(z):
    return torch.cat((z.log(), z), 1)


@pytest.mark.parametrize("method", ["inner", "norm", "matrix", "log_volume"])
def test_points_where_the_decoder_is_not_finite_are_counted(method):
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, 1.0], [-1.0, -1.0]], dtype=F64)
    vectors = {"inner": (z.abs(), z), "norm": (z,)}.get(method, ())
    with pytest.raises(ValueError, match=r"output or derivative holds NaN or infinity at 2 of 4 points \(first: 1\)"):
        getattr(Pullback(logarithm), method)(z, *vectors)


def test_a_curve_that_leaves_the_domain_is_refused():
    with pytest.raises(ValueError, match=r"output of the decoder holds NaN or infinity at .* may leave the region"):
        pb.length(Pullback(logarithm), Curve.straight(torch.ones(2), -torch.ones(2)))


def test_features_that_are_not_finite_are_given_on():
    # a solver tries steps that lead outside, and takes them back
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64)
    assert torch.isfinite(Pullback(logarithm).features(z)).all(-1).tolist() == [True, False]
    nan = torch.full((1, 2), torch.nan, dtype=F64)
    assert torch.isnan(Pullback(logarithm).features(torch.cat((z, nan)))[2]).all()


def test_a_metric_of_a_users_own_that_is_not_finite_is_refused_by_the_log_volume():
    metric = Conformal(torch.tensor([1000.0, 0.0], dtype=F64))
    with pytest.raises(ValueError, match="the metric holds NaN or infinity at 1 of 2 points"):
        metric.log_volume(torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64))


# the door


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        ([[0.0, 0.0]], TypeError, "`z` is a list: give a torch tensor"),
        (torch.zeros(3, 2).numpy(), TypeError, "`z` is a ndarray: give a torch tensor .* torch.as_tensor"),
        (torch.zeros(3, 2, dtype=torch.long), ValueError, "`z` has dtype int64: points are floating-point"),
        (
            torch.zeros(3, 2),
            ValueError,
            r"points have dtype float32 but the decoder has float64: use z.to\(torch.float64",
        ),
        (torch.zeros(3, 3, dtype=F64), ValueError, r"failed on a point of shape \(1, 3\): is the latent dimension 3"),
        (torch.full((3, 2), torch.nan, dtype=F64), ValueError, "`z` holds NaN or infinity at 3 of 3 points"),
    ],
)
def test_bad_points_get_one_clear_error(z, error, message):
    metric = Pullback(mlp())
    v = torch.ones(3, 2, dtype=F64)
    for call in (metric.matrix, metric.log_volume, lambda z: metric.inner(z, v, v), lambda z: metric.norm(z, v)):
        with pytest.raises(error, match=f"{message}|`v` has"):
            call(z)


def test_features_refuse_what_is_no_tensor_of_points():
    for z in (torch.zeros(3, 2).numpy(), torch.zeros(3, 2, dtype=torch.int32)):
        with pytest.raises((TypeError, ValueError), match=r"`z` (is a ndarray|has dtype int32)"):
            Pullback(mlp()).features(z)


def test_points_of_another_dimension_than_the_first_are_refused():
    metric = Pullback(surfaces.Sphere())  # takes any dimension
    metric.matrix(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="latent dimension 3 but the decoder takes 2"):
        metric.matrix(torch.zeros(1, 3))


@pytest.mark.parametrize("memory", [0, -1])
def test_a_memory_budget_is_positive(memory):
    with pytest.raises(ValueError, match="`memory` is"):
        Pullback(mlp(), memory=memory)


def test_points_made_in_inference_mode_are_taken_but_not_inside_it():
    metric, f = Pullback(mlp()), mlp()
    with torch.inference_mode():
        z = randn(3, 2)
        with pytest.raises(ValueError, match=r"torch\.inference_mode, where nothing has derivatives"):
            metric.matrix(z)
    assert torch.equal(metric.matrix(z), metric.matrix(z.clone()))
    assert torch.allclose(pb.length(metric, Curve(z)), pb.length(Pullback(f), Curve(z.clone())))


# nothing of the caller's, and nothing global, is changed


class Everything(nn.Module):
    """A decoder with weights, frozen weights, buffers, in-place operations and an output of several axes."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen = nn.Linear(2, 8), nn.Linear(8, 12).requires_grad_(False)
        self.norm, self.relu = nn.BatchNorm1d(8), nn.ReLU(inplace=True)

    def forward(self, z):
        z += 1
        return self.frozen(self.relu(self.norm(self.first(z)))).mul_(2).reshape(-1, 3, 2, 2)


def calls(metric, z, v):
    """Every public way to use a metric and a curve."""
    curve, t = Curve(z), torch.linspace(0, 1, 5, dtype=z.dtype, device="cpu")
    yield from (metric.inner(z, v, z), metric.norm(z, v), metric.matrix(z), metric.log_volume(z), metric.features(z))
    yield from (*metric.squared_chords(metric.features(z)), *metric.grams(z))
    yield from (pb.length(metric, curve), pb.energy(metric, curve), curve(t), curve.velocity(t), curve.acceleration(t))
    yield from (curve.resample(9).nodes, Curve.straight(z[0], z, 3).nodes)


def test_nothing_of_the_callers_and_nothing_global_is_changed():
    f = Everything().double().eval()
    f.first.train()
    z, v = randn(4, 2), randn(4, 2, seed=1)
    metric = Pullback(f)

    def state():
        tensors = {**f.state_dict(), "z": z, "v": v}
        return (
            {name: tensor.clone() for name, tensor in tensors.items()},
            [tensor.requires_grad for tensor in (z, v, *f.parameters())],
            [tensor.grad for tensor in (z, v, *f.parameters())],
            [module.training for module in f.modules()],
            [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
            torch.get_rng_state(),
        )

    before = state()
    results = list(calls(metric, z, v))
    for old, new in zip(before, state(), strict=True):
        assert str(new) == str(old)  # dtypes, shapes, flags
    torch.testing.assert_close(state()[0], before[0], rtol=0, atol=0)
    assert torch.equal(state()[-1], before[-1])
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tensor_is_made_on_the_default_device_or_in_the_default_dtype(dtype):
    f = Everything().to(dtype).eval()
    z, v = randn(4, 2).to(dtype), randn(4, 2, seed=1).to(dtype)
    expected = list(calls(Pullback(f), z, v))
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype({torch.float32: torch.float64, torch.float64: torch.float32}[dtype])
        with torch.device("meta"):
            found = list(calls(Pullback(f), z, v))
    finally:
        torch.set_default_dtype(default)
    assert {result.dtype for result in found} == {dtype}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_results_stay_on_the_device_of_the_points():
    f = Everything().double().eval()
    z, v = randn(4, 2), randn(4, 2, seed=1)
    expected = list(calls(Pullback(f), z, v))
    found = list(calls(Pullback(f.cuda()), z.cuda(), v.cuda()))
    assert all(result.is_cuda for result in found)
    torch.testing.assert_close([result.cpu() for result in found], expected, rtol=1e-9, atol=1e-12)


# chunks and memory


def test_chunks_give_the_numbers_of_one_piece():
    f, z, v = pb.Gaussian(mlp(), nn.Sequential(mlp(seed=1), nn.Softplus())), randn(50, 2), randn(50, 2, seed=1)
    footprint = Pullback(f).feature_map.footprint(z)
    small, large = Pullback(f, memory=9 * footprint), Pullback(f)
    assert small.points_at_once(z) < 10
    for one, many in zip(calls(large, z, v), calls(small, z, v), strict=True):
        assert torch.allclose(one, many, rtol=1e-11, atol=1e-13)


def test_a_length_takes_one_call_of_the_decoder(counting):
    # a peer makes 10,000 scalar spline calls
    counter = counting(mlp())
    metric, curve = Pullback(counter), Curve(randn(3, 5, 2))
    metric.features(torch.zeros(1, 2, dtype=F64))
    sizes, forward = [], counter.decoder.forward
    counter.decoder.forward = lambda z: (sizes.append(len(z)), forward(z))[1]
    pb.length(metric, curve)
    assert sizes == [3 * 129]


def test_costs_are_as_documented(counting):
    counter, z, v = counting(mlp(d=3)), randn(10, 3), randn(10, 3, seed=1)
    metric = Pullback(counter)
    metric.feature_map.footprint(z)
    assert counter.reset() == 15
    for call, cost in (
        (lambda: metric.features(z), 1),
        (lambda: metric.norm(z, v), 4),
        (lambda: metric.inner(z, v, z), 5),
        (lambda: metric.matrix(z), 6),
        (lambda: metric.log_volume(z), 6),
        (lambda: metric.grams(z), metric.gram_cost(3)),
    ):
        call()
        assert counter.reset() == 10 * cost
    few = counting(mlp(d=6, n_features=2))
    metric, z = Pullback(few), randn(10, 6)
    metric.feature_map.footprint(z)
    few.reset()
    metric.matrix(z)
    assert few.reset() == 10 * 5 == 10 * metric.gram_cost(6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["matrix", "inner"])
def test_a_million_outputs_fit_a_budget_of_one_gibibyte(method):
    script = f"""
        import resource
        import torch
        from pullback.metrics import Pullback

        a = torch.randn(2, 1_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        z = torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(64, 2)
        metric = Pullback(lambda z: (z @ a).sin(), memory=1 << 30)
        metric.features(z[:1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        g = metric.matrix(z) if {method == "matrix"} else torch.stack([metric.inner(z, u, v) for u, v in (
            (torch.tensor([1.0, 0.0]).to(z), torch.tensor([1.0, 0.0]).to(z)),
            (torch.tensor([1.0, 0.0]).to(z), torch.tensor([0.0, 1.0]).to(z)),
            (torch.tensor([0.0, 1.0]).to(z), torch.tensor([1.0, 0.0]).to(z)),
            (torch.tensor([0.0, 1.0]).to(z), torch.tensor([0.0, 1.0]).to(z)))], -1).reshape(64, 2, 2)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        for i in range(64):
            j = a * (z[i] @ a).cos()
            assert torch.allclose(g[i], j @ j.mT, rtol=1e-12, atol=1e-12 * float(g[i].max()))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 1.5 * 2**30


# the christoffel vector


class HalfPlane(Metric):
    """The hyperbolic plane: G = I / y^2 where y > 0."""

    def matrix(self, z):
        return torch.eye(2).to(z) / z[..., 1:, None] ** 2

    def inner(self, z, u, v):
        return (u * v).sum(-1) / z[..., 1] ** 2


class Hidden(HalfPlane):
    """A metric that hides its argument from torch."""

    def matrix(self, z):
        return super().matrix(z.detach())


class TestHalfPlane(MetricContract):
    def metric(self):
        return HalfPlane()

    def points(self, *batch, seed=0):
        return super().points(*batch, seed=seed).exp()


def test_the_christoffel_vector_of_the_hyperbolic_plane_is_that_of_its_closed_form():
    z, u, v = randn(6, 2).exp(), randn(6, 2, seed=1), randn(6, 2, seed=2)
    x, y = -(u[:, 0] * v[:, 1] + u[:, 1] * v[:, 0]), u[:, 0] * v[:, 0] - u[:, 1] * v[:, 1]
    expected = torch.stack((x, y), -1) / z[:, 1:]
    assert torch.allclose(HalfPlane().christoffel(z, u, v), expected, rtol=1e-12)


@pytest.mark.parametrize("route", [Metric.christoffel, Pullback.christoffel])
def test_the_christoffel_vector_of_the_sphere_is_that_of_its_closed_form(route):
    # G = exp(2 s) I with s = log(2 / (1 + |z|^2)): Gamma(u, v) = (u.ds) v + (v.ds) u - (u.v) ds
    z, u, v = randn(6, 3), randn(6, 3, seed=1), randn(6, 3, seed=2)
    slope = -2 * z / (1 + z.square().sum(-1, keepdim=True))
    us, vs, uv = ((a * b).sum(-1, keepdim=True) for a, b in ((u, slope), (v, slope), (u, v)))
    assert torch.allclose(route(Pullback(surfaces.Sphere(2.0)), z, u, v), us * v + vs * u - uv * slope, rtol=1e-10)


@pytest.mark.parametrize(("d", "n_features"), [(2, 30), (5, 30), (1, 30), (6, 6)])
def test_both_routes_to_the_christoffel_vector_agree(d, n_features):
    metric, z = Pullback(mlp(d, n_features)), randn(5, d)
    u, v = randn(5, d, seed=1), randn(5, d, seed=2)
    for other in (v, u):
        expected = Metric.christoffel(metric, z, u, other)
        assert torch.allclose(
            metric.christoffel(z, u, other), expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max())
        )


def test_both_routes_to_the_christoffel_vector_agree_on_the_shipped_model():
    model = pb.models.pretrained("mnist012")
    metric, z, v = Pullback(model.decoder), model.codes[:4], randn(4, 2)
    expected = Metric.christoffel(metric, z, v, v)
    assert torch.allclose(metric.christoffel(z, v, v), expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize("route", [Metric.christoffel, Pullback.christoffel])
def test_the_christoffel_vector_of_a_plane_is_zero(route):
    z, v = randn(4, 2), randn(4, 2, seed=1)
    assert route(Pullback(surfaces.Plane()), z, v, v).abs().max() < 1e-12


@pytest.mark.parametrize("route", [Metric.christoffel, Pullback.christoffel])
def test_where_the_metric_is_singular_the_christoffel_vector_is_nan_and_elsewhere_not(route):
    fold = Pullback(lambda z: torch.stack((z[:, 0], z[:, 1] ** 3, z[:, 0] * z[:, 1] ** 3), 1))
    z, v = torch.tensor([[0.5, 0.0], [0.5, 1.0]], dtype=F64), randn(2, 2)
    gamma = route(fold, z, v, v)
    assert gamma[0].isnan().all()
    assert gamma[1].isfinite().all()


def test_a_short_axis_is_not_a_singular_one():
    stretched = Pullback(lambda z: torch.stack((z[:, 0].sin(), 1e-9 * z[:, 1], z[:, 0] ** 2), 1))
    z, v = randn(3, 2), randn(3, 2, seed=1)
    assert stretched.christoffel(z, v, v).isfinite().all()


def test_where_the_decoder_is_not_finite_the_christoffel_vector_is_nan():
    partial = Pullback(lambda z: torch.cat((z, z.square() / (z[:, :1] > 0)), 1))
    z, v = torch.tensor([[-0.5, 0.3], [0.5, 1.0]], dtype=F64), randn(2, 2)
    gamma = partial.christoffel(z, v, v)
    assert gamma[0].isnan().all()
    assert gamma[1].isfinite().all()


def test_a_metric_that_hides_its_argument_is_refused_instead_of_called_flat():
    with pytest.raises(ValueError, match="carries no gradient to z"):
        Hidden().christoffel(randn(3, 2).exp(), randn(3, 2), randn(3, 2))


def test_a_constant_metric_has_no_christoffel_vector():
    class Constant(Metric):
        def matrix(self, z):
            return (2 * torch.eye(z.shape[-1]).to(z)).expand(*z.shape, -1)

        def inner(self, z, u, v):
            return 2 * (u * v).sum(-1)

    assert torch.equal(Constant().christoffel(randn(3, 2), randn(3, 2), randn(3, 2)), torch.zeros(3, 2, dtype=F64))


@pytest.mark.parametrize("d", [2, 9])
def test_a_christoffel_vector_costs_what_is_said(counting, d):
    decoder = counting(mlp(d, 40))
    metric, z, v = Pullback(decoder), randn(5, d), randn(5, d, seed=1)
    metric.christoffel(z, v, v)
    decoder.reset()
    metric.christoffel(z, v, v)
    assert decoder.reset() == 5 * metric.christoffel_cost(d) == 5 * (d + 8)


@pytest.mark.parametrize("route", [Metric.christoffel, Pullback.christoffel])
def test_the_christoffel_vector_can_be_differentiated(route):
    metric, z, v = Pullback(mlp(2)), randn(2, 2).requires_grad_(), randn(2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, v: route(metric, z, v, v), (z, v), atol=1e-5)


def test_christoffel_vectors_under_a_memory_budget_are_the_same():
    z, v = randn(50, 2), randn(50, 2, seed=1)
    whole = Pullback(mlp()).christoffel(z, v, v)
    assert torch.allclose(Pullback(mlp(), memory=5_000).christoffel(z, v, v), whole, rtol=1e-10, atol=1e-12)


def test_products_of_jacobians_are_nan_where_the_output_is():
    # its derivative may look finite there: a warning of a dead latent dimension would follow
    metric = Pullback(lambda z: torch.where(z > 1, torch.nan, 2 * z))
    z = torch.tensor([[[0.0, 0.0], [0.5, 2.0], [0.1, 0.1]]], dtype=torch.float64)
    same = metric.grams(z)[0]
    assert torch.isfinite(same[0, [0, 2]]).all()
    assert torch.isnan(same[0, 1]).all()
