r"""Discrete curves in feature space: chords between decoded nodes, and the length and energy of parabolas through them.

From T + 1 samples of a curve both are computed from chords: with :math:`E_T = \tfrac T2 \sum_i |x_{i+1} - x_i|^2`,
:math:`(4 E_T - E_{T/2}) / 3` is the energy of the curve that is a parabola on each pair of segments (quadratic finite
elements). It is exact to fourth order, costs no more than :math:`E_T`, and is never below it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from pullback.types import Features, Scalars


def root(square: Tensor) -> Tensor:
    """The square root of a squared length; its derivative at zero is zero, as that of a norm."""
    zero = square <= 0  # NaN stays NaN
    return torch.where(zero, 1, square).sqrt().masked_fill(zero, 0)


def chord_energy(single: Tensor, double: Tensor) -> Scalars:
    """The energy (...) from squared chords (..., T) and, if T is even, squared double chords (..., T/2)."""
    n = single.shape[-1]
    if n % 2:
        return 0.5 * n * single.sum(-1)
    return n * (4 * single.sum(-1) - 0.5 * double.sum(-1)) / 6


def chord_length(single: Tensor, double: Tensor) -> Scalars:
    """The length (...) from squared chords (..., T) and, if T is even, squared double chords (..., T/2)."""
    if single.shape[-1] % 2:
        return root(single).sum(-1)
    return (4 * root(single).sum(-1) - root(double).sum(-1)) / 3


def even_parameters(single: Tensor, n: int) -> Tensor:
    """Parameters (B, n - 1) that cut curves into n parts of equal length, from squared chords (B, T) at equal steps.

    Where a curve has no length, or none that is finite, these are equal steps.
    """
    n_samples = single.shape[1]
    length = torch.nn.functional.pad(single.sqrt().cumsum(1), (1, 0))
    share = length / length[:, -1:].clamp_min(torch.finfo(length.dtype).tiny)
    wanted = torch.arange(1, n, dtype=single.dtype, device=single.device).div(n).expand(len(single), -1).contiguous()
    right = torch.searchsorted(share, wanted).clamp(1, n_samples)
    low, high = share.gather(1, right - 1), share.gather(1, right)
    t = (right - 1 + (wanted - low) / (high - low).clamp_min(torch.finfo(single.dtype).tiny)) / n_samples
    return torch.where((length[:, -1:] > 0) & torch.isfinite(length[:, -1:]), t, wanted).clamp(0, 1)


def squared_chords(x: Features) -> tuple[Tensor, Tensor]:
    """|x_{i+1} - x_i|^2 (..., T) and |x_{2i+2} - x_{2i}|^2 (..., T // 2) of nodes x (..., T + 1, D)."""
    return _SquaredChords.apply(x)  # pyright: ignore[reportReturnType]


def energy_and_cotangent(x: Features, start: Features, end: Features) -> tuple[Scalars, Features]:
    """The energy (B,) of curves and its derivative (B, n, D) by their inner nodes.

    The energy is a quadratic form in the nodes: one product with its matrix, and no graph.

    Args:
        x: Inner nodes (B, n, D), n odd.
        start: The first node (B, D).
        end: The last node (B, D).
    """
    n = x.shape[1]
    u = x - start[:, None]  # the energy does not see the origin; rounding does
    last = (end - start)[:, None]
    form = _form(n + 1).to(u)
    if n < _LARGE:
        pull = form[:-1, :-1] @ u
    else:  # the matrix is zero but for a band
        pull = torch.empty_like(u)
        for first in range(0, n, _LARGE):
            rows, columns = slice(first, min(first + _LARGE, n)), slice(max(first - 2, 0), min(first + _LARGE + 2, n))
            pull[:, rows] = form[rows, columns] @ u[:, columns]
    pull[:, -2:] += form[-3:-1, -1:][-pull.shape[1] :] * last
    at_end = form[-1:, -3:-1][:, -u.shape[1] :] @ u[:, -2:] + form[-1, -1] * last
    twice = torch.linalg.vecdot(u.flatten(1), pull.flatten(1)) + torch.linalg.vecdot(last[:, 0], at_end[:, 0])
    return 0.5 * twice, pull


_LARGE = 32  # rows of the form to multiply with at once


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # others use it with gradients
def _form(n: int) -> Tensor:
    """The matrix (n, n) of twice the energy by nodes 1 .. n (even) when node 0 is zero, float64.

    Element (2j, 2j+1, 2j+2) adds n/6 [7 -8 1; -8 16 -8; 1 -8 7].
    """
    element = torch.tensor([[7, -8, 1], [-8, 16, -8], [1, -8, 7]], dtype=torch.float64, device="cpu") * (n / 6)
    form = torch.zeros(n + 1, n + 1, dtype=torch.float64, device="cpu")
    for i in range(0, n, 2):
        form[i : i + 3, i : i + 3] += element
    return form[1:, 1:].clone()


class _SquaredChords(torch.autograd.Function):
    """|x_{i+1} - x_i|^2 and |x_{2i+2} - x_{2i}|^2, with fewer passes over x than automatic ones take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        single, double = _chords(x)
        return torch.linalg.vector_norm(single, dim=-1).square(), torch.linalg.vector_norm(double, dim=-1).square()

    @staticmethod
    def backward(ctx: Any, to_single: Tensor, to_double: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        single, double = _chords(x)
        last = single.shape[-2] // 2 * 2
        pull = single * (2 * to_single[..., None])
        both = double * (2 * to_double[..., None])
        pull[..., 0:last:2, :] += both
        pull[..., 1:last:2, :] += both
        return torch.cat((-pull[..., :1, :], pull[..., :-1, :] - pull[..., 1:, :], pull[..., -1:, :]), -2)


def _chords(x: Tensor) -> tuple[Tensor, Tensor]:
    single = x[..., 1:, :] - x[..., :-1, :]
    last = single.shape[-2] // 2 * 2
    return single, single[..., 0:last:2, :] + single[..., 1:last:2, :]
