import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pullback import autodiff
from pullback._checks import DerivativeWarning
from pullback.autodiff import contradiction, jacobian, jvp, second_derivative, value, vjp

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def differences(f, z, v, h=1e-5):
    with torch.no_grad():
        return (f(z + h * v) - f(z - h * v)) / (2 * h)


@pytest.fixture
def never_warned(monkeypatch):
    """As if nothing had been warned of in this process."""
    monkeypatch.setattr(autodiff, "_warned", set())


# every kind of layer; points are (n, 4)


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.lift, self.options = nn.Linear(4, 24), options
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, z):
        h = self.lift(z).reshape(-1, 3, 8)
        return self.attention(h, h, h, **self.options)[0].flatten(1)


def statistics_filled(norm):
    with torch.no_grad():
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    return norm


def images(*layers):
    return nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 2, 2)), *layers, nn.Flatten(1))


def on_a_grid(z):
    image = torch.arange(16, dtype=z.dtype, device=z.device).sin().reshape(1, 1, 4, 4).expand(len(z), 1, 4, 4)
    return F.grid_sample(image, 0.8 * z.reshape(-1, 1, 2, 2).tanh(), align_corners=False).flatten(1)


def potential(z):
    """A decoder that is itself a gradient."""
    with torch.enable_grad():
        y = z if z.requires_grad else z.detach().requires_grad_()
        return torch.autograd.grad((y.sin() * y.roll(1, 1)).sum(), y, create_graph=True)[0]


LAYERS = {
    "tanh": lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 5)),
    "relu in place": lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(inplace=True), nn.Linear(9, 5)),
    "activations": lambda: (
        lambda z: torch.cat(
            [f(z) for f in (F.gelu, F.silu, F.softplus, F.elu, F.mish, F.hardswish, F.leaky_relu, F.logsigmoid)]
            + [F.softmax(z, 1), F.glu(z), F.selu(z), z.erf(), z.exp(), (1 + z**2).log(), (1 + z**2).rsqrt()],
            1,
        )
    ),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 6), statistics_filled(nn.BatchNorm1d(6)), nn.Softplus()),
    "batch norm of images": lambda: images(statistics_filled(nn.BatchNorm2d(2)), nn.SiLU()),
    "transposed convolution": lambda: images(nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.GELU(), nn.Conv2d(3, 2, 3)),
    "upsampling": lambda: images(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 4, 3), nn.PixelShuffle(2)),
    "pooling": lambda: images(nn.MaxPool2d(2), nn.Sigmoid()),
    "group and layer norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.SiLU(), nn.LayerNorm(6)),
    "instance and root mean square norm": lambda: images(
        nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2), nn.Flatten(1), nn.RMSNorm(8)
    ),
    "attention": Attention,
    "attention without weights": lambda: Attention(need_weights=False),
    "transformer": lambda: nn.Sequential(
        nn.Linear(4, 24), nn.Unflatten(1, (3, 8)), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(1)
    ),
    "recurrent": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.GRU(2, 3, batch_first=True), _First(), nn.Flatten(1)
    ),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)),
    "linear algebra": lambda: lambda z: torch.linalg.matrix_exp(z.reshape(-1, 2, 2)).flatten(1),
    "written into place": lambda: _filled,
    "samples of an image": lambda: on_a_grid,
    "gradient of a potential": lambda: potential,
    "vmap inside": lambda: torch.func.vmap(lambda y: y.sin() * y.roll(1, 0)),
    "checkpoint": lambda: lambda z: torch.utils.checkpoint.checkpoint(torch.sin, z, use_reentrant=False),
}


class _First(nn.Module):
    def forward(self, pair):
        return pair[0]


def _filled(z):
    x = z.new_zeros(len(z), 6)
    x[:, 1:5] = z.sin()
    return x


def layer(name):
    made = LAYERS[name]
    return seeded(made) if isinstance(made(), nn.Module) else made()


@pytest.fixture(params=LAYERS)
def f(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DerivativeWarning)
        yield layer(request.param)


