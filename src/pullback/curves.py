r"""Curves in latent space, their energy and length.

The energy of a curve is :math:`E = \tfrac12 \int_0^1 |\dot c|^2_{G(c)} \, dt`, its length
:math:`L = \int_0^1 |\dot c|_{G(c)} \, dt`. Both are computed from chords between samples, to fourth order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import _checks
from pullback.chords import chord_energy, chord_length, even_parameters
from pullback.metrics import Metric
from pullback.types import Nodes, Points, Scalars


class Curve:
    """The twice continuously differentiable cubic spline through nodes at t = 0, 1/T, ..., 1 (not-a-knot at the ends).

    Args:
        nodes: (..., T + 1, d), one curve for each leading index.

    Example:
        >>> line = Curve.straight(torch.zeros(2), torch.ones(2))
        >>> line(torch.tensor([0.5]))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, nodes: Nodes) -> None:
        nodes = _checks.points(nodes, "nodes")
        if nodes.ndim < 2 or nodes.shape[-2] < 2:
            raise ValueError(
                f"`nodes` has shape {tuple(nodes.shape)}: a curve needs two nodes or more, (..., T + 1, d)."
            )
        self.nodes = nodes

    @classmethod
    def straight(cls, start: Points, end: Points, n_segments: int = 1) -> Curve:
        """The straight line from start to end (..., d) in n_segments equal steps."""
        start, end = _checks.pairs(start, end)
        _checks.positive(n_segments, "n_segments")
        t = torch.linspace(0, 1, n_segments + 1, dtype=start.dtype, device=start.device)[:, None]
        return cls((1 - t) * start[..., None, :] + t * end[..., None, :])

    @property
    def n_segments(self) -> int:
        """T, one less than the number of nodes."""
        return self.nodes.shape[-2] - 1

    def __call__(self, t: Tensor) -> Points:
        """The points (..., n, d) at parameters t in [0, 1]: (n,) for all curves, or (..., n), each curve its own."""
        return self._evaluate(t, 0)

    def velocity(self, t: Tensor) -> Points:
        """The derivative (..., n, d) with respect to t at parameters t (n,) in [0, 1]."""
        return self._evaluate(t, 1)

    def acceleration(self, t: Tensor) -> Points:
        """The second derivative (..., n, d) at parameters t (n,) in [0, 1]."""
        return self._evaluate(t, 2)

    def resample(self, n_segments: int) -> Curve:
        """The curve by n_segments + 1 nodes at equal steps of t; the same curve if n_segments is a multiple of T."""
        _checks.positive(n_segments, "n_segments")
        if n_segments == self.n_segments:
            return self
        t = torch.linspace(0, 1, n_segments + 1, dtype=self.nodes.dtype, device=self.nodes.device)
        return Curve(self(t))

    def __getitem__(self, index: object) -> Curve:
        """The curves at an index of the batch."""
        return Curve(self.nodes[index])  # pyright: ignore[reportArgumentType]

    def __repr__(self) -> str:
        batch, d = tuple(self.nodes.shape[:-2]), self.nodes.shape[-1]
        return f"Curve(batch {batch}, {self.n_segments} segments, d = {d})"

    def _evaluate(self, t: Tensor, order: int) -> Points:
        n = self.n_segments
        if not t.is_floating_point() or t.ndim == 0 or (t.ndim > 1 and t.shape[:-1] != self.nodes.shape[:-2]):
            raise ValueError(
                f"`t` has shape {tuple(t.shape)}: give parameters (n,) or {(*self.nodes.shape[:-2], 'n')}."
            )
        if t.numel() and not (t.min() >= 0 and t.max() <= 1):
            raise ValueError(
                f"`t` reaches from {float(t.min()):g} to {float(t.max()):g}: a curve is defined on [0, 1]."
            )
        slopes = _slopes(n).to(self.nodes) @ self.nodes
        t = t.to(self.nodes).expand(*self.nodes.shape[:-2], t.shape[-1])
        i = (t * n).floor().long().clamp(0, n - 1)
        h = (weight[..., None] for weight in _hermite(t * n - i, order))

        def at(values: Tensor, i: Tensor) -> Tensor:
            return values.gather(-2, i[..., None].expand(*i.shape, values.shape[-1]))

        left, left_slope, right, right_slope = h
        value = left * at(self.nodes, i) + right * at(self.nodes, i + 1)
        return (value + left_slope * at(slopes, i) + right_slope * at(slopes, i + 1)) * n**order


