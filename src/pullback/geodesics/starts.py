"""Curves for a solver to start from: straight lines, bends to the sides, given curves, paths through a graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.halves import by_halves
from pullback.metrics import Metric


@runtime_checkable
class Paths(Protocol):
    """Whatever knows a way between any two points, such as a graph."""

    def curves(self, metric: Metric, start: Tensor, end: Tensor) -> tuple[Curve, Tensor]:
        """Curves from start to end (B, d), and which of them were found (B,)."""
        ...


Start = str | Curve | Paths
_BEND = 0.3  # how far a bend reaches to the side, as a share of the distance
_BEND_SEGMENTS = 8


def start_nodes(metric: Metric, start: Tensor, end: Tensor, starts: Start | Sequence[Start]) -> list[Tensor]:
    """Nodes (B, T + 1, d) of the curves of each start, from start to end (B, d).

    Args:
        metric: The metric, for starts that look for short ways.
        start: (B, d).
        end: (B, d).
        starts: "straight"; "bends" (two ways to each side in up to two directions); curves; or a graph.
    """
    several = [starts] if isinstance(starts, str | Curve | Paths) else list(starts)
    if not several:
        raise ValueError('`starts` is empty: give "straight", "bends", a Curve, a Graph, or several of these.')
    nodes = []
    for one in several:
        if isinstance(one, Curve):
            nodes.append(_given(one, start, end))
        elif isinstance(one, Paths):
            nodes.append(_paths(one, metric, start, end))
        elif one == "straight":
            nodes.append(_straight(start, end))
        elif one == "bends":
            nodes += _bends(start, end)
        else:
            raise ValueError(f'{one!r} is no start: give "straight", "bends", a Curve, a Graph, or several of these.')
    return nodes


def _given(curves: Curve, start: Tensor, end: Tensor) -> Tensor:
    nodes = curves.nodes.detach()
    nodes = nodes.flatten(0, -3) if nodes.ndim > 2 else nodes[None]
    if len(nodes) != len(start) or nodes.shape[-1] != start.shape[-1]:
        want = (len(start), "T + 1", start.shape[-1])
        raise ValueError(f"the curves to start from have nodes {tuple(nodes.shape)}: want {want}, one for each pair.")
    _checks.same_kind(nodes, start, "curve.nodes", "start")
    if not (torch.equal(nodes[:, 0], start) and torch.equal(nodes[:, -1], end)):
        raise ValueError("the curves to start from keep their ends, and some ends are not `start` and `end`.")
    return nodes


def _paths(graph: Paths, metric: Metric, start: Tensor, end: Tensor) -> Tensor:
    every = torch.arange(len(start), device=start.device)
    where, parts, error = by_halves(lambda rows: graph.curves(metric, start[rows], end[rows]), every)
    known = [(rows, *part) for rows, part in zip(where, parts, strict=True) if part is not None]
    if error is not None and not known:
        raise error
    nodes, found = Curve(_straight(start, end)).resample(known[0][1].n_segments).nodes, torch.zeros_like(every).bool()
    for rows, curves, exist in known:
        nodes[rows], found[rows] = curves.nodes, exist
    if not found.all():
        lost = (~found).nonzero().reshape(-1).tolist()
        shown = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
        warnings.warn(
            f"the graph has no path for {len(lost)} of {len(start)} pairs ({shown}): they start from straight lines. "
            "Does the graph reach their points?",
            _checks.GeodesicWarning,
            stacklevel=5,
        )
    return nodes


def _straight(start: Tensor, end: Tensor) -> Tensor:
    return torch.stack((start, end), 1)


def _bends(start: Tensor, end: Tensor) -> list[Tensor]:
    """Half waves to both sides of the straight lines, along the axes that point least along them."""
    d = start.shape[1]
    along = end - start
    distance = along.norm(dim=1, keepdim=True).clamp_min(torch.finfo(along.dtype).tiny)
    t = torch.linspace(0, 1, _BEND_SEGMENTS + 1, dtype=start.dtype, device=start.device)[:, None]
    line = start[:, None] + t * along[:, None]
    line[:, -1] = end
    axes = along.abs().argsort(1)[:, : min(d - 1, 2)]
    basis = [along / distance]
    nodes = []
    for axis in axes.unbind(1):
        side = torch.nn.functional.one_hot(axis, d).to(along)
        for known in basis:
            side = side - (side * known).sum(1, keepdim=True) * known
        side = side / side.norm(dim=1, keepdim=True).clamp_min(torch.finfo(side.dtype).tiny)
        basis.append(side)
        wave = torch.sin(torch.pi * t) * (distance * side)[:, None] * _BEND
        wave[:, -1] = 0
        nodes += [line + wave, line - wave]
    return nodes if nodes else [_straight(start, end)]
