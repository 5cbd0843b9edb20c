"""Many pairs, in blocks: several starts each, pairs that break the decoder set apart, interruptions survived."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.curves import Curve
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import GeodesicSolver
from pullback.geodesics.starts import Start, start_nodes
from pullback.metrics import Metric

OnInterrupt = Literal["raise", "keep"]
_BLOCK = {"cpu": 256}  # pairs: what an interruption loses
_BLOCK_ELSEWHERE = 16_384
_BUGS = (TypeError, AttributeError, NameError, IndexError)  # to be seen, not to be worked around
_LOG = logging.getLogger("pullback")


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
) -> Solution:
    """Geodesics of pairs (B, d); pairs whose points coincide are at rest."""
    nodes = start_nodes(metric, start, end, starts)
    apart = (start != end).any(1).nonzero().reshape(-1)
    size = _BLOCK.get(start.device.type, _BLOCK_ELSEWHERE)
    blocks = apart.split(size) if len(apart) else ()
    found = [_at_rest(start, end)]
    where = [torch.arange(len(start), device=start.device)]
    one = len(blocks) <= 1
    raised: Exception | None = None
    with tqdm(total=len(apart), desc="geodesics", unit="pair", disable=one or not progress) as bar:
        for i, rows in enumerate(blocks):
            try:
                parts, errors = zip(
                    *(
                        _solve_or_split(solver, metric, start[rows], end[rows], z[rows], tol, one and progress)
                        for z in nodes
                    ),
                    strict=True,
                )
            except KeyboardInterrupt:
                if on_interrupt == "raise":
                    raise
                rows = torch.cat(blocks[i:])
                found.append(_failed(start[rows], end[rows], Status.INTERRUPTED))
                where.append(rows)
                break
            raised = raised or next(filter(None, errors), None)
            found.append(_shortest(parts))
            where.append(rows)
            bar.update(len(rows))
    solution = _put_together(found, where, len(nodes))
    if raised is not None:
        if (solution.codes[apart] == Status.RAISED.code).all():
            raise raised
        _LOG.warning("the decoder raised on some pairs: %s: %s", type(raised).__name__, raised)
    return solution


def _solve_or_split(
    solver: GeodesicSolver, metric: Metric, start: Tensor, end: Tensor, nodes: Tensor, tol: float, progress: bool
) -> tuple[Solution, Exception | None]:
    """Solve; where the decoder raises an error, halve until the pairs that make it raise are alone. And that error."""
    try:
        return solver.solve(metric, start, end, tol=tol, nodes=nodes, progress=progress), None
    except (MemoryError, torch.OutOfMemoryError, Warning, *_BUGS):
        raise
    except Exception as error:
        reason = error
    if len(start) == 1:
        return _failed(start, end, Status.RAISED), reason
    half = len(start) // 2
    halves = [slice(0, half), slice(half, None)]
    parts = [_solve_or_split(solver, metric, start[rows], end[rows], nodes[rows], tol, False)[0] for rows in halves]
    count = torch.arange(len(start), device=start.device)
    return _put_together(parts, [count[rows] for rows in halves], 1), reason


def _shortest(parts: Sequence[Solution]) -> Solution:
    """Of the solutions from several starts the shortest of each pair, with the lengths of all."""
    if len(parts) == 1:
        return parts[0]
    lengths = torch.stack([part.length for part in parts], 1)
    best = lengths.nan_to_num(torch.inf).argmin(1)
    n = max(part.curve.n_segments for part in parts)
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


def _put_together(parts: list[Solution], where: list[Tensor], n_starts: int) -> Solution:
    """One solution of rows from parts, later ones on top; a spline with more nodes is the same spline."""
    n = max(part.curve.n_segments for part in parts)
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
