"""Clusters in the metric: k-means, k-medians and k-medoids as estimators of scikit-learn's shape."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve
from pullback.distances import distance_matrix
from pullback.geodesics import geodesic
from pullback.graphs import Graph
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.descent import graph_of
from pullback.statistics.estimators import Estimator, generator_from, like
from pullback.statistics.lloyd import Array, Clusters, Indices, assigned, lloyd, members, seeds, swapped
from pullback.statistics.logs import moved
from pullback.statistics.means import frechet_mean

_ENTRIES = 1 << 25  # of the matrix of distances to candidates
_BETWEEN = 5  # rounds at most in which centers leave the points of the graph
_FITTED = 3  # times as many points as the coefficients of a parabola are fitted by it
_LARGEST_FIT = 8  # latent dimensions; the neighborhood of a parabola in more is not local
_MEAN_TOL = 1e-3


class _Clusterer(TransformerMixin, ClusterMixin, Estimator):
    """What the clusterers share: centers, and distances to these."""

    def predict(self, X: Any) -> Any:
        """The nearest center of each point (n, d): (n,); -1 where no path leads to any."""
        costs = self._distances(X).double().nan_to_num(math.inf).cpu().numpy()
        return like(torch.from_numpy(assigned(costs)[0]), X)

    def transform(self, X: Any) -> Any:
        """The distance of each point (n, d) to each center: (n, k); inf or NaN where none is known."""
        return like(self._distances(X), X)

    @abstractmethod
    def _distances(self, X: Any) -> Tensor:
        """Distances (n, k) of points to centers."""

    def _enough(self, codes: Tensor) -> None:
        _checks.at_least(self.n_clusters, 1, "n_clusters")
        _checks.at_least(self.n_init, 1, "n_init")
        _checks.at_least(self.max_iter, 1, "max_iter")
        if len(codes) < self.n_clusters:
            raise ValueError(
                f"`X` has n_samples={len(codes)} points but `n_clusters` is {self.n_clusters}: give as many points or "
                "ask for fewer clusters."
            )

    n_clusters: int
    n_init: int
    max_iter: int

    @property
    def _n_features_out(self) -> int:
        return self.n_clusters


class KMeans(_Clusterer):
    r"""k-means with the distances of a metric: k centers, each the Frechet mean of the points that it is nearest to.

    .. math:: \min_{\mu_1 .. \mu_k} \sum_i \min_j d(x_i, \mu_j)^p

    By graph: all distances are those of shortest paths, and a center is the best of the graph's points; in the end it
    may leave these for a better place between, to which it is linked as any new point. Thousands of points take
    seconds, all restarts included. By geodesics: the result by graph is the start; then distances are those of
    geodesics and centers are Frechet means (:func:`frechet_mean`), for some hundred points.

    The Euclidean baseline is scikit-learn's: ``sklearn.cluster.KMeans(3).fit_predict(codes)``.

    Args:
        metric: The metric.
        n_clusters: k.
        assignment: "graph" or "geodesic".
        power: p: 2, or 1 for k-medians, which outliers move less.
        n_init: Restarts, each from other seeds by k-means++ in the metric; the lowest inertia wins.
        max_iter: Steps at most.
        tol: Stop when the inertia falls by less, relatively.
        n_neighbors: Of the graph.
        graph: A graph to use, as a :func:`grid_graph`, into which the points are put. Default: :func:`knn_graph` of
            the points.
        random_state: An integer, a numpy RandomState or None.
        progress: Whether to show a bar.

    Attributes:
        cluster_centers_: (k, d).
        labels_: Of the points (n,); -1 where no center could be reached.
        inertia_: The sum of the distances to the nearest center, to the power p.
        n_iter_: Steps of the best restart.
        history_: Its inertia after each assignment: it never rises.
        n_failed_: Points without a center; with geodesics: pairs of a point and a center without one. They count for
            nothing.
        graph_: The graph, centers included.

    Raises:
        ValueError: Fewer points than clusters; X is not an array of points; a setting is out of range.

    Warns:
        ConvergenceWarning: When there are fewer distinct points than clusters.
        GraphWarning: As :func:`knn_graph` does.
        GeodesicWarning: When pairs failed.

    Cost:
        That of the graph, one Dijkstra a point, then no evaluation but a few links of the centers: 10 restarts with
        3,000 codes and k = 3 take about ten seconds. Geodesics: about k + 3 a point and step.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 6.1. :cite:`oddity`

    Example:
        >>> import pullback as pb
        >>> two = torch.cat((torch.zeros(5, 2), torch.ones(5, 2))) + 0.01 * torch.arange(10)[:, None]
        >>> kmeans = KMeans(pb.Pullback(torch.nn.Identity()), n_clusters=2, random_state=0).fit(two)
        >>> len(set(kmeans.labels_[:5].tolist())), len(set(kmeans.labels_.tolist()))
        (1, 2)
    """

    assignment: Literal["graph", "geodesic"]
    power: Literal[1, 2]

    def __init__(
        self,
        metric: Any,
        n_clusters: int = 8,
        *,
        assignment: Literal["graph", "geodesic"] = "graph",
        power: Literal[1, 2] = 2,
        n_init: int = 10,
        max_iter: int = 100,
        tol: float = 1e-4,
        n_neighbors: int = 16,
        graph: Graph | None = None,
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        self.metric = metric
        self.n_clusters = n_clusters
        self.assignment = assignment
        self.power = power
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.n_neighbors = n_neighbors
        self.graph = graph
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: None = None) -> Self:
        """Find clusters of points (n, d)."""
        codes = self._codes(X, reset=True)
        self._enough(codes)
        errors.power(self.power)
        if self.assignment not in ("graph", "geodesic"):
            raise ValueError(f"`assignment` is {self.assignment!r}: want 'graph' or 'geodesic'.")
        generator = generator_from(self.random_state)
        if self.graph is None:
            graph, first = graph_of(self.metric, codes, self.n_neighbors), 0
        else:
            graph, first = self.graph.insert(self.metric, codes), len(self.graph.points)
        costs, candidates, columns = self._costs(graph, first, len(codes), generator)
        found = self._best(costs, columns, generator)
        if len(np.unique(found.labels[found.labels >= 0])) < self.n_clusters:
            warnings.warn(
                f"there are fewer distinct points than the {self.n_clusters} clusters: some are empty.",
                ConvergenceWarning,
                stacklevel=2,
            )
        own = first + np.arange(len(codes))
        places, labels, history = _between(self.metric, graph, own, candidates, costs, found, self.power, self.tol)
        self.n_failed_, centers = int((labels < 0).sum()), places.centers
        self.graph_, self._reach = places.inserted(self.metric, graph)
        if self.assignment == "geodesic":
            centers, labels, history, self.n_failed_ = self._by_geodesics(codes, graph, centers)
        if self.n_failed_:
            what = "points have no path" if self.assignment == "graph" else "pairs of point and center have no geodesic"
            warnings.warn(f"{self.n_failed_} {what}: they do not count.", _checks.GeodesicWarning, stacklevel=2)
        self._centers, self.history_ = centers, history
        self.cluster_centers_, self.labels_ = like(centers, X), like(torch.from_numpy(labels), X)
        self.inertia_, self.n_iter_ = history[-1], len(history)
        return self

    def score(self, X: Any, y: None = None) -> float:
        """Minus the inertia of points (n, d): the larger, the better."""
        return -float(assigned(self._powers(self._distances(X)))[1].sum())

    def _distances(self, X: Any) -> Tensor:
        check_is_fitted(self)
        codes = self._codes(X)
        if self.assignment == "geodesic":
            return _paths(self.metric, codes, self._centers, self.graph_, None)[0]
        return _through(self.graph_, self.metric, codes, self._reach)

    def _costs(self, graph: Graph, first: int, n: int, generator: torch.Generator) -> tuple[Array, Indices, Indices]:
        """Powers of distances (n, N) from points to candidates; these points of the graph (N,); which ones are points.

        All points of the graph may become centers, or of many so many that the matrix fits the memory.
        """
        total = len(graph.points)
        own = first + np.arange(n)
        candidates = np.arange(total)
        if n * total > _ENTRIES:
            some = torch.randperm(n, generator=generator)[: max(self.n_clusters, _ENTRIES // n)].sort().values
            candidates = own[some.numpy()]
        rows, columns = (own, candidates) if n <= len(candidates) else (candidates, own)
        found = np.empty((len(rows), len(columns)))
        blocks = range(0, len(rows), 64)
        for k in tqdm(blocks, desc="distances", disable=not self.progress):
            found[k : k + 64] = graph.distances(rows[k : k + 64].tolist()).cpu().numpy()[:, columns]
        costs = (found if n <= len(candidates) else found.T) ** self.power
        joined = np.isfinite(costs).sum(0) > min(1, n - 1)  # alone, a point has no edge: the decoder fails there
        drawn = np.nonzero((candidates >= first) & (candidates < first + n) & joined)[0]
        if not len(drawn):
            raise ValueError("no two points are joined by a path: is the decoder finite there?")
        return costs, candidates, np.stack((drawn, candidates[drawn] - first))

    def _best(self, costs: Array, columns: Indices, generator: torch.Generator) -> Clusters:
        """The best of some restarts."""
        found = []
        for _ in tqdm(range(self.n_init), desc="restarts", disable=not self.progress):
            start = seeds(costs, columns, self.n_clusters, generator)
            found.append(lloyd(costs, columns, start, max_iter=self.max_iter, tol=self.tol))
        return min(found, key=lambda clusters: (int((clusters.labels < 0).sum()), clusters.inertia))

    def _by_geodesics(
        self, codes: Tensor, graph: Graph, centers: Tensor
    ) -> tuple[Tensor, Indices, tuple[float, ...], int]:
        """Steps by geodesics and Frechet means, from centers (k, d); also how many pairs failed."""
        lengths, curves = _paths(self.metric, codes, centers, graph, None)
        labels, least = assigned(self._powers(lengths))
        history = [float(least.sum())]
        for _ in tqdm(range(self.max_iter), desc="steps", disable=not self.progress):
            costs = self._powers(lengths)
            means = [self._mean(codes, graph, centers[j], labels == j, costs[:, j]) for j in range(len(centers))]
            there = torch.stack(means)
            others, curves = _paths(self.metric, codes, there, graph, curves)
            other_labels, least = assigned(self._powers(others))
            if others.isnan().sum() > lengths.isnan().sum() or not least.sum() < history[-1]:
                break  # what is left to gain is below the errors of lengths
            centers, lengths, labels = there, others, other_labels
            history.append(float(least.sum()))
            if history[-2] - history[-1] <= self.tol * history[-2]:
                break
        return centers, labels, tuple(history), int(lengths.isnan().sum())

    def _powers(self, lengths: Tensor) -> Array:
        """Costs from lengths of geodesics; inf where there is none."""
        return lengths.double().nan_to_num(math.inf).cpu().numpy() ** self.power

    def _mean(self, codes: Tensor, graph: Graph, center: Tensor, mine: Any, costs: Array) -> Tensor:
        """The mean of a cluster, or its center where that is no worse."""
        some = codes[torch.from_numpy(mine)]
        if not len(some):
            return center
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _checks.GeodesicWarning)
            mean = frechet_mean(self.metric, some, power=self.power, init=center, graph=graph, tol=_MEAN_TOL, full=True)
        lower = not len(mean.failed) and mean.value < costs[mine].mean()
        return mean.point if lower else center


class KMedoids(_Clusterer):
    r"""k-medoids: the k points with the smallest sum of distances from all points to the nearest of them.

    .. math:: \min_{m_1 .. m_k} \sum_i \min_j d(x_i, x_{m_j})

    Seeds by k-means++, then the best swap of a medoid with another point until none lowers the sum (PAM).

    Args:
        metric: A metric, or "precomputed": then X is a matrix of distances, as :func:`distance_matrix` makes it.
        n_clusters: k.
        method: "graph" or "geodesic", as for :func:`distance_matrix`.
        n_init: Restarts; the lowest sum wins.
        max_iter: Swaps at most.
        n_neighbors: Of the graph.
        random_state: An integer, a numpy RandomState or None.
        progress: Whether to show a bar.

    Attributes:
        medoid_indices_: (k,).
        cluster_centers_: The medoids (k, d); None for "precomputed".
        labels_: Of the points (n,).
        inertia_: The sum of the distances to the nearest medoid.
        n_iter_: Swaps of the best restart.
        history_: Its inertia after each.

    Raises:
        ValueError: Fewer points than clusters; distances that are not square, symmetric, finite and not negative; a
            setting is out of range.

    Cost: that of the matrix; then about 10 n^2 operations a swap.

    Reference:
        Schubert, Rousseeuw (2021), Fast and eager k-medoids clustering. :cite:`fasterpam`

    Example:
        >>> import pullback as pb
        >>> line = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
        >>> sorted(KMedoids(pb.Pullback(torch.nn.Identity()), 2, random_state=0).fit(line).medoid_indices_.tolist())
        [1, 4]
    """

    method: Literal["graph", "geodesic"]

    def __init__(
        self,
        metric: Any,
        n_clusters: int = 8,
        *,
        method: Literal["graph", "geodesic"] = "graph",
        n_init: int = 10,
        max_iter: int = 300,
        n_neighbors: int = 16,
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        self.metric = metric
        self.n_clusters = n_clusters
        self.method = method
        self.n_init = n_init
        self.max_iter = max_iter
        self.n_neighbors = n_neighbors
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: None = None) -> Self:
        """Find medoids among points (n, d), or by a matrix of distances (n, n)."""
        given = self._codes(X, reset=True)
        self._enough(given)
        generator = generator_from(self.random_state)
        self.graph_ = None
        if self._precomputed:
            distances = given.double().cpu().numpy()
        elif self.method == "graph":
            self.graph_ = graph_of(self.metric, given, self.n_neighbors)
            matrix = distance_matrix(self.metric, given, graph=self.graph_, progress=self.progress)
            distances = matrix.double().cpu().numpy()
        else:
            matrix = distance_matrix(self.metric, given, method=self.method, progress=self.progress)
            distances = matrix.double().cpu().numpy()
        errors.distances(distances)
        columns = np.stack((np.arange(len(given)),) * 2)
        found = []
        for _ in tqdm(range(self.n_init), desc="restarts", disable=not self.progress):
            start = seeds(distances, columns, self.n_clusters, generator)
            found.append(swapped(distances, start, max_iter=self.max_iter))
        best = min(found, key=lambda clusters: clusters.inertia)
        self._medoids = None if self._precomputed else given[torch.from_numpy(best.centers).to(given.device)]
        if self.graph_ is not None:
            self._reach = distances[best.centers]
        self.medoid_indices_ = like(torch.from_numpy(best.centers), X)
        self.cluster_centers_ = None if self._medoids is None else like(self._medoids, X)
        self.labels_ = like(torch.from_numpy(best.labels), X)
        self.inertia_, self.history_, self.n_iter_ = best.inertia, best.history, len(best.history) - 1
        return self

    def score(self, X: Any, y: None = None) -> float:
        """Minus the sum of the distances of points (n, d) to the nearest medoid."""
        return -float(self._distances(X).nan_to_num(math.inf).min(1).values.sum())

    @property
    def _precomputed(self) -> bool:
        return isinstance(self.metric, str) and self.metric == "precomputed"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self._precomputed
        return tags

    def _distances(self, X: Any) -> Tensor:
        check_is_fitted(self)
        given = self._codes(X)
        if self._medoids is None:
            return given[:, torch.as_tensor(np.asarray(self.medoid_indices_))]
        if self.graph_ is None:
            return geodesic(self.metric, given[:, None], self._medoids[None]).length
        return _through(self.graph_, self.metric, given, self._reach)


@dataclass(frozen=True)
class _Places:
    """Centers anywhere, and how far the points of a graph are from them."""

    centers: Tensor  # (k, d)
    reach: Array  # (k, N)

    @classmethod
    def of(cls, metric: Metric, graph: Graph, centers: Tensor) -> _Places:
        """Each center is linked to the points of the graph, never to another center."""
        near, links = graph.links(metric, centers)
        stops, where = np.unique(near, return_inverse=True)
        far = graph.distances(stops.tolist()).double().cpu().numpy()[where.reshape(near.shape)]  # (k, neighbors, N)
        return cls(centers, (links[:, :, None] + far).min(1))

    def where(self, chosen: NDArray[np.bool_], other: _Places) -> _Places:
        """The other's centers where they are chosen (k,)."""
        mask = torch.from_numpy(chosen).to(self.centers.device)
        centers = torch.where(mask[:, None], other.centers, self.centers)
        return _Places(centers, np.where(chosen[:, None], other.reach, self.reach))

    def inserted(self, metric: Metric, graph: Graph) -> tuple[Graph, Array]:
        """The graph with the centers, and how far its points are from them: (k, N + k)."""
        near, links = graph.links(metric, self.centers)
        apart = (links[:, None] + self.reach.T[near].transpose(0, 2, 1)).min(2)  # center i from center j
        np.fill_diagonal(apart, 0)
        return graph.insert(metric, self.centers), np.concatenate((self.reach, np.minimum(apart, apart.T)), 1)


