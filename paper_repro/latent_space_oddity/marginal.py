r"""The marginal likelihood p(x) = E N(x; mu(z), sigma^2(z)) over z ~ N(0, I) of a decoder, by three estimators.

All want float64: where a variance is small, terms of an image's log density are millions and cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from variance import Model, variance

Decoder = Callable[[Tensor], Tensor]  # codes (n, d) to the mean of the data (n, D)
CHUNK = 2000  # codes at once


def prior_samples(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes (n, 2) drawn from the prior and the logarithms of their weights, all 1/n."""
    z = torch.randn(n, 2, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return z, torch.full((n,), -math.log(n), dtype=torch.float64)


def quadrature(half: float, n: int) -> tuple[Tensor, Tensor]:
    """Nodes (n^2, 2) of a square grid and the logarithms of the prior's mass in their cells."""
    steps = torch.linspace(-half, half, n, dtype=torch.float64)
    z = torch.cartesian_prod(steps, steps)
    return z, -0.5 * z.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(2 * half / (n - 1))


@torch.no_grad()
def log_likelihood(
    x: Tensor, decoder: Decoder, model: Model, floor: float, z: Tensor, log_weights: Tensor
) -> tuple[Tensor, Tensor]:
    r"""log sum_s w_s N(x; mu(z_s), sigma^2(z_s)) of images (n, D), and which code has the largest share: (n,), (n,)."""
    sums, largest, which = [], [], []
    for codes, weights in zip(z.split(CHUNK), log_weights.split(CHUNK), strict=True):
        mu, beta = decoder(codes), 1 / variance(model, codes, floor).expand(-1, x.shape[1])
        # |x - mu|^2 expanded around black, -1, where most pixels are, so that little cancels
        log_norm = 0.5 * (beta.log().sum(1) - (beta * (mu + 1).square()).sum(1) - x.shape[1] * math.log(2 * math.pi))
        terms = (x + 1) @ (beta * (mu + 1)).T - 0.5 * (x + 1).square() @ beta.T + log_norm + weights
        sums.append(terms.logsumexp(1))
        top = terms.max(1)
        largest.append(top.values)
        which.append(top.indices + CHUNK * len(which))
    best = torch.stack(largest).argmax(0, keepdim=True)
    return torch.stack(sums).logsumexp(0), torch.stack(which).gather(0, best)[0]


@torch.no_grad()
def by_importance(
    x: Tensor, proposal: tuple[Tensor, Tensor], decoder: Decoder, model: Model, floor: float, *, n: int, seed: int
) -> Tensor:
    """The same by importance sampling: n codes an image from a normal of its own, mean and standard deviation given."""
    generator = Generator().manual_seed(seed)
    m, s = proposal
    terms = []
    for _ in range(n):
        noise = torch.randn(m.shape, generator=generator, dtype=torch.float64)
        z = m + s * noise
        v = variance(model, z, floor).expand_as(x)
        density = -0.5 * ((x - decoder(z)).square() / v + v.log() + math.log(2 * math.pi)).sum(1)
        terms.append(density + (0.5 * noise.square() - 0.5 * z.square() + s.log()).sum(1))
    return torch.stack(terms).logsumexp(0) - math.log(n)
