"""Decoders as they are found: each gives the metric of finite differences, or one error that says what to do."""

import copy
import dataclasses
import functools
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pullback as pb
from pullback import autodiff
from pullback._checks import DerivativeWarning

F64, F32 = torch.float64, torch.float32
pytestmark = [
    pytest.mark.filterwarnings("ignore::pullback._checks.DerivativeWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning"),
]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(make, dtype=F64):
    """A module in evaluation mode, always the same; batch statistics not zero and one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().to(dtype).eval()
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
        return module


def differences(f, z, h=1e-5):
    """J'J by central differences of f, whatever the shape of its values."""
    with torch.no_grad():
        steps = h * torch.eye(z.shape[1], dtype=z.dtype)
        j = torch.stack([(f(z + step) - f(z - step)).flatten(1) / (2 * h) for step in steps], -1)
    return j.mT @ j


def assert_metric(decoder, reference=None, *, d=4, rtol=1e-6, z=None, **options):
    """The matrix is that of differences, norms are those of the matrix, and Christoffel vectors those of its change."""
    z = randn(3, d) if z is None else z
    metric, v = pb.Pullback(decoder, **options), randn(*z.shape, seed=1).to(z)
    reference = reference or metric.features
    g = metric.matrix(z)
    expected = differences(reference, z, 1e-5 if z.dtype == F64 else 1e-2)
    scale = expected.abs().amax((1, 2), keepdim=True)
    assert ((g - expected).abs() <= rtol * scale).all(), float(((g - expected).abs() / scale).max())
    assert torch.allclose(metric.norm(z, v), torch.einsum("ni,nij,nj->n", v, g, v).sqrt(), rtol=10 * rtol)
    assert g.dtype == z.dtype
    return metric


def mlp(d=4, n_features=6):
    return nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, n_features))


net = seeded(mlp).requires_grad_(False)


# layers, in decoders of images and sequences


class Images(nn.Module):
    """From points (n, 4) to images, through the layers."""

    def __init__(self, *layers, channels=8):
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(4, 4 * channels), nn.Unflatten(1, (channels, 2, 2)))
        self.layers = nn.Sequential(*layers)

    def forward(self, z):
        return self.layers(self.lift(z))


class Interpolated(nn.Module):
    def __init__(self, mode, **options):
        super().__init__()
        self.options = {"scale_factor": 2, "mode": mode, **options}

    def forward(self, x):
        return F.interpolate(x, **self.options)


