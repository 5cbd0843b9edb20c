import os

import pytest
import torch

import pullback as pb
from pullback.datasets import Dataset, digits, mnist
from pullback.models import GAN, ModeCollapseWarning, gan, loop

LOSSES = ["non_saturating", "wasserstein"]
quiet = pytest.mark.filterwarnings("ignore::pullback.models.ModeCollapseWarning")  # so few epochs


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ring(n=400):
    """Points on a circle in the plane, shifted and stretched: a linear output has to find the units."""
    angle = 2 * torch.pi * torch.rand(n, generator=seeded())
    return Dataset(torch.stack((40 + 5 * angle.cos(), 5 * angle.sin()), 1), None, (2,), "ring")


def energy_distance(x, y):
    """Of two samples: 0 for one distribution; it sees both what is missing and what is wrong."""
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained():
    return GAN((8, 8)).fit(digits()[slice(0, 1500)], epochs=60)


def test_samples_are_nearer_to_held_out_digits_than_those_of_an_untrained_generator(trained):
    held = digits()[slice(1500, 1797)].samples
    made = trained.sample(300, generator=seeded())[1]
    raw = GAN((8, 8), generator=seeded()).sample(300, generator=seeded())[1]
    mean_image = held.mean(0, keepdim=True).expand(300, -1)
    assert energy_distance(made, held) < 0.2 * energy_distance(raw, held)
    assert energy_distance(made, held) < 0.5 * energy_distance(mean_image, held)
    assert trained.coverage(held) > 0.5


def test_the_two_parts_are_near_a_standstill(trained):
    # at it the discriminator answers 0: log 2 for the generator and 2 log 2 for the discriminator
    assert trained.history["generator"][-1] == pytest.approx(0.69, abs=0.35)
    assert trained.history["discriminator"][-1] == pytest.approx(1.39, abs=0.35)
    assert len(trained.history["generator"]) == 60


def test_a_generator_needs_no_encoder_to_have_a_metric_and_geodesics(trained):
    decoder = trained.generator
    metric, z, h = pb.Pullback(decoder), torch.randn(6, 2, generator=seeded()), 1e-2
    steps = h * torch.eye(2)
    j = torch.stack([(decoder(z + s) - decoder(z - s)) / (2 * h) for s in steps], -1).detach()
    assert torch.allclose(metric.matrix(z), j.mT @ j, rtol=2e-2, atol=1e-3)
    path = pb.geodesic(metric, z[:3], z[3:], tol=1e-3)
    assert path.converged.all()
    assert (pb.length(metric, pb.Curve.straight(z[:3], z[3:])) >= (1 - 1e-3) * path.length).all()


@pytest.mark.parametrize(("loss", "apart", "off"), [("non_saturating", 0.2, 0.5), ("wasserstein", 0.7, 1.6)])
def test_a_ring_is_learned_in_the_units_of_the_data(loss, apart, off):
    # of a point in the middle of the ring the distance is 3.6
    data = ring()
    model = GAN((2,), hidden=(64, 64), loss=loss, output="linear").fit(data, epochs=200, batch_size=100)
    made = model.sample(400, generator=seeded())[1]
    radius = (made - torch.tensor([40.0, 0.0])).norm(dim=1)
    assert energy_distance(made, data.samples) < apart
    assert radius.median().item() == pytest.approx(5, abs=off)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losses_are_those_of_their_formulas(loss):
    model = GAN((3,), hidden=(5, 4), loss=loss, generator=seeded())
    x, drawn = torch.rand(7, 3, generator=seeded(1)), torch.rand(7, 3, generator=seeded(2))
    value, penalty = model.discriminator_loss(x, drawn, 2.0, seeded(3))
    real, fake = model.discriminator(x), model.discriminator(drawn)
    if loss == "wasserstein":
        expected = fake.mean() - real.mean()
        share = torch.rand(7, 1, generator=seeded(3))
        at, wanted = share * x + (1 - share) * drawn, lambda slope: (slope.norm(dim=1) - 1).square().mean()
    else:
        expected = (1 + (-real).exp()).log().mean() + (1 + fake.exp()).log().mean()
        at, wanted = x, lambda slope: 0.5 * slope.square().sum(1).mean()
    slope = torch.autograd.functional.jacobian(lambda y: model.discriminator(y).sum(), at)
    assert torch.allclose(value, expected, rtol=1e-5)
    assert torch.allclose(penalty, 2.0 * wanted(slope), rtol=1e-4)
    z = torch.randn(5, 2, generator=seeded(4))
    judged = model.discriminator(model.generator(z))
    expected = -judged.mean() if loss == "wasserstein" else (1 + (-judged).exp()).log().mean()
    assert torch.allclose(model.generator_loss(z), expected, rtol=1e-5)


