import dataclasses
import functools
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

import pullback as pb
from pullback._checks import DerivativeWarning
from pullback.decoders import FeatureMap, Gaussian
from pullback.metrics import Pullback

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()


def mlp(d=2, n_features=6):
    return seeded(lambda: nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, n_features)))


def probe(decoder, z=None, **options):
    """Look at a decoder as the first points do."""
    features = FeatureMap(decoder, **options)
    features.footprint(randn(3, 2) if z is None else z)
    return features


def metric_of(decoder, z, **options):
    return Pullback(decoder, **options).matrix(z)


# which part of the output


@dataclasses.dataclass
class Output:
    sample: torch.Tensor
    logits: torch.Tensor


Named = namedtuple("Named", ["sample", "logits"])
net = mlp()


@pytest.mark.parametrize(
    ("decoder", "output"),
    [
        (lambda z: (net(z), z), 0),
        (lambda z: [z, net(z)], 1),
        (lambda z: [z, net(z)], -1),
        (lambda z: {"x": net(z), "z": z}, "x"),
        (lambda z: OrderedDict(z=z, x=net(z)), "x"),
        (lambda z: Output(net(z), z), "sample"),
        (lambda z: Named(net(z), z), "sample"),
        (lambda z: Named(net(z), z), 0),
        (lambda z: torch.distributions.Normal(net(z), 1.0), "mean"),
        (lambda z: torch.distributions.Independent(torch.distributions.Normal(net(z), 1.0), 1), lambda x: x.mean),
        (lambda z: {"outer": (z, net(z))}, lambda result: result["outer"][1]),
        (lambda z: {"x": net(z)}, ("x",)),
        (lambda z: net(z).reshape(-1, 1, 2, 3), None),
    ],
)
def test_the_chosen_part_of_an_output_is_the_data_point(decoder, output):
    z = randn(4, 2)
    assert torch.allclose(metric_of(decoder, z, output=output), metric_of(net, z))
    assert torch.equal(Pullback(decoder, output=output).features(z), net(z))


def test_several_parts_are_stacked_so_that_a_distribution_has_its_expected_metric():
    std, z = nn.Sequential(mlp(), nn.Softplus()), randn(4, 2)
    decoder = lambda z: torch.distributions.Normal(net(z), std(z))  # noqa: E731
    metric = Pullback(decoder, output=("mean", "stddev"))
    assert torch.allclose(metric.matrix(z), metric_of(Gaussian(net, std), z), rtol=1e-12)
    assert torch.equal(metric.features(z), Gaussian(net, std)(z))
    nested = Pullback(lambda z: {"x": net(z), "y": (z, std(z))}, output=("x", lambda result: result["y"][1]))
    assert torch.allclose(nested.matrix(z), metric.matrix(z), rtol=1e-12)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (lambda z: (z, z), r"returns a tuple of 0, 1: say which part .* output=0"),
        (lambda z: {"x": z, "y": z}, r"returns a dict of 'x', 'y': .* output='x'"),
        (lambda z: Output(z, z), "returns a Output of 'sample', 'logits'"),
        (lambda z: torch.distributions.Normal(z, 1.0), r"returns a Normal: .* output='mean'"),
        (lambda z: z.detach().numpy(), "returns a ndarray"),
    ],
)
def test_an_output_of_several_things_has_to_be_chosen_from(decoder, message):
    with pytest.raises(ValueError, match=message):
        probe(decoder)


@pytest.mark.parametrize(
    ("decoder", "output", "message"),
    [
        (lambda z: (z, z), 2, "`output` is 2 but the decoder returns a tuple without it: it has 0, 1"),
        (lambda z: (z, z), "mean", "`output` is 'mean' but"),
        (lambda z: {"x": z}, "y", "returns a dict without it: it has 'x'"),
        (lambda z: {"x": z}, 0, "`output` is 0 but"),
        (lambda z: Output(z, z), "x", "it has 'sample', 'logits'"),
        (lambda z: z, 0, "`output` is 0 but the decoder returns a Tensor"),
        (lambda z: {"x": (z, z)}, "x", "returns a tuple of 0, 1"),
    ],
)
def test_an_output_that_is_not_there_is_named_with_those_that_are(decoder, output, message):
    with pytest.raises(ValueError, match=message):
        probe(decoder, output=output)