class SelfAttention(nn.Module):
    """Between the pixels of an image, as diffusion decoders have it."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(2, channels), nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)


class Sequences(nn.Module):
    """A transformer that asks the code by learned queries."""

    def __init__(self):
        super().__init__()
        self.queries, self.lift, self.out = nn.Parameter(torch.randn(5, 8)), nn.Linear(4, 24), nn.Linear(8, 3)
        self.layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, z):
        return self.out(self.layers(self.queries.expand(len(z), 5, 8), self.lift(z).reshape(-1, 3, 8)))


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.mask = nn.Linear(4, 24), nn.Transformer.generate_square_subsequent_mask(3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, z):
        return self.encoder(self.lift(z).reshape(-1, 3, 8), mask=self.mask.to(z), is_causal=True)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers, self.out = kind(4, 3, 2, batch_first=True), nn.Linear(3, 2)

    def forward(self, z):
        return self.out(self.layers(z[:, None].expand(-1, 5, -1))[0])


class Unrolled(nn.Module):
    """A cell in a loop that starts from the code."""

    def __init__(self):
        super().__init__()
        self.start, self.cell = nn.Linear(4, 3), nn.LSTMCell(4, 3)

    def forward(self, z):
        h, c, steps = self.start(z), self.start(z).tanh(), []
        for _ in range(4):
            h, c = self.cell(z, (h, c))
            steps.append(h)
        return torch.stack(steps, 1)


def warped(mode):
    def decode(z):
        image = torch.arange(36, dtype=z.dtype).sin().reshape(1, 1, 6, 6).expand(len(z), 1, 6, 6)
        where = torch.cat((0.3 * z.tanh(), 0.1 * z[:, :2]), 1).reshape(-1, 2, 3)
        grid = F.affine_grid(where, (len(z), 1, 5, 5), align_corners=False)
        return F.grid_sample(image, grid, mode=mode, align_corners=False)

    return decode


norms = nn.utils.parametrizations
LAYERS = {
    "a DCGAN generator": lambda: Images(
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 3, 3, 2, 1, output_padding=1), nn.Tanh(),
    ),
    "upsampling and group norm": lambda: Images(
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1)
    ),
    "pixel shuffle": lambda: Images(nn.PixelShuffle(2), nn.ReflectionPad2d(1), nn.Conv2d(2, 3, 3), nn.GELU()),
    "bilinear": lambda: Images(Interpolated("bilinear", align_corners=True), nn.Softplus()),
    "bicubic": lambda: Images(nn.Mish(), Interpolated("bicubic", antialias=True)),
    "dilated and grouped convolutions": lambda: Images(
        nn.ConvTranspose2d(8, 8, 3, groups=4, dilation=2), nn.ELU(), nn.Conv2d(8, 2, 3, dilation=2, padding="same")
    ),
    "instance norm of images": lambda: Images(nn.ConvTranspose2d(8, 4, 3), nn.InstanceNorm2d(4), nn.Tanh()),
    "layer norm of images": lambda: Images(nn.ConvTranspose2d(8, 4, 3), nn.LayerNorm([4, 4, 4]), nn.Sigmoid()),
    "volumes": lambda: nn.Sequential(
        nn.Linear(4, 16), nn.Unflatten(1, (2, 2, 2, 2)), nn.ConvTranspose3d(2, 2, 2), nn.SELU()
    ),
    "self-attention of an image": lambda: Images(SelfAttention(8), nn.ConvTranspose2d(8, 3, 2, 2)),
    "a transformer decoder": Sequences,
    "a causal transformer": Causal,
    "a recurrent network": lambda: Recurrent(nn.RNN),
    "an LSTM": lambda: Recurrent(nn.LSTM),
    "a GRU": lambda: Recurrent(nn.GRU),
    "an unrolled cell": Unrolled,
    "weight norm of a transposed convolution": lambda: Images(norms.weight_norm(nn.ConvTranspose2d(8, 3, 3), dim=1)),
    "spectral norm of a convolution": lambda: Images(norms.spectral_norm(nn.Conv2d(8, 3, 2)), nn.LeakyReLU(0.2)),
    "orthogonal weights": lambda: norms.orthogonal(nn.Linear(4, 6)),
    "data parallel": lambda: nn.DataParallel(mlp()),
}  # fmt: skip
FUNCTIONS = {
    "bilinear samples": warped("bilinear"),
    "bicubic samples": warped("bicubic"),
    "one point after the other": lambda z: torch.stack([net(point) for point in z]),
    "parts of the batch": lambda z: torch.cat([net(part) for part in z.split(2)]),
    "vmap": torch.vmap(net),
    "rearranged": lambda z: net(z).unflatten(1, (2, 3)).permute(0, 2, 1).contiguous().reshape(len(z), 3, 2, 1),
    "not contiguous": lambda z: net(z).unflatten(1, (2, 3)).mT,
    "expanded": lambda z: net(z)[:, :, None].expand(-1, -1, 5),
    "complex": lambda z: torch.polar(net(z).exp(), net(z)),
    "sparse weights": lambda z: torch.sparse.mm(torch.eye(5, 4, dtype=F64).to_sparse(), z.sin().mT).mT,
    "sparse output": lambda z: net(z).to_sparse(),
    "a branch for each point": lambda z: torch.where(z[:, :1] > 0, net(z), net(2 * z)),
    "checkpoints": lambda z: torch.utils.checkpoint.checkpoint_sequential(net, 2, z, use_reentrant=False),
    "in place": lambda z: net(z.mul_(2)).sin_().add_(z[:, :1]),
    "no dependence on length": lambda z: F.cosine_similarity(z[:, None], torch.ones(1, 5, 4, dtype=F64), dim=-1),
    "one number": lambda z: z.square().sum(1),
    "one number in an array": lambda z: net(z)[:, :1],
    "singular values": lambda z: torch.linalg.svdvals(net(z).reshape(-1, 2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_metric_of_any_layers_is_that_of_differences(name):
    assert_metric(seeded(LAYERS[name]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_metric_of_any_function_is_that_of_differences(name):
    assert_metric(FUNCTIONS[name])


@pytest.mark.parametrize("name", ["a transformer decoder", "self-attention of an image", "an LSTM", "pixel shuffle"])
def test_christoffel_vectors_are_those_of_differences_of_the_matrix(name):
    metric, z, v, h = pb.Pullback(seeded(LAYERS[name])), randn(3, 4), randn(3, 4, seed=1), 1e-4
    steps = h * torch.eye(4, dtype=F64)
    slopes = torch.stack([(metric.matrix(z + e) - metric.matrix(z - e)) / (2 * h) for e in steps], 1)  # (n, k, i, j)
    lowered = torch.einsum("nikj,ni,nj->nk", slopes, v, v) - torch.einsum("nkij,ni,nj->nk", slopes, v, v) / 2
    found = torch.einsum("nij,nj->ni", metric.matrix(z), metric.christoffel(z, v, v))
    assert torch.allclose(found, lowered, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 64])
def test_codes_of_any_dimension(d):
    assert_metric(seeded(lambda: mlp(d, 100)), d=d)
    assert_metric(seeded(lambda: mlp(d, 1)), d=d)


ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.ELU, nn.GELU, nn.Sigmoid, nn.Softplus, nn.Hardswish, nn.PReLU]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_t22_the_metric_is_that_of_the_decoder_at_hand_and_not_of_one_with_usual_activations(activation):
    # one peer has softplus and tanh written into its derivatives
    decoder, z = (
        seeded(lambda: nn.Sequential(nn.Linear(2, 8), activation(), nn.Linear(8, 5), activation())),
        randn(4, 2),
    )
    j = torch.stack([torch.autograd.functional.jacobian(decoder, point) for point in z])
    assert torch.allclose(pb.Pullback(decoder).matrix(z), j.mT @ j, rtol=1e-12, atol=1e-14)


def test_t22_a_frozen_mean_takes_no_gradient_and_the_deviation_all_of_it():
    # one peer looks for names that contain 'dec', and freezes others
    decoder = pb.Gaussian(seeded(mlp).requires_grad_(False), seeded(lambda: nn.Sequential(mlp(), nn.Softplus())))
    z = randn(3, 4).requires_grad_()
    pb.Pullback(decoder).norm(z, randn(3, 4, seed=1)).sum().backward()
    assert all(weight.grad is None for weight in decoder.mean.parameters())
    weights = dict(decoder.std.named_parameters())
    assert all(bool((weight.grad != 0).any()) for weight in weights.values())


# wrapped


class Conditioned(nn.Module):
    """A decoder that is told a label."""

    def __init__(self):
        super().__init__()
        self.labels = nn.Embedding(5, 4)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, z, label=0):
        labels = self.labels(torch.as_tensor(label)).expand(z.shape[0], -1).to(z)
        return self.layers(torch.cat((z, labels), 1))

    def decode(self, z):
        return self(z, 1)


class Wrapped:
    """No module, but it has one."""

    def __init__(self, model):
        self.model = model

    def __call__(self, z):
        return self.model(z, 1)

    def decode(self, z):
        return self.model(z, 1)


def conditioned(dtype=F64):
    return seeded(Conditioned, dtype)


def decorated(function):
    @functools.wraps(function)
    def outer(z):
        return function(z)

    return outer


WRAPPERS = {
    "partial": lambda model: functools.partial(model, label=1),
    "partial of a method": lambda model: functools.partial(model.decode),
    "partial of a function": lambda model: functools.partial(lambda f, z: f(z, 1), model),
    "partial of a partial": lambda model: functools.partial(functools.partial(model, label=0), label=1),
    "method": lambda model: model.decode,
    "lambda": lambda model: lambda z: model(z, 1),
    "lambda of a partial": lambda model: (lambda f: lambda z: f(z))(functools.partial(model, label=1)),
    "loop": lambda model: lambda z: torch.cat([model(part, 1) for part in z.split(1)]),
    "decorated": lambda model: decorated(model.decode),
    "default": lambda model: lambda z, model=model: model(z, 1),
    "object": Wrapped,
    "method of an object": lambda model: Wrapped(model).decode,
    "lambda of a dictionary": lambda model: functools.partial(lambda z, models: models["x"](z, 1), models={"x": model}),
    "gaussian": lambda model: pb.Gaussian(model.decode, lambda z: torch.ones(len(z), 1, dtype=z.dtype)),
    "ensemble": lambda model: pb.Ensemble([functools.partial(model, label=1)]),
}
DECODER = conditioned()  # a global


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_module_is_a_decoder_and_is_refused_in_training_mode(name):
    model = conditioned()
    decoder = WRAPPERS[name](model)
    metric = assert_metric(decoder, lambda z: model(z, 1))
    model.train()
    before = copy.deepcopy(dict(model.named_buffers()))
    with pytest.raises(ValueError, match=r"holds BatchNorm1d \('layers.1'\): .* batch. Call decoder.eval\(\) first"):
        pb.Pullback(decoder)
    with pytest.raises(ValueError, match="training mode"):
        metric.matrix(randn(3, 4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())  # it was not called


def test_a_global_module_that_a_function_names_is_looked_at():
    z, function = randn(3, 4), lambda z: torch.cat([DECODER(part, 1) for part in z.split(1)])
    assert_metric(function)
    DECODER.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            pb.Pullback(function)
        plain = lambda z: Wrapped(conditioned()).model.DECODER  # noqa: E731 - an attribute of that name
        pb.Pullback(plain)
    finally:
        DECODER.eval()
    assert pb.Pullback(function).matrix(z).shape == (3, 4, 4)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_module_of_another_dtype_is_told_from_one_of_another_dimension(name):
    decoder, wrong = WRAPPERS[name](conditioned()), r"points have dtype float32 but the decoder has float64: use z.to"
    with pytest.raises(ValueError, match=wrong):
        pb.Pullback(decoder).matrix(randn(3, 4).float())
    with pytest.raises(ValueError, match="is the latent dimension 3"):
        pb.Pullback(decoder).matrix(randn(3, 3))


# half precision


HALF = {
    "layers": lambda: nn.Sequential(mlp(), nn.LayerNorm(6)),
    "batch norm": lambda: nn.Sequential(mlp(), nn.BatchNorm1d(6), nn.Tanh()),
    "images": LAYERS["upsampling and group norm"],
    "a transformer decoder": Sequences,
    "an LSTM": lambda: Recurrent(nn.LSTM),
    "weight norm": lambda: norms.weight_norm(nn.Linear(4, 6)),
    "spectral norm": lambda: norms.spectral_norm(nn.Linear(4, 6)),
    "data parallel": lambda: nn.DataParallel(mlp()),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALF)
def test_weights_in_half_precision_give_the_metric_of_the_same_weights_in_that_of_the_points(name, dtype):
    decoder = seeded(HALF[name], dtype)
    wide = seeded(HALF[name]).float()
    wide.load_state_dict(decoder.state_dict())
    before = {**dict(decoder.named_parameters()), **dict(decoder.named_buffers())}
    metric = assert_metric(decoder, wide.double(), rtol=1e-8)
    single = metric.matrix(randn(3, 4).float())
    assert single.dtype == F32
    assert torch.allclose(single.double(), metric.matrix(randn(3, 4)), rtol=1e-3, atol=1e-4)
    after = {**dict(decoder.named_parameters()), **dict(decoder.named_buffers())}
    assert all(after[key] is tensor for key, tensor in before.items())
    assert {tensor.dtype for tensor in before.values()} <= {dtype, torch.int64}


@pytest.mark.parametrize("name", WRAPPERS)
def test_weights_in_half_precision_are_found_behind_wrappers(name):
    model = conditioned(torch.bfloat16)
    wide = copy.deepcopy(model).double()
    assert_metric(WRAPPERS[name](model), lambda z: wide(z, 1))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_modules_that_are_used_twice_come_out_of_an_evaluation_as_they_were():
    # torch.func.functional_call leaves copies in modules that are held twice
    layer = seeded(lambda: nn.Linear(4, 4), torch.bfloat16)
    tied = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    tied.weight = layer.weight
    decoder = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), tied)
    assert_metric(decoder, copy.deepcopy(decoder).double())
    assert tied.weight is layer.weight
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16


def test_threads_leave_weights_in_half_precision_as_they_were():
    model, z, results = seeded(mlp, torch.bfloat16), randn(3, 4), []
    metric = pb.Pullback(model)
    expected = metric.matrix(z)
    threads = [threading.Thread(target=lambda: results.append(metric.matrix(z))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert len(results) == 8
    assert all(torch.allclose(result, expected, rtol=1e-12) for result in results)


def test_a_decoder_that_fails_leaves_weights_in_half_precision_as_they_were():
    model = seeded(lambda: mlp(3), torch.bfloat16)
    with pytest.raises(ValueError, match="is the latent dimension 4"):
        pb.Pullback(model).matrix(randn(2, 4))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_gradients_reach_weights_in_half_precision():
    model, z = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh()), torch.bfloat16), randn(3, 4)
    wide = copy.deepcopy(model).double()
    grads = []
    for decoder in (model, wide):
        point = z.clone().requires_grad_()
        grads.append(torch.autograd.grad(pb.Pullback(decoder).norm(point, z).sum(), decoder[0].weight)[0])
    assert grads[0].dtype == torch.bfloat16
    assert torch.allclose(grads[0].double(), grads[1], rtol=1e-2, atol=1e-2)


def test_a_layer_that_casts_to_the_dtype_of_its_weights_is_no_reason_to_lose_digits():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def forward(self, z):
            return self.layers(z.to(self.layers[0].weight.dtype)).to(z)

    decoder = seeded(Casting, torch.bfloat16)
    assert_metric(decoder, copy.deepcopy(decoder).double())


def in_autocast(z):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return single(z).float()


single = seeded(mlp, F32)
brain = seeded(mlp, torch.bfloat16)


@pytest.mark.parametrize(
    "decoder",
    [
        in_autocast,
        lambda z: net(z).bfloat16().sin(),
        lambda z: net(z).half().sin().float(),
        lambda z: F.linear(z.bfloat16(), torch.ones(3, 4, dtype=torch.bfloat16, requires_grad=True)),
    ],
)
def test_a_decoder_that_computes_in_half_precision_is_refused(decoder):
    z = randn(3, 4).float() if decoder is in_autocast else randn(3, 4)
    with pytest.raises(ValueError, match=r"computes in b?float16 inside .* Leave the cast or autocast out"):
        pb.Pullback(decoder).matrix(z)


def test_a_cast_that_does_not_fit_the_widened_weights_is_named():
    fix = (
        r"float32 but the decoder has bfloat16 and holds on to it: use decoder.to\(torch.float32\), and leave out casts"
    )
    with pytest.raises(ValueError, match=fix):
        pb.Pullback(lambda z: brain(z.bfloat16())).matrix(randn(3, 4).float())


def test_single_precision_inside_a_decoder_of_double_points_is_allowed():
    exact = copy.deepcopy(single).double()
    assert_metric(lambda z: single(z.float()), exact, rtol=1e-4)
    assert_metric(lambda z: single(z.float())[:, :1].double(), lambda z: exact(z)[:, :1], rtol=1e-4)


def test_points_in_autocast_are_refused():
    z = randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match=r"`z` came in torch.autocast, .* torch.autocast\('cpu', enabled=False\)"):
            pb.Pullback(single).matrix(z.float())
        assert_metric(net)  # autocast leaves double precision alone
        with torch.autocast("cpu", enabled=False):
            pb.Pullback(single).matrix(z.float())


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matrix_products_of_lower_precision_are_no_reason_to_be_refused(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for n_features in (1, 100):
            decoder = seeded(lambda n=n_features: nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, n)), F32)
            assert_metric(decoder, z=randn(3, 4).float(), rtol=2e-2)
    finally:
        torch.set_float32_matmul_precision(before)


# outputs


class ModelOutput(OrderedDict):
    """As the transformers and diffusers libraries return: keys that are attributes, and indices that are keys."""

    def __init__(self, **parts):
        super().__init__(**parts)
        self.__dict__.update(parts)

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclasses.dataclass
class Sample(OrderedDict):
    sample: torch.Tensor

    def __post_init__(self):
        self["sample"] = self.sample


class Plain:
    def __init__(self, x):
        self.x, self.n = x, 3


@pytest.mark.parametrize(
    ("decoder", "output"),
    [
        (lambda z: ModelOutput(sample=net(z), logits=z), "sample"),
        (lambda z: ModelOutput(sample=net(z), logits=z), 0),
        (lambda z: Sample(net(z)), "sample"),
        (lambda z: Plain(net(z)), "x"),
        (lambda z: torch.distributions.Bernoulli(logits=net(z)), "logits"),
        (lambda z: (None, {"x": [net(z)]}), lambda result: result[1]["x"][0]),
    ],
)
def test_the_metric_of_a_chosen_part_is_that_of_the_part(decoder, output):
    assert_metric(decoder, net, output=output)


Distributions = torch.distributions


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (lambda z: ModelOutput(sample=net(z), logits=z), "returns a ModelOutput of 'sample', 'logits': say which part"),
        (lambda z: (net(z),), r"returns a tuple of 0: .* output=0"),
        (lambda z: Plain(net(z)), r"returns a Plain of 'x': .* output='x'"),
        (
            lambda z: Distributions.Bernoulli(logits=net(z)),
            r"a Bernoulli: for distances between distributions take FisherRao\(decoder\); .* output='mean'",
        ),
        (lambda z: Distributions.Independent(Distributions.Normal(net(z), 1.0), 1), r"a Independent: .* FisherRao"),
        (lambda z: None, r"returns a NoneType: want a torch tensor \(n, ...\), or give .* a function"),
        (lambda z: 3.0, "returns a float: want a torch tensor"),
        (lambda z: torch.nested.as_nested_tensor(list(net(z))), "returns a nested tensor: want a torch tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_an_output_that_is_no_tensor_says_what_to_do(decoder, message):
    with pytest.raises(ValueError, match=message):
        pb.Pullback(decoder).matrix(randn(3, 4))


# programs


def exported(module, n=3, batch=None):
    shapes = ({0: batch},) if batch is not None else None
    return torch.export.export(module, (randn(n, 4),), dynamic_shapes=shapes).module()


def test_an_exported_program_is_a_decoder_when_its_batch_is_dynamic():
    for module in (net, seeded(LAYERS["a DCGAN generator"]), conditioned()):
        assert_metric(exported(module, batch=torch.export.Dim("batch")), module)
    half = seeded(mlp, torch.bfloat16)
    program = torch.export.export(half, (randn(3, 4).bfloat16(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert_metric(program.module(), copy.deepcopy(half).double())


@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_program_that_was_exported_for_one_size_of_batch_says_how_to_export_it(n):
    fix = r"batches of one size alone: export it for any, .*dynamic_shapes=\(\{0: torch.export.Dim\('batch'\)\},\)"
    with pytest.raises(ValueError, match=fix):
        pb.Pullback(exported(net, n)).matrix(randn(2, 4))


def test_an_exported_program_that_is_not_loaded_says_so():
    with pytest.raises(ValueError, match=r"use `exported_program.module\(\)`"):
        pb.Pullback(torch.export.export(net, (randn(3, 4),))).matrix(randn(2, 4))


def test_a_program_that_was_exported_in_training_mode_is_refused():
    program = exported(nn.Sequential(mlp(), nn.Dropout()).double().train(), batch=torch.export.Dim("batch"))
    with torch.random.fork_rng(), pytest.raises(ValueError, match=r"decoder.eval\(\), before it is exported"):
        pb.Pullback(program).matrix(randn(2, 4))


def test_scripts_and_traces_are_decoders():
    decoder = seeded(lambda: nn.Sequential(mlp(), nn.BatchNorm1d(6), nn.Dropout(), nn.GELU()))
    z = randn(3, 4)
    for made in (torch.jit.trace(decoder, z), torch.jit.script(decoder), torch.jit.freeze(torch.jit.script(decoder))):
        assert_metric(made, decoder)
    with pytest.raises(ValueError, match=r"training mode and holds BatchNorm1d \('1'\)"):
        pb.Pullback(torch.jit.script(decoder.train()))
    with pytest.raises(ValueError, match=r"has bfloat16 and holds on to it: use decoder.to\(torch.float32\)"):
        pb.Pullback(torch.jit.script(decoder.eval().bfloat16())).matrix(z.float())


COMPILED = {
    "module": lambda compile: compile(seeded(mlp)),
    "function": lambda compile: compile(lambda z: net(z).sin()),
    "partial": lambda compile: functools.partial(compile(conditioned()), label=1),
    "part of a module": lambda compile: nn.Sequential(seeded(lambda: nn.Linear(4, 4)), compile(seeded(mlp))),
    "called by a function": lambda compile: (lambda f: lambda z: f(z).cos())(compile(seeded(mlp))),
    "half precision": lambda compile: compile(seeded(mlp, torch.bfloat16)),
}


@pytest.fixture
def compiling():
    """A way to compile; what is compiled is forgotten, and that a slower way was taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "The .grad attribute", UserWarning)  # torch looks at it when it compiles
        yield lambda backend: functools.partial(torch.compile, backend=backend)
        torch._dynamo.reset()


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_what_is_compiled_gives_the_same_metric_as_before(name, backend, compiling):
    decoder, plain = COMPILED[name](compiling(backend)), COMPILED[name](lambda f: f)
    z, v = randn(3, 4), randn(3, 4, seed=1)
    # first, for this takes a third derivative, which compiled code does not have
    christoffel = pb.Pullback(decoder).christoffel(z, v, v)
    assert torch.allclose(christoffel, pb.Pullback(plain).christoffel(z, v, v), rtol=1e-6, atol=1e-8)
    assert_metric(decoder, pb.Pullback(plain).features)
    for mode in (decoder, plain):
        point = z.clone().requires_grad_()
        pb.Pullback(mode).norm(point, v).sum().backward()


