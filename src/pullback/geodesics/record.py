"""What a solver knows of each curve while others still run."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.curves import Curve
from pullback.geodesics.certificate import Certificate
from pullback.geodesics.solution import Solution, Status


class Record:
    """One entry a curve, filled in as they finish, at different resolutions."""

    def __init__(self, start: Tensor, evaluations: int = 0) -> None:
        zero = torch.zeros(len(start), dtype=torch.long, device=start.device)
        self.codes, self.iterations, self.evaluations = zero, zero.clone(), zero + evaluations
        self.length, self.error, self.energy = (start.new_full((len(start),), torch.nan) for _ in range(3))
        self.nodes: list[tuple[Tensor, Tensor]] = []  # rows and the nodes of their curves

    def spend(self, rows: Tensor, iterations: Tensor | int, evaluations: Tensor | int) -> None:
        """Count what a run cost."""
        self.iterations[rows] += iterations
        self.evaluations[rows] += evaluations

    def fail(self, rows: Tensor, codes: Tensor, nodes: Tensor) -> None:
        """Enter curves (B, T + 1, d) without a length, and the status that says why."""
        self.codes[rows] = codes
        self.nodes.append((rows, nodes))

    def enter(self, rows: Tensor, certificate: Certificate, chosen: Tensor) -> None:
        """Enter the chosen curves of a certificate, with their lengths where they converged."""
        nodes, length, error, energy, codes = (tensor[chosen] for tensor in certificate)
        good = codes == Status.CONVERGED.code
        self.codes[rows] = codes
        self.length[rows[good]], self.error[rows[good]], self.energy[rows[good]] = (
            length[good],
            error[good],
            energy[good],
        )
        self.nodes.append((rows, nodes))

    def solution(self) -> Solution:
        """All curves, as many segments as the finest has; a spline with more nodes is the same spline."""
        n = max(nodes.shape[1] - 1 for rows, nodes in self.nodes if len(rows))
        order = torch.cat([rows for rows, _ in self.nodes]).argsort()
        nodes = torch.cat([Curve(nodes).resample(n).nodes for rows, nodes in self.nodes if len(rows)])[order]
        return Solution(
            Curve(nodes), self.length, self.error, self.energy, self.codes, self.iterations, self.evaluations
        )