@pytest.mark.parametrize(
    "decoder",
    [
        lambda z: z.mT,
        lambda z: z.sum(),
        lambda z: z[None],
        lambda z: z.flatten(),
        lambda z: z.repeat(2, 1),
        Gaussian(lambda z: z.mean(0, keepdim=True), lambda z: z.std(0, keepdim=True, correction=0)),
    ],
)
def test_an_output_whose_first_axis_is_not_the_batch_is_refused(decoder):
    with pytest.raises(ValueError, match="first axis must be the batch, one entry a point"):
        probe(decoder)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3), (3, 1, 2, 1)])
def test_an_output_of_any_shape_is_flattened(shape):
    z = randn(4, 2)
    assert torch.allclose(metric_of(lambda z: net(z).reshape(-1, *shape), z), metric_of(net, z))


def test_an_output_of_one_number_a_point_needs_no_axis():
    z = randn(4, 2)
    assert torch.allclose(metric_of(lambda z: z.square().sum(1), z), 4 * z[:, :, None] * z[:, None])
    assert torch.allclose(metric_of(Gaussian(lambda z: z.sum(1), lambda z: z.prod(1)), z)[:, 0, 0], 1 + z[:, 1] ** 2)


def test_complex_features_count_by_real_and_imaginary_part():
    z = randn(4, 2)
    spectrum = torch.view_as_real(torch.fft.rfft(net(z))).flatten(1)
    metric = Pullback(lambda z: torch.fft.rfft(net(z)))
    assert torch.allclose(metric.features(z).square().sum(1), spectrum.square().sum(1))
    assert torch.allclose(metric.matrix(z), metric_of(lambda z: torch.view_as_real(torch.fft.rfft(net(z))), z))


def test_a_decoder_that_computes_in_another_dtype_gives_features_in_that_of_the_points():
    z = randn(4, 2)
    single = seeded(lambda: nn.Linear(2, 3)).float()
    metric = Pullback(lambda z: single(z.float()))
    assert metric.features(z).dtype == metric.matrix(z).dtype == F64
    assert Pullback(pb.surfaces.Plane()).matrix(z.float()).dtype == torch.float32


# Gaussian


def test_a_gaussian_stacks_mean_and_deviation():
    std, z = nn.Sequential(mlp(), nn.Softplus()), randn(4, 2)
    gaussian = Gaussian(net, std)
    assert gaussian.mean is net
    assert gaussian.std is std
    assert torch.equal(gaussian(z), torch.cat((net(z), std(z)), 1))
    assert torch.equal(FeatureMap(gaussian)(z), gaussian(z))
    assert [x.shape for x in FeatureMap(gaussian).parts(z)] == [(4, 6), (4, 6)]  # joining them costs
    images = Gaussian(lambda z: net(z).reshape(-1, 2, 3), lambda z: std(z).reshape(-1, 3, 2))
    assert torch.equal(images(z), gaussian(z))


def test_a_deviation_that_all_outputs_share_counts_for_each():
    z = randn(4, 2)
    shared = Gaussian(net, lambda z: z[:, :1].exp())
    repeated = Gaussian(net, lambda z: z[:, :1].exp().expand(-1, 6))
    assert torch.allclose(metric_of(shared, z), metric_of(repeated, z), rtol=1e-12)


@pytest.mark.parametrize(
    "constant", [lambda z: torch.ones(len(z), 6, dtype=F64), lambda z: nn.Parameter(z[:, :1] * 0 + 1)]
)
def test_a_constant_deviation_adds_nothing(constant):
    z = randn(4, 2)
    gaussian = Gaussian(net, constant)
    assert torch.allclose(metric_of(gaussian, z), metric_of(net, z))
    assert torch.allclose(Pullback(gaussian).norm(z, z), Pullback(net).norm(z, z))
    wide = Gaussian(mlp(6, 1), lambda z: torch.ones(len(z), 1, dtype=F64))  # by rows
    assert torch.allclose(metric_of(wide, randn(4, 6)), metric_of(mlp(6, 1), randn(4, 6)))