def test_second_derivatives_of_what_is_compiled_are_those_of_what_was_written(compiling, monkeypatch):
    monkeypatch.setattr(autodiff, "_warned", set())
    z, v = randn(3, 4), randn(3, 4, seed=1)
    with pytest.warns(DerivativeWarning, match="compiled parts as they were written"):
        bent = autodiff.second_derivative(compiling("aot_eager")(net), z, v, v)
    assert torch.allclose(bent, autodiff.second_derivative(net, z, v, v), rtol=1e-12)


def test_a_geodesic_of_a_compiled_decoder_is_that_of_the_decoder(compiling):
    a, b = 0.5 * randn(2, 2, 4)
    decoder = seeded(mlp)
    path, plain = (pb.geodesic(pb.Pullback(f), a, b) for f in (compiling("aot_eager")(decoder), decoder))
    assert path.converged.all()
    assert torch.allclose(path.length, plain.length, rtol=1e-8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_a_quantized_module_is_refused():
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(single), {nn.Linear}, dtype=torch.qint8)
    for decoder in (quantized, functools.partial(quantized), lambda z: quantized(z)):
        with pytest.raises(ValueError, match=r"holds a quantized Linear \('0'\): .* before it was quantized"):
            pb.Pullback(decoder)


# no derivative, or a wrong one


