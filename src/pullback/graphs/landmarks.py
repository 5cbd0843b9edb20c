"""Bounds of graph distances between any two points from those to a few landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.csgraph import dijkstra
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.graphs.edges import Array
from pullback.graphs.graph import Graph

_BLOCK = 1 << 22  # numbers to hold at once in a query


@dataclass(frozen=True, eq=False, repr=False)
class Landmarks:
    r"""Distances from k landmarks to all points of a graph, which bound those between any two.

    By the triangle inequality

    .. math:: \max_l |d(l, i) - d(l, j)| \;\le\; d(i, j) \;\le\; \min_l \big(d(l, i) + d(l, j)\big) .

    The bounds hold for distances on the graph, to the rounding of float32, which they are kept in; the upper one holds
    for geodesic distances, too, for these are no longer. Memory: 4 k n bytes.

    Attributes:
        indices: The landmarks (k,): each was the point farthest from those before it.
        distances: (k, n), float32; inf where no path leads.

    Example:
        >>> points = torch.linspace(0, 1, 11)[:, None]
        >>> graph = Graph.from_edges(points, [(i, i + 1) for i in range(10)], [0.1] * 10)
        >>> lower, upper = Landmarks.of(graph, 2).bounds([2], [5])
        >>> round(float(lower), 4), round(float(upper), 4)  # landmarks at both ends of a line: the lower bound is exact
        (0.3, 0.7)
    """

    indices: Array
    distances: Array

    @classmethod
    def of(cls, graph: Graph, n_landmarks: int, *, first: int = 0, progress: bool = False) -> Landmarks:
        """Landmarks of a graph, spread by always taking the farthest point; a part without one is taken first.

        Args:
            graph: The graph.
            n_landmarks: k, at most the number of points.
            first: A point; the first landmark is the one farthest from it.
            progress: Whether to show a bar.

        Cost: one Dijkstra a landmark, and one more.
        """
        n = len(graph.points)
        _checks.at_least(n_landmarks, 1, "n_landmarks")
        if n_landmarks > n:
            raise ValueError(f"`n_landmarks` is {n_landmarks}, but the graph has {n} points: want no more than these.")
        _checks.indices(first, n, "first")
        nearest = _from(graph, int(first)).astype(np.float64)
        indices, rows = [], np.empty((n_landmarks, n), dtype=np.float32)
        for k in tqdm(range(n_landmarks), desc="landmarks", disable=not progress):
            indices.append(int(nearest.argmax()))  # infinity first
            rows[k] = _from(graph, indices[-1])
            nearest = rows[k].astype(np.float64) if k == 0 else np.minimum(nearest, rows[k])
        return cls(np.array(indices), rows)

    def bounds(self, i: Any, j: Any) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (m,) of the distances between points i (m,) and j (m,).

        Cost: 4 k numbers a pair. Pairs in different parts of the graph have the bounds inf and inf.
        """
        n = self.distances.shape[1]
        i, j = (_checks.indices(index, n, name).reshape(-1) for index, name in ((i, "i"), (j, "j")))
        if len(i) != len(j):
            raise ValueError(f"`i` has {len(i)} points but `j` has {len(j)}: want as many, they are pairs.")
        lower, upper = np.empty(len(i), dtype=np.float32), np.empty(len(i), dtype=np.float32)
        step = max(1, _BLOCK // len(self.indices))
        for first in range(0, len(i), step):
            some = slice(first, first + step)
            a, b = self.distances[:, i[some]], self.distances[:, j[some]]
            upper[some] = (a + b).min(0)
            seen = np.isfinite(a) & np.isfinite(b)
            apart = np.isfinite(a) != np.isfinite(b)
            gaps = np.abs(np.where(seen, a, 0) - np.where(seen, b, 0))
            # what rounding to float32 may have added
            slack = np.finfo(np.float32).eps * np.maximum(np.where(seen, a, 0), np.where(seen, b, 0))
            lower[some] = np.where(apart, np.inf, np.maximum(gaps - slack, 0)).max(0)
        same = i == j
        lower[same], upper[same] = 0, 0
        return torch.from_numpy(lower), torch.from_numpy(upper * (1 + np.finfo(np.float32).eps))

    def __repr__(self) -> str:
        return f"Landmarks({len(self.indices)} of {self.distances.shape[1]} points)"


def _from(graph: Graph, i: int) -> Array:
    found: Any = dijkstra(graph.edges, directed=True, indices=i)
    return found
