"""Edges of graphs: their decoded lengths, the points that are near, and the sparse matrix of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from pullback._batching import free_memory
from pullback.chords import root
from pullback.metrics import Metric

Array = NDArray[Any]
BLOCK = 256 << 20  # bytes of distances and predecessors to hold at once
_TREE = 8  # dimensions; in more a tree looks at most points
_MANY = 200_000**2  # distances: minutes
_PROBES, _PER_CELL = 32, 40  # cells that faiss looks into for a point, and points of each that it learns them from
_SMOOTH = 0.1  # the share of its length that a middle sample may add to an edge that counts as smooth


def images(metric: Metric, points: Tensor) -> Tensor | None:
    """The features (n, D) of points (n, d), decoded once for all edges; None where they are too large to be kept."""
    limit = metric.points_at_once(points)
    first = metric.features(points[:limit])
    if len(points) > limit and first.shape[1] * first.element_size() * len(points) > free_memory(points.device) // 4:
        return None
    return torch.cat((first, metric.features(points[limit:]))) if len(points) > limit else first


def measure(
    metric: Metric, points: Tensor, pairs: Array, n_interior: int, known: Tensor | None = None
) -> tuple[Array, Array]:
    """Decoded lengths (m,) of straight edges (m, 2) between points (n, d), and how much the samples inside add.

    NaN where the decoder is not finite. `known` are the points' :func:`images`; without them the ends of the edges are
    decoded, in turns when all of them are too large.
    """
    i, j = torch.as_tensor(pairs, device=points.device).unbind(1)
    limit = metric.points_at_once(points)
    if known is None:
        used, (i, j) = torch.unique(torch.stack((i, j)), return_inverse=True)
        points = points[used]
        known = images(metric, points) if len(pairs) > 1 else metric.features(points)
        if known is None:
            pairs = torch.stack((i, j), 1).cpu().numpy()
            halves = [measure(metric, points, half, n_interior) for half in np.array_split(pairs, 2)]
            return np.concatenate([half[0] for half in halves]), np.concatenate([half[1] for half in halves])
    x = known
    t = torch.linspace(0, 1, n_interior + 2, dtype=points.dtype, device=points.device)[1:-1, None]
    results = []
    for k in torch.arange(len(i), device=i.device).split(max(1, limit // max(1, n_interior))):
        ends, there = (points[i[k], None], points[j[k], None]), (x[i[k], None], x[j[k], None])
        inside = metric.features((1 - t) * ends[0] + t * ends[1]) if n_interior else there[0][:, :0]
        results.append(_edge_length(*metric.squared_chords(torch.cat((there[0], inside, there[1]), 1))))
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


def nearest(points: Tensor, queries: Tensor, k: int) -> Array:
    """The k points (n, d) that are closest in latent space to each query: (m, k), closest first.

    By a tree in up to 8 dimensions; else all distances are computed, unless that are too many for a processor: then
    faiss finds nearly all of the k.
    """
    if points.shape[1] <= _TREE:
        _, found = KDTree(points.cpu().numpy()).query(queries.cpu().numpy(), k=k, workers=-1)
        return np.asarray(found).reshape(-1, k)
    if points.device.type == "cpu" and len(points) * len(queries) > _MANY:
        return _by_lists(points, queries, k)
    found = []
    for some in queries.split(max(1, BLOCK // (16 * len(points)))):
        gaps = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(gaps.topk(k, largest=False).indices)
    return torch.cat(found).cpu().numpy()


def _by_lists(points: Tensor, queries: Tensor, k: int) -> Array:
    """The same by faiss, which looks through the lists of some cells only: of 31 neighbors in R^10 it finds 30."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"the neighbors of {len(points):,} points in {points.shape[1]} dimensions take hours without faiss: "
            'pip install "pullback[faiss]", or pip install faiss-cpu.'
        ) from error
    x, q = (z.detach().numpy().astype(np.float32) for z in (points, queries))
    n_cells = int(4 * len(x) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(x.shape[1]), x.shape[1], n_cells)
    index.train(x[:: max(1, len(x) // (_PER_CELL * n_cells))])
    index.add(x)
    index.nprobe = max(_PROBES, -(-2 * k * n_cells // len(x)))
    _, found = index.search(q, k)
    short = np.nonzero((found < 0).any(1))[0]  # their cells are nearly empty
    if len(short):
        index.nprobe = n_cells
        found[short] = index.search(q[short], k)[1]
    return found


def compressed(data: Array, columns: Array, starts: Array) -> csr_array:
    """A square sparse matrix that keeps its zeros: adding or comparing matrices would lose them."""
    kind = np.int32 if len(data) < 2**31 else np.int64
    return csr_array((data, columns.astype(kind), starts.astype(kind)), shape=(len(starts) - 1, len(starts) - 1))


def parts(edges: csr_array) -> Array:
    return connected_components(edges, directed=True, connection="weak")[1]