class Codebook(nn.Module):
    """Codes are rounded to those of a book; the straight-through estimator pretends that they are not."""

    def __init__(self, straight_through):
        super().__init__()
        self.book, self.layers, self.straight_through = nn.Embedding(16, 4), mlp(), straight_through

    def forward(self, z):
        nearest = self.book((z[:, None] - self.book.weight).square().sum(-1).argmin(1))
        return self.layers(z + (nearest - z).detach() if self.straight_through else nearest)


def partly_detached(z):
    with torch.no_grad():
        x = net(z)
    return x + z[:, :1]


class Reversed(torch.autograd.Function):
    """A gradient that is turned round, as domain-adversarial networks have it."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, w):
        return -w


class Cubed(torch.autograd.Function):
    """A derivative that can be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, w):
        return 3 * w * ctx.saved_tensors[0] ** 2


UNFAITHFUL = "values do not follow its derivative: over a small step they differ"


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (seeded(lambda: Codebook(False)), "no gradient to its input"),
        (seeded(lambda: Codebook(True)), UNFAITHFUL),
        (lambda z: net(z) + (net(z).round() - net(z)).detach(), UNFAITHFUL),
        (partly_detached, UNFAITHFUL),
        (lambda z: net(z) + Reversed.apply(z[:, :1]), UNFAITHFUL),
        (lambda z: torch.fake_quantize_per_tensor_affine(net(z), 0.1, 0, -128, 127), UNFAITHFUL),
        (torch.no_grad()(net.forward), "no gradient to its input"),
        (torch.inference_mode()(net.forward), "no gradient to its input"),
        (lambda z: F.one_hot(net(z).argmax(1), 6).double(), "no gradient to its input"),
        (lambda z: torch.as_tensor(z.detach().numpy() * 2), "no gradient to its input"),
        (warped("nearest"), "cannot be differentiated"),
        (lambda z: torch.utils.checkpoint.checkpoint(net, z, use_reentrant=True), "use_reentrant=False"),
        (lambda z: torch.special.bessel_j0(z), "no gradient"),
    ],
)
def test_a_decoder_whose_derivative_is_not_that_of_its_values_is_refused(decoder, message):
    with pytest.raises(ValueError, match=message):
        pb.Pullback(decoder).matrix(randn(3, 4))


