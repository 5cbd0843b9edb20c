"""The descent to a Frechet mean: quasi-Newton steps of a point, with the geodesics of the last one to start from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics import Solution, Status, geodesic
from pullback.graphs import Graph, knn_graph
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.logs import LOGARITHM, logarithms, moved

_FIRST = 64  # codes of the smallest subset, whose mean the others start from
_GROWTH = 8  # times as many in the next one
_STORED = 32  # segments of the curves that are kept to start the next ones from
_SOURCES = 256  # codes whose distances to all say where the medoid is, of a set that is larger than that by much
_NEIGHBORS = 16
_CHECKS = 3  # times that shorter geodesics are looked for at the end
_SETTLED = 3e-3  # the step, as a share of the spread, after which they are looked for first: later it costs more
_HALVINGS = 8  # of a step that does not lower the variance
_LOOSE, _TIGHTEST = 1e-3, 1e-9  # tolerance of lengths while the mean is not known well, and at the end


@dataclass(frozen=True)
class FrechetMean:
    """A Frechet mean and what is known about it.

    Attributes:
        point: The mean (d,); NaN where there is none.
        value: The weighted mean of the distances to the given power: the Frechet variance where that is 2.
        error: Estimated distance of the point from where the gradient vanishes, in units of the data space.
        status: CONVERGED, or why not.
        iterations: Steps, those on subsets included.
        evaluations: Decoder evaluations.
        failed: Indices of codes that no geodesic led to: they count for nothing.
        candidates: The value of each start, NaN where none was found; the lowest won.
        distances: From the mean to each code (n,); NaN where no geodesic was found, or its weight is zero.
        curves: The geodesics, coarsely, to start others from.
    """

    point: Tensor
    value: float
    error: float
    status: Status
    iterations: int
    evaluations: int
    failed: Tensor
    candidates: tuple[float, ...]
    distances: Tensor
    curves: Curve


def graph_of(metric: Metric, codes: Tensor, n_neighbors: int = _NEIGHBORS) -> Graph:
    """The graph of neighbors of codes (n, d), also of few."""
    if len(codes) == 1:
        return Graph.from_edges(codes, [], [])
    return knn_graph(metric, codes, min(n_neighbors, len(codes) - 1))


@dataclass
class Visit:
    """A point, and the geodesics from it to some codes."""

    point: Tensor  # (d,)
    lengths: Tensor  # (m,), NaN where there is none
    nodes: Tensor  # (m, _STORED + 1, d)
    logs: Tensor  # (m, d), zero where there is none
    value: float  # of the power of the distances, over the codes that count
    gradient: Tensor  # (d,), as a covector
    matrix: Tensor  # (d, d), the metric at the point


@dataclass
class Problem:
    """What is to be minimized."""

    metric: Metric
    codes: Tensor  # (n, d)
    weights: Tensor  # (n,) of sum 1
    power: int
    graph: Graph
    tol: float
    max_steps: int
    progress: bool
    spent: int = 0  # evaluations for the graph
    evaluations: int = field(default=0, init=False)

    @classmethod
    def of(
        cls, metric: Metric, codes: Any, weights: Any, power: int, graph: Graph | None, tol: float, max_steps: int,
        progress: bool,
    ) -> Problem:  # fmt: skip
        """The problem of checked arguments."""
        if not isinstance(metric, Metric):
            raise _checks.not_a_metric(metric)
        codes = _checks.cloud(codes, "codes")
        w = shares(weights, codes).detach()
        errors.power(power)
        _checks.relative(tol, "tol")
        _checks.at_least(max_steps, 1, "max_steps")
        codes = codes.detach()
        spent = 0
        if graph is None:
            graph = graph_of(metric, codes)
            spent = len(codes) + graph.n_interior * min(3 * graph.n_neighbors, len(codes) - 1) * len(codes)
        return cls(metric, codes, w, power, graph, tol, max_steps, progress, spent)

    def starts(self, n_starts: int) -> Tensor:
        """Codes (k, d) where the value over the graph has a local minimum, the lowest first."""
        _checks.at_least(n_starts, 1, "n_starts")
        if not torch.equal(self.graph.points[: len(self.codes)].to(self.codes), self.codes):
            raise ValueError(
                "`graph` has other points than `codes`: make it by knn_graph(metric, codes), or leave it out; with "
                "`init` any graph will do."
            )
        values = values_on(self.graph, self.weights, self.power)
        pointers, neighbors = self.graph.edges.indptr, self.graph.edges.indices
        order = values.argsort()
        low = [i for i in order if (values[neighbors[pointers[i] : pointers[i + 1]]] >= values[i]).all()]
        return self.graph.points[torch.as_tensor(np.array(low[:n_starts]))].to(self.codes)

    def solve(self, start: Tensor, generator: torch.Generator) -> FrechetMean:
        """The minimum from one start, by growing subsets."""
        self.evaluations, n = 0, len(self.codes)
        order = torch.randperm(n, generator=generator).to(self.codes.device)
        order = order[self.weights[order] > 0]
        m, steps, visit, inverse, status = _FIRST, 0, None, None, Status.CONVERGED
        point = start
        while _GROWTH // 2 * m <= len(order) and (visit is None or math.isfinite(visit.value)):
            some, tol = order[:m], 0.2 / math.sqrt(m)  # a subset's mean is off by the spread / sqrt(m)
            visit = self.visit(point, some, accuracy(tol, tol), visit)
            visit, inverse, taken, status = self.descend(visit, some, tol, inverse)
            steps, point, m = steps + taken, visit.point, _GROWTH * m
        visit = self.visit(point, order, accuracy(0.2 / math.sqrt(len(order)), self.tol), visit)
        for tol in (max(self.tol, _SETTLED), *[self.tol] * _CHECKS):
            visit, inverse, taken, status = self.descend(visit, order, tol, inverse)
            steps += taken
            other = self.shorter(visit, order, accuracy(0.0, self.tol)) if status is Status.CONVERGED else None
            if other is None and tol == self.tol:
                break
            visit = visit if other is None else other
        return self.record(visit, inverse, order, steps, status)

    def shorter(self, visit: Visit, some: Tensor, tol: float) -> Visit | None:
        """The visit with other geodesics where the graph leads to shorter ones by now; None if it does nowhere."""
        ends = self.codes[some]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _checks.PullbackWarning)
            path = geodesic(self.metric, visit.point, ends, tol=_LOOSE, starts=(Curve(visit.nodes), self.graph))
        self.evaluations += int(path.evaluations.sum())
        better = path.converged & ~(path.length + path.length_error >= visit.lengths)
        rows = better.nonzero().reshape(-1)
        if not len(rows):
            return None
        init = path.curve[rows].resample(_STORED)
        logs, path = self.counted(logarithms(self.metric, visit.point, ends[rows], tol=tol, init=init))
        put = [(visit.nodes, path.curve.resample(_STORED).nodes), (visit.lengths, path.length), (visit.logs, logs)]
        return self.seen(visit.point, visit.matrix, some, *(old.index_copy(0, rows, new) for old, new in put))

    def record(self, visit: Visit, inverse: Tensor | None, some: Tensor, steps: int, status: Status) -> FrechetMean:
        """The mean that a last visit found."""
        left = (self.karcher(visit) if inverse is None else inverse) @ visit.gradient
        distances = visit.lengths.new_full((len(self.codes),), torch.nan)
        distances[some] = visit.lengths
        nodes = Curve.straight(visit.point.expand_as(self.codes), self.codes, _STORED).nodes.clone()
        nodes[some] = visit.nodes
        finite = math.isfinite(visit.value)
        return FrechetMean(
            visit.point if finite else torch.full_like(visit.point, torch.nan), visit.value,
            float((left @ visit.matrix @ left).sqrt()) if finite else math.nan, status, steps, self.evaluations,
            some[visit.lengths.isnan()].sort().values, (visit.value,), distances, Curve(nodes),
        )  # fmt: skip

    def descend(
        self, visit: Visit, some: Tensor, tol: float, inverse: Tensor | None
    ) -> tuple[Visit, Tensor, int, Status]:
        """Quasi-Newton steps until the next one is below tol times the spread."""
        inverse = self.karcher(visit) if inverse is None else inverse
        with tqdm(desc=f"mean of {len(some)} codes", unit="step", disable=not self.progress) as bar:
            for taken in range(self.max_steps):
                step = -inverse @ visit.gradient
                spread = visit.value ** (1 / self.power)
                if not math.isfinite(visit.value):
                    return visit, inverse, taken, Status.NOT_FINITE
                size = float((step @ visit.matrix @ step).sqrt()) / spread if spread else 0.0
                if size <= tol:
                    return visit, inverse, taken, Status.CONVERGED
                other = self.lower(visit, step, some, accuracy(size, tol))
                if other is None:
                    return visit, inverse, taken, Status.STALLED
                inverse = _bfgs(inverse, other.point - visit.point, other.gradient - visit.gradient)
                visit = other
                bar.update()
        return visit, inverse, self.max_steps, Status.MAX_STEPS

    def lower(self, visit: Visit, step: Tensor, some: Tensor, geodesic_tol: float) -> Visit | None:
        """The first of the steps 1, 1/2, 1/4, ... that does not raise the value, to the errors of lengths."""
        for k in range(_HALVINGS):
            other = self.visit(visit.point + 0.5**k * step, some, geodesic_tol, visit)
            flatter = abs(float(other.gradient @ step)) <= abs(float(visit.gradient @ step))
            if other.value < visit.value or (flatter and other.value <= visit.value * (1 + self.power * geodesic_tol)):
                return other
        return None

    def visit(self, point: Tensor, some: Tensor, tol: float, last: Visit | None) -> Visit:
        """Geodesics from a point to codes, from those of the last visit, which are the first ones, and the graph."""
        ends = self.codes[some]
        nothing = torch.full_like(ends[:, 0], torch.nan)
        try:
            g = self.metric.matrix(point)
        except _checks.NotFiniteError:  # a step that left the metric's domain
            g = torch.full((len(point), len(point)), torch.nan).to(point)
        if not torch.isfinite(g).all():
            nodes = point.expand(len(some), _STORED + 1, -1)
            return Visit(point, nothing, nodes, torch.zeros_like(ends), math.nan, torch.full_like(point, torch.nan), g)
        self.evaluations += self.metric.matrix_cost(len(point))
        parts = list(self.solutions(point, ends, tol, last))
        nodes = torch.cat([path.curve.resample(_STORED).nodes for _, path in parts])
        lengths = torch.cat([path.length for _, path in parts])
        logs = torch.cat([logs for logs, _ in parts])
        return self.seen(point, g, some, nodes, lengths, logs)

    def seen(self, point: Tensor, g: Tensor, some: Tensor, nodes: Tensor, lengths: Tensor, logs: Tensor) -> Visit:
        """What geodesics to codes say of a point; those that are NaN count for nothing."""
        known = ~logs.isnan().any(1)
        lengths, logs = torch.where(known, lengths, torch.nan), logs.nan_to_num()
        w = torch.where(known, self.weights[some], 0)
        w = w / w.sum()
        value = (w * lengths.nan_to_num() ** self.power).sum().item() if known.any() else math.nan
        visit = Visit(point, lengths, nodes, logs, value, torch.zeros_like(point), g)
        pull = w @ self.unit(visit)
        if self.power == 1:  # a code where the point is holds it with its weight
            held = w[lengths == 0].sum() / (pull @ g @ pull).sqrt().clamp_min(torch.finfo(w.dtype).tiny)
            pull = pull * (1 - held).clamp_min(0)
        return replace(visit, gradient=-g @ pull)

    def karcher(self, visit: Visit) -> Tensor:
        """The inverse second derivative (d, d) in a flat space: a gradient becomes Karcher's step, or Weiszfeld's."""
        near = visit.lengths[visit.lengths > 0]
        bend = (near ** (self.power - 2)).mean() if len(near) else 1.0
        return torch.linalg.inv(visit.matrix) / bend

    def unit(self, visit: Visit) -> Tensor:
        """Logarithms (m, d); of unit length for the median."""
        lengths = visit.lengths.nan_to_num().clamp_min(torch.finfo(visit.lengths.dtype).tiny)
        return visit.logs * lengths[:, None] ** (self.power - 2)

    def solutions(
        self, point: Tensor, ends: Tensor, tol: float, last: Visit | None
    ) -> Iterator[tuple[Tensor, Solution]]:
        """Logarithms of codes (m, d) at a point: the first by curves of the last visit, the others by the graph's."""
        seen = 0 if last is None else min(len(last.nodes), len(ends))
        if last is not None and seen:
            init = moved(Curve(last.nodes[:seen]), point)
            yield self.counted(logarithms(self.metric, point, ends[:seen], tol=tol, init=init))
        if seen < len(ends):
            yield self.counted(logarithms(self.metric, point, ends[seen:], tol=tol, starts=self.graph))

    def counted(self, found: tuple[Tensor, Solution]) -> tuple[Tensor, Solution]:
        """The same, its evaluations noted."""
        self.evaluations += int(found[1].evaluations.sum()) + LOGARITHM * len(found[0])
        return found


