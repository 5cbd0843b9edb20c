"""A decoder that counts: a forward pass 1 a point, a tangent 1 more, a cotangent pulled back 2 more."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Counting(nn.Module):
    """Wraps a decoder; ``evaluations`` is the running total."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.evaluations = 0

    def forward(self, z: Tensor) -> Tensor:
        self.evaluations += len(z)
        return _Seen.apply(self.decoder(z), self)

    def reset(self) -> int:
        """The total so far; start again from zero."""
        total, self.evaluations = self.evaluations, 0
        return total


class _Seen(torch.autograd.Function):
    """The identity; its derivatives count."""

    @staticmethod
    def forward(x: Tensor, counter: Counting) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.counter = inputs[1]

    @staticmethod
    def backward(ctx, pulled: Tensor):
        return _Pulled.apply(pulled, ctx.counter), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _):
        ctx.counter.evaluations += len(tangent)
        return tangent.view_as(tangent)


class _Pulled(torch.autograd.Function):
    """The identity on cotangents; differentiating it again pushes a tangent through."""

    @staticmethod
    def forward(pulled: Tensor, counter: Counting) -> Tensor:
        counter.evaluations += 2 * len(pulled)
        return pulled.view_as(pulled)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.counter = inputs[1]

    @staticmethod
    def backward(ctx, tangent: Tensor):
        ctx.counter.evaluations += len(tangent)
        return tangent, None
