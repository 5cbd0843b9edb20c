"""Graphs over latent points whose edges have decoded lengths: shortest paths are near geodesics, wherever walls are."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree
from torch import Tensor

from pullback import _checks
from pullback._batching import free_memory
from pullback.chords import root
from pullback.curves import Curve, squared_chords
from pullback.metrics import Metric
from pullback.types import Points

if TYPE_CHECKING:
    import networkx

Array = NDArray[Any]
_SMOOTH = 0.1  # the share of its length that a middle sample may add to an edge that counts as smooth
_TIE = 1 + 1e-9  # lengths this close are equal, so that rounding does not choose between paths
_BLOCK = 256 << 20  # bytes of distances and predecessors to hold at once
_LINKS = 16  # latent pairs that are measured when a part of a graph is joined to the others
_PASSES = 8  # of smoothing; more cut the corners around walls
_BRIDGE_SAMPLES = 15  # interior samples of a bridge, which is longer than other edges


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    r"""Points joined by straight edges with decoded lengths; it holds no metric and pickles.

    The length of a shortest path is that of a broken line in latent space, so that it is, up to the errors of its
    edges, never below the distance of its ends. Make one by :func:`knn_graph`, :func:`grid_graph` or
    :meth:`from_edges`, and give it to the geodesic solver: ``geodesic(metric, a, b, init=graph)``.

    Attributes:
        points: (n, d).
        edges: Lengths (n, n), sparse and symmetric; an explicit zero is an edge of length zero.
        errors: Of each stored length, in the order of ``edges.data``: how much the samples inside an edge add to its
            length. NaN where there were none. The true error is mostly far below.
        bridges: Edges (m, 2) that were added to join separate parts.
        dropped: How many edges met points where the decoder is not finite; they are not in the graph.
        n_neighbors: To how many points a new point is linked.
        n_interior: Samples inside each edge.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> graph = Graph.from_edges(points, [(0, 1), (1, 2)], [1.0, 2.0])
        >>> graph.distances(0)
        tensor([0., 1., 3.])
        >>> graph.path(0, 2)
        tensor([0, 1, 2])
    """

    points: Tensor
    edges: csr_array
    errors: Array
    bridges: Array = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    dropped: int = 0
    n_neighbors: int = 16
    n_interior: int = 1

    @classmethod
    def from_edges(cls, points: Points, pairs: Any, lengths: Any, *, errors: Any = None, **settings: Any) -> Graph:
        """A graph from edges (m, 2) and their lengths (m,), each given once or in both directions; the shortest counts.

        Raises:
            ValueError: When an edge leads to a point that is not there, or a length is negative or not finite.
        """
        points = _checks.cloud(points, "points")
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        lengths = np.asarray(lengths, dtype=np.float64).reshape(-1)
        _checks.edges(pairs, lengths, len(points))
        errors = np.full(len(lengths), np.nan) if errors is None else np.asarray(errors, dtype=np.float64)
        low, high = pairs.min(1), pairs.max(1)
        order = np.lexsort((lengths, high, low))
        order = order[low[order] != high[order]]
        code = low[order] * len(points) + high[order]
        order = order[np.diff(code, prepend=-1) != 0]
        rows, columns = np.concatenate((low[order], high[order])), np.concatenate((high[order], low[order]))
        by_row = np.lexsort((columns, rows))
        data, slack = (np.concatenate((values[order], values[order]))[by_row] for values in (lengths, errors))
        starts = np.searchsorted(rows[by_row], np.arange(len(points) + 1))
        return cls(points.detach(), _compressed(data, columns[by_row], starts), slack, **settings)

    def distances(self, sources: int | Sequence[int] | Tensor) -> Tensor:
        """Lengths of shortest paths from sources, one (n,) or several (k, n), to every point; inf where none leads.

        Cost: about n log n a source and no decoder evaluation: 2 ms at 3,000 points with 16 neighbors.
        """
        index = _checks.indices(sources, len(self.points), "sources")
        found: Any = dijkstra(self.edges, directed=True, indices=index.reshape(-1))
        return torch.from_numpy(found.reshape(*index.shape, len(self.points))).to(self.points)

    def path(self, i: int, j: int) -> Tensor:
        """The points on a shortest path from point i to point j, both included.

        Raises:
            ValueError: When none leads there.
        """
        source, target = (int(_checks.indices(k, len(self.points), name)) for k, name in ((i, "i"), (j, "j")))
        found: Any = dijkstra(self.edges, directed=True, indices=[source], return_predecessors=True)
        if not np.isfinite(found[0][0, target]):
            raise _checks.no_path(i, j)
        stops = _walk(found[1], np.zeros(1, dtype=np.int64), np.array([target]), np.array([source]))
        return torch.as_tensor(stops[0], device=self.points.device)

    def components(self) -> Tensor:
        """The connected part of each point: (n,), counted from 0."""
        return torch.as_tensor(_parts(self.edges), device=self.points.device).long()

    def to_networkx(self) -> networkx.Graph:
        """The graph with ``point`` (d,) at each node, and ``weight``, the length, and ``error`` at each edge."""
        import networkx

        graph = networkx.Graph(n_neighbors=self.n_neighbors, n_interior=self.n_interior)
        graph.add_nodes_from((i, {"point": point}) for i, point in enumerate(self.points.cpu().numpy()))
        rows, columns = np.repeat(np.arange(len(self.points)), np.diff(self.edges.indptr)), self.edges.indices
        once = rows < columns
        values = zip(rows[once], columns[once], self.edges.data[once], self.errors[once], strict=True)
        graph.add_edges_from((int(i), int(j), {"weight": float(w), "error": float(e)}) for i, j, w, e in values)
        return graph

    @classmethod
    def from_networkx(cls, graph: networkx.Graph) -> Graph:
        """The same from a networkx graph, whose nodes of any name have a ``point`` and whose edges a ``weight``.

        Raises:
            ValueError: When an attribute is missing, or the graph is directed.
        """
        if graph.is_directed():
            raise _checks.directed()
        number = {name: k for k, name in enumerate(graph)}
        _checks.attributes(graph.nodes(data=True), graph.edges(data=True))
        held = [(number[i], number[j], w["weight"], w.get("error", math.nan)) for i, j, w in graph.edges(data=True)]
        pairs, rest = np.array([h[:2] for h in held]), np.array([h[2:] for h in held], dtype=float).reshape(-1, 2)
        points = torch.as_tensor(np.stack([np.asarray(point) for _, point in graph.nodes(data="point")]), device="cpu")
        settings = {name: graph.graph[name] for name in ("n_neighbors", "n_interior") if name in graph.graph}
        return cls.from_edges(points, pairs, rest[:, 0], errors=rest[:, 1], **settings)

    def curves(self, metric: Metric, start: Points, end: Points, n_segments: int = 32) -> tuple[Curve, Tensor]:
        """Shortest paths between any points, made ready for a solver to start from.

        Start and end are linked to the nearest points of the graph, the path is smoothed a little unless that makes it
        longer, and replaced by the straight line where that is shorter. Nodes stand at equal decoded steps.

        Args:
            metric: The metric that the graph was made with.
            start: Points (..., d); they need not be in the graph.
            end: Points (..., d); both broadcast.
            n_segments: T.

        Returns:
            Curves with nodes (..., T + 1, d) and exact ends, and whether a path was found: (...). Where none was, the
            curve is the straight line. A pair does not depend on the others.

        Cost:
            ``2 (T + 1)`` evaluations a pair, and ``n_neighbors (n_interior + 2)`` or less for each new point; one
            Dijkstra for each start.
        """
        if not isinstance(metric, Metric):
            raise _checks.not_a_metric(metric)
        start, end = _checks.pairs(start, end)
        _checks.same_kind(start, self.points, "start", "graph.points")
        _checks.at_least(n_segments, 1, "n_segments")
        batch, d = start.shape[:-1], start.shape[-1]
        a, b = start.detach().reshape(-1, d), end.detach().reshape(-1, d)
        line = Curve.straight(a, b, n_segments).nodes
        if len(a):
            with torch.no_grad():
                path, length = self._paths(metric, a, b, n_segments)
                found = torch.isfinite(length)
                path = torch.where(found[:, None, None], path, line)
                line = torch.where(found[:, None, None], _shortest(metric, path, length, line), line)
        else:
            found = torch.zeros(0, dtype=torch.bool, device=a.device)
        return Curve(line.reshape(*batch, *line.shape[1:])), found.reshape(batch)

    def __repr__(self) -> str:
        n, d = self.points.shape
        parts = int(_parts(self.edges).max()) + 1
        return f"Graph({n} points, d = {d}, {self.edges.nnz // 2} edges, {parts} components)"

    def _links(self, metric: Metric, new: Tensor) -> tuple[Array, Array]:
        """The points of the graph (m, k) next to new points (m, d), and how far they are: inf where none can tell."""
        near = _nearest(self.points, new, min(self.n_neighbors, len(self.points)))
        own = len(self.points) + np.arange(len(new))[:, None]
        pairs = np.stack(np.broadcast_arrays(near, own), -1).reshape(-1, 2)
        lengths, _ = _measure(metric, torch.cat((self.points, new)), pairs, max(self.n_interior, 3))
        return near, np.where(np.isfinite(lengths), lengths, np.inf).reshape(near.shape)

    def _paths(self, metric: Metric, start: Tensor, end: Tensor, n_segments: int) -> tuple[Tensor, Tensor]:
        """Nodes (B, T + 1, d) at equal decoded steps along shortest paths; their lengths (B,), inf if there is none."""
        (origins, row), (goals, column) = (torch.unique(z, dim=0, return_inverse=True) for z in (start, end))
        row, column = row.cpu().numpy(), column.cpu().numpy()
        out, out_length = self._links(metric, origins)
        into, into_length = self._links(metric, goals)
        nodes, total = start.new_empty(len(start), n_segments + 1, start.shape[1]), np.empty(len(start))
        n, size = len(self.points), max(1, _BLOCK // (12 * len(self.points)))
        for first in range(0, len(origins), size):
            block = slice(first, min(first + size, len(origins)))
            extended = self._extended(out[block], out_length[block])
            places = torch.cat((self.points, origins[block]))
            sources = np.arange(n, len(places))
            far, before = dijkstra(extended, directed=True, indices=sources, return_predecessors=True)
            rows = np.nonzero((row >= first) & (row < first + size))[0]
            local, source = row[rows] - first, n + row[rows] - first
            lengths = far[local[:, None], into[column[rows]]] + into_length[column[rows]]
            total[rows] = lengths.min(1)
            last = into[column[rows], (lengths <= total[rows, None] * _TIE).argmax(1)]
            stops = _walk(before, local, np.where(np.isfinite(total[rows]), last, source), source)
            travelled = np.concatenate((far[local[:, None], stops], total[rows, None]), 1)
            where = torch.as_tensor(rows, device=start.device)
            broken = torch.cat((places[torch.as_tensor(stops, device=start.device)], end[where, None]), 1)
            nodes[where] = _equal_steps(broken, torch.from_numpy(travelled).to(start), n_segments)
        return nodes, torch.from_numpy(total).to(start)

    def _extended(self, near: Array, lengths: Array) -> csr_array:
        """The edges and those out of new points to near ones (m, k): none comes in, and no path leads through two."""
        reach = np.isfinite(lengths)
        ends = self.edges.nnz + np.cumsum(reach.sum(1))
        data = np.concatenate((self.edges.data, lengths[reach]))
        return _compressed(data, np.concatenate((self.edges.indices, near[reach])), np.append(self.edges.indptr, ends))


def knn_graph(metric: Metric, codes: Points, n_neighbors: int = 16, *, n_interior: int = 1) -> Graph:
    """The graph that joins each point with those next to it by decoded length, in any latent dimension.

    Three times as many neighbors in latent space are measured, for these alone are wrong where the metric is
    anisotropic; the closest are kept, in both directions. Separate parts are joined by their cheapest links, which are
    the graph's ``bridges``.

    Args:
        metric: The metric.
        codes: Points (n, d); duplicates are joined by edges of length zero.
        n_neighbors: How many points each is joined with, at least; also new points.
        n_interior: Samples inside an edge; an odd number gives lengths of fourth order.

    Raises:
        ValueError: When there are no more points than neighbors, or some are not finite.

    Warns:
        GraphWarning: When edges were dropped because the decoder is not finite on them, or parts could not be joined.

    Cost:
        n + 3 n_neighbors n_interior n evaluations at most, mostly a third less since neighbors are mutual: points
        are decoded once, if their features fit the memory.

    Reference:
        Chen, Ferroni, Klushyn, Paraschos, Bayer, van der Smagt (2019), Fast approximate geodesics for deep generative
        models.

    Example:
        >>> import pullback as pb
        >>> line = torch.linspace(0, 1, 11)[:, None]
        >>> graph = knn_graph(pb.Pullback(lambda z: 3 * z), line, n_neighbors=2)
        >>> round(float(graph.distances(0)[10]), 4)
        3.0
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    codes = _checks.cloud(codes, "codes").detach()
    _checks.at_least(n_neighbors, 1, "n_neighbors")
    _checks.at_least(n_interior, 0, "n_interior")
    _checks.enough_points(len(codes), n_neighbors)
    pairs, which = _candidates(codes, 3 * n_neighbors)
    with torch.no_grad():
        lengths, errors = _measure(metric, codes, pairs, n_interior)
        defined = np.isfinite(lengths)
        ranked = np.where(defined, lengths, np.inf)[which]
        best = np.take_along_axis(which, ranked.argsort(1, kind="stable")[:, :n_neighbors], 1)
        kept = np.zeros(len(pairs), dtype=bool)
        kept[best] = True
        kept &= defined
        known = np.zeros(len(codes), dtype=bool)
        known[pairs[defined]] = True
        bridges, *measured = _bridges(metric, codes, pairs[kept], known, max(n_interior, _BRIDGE_SAMPLES))
    graph = Graph.from_edges(
        codes, np.concatenate((pairs[kept], bridges)), np.concatenate((lengths[kept], measured[0])),
        errors=np.concatenate((errors[kept], measured[1])), bridges=bridges, dropped=int((~defined).sum()),
        n_neighbors=n_neighbors, n_interior=n_interior,
    )  # fmt: skip
    _warn(graph, len(pairs), joined=True)
    return graph


