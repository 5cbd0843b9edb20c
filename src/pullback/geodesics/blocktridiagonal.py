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
    """H = L L' with L lower block-bidiagonal."""

    lower: Tensor  # (B, n, k, k), the triangular diagonal blocks of L
    below: Tensor  # (B, n - 1, k, k), the blocks below them, transposed: L_i^{-1} C_i
    shift: Tensor  # (B,), what was added to the diagonal to make H positive definite, relative to its mean


def factor(diagonal: Tensor, above: Tensor, *, shift: float) -> Factor:
    """Factor H + shift * mean(diag H), with more shift for those matrices that are not positive definite.

    Args:
        diagonal: (B, n, k, k).
        above: (B, n - 1, k, k).
        shift: The smallest relative shift; it keeps singular matrices solvable.
    """
    n, k = diagonal.shape[1], diagonal.shape[-1]
    mean = diagonal.diagonal(dim1=-2, dim2=-1).mean((-2, -1)).clamp_min(torch.finfo(diagonal.dtype).tiny)
    identity = torch.eye(k, dtype=diagonal.dtype, device=diagonal.device)
    shifts = torch.full_like(mean, shift)
    todo = torch.arange(len(diagonal), device=diagonal.device)
    lower, below = torch.empty_like(diagonal), torch.empty_like(above)
    for _ in range(12):  # a shift of 1 makes any diagonally scaled H definite long before
        ok = torch.ones(len(todo), dtype=torch.bool, device=diagonal.device)
        block = None
        for i in range(n):
            block = diagonal[todo, i] + (shifts * mean)[todo, None, None] * identity
            if i:
                previous = below[todo, i - 1]
                block = block - previous.mT @ previous
            root, info = torch.linalg.cholesky_ex(block)
            lower[todo, i] = root
            ok &= info == 0
            if i < n - 1:
                below[todo, i] = torch.linalg.solve_triangular(root, above[todo, i], upper=False)
        todo = todo[~ok]
        if not len(todo):
            break
        shifts[todo] = (10 * shifts[todo]).clamp_min(1e-4)
    return Factor(lower, below, shifts)


def solve(h: Factor, right: Tensor) -> Tensor:
    """H^{-1} right for right (B, n, k)."""
    n = right.shape[1]
    forward = []
    for i in range(n):
        residual = right[:, i, :, None]
        if i:
            residual = residual - h.below[:, i - 1].mT @ forward[-1]
        forward.append(torch.linalg.solve_triangular(h.lower[:, i], residual, upper=False))
    solution = [forward[-1]] * n
    for i in reversed(range(n)):
        residual = forward[i]
        if i < n - 1:
            residual = residual - h.below[:, i] @ solution[i + 1]
        solution[i] = torch.linalg.solve_triangular(h.lower[:, i].mT, residual, upper=True)
    return torch.cat(solution, -1).mT
