import os

import pytest
import torch

import pullback as pb
from pullback import datasets
from pullback.models import Autoencoder, CollapseWarning


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def neighbor_accuracy(codes, labels, k=10):
    """Share of samples whose class is the most frequent one among their k nearest codes."""
    distances = torch.cdist(codes, codes).fill_diagonal_(float("inf"))
    return float((labels[distances.topk(k, largest=False).indices].mode(1).values == labels).double().mean())


def check_on_images(data, share, accuracy, **settings):
    """Reconstruction against the mean image, neighbors against chance, geodesics against lines."""
    model = Autoencoder(data.samples.shape[1], hidden=(64, 32)).fit(data, **settings).double()
    x = data.samples.double()
    codes = model.encode(x).detach()
    error = (model.decoder(codes) - x).square().mean().detach()
    assert float(error) < share * float(x.var(0, correction=0).mean())
    assert neighbor_accuracy(codes, data.labels) > accuracy
    metric = pb.Pullback(model.decoder)
    pairs = torch.randint(len(x), (2, 6), generator=seeded(1))
    path = pb.geodesic(metric, *codes[pairs])
    lines = pb.length(metric, pb.Curve.straight(*codes[pairs], 200))
    assert bool(path.converged.all())
    assert bool((path.length <= lines * (1 + 1e-3)).all())
    assert float((path.length / lines).mean()) < 0.97


def test_codes_and_reconstructions_have_their_shapes_and_layers_their_widths():
    model = Autoencoder(30, 3, (8, 5), generator=seeded())
    assert model.encode(torch.rand(7, 30)).shape == (7, 3)
    assert model.decoder(torch.randn(7, 3)).shape == (7, 30)
    widths = [tuple(layer.weight.shape[::-1]) for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert widths == [(30, 8), (8, 5), (5, 3), (3, 5), (5, 8), (8, 30)]


def test_the_loss_is_the_mean_squared_error_of_the_reconstruction():
    model = Autoencoder(6, generator=seeded())
    x = torch.rand(9, 6)
    wanted = sum((model.decoder(model.encode(row[None])) - row).square().sum().item() for row in x) / (9 * 6)
    assert model.loss(x).item() == pytest.approx(wanted, rel=1e-5)


def test_a_linear_autoencoder_of_data_in_a_plane_gives_them_back():
    flat = torch.randn(200, 2, generator=seeded()) @ torch.randn(2, 5, generator=seeded(1)) + 100
    data = datasets.Dataset(flat, None, (5,), "plane")
    model = Autoencoder(5, hidden=(32,), output="linear").fit(data, epochs=150, batch_size=50, learning_rate=0.01)
    residual = (model.decoder(model.encode(flat)) - flat).detach()
    assert float(residual.square().mean()) < 0.005 * float(flat.var(0).mean())


def test_digits_are_given_back_far_better_than_by_their_mean_and_their_codes_tell_them_apart():
    # ten classes: chance is 0.1; the mean image has the share 1
    check_on_images(datasets.digits(), 0.65, 0.5, epochs=30, batch_size=64, learning_rate=5e-3)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("PULLBACK_DATA"), reason="PULLBACK_DATA is not set")
def test_the_same_holds_on_mnist():
    data = datasets.mnist()[slice(0, 10000)]
    check_on_images(data, 0.72, 0.5, epochs=30, learning_rate=2e-3)


def test_a_latent_dimension_that_does_nothing_is_warned_of():
    line = datasets.Dataset(torch.linspace(-1, 1, 60)[:, None] * torch.ones(6), None, (6,), "line")
    model = Autoencoder(6, 2, output="linear")

    def without_second(x):
        return model.encoder(x) * torch.tensor([1.0, 0.0])

    model.encode = without_second
    with pytest.warns(
        CollapseWarning, match=r"the same in latent dimension 1 .*: train more epochs, or lower latent_dim"
    ):
        model.fit(line, epochs=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_dim": 0}, "wanted widths of at least 1"),
        ({"data_dim": 3, "hidden": ()}, "at least one hidden layer"),
        ({"data_dim": 3, "output": "relu"}, "`output` is 'relu': wanted one of sigmoid, linear"),
    ],
)
def test_impossible_widths_and_outputs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(**arguments)