def grid_graph(metric: Metric, bounds: Tensor, resolution: int | Sequence[int], *, n_interior: int = 1) -> Graph:
    """The graph over a regular grid in d <= 3 dimensions, which covers also what no code is near.

    Each point is joined with its 2, 8 or 26 neighbors, in the plane also by the 8 moves of a knight: paths turn less.

    Args:
        metric: The metric.
        bounds: (d, 2), the lower and upper end of each axis.
        resolution: Points along each axis, 2 or more: one number, or one for each axis.
        n_interior: Samples inside an edge; an odd number gives lengths of fourth order.

    Raises:
        ValueError: When bounds are empty, the resolution is below 2, or d above 3.

    Warns:
        GraphWarning: When edges were dropped because the decoder is not finite on them.

    Cost:
        With N points N + 8 N n_interior evaluations in the plane, N + 13 N n_interior in space.

    Example:
        >>> import pullback as pb
        >>> graph = grid_graph(pb.Pullback(torch.nn.Identity()), torch.tensor([[0.0, 1.0], [0.0, 2.0]]), (11, 21))
        >>> round(float(graph.distances(0)[-1]), 2)  # two legs: a knight's moves go 2 : 1
        2.24
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    _checks.at_least(n_interior, 0, "n_interior")
    shape = _checks.grid(bounds, resolution)
    bounds = bounds.detach()
    ticks = [torch.linspace(0, 1, count, dtype=bounds.dtype, device=bounds.device) for count in shape]
    axes = [low + (high - low) * t for (low, high), t in zip(bounds.unbind(0), ticks, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    index, reach = np.arange(len(points)).reshape(shape), 2 if len(shape) == 2 else 1
    steps = [step for step in itertools.product(range(-reach, reach + 1), repeat=len(shape)) if math.gcd(*step) == 1]
    joined = []
    for step in steps[len(steps) // 2 :]:  # in order, the first half are the opposites of the second
        here = tuple(slice(max(0, -s), max(0, count - max(0, s))) for s, count in zip(step, shape, strict=True))
        there = tuple(slice(max(0, s), max(0, count - max(0, -s))) for s, count in zip(step, shape, strict=True))
        joined.append(np.stack((index[here].reshape(-1), index[there].reshape(-1)), 1))
    pairs = np.concatenate(joined)
    with torch.no_grad():
        lengths, errors = _measure(metric, points, pairs, n_interior)
    good = np.isfinite(lengths)
    settings: dict[str, Any] = {"dropped": int((~good).sum()), "n_interior": n_interior}
    graph = Graph.from_edges(points, pairs[good], lengths[good], errors=errors[good], **settings)
    _warn(graph, len(pairs), joined=False)
    return graph


def _candidates(points: Tensor, k: int) -> tuple[Array, Array]:
    """The pairs (m, 2) of points (n, d) of which one is among the k nearest of the other, and those of each: (n, k)."""
    n = len(points)
    near, index = _nearest(points, points, min(k, n - 1) + 1), np.arange(n)[:, None]
    own = near == index
    own[~own.any(1), -1] = True  # among many duplicates a point may not find itself
    near = near[~own].reshape(n, -1)
    code, which = np.unique(np.minimum(near, index) * n + np.maximum(near, index), return_inverse=True)
    return np.stack((code // n, code % n), 1), which.reshape(n, -1)


def _measure(metric: Metric, points: Tensor, pairs: Array, n_interior: int) -> tuple[Array, Array]:
    """Decoded lengths (m,) of straight edges (m, 2) between points (n, d), and how much the samples inside add.

    NaN where the decoder is not finite. Points are decoded once, but in turns when all their features are too large.
    """
    i, j = torch.as_tensor(pairs, device=points.device).unbind(1)
    used, (i, j) = torch.unique(torch.stack((i, j)), return_inverse=True)
    limit = metric.points_at_once(points)
    x = metric.features(points[used[:limit]])
    if len(pairs) > limit and x.shape[1] * x.element_size() * len(used) > free_memory(points.device) // 4:
        halves = [_measure(metric, points, half, n_interior) for half in np.array_split(pairs, 2)]
        return np.concatenate([half[0] for half in halves]), np.concatenate([half[1] for half in halves])
    if len(used) > limit:
        x = torch.cat((x, metric.features(points[used[limit:]])))
    t = torch.linspace(0, 1, n_interior + 2, dtype=points.dtype, device=points.device)[1:-1, None]
    results = []
    for k in torch.arange(len(i), device=i.device).split(max(1, limit // max(1, n_interior))):
        ends, images = (points[used[i[k]], None], points[used[j[k]], None]), (x[i[k], None], x[j[k], None])
        inside = metric.features((1 - t) * ends[0] + t * ends[1]) if n_interior else images[0][:, :0]
        results.append(_edge_length(*metric.squared_chords(torch.cat((images[0], inside, images[1]), 1))))
    lengths, errors = (torch.cat(values).double().cpu().numpy() for values in zip(*results, strict=True))
    return lengths, errors


def _edge_length(single: Tensor, double: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (m,) from squared chords (m, T) and double chords (m, T // 2), and by how much these disagree."""
    fine, coarse = root(single), root(double).sum(1)
    paired = fine[:, : 2 * double.shape[1]].sum(1)
    gain, length = paired - coarse, fine.sum(1)
    defined = torch.isfinite(length)
    if double.shape[1] == 0:
        gain = torch.full_like(length, torch.nan)
    smooth = (gain.abs() <= _SMOOTH * length) & (fine.shape[1] % 2 == 0)  # elsewhere a third of it may be too much
    length = torch.where(smooth, length + gain / 3, length)
    return length.masked_fill(~defined, torch.nan), gain.abs()


