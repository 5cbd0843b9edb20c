"""Geodesics by a solver of its own: 512 plain chords, Newton steps in a banded matrix until the gradient is zero.

Slow, one pair after another, with none of the package's code but the decoder: something to measure the package against.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.linalg import LinAlgError, solveh_banded
from torch import Tensor
from tqdm import tqdm

Decoder = Callable[[Tensor], Tensor]
SEGMENTS = 512


def true_lengths(decoder: Decoder, start: Tensor, end: Tensor, starts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The length (B,) of the shortest stationary curve found for each pair, and its largest gradient entry.

    Args:
        decoder: (n, d) -> (n, D), float64.
        start: (B, d).
        end: (B, d).
        starts: Curves (B, T + 1, d) to start from, beside the straight line.
    """
    t = torch.linspace(0, 1, SEGMENTS + 1, dtype=start.dtype)[:, None]
    lengths, gradients = [], []
    for k in tqdm(range(len(start)), desc="truth"):
        straight = (1 - t) * start[k] + t * end[k]
        guesses = [straight, *(_resample(curves[k]) for curves in starts)]
        found = [_stationary(decoder, guess) for guess in guesses]
        length, gradient = min((_length(decoder, nodes), gradient) for nodes, gradient in found)
        lengths.append(length)
        gradients.append(gradient)
    return torch.tensor(lengths, dtype=start.dtype), torch.tensor(gradients, dtype=start.dtype)


def _resample(nodes: Tensor) -> Tensor:
    t = np.linspace(0, 1, len(nodes))
    return torch.from_numpy(CubicSpline(t, nodes.numpy())(np.linspace(0, 1, SEGMENTS + 1)))


def _length(decoder: Decoder, nodes: Tensor) -> float:
    """By Richardson extrapolation of chords between 4,096 points of the spline."""
    fine = torch.from_numpy(CubicSpline(np.linspace(0, 1, len(nodes)), nodes.numpy())(np.linspace(0, 1, 4097)))
    x = torch.cat([decoder(part) for part in fine.split(256)])
    one, two = (x[step::step] - x[:-step:step] for step in (1, 2))
    return float((4 * one.norm(dim=1).sum() - two.norm(dim=1).sum()) / 3)


def _stationary(decoder: Decoder, nodes: Tensor, steps: int = 120) -> tuple[Tensor, float]:
    """Levenberg-Marquardt on the chord energy; the second derivative of the decoder comes in near the end."""
    z, damping = nodes.clone(), 1e-4
    energy, gradient, blocks = _model(decoder, z, newton=False)
    scale = float(gradient.abs().max())
    for _ in range(steps):
        size = float(gradient.abs().max())
        if size < 1e-9 * max(scale, energy):
            break
        newton = size < 1e-2 * scale
        if newton:
            blocks = _model(decoder, z, newton=True)[2]
        step = _solve(blocks, gradient, damping)
        trial = z.clone()
        if step is not None:
            trial[1:-1] -= step
        new_energy = _energy(decoder, trial) if step is not None else np.inf
        if new_energy <= energy * (1 + 1e-14):
            z, damping = trial, max(damping / 5, 1e-12)
            energy, gradient, blocks = _model(decoder, z, newton=False)
        else:
            damping *= 10
            if damping > 1e6:
                break
    return z, float(gradient.abs().max())


def _energy(decoder: Decoder, z: Tensor) -> float:
    with torch.no_grad():
        return float(len(z) * (decoder(z).diff(dim=0)).square().sum())


def _model(decoder: Decoder, z: Tensor, *, newton: bool) -> tuple[float, Tensor, tuple[Tensor, Tensor]]:
    """Energy, gradient (T - 1, d), and the diagonal and upper blocks of the second derivative at the interior nodes."""
    n, single = len(z), lambda point: decoder(point[None])[0]
    with torch.no_grad():
        x = decoder(z)
    jacobian = torch.func.vmap(torch.func.jacfwd(single), chunk_size=128)(z[1:-1])  # (T - 1, D, d)
    bend = x[2:] - 2 * x[1:-1] + x[:-2]
    gradient = -2 * n * torch.einsum("nDd,nD->nd", jacobian, bend)
    diagonal = 4 * n * torch.einsum("nDa,nDb->nab", jacobian, jacobian)
    above = -2 * n * torch.einsum("nDa,nDb->nab", jacobian[:-1], jacobian[1:])
    if newton:
        weighted = torch.func.hessian(lambda point, weight: (single(point) * weight).sum())
        diagonal = diagonal - 2 * n * torch.func.vmap(weighted, chunk_size=128)(z[1:-1], bend)
    return float(n * x.diff(dim=0).square().sum()), gradient, (diagonal, above)


def _solve(blocks: tuple[Tensor, Tensor], gradient: Tensor, damping: float) -> Tensor | None:
    diagonal, above = (block.numpy() for block in blocks)
    n, d = gradient.shape
    band = np.zeros((2 * d, n * d))  # upper form
    for a in range(d):
        for b in range(d):
            if b >= a:
                band[2 * d - 1 - (b - a), b::d] = diagonal[:, a, b]
            band[2 * d - 1 - (b + d - a), d + b :: d] = above[:, a, b]
    band[-1] *= 1 + damping
    try:
        return torch.from_numpy(solveh_banded(band, gradient.numpy().ravel()).reshape(n, d))
    except LinAlgError:
        return None
