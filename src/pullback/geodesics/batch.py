"""Many pairs, in blocks: several starts each, pairs that break the decoder set apart, interruptions survived."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.curves import Curve
from pullback.geodesics.halves import by_halves
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import GeodesicSolver
from pullback.geodesics.starts import Start, start_nodes
from pullback.metrics import Metric

OnInterrupt = Literal["raise", "keep"]
_BLOCK = {"cpu": 256}  # pairs: what an interruption loses
_BLOCK_ELSEWHERE = 16_384
_SAME = 0.06  # of the distance between its ends: a coarse curve as near as that to a geodesic leads to it
_MANY = 8  # times the segments of the finest curve are too many for all
_LOG = logging.getLogger("pullback")


def _log(error: Exception) -> None:
    _LOG.warning("the decoder raised on some pairs: %s: %s", type(error).__name__, error)


def solve_pairs(
    solver: GeodesicSolver,
    metric: Metric,
    start: Tensor,
    end: Tensor,
    starts: Start | Sequence[Start],
    *,
    tol: float,
    progress: bool,
    on_interrupt: OnInterrupt,
    on_raise: Callable[[Exception], object] = _log,
) -> Solution:
    """Geodesics of pairs (B, d); pairs whose points coincide are at rest.

    An error that the decoder raises on some pairs is told to `on_raise`, the first of them; on all pairs, it is raised.
    """
    nodes = start_nodes(metric, start, end, starts)
    apart = (start != end).any(1).nonzero().reshape(-1)
    size = _BLOCK.get(start.device.type, _BLOCK_ELSEWHERE)
    blocks = apart.split(size) if len(apart) else ()
    found = [_at_rest(start, end)]
    where = [torch.arange(len(start), device=start.device)]
    alone = len(blocks) * len(nodes) <= 1  # then the solver's own bar tells more
    raised: list[Exception] = []
    with tqdm(total=len(apart), desc="geodesics", unit="pair", disable=alone or not progress) as bar:
        for i, rows in enumerate(blocks):
            pairs = start[rows], end[rows]
            parts: list[Solution] = []
            try:
                for z in nodes:
                    bar_here = alone and progress
                    parts.append(_solve_unless_known(solver, metric, *pairs, z[rows], parts, raised, tol, bar_here))
            except KeyboardInterrupt:
                if on_interrupt == "raise":
                    raise
                rows = torch.cat(blocks[i:])
                found.append(_failed(start[rows], end[rows], Status.INTERRUPTED))
                where.append(rows)
                break
            found.append(_shortest(parts))
            where.append(rows)
            bar.update(len(rows))
    solution = put_together(found, where, len(nodes))
    if raised:
        if (solution.codes[apart] == Status.RAISED.code).all():
            raise raised[0]
        on_raise(raised[0])
    return solution


def _solve_unless_known(
    solver: GeodesicSolver, metric: Metric, start: Tensor, end: Tensor, nodes: Tensor, known: list[Solution],
    raised: list[Exception], tol: float, progress: bool,
) -> Solution:  # fmt: skip
    """Solve; where a draft already lies along a geodesic that is known from another start, take that one."""
    quick = solver.draft() if known else None
    if quick is None:
        return _solve(solver, metric, start, end, nodes, raised, tol=tol, progress=progress)
    draft = _solve(quick, metric, start, end, nodes, raised, tol=tol, progress=False)
    parts, where = [draft], [torch.arange(len(start), device=start.device)]
    new = torch.ones_like(draft.codes, dtype=torch.bool)
    for solution in known:
        rows = (new & solution.converged & _along(draft.curve, solution.curve)).nonzero().reshape(-1)
        new[rows] = False
        spent = {"iterations": draft.iterations[rows], "evaluations": draft.evaluations[rows]}
        parts.append(replace(solution[rows], **spent))
        where.append(rows)
    rows = new.nonzero().reshape(-1)
    if len(rows):
        begun = draft.curve.nodes[rows] if draft.curve.n_segments > 1 else nodes[rows]
        found = _solve(solver, metric, start[rows], end[rows], begun, raised, tol=tol, progress=progress)
        spent = {name: getattr(found, name) + getattr(draft, name)[rows] for name in ("iterations", "evaluations")}
        parts.append(replace(found, **spent))
        where.append(rows)
    return put_together(parts, where, 1)


def _along(curves: Curve, others: Curve) -> Tensor:
    """Which curves (B,) lie along others, to a small share of the distance between their ends."""
    samples = others.resample(max(64, others.n_segments)).nodes
    nodes = curves.resample(8).nodes
    distance = (nodes[:, -1] - nodes[:, 0]).norm(dim=1)
    return torch.cdist(nodes, samples).amin(2).amax(1) <= _SAME * distance


def _solve(
    solver: GeodesicSolver, metric: Metric, start: Tensor, end: Tensor, nodes: Tensor, raised: list[Exception], *,
    tol: float, progress: bool,
) -> Solution:  # fmt: skip
    """Solve; pairs that make the decoder raise an error fail alone, and the error is noted in `raised`."""

    def solved(rows: Tensor) -> Solution:
        whole = len(rows) == len(start)
        bar = progress and whole
        return solver.solve(metric, start[rows], end[rows], tol=tol, nodes=nodes[rows], progress=bar)

    where, parts, error = by_halves(solved, torch.arange(len(start), device=start.device))
    if error is None and parts[0] is not None:
        return parts[0]
    raised += [error] if error is not None else []
    failed = [_failed(start[rows], end[rows], Status.RAISED) for rows in where]
    return put_together([f if part is None else part for f, part in zip(failed, parts, strict=True)], where, 1)


def _shortest(parts: Sequence[Solution]) -> Solution:
    """Of the solutions from several starts the shortest of each pair, with the lengths of all."""
    if len(parts) == 1:
        return parts[0]
    lengths = torch.stack([part.length for part in parts], 1)
    best = lengths.nan_to_num(torch.inf).argmin(1)
    n = _common_segments(parts)
    rows = torch.arange(len(best), device=best.device)

    def chosen(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts])[best, rows]

    nodes = torch.stack([part.curve.resample(n).nodes for part in parts])[best, rows]
    spent = {
        name: torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("iterations", "evaluations")
    }
    kept = {name: chosen(name) for name in ("length", "length_error", "energy", "codes")}
    return Solution(Curve(nodes), **kept, **spent, candidates=lengths)


def _at_rest(start: Tensor, end: Tensor) -> Solution:
    zero = start.new_zeros(len(start))
    counts = torch.zeros(len(start), dtype=torch.long, device=start.device)
    return Solution(Curve.straight(start, end), zero, zero, zero, counts, counts, counts)


def _failed(start: Tensor, end: Tensor, status: Status) -> Solution:
    rest = _at_rest(start, end)
    nothing = torch.full_like(rest.length, torch.nan)
    codes = torch.full_like(rest.codes, status.code)
    return replace(rest, length=nothing, length_error=nothing, energy=nothing, codes=codes)


def _common_segments(parts: Sequence[Solution]) -> int:
    """A number of segments at which all curves are the same splines still, unless it is very large."""
    counts = [part.curve.n_segments for part in parts]
    common = math.lcm(*counts)
    return common if common <= _MANY * max(counts) else max(counts)


def put_together(parts: list[Solution], where: list[Tensor], n_starts: int) -> Solution:
    """One solution of rows from parts, later ones on top; a spline with more nodes is the same spline."""
    n = _common_segments(parts)
    total = int(max(int(rows.max()) + 1 if len(rows) else 0 for rows in where))

    def merged(values: list[Tensor]) -> Tensor:
        whole = values[0].new_zeros(total, *values[0].shape[1:])
        for rows, value in zip(where, values, strict=True):
            whole[rows] = value
        return whole

    nodes = merged([part.curve.resample(n).nodes for part in parts])
    names = [field.name for field in fields(Solution) if field.name not in ("curve", "candidates")]
    tensors = {name: merged([getattr(part, name) for part in parts]) for name in names}
    candidates = None
    if n_starts > 1:
        several = [part.candidates for part in parts]
        candidates = merged(
            [p.length[:, None].expand(-1, n_starts) if c is None else c for p, c in zip(parts, several, strict=True)]
        )
    return Solution(Curve(nodes), **tensors, candidates=candidates)