def _bridges(metric: Metric, points: Tensor, pairs: Array, known: Array, n_interior: int) -> tuple[Array, Array, Array]:
    """The edges (m, 2) that join the parts of a graph, their lengths and errors.

    Each part but the largest gets its cheapest link to the rest, until none is left. Only links between known points,
    those where the decoder is finite, are tried: in each part the pairs that are closest in latent space.
    """
    edges, lengths, errors = np.empty((0, 2), dtype=np.int64), np.empty(0), np.empty(0)
    while True:
        both = np.concatenate((pairs, edges))
        part = _parts(csr_array((np.ones(len(both)), both.T), shape=(len(points), len(points))))
        sizes = np.bincount(part[known], minlength=1)
        candidates, owners = [], []
        for label in np.nonzero(sizes)[0]:
            if label == sizes.argmax():
                continue
            inside, outside = np.nonzero(known & (part == label))[0], np.nonzero(known & (part != label))[0]
            k = min(4, len(outside))
            partner = outside[_nearest(points[outside], points[inside], k)]
            links = np.stack((np.repeat(inside, k), partner.reshape(-1)), 1)
            gap = (points[links[:, 0]] - points[links[:, 1]]).square().sum(1).cpu().numpy()
            candidates.append(links[gap.argsort(kind="stable")[:_LINKS]])
            owners.append(np.full(len(candidates[-1]), len(owners)))
        if not candidates:
            return edges, lengths, errors
        links, owner = np.concatenate(candidates), np.concatenate(owners)
        length, error = _measure(metric, points, links, n_interior)
        order = np.lexsort((length, owner))  # NaN last
        order = order[np.diff(owner[order], prepend=-1) != 0]
        order = order[np.isfinite(length[order])]
        if not len(order):
            return edges, lengths, errors
        edges = np.concatenate((edges, links[order]))
        lengths, errors = np.concatenate((lengths, length[order])), np.concatenate((errors, error[order]))
        edges, first = np.unique(np.sort(edges, 1), axis=0, return_index=True)  # two parts may choose the same
        lengths, errors = lengths[first], errors[first]


