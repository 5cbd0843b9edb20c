"""Are the lengths right? The same geodesics again: finer, from other starts, and measured by samples of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback import _checks
from pullback.chords import chord_length
from pullback.curves import squared_chords
from pullback.geodesics.batch import put_together, solve_pairs
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.relax import Relax
from pullback.geodesics.solution import Solution, Status, _listed
from pullback.metrics import Metric

_TIGHTER = 100.0  # times the tolerance of the second look
_TIGHTEST = 1e-9
_LOOSEST = 1e-2
_SAMPLES = 2054  # segments, 2 * 13 * 79: in common with the nodes of solvers are the ends and the middle
_MEASURED = _SAMPLES + 3  # evaluations
_BETWEEN = 1e-6  # of its length is what a spline may differ from the geodesic whose nodes it goes through


@dataclass(frozen=True, repr=False)
class Verification:
    """What a second look at geodesics found; tensors have the batch shape (...) of the pairs.

    Attributes:
        claimed: The given length.
        length: The best length now known: of the finer curve, or of a shorter one from another start. NaN where nothing
            was found.
        change: How much longer the claimed length was, relative to that; NaN where either is missing.
        within: Whether the given length is confirmed: neither the finer one nor the measured one differs from it by
            more than the larger of the errors.
        shorter: Whether another start led to a curve that is shorter by more than both errors.
        jumped: Whether the given curve is longer than was said: it crosses a wall between two samples of the solver.
        measured: Length of the given curves by 2,054 chords; NaN where the decoder is not finite.
        solution: The curves of `length`; its evaluations are those of all looks.
    """

    claimed: Tensor
    length: Tensor
    change: Tensor
    within: Tensor
    shorter: Tensor
    jumped: Tensor
    measured: Tensor
    solution: Solution

    @property
    def message(self) -> str:
        """What was found, in words: how many lengths are confirmed, which are not, and why."""
        shift, jump = self.change.abs(), self.measured / self.claimed - 1
        unknown = shift.isnan()
        moved = ~(self.within | self.shorter | self.jumped | unknown)
        lines = [f"{int(self.within.sum())} of {self.within.numel()} lengths confirmed within their errors"]
        for which, amount, what in (
            (self.shorter, shift, "shorter from another start, {}: the minimum is not unique; give several starts"),
            (self.jumped, jump, "longer when sampled finely, {}: walls; try Relax(first_segments=...)"),
            (moved, shift, "moved by more than the error, {}"),
            (unknown & ~self.length.isnan(), None, "failed before and found now"),
            (self.length.isnan(), None, "found neither finer nor from other starts"),
        ):
            if which.any():
                most = "" if amount is None else f"by up to {float(amount[which].max()):.1e} of the length"
                lines.append(f"{int(which.sum())} {what.format(most)}{_listed(which)}")
        return "; ".join(lines)

    def __repr__(self) -> str:
        return f"Verification({self.message})"


def verify(metric: Metric, path: Solution, *, progress: bool = False) -> Verification:
    """Solve again, finer and independently, and say by how much the answer moves.

    Three looks at each pair: the given curve is relaxed at a tolerance some 100 times tighter than its reported
    relative error; the pair is solved from a straight line and from bends to the sides; and the given curve is measured
    by 2,054 chords between points that no solver has looked at. So other minima nearby and walls down to 1/1000 of a
    curve are seen. What the looks do not find may still be there.

    Args:
        metric: The metric that was solved with.
        path: Geodesics of any batch shape, from any solver. Of pairs that failed, other starts are tried.
        progress: Whether to show bars.

    Returns:
        The best lengths, the changes, and which of the given lengths are confirmed; in words as ``message``.

    Cost:
        2,057 evaluations a curve to measure it, and what :func:`geodesic` takes for the finer curve and from three
        starts, five where d > 2: on a VAE 16,000 in all, ten times the first solution.

    Example:
        >>> import pullback as pb
        >>> sphere = pb.Pullback(pb.surfaces.Sphere())
        >>> path = pb.geodesic(sphere, torch.zeros(2).double(), torch.tensor([0.6, 0.8]).double())
        >>> verify(sphere, path)
        Verification(1 of 1 lengths confirmed within their errors)
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    if not isinstance(path, Solution):
        raise TypeError(f"`path` is a {type(path).__name__}: give the Solution that geodesic(...) returned.")
    batch = path.length.shape
    flat = path.reshape(torch.Size([path.length.numel()]))
    ends = flat.curve.nodes[:, 0], flat.curve.nodes[:, -1]
    measured, rounding = torch.full_like(flat.length, torch.nan), torch.zeros_like(flat.length)
    fit = (flat.codes != Status.RAISED.code).nonzero().reshape(-1)
    if len(fit):
        measured[fit] = chord_length(*squared_chords(metric, flat.curve[fit].resample(_SAMPLES).nodes))
        rounding[fit] = DiscreteEnergy.between(metric, *(points[fit] for points in ends)).rounding(_SAMPLES)
    measured[(ends[0] == ends[1]).all(1)] = 0  # splines through one point leave it by rounding
    slack = _BETWEEN * flat.length + rounding
    best, shorter = _again(metric, flat, progress)
    allowed = torch.maximum(flat.length_error, best.length_error)
    change = (flat.length - best.length) / best.length
    change = torch.where(flat.length == best.length, 0, change)  # at rest
    longer = measured - flat.length
    jumped = longer > allowed.nan_to_num() + flat.length_error + slack
    within = ((flat.length - best.length).abs() <= allowed) & (longer.abs() <= allowed + slack)
    tensors = (flat.length, best.length, change, within, shorter, jumped, measured)
    return Verification(*(tensor.reshape(batch) for tensor in tensors), solution=best.reshape(batch))