def test_custom_functions_whose_derivative_has_one_are_decoders():
    assert_metric(lambda z: Cubed.apply(net(z)))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_creases_steps_and_steep_walls_are_no_reason_to_be_refused(scale, dtype):
    z = randn(8, 4).to(dtype)
    decoders = (
        lambda z: (scale * z).relu(),
        lambda z: (scale * z).sin(),
        lambda z: (min(1000 * scale, 1000) * z).sin(),
        lambda z: torch.where(z[:, :1] > 0, z + 5, z) * scale,
        lambda z: scale * z[:, :1] + 1e3,
        lambda z: (scale * z).abs().sum(1),
        lambda z: torch.sigmoid(100 * scale * z),
        lambda z: (scale * z.square().sum(1)).exp() if scale < 2 else z,
    )
    for decoder in decoders:
        for point in z:
            pb.Pullback(decoder).features(point)


def test_a_crease_at_the_very_point_is_no_reason_to_be_refused():
    for crease in (torch.relu, torch.abs, lambda z: F.leaky_relu(z, 0.1), lambda z: F.hardtanh(z, 0.0, 1.0)):
        for dtype in (F32, F64):
            decoder = lambda z, f=crease: torch.cat((f(z), z[:, :1]), 1)  # noqa: E731
            assert torch.isfinite(pb.Pullback(decoder).matrix(torch.zeros(4, dtype=dtype))).all()


