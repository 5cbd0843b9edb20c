import os

import pytest
import torch

import pullback as pb
from pullback.datasets import Dataset, digits, mnist
from pullback.models import CollapseWarning, ConvolutionalPrecision, ConvolutionalVAE, convolutional, loop

F64 = torch.float64
quiet = pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")  # so few epochs


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained():
    return ConvolutionalVAE((8, 8), n_centers=20, output_std=0.3).fit(digits(), epochs=40, precision_epochs=10)


@pytest.fixture(scope="module")
def codes(trained):
    return trained.encode(digits().samples)[0].detach()


def test_digits_are_given_back_better_than_by_their_mean(trained, codes):
    x = digits().samples.double()
    residual = (trained.decoder.mean(codes) - x).square().mean().item()
    assert residual < 0.75 * x.var(0, correction=0).mean().item()
    assert len(trained.history["mean"]) == 40
    assert trained.history["precision"][-1] < trained.history["precision"][0]


def test_the_deviation_grows_away_from_the_codes(trained, codes):
    near = trained.decoder.std(codes).median().item()
    ring = 4 * codes.norm(dim=1).max() * torch.nn.functional.normalize(randn(50, 2))
    assert trained.decoder.std(ring).amin(1).median().item() > 100 * near
    assert 0.02 < near < 0.5  # that of pixels


def test_weights_and_filters_stay_non_negative(trained):
    weights = list(trained.precision.parameters())
    assert len(weights) == 3
    assert all((w >= 0).all() for w in weights)
    assert any((w == 0).any() for w in weights)  # the projection was at work


def test_the_metric_of_the_model_is_that_of_finite_differences(trained, codes):
    z, h = codes[:6], 1e-5
    steps = h * torch.eye(2, dtype=F64)
    j = torch.stack([(trained.decoder(z + s) - trained.decoder(z - s)) / (2 * h) for s in steps], -1).detach()
    assert torch.allclose(pb.Pullback(trained.decoder).matrix(z), j.mT @ j, rtol=1e-5, atol=1e-7)
    path = pb.geodesic(pb.Pullback(trained.decoder), z[:3], z[3:], tol=1e-3)
    assert path.converged.all()


def test_the_precision_is_the_sum_of_its_formula():
    precision = ConvolutionalPrecision(randn(4, 2), torch.rand(4) + 0.5, (2, 8, 12), zeta=1e-3, generator=seeded())
    z = randn(5, 2, seed=1)
    kernels = torch.exp(-precision.bandwidths * torch.cdist(z, precision.centers).square())
    coarse = (kernels @ precision.weight.mT).reshape(5, 32, 2, 3)
    for layer in precision.up:
        if isinstance(layer, torch.nn.ConvTranspose2d):
            coarse = torch.nn.functional.conv_transpose2d(coarse, layer.weight, stride=2, padding=1)
    assert torch.allclose(precision.precision(z), coarse.flatten(1) + 1e-3, rtol=1e-10)
    assert torch.allclose(precision(z), precision.precision(z).rsqrt())
    assert precision(z[0]).shape == (2 * 8 * 12,)
    assert torch.allclose(precision(z)[2:3], precision(z[2:3]))


def test_far_away_only_the_floor_is_left():
    precision = ConvolutionalPrecision(torch.zeros(1, 2), torch.ones(1), (8, 8), zeta=1e-4)
    assert torch.allclose(precision(torch.full((1, 2), 50.0, dtype=F64)), torch.full((1, 64), 100.0, dtype=F64))


def test_initial_filters_average():
    # a weight of one everywhere is a precision of nearly one: the second stage begins at an honest scale
    precision = ConvolutionalPrecision(torch.zeros(1, 2), torch.ones(1), (16, 16), generator=seeded())
    inside = precision.precision(torch.zeros(1, 2, dtype=F64)).reshape(16, 16)[4:-4, 4:-4]
    assert inside.mean().item() == pytest.approx(1, abs=0.1)
    assert inside.std().item() < 0.2