def _shortest(metric: Metric, path: Tensor, length: Tensor, line: Tensor) -> Tensor:
    """Of paths (B, T + 1, d) of known lengths (B,), the same smoothed, and straight lines: what is shortest, each."""
    smooth = path.clone()
    for _ in range(_PASSES):
        smooth[:, 1:-1] = 0.25 * (smooth[:, :-2] + smooth[:, 2:]) + 0.5 * smooth[:, 1:-1]
    both = torch.cat((line, smooth))
    steps = root(squared_chords(metric, both)[0])
    travelled = torch.cat((torch.zeros_like(steps[:, :1]), steps.cumsum(1)), 1)
    even = _equal_steps(both, travelled, path.shape[1] - 1)
    lengths = torch.cat((travelled[:, -1], length)).reshape(3, -1).nan_to_num(torch.inf, torch.inf)
    chosen = (lengths <= lengths.amin(0) * _TIE).long().argmax(0)  # the first: straight, then smooth
    return torch.cat((even, path)).reshape(3, *path.shape)[chosen, torch.arange(len(path), device=path.device)]


def _equal_steps(nodes: Tensor, travelled: Tensor, n_segments: int) -> Tensor:
    """Points (B, T + 1, d) at equal steps of the distance travelled (B, m) along broken lines of nodes (B, m, d)."""
    t = torch.linspace(0, 1, n_segments + 1, dtype=nodes.dtype, device=nodes.device)
    goal = (t * travelled[:, -1:]).contiguous()
    right = torch.searchsorted(travelled.contiguous(), goal).clamp(1, nodes.shape[1] - 1)
    before, after = travelled.gather(1, right - 1), travelled.gather(1, right)
    share = torch.where(after > before, (goal - before) / (after - before), 0)[..., None]
    index = right[..., None].expand(-1, -1, nodes.shape[2])
    points = (1 - share) * nodes.gather(1, index - 1) + share * nodes.gather(1, index)
    points[:, 0], points[:, -1] = nodes[:, 0], nodes[:, -1]
    return points


