import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pullback.models import VAE


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_codes_and_decoded_samples_have_their_shapes():
    vae = VAE(30, 3, (8, 5), generator=generator())
    mean, std = vae.encode(torch.rand(7, 30))
    assert mean.shape == std.shape == (7, 3)
    assert bool((std > 0).all())
    assert vae.decoder(torch.randn(7, 3)).shape == (7, 30)


def test_the_decoder_has_the_layers_of_the_encoder_reversed():
    vae = VAE(784, 2)
    widths = [tuple(layer.weight.shape[::-1]) for layer in vae.modules() if isinstance(layer, torch.nn.Linear)]
    assert widths == [(784, 64), (64, 32), (32, 2), (32, 2), (2, 32), (32, 64), (64, 784)]


def test_a_sigmoid_stays_between_0_and_1_and_a_linear_output_does_not():
    z = 50 * torch.randn(100, 2, generator=generator())
    outputs = (VAE(20, output=output, generator=generator()).decoder(z) for output in ("sigmoid", "linear"))
    bounded, free = (x.detach() for x in outputs)
    assert float(bounded.min()) >= 0
    assert float(bounded.max()) <= 1
    assert float(free.min()) < 0
    assert torch.allclose(free.sigmoid(), bounded)


def test_the_loss_is_the_evidence_bound_of_a_gaussian_without_its_constants():
    vae = VAE(20, 2, (6,), generator=generator()).double()
    x = torch.rand(9, 20, dtype=torch.float64)
    mean, std = vae.encode(x)
    divergence = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(-1).mean()
    z = mean + std * torch.randn(9, 2, dtype=torch.float64, generator=generator(5))
    for warmup, output_std in ((0.0, 1.0), (0.3, 1.0), (1.0, 0.2)):
        log_likelihood = Normal(vae.decoder(z), output_std).log_prob(x) + math.log(output_std * math.sqrt(2 * math.pi))
        loss = vae.loss(x, output_std=output_std, warmup=warmup, generator=generator(5))
        assert torch.allclose(loss, warmup * divergence - log_likelihood.sum(-1).mean())


def test_codes_are_sampled_with_the_mean_and_spread_of_the_encoder():
    vae = VAE(20, 2, (6,), generator=generator()).double()
    x = torch.rand(1, 20, dtype=torch.float64)
    mean, std = vae.encode(x)
    z = vae.sample(x.expand(20000, 20), generator=generator(1))
    assert torch.allclose(z.mean(0), mean[0], atol=0.05)
    assert torch.allclose(z.std(0), std[0], rtol=0.05)


def test_the_same_generator_gives_the_same_weights_and_the_global_one_is_untouched():
    before = torch.get_rng_state()
    a, b, other = (VAE(20, generator=generator(seed)) for seed in (1, 1, 2))
    a.loss(torch.rand(3, 20, generator=generator()), generator=generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.mean.weight, other.mean.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_dim": 0}, "wanted widths of at least 1"),
        ({"data_dim": 3, "latent_dim": 0}, "wanted widths of at least 1"),
        ({"data_dim": 3, "hidden": (4, 0)}, "wanted widths of at least 1"),
        ({"data_dim": 3, "hidden": ()}, "at least one hidden layer"),
        ({"data_dim": 3, "output": "relu"}, "`output` is 'relu': wanted one of sigmoid, linear"),
    ],
)
def test_impossible_widths_and_outputs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)
