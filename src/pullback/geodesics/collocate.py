"""The geodesic equation as a boundary value problem, solved by collocation: the method of the original paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.certificate import certificate_cost, certify
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.record import Record
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import GeodesicSolver
from pullback.metrics import Metric

_FEWEST_NODES = 9  # of the mesh that the collocation starts with
_FAILURES = {1: Status.MAX_STEPS, 2: Status.STALLED, 3: Status.STALLED}  # what scipy calls too many nodes, singular, bc


@dataclass(frozen=True)
class Collocate(GeodesicSolver):
    r"""Solves :math:`z'' = -\Gamma(z', z')` with both ends given, by cubic collocation.

    One pair after another, each on a mesh of its own that scipy's `solve_bvp` refines where the equation does not hold.
    A residual moves the curve in proportion and its length by the square of that, so that it begins with the root of
    `tol`. What is found is looked at with the discrete energy; a curve that is not within `tol` by that is solved
    again, ten times more exactly. It finds any curve that satisfies the equation, also one that is no minimum: such a
    curve gets the status STALLED. :class:`Relax` is faster by far and fails less often.

    Args:
        max_nodes: Of the mesh of a pair; beyond, it gets the status MAX_STEPS.
        max_refinements: How often a pair is solved again; after that it gets the status WALL.

    Cost: a linearization of the equation takes 2 d + 1 times d + 8 evaluations a node, so 10,000 and more a pair.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), equation 6. :cite:`oddity`

    Example:
        >>> import pullback as pb
        >>> sphere = pb.surfaces.Sphere()
        >>> a, b = torch.tensor([0.0, -1.0]).double(), torch.tensor([0.5, 0.5]).double()
        >>> path = pb.geodesic(pb.Pullback(sphere), a, b, solver=Collocate())
        >>> abs(float(path.length - sphere.distance(a, b))) < 1e-3
        True
    """

    max_nodes: int = 1000
    max_refinements: int = 4

    def __post_init__(self) -> None:
        _checks.positive(self.max_nodes, "max_nodes")
        if self.max_refinements < 0:
            raise ValueError(f"`max_refinements` is {self.max_refinements}: give a number of times, or 0.")

    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        energy = DiscreteEnergy.between(metric, start, end)
        record = Record(start, evaluations=2)
        for i in tqdm(range(len(start)), desc="geodesics", unit="curve", disable=not progress):
            row = torch.tensor([i], device=start.device)
            self._solve_pair(energy.select(row), nodes[row], tol, record, row)
        return record.solution()

    def _solve_pair(self, energy: DiscreteEnergy, nodes: Tensor, tol: float, record: Record, row: Tensor) -> None:
        """Solve one pair, from a curve (1, T + 1, d), until its length is known or not to be had."""
        problem = _Problem(energy.metric, energy.start[0], energy.end[0])
        curve = Curve(nodes).resample(max(_FEWEST_NODES - 1, nodes.shape[1] - 1))
        mesh = np.linspace(0, 1, curve.n_segments + 1)
        t = torch.from_numpy(mesh).to(nodes)
        guess = torch.cat((curve(t)[0], curve.velocity(t)[0]), -1).double().cpu().numpy().T
        for attempt in range(self.max_refinements + 1):
            found = problem.collocate(mesh, guess, 10.0**-attempt * math.sqrt(tol), self.max_nodes)
            record.spend(row, found.niter if found else 0, problem.take())
            if found is None or found.status:
                status = _FAILURES[found.status] if found else Status.NOT_FINITE
                record.fail(row, torch.full_like(row, status.code), nodes)
                return
            mesh, guess = found.x, found.y
            curve = problem.curve(found.sol, 2 * len(mesh))
            verdict = certify(energy, curve.nodes, tol)
            record.spend(row, 0, certificate_cost(energy, curve.n_segments))
            if attempt == self.max_refinements or verdict.codes.item() != Status.WALL.code:
                record.enter(row, verdict, row == row)
                return


class _NotFiniteEquation(ArithmeticError):
    """The right-hand side is not finite; scipy would go on with it."""


class _Problem:
    """The boundary value problem of one pair, as scipy wants it; counts what it costs."""

    def __init__(self, metric: Metric, start: Tensor, end: Tensor) -> None:
        self.metric, self.start, self.end = metric, start, end
        self.ends = start.double().cpu().numpy(), end.double().cpu().numpy()
        self.evaluations = 0

    def collocate(self, mesh: np.ndarray, guess: np.ndarray, tol: float, max_nodes: int) -> Any:
        """Scipy's answer from a guess (2 d, n) at n nodes of a mesh; None where the equation is not finite."""
        from scipy.integrate import solve_bvp  # slow to import, and only this solver needs it

        try:
            with np.errstate(all="ignore"):  # steps that overshoot; the equation says so
                return solve_bvp(self.equation, self.boundary, mesh, guess, tol=tol, max_nodes=max_nodes)
        except _NotFiniteEquation:
            return None

    def take(self) -> int:
        """The evaluations since the last time."""
        spent, self.evaluations = self.evaluations, 0
        return spent

    def equation(self, t: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The right-hand sides (2 d, n) at n states."""
        d = len(y) // 2
        if not np.isfinite(y).all():
            raise _NotFiniteEquation
        z, v = torch.from_numpy(np.ascontiguousarray(y.T)).to(self.start).split(d, -1)
        acceleration = -self.metric.christoffel(z, v, v).detach()
        self.evaluations += len(z) * self.metric.christoffel_cost(d)
        if not torch.isfinite(acceleration).all():
            raise _NotFiniteEquation
        return np.concatenate((y[d:], acceleration.double().cpu().numpy().T))

    def boundary(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """How far (2 d,) the ends are from where they have to be."""
        d = len(first) // 2
        return np.concatenate((first[:d] - self.ends[0], last[:d] - self.ends[1]))

    def curve(self, solution: Any, n: int) -> Curve:
        """The solution by n + 1 nodes at equal steps of t, with the exact ends."""
        values = solution(np.linspace(0, 1, n + 1))[: len(self.ends[0])].T
        nodes = torch.from_numpy(np.ascontiguousarray(values)).to(self.start)
        nodes[0], nodes[-1] = self.start, self.end
        return Curve(nodes[None])