def _between(
    metric: Metric,
    graph: Graph,
    own: Indices,
    candidates: Indices,
    costs: Array,
    found: Clusters,
    power: int,
    tol: float,
) -> tuple[_Places, Indices, tuple[float, ...]]:
    """Centers that may lie between the points of the graph, labels, and the inertia, which falls further."""
    points, history, labels = graph.points[torch.from_numpy(candidates)], list(found.history), found.labels
    places = _Places.of(metric, graph, points[torch.from_numpy(found.centers)])
    bounded = np.where(np.isfinite(costs), costs, 1e6 * (1 + costs[np.isfinite(costs)].max(initial=0)) * len(costs))
    for _ in range(_BETWEEN):
        mine = members(labels, len(found.centers))
        tried = _Places.of(metric, graph, _valleys(points, bounded.T @ mine, places.centers))
        before, after = (np.where(mine > 0, p.reach[:, own].T ** power, 0).sum(0) for p in (places, tried))
        places = places.where(after < before, tried)
        labels, least = assigned(places.reach[:, own].T ** power)
        history.append(float(least.sum()))
        if history[-2] - history[-1] <= tol * history[-2]:
            break
    return places, labels, tuple(history)


def _valleys(points: Tensor, totals: Array, centers: Tensor) -> Tensor:
    """Where parabolas through the totals (N, k) at candidates (N, d) are least: (k, d); old centers where none is."""
    n, d = points.shape
    count = _FITTED * (d + 1) * (d + 2) // 2
    if d > _LARGEST_FIT or n < count:
        return centers
    rows, columns = np.tril_indices(d)
    found = centers.double().cpu().numpy().copy()
    places = points.double().cpu().numpy()
    for j in range(len(found)):
        origin = places[totals[:, j].argmin()]
        gaps = np.square(places - origin).sum(1)
        some = np.argpartition(gaps, count - 1)[:count]
        size = math.sqrt(gaps[some].max())
        if not size:
            continue
        y = (places[some] - origin) / size
        design = np.concatenate((np.ones((count, 1)), y, y[:, rows] * y[:, columns]), 1)
        fit = np.linalg.lstsq(design, totals[some, j], rcond=None)[0]
        second = np.zeros((d, d))
        second[rows, columns] += fit[d + 1 :]
        second[columns, rows] += fit[d + 1 :]
        if np.linalg.eigvalsh(second)[0] > 0:
            step = -np.linalg.solve(second, fit[1 : d + 1])
            if step @ step < 1:
                found[j] = origin + size * step
    return torch.from_numpy(found).to(centers)


def _through(graph: Graph, metric: Metric, codes: Tensor, reach: Array) -> Tensor:
    """Distances (m, k) of points (m, d) by their links to a graph whose points are so far from centers (k, N).

    A point that is in the graph is as far as it is there.
    """
    near, links = graph.links(metric, codes)
    same = (graph.points[torch.from_numpy(near)] == codes[:, None]).all(-1).cpu().numpy()
    links = np.where(same, 0.0, np.where(same.any(1, keepdims=True), np.inf, links))
    return torch.from_numpy((links[:, :, None] + reach.T[near]).min(1)).to(codes)


def _paths(metric: Metric, codes: Tensor, centers: Tensor, graph: Graph, curves: Curve | None) -> tuple[Tensor, Curve]:
    """Lengths (n, k) of geodesics from centers to points, NaN where there is none; and the curves.

    They start from the graph's paths, or from the curves of the last ones, moved with the centers.
    """
    start = graph if curves is None else moved(curves, centers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _checks.GeodesicWarning)  # they are counted
        path = geodesic(metric, centers[None], codes[:, None], init=start)
    return path.length, path.curve
