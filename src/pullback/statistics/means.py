"""Frechet means, variances and medoids: the points in the middle, by distances in the metric."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pullback import _checks
from pullback.curves import Curve
from pullback.distances import distance_matrix
from pullback.geodesics import Status, distance
from pullback.graphs import Graph
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.descent import FrechetMean, Problem, Visit, accuracy, graph_of, shares, values_on
from pullback.statistics.logs import logarithms
from pullback.types import Points, Scalars

_DIFFERENCE = 0.02  # step of differences of logarithms, as a share of the spread


def frechet_mean(
    metric: Metric,
    codes: Points,
    *,
    weights: Tensor | None = None,
    power: Literal[1, 2] = 2,
    init: Points | None = None,
    n_starts: int = 1,
    graph: Graph | None = None,
    tol: float = 1e-4,
    max_steps: int = 50,
    generator: torch.Generator | None = None,
    full: bool = False,
    progress: bool = False,
) -> Any:
    r"""The point (d,) with the smallest mean squared distance to codes.

    .. math:: \mu = \arg\min_z \sum_i w_i \, d(z, x_i)^2 , \qquad \sum_i w_i \log_\mu x_i = 0 .

    A quasi-Newton method (BFGS, which starts from the metric at :math:`\mu` and so from the step of Karcher's flow).
    It begins at the medoid; a random subset finds the region and the second derivative, so that all codes are visited
    a few times only, each time with the geodesics of the last visit to start from.

    In the end the graph is asked for shorter geodesics, and the steps go on where there are some: the mean is one of
    distances, as far as these are known, not of geodesics that were followed for too long.

    It can be differentiated by the codes and the weights (implicit function theorem): the gradient is known to about a
    per cent. Weights of the decoder get none.

    Args:
        metric: The metric.
        codes: Points (n, d).
        weights: (n,), not negative; only their proportions matter. Default: all the same.
        power: 2, or 1 for the geometric median, which minimizes the mean distance.
        init: A point (d,) to start from, or several (k, d), of which the best result counts. Default: the medoid.
        n_starts: Without `init`: up to so many starts, the local minima of the variance over the graph, lowest first.
        graph: A graph whose paths curves start from; without `init` its first n points are the codes, and the medoid is
            by its distances. Default: :func:`knn_graph` of the codes.
        tol: How far the point may be from the mean, as a share of the spread (the root of the variance). In the end
            geodesics are solved for to ``(50 tol)**2`` in length, which leaves the mean of their directions off by
            less.
        max_steps: Steps at most, on each subset.
        generator: For the subsets. Default: always the same ones.
        full: Whether to return a :class:`FrechetMean` with status, error and counts instead.
        progress: Whether to show a bar.

    Returns:
        The mean (d,); NaN where none was found. With `full` the record, which carries no gradients.

    Raises:
        ValueError: When codes are not points (n, d), weights are negative, none is positive, or do not fit.

    Warns:
        GeodesicWarning: When no geodesic led to some codes, which then do not count, or the steps did not converge.

    Cost:
        About 50 evaluations a code for the graph, then 4 to 8 solutions of :func:`geodesic`, all but two of them from
        curves that are nearly right; see :doc:`benchmarks`. A gradient costs ``2 (d + 1)`` more of these.

    Reference:
        Karcher (1977), Riemannian center of mass and mollifier smoothing. :cite:`karcher`

    Example:
        >>> import pullback as pb
        >>> corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]])
        >>> mean = frechet_mean(pb.Pullback(torch.nn.Identity()), corners)      # a plane: the arithmetic mean
        >>> [round(x, 4) for x in mean.tolist()]
        [1.0, 1.0]
    """
    problem = Problem.of(metric, codes, weights, power, graph, tol, max_steps, progress)
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
    starts = problem.starts(n_starts) if init is None else _checked_starts(init, problem.codes)
    found = [problem.solve(start, generator) for start in starts]
    best = min(found, key=lambda mean: mean.value if math.isfinite(mean.value) else math.inf)
    mean = replace(
        best,
        candidates=tuple(mean.value for mean in found),
        iterations=sum(mean.iterations for mean in found),
        evaluations=problem.spent + sum(mean.evaluations for mean in found),
    )
    _warn(mean, len(problem.codes))
    if full:
        return mean
    given = [codes] if weights is None else [codes, weights]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        relative = problem.weights.new_ones(len(codes)) if weights is None else weights
        return _Implicit.apply(codes, relative / relative.sum(), mean, problem)
    return mean.point


def frechet_variance(
    metric: Metric, codes: Points, *, at: Points | None = None, weights: Tensor | None = None, tol: float = 1e-4
) -> Scalars:
    r"""The weighted mean of squared distances to codes, :math:`\sum_i w_i \, d(\mu, x_i)^2 / \sum_i w_i`: ().

    It carries gradients to codes, `at` and the decoder's weights, as :func:`distance` does; that the mean moves with
    the codes changes nothing at first order, since it is a minimum.

    Args:
        metric: The metric.
        codes: Points (n, d).
        at: A point (d,). Default: the Frechet mean, where the variance is smallest.
        weights: (n,), not negative.
        tol: Of the lengths.

    Raises:
        ValueError: As for :func:`frechet_mean`.

    Warns:
        GeodesicWarning: When no geodesic led to some codes: these do not count.

    Cost: that of the mean, and of a geodesic a code.

    Example:
        >>> import pullback as pb
        >>> float(frechet_variance(pb.Pullback(lambda z: 3 * z), torch.tensor([[0.0], [2.0]])))
        9.0
    """
    checked, w = _checks.cloud(codes, "codes"), shares(weights, codes)
    fixed = None if weights is None else weights.detach()
    point = frechet_mean(metric, checked.detach(), weights=fixed) if at is None else at
    squares = distance(metric, point, codes, tol=tol).square()
    known = ~squares.isnan()
    return torch.where(known, w * squares, 0).sum() / torch.where(known, w, 0).sum()


def medoid(
    metric: Metric,
    codes: Points,
    *,
    weights: Tensor | None = None,
    power: Literal[1, 2] = 2,
    method: Literal["graph", "geodesic"] = "graph",
    graph: Graph | None = None,
) -> int:
    r"""The index of the code with the smallest mean distance to all, to the given power.

    Args:
        metric: The metric.
        codes: Points (n, d).
        weights: (n,), not negative.
        power: 2, as for the mean, or 1, as for the median.
        method: "graph": by shortest paths; from 1,024 codes on the distances from 256 of them decide. "geodesic": by
            all n (n - 1) / 2 geodesics, for some hundred codes.
        graph: For "graph", one whose first n points are the codes.

    Raises:
        ValueError: As for :func:`frechet_mean`.

    Cost: that of :func:`knn_graph` and a Dijkstra a code; or of the geodesics.

    Example:
        >>> import pullback as pb
        >>> medoid(pb.Pullback(torch.nn.Identity()), torch.tensor([[0.0], [1.0], [5.0]]))
        1
    """
    codes, w = _checks.cloud(codes, "codes").detach(), shares(weights, codes).detach()
    errors.power(power)
    if method not in ("graph", "geodesic"):
        raise ValueError(f"`method` is {method!r}: want 'graph' or 'geodesic'.")
    if method == "graph":
        graph = graph_of(metric, codes) if graph is None else graph
        return int(values_on(graph, w, power)[: len(codes)].argmin())
    powers = distance_matrix(metric, codes, method="geodesic").pow(power)
    known = ~powers.isnan()
    values = (torch.where(known, powers, 0) @ w) / (known.to(w) @ w).clamp_min(torch.finfo(w.dtype).tiny)
    return int(values.argmin())


class _Implicit(torch.autograd.Function):
    r"""The mean, whose derivative follows from its equation :math:`\nabla_\mu F(\mu, x, w) = 0`."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, weights: Tensor, mean: FrechetMean, problem: Problem) -> Tensor:
        ctx.mean, ctx.problem = mean, problem
        return mean.point.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pulled: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, problem = ctx.mean, ctx.problem
        with torch.no_grad():
            by_codes, by_weights = _implicit(mean, problem, pulled)
        return by_codes, by_weights, None, None


