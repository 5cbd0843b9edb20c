"""A chain of solvers: each is asked for the pairs on which all before it failed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback.geodesics.batch import put_together
from pullback.geodesics.solution import Solution
from pullback.geodesics.solver import GeodesicSolver
from pullback.metrics import Metric


@dataclass(frozen=True, init=False)
class Fallback(GeodesicSolver):
    """Runs a solver, then the next one on the pairs that failed, and so on; all from the same curves.

    A pair that all of them fail on has the status that the last one gave it. Iterations and evaluations are added up.

    Args:
        solvers: In the order in which they are asked, one or more.

    Example:
        >>> from pullback.geodesics.collocate import Collocate
        >>> from pullback.geodesics.relax import Relax
        >>> Fallback(Relax(max_steps=5), Relax(), Collocate()).solvers[1]
        Relax(first_segments=8, max_segments=512, max_steps=100, max_evaluations=100000, memory=8)
    """

    solvers: tuple[GeodesicSolver, ...]

    def __init__(self, *solvers: GeodesicSolver) -> None:
        wrong = [type(solver).__name__ for solver in solvers if not isinstance(solver, GeodesicSolver)]
        if wrong or not solvers:
            came = f"was given a {wrong[0]}" if wrong else "was given nothing"
            raise TypeError(f"Fallback {came}: give solvers, e.g. Fallback(Relax(), Collocate()).")
        object.__setattr__(self, "solvers", solvers)

    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        solution = self.solvers[0].solve(metric, start, end, tol=tol, nodes=nodes, progress=progress)
        for solver in self.solvers[1:]:
            failed = (~solution.converged).nonzero().reshape(-1)
            if not len(failed):
                break
            again = solver.solve(metric, start[failed], end[failed], tol=tol, nodes=nodes[failed], progress=progress)
            spent = {
                name: getattr(again, name) + getattr(solution, name)[failed] for name in ("iterations", "evaluations")
            }
            every = torch.arange(len(start), device=start.device)
            solution = put_together([solution, replace(again, **spent)], [every, failed], 1)
        return solution
