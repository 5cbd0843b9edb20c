"""Distance matrices of many codes: by paths over a graph, or by geodesics; in blocks, on disk, on many cores."""

from __future__ import annotations

import functools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.geodesics import Solution, geodesic
from pullback.graphs import Graph, knn_graph
from pullback.metrics import Metric
from pullback.stores import MatrixStore, digest, need_zarr
from pullback.types import Points

Array = NDArray[Any]
_BLOCK = 128 << 20  # bytes of the matrix in one block
_BLOCKS = 16  # at least, so that several workers have something to do
_AHEAD = 2  # blocks that an executor is given beyond one for each of its workers


def distance_matrix(
    metric: Metric,
    codes: Points,
    *,
    method: Literal["graph", "geodesic"] = "graph",
    graph: Graph | None = None,
    n_neighbors: int = 16,
    refine: Any = None,
    tol: float = 1e-4,
    out: str | Path | None = None,
    block: int | None = None,
    executor: Executor | None = None,
    resume: bool = True,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
) -> Any:
    r"""The distances between all pairs of codes: (n, n), symmetric, with a diagonal of zeros.

    By default the lengths of shortest paths over a graph of neighbors: some per cent above the distances, for thousands
    of codes in seconds. They are distances in the mathematical sense. Feed them to scikit-learn as
    ``metric="precomputed"``. Pairs that matter can be refined to geodesics.

    Args:
        metric: The metric.
        codes: Points (n, d).
        method: "graph", or "geodesic": a geodesic for each of the n (n - 1) / 2 pairs, for some hundred codes; NaN
            where none was found.
        graph: For "graph", one that is there already: its first n points are the codes, or its last, as after
            ``grid_graph(...).insert(metric, codes)``. Default: :func:`knn_graph` of the codes.
        n_neighbors: Of that.
        refine: Pairs (m, 2) of codes whose entries are to be lengths of geodesics, started from the straight line and
            the path through the graph. Where none is found, or none is shorter, the path's length stays.
        tol: Of geodesics, as for :func:`geodesic`.
        out: Folder of a zarr array to write the matrix to, block by block: it needs no room in memory, and what is
            finished survives an interruption. Needs ``pip install zarr``.
        block: Rows at once. Default: 128 MiB of them, or a sixteenth of all.
        executor: Where blocks of rows are computed: any ``concurrent.futures`` executor. The graph goes to the
            workers once, as files that they map; so they have to see this machine's temporary folder. On several
            machines :class:`RayExecutor`, or another with a method ``share``: the graph is sent through that.
        resume: Go on with what `out` holds of the same matrix. False: begin anew and overwrite it.
        shard: With `out`: (i, m) for the share i, counted from 0, of m processes that make one matrix, each its
            blocks. The rest of what is returned is NaN until the others are done.
        progress: Whether to show a bar.

    Returns:
        A tensor (n, n) like the codes; with `out` the zarr array. Pairs that no path joins are inf.

    Raises:
        ValueError: Codes are not points (n, d); a graph of other points; pairs that do not fit; `out` holds another
            matrix, and the message says what differs; a setting is out of range.
        KeyboardInterrupt: Passed on; with `out`, finished blocks are kept.

    Warns:
        GraphWarning: As :func:`knn_graph` does.
        GeodesicWarning: When geodesics failed: how many.

    Cost:
        That of the graph, and a Dijkstra for each code: 2 ms at 3,000 codes. Geodesics: as for :func:`geodesic`.

    Example:
        >>> line = torch.linspace(0, 1, 30)[:, None]
        >>> d = distance_matrix(pb.Pullback(lambda z: 3 * z), line, n_neighbors=4)
        >>> round(float(d[0, 29]), 4)
        3.0
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    codes = _checks.cloud(codes, "codes").detach()
    _checks.relative(tol, "tol")
    if method not in ("graph", "geodesic"):
        raise ValueError(f"`method` is {method!r}: want 'graph' or 'geodesic'.")
    if method == "geodesic":
        for name, value in (("graph", graph), ("refine", refine), ("out", out), ("executor", executor)):
            if value is not None:
                raise ValueError(f"`{name}` goes with method='graph': geodesics of all pairs are made in one piece.")
        return _by_geodesics(metric, codes, tol, progress)
    if shard is not None:
        _checks.shard(shard, out is not None, resume)
    if out is not None:
        need_zarr()
    if graph is None:
        graph = knn_graph(metric, codes, n_neighbors)
    first = _first_code(graph, codes)
    n = len(codes)
    size = block if block is not None else max(1, min(_BLOCK // (8 * n), -(-n // _BLOCKS)))
    _checks.at_least(size, 1, "block")
    refined = _refined(metric, codes, graph, refine, tol, progress) if refine is not None else None
    rows = _Rows(graph, first, n, codes.dtype, refined)
    starts = list(range(0, n, size))
    if out is None:
        matrix = np.empty((n, n), dtype=rows.kind)
        for start, found in _blocks(rows, starts, size, executor, progress):
            matrix[start : start + len(found)] = found
        return torch.from_numpy(matrix).to(codes)
    store = MatrixStore.open(out, rows.record(size), (n, n), size, rows.kind, resume=resume)
    own = starts if shard is None else starts[shard[0] :: shard[1]]
    todo = store.missing(own)
    for start, found in _blocks(rows, todo, size, executor, progress, done=len(own) - len(todo)):
        store.put(start, found)
    return store.array


@dataclass(frozen=True)
class _Refined:
    """Pairs of codes whose distances are known better: each in both directions, ordered by the first."""

    i: Array
    j: Array
    length: Array


@dataclass(frozen=True)
class _Rows:
    """Rows of the distance matrix of n points of a graph."""

    graph: Graph
    first: int  # the graph's point that is code 0
    n: int
    dtype: torch.dtype
    refined: _Refined | None

    @property
    def kind(self) -> str:
        """What the matrix is made of."""
        return "float32" if self.dtype == torch.float32 else "float64"

    def record(self, size: int) -> dict[str, Any]:
        """What makes this matrix this one, for a store: a block of another would not fit."""
        edges, refined = self.graph.edges, self.refined
        known = (refined.i, refined.j, refined.length) if refined else ()
        return {
            "codes": self.n,
            "block": size,
            "dtype": self.kind,
            "graph": digest((edges.data, edges.indices, edges.indptr, np.array([self.first]))),
            "refined": digest(known),
        }


def _blocks(
    rows: _Rows, starts: list[int], size: int, executor: Executor | None, progress: bool, *, done: int = 0
) -> Iterator[tuple[int, Array]]:
    """Blocks of rows by their first row, as they are finished."""
    with tqdm(total=done + len(starts), initial=done, desc="distances", unit="block", disable=not progress) as bar:
        if executor is None:
            edges = rows.graph.edges
            work = functools.partial(_block, edges, rows.first, rows.n, rows.kind)
            for start in starts:
                yield start, _with_refined(work(start, min(start + size, rows.n)), start, rows.refined)
                bar.update()
            return
        with _at_hand(executor, rows.graph.edges) as (work, edges):
            settings = (edges, rows.first, rows.n, rows.kind)
            for start, found in _as_completed(executor, work, settings, starts, size):
                yield start, _with_refined(found, start, rows.refined)
                bar.update()


def _as_completed(
    executor: Executor, work: Callable[..., Array], settings: tuple[Any, int, int, str], starts: list[int], size: int
) -> Iterator[tuple[int, Array]]:
    """Results of an executor, never many more than are taken; what was not begun is given up with the iteration."""
    waiting: dict[Future[Array], int] = {}
    left, n = iter(starts), settings[2]
    workers = getattr(executor, "max_workers", getattr(executor, "_max_workers", None)) or 1
    try:
        while True:
            for start in left:
                waiting[executor.submit(work, *settings, start, min(start + size, n))] = start
                if len(waiting) >= workers + _AHEAD:
                    break
            if not waiting:
                return
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield waiting.pop(future), future.result()
    finally:
        for future in waiting:
            future.cancel()


def _block(edges: csr_array, first: int, n: int, kind: str, start: int, stop: int) -> Array:
    """Distances (stop - start, n) of some codes to all."""
    found: Any = dijkstra(edges, directed=True, indices=np.arange(first + start, first + stop))
    return found[:, first : first + n].astype(kind)


def _block_of_files(folder: str, first: int, n: int, kind: str, start: int, stop: int) -> Array:
    """The same in a worker, of edges in files."""
    return _block(_edges_in(folder), first, n, kind, start, stop)


@functools.lru_cache(maxsize=1)
def _edges_in(folder: str) -> csr_array:
    data, indices, indptr = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in _PARTS)
    return csr_array((data, indices, indptr), shape=(len(indptr) - 1, len(indptr) - 1))


@contextmanager
def _at_hand(executor: Executor, edges: csr_array) -> Iterator[tuple[Callable[..., Array], Any]]:
    """The work on a block and its first argument: the edges, shared by the executor or by files that workers map.

    Either way a machine has one copy in memory, however many workers it has.
    """
    share = getattr(executor, "share", None)
    if share is not None:
        yield _block, share(edges)
        return
    folder = tempfile.mkdtemp(prefix="pullback-graph-")
    try:
        for name in _PARTS:
            np.save(Path(folder) / f"{name}.npy", getattr(edges, name))
        yield _block_of_files, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_PARTS = ("data", "indices", "indptr")


def _first_code(graph: Graph, codes: Tensor) -> int:
    """Where the codes stand among the points of a graph: at its beginning or at its end."""
    n, points = len(codes), graph.points
    if len(points) >= n and points.shape[1] == codes.shape[1]:
        for first in (0, len(points) - n):
            if torch.equal(points[first : first + n].to(codes), codes):
                return first
    raise ValueError(
        f"`graph` has {len(points)} points, of which neither the first nor the last {n} are the codes: make it by "
        "knn_graph(metric, codes), or put them in by graph.insert(metric, codes)."
    )


def _refined(metric: Metric, codes: Tensor, graph: Graph, refine: Any, tol: float, progress: bool) -> _Refined:
    """The lengths of geodesics between pairs of codes, where they are known."""
    pairs = np.asarray(refine.cpu() if isinstance(refine, Tensor) else refine)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"`refine` has shape {pairs.shape}: want pairs of codes (m, 2).")
    _checks.indices(pairs.reshape(-1), len(codes), "refine")
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1), axis=0)
    start, end = codes[torch.from_numpy(pairs.T.copy()).to(codes.device)]
    path = _solved(metric, start, end, tol, progress, starts=("straight", graph))
    length, known = path.length.double().cpu().numpy(), path.converged.cpu().numpy()
    both = np.concatenate((pairs[known], pairs[known][:, ::-1]))
    order = np.lexsort((both[:, 1], both[:, 0]))
    return _Refined(both[order, 0], both[order, 1], np.concatenate((length[known], length[known]))[order])


def _with_refined(found: Array, start: int, refined: _Refined | None) -> Array:
    """Rows from `start` on, shorter where a geodesic is known to be."""
    if refined is not None:
        found = np.require(found, requirements="W")  # what comes from other machines may be read-only: a copy of that
        some = slice(*np.searchsorted(refined.i, (start, start + len(found))))
        at = refined.i[some] - start, refined.j[some]
        found[at] = np.minimum(found[at], refined.length[some])
    return found


def _by_geodesics(metric: Metric, codes: Tensor, tol: float, progress: bool) -> Tensor:
    n = len(codes)
    i, j = torch.triu_indices(n, n, 1, device=codes.device)
    matrix = codes.new_zeros(n, n)
    if len(i):
        matrix[i, j] = matrix[j, i] = _solved(metric, codes[i], codes[j], tol, progress).length
    return matrix


def _solved(metric: Metric, start: Tensor, end: Tensor, tol: float, progress: bool, **settings: Any) -> Solution:
    """Geodesics, with one warning that counts those that failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _checks.GeodesicWarning)
        path = geodesic(metric, start, end, tol=tol, progress=progress, **settings)
    if not path.converged.all():
        warnings.warn(path.message, _checks.GeodesicWarning, stacklevel=4)
    return path
