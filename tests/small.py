"""Small decoders and metrics that many tests need."""

import torch
from torch import nn

from pullback.metrics import Metric

F64 = torch.float64


def randn(*shape, seed=0):
    """Standard normal numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, n_features=7, *, width=16, activation=nn.Tanh, seed=0):
    """A smooth random decoder; the global generator stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, width), activation(), nn.Linear(width, n_features)).double()


class Bowl(nn.Module):
    """A matrix for each point: positive definite, not diagonal, different everywhere; of no known immersion."""

    def forward(self, z):
        outer, waves = (x[:, :, None] * x[:, None, :] for x in (z, z.sin()))
        return torch.eye(z.shape[1], dtype=z.dtype, device=z.device) + waves + 0.5 * outer


def tilt(z):
    """A conformal factor (n,)."""
    return (0.3 * z[:, 0] - 0.2 * z[:, 1]).exp()


class Diagonal(Metric):
    """Weights of the outputs that grow with the first one: a metric of R^D by inner products alone."""

    def __init__(self, n_features=7):
        super().__init__()
        self.register_buffer("weights", torch.linspace(0.5, 2.0, n_features, dtype=F64))

    def heights(self, x):
        return self.weights.to(x) * (0.3 * x[..., :1]).exp()

    def inner(self, z, u, v):
        return (self.heights(z) * u * v).sum(-1)

    def matrix(self, z):
        raise RuntimeError("a D x D matrix was formed")