# batches that mix


@pytest.mark.parametrize(
    "decoder",
    [
        lambda z: z + z.mean(0),  # the mean of a point and its neighbors at equal steps is the point
        lambda z: z + z.median(0).values,
        lambda z: net(z) / len(z),
        lambda z: net(z) if z.sum() > 0 else net(-z),
        lambda z: net(z) if (z > 1.5).any() else 2 * net(z),
    ],
)
def test_a_decoder_that_treats_points_by_their_batch_is_found_by_the_points_that_come(decoder):
    z = randn(3, 4)
    z[0], z[1] = -0.5, 2
    with pytest.raises(ValueError, match="mixes the points"):
        pb.Pullback(decoder).matrix(z)


def test_points_that_are_not_finite_do_not_hide_the_others():
    metric, z = pb.Pullback(net), randn(3, 4)
    z[1:] = torch.nan
    assert torch.allclose(metric.features(z)[0], net(z[:1])[0], rtol=1e-12)
    with pytest.raises(ValueError, match="mixes the points"):
        pb.Pullback(lambda z: net(z) + z.nanmean(0).sum()).features(z)


@pytest.mark.parametrize(
    "decoder", [lambda z: net(z[:1])[None, 0] if len(z) == 1 else z[:, 7], lambda z: net(z.view(1, 4))]
)
def test_a_decoder_of_single_points_is_told_that_points_come_in_batches(decoder):
    with pytest.raises(ValueError, match=r"takes one point but failed on a batch of shape \(3, 4\): its first axis"):
        pb.Pullback(decoder).matrix(randn(3, 4))