def _walk(before: Array, row: Array, last: Array, source: Array) -> Array:
    """The stops (B, m) on paths from sources to the last (B,), by predecessors (k, n); short ones wait at first."""
    stops = [last]
    while (stops[-1] != source).any():
        stops.append(np.where(stops[-1] == source, source, before[row, stops[-1]]).astype(np.int64))
    return np.stack(stops[::-1], 1)


def _nearest(points: Tensor, queries: Tensor, k: int) -> Array:
    """The k points (n, d) that are closest in latent space to each query: (m, k), closest first."""
    if points.shape[1] <= 8:
        _, found = KDTree(points.cpu().numpy()).query(queries.cpu().numpy(), k=k)
        return np.asarray(found).reshape(-1, k)
    found = []
    for some in queries.split(max(1, _BLOCK // (16 * len(points)))):
        gaps = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(gaps.topk(k, largest=False).indices)
    return torch.cat(found).cpu().numpy()


def _compressed(data: Array, columns: Array, starts: Array) -> csr_array:
    """A square sparse matrix that keeps its zeros: adding or comparing matrices would lose them."""
    kind = np.int32 if len(data) < 2**31 else np.int64
    return csr_array((data, columns.astype(kind), starts.astype(kind)), shape=(len(starts) - 1, len(starts) - 1))


def _parts(edges: csr_array) -> Array:
    return connected_components(edges, directed=True, connection="weak")[1]


def _warn(graph: Graph, n_measured: int, *, joined: bool) -> None:
    apart = int(_parts(graph.edges).max())
    if graph.dropped or (joined and apart):
        warnings.warn(_checks.torn_graph(graph.dropped, n_measured, apart + 1), _checks.GraphWarning, stacklevel=3)