def test_images_go_through_convolutions_and_small_ones_do_not():
    assert GAN((28, 28)).settings["architecture"] == "convolutional"
    assert GAN((3, 16, 16)).sample(2)[1].shape == (2, 3 * 16 * 16)
    assert GAN((8, 8)).settings["architecture"] == GAN((30, 30)).settings["architecture"] == "dense"


def test_each_code_is_decoded_on_its_own():
    model, z = GAN((28, 28), generator=seeded()).double(), torch.randn(5, 2, generator=seeded()).double()
    assert torch.allclose(model.generator(z)[2:3], model.generator(z[2:3]), atol=1e-12)


@quiet
def test_an_interrupted_and_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, monkeypatch):
    data = digits()[slice(0, 128)]
    settings = {"epochs": 4, "batch_size": 32}
    whole = GAN((8, 8)).fit(data, **settings)

    def stopped(samples, step, **keywords):
        done = []

        def counted(x, epoch):
            done.append(epoch)
            if len(done) == 7:
                raise KeyboardInterrupt
            return step(x, epoch)

        return loop.fit(samples, counted, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(gan, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            GAN((8, 8)).fit(data, folder=tmp_path, **settings)
    resumed = GAN((8, 8)).fit(data, folder=tmp_path, **settings)
    assert same(whole, resumed)
    assert whole.history == resumed.history
    with pytest.raises(ValueError, match="seed"):
        GAN((8, 8)).fit(data, folder=tmp_path, seed=1, **settings)


@quiet
def test_the_global_random_state_is_not_touched_and_a_saved_model_is_loaded(tmp_path):
    before = torch.get_rng_state()
    model = GAN((8, 8), generator=seeded()).fit(digits()[slice(0, 100)], epochs=2)
    model.save(tmp_path)
    loaded = GAN.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(model, loaded)
    assert loaded.history == model.history
    assert not loaded.training


def test_samples_that_are_all_alike_are_warned_of(monkeypatch):
    data = digits()[slice(0, 200)]
    with pytest.warns(ModeCollapseWarning, match="hardly differ: they visit"):
        GAN((8, 8)).fit(data, epochs=1, learning_rate=1e-6)


def test_coverage_is_one_for_a_generator_that_draws_the_data():
    class Data(torch.nn.Module):
        def forward(self, z):
            return digits().samples[(torch.special.ndtr(z[:, 0]) * 1797).long().clamp_max(1796)]

    model = GAN((8, 8))
    model.generator = Data()
    assert model.coverage(digits().samples) == 1.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sample_shape": (8, 8), "loss": "hinge"}, "`loss` is 'hinge'"),
        ({"sample_shape": (0, 8)}, r"`sample_shape` is \(0, 8\)"),
        ({"sample_shape": (30, 30), "architecture": "convolutional"}, "multiples of 4"),
        ({"sample_shape": (28, 28), "architecture": "convolutional", "output": "linear"}, "`output` is 'linear'"),
        ({"sample_shape": (8, 8), "architecture": "transformer"}, "`architecture` is 'transformer'"),
    ],
)
def test_unfit_settings_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        GAN(**arguments)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"penalty": -1.0}, "`penalty` is -1.0"),
        ({"discriminator_steps": 0}, "`discriminator_steps` is 0"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"epochs": 0}, "`epochs`"),
    ],
)
def test_unfit_settings_of_a_training_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        GAN((8, 8)).fit(digits()[slice(0, 64)], **settings)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"samples of shape \(8, 8\), but the model makes \(4, 4\)"):
        GAN((4, 4)).fit(digits())
    with pytest.raises(ValueError, match="NaN"):
        GAN((2,), output="linear").fit(Dataset(torch.full((5, 2), torch.nan), None, (2,), "bad"))
    with pytest.raises(ValueError, match="sigmoid"):
        GAN((2,)).fit(ring())


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("PULLBACK_DATA"), reason="PULLBACK_DATA is not set")
def test_convolutions_learn_two_digits_of_mnist():
    data = mnist(classes=(0, 1))[slice(0, 3000)]
    model = GAN((28, 28)).fit(data[slice(0, 2700)], epochs=12)
    held = data[slice(2700, 3000)].samples
    made = model.sample(300, generator=seeded())[1]
    raw = GAN((28, 28), generator=seeded()).sample(300, generator=seeded())[1]
    assert energy_distance(made, held) < 0.25 * energy_distance(raw, held)
    assert model.coverage(held) >= 0.5