@quiet
def test_an_interrupted_and_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, monkeypatch):
    data = digits()[slice(0, 96)]
    settings = {"epochs": 3, "precision_epochs": 3, "batch_size": 32}
    whole = ConvolutionalVAE((8, 8), n_centers=5).fit(data, **settings)
    for calls in (5, 14):  # in the first stage, in the second
        done = []

        def stopped(samples, step, done=done, calls=calls, **keywords):
            def counted(x, epoch):
                done.append(epoch)
                if len(done) == calls:
                    raise KeyboardInterrupt
                return step(x, epoch)

            return loop.fit(samples, counted, **keywords)

        folder = tmp_path / str(calls)
        with monkeypatch.context() as patch:
            patch.setattr(convolutional, "fit", stopped)
            with pytest.raises(KeyboardInterrupt):
                ConvolutionalVAE((8, 8), n_centers=5).fit(data, folder=folder, **settings)
        resumed = ConvolutionalVAE((8, 8), n_centers=5).fit(data, folder=folder, **settings)
        assert same(whole, resumed)
        assert whole.history == resumed.history


@quiet
def test_the_global_random_state_is_not_touched_and_a_saved_model_is_loaded(tmp_path):
    before = torch.get_rng_state()
    model = ConvolutionalVAE((8, 8), n_centers=5, generator=seeded())
    model.fit(digits()[slice(0, 64)], epochs=1, precision_epochs=1)
    model.save(tmp_path)
    loaded = ConvolutionalVAE.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(model, loaded)
    assert not loaded.training
    assert torch.equal(loaded.decoder(randn(3, 2)), model.decoder(randn(3, 2)))


def test_codes_that_hardly_differ_are_warned_of():
    with pytest.warns(CollapseWarning, match="output_std"):
        ConvolutionalVAE((8, 8), n_centers=5, output_std=100.0).fit(
            digits()[slice(0, 64)], epochs=1, precision_epochs=1
        )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sample_shape": (8,)}, "wanted that of images"),
        ({"sample_shape": (30, 28)}, "multiples of 4; pad the images"),
        ({"sample_shape": (8, 8), "n_centers": 0}, "`latent_dim`, `n_centers` are 2, 0"),
        ({"sample_shape": (8, 8), "zeta": 0.0}, "`zeta` is 0.0"),
        ({"sample_shape": (8, 8), "output_std": -1.0}, "`output_std` is -1.0"),
    ],
)
def test_unfit_settings_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        ConvolutionalVAE(**arguments)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"samples of shape \(8, 8\), but the model takes \(4, 4\)"):
        ConvolutionalVAE((4, 4)).fit(digits())
    with pytest.raises(ValueError, match="set n_centers to at most 10"):
        ConvolutionalVAE((8, 8)).fit(digits()[slice(0, 10)])
    with pytest.raises(ValueError, match="sigmoid"):
        ConvolutionalVAE((8, 8)).fit(Dataset(3 * digits().samples, None, (8, 8), "bright"))
    with pytest.raises(ValueError, match="`warmup` is 2"):
        ConvolutionalVAE((8, 8)).fit(digits(), warmup=2)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("PULLBACK_DATA"), reason="PULLBACK_DATA is not set")
def test_the_same_holds_on_mnist():
    data = mnist(classes=(0, 1))[slice(0, 3000)]
    model = ConvolutionalVAE((28, 28), n_centers=32).fit(data, epochs=15, precision_epochs=8)
    found = model.encode(data.samples)[0].detach()
    near = model.decoder.std(found[:500]).median().item()
    far = 4 * found.norm(dim=1).max() * torch.nn.functional.normalize(randn(50, 2))
    assert model.decoder.std(far).amin(1).median().item() > 100 * near
    path = pb.geodesic(pb.Pullback(model.decoder), found[:5], found[5:10], tol=1e-3)
    assert path.converged.float().mean().item() > 0.7