def _hermite(s: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of value and slope at the left end, then at the right, of a cubic on [0, 1]; or of its derivatives."""
    if order == 0:
        return (1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2, s**2 * (3 - 2 * s), s**2 * (s - 1)
    if order == 1:
        return 6 * s * (s - 1), (1 - s) * (1 - 3 * s), 6 * s * (1 - s), s * (3 * s - 2)
    return 12 * s - 6, 6 * s - 4, 6 - 12 * s, 6 * s - 2


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # others use it with gradients
def _slopes(n: int) -> Tensor:
    """The matrix (n + 1, n + 1) from nodes at unit steps to the slopes of their not-a-knot cubic spline, float64."""
    kind: Any = {"dtype": torch.float64, "device": "cpu"}
    if n < 3:  # the polynomial through the nodes
        rows = {1: [[-1, 1], [-1, 1]], 2: [[-1.5, 2, -0.5], [-0.5, 0, 0.5], [0.5, -2, 1.5]]}[n]
        return torch.tensor(rows, **kind)
    left, right = torch.zeros(2, n + 1, n + 1, **kind)
    inner = torch.arange(1, n, device="cpu")
    left[inner, inner - 1], left[inner, inner], left[inner, inner + 1] = 1.0, 4.0, 1.0
    right[inner, inner - 1], right[inner, inner + 1] = -3.0, 3.0
    # the third derivative is continuous at nodes 1 and n - 1
    left[0, :2], right[0, :3] = torch.tensor([1, 2], **kind), torch.tensor([-2.5, 2, 0.5], **kind)
    left[n, -2:], right[n, -3:] = torch.tensor([2, 1], **kind), torch.tensor([-0.5, -2, 2.5], **kind)
    return torch.linalg.solve(left, right)


def length(metric: Metric, curve: Curve, *, n_segments: int | None = None) -> Scalars:
    r"""The length :math:`\int_0^1 |\dot c|_{G(c)} \, dt` of curves: (...), in units of the data space.

    Args:
        metric: The metric.
        curve: Any number of curves.
        n_segments: At how many steps to sample, even: the error falls with the fourth power. Default: four for each
            segment of the curve, at least 128.

    Cost:
        n_segments + 1 evaluations a curve, in one batch.

    Example:
        >>> from pullback.metrics import Pullback
        >>> scaled = Pullback(lambda z: 3 * z)
        >>> length(scaled, Curve.straight(torch.zeros(2), torch.tensor([0.0, 2.0])))
        tensor(6.)
    """
    return _integrate(metric, curve, n_segments, chord_length)


def energy(metric: Metric, curve: Curve, *, n_segments: int | None = None) -> Scalars:
    r"""The energy :math:`\tfrac12 \int_0^1 |\dot c|^2_{G(c)} \, dt` of curves: (...), in squared data units.

    At least half the squared length, and equal to it at constant speed. Arguments and cost as for :func:`length`.
    """
    return _integrate(metric, curve, n_segments, chord_energy)


def constant_speed(metric: Metric, curve: Curve, *, n_segments: int | None = None) -> Curve:
    r"""The same curves, run through at constant Riemannian speed: equal steps of t are equal steps of length.

    With :math:`s(t) = \int_0^t |\dot c|_{G(c)} \, dt' / L` it is :math:`c \circ s^{-1}`. So a straight line becomes a
    fair match of a geodesic, which has constant speed: decoded at equal steps, both change at an even pace.

    Args:
        metric: The metric.
        curve: Any number of curves.
        n_segments: Of the new curves, and at how many steps the old ones are sampled: the error of their speed falls
            with the square. Default: four for each segment of the curve, at least 256.

    Returns:
        The curves by n_segments + 1 nodes. Curves that have no length stay as they are.

    Raises:
        ValueError: When the decoder is not finite somewhere on a curve.

    Cost:
        n_segments + 1 evaluations a curve, in one batch.

    Example:
        >>> from pullback.metrics import Pullback
        >>> exponential = Pullback(lambda z: z.exp())
        >>> line = Curve.straight(torch.zeros(1), torch.ones(1))
        >>> middle = constant_speed(exponential, line)(torch.tensor([0.5]))
        >>> round(middle.exp().item(), 2)  # halfway between 1 and e
        1.86
    """
    n = n_segments if n_segments is not None else max(4 * curve.n_segments, 256)
    single = _finite_chords(metric, curve, n)[0]
    t = even_parameters(single, n).reshape(*curve.nodes.shape[:-2], n - 1)
    nodes = curve.nodes
    return Curve(torch.cat((nodes[..., :1, :], curve(t), nodes[..., -1:, :]), -2))


def _integrate(
    metric: Metric, curve: Curve, n_segments: int | None, rule: Callable[[Tensor, Tensor], Tensor]
) -> Scalars:
    n = n_segments if n_segments is not None else max(4 * curve.n_segments, 128)
    return rule(*_finite_chords(metric, curve, n)).reshape(curve.nodes.shape[:-2])


def _finite_chords(metric: Metric, curve: Curve, n: int) -> tuple[Tensor, Tensor]:
    """Squared chords (B, n) and double chords (B, n // 2) of curves at n steps; an error where they are not finite."""
    nodes = curve.resample(n).nodes
    single, double = squared_chords(metric, nodes.flatten(0, -3) if nodes.ndim > 2 else nodes[None])
    _checks.all_finite(
        single[..., None], "the output of the decoder", "a curve may leave the region where it is defined"
    )
    return single, double


def squared_chords(metric: Metric, nodes: Nodes) -> tuple[Tensor, Tensor]:
    """Squared chords (B, T) and double chords (B, T // 2) of curves (B, T + 1, d), some nodes at a time."""
    n = nodes.shape[1] - 1
    limit = metric.points_at_once(nodes)
    piece = n if n < limit else max(2, (limit - 1) // 2 * 2)  # segments, even where a curve is cut
    parts = []
    for rows in nodes.split(max(1, limit // (piece + 1))):
        chords = [
            metric.squared_chords(metric.features(rows[:, first : first + piece + 1])) for first in range(0, n, piece)
        ]
        parts.append(tuple(torch.cat(values, 1) for values in zip(*chords, strict=True)))
    if not parts:
        return nodes.new_zeros(0, n), nodes.new_zeros(0, n // 2)
    single, double = (torch.cat(values) for values in zip(*parts, strict=True))
    return single, double