def _implicit(mean: FrechetMean, problem: Problem, pulled: Tensor) -> tuple[Tensor, Tensor]:
    """What a gradient (d,) at the mean is at codes (n, d) and weights (n,): by differences of logarithms."""
    every = torch.arange(len(problem.codes), device=problem.codes.device)
    tol = min(1e-6, accuracy(0.0, problem.tol))
    here = problem.visit(mean.point, every, tol, None)
    spread = here.value ** (1 / problem.power)

    def change(direction: Tensor, by_codes: bool) -> Tensor:
        """How the derivative by the mean, or of each term by its code, changes with the mean in a direction."""
        step = direction * (_DIFFERENCE * spread / (direction @ here.matrix @ direction).sqrt())
        there = [problem.visit(here.point + sign * step, every, tol, here) for sign in (1, -1)]
        one, other = (_by_codes(problem, visit, tol) if by_codes else visit.gradient for visit in there)
        return (one - other) * (direction.norm() / (2 * step.norm()))

    axes = torch.eye(len(here.point), dtype=pulled.dtype, device=pulled.device)
    second = torch.stack([change(axis, False) for axis in axes])
    turned = torch.linalg.solve(0.5 * (second + second.mT), pulled)
    by_codes = torch.zeros_like(problem.codes)
    if turned.any():
        by_codes = -problem.weights[:, None] * change(turned, True)
    by_weights = problem.unit(here) @ here.matrix @ turned
    failed = here.lengths.isnan() | by_codes.isnan().any(1)
    return by_codes.masked_fill(failed[:, None], 0), by_weights.masked_fill(failed, 0)


def _by_codes(problem: Problem, visit: Visit, tol: float) -> Tensor:
    """The derivative of half the squared distance, or of the distance, by each code (n, d)."""
    curves = Curve(visit.nodes.flip(-2))
    logs, _ = logarithms(problem.metric, problem.codes, visit.point, tol=tol, init=curves)
    scaled = problem.unit(replace(visit, logs=logs))
    return -(problem.metric.matrix(problem.codes) @ scaled[..., None])[..., 0]


def _checked_starts(init: Any, codes: Tensor) -> Tensor:
    init = _checks.points(init, "init")
    _checks.same_kind(init, codes, "init", "codes")
    return init.detach().reshape(-1, codes.shape[1])


def _warn(mean: FrechetMean, n: int) -> None:
    text = []
    if len(mean.failed):
        shown = ", ".join(map(str, mean.failed[:10].tolist())) + (", ..." if len(mean.failed) > 10 else "")
        text.append(f"no geodesic led from the mean to {len(mean.failed)} of {n} codes ({shown}), which do not count")
    if mean.status is not Status.CONVERGED:
        text.append(f"the mean was not found to tol: {mean.status.value}; it is off by about {mean.error:.2g}")
    if text:
        warnings.warn("; ".join(text) + ".", _checks.GeodesicWarning, stacklevel=3)
