"""Batched Cholesky factorization of symmetric positive definite block-tridiagonal matrices.

    H = [ D_0  C_0            ]      D (..., n, k, k): diagonal blocks
        [ C_0' D_1  C_1       ]      C (..., n - 1, k, k): blocks above the diagonal
        [      C_1' D_2  ...  ]

One matrix for each leading index. Cost: n steps of batched k x k factorizations, O(n k^3) arithmetic, O(n k^2) memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Factor(NamedTuple):
    """H = L L' with L lower block-bidiagonal, as what solving multiplies with: small blocks are inverted once."""

    inverse: Tensor  # (B, n, k, k), the inverses of the diagonal blocks of L
    down: Tensor  # (B, n - 1, k, k), L_i^{-1} L_{i, i-1}
    up: Tensor  # (B, n - 1, k, k), (L_{i+1, i} L_i^{-1})'
    shift: Tensor  # (B,), what was added to the diagonal to make H positive definite, relative to its mean


def factor(diagonal: Tensor, above: Tensor, *, shift: float) -> Factor:
    """Factor H + shift * mean(diag H), with more shift for those matrices that are not positive definite.

    Args:
        diagonal: (B, n, k, k).
        above: (B, n - 1, k, k).
        shift: The smallest relative shift; it keeps singular matrices solvable.
    """
    mean = diagonal.diagonal(dim1=-2, dim2=-1).mean((-2, -1)).clamp_min(torch.finfo(diagonal.dtype).tiny)
    shifts = torch.full_like(mean, shift)
    inverse, below, ok = _inverses(diagonal, above, shifts * mean)
    for _ in range(11):  # a shift of 1 makes any diagonally scaled H definite long before
        todo = (~ok).nonzero().reshape(-1)
        if not len(todo):
            break
        shifts[todo] = (10 * shifts[todo]).clamp_min(1e-4)
        inverse[todo], below[todo], ok[todo] = _inverses(diagonal[todo], above[todo], (shifts * mean)[todo])
    return Factor(inverse, inverse[:, 1:] @ below.mT, inverse[:, :-1].mT @ below, shifts)


def solve(h: Factor, right: Tensor) -> Tensor:
    """H^{-1} right for right (B, n, k)."""
    n = right.shape[1]
    steps = list((h.inverse @ right[..., None]).unbind(1))
    for i in range(1, n):
        steps[i] = torch.baddbmm(steps[i], h.down[:, i - 1], steps[i - 1], alpha=-1)
    steps = list((h.inverse.mT @ torch.stack(steps, 1)).unbind(1))
    for i in reversed(range(n - 1)):
        steps[i] = torch.baddbmm(steps[i], h.up[:, i], steps[i + 1], alpha=-1)
    return torch.cat(steps, -1).mT


def _inverses(diagonal: Tensor, above: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverses of L's diagonal blocks, L_i^{-1} C_i, and which of the matrices are positive definite (B,)."""
    n, k = diagonal.shape[1], diagonal.shape[-1]
    identity = torch.eye(k, dtype=diagonal.dtype, device=diagonal.device)
    shifted = (diagonal + shift[:, None, None, None] * identity).unbind(1)
    ok = torch.ones(len(diagonal), dtype=torch.bool, device=diagonal.device)
    inverses, below = [], []
    for i in range(n):
        block = torch.baddbmm(shifted[i], below[-1].mT, below[-1], alpha=-1) if i else shifted[0]
        root, info = torch.linalg.cholesky_ex(block)
        ok &= info == 0
        inverses.append(torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False))
        if i < n - 1:
            below.append(inverses[-1] @ above[:, i])
    return torch.stack(inverses, 1), torch.stack(below, 1) if below else torch.zeros_like(above), ok