def test_a_deviation_of_another_size_is_refused():
    with pytest.raises(ValueError, match="`std` returns 2 values a point but `mean` returns 6: give one for each"):
        probe(Gaussian(net, lambda z: z))


# the door


@pytest.mark.parametrize("decoder", [None, torch.zeros(3), "decoder"])
def test_what_cannot_be_called_is_no_decoder(decoder):
    with pytest.raises(TypeError, match=r"`decoder` is a .*: give a module or a function"):
        Pullback(decoder)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), nn.Dropout(0.5)])
def test_a_decoder_in_training_mode_is_refused_also_when_it_gets_there_later(layer):
    decoder, z = nn.Sequential(mlp(), layer).double(), randn(3, 2)
    with pytest.raises(ValueError, match=r"training mode .* Call decoder.eval\(\) first"):
        Pullback(decoder.train())
    metric = Pullback(decoder.eval())
    first = metric.matrix(z)
    decoder.train()
    for call in (metric.matrix, metric.features, metric.log_volume, lambda z: metric.norm(z, z)):
        with pytest.raises(ValueError, match="training mode"):
            call(z)
    decoder.eval()
    assert torch.equal(metric.matrix(z), first)


class HomeMade(nn.Module):
    def forward(self, z):
        return nn.functional.dropout(net(z), training=self.training)


@pytest.mark.parametrize(
    "decoder",
    [
        lambda z: z - z.mean(0),
        lambda z: net(z) / net(z).norm(),
        lambda z: nn.functional.normalize(z, dim=0),
        lambda z: net(z) + 1e-6 * torch.randn(len(z), 6, dtype=F64),
        lambda z: nn.functional.dropout(net(z)),
        lambda z: net(z).cumsum(0),
        lambda z: net(z).flip(0).cumsum(0).flip(0),
        HomeMade(),
    ],
)
def test_a_decoder_that_mixes_points_or_is_random_is_refused(decoder):
    with (
        torch.random.fork_rng(),
        pytest.raises(ValueError, match=r"mixes the points .* Batch statistics or randomness"),
    ):
        probe(decoder)


def test_a_random_decoder_is_found_also_when_it_gets_so_later():
    decoder, z = HomeMade().eval(), randn(3, 2)
    metric = Pullback(decoder)
    metric.matrix(z)
    decoder.train()
    with torch.random.fork_rng(), pytest.raises(ValueError, match="randomness"):
        metric.matrix(z)


@pytest.mark.parametrize(
    "decoder",
    [
        lambda z: net(z).detach(),
        torch.no_grad()(lambda z: net(z)),
        lambda z: net(z).argmax(1),
        lambda z: net(z.detach()),
        lambda z: nn.Embedding(6, 3)(net(z).argmax(1)),
        lambda z: torch.ones(len(z), 3, dtype=F64),
        lambda z: net(z) > 0,
    ],
)
def test_a_decoder_without_gradient_is_refused(decoder):
    net.requires_grad_(True)  # the weights alone are not enough
    with torch.random.fork_rng(), pytest.raises(ValueError, match=r"no gradient|mixes the points"):
        probe(decoder)


def test_a_decoder_without_gradient_is_called_that():
    for decoder in (lambda z: net(z).detach(), lambda z: net(z.detach()), lambda z: net(z).argmax(1)):
        with pytest.raises(ValueError, match="carries no gradient to its input"):
            probe(decoder)


def through_numpy(z):
    return torch.from_numpy(z.numpy())


