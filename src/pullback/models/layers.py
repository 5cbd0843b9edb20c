"""Smooth fully connected layers whose initial weights come from a generator of their own."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

OUTPUTS = ("sigmoid", "linear")


def check_widths(data_dim: int, latent_dim: int, hidden: Sequence[int]) -> None:
    """Raise ValueError if a width is below one or there is no hidden layer."""
    if min(data_dim, latent_dim, *hidden, len(hidden)) < 1:
        raise ValueError(
            f"`data_dim`, `latent_dim`, `hidden` are {data_dim}, {latent_dim}, {tuple(hidden)}: "
            "wanted widths of at least 1, and at least one hidden layer"
        )


def check_output(output: str) -> None:
    """Raise ValueError if a decoder cannot end like this."""
    if output not in OUTPUTS:
        raise ValueError(f"`output` is {output!r}: wanted one of {', '.join(OUTPUTS)}")


def linear(inputs: int, outputs: int, generator: Generator | None) -> nn.Linear:
    """A linear layer whose initial weights come from the generator alone: the global one is not touched."""
    layer = nn.Linear(inputs, outputs, device="meta")  # no storage, so nothing is drawn for it
    bound = 1 / math.sqrt(inputs)
    for name, parameter in list(layer.named_parameters()):
        initial = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        setattr(layer, name, nn.Parameter(initial))
    return layer


def tanh_layers(widths: Sequence[int], generator: Generator | None) -> nn.Sequential:
    """A linear layer and a tanh for each pair of neighboring widths."""
    layers = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        layers.append(linear(inputs, outputs, generator)).append(nn.Tanh())
    return layers


def decoder_layers(
    latent_dim: int, hidden: Sequence[int], data_dim: int, generator: Generator | None, link: nn.Module | None = None
) -> nn.Sequential:
    """Tanh layers of the widths ``hidden`` reversed, a linear one, and the link if there is one: (n, d) -> (n, D)."""
    layers = tanh_layers((latent_dim, *reversed(hidden)), generator)
    layers.append(linear(hidden[0], data_dim, generator))
    return layers if link is None else layers.append(link)


def link(output: str) -> nn.Module | None:
    """What ends a decoder of this output."""
    return nn.Sigmoid() if output == "sigmoid" else None


def noise_like(x: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal noise; the same on every device if the generator is on the CPU."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


@torch.no_grad()
def take_units(layer: nn.Linear, shift: Float[Tensor, " inputs"], scale: Tensor) -> None:
    """Make a layer of (x - shift) / scale the same layer of x."""
    layer.weight.div_(scale.to(layer.weight))
    layer.bias.sub_(layer.weight @ shift.to(layer.weight))


@torch.no_grad()
def give_units(layer: nn.Linear, shift: Float[Tensor, " outputs"], scale: Tensor) -> None:
    """Let a layer that returned y return scale * y + shift."""
    layer.weight.mul_(scale.to(layer.weight))
    layer.bias.mul_(scale.to(layer.weight)).add_(shift.to(layer.weight))
