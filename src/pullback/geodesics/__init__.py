"""Geodesics and distances of any metric, for any number of pairs at once."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.relax import Relax
from pullback.geodesics.solution import ConvergenceError, Solution, Status
from pullback.geodesics.solver import GeodesicSolver
from pullback.metrics import Metric
from pullback.types import Points, Scalars

__all__ = ["ConvergenceError", "GeodesicSolver", "Relax", "Solution", "Status", "distance", "geodesic"]


def geodesic(
    metric: Metric,
    start: Points,
    end: Points,
    *,
    tol: float = 1e-4,
    solver: GeodesicSolver | None = None,
    init: Curve | None = None,
    progress: bool = False,
) -> Solution:
    r"""Geodesics between pairs of points.

    Curves with fixed ends of least energy

    .. math:: E(c) = \tfrac12 \int_0^1 |\dot c|^2_{G(c)} \, dt .

    A geodesic found is a local minimum near the curve that the solver started from; where several exist, another
    `init` may find a shorter one.

    Args:
        metric: The metric.
        start: Points (..., d).
        end: Points (..., d); both broadcast, so that one start may have many ends.
        tol: How well each length has to be known, relatively: the estimated error is at most that, and the reported
            ``length_error`` four times the estimate.
        solver: How; default :class:`Relax`.
        init: Curves to start from, (..., T + 1, d) with the same ends. Default: straight lines.
        progress: Whether to show a bar.

    Returns:
        Curves, lengths, errors, status: one entry a pair. A pair that failed has NaN and a status that says why.

    Raises:
        ValueError: When the points do not fit each other, the decoder or `init`.

    Warns:
        GeodesicWarning: When some pair failed; it lists which, why and what to try.

    Cost:
        About 230 decoder evaluations a pair where it is nearly flat, 1,000 in the mean on a VAE; see :class:`Relax`.

    Example:
        >>> import pullback as pb
        >>> path = pb.geodesic(pb.Pullback(torch.nn.Identity()), torch.zeros(2), torch.tensor([3.0, 4.0]))
        >>> round(float(path.length), 4)
        5.0
    """
    if not isinstance(metric, Metric):
        kind = type(metric).__name__
        raise TypeError(f"`metric` is a {kind}: give a metric; a decoder is wrapped as Pullback(decoder).")
    start, end = _checks.pairs(start, end)
    _checks.positive(tol, "tol")
    if tol >= 1:
        raise ValueError(f"`tol` is {tol}: it is a relative error, below 1.")
    metric.points_at_once(start)  # the decoder is looked at even when no curve needs it
    solver = solver if solver is not None else Relax()
    batch, d = start.shape[:-1], start.shape[-1]
    init = _start_curve(init, start, end)
    start, end = start.detach().reshape(-1, d), end.detach().reshape(-1, d)
    nodes = init.nodes.detach().flatten(0, -3) if batch else init.nodes.detach()[None]
    solution = _reshape(_solve(solver, metric, start, end, nodes, tol, progress), batch)
    if not solution.converged.all():
        warnings.warn(solution.message, _checks.GeodesicWarning, stacklevel=2)
    return solution


def distance(
    metric: Metric, a: Points, b: Points, *, tol: float = 1e-4, solver: GeodesicSolver | None = None
) -> Scalars:
    """The length of the geodesic from a to b (..., d): (...), in units of the data space; NaN where none was found.

    It carries no gradient. Arguments, warnings and cost as for :func:`geodesic`.
    """
    return geodesic(metric, a, b, tol=tol, solver=solver).length


def _start_curve(init: Curve | None, start: Tensor, end: Tensor) -> Curve:
    """The curves to start from, checked: straight lines unless given."""
    if init is None:
        return Curve.straight(start, end)
    if not isinstance(init, Curve):
        raise TypeError(f"`init` is a {type(init).__name__}: give a Curve, e.g. Curve(nodes).")
    nodes = init.nodes
    if nodes.shape[:-2] != start.shape[:-1]:
        want = (*start.shape[:-1], "T + 1", start.shape[-1])
        raise ValueError(f"`init` holds curves {tuple(nodes.shape)}: want {want}, one for each pair.")
    _checks.same_kind(nodes, start, "init", "start")
    if not (torch.equal(nodes[..., 0, :], start) and torch.equal(nodes[..., -1, :], end)):
        raise ValueError("`init` holds curves whose ends are not `start` and `end`: they keep their ends.")
    return init


def _solve(
    solver: GeodesicSolver, metric: Metric, start: Tensor, end: Tensor, nodes: Tensor, tol: float, progress: bool
) -> Solution:
    """Solve those pairs whose points differ; the others are at distance 0."""
    apart = (start != end).any(-1)
    if apart.all() and len(apart):
        return solver.solve(metric, start, end, tol=tol, nodes=nodes, progress=progress)
    zero = start.new_zeros(len(start))
    counts = torch.zeros(len(start), dtype=torch.long, device=start.device)
    resting = Solution(Curve.straight(start, end), zero, zero, zero, counts, counts, counts)
    if not apart.any():
        return resting
    moving = solver.solve(metric, start[apart], end[apart], tol=tol, nodes=nodes[apart], progress=progress)
    curve = resting.curve.resample(moving.curve.n_segments)
    return Solution(
        Curve(_insert(curve.nodes, moving.curve.nodes, apart)),
        *(_insert(getattr(resting, name), getattr(moving, name), apart) for name in _TENSORS),
    )


_TENSORS = ("length", "length_error", "energy", "codes", "iterations", "evaluations")


def _insert(whole: Tensor, part: Tensor, where: Tensor) -> Tensor:
    result = whole.clone()
    result[where] = part
    return result


def _reshape(solution: Solution, batch: torch.Size) -> Solution:
    nodes = solution.curve.nodes
    tensors = (getattr(solution, name).reshape(batch) for name in _TENSORS)
    return Solution(Curve(nodes.reshape(*batch, *nodes.shape[1:])), *tensors)