def unpacking(z):
    a, b = z  # of one point there is one
    return a + b


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (mlp(3), r"failed on a point of shape \(1, 2\): is the latent dimension 2\? .* RuntimeError: mat1 and mat2"),
        (nn.Conv2d(2, 3, 1).double(), "failed on a point .* RuntimeError"),
        (through_numpy, r"RuntimeError: Can't call numpy\(\) on Tensor that requires grad"),
        (unpacking, "failed on a point .* ValueError: not enough values"),
        (lambda z: z[:, 2], "failed on a point .* IndexError"),
        (lambda: 1, "failed on a point .* TypeError"),
        (nn.ModuleDict(), "failed on a point .* NotImplementedError"),
        (
            lambda z: nn.functional.batch_norm(z, None, None, training=True),
            "failed on a point .* ValueError: Expected more",
        ),
    ],
)
def test_a_decoder_that_cannot_take_a_point_says_why(decoder, message):
    with pytest.raises(ValueError, match=message) as info:
        probe(decoder)
    assert info.value.__cause__ is not None


def test_a_decoder_of_another_dtype_or_device_is_told_from_one_of_another_dimension():
    with pytest.raises(ValueError, match="points have dtype float32 but the decoder has float64"):
        probe(net, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="points are on cpu but the decoder is on meta"):
        probe(nn.Linear(2, 3, device="meta"), torch.zeros(1, 2))


class HiddenBackward(torch.autograd.Function):
    """sin, whose derivative cannot be differentiated and says nothing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, w):
        return w.data * ctx.saved_tensors[0].cos()


def test_derivatives_that_contradict_each_other_are_found():
    # the half that hides would silently be missing from the metric
    with pytest.raises(ValueError, match=r"derivatives contradict each other by \d.* custom operator"):
        probe(lambda z: torch.cat((HiddenBackward.apply(z), z.cos()), 1))


def test_decoders_need_not_be_able_to_take_an_empty_batch():
    def picky(z):
        assert len(z) > 0
        return net(z).reshape(len(z), 2, -1)

    for decoder in (picky, nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2)), nn.MaxPool2d(2)).double()):
        metric = Pullback(decoder)
        z = torch.zeros(0, 2, dtype=F64)
        assert metric.matrix(z).shape == (0, 2, 2)
        assert metric.norm(z, z).shape == (0,)
        assert metric.features(z).shape == (0, metric.features(randn(1, 2)).shape[1])


def test_a_decoder_may_work_in_place_and_the_points_stay():
    def in_place(z):
        z.mul_(2).add_(1)
        return z.sin_()

    z = randn(4, 2)
    before, metric = z.clone(), Pullback(in_place)
    expected = torch.diag_embed(4 * (2 * z + 1).cos() ** 2)
    assert torch.allclose(metric.matrix(z), expected)
    assert torch.allclose(metric.inner(z, z, z), torch.einsum("ni,nij,nj->n", z, expected, z))
    metric.features(z)
    assert torch.equal(z, before)


def test_features_are_no_view_of_the_points():
    z = randn(4, 2)
    Pullback(nn.Identity()).features(z).zero_()
    assert z.abs().min() > 0


@pytest.mark.parametrize("decoder", [net.forward, functools.partial(net.forward)])
def test_methods_and_partial_functions_are_decoders(decoder):
    z = randn(4, 2)
    assert torch.allclose(metric_of(decoder, z), metric_of(net, z))


def test_the_first_points_decide_what_a_point_costs():
    big = nn.Linear(2, 1000, dtype=F64)
    small, large = probe(nn.Linear(2, 10, dtype=F64)), probe(big)
    z = randn(3, 2)
    assert 10 * 8 <= small.footprint(z) < large.footprint(z)
    assert 2 * 1000 * 8 <= large.footprint(z) < 4 * 1000 * 8
    deep = probe(nn.Sequential(nn.Linear(2, 1000), nn.Tanh(), nn.Linear(1000, 10)).double())
    assert deep.footprint(z) > small.footprint(z) + 1000 * 8  # what is kept for the derivative counts
    assert large.n_features == 1000
    assert large.dim == 2
    with pytest.raises(ValueError, match="latent dimension 3 but the decoder takes 2"):
        large.footprint(randn(3, 3))


def test_an_ordinary_decoder_is_no_reason_for_a_warning(recwarn):
    probe(net)
    assert not [warning for warning in recwarn if issubclass(warning.category, DerivativeWarning)]