def _again(metric: Metric, path: Solution, progress: bool) -> tuple[Solution, Tensor]:
    """The best of the finer curves and of those from other starts, and which of the latter are shorter: (B,)."""
    shorter = torch.zeros_like(path.converged)
    spent = torch.zeros_like(path.evaluations)
    found, where = [path], [torch.arange(len(shorter), device=shorter.device)]
    for tol, rows in _by_error(path):
        rows = rows[path.codes[rows] != Status.RAISED.code]  # it would raise again
        if not len(rows):
            continue
        given = path[rows]
        start, end = given.curve.nodes[:, 0], given.curve.nodes[:, -1]
        tighter = max(tol / _TIGHTER, _TIGHTEST)
        finer = _solve(metric, start, end, given.curve, tighter, progress)
        others = _solve(metric, start, end, ("straight", "bends"), tol, progress)
        errors = given.length_error + others.length_error
        shorter[rows] = given.length - others.length > errors
        better = finer.length - others.length > finer.length_error + others.length_error
        better = (better | ~finer.converged) & others.converged
        found += [finer, others[better]]
        where += [rows, rows[better]]
        spent[rows] = finer.evaluations + others.evaluations + _MEASURED
    return replace(put_together(found, where, 1), evaluations=spent), shorter


def _solve(metric: Metric, start: Tensor, end: Tensor, starts: object, tol: float, progress: bool) -> Solution:
    return solve_pairs(
        Relax(), metric, start, end, starts, tol=tol, progress=progress, on_interrupt="raise"  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def _by_error(path: Solution) -> list[tuple[float, Tensor]]:
    """Tolerances, the powers of ten nearest to the relative errors of pairs, and the pairs (n,) of each."""
    share = (path.length_error / path.length).nan_to_num(_LOOSEST).clamp(_TIGHTER * _TIGHTEST, _LOOSEST)
    decades = share.log10().round()
    return [(10.0 ** float(k), (decades == k).nonzero().reshape(-1)) for k in decades.unique()]
