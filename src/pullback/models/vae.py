"""A small variational autoencoder whose codes fill a unit Gaussian: the model that the geometry is measured on."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from pullback.types import Points

OUTPUTS = ("sigmoid", "linear")


class VAE(nn.Module):
    r"""A Gaussian variational autoencoder with tanh layers and constant output variance.

    Encoder: data, tanh layers of the widths ``hidden``, then two heads, mean :math:`m(x)` (linear) and standard
    deviation :math:`s(x)` (softplus). Decoder: the same widths reversed, then a sigmoid (data in [0, 1]) or nothing.
    Every part is smooth, as a metric with curvature needs it.

    Args:
        data_dim: D, length of a flattened sample.
        latent_dim: d, length of a code.
        hidden: Widths of the encoder's hidden layers, at least one.
        output: ``"sigmoid"`` or ``"linear"``: what ends the decoder.
        generator: Source of the initial weights, uniform in :math:`\pm 1/\sqrt{\text{inputs}}`; default: torch's
            global one.

    Raises:
        ValueError: A width is below one, ``hidden`` is empty or ``output`` unknown.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), appendix D: widths and activations. :cite:`oddity`

    Example:
        >>> vae = VAE(784)
        >>> vae.decoder(torch.zeros(5, 2)).shape
        torch.Size([5, 784])
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        hidden: Sequence[int] = (64, 32),
        *,
        output: str = "sigmoid",
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if min(data_dim, latent_dim, *hidden, len(hidden)) < 1:
            raise ValueError(
                f"`data_dim`, `latent_dim`, `hidden` are {data_dim}, {latent_dim}, {tuple(hidden)}: "
                "wanted widths of at least 1, and at least one hidden layer"
            )
        if output not in OUTPUTS:
            raise ValueError(f"`output` is {output!r}: wanted one of {', '.join(OUTPUTS)}")
        widths = (data_dim, *hidden)
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.trunk = _tanh_layers(widths, generator)
        self.mean = _linear(widths[-1], latent_dim, generator)
        self.std = nn.Sequential(_linear(widths[-1], latent_dim, generator), nn.Softplus())
        self.decoder = _tanh_layers((latent_dim, *reversed(hidden)), generator)
        self.decoder.append(_linear(widths[1], data_dim, generator))
        if output == "sigmoid":
            self.decoder.append(nn.Sigmoid())

    def encode(self, x: Float[Tensor, "n D"]) -> tuple[Points, Points]:
        """Mean and standard deviation of the code of each sample: (n, D) -> (n, d), (n, d)."""
        hidden = self.trunk(x)
        return self.mean(hidden), self.std(hidden)

    def sample(self, x: Float[Tensor, "n D"], *, generator: Generator | None = None) -> Points:
        """One code of each sample, drawn from the encoder: (n, D) -> (n, d)."""
        mean, std = self.encode(x)
        return mean + std * _noise_like(mean, generator)

    @torch.no_grad()
    def in_units_of(self, shift: Float[Tensor, " D"], scale: Tensor) -> None:
        """Make a model of (x - shift) / scale, with a linear output, the same model of x."""
        first, last = cast(nn.Linear, self.trunk[0]), cast(nn.Linear, self.decoder[-1])
        first.weight.div_(scale)
        first.bias.sub_(first.weight @ shift)
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(shift)

    def loss(
        self,
        x: Float[Tensor, "n D"],
        *,
        output_std: float = 1.0,
        warmup: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Negative evidence lower bound with constant output variance, in nats, constants dropped; mean over samples.

        .. math::
            \frac{|x - \mu(z)|^2}{2 \sigma^2} + r\, \tfrac12 \sum_i (m_i^2 + s_i^2 - \log s_i^2 - 1),
            \qquad z = m + s \epsilon

        Args:
            x: Samples (n, D).
            output_std: :math:`\sigma`, in units of the data.
            warmup: r, weight of the divergence; ramped from 0 to 1 it keeps latent dimensions from collapsing.
            generator: Source of the noise; default: torch's global one.

        Returns:
            A scalar. Cost: one forward pass of encoder and decoder.
        """
        mean, std = self.encode(x)
        z = mean + std * _noise_like(mean, generator)
        reconstruction = 0.5 / output_std**2 * (x - self.decoder(z)).square().sum(-1)
        divergence = 0.5 * (mean.square() + std.square() - 1).sum(-1) - std.log().sum(-1)
        return (reconstruction + warmup * divergence).mean()


def _tanh_layers(widths: Sequence[int], generator: Generator | None) -> nn.Sequential:
    layers = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        layers.append(_linear(inputs, outputs, generator)).append(nn.Tanh())
    return layers


def _linear(inputs: int, outputs: int, generator: Generator | None) -> nn.Linear:
    """A linear layer whose initial weights come from the generator alone: the global one is not touched."""
    layer = nn.Linear(inputs, outputs, device="meta")  # no storage, so nothing is drawn for it
    bound = 1 / math.sqrt(inputs)
    for name, parameter in list(layer.named_parameters()):
        initial = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        setattr(layer, name, nn.Parameter(initial))
    return layer


def _noise_like(x: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
