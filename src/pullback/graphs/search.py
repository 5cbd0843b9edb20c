"""One shortest path in a large graph: from both ends, no farther than needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from pullback.graphs.edges import Array

_GROW = 2.0  # a ball with twice the radius holds, in the plane, four times the points


def between(edges: csr_array, i: int, j: int, radius: float) -> tuple[list[int], float]:
    """The stops on a shortest path from i to j, and its length; no stops and infinity if there is none.

    Balls around both ends grow until they share a point, and until the path through it, of length l, is no longer than
    two radii. A shorter path has its middle on an edge that joins the balls: the best of these edges is on a shortest.

    Args:
        edges: Lengths (n, n), symmetric.
        i: A point.
        j: Another.
        radius: A first guess of half the length.
    """
    while True:
        found: Any = dijkstra(edges, directed=True, indices=[i, j], limit=radius, return_predecessors=True)
        far, before = found
        length = float(far.sum(0).min())  # where the balls meet
        if length <= 2 * radius:
            break
        if np.isfinite(length):
            radius = length / 2
        elif _closed(edges, far[0]) or _closed(edges, far[1]):
            return [], np.inf
        else:
            radius *= _GROW
    inside = np.nonzero(np.isfinite(far[0]))[0]
    rows = edges[inside]
    near = np.repeat(inside, np.diff(rows.indptr))
    totals = far[0, near] + rows.data + far[1, rows.indices]
    if not len(totals) or totals.min() >= length:  # the middle of a shortest path is a point
        middle = int(far.sum(0).argmin())
        return [*_back(before[0], middle, i)[::-1], *_back(before[1], middle, j)[1:]], length
    best = int(totals.argmin())
    return [*_back(before[0], near[best], i)[::-1], *_back(before[1], rows.indices[best], j)], float(totals[best])


def _closed(edges: csr_array, far: Array) -> bool:
    """Whether no edge leads out of a ball: it is a part of the graph by itself."""
    return bool(np.isfinite(far[edges[np.nonzero(np.isfinite(far))[0]].indices]).all())


def _back(before: Array, stop: int, source: int) -> list[int]:
    """The stops from one back to the source."""
    stops = [int(stop)]
    while stops[-1] != source:
        stops.append(int(before[stops[-1]]))
    return stops