def accuracy(step: float, tol: float) -> float:
    """The tolerance of lengths for logarithms that are worth a step, as a share of the spread, and in the end tol.

    Their directions are off by some hundredths of its root, and a step leaves a tenth of itself.
    """
    return min(max((0.5 * step) ** 2, (50 * tol) ** 2, _TIGHTEST), _LOOSE)


def _bfgs(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The inverse second derivative (d, d), corrected so that it maps the change of the gradient to the step."""
    product = step @ change
    if not product > 1e-10 * step.norm() * change.norm():
        return inverse
    left = torch.eye(len(step), dtype=step.dtype, device=step.device) - torch.outer(step, change) / product
    return left @ inverse @ left.mT + torch.outer(step, step) / product


def values_on(graph: Graph, weights: Tensor, power: int) -> np.ndarray:
    """The mean power of the distances from codes, the first points of a graph, to each of its points (N,)."""
    w = weights.cpu().double().numpy()
    sources = np.nonzero(w > 0)[0]
    if len(sources) > 4 * _SOURCES:
        sources = np.random.default_rng(0).choice(len(w), _SOURCES, replace=False, p=w / w.sum())
        w = np.zeros(len(w))
        w[sources] = 1 / len(sources)
    total, known = np.zeros(len(graph.points)), np.zeros(len(graph.points))
    for some in np.array_split(sources, -(-len(sources) // 64)):
        powers = graph.distances(some.tolist()).cpu().double().numpy() ** power
        finite = np.isfinite(powers)
        total += w[some] @ np.where(finite, powers, 0)
        known += w[some] @ finite
    return np.where(known >= 0.5 * w.sum(), total / np.maximum(known, np.finfo(float).tiny), np.inf)


def shares(weights: Any, codes: Tensor) -> Tensor:
    """Weights (n,) of sum one."""
    if weights is None:
        return codes.new_full((len(codes),), 1 / len(codes))
    errors.weights(weights, len(codes))
    weights = weights.to(codes)
    return weights / weights.sum()