@pytest.mark.parametrize("first", [randn(1, 4), torch.randn(1, 4, generator=torch.Generator().manual_seed(0))])
def test_codes_drawn_with_a_usual_seed_are_no_direction_in_which_nothing_happens(first):
    # the probe once drew its direction with the seed that most people take, and decoders of z / |z| do not move along z
    for seed in (0, 1, 2, 42, 123, 1234):
        z = randn(2, 4, seed=seed)
        pb.Pullback(lambda z: net(F.normalize(z, dim=1))).matrix(z)
    pb.Pullback(lambda z: F.normalize(z, dim=1)).matrix(first)


# size


_MILLION = """
import pathlib, torch, pullback as pb
def peak():  # of this process alone; ru_maxrss begins with that of the parent
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
torch.set_num_threads(1)
a = torch.randn(2, 1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
metric = pb.Pullback(lambda z: torch.sin(z @ a), memory=1 << 30)
z, u, v = torch.randn(3, 24, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
before = peak()
inner, norm = metric.inner(z, u, v), metric.norm(z, u)
rise = (peak() - before) / 2**20
exact = torch.stack([((b @ a) * (c @ a) * torch.cos(y @ a) ** 2).sum() for y, b, c in zip(z, u, v)])
lengths = torch.stack([torch.linalg.vector_norm((b @ a) * torch.cos(y @ a)) for y, b in zip(z, u)])
scale = exact.abs().max()
print(rise, float(((inner - exact) / scale).abs().max()), float((norm / lengths - 1).abs().max()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_million_outputs_take_no_more_memory_than_the_budget():
    # J of 24 points has 366 MiB, J'J in the data space 7 TiB
    printed = subprocess.run([sys.executable, "-c", _MILLION], capture_output=True, text=True, check=True).stdout
    rise, inner, norm = map(float, printed.split())
    assert rise < 1.0
    assert max(inner, norm) < 1e-10
