"""How far curves are from geodesics, whoever found them: by a discrete energy that no solver is free to choose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.curves import Curve
from pullback.geodesics.blocktridiagonal import Factor, solve
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.solution import Status

_SAFETY = 4.0  # times the estimated error is the error that is reported
_SADDLE = 0.05  # stiffness, as a share of the Gauss-Newton model's, that counts as none; negative, as a saddle
_FEWEST_SAMPLES = 64  # of a curve whose length is measured: a wall between two of them goes unseen


class Certificate(NamedTuple):
    """What can be said of B curves."""

    nodes: Tensor  # (B, n + 1, d)
    length: Tensor  # (B,) finely sampled
    error: Tensor  # (B,) how far that may be from the length of a geodesic
    energy: Tensor  # (B,)
    codes: Tensor  # (B,) CONVERGED, or why the length is not known to tol: WALL, STALLED at a saddle, NOT_FINITE


def certificate_cost(energy: DiscreteEnergy, n: int) -> int:
    """Evaluations a curve of n segments takes to :func:`certify`: about d + 9 a segment."""
    return (n - 1) * (4 + energy.metric.gram_cost(energy.start.shape[1])) + max(2 * n, _FEWEST_SAMPLES) - 1


def certify(energy: DiscreteEnergy, nodes: Tensor, tol: float) -> Certificate:
    r"""Length, error and status of B curves (B, n + 1, d), n even, by the gradient of the fourth-order energy there.

    The relative excess of a curve's length over that of the geodesic nearby is :math:`g^\top H^{-1} g / (4 E)`, with
    the Gauss-Newton matrix for H, softened by the true second difference of the energy along a bend of the whole curve.
    Uneven speed counts as excess: spread the nodes first. To that comes what finer samples do to the length: of fourth
    order, the finer one is off by a fifteenth of the difference, and an energy that is wrong by a share moves its
    minimum by the square of that. Cost: :func:`certificate_cost`.
    """
    z = nodes[:, 1:-1]
    value, gradient = energy.value_and_gradient(z)
    factor = energy.grams(z).gauss_newton()
    stiffness = _stiffness(energy, z, value, gradient, factor)
    tiny = torch.finfo(z.dtype).tiny
    gap = (gradient * divide(factor, gradient)).sum((1, 2)) / (4 * value).clamp_min(tiny) / stiffness.clamp(_SADDLE, 1)
    fine = max(2 * z.shape[1] + 2, _FEWEST_SAMPLES)
    length, finer = energy.measure(Curve(nodes).resample(fine).nodes[:, 1:-1])
    off = (length - (2 * value).clamp_min(0).sqrt()).abs()
    estimate = off / 15 + off.square() / length.clamp_min(tiny) + length * gap
    rounding = energy.rounding(fine)
    nothing = length <= rounding
    codes = torch.full_like(length, Status.WALL.code, dtype=torch.long)
    codes[(_SAFETY * estimate <= tol * length) | nothing] = Status.CONVERGED.code
    codes[(stiffness < -_SADDLE) & ~nothing] = Status.STALLED.code
    codes[~torch.isfinite(estimate) & ~nothing] = Status.NOT_FINITE.code
    return Certificate(nodes, length, _SAFETY * estimate.nan_to_num() + rounding, finer, codes)


def divide(factor: Factor, right: Tensor) -> Tensor:
    """H^{-1} right for a factored matrix of the energy and right (B, n, d), two nodes a block."""
    batch, n, d = right.shape
    padded = torch.cat((right, right.new_zeros(batch, 1, d)), 1).reshape(batch, -1, 2 * d)
    return solve(factor, padded).reshape(batch, n + 1, d)[:, :n]


def _stiffness(
    energy: DiscreteEnergy, z: Tensor, value: Tensor, gradient: Tensor, factor: Factor, share: float = 1e-3
) -> Tensor:
    """The true second difference of the energy over the Gauss-Newton model's (B,), along a bend to one side.

    The bend is the model's answer to a force that is the same all along and pulls sideways; by the model it takes that
    share of the energy. 1 where the surface does not bend towards the curve, less on long arcs, negative at a saddle.
    """
    along = energy.end - energy.start
    side = torch.nn.functional.one_hot(along.abs().argmin(1), along.shape[1]).to(along)
    side = side - (side * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True) * along
    force = side[:, None].expand_as(z)
    tiny = torch.finfo(z.dtype).tiny
    step = divide(factor, force)
    step = step * (2 * share * value / (force * step).sum((1, 2)).clamp_min(tiny)).sqrt()[:, None, None]
    slope = (gradient * step).sum((1, 2))
    step = torch.where((slope > 0)[:, None, None], -step, step)
    return (energy.measure(z + step)[1] - value + slope.abs()) / (share * value).clamp_min(tiny)