def test_all_ways_to_a_jacobian_agree_on_every_kind_of_layer(f):
    # peers: functions per sample lose the batch axis or are silently wrong
    z = randn(3, 4)
    j = jacobian(f, z)
    columns = torch.stack([differences(f, z, e.expand(3, 4)) for e in torch.eye(4, dtype=F64)], -1)
    assert torch.allclose(j, columns, rtol=1e-6, atol=1e-7)
    v, w = randn(3, 4, seed=1), randn(*j.shape[:2], seed=2)
    (pushed,) = jvp(f, z, (v,))
    assert torch.allclose(pushed, (j @ v[..., None])[..., 0], rtol=1e-9, atol=1e-11)
    assert torch.allclose(vjp(f, z, w), (w[:, None] @ j)[:, 0], rtol=1e-9, atol=1e-11)
    assert contradiction(lambda z: (f(z),), z) < 1e-10
    # reverse mode for each point alone
    alone = torch.stack([torch.autograd.functional.jacobian(lambda y: f(y[None])[0], point) for point in z])
    assert torch.allclose(j, alone, rtol=1e-9, atol=1e-11)


def test_the_jacobian_of_a_point_does_not_depend_on_its_batch(f):
    z = randn(5, 4)
    assert torch.allclose(jacobian(f, z)[3], jacobian(f, z[3:4])[0], rtol=1e-9, atol=1e-11)


def test_the_second_derivative_is_that_of_differences(f):
    z, u, v = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2)
    expected = differences(lambda y: jvp(f, y, (u,))[0], z, v)
    found = second_derivative(f, z, u, v)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found, second_derivative(f, z, v, u), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["tanh", "batch norm", "transposed convolution", "group and layer norm", "attention"])
def test_jacobians_agree_with_those_of_vmap_where_it_works(name):
    f, z = layer(name), randn(3, 4)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        if name == "attention" and transform is torch.func.jacfwd:
            continue  # has no forward derivative
        by_vmap = torch.func.vmap(transform(lambda y: f(y[None])[0]))(z)
        assert torch.allclose(jacobian(f, z), by_vmap, rtol=1e-10, atol=1e-12)


# shapes, chunks, values


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_any_batch_and_any_chunk_give_the_same(batch, chunk):
    f, z, u, v = layer("tanh"), randn(*batch, 4), randn(*batch, 4, seed=1), randn(*batch, 4, seed=2)
    w = randn(*batch, 5, seed=3)
    for g in (
        lambda chunk: (value(f, z, chunk=chunk), vjp(f, z, w, chunk=chunk), jacobian(f, z, chunk=chunk)),
        lambda chunk: (*jvp(f, z, (u, v), chunk=chunk), second_derivative(f, z, u, v, chunk=chunk)),
    ):
        for chunked, whole in zip(g(chunk), g(1000), strict=True):
            assert chunked.shape[: len(batch)] == batch
            assert torch.allclose(chunked, whole, rtol=1e-12, atol=1e-14)
    assert torch.equal(value(f, z), f(z))
    assert jacobian(f, z).shape == (*batch, 5, 4)


@pytest.mark.parametrize(("d", "n_features"), [(1, 1), (1, 6), (6, 1), (6, 3), (6, 4), (3, 3)])
def test_a_jacobian_costs_the_cheaper_of_rows_and_columns(d, n_features, counting):
    counter, z = counting(nn.Sequential(nn.Linear(d, n_features), nn.Tanh()).double()), randn(10, d)
    j = jacobian(counter, z)
    assert counter.reset() == 10 * min(d + 3, 2 * n_features + 1) + 1  # one point to count the features
    expected = torch.autograd.functional.jacobian(lambda z: counter.decoder(z).sum(0), z).movedim(1, 0)
    assert torch.allclose(j, expected, rtol=1e-12)


def test_costs_are_as_documented(counting):
    counter, z = counting(nn.Sequential(nn.Linear(4, 9), nn.Tanh()).double()), randn(10, 4)
    for call, cost in (
        (lambda: value(counter, z), 1),
        (lambda: jvp(counter, z, (z,)), 4),
        (lambda: jvp(counter, z, (z, z, z)), 6),
        (lambda: vjp(counter, z, randn(10, 9)), 3),
    ):
        call()
        assert counter.reset() == 10 * cost


