"""Densities with respect to the Riemannian volume: kernel estimates, and how wide their kernels should be."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from pullback import _checks, curvature
from pullback.graphs import Graph, knn_graph
from pullback.metrics import Metric
from pullback.statistics import errors
from pullback.statistics.heat import HeatGrid
from pullback.types import Points, Scalars

Kernel = Literal["distance", "heat"]
_MARGIN = 0.15  # of the range of the codes, around them
_HEAT_STEPS = 16
_BENT = 0.5  # the most that the curvature may change a kernel's volume by, as a logarithm
_OUTLIERS = 0.1  # of the codes, where it would do more
_FINE = 2.0  # cells that a kernel is wide, at the least
_FOLDS = 5
_WIDTHS = 10  # bandwidths that the heat kernel is tried with
_ROWS = 500  # codes that are left out, one by one
_NOWHERE = 1e-300  # a density that is zero, for its logarithm
_LOG = logging.getLogger("pullback")


def kernel_density(
    metric: Metric,
    codes: Points,
    bandwidth: float | None = None,
    at: Points | None = None,
    *,
    kernel: Kernel = "distance",
    distances: Tensor | None = None,
    n_neighbors: int = 16,
    bounds: Tensor | None = None,
    resolution: int | Sequence[int] | None = None,
) -> Scalars:
    r"""The density of codes in the metric, with respect to its volume: a kernel of one width on each.

    .. math:: p(z) = \frac1n \sum_i \frac{1}{C_i} \, e^{-d(z, x_i)^2 / 2 h^2}, \qquad
        C_i = (2 \pi h^2)^{d/2} \, e^{-h^2 S(x_i) / 6}

    It does not depend on the coordinates. It is a density by :math:`dV = \sqrt{\det G} \, dz`: for one by dz, multiply
    with ``metric.log_volume(z).exp()``.

    "distance" takes d along a graph of codes and points. C is the volume under the kernel, to fourth order in h; S is
    the scalar curvature, and the last exponent is kept within one half. Paths over a graph are 1 to 3% too long, and
    the density is that much too low, d times; give `distances` where that matters.
    "heat" takes the heat kernel, that is, where Brownian motion from the codes is after the time h^2, for d <= 3: all
    codes diffuse together on a grid within `bounds`, whose boundary lets nothing pass. It integrates to one.
    Both are the same Gaussian for small h: bandwidths are comparable.

    Args:
        metric: The metric.
        codes: Points (n, d).
        bandwidth: h, a length in the data space. Default: :func:`kernel_bandwidth`, which is logged.
        at: Points (m, d) to evaluate at. Default: the codes.
        kernel: "distance" or "heat".
        distances: For "distance", those from the points (m) to the codes (n), (m, n), of your own.
        n_neighbors: For "distance", of the graph.
        bounds: For "heat", the box (d, 2) that the heat stays in. Default: the range of the codes and 15% more.
        resolution: For "heat", cells along each axis. Default: 1024 for d = 1, 128 for d = 2, 28 for d = 3.

    Returns:
        The density (m,), in one over units of the data space to the power d; NaN outside of the bounds.

    Raises:
        ValueError: Codes are not points (n, d), or outside of the bounds; distances do not fit; a setting is out of
            range; the decoder has creases, and so no curvature (take the heat kernel).

    Warns:
        StatisticsWarning: The curvature changes the volume under more than a tenth of the kernels by more than half:
            the bandwidth is too large for "distance". Cells of the grid have no metric, or are too large for the
            bandwidth.

    Cost:
        "distance": the graph, n scalar curvatures and a Dijkstra each from the fewer of codes and points. "heat": a
        matrix for each cell, and the equation: a second on the default grid of the plane.

    Reference:
        Pelletier (2005) for kernels on manifolds :cite:`pelletier`; Botev, Grotowski, Kroese (2010) for diffusion
        :cite:`botev`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> codes = torch.randn(500, 2, dtype=torch.float64, generator=generator)
        >>> plane = pb.Pullback(lambda z: 3 * z)  # three times as large: the density is a ninth
        >>> found = kernel_density(plane, codes, 1.0, torch.zeros(1, 2, dtype=torch.float64), kernel="heat")
        >>> exact = 1 / (9 * 2 * torch.pi * (1 + 1 / 9))  # a normal law, widened by the kernel
        >>> bool((found / exact - 1).abs() < 0.1)
        True
    """
    codes, at = _checked(metric, codes, at, kernel)
    if bandwidth is not None:
        _checks.positive_and_finite(bandwidth, "bandwidth")
    if kernel == "heat":
        grid = _grid(metric, codes, bounds, resolution)
        width = _told(_by_folds(grid, codes)) if bandwidth is None else float(bandwidth)
        _warn_of_cells(grid, codes, width)
        there = grid.weights(codes if at is None else at) @ grid.flow(_spikes(grid, codes), width**2, _HEAT_STEPS)
        return torch.from_numpy(there).to(codes).clamp_min(0)
    if distances is not None and distances.shape != (len(codes if at is None else at), len(codes)):
        raise errors.wrong_distances(distances, len(codes if at is None else at), len(codes))
    scalars = _scalars(metric, codes)
    if distances is None or bandwidth is None:
        graph = _graph(metric, codes, n_neighbors)
        bandwidth = _told(_by_leaving_out(graph, scalars)) if bandwidth is None else bandwidth
        distances = _distances(metric, graph, at) if distances is None else distances
    width = float(bandwidth)
    _warn_of_curvature(scalars, width)
    logs = -0.5 * (distances.to(codes) / width).square() - _log_volumes(scalars, width, codes.shape[1])
    return logs.logsumexp(1).exp() / len(codes)


def kernel_bandwidth(
    metric: Metric,
    codes: Points,
    *,
    kernel: Kernel = "distance",
    n_neighbors: int = 16,
    bounds: Tensor | None = None,
    resolution: int | Sequence[int] | None = None,
) -> float:
    """The bandwidth under which codes that are left out are most likely.

    For "distance" each of up to 500 codes is left out in turn, and the best bandwidth is searched for; for "heat" a
    fifth of the codes at a time, and the best of 10 is taken, which are spread evenly on a logarithmic scale.

    Args:
        metric: The metric.
        codes: Points (n, d), three or more.
        kernel: "distance" or "heat", and the settings of it as for :func:`kernel_density`.
        n_neighbors: See there.
        bounds: See there.
        resolution: See there.

    Returns:
        h, a length in the data space.

    Raises:
        ValueError: As for :func:`kernel_density`; or all codes coincide.

    Cost:
        "distance": up to 500 Dijkstras and n scalar curvatures; "heat": 10 factorizations and five flows on the grid.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> codes = torch.randn(400, 2, dtype=torch.float64, generator=generator)
        >>> wide, narrow = (kernel_bandwidth(pb.Pullback(lambda z, s=s: s * z), codes) for s in (2.0, 1.0))
        >>> round(wide / narrow, 2)  # a length, in units of the data
        2.0
    """
    codes, _ = _checked(metric, codes, None, kernel)
    if kernel == "heat":
        return _by_folds(_grid(metric, codes, bounds, resolution), codes)
    return _by_leaving_out(_graph(metric, codes, n_neighbors), _scalars(metric, codes))


def _by_leaving_out(graph: Graph, scalars: Tensor) -> float:
    """The bandwidth under which codes, the points of a graph, are most likely by the others."""
    codes = graph.points
    errors.enough_codes(len(codes), 3)
    rows = torch.linspace(0, len(codes) - 1, min(len(codes), _ROWS), device=codes.device).round().long()
    distances = graph.distances(rows)
    distances[torch.arange(len(rows)), rows] = torch.inf
    apart = distances[(distances > 0) & torch.isfinite(distances)]
    if not len(apart):
        raise errors.coinciding("codes")

    def loss(log_width: float) -> float:
        width = math.exp(log_width)
        logs = -0.5 * (distances / width).square() - _log_volumes(scalars, width, codes.shape[1])
        logs = logs.masked_fill(torch.isinf(distances), -torch.inf).logsumexp(1)
        return -float(logs.clamp_min(math.log(_NOWHERE)).mean())

    least = float(apart.min())
    limits = (math.log(least), math.log(max(2 * least, min(float(apart.median()), _widest(scalars)))))
    candidates = np.linspace(*limits, 24)
    best = int(np.argmin([loss(x) for x in candidates]))
    around = (candidates[max(best - 1, 0)], candidates[min(best + 1, len(candidates) - 1)])
    found: Any = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-3})
    return math.exp(found.x)


def _checked(metric: Metric, codes: Points, at: Points | None, kernel: str) -> tuple[Tensor, Tensor | None]:
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    codes = _checks.cloud(codes, "codes").detach()
    if at is not None:
        at = _checks.cloud(at, "at").detach()
        _checks.same_kind(at, codes, "at", "codes")
    if kernel not in ("distance", "heat"):
        raise ValueError(f"`kernel` is {kernel!r}: want 'distance' or 'heat'.")
    return codes, at


def _graph(metric: Metric, codes: Tensor, n_neighbors: int) -> Graph:
    errors.enough_codes(len(codes), 2)
    return knn_graph(metric, codes, min(n_neighbors, len(codes) - 1))


def _told(width: float) -> float:
    _LOG.info("kernel_density takes bandwidth=%.4g", width)
    return width


def _distances(metric: Metric, graph: Graph, at: Tensor | None) -> Tensor:
    """Distances (m, n) along a graph of the codes, of points (m, d) or of these themselves."""
    n = len(graph.points)
    if at is None:
        return graph.distances(torch.arange(n))
    graph = graph.insert(metric, at)
    if len(at) < n:
        return graph.distances(n + torch.arange(len(at)))[:, :n]
    return graph.distances(torch.arange(n))[:, n:].mT


def _scalars(metric: Metric, codes: Tensor) -> Tensor:
    """The scalar curvature at codes (n,), 0 where there is none."""
    if codes.shape[1] == 1:
        return torch.zeros_like(codes[:, 0])
    found: Any = curvature.scalar(metric, codes)
    return found.nan_to_num(0.0)


def _log_volumes(scalars: Tensor, width: float, d: int) -> Tensor:
    bend = (width**2 * scalars / 6).clamp(-_BENT, _BENT)
    return 0.5 * d * math.log(2 * math.pi * width**2) - bend


def _widest(scalars: Tensor) -> float:
    """The bandwidth up to which the formula for volumes holds at most codes."""
    return (6 * _BENT / max(float(scalars.abs().quantile(1 - _OUTLIERS)), _NOWHERE)) ** 0.5


def _warn_of_curvature(scalars: Tensor, width: float) -> None:
    bent = int((width**2 * scalars.abs() / 6 > _BENT).sum())
    if bent > _OUTLIERS * len(scalars):
        warnings.warn(
            f"`bandwidth` is {width:.3g}: at {bent} of {len(scalars)} codes the curvature changes the volume under the "
            "kernel by more than half, and the formula for it no longer holds. Take kernel='heat' or a bandwidth below "
            f"{_widest(scalars):.3g}.",
            _checks.StatisticsWarning,
            stacklevel=3,
        )


def _grid(metric: Metric, codes: Tensor, bounds: Tensor | None, resolution: int | Sequence[int] | None) -> HeatGrid:
    """The grid for codes, all of them within it."""
    if bounds is None:
        low, high = codes.amin(0), codes.amax(0)
        margin = _MARGIN * (high - low).clamp_min(1e-6 * (1 + high.abs()))
        bounds = torch.stack((low - margin, high + margin), -1)
    else:
        bounds = errors.box(bounds, codes)
    outside = ((codes < bounds[:, 0]) | (codes > bounds[:, 1])).any(1)
    if outside.any():
        raise errors.codes_outside(codes, outside)
    grid = HeatGrid.of(metric, bounds, resolution)
    if grid.n_lost:
        warnings.warn(
            f"the metric is singular or not finite in {grid.n_lost} cells of the grid: no heat gets there. Make "
            "`bounds` smaller if that is not meant.",
            _checks.StatisticsWarning,
            stacklevel=4,
        )
    return grid


def _cell_size(grid: HeatGrid, codes: Tensor) -> float:
    """The length of a cell in the metric, the median over the codes."""
    return float(np.median(grid.weights(codes) @ grid.volumes)) ** (1 / codes.shape[1])


def _warn_of_cells(grid: HeatGrid, codes: Tensor, width: float) -> None:
    cell = _cell_size(grid, codes)
    if width < _FINE * cell:
        warnings.warn(
            f"`bandwidth` is {width:.3g}, but a cell of the grid is {cell:.3g} long at the codes: the kernel is not "
            f"resolved. Take a resolution {_FINE * cell / width:.1f} times as high, smaller bounds or a wider kernel.",
            _checks.StatisticsWarning,
            stacklevel=3,
        )


def _spikes(grid: HeatGrid, codes: Tensor) -> NDArray[Any]:
    """Codes as heat at the nodes (N,), of mass one."""
    mass = grid.weights(codes).sum(0) / len(codes)
    return np.divide(mass, grid.volumes, out=np.zeros_like(mass), where=grid.volumes > 0)


def _by_folds(grid: HeatGrid, codes: Tensor) -> float:
    """The best of some bandwidths of the heat kernel, for codes that are left out."""
    errors.enough_codes(len(codes), 3)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0)).to(codes.device)
    folds = order.tensor_split(min(_FOLDS, len(codes)))
    rest = [torch.cat([fold for j, fold in enumerate(folds) if j != i]) for i in range(len(folds))]
    heat = np.stack([_spikes(grid, codes[rows]) for rows in rest], 1)
    readers = [grid.weights(codes[fold]) for fold in folds]
    whole = _spikes(grid, codes)
    here = np.where(whole > 0)[0]
    cell = _cell_size(grid, codes)
    spread = len(here) ** (1 / codes.shape[1]) * cell
    widths = np.geomspace(_FINE * cell, max(2 * spread, 4 * cell), _WIDTHS)
    best, most, before = widths[0], -math.inf, 0.0
    for width in widths:
        heat = grid.flow(heat, width**2 - before, _HEAT_STEPS // 4)
        before = width**2
        likelihood = sum(
            float(np.log(np.maximum(reader @ heat[:, i], _NOWHERE)).sum()) for i, reader in enumerate(readers)
        )
        if likelihood > most:
            best, most = width, likelihood
    return float(best)
