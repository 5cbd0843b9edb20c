"""Two models of a decoder's variance, trained alike: a network with softplus output, and radial basis functions.

Both give a variance at codes (n, d): (n, D), one a dimension of the data, or (n, 1), one for all of them. Encoder and
mean are frozen, and both see the same loss at the same codes with the same floor added to the variance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pullback.models import RBFPrecision

Draw = Callable[[Tensor, Generator], tuple[Tensor, Tensor]]  # samples to codes (n, d) and residuals (n, D)


def layers(widths: Sequence[int], activation: type[nn.Module], seed: int) -> nn.Sequential:
    """Linear layers with an activation between them; torch's global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*parts[:-1])


class StandardVariance(nn.Module):
    """A network with softplus output, which is read as the variance or as the standard deviation."""

    def __init__(self, net: nn.Sequential, *, reads: str = "variance") -> None:
        super().__init__()
        self.net, self.power = net, {"variance": 1, "std": 2}[reads]

    def variance(self, z: Tensor) -> Tensor:
        """(n, d) -> (n, D) or (n, 1)."""
        return F.softplus(self.net(z)).pow(self.power)

    def forward(self, z: Tensor) -> Tensor:
        """The standard deviation, as :class:`pullback.Gaussian` wants it."""
        return self.variance(z).sqrt()


Model = StandardVariance | RBFPrecision


def variance(model: Model, z: Tensor, floor: float) -> Tensor:
    """Of a model, plus the floor: (n, d) -> (n, D) or (n, 1)."""
    return floor + (1 / model.precision(z) if isinstance(model, RBFPrecision) else model.variance(z))


def loss(v: Tensor, residual: Tensor) -> Tensor:
    """Gaussian negative log likelihood of residuals under a variance, constants dropped, mean over samples."""
    squares, n = _squares(residual, v)
    return 0.5 * (squares / v + n * v.log()).sum(-1).mean()


def fit(
    model: Model,
    x: Tensor,
    draw: Draw,
    *,
    floor: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    validation: Tensor | None = None,
) -> int:
    """Train a model by Adam, weights of radial basis functions projected to be non-negative; returns the epochs kept.

    With ``validation`` samples the weights of the epoch that is best on these are kept, otherwise the last.
    """
    generator = Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best, kept, weights = float("inf"), epochs, None
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            z, residual = draw(x[batch], generator)
            optimizer.zero_grad()
            v = variance(model, z, floor)
            v.backward(_gradient(v.detach(), residual))
            optimizer.step()
            if isinstance(model, RBFPrecision):
                model.project()
        if validation is not None:
            with torch.no_grad():
                z, residual = draw(validation, Generator().manual_seed(seed))
                now = loss(variance(model, z, floor), residual).item()
            if now < best:
                best, kept, weights = now, epoch + 1, copy.deepcopy(model.state_dict())
    if weights is not None:
        model.load_state_dict(weights)
    return kept


def _gradient(v: Tensor, residual: Tensor) -> Tensor:
    """Of the loss by the variance: half the time of a step would go into differentiating it."""
    squares, n = _squares(residual, v)
    return (n - squares / v) / v / (2 * len(v))


def _squares(residual: Tensor, v: Tensor) -> tuple[Tensor, int]:
    """Squared residuals of each variance, summed where dimensions share one, and how many dimensions that are."""
    squares = residual.square()
    return (squares, 1) if v.shape[1] == squares.shape[1] else (squares.sum(1, keepdim=True), squares.shape[1])
