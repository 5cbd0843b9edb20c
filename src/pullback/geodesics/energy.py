"""The discrete energy of curves with fixed ends, as a function of their interior nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.chords import chord_energy, chord_length, even_parameters
from pullback.curves import Curve
from pullback.geodesics.blocktridiagonal import Factor, factor
from pullback.metrics import Metric

_SINGULAR = 1e-9  # relative shift of the Gauss-Newton matrix: a decoder may be constant in some direction


@dataclass(frozen=True)
class DiscreteEnergy:
    """E(z_1 .. z_{T-1}) of B curves of T segments (even), by quadratic finite elements in feature space.

    Each pair of segments carries the parabola through its three decoded nodes. Its energy is (4 E_T - E_{T/2}) / 3:
    fourth order, no dearer than the chord energy E_T, and between E_T and 4/3 E_T.
    """

    metric: Metric
    start: Tensor  # (B, d)
    end: Tensor
    start_features: Tensor  # (B, D)
    end_features: Tensor

    @classmethod
    def between(cls, metric: Metric, start: Tensor, end: Tensor) -> DiscreteEnergy:
        """The energy of curves from start to end (B, d). Cost: 2 evaluations a curve."""
        return cls(metric, start, end, metric.features(start), metric.features(end))

    def select(self, index: Tensor) -> DiscreteEnergy:
        """The curves at an index of the batch."""
        ends = (self.start, self.end, self.start_features, self.end_features)
        start, end, start_features, end_features = (t[index] for t in ends)
        return replace(self, start=start, end=end, start_features=start_features, end_features=end_features)

    def nodes(self, z: Tensor) -> Tensor:
        """Whole curves (B, T + 1, d) from interior nodes (B, T - 1, d)."""
        return torch.cat((self.start[:, None], z, self.end[:, None]), 1)

    def decode(self, z: Tensor) -> Tensor:
        """The features (B, T + 1, D) of whole curves from interior nodes (B, T - 1, d)."""
        x = self.metric.features(z)
        return torch.cat((self.start_features[:, None], x, self.end_features[:, None]), 1)

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """E (B,) and its gradient (B, T - 1, d). Cost: 3 evaluations a node."""
        energies, gradients = [], []
        curves = max(1, self.metric.points_at_once(z) // z.shape[1])
        for part in torch.arange(len(z), device=z.device).split(curves):
            chosen = self.select(part)
            energy, gradient = self.metric.energy_and_gradient(z[part], chosen.start_features, chosen.end_features)
            energies.append(energy)
            gradients.append(gradient)
        return torch.cat(energies), torch.cat(gradients)

    def rounding(self, n: int) -> Tensor:
        """The rounding error (B,) of lengths from n chords, which are differences of nearly equal vectors."""
        size = torch.maximum(self.start_features.norm(dim=-1), self.end_features.norm(dim=-1))
        return torch.finfo(size.dtype).eps * n * size

    def measure(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Length and energy (B,) of curves by their interior nodes z (B, T - 1, d). Cost: 1 evaluation a node."""
        parts = [(chord_length(*chords), chord_energy(*chords)) for chords in self._chords(z)]
        length, energy = (torch.cat(values) for values in zip(*parts, strict=True))
        return length, energy

    def chords(self, z: Tensor) -> Tensor:
        """The sums (B,) of the plain chords between nodes: no longer than the curves. Cost: 1 evaluation a node."""
        return torch.cat([single.sqrt().sum(1) for single, _ in self._chords(z)])

    def even(self, curves: Curve, n: int, n_samples: int) -> tuple[Curve, Tensor]:
        """The same curves by n + 1 nodes at constant Riemannian speed, and their lengths (B,).

        Cost: n_samples - 1 evaluations a curve.

        Relaxation is slow to slide nodes along a curve, and every evaluation of a gradient costs three of these.
        """
        z = curves.resample(n_samples).nodes[:, 1:-1]
        parts = [(even_parameters(single, n), chord_length(single, double)) for single, double in self._chords(z)]
        t, whole = (torch.cat(values) for values in zip(*parts, strict=True))
        return Curve(self.nodes(curves(t))), whole

    def _chords(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Squared chords and double chords of interior nodes z (B, T - 1, d), some curves at a time."""
        curves = max(1, self.metric.points_at_once(z) // z.shape[1])
        with torch.no_grad():
            for part in torch.arange(len(z), device=z.device).split(curves):
                yield self.metric.squared_chords(self.select(part).decode(z[part]))

    def grams(self, z: Tensor) -> Grams:
        """The products of Jacobians at interior nodes z (B, T - 1, d). Cost: `Metric.gram_cost` a node."""
        return Grams(*self.metric.grams(z))


class Grams(NamedTuple):
    """J_i' J_k at interior nodes i = 1 .. n and k = i, i + 1, i + 2."""

    same: Tensor  # (B, n, d, d)
    next_one: Tensor  # (B, n - 1, d, d)
    next_two: Tensor  # (B, n - 2, d, d)

    def select(self, index: Tensor) -> Grams:
        """Those of the curves at an index of the batch."""
        return Grams(*(products[index] for products in self))

    def put(self, rows: Tensor, other: Grams) -> Grams:
        """The same curves, some rows of them replaced."""
        return Grams(*(old.index_copy(0, rows, new) for old, new in zip(self, other, strict=True)))

    def prolong(self) -> Grams:
        """The products at twice as many segments if J were linear between nodes: for nothing.

        That keeps |J_{i+1} - J_i|, the bending of the surface, in the Gauss-Newton matrix; averages of G would lose it.
        """
        g, p, q = self.same, self.next_one, self.next_two
        batch, n, d, _ = g.shape
        same = g.new_empty(batch, 2 * n + 1, d, d)
        next_one = g.new_empty(batch, 2 * n, d, d)
        next_two = g.new_empty(batch, 2 * n - 1, d, d)
        # old nodes are 1, 3, ...; new ones between them have (J_i + J_{i+1}) / 2, the outermost 3/2 J_1 - 1/2 J_2
        same[:, 1::2] = g
        same[:, 2:-1:2] = (g[:, :-1] + g[:, 1:] + p + p.mT) / 4
        same[:, 0] = (9 * g[:, 0] + g[:, 1] - 3 * (p[:, 0] + p[:, 0].mT)) / 4
        same[:, -1] = (9 * g[:, -1] + g[:, -2] - 3 * (p[:, -1] + p[:, -1].mT)) / 4
        next_one[:, 1:-1:2] = (g[:, :-1] + p) / 2
        next_one[:, 2:-1:2] = (g[:, 1:] + p) / 2
        next_one[:, 0] = (3 * g[:, 0] - p[:, 0].mT) / 2
        next_one[:, -1] = (3 * g[:, -1] - p[:, -1].mT) / 2
        next_two[:, 1::2] = p
        next_two[:, 2:-1:2] = (p[:, :-1] + q + g[:, 1:-1] + p[:, 1:]) / 4
        next_two[:, 0] = (3 * g[:, 0] + 3 * p[:, 0] - p[:, 0].mT - g[:, 1]) / 4
        next_two[:, -1] = (3 * p[:, -1] + 3 * g[:, -1] - g[:, -2] - p[:, -1].mT) / 4
        return Grams(same, next_one, next_two)

    def gauss_newton(self) -> Factor:
        """The factored Gauss-Newton matrix of the discrete energy.

        On the element (2j, 2j+1, 2j+2) the second derivative is T/6 [7 -8 1; -8 16 -8; 1 -8 7] with J_i' J_k in place
        of each entry (i, k). An odd node and the even one behind it make a block; the last block is padded.
        """
        batch, n, d, _ = self.same.shape
        scale = (n + 1) / 6
        blocks = (n + 1) // 2
        diagonal = self.same.new_zeros(batch, blocks, 2 * d, 2 * d)
        above = self.same.new_zeros(batch, blocks - 1, 2 * d, 2 * d)
        diagonal[..., :d, :d] = 16 * scale * self.same[:, 0::2]
        diagonal[:, :-1, d:, d:] = 14 * scale * self.same[:, 1::2]
        diagonal[:, :-1, :d, d:] = -8 * scale * self.next_one[:, 0::2]
        diagonal[:, :-1, d:, :d] = diagonal[:, :-1, :d, d:].mT
        mean = diagonal[:, 0, :d, :d].diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(diagonal.dtype).tiny)
        diagonal[:, -1, d:, d:] = mean[:, None, None] * torch.eye(d, dtype=diagonal.dtype, device=diagonal.device)
        above[..., d:, :d] = -8 * scale * self.next_one[:, 1::2]
        above[:, :-1, d:, d:] = scale * self.next_two[:, 1::2]
        return factor(diagonal, above, shift=max(_SINGULAR, 10 * torch.finfo(diagonal.dtype).eps))
