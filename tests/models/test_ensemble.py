import pytest
import torch

import pullback as pb
from pullback import datasets
from pullback.datasets import Dataset
from pullback.models import VAE, Autoencoder, DecoderEnsemble, ensemble


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def circle(n=80):
    """Codes on a circle, data a smooth map of them."""
    angle = torch.linspace(0, 6.28, n)
    codes = 5 * torch.stack([angle.cos(), angle.sin()], 1) + 20
    return Dataset(
        torch.stack([angle.cos(), angle.sin(), (2 * angle).sin()], 1) * 0.4 + 0.5, None, (3,), "circle"
    ), codes


def test_members_agree_on_the_codes_and_differ_away_from_them():
    data, codes = circle()
    model = DecoderEnsemble(3, members=3, output="linear").fit(
        data, codes, epochs=100, batch_size=20, learning_rate=0.01
    )
    near, far = codes, 20 + 6 * (codes - 20)

    def spread(z):
        return torch.stack([decoder(z) for decoder in model.decoders]).std(0).mean().detach()

    assert float(spread(near)) < 0.05
    assert float(spread(far)) > 4 * float(spread(near))
    error = (model.decoders[0](codes) - data.samples).square().mean().detach()
    assert float(error) < 0.02 * float(data.samples.var(0).mean())


def test_the_metric_of_the_ensemble_is_the_mean_of_those_of_its_members():
    data, codes = circle()
    model = DecoderEnsemble(3, members=3).fit(data, codes, epochs=20).double()
    z = codes[:5].double()
    wanted = torch.stack([pb.Pullback(decoder).matrix(z) for decoder in model.decoders]).mean(0)
    assert torch.allclose(pb.Pullback(pb.Ensemble(list(model.decoders))).matrix(z), wanted, rtol=1e-10)


def test_members_have_weights_and_batches_of_their_own():
    orders = DecoderEnsemble(3, members=3)._orders(50, seed=1, bootstrap=False)
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    data, codes = circle()
    model = DecoderEnsemble(3, members=3).fit(data, codes, epochs=1)
    weights = [decoder[0].weight for decoder in model.decoders]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_bootstrap_draws_as_many_samples_with_replacement():
    orders = DecoderEnsemble(3, members=5)._orders(1000, seed=1, bootstrap=True)
    shares = [len(order.unique()) / 1000 for order in orders]
    assert shares == pytest.approx([1 - 1 / torch.e] * 5, abs=0.05)
    data, codes = circle()
    plain, resampled = (DecoderEnsemble(3, members=2).fit(data, codes, epochs=2, bootstrap=b) for b in (False, True))
    assert not torch.equal(plain.decoders[0][0].weight, resampled.decoders[0][0].weight)


def test_drawn_codes_smooth_the_decoders():
    # the mean of the data over N(z, s^2) is flatter than the data: cos shrinks by exp(-s^2 / 2)
    z = torch.linspace(-3.1, 3.1, 400)[:, None]
    data = Dataset(z.cos(), None, (1,), "cosine")
    settings = {"epochs": 100, "batch_size": 100, "learning_rate": 0.01}
    model = DecoderEnsemble(1, 1, members=2, output="linear")
    middle = torch.zeros(1, 1)
    sharp = float(model.fit(data, z, **settings).decoders[0](middle).detach())
    smooth = float(model.fit(data, z, torch.full_like(z, 0.7), **settings).decoders[0](middle).detach())
    assert sharp == pytest.approx(1, abs=0.05)
    assert smooth == pytest.approx(0.78, abs=0.08)


def test_the_encoder_is_not_changed():
    data = datasets.digits()[slice(0, 200)]
    vae = VAE(64, generator=seeded()).eval()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    DecoderEnsemble(64, members=2).fit(data, *vae.encode(data.samples), epochs=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")
def test_members_decode_digits_far_better_than_the_mean_image():
    data = datasets.digits()
    codes = Autoencoder(64).fit(data, epochs=20, batch_size=64, learning_rate=5e-3).encode(data.samples).detach()
    model = DecoderEnsemble(64, members=3).fit(data, codes, epochs=10, batch_size=64, learning_rate=5e-3).double()
    variance = float(data.samples.var(0, correction=0).mean())
    for decoder in model.decoders:
        assert float((decoder(codes.double()) - data.samples).square().mean().detach()) < 0.75 * variance
    metric = pb.Pullback(pb.Ensemble(list(model.decoders)))
    pairs = codes.double()[torch.randint(len(codes), (2, 4), generator=seeded(1))]
    assert bool(pb.geodesic(metric, *pairs).converged.all())


def test_other_codes_in_the_folder_are_refused(tmp_path):
    data, codes = circle()
    DecoderEnsemble(3, members=2).fit(data, codes, epochs=1, folder=tmp_path)
    for other in ((codes + 1,), (codes, torch.ones_like(codes))):
        with pytest.raises(ValueError, match=r"other training: (codes|spread)"):
            DecoderEnsemble(3, members=2).fit(data, *other, epochs=1, folder=tmp_path)


def test_codes_that_cannot_be_decoded_are_refused():
    data, codes = circle()
    holes = codes.clone()
    holes[2] = torch.nan
    bad = [
        ((codes[:-1],), r"`codes` has shape \(79, 2\): wanted \(80, 2\), one code for each sample"),
        ((codes[:, :1],), r"`codes` has shape \(80, 1\)"),
        ((holes,), "`codes` holds NaN or inf"),
        ((codes, codes[:3]), r"`spread` has shape \(3, 2\)"),
        ((codes, -codes), "`spread` has negative numbers"),
        ((codes[:1].repeat(80, 1),), "`codes` are 80 times the same"),
    ]
    for wrong, message in bad:
        with pytest.raises(ValueError, match=message):
            DecoderEnsemble(3).fit(data, *wrong)
    with pytest.raises(ValueError, match="`members` is 0: wanted at least 1"):
        DecoderEnsemble(3, members=0)


def test_members_that_begin_alike_part_by_the_order_of_what_they_see(monkeypatch):
    layers = ensemble.decoder_layers
    monkeypatch.setattr(ensemble, "decoder_layers", lambda d, hidden, D, _, link: layers(d, hidden, D, seeded(), link))
    first, second = DecoderEnsemble(3, members=2).decoders
    assert torch.equal(first[0].weight, second[0].weight)
    data, codes = circle()
    first, second = DecoderEnsemble(3, members=2).fit(data, codes, epochs=2, batch_size=20).decoders
    assert not torch.equal(first[0].weight, second[0].weight)