# gradients of derivatives


@pytest.mark.parametrize("mode", ["reverse", "forward", "rows"])
def test_derivatives_carry_gradients_to_points_vectors_and_weights(mode):
    def f(z, weight):
        x = (z @ weight).tanh()
        return OnlyForward.apply(x) if mode == "forward" else x

    n_features = {"reverse": 5, "forward": 5, "rows": 1}[mode]
    z, v, weight = (t.requires_grad_() for t in (randn(3, 4), randn(3, 4, seed=1), randn(4, n_features, seed=2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DerivativeWarning)
        assert torch.autograd.gradcheck(lambda z, w: jacobian(lambda y: f(y, w), z), (z, weight))
        assert torch.autograd.gradcheck(lambda z, v, w: jvp(lambda y: f(y, w), z, (v, z)), (z, v, weight))
        if mode != "forward":
            pulled = randn(3, n_features, seed=3).requires_grad_()
            assert torch.autograd.gradcheck(lambda z, w, c: vjp(lambda y: f(y, w), z, c), (z, weight, pulled))


def test_no_argument_that_asks_no_gradient_no_graph():
    f, z = layer("tanh"), randn(3, 4)
    w = randn(3, 5)
    assert all(weight.requires_grad for weight in f.parameters())
    results = value(f, z), *jvp(f, z, (z,)), vjp(f, z, w), jacobian(f, z), second_derivative(f, z, z, z)
    assert not any(result.requires_grad for result in results)
    asking = z.clone().requires_grad_()
    for point, vector in ((asking, z), (z, asking)):
        assert jvp(f, point, (vector,))[0].requires_grad
        with torch.no_grad():
            assert not jvp(f, point, (vector,))[0].requires_grad
            assert not jacobian(f, point).requires_grad
    assert vjp(f, z, w.requires_grad_()).requires_grad
    assert all(weight.grad is None for weight in f.parameters())
    assert asking.grad is None


# operators that lack derivatives


class OnlyForward(torch.autograd.Function):
    """sin with a forward derivative, and a backward that can be used once."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, v):
        return v * ctx.saved_tensors[0].cos()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, w):
        return w * ctx.saved_tensors[0].cos()


class OnlyReverse(torch.autograd.Function):
    """sin with a differentiable backward and no forward derivative, as most are written."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, w):
        return w * ctx.saved_tensors[0].cos()


class Once(torch.autograd.Function):
    """sin with a backward that can be used once and nothing else."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, w):
        return w * ctx.saved_tensors[0].cos()


class ByNumpy(Once):
    @staticmethod
    def backward(ctx, w):
        return w.detach() * torch.from_numpy(ctx.saved_tensors[0].detach().numpy()).cos()


@pytest.mark.usefixtures("never_warned")
def test_forward_mode_stands_in_for_a_backward_that_works_once_and_says_so_once():
    z = randn(3, 4)
    with pytest.warns(DerivativeWarning, match="lacks a derivative: Jacobians come from forward mode"):
        j = jacobian(OnlyForward.apply, z)
    assert torch.allclose(j, torch.diag_embed(z.cos()), rtol=1e-14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (pushed,) = jvp(OnlyForward.apply, z, (z,))
        assert torch.equal(jacobian(OnlyForward.apply, z), j)
    assert torch.allclose(pushed, differences(torch.sin, z, z), rtol=1e-9)


@pytest.mark.usefixtures("never_warned")
def test_an_operator_without_forward_derivative_needs_none():
    z = randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(jacobian(OnlyReverse.apply, z), torch.diag_embed(z.cos()), rtol=1e-14)
        second = second_derivative(OnlyReverse.apply, z, z, z)
    assert torch.allclose(second, -z.sin() * z * z, rtol=1e-12)


@pytest.mark.usefixtures("never_warned")
def test_fused_attention_is_computed_by_plain_operations():
    f, z = layer("attention without weights"), randn(3, 4)
    with pytest.warns(DerivativeWarning, match="attention is computed by plain operations"):
        (pushed,) = jvp(f, z, (z,))
    assert torch.allclose(pushed, differences(f, z, z), rtol=1e-6, atol=1e-8)
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    "f",
    [Once.apply, ByNumpy.apply, lambda z: torch.cdist(z[:, None], torch.eye(4, dtype=F64).expand(len(z), 4, 4))[:, 0]],
)
def test_an_operator_without_any_second_or_forward_derivative_is_refused(f):
    for call in (lambda z: jacobian(f, z), lambda z: jvp(f, z, (z,)), lambda z: second_derivative(f, z, z, z)):
        with pytest.raises(ValueError, match=r"cannot be differentiated: .* torch says: .*\w"):
            call(randn(3, 5)[:, :4])


def test_other_errors_of_a_decoder_are_its_own():
    def broken(z):
        raise RuntimeError("out of paint")

    for call in (jacobian, lambda f, z: jvp(f, z, (z,)), lambda f, z: second_derivative(f, z, z, z)):
        with pytest.raises(RuntimeError, match="out of paint"):
            call(broken, randn(3, 4))


def test_a_map_without_gradient_is_refused():
    weight = nn.Parameter(randn(4))
    for f in (lambda z: z.detach().sin(), lambda z: z.detach() * weight):
        for call in (jacobian, lambda f, z: jvp(f, z, (z,)), lambda f, z: vjp(f, z, z)):
            with pytest.raises(ValueError, match="no gradient"):
                call(f, randn(3, 4))


def test_wrong_derivatives_are_found_by_contradiction():
    z = randn(2, 4)
    right = lambda z: (z.sin(), z.prod(1, keepdim=True))  # noqa: E731
    assert contradiction(right, z) < 1e-13
    assert contradiction(lambda z: tuple(x.float() for x in right(z.float())), z) < 1e-4
    wrong = contradiction(lambda z: (torch.cat((ByNumpy.apply(z), z.cos()), 1),), z)
    assert wrong > 0.1


@pytest.mark.parametrize("way", [autodiff._push_by_reverse, autodiff._push_forward])
def test_every_way_gives_values_and_derivatives_of_all_parts(way):
    def parts(z):
        return z.sin(), z.prod(1, keepdim=True), torch.ones(len(z), 2, dtype=F64)

    z, u, v = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2)
    x, *pushed = way(parts, z, (u, v))
    for vector, columns in ((u, pushed[0]), (v, pushed[1])):
        for k in range(3):
            assert torch.allclose(columns[k], differences(lambda y, k=k: parts(y)[k], z, vector), rtol=1e-7, atol=1e-9)
    values, *columns = autodiff._by_rows(parts, z)
    for k in range(3):
        assert torch.equal(x[k], parts(z)[k])
        assert torch.equal(values[k], parts(z)[k])
        assert torch.allclose(
            torch.stack([column[k] for column in columns], -1) @ u[..., None], pushed[0][k][..., None]
        )


# nothing global


def test_the_first_forward_derivative_of_a_process_warns_of_nothing():
    # torch scripts some formulas then, and warns that scripting is deprecated
    script = "import torch; from pullback import autodiff; z = torch.ones(1, 2); autodiff._push_forward({}, z, (z,))"
    one_part = "lambda z: (z.sin(),)"
    subprocess.run([sys.executable, "-W", "error", "-c", script.format(one_part)], check=True)


def test_threads_that_switch_to_plain_attention_leave_it_as_they_found_it():
    # two that save and restore the choice of kernel out of turn would leave it switched
    attention, z, results = layer("attention without weights"), randn(3, 4), []

    def slow(z):
        time.sleep(0.01)
        return attention(z)

    def work():
        results.append(jvp(slow, z, (z,))[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DerivativeWarning)
        expected = jvp(attention, z, (z,))[0]
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.003)
        for thread in threads:
            thread.join()
    assert len(results) == 4
    assert all(torch.allclose(result, expected, rtol=1e-12) for result in results)
    assert torch.backends.cuda.flash_sdp_enabled()
