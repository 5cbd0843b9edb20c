"""A metric read off a table: splines of its matrices on a grid."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback._batching import chunk_size, map_points
from pullback.metrics.contract import Metric, divide
from pullback.metrics.splines import GridSpline
from pullback.types import Features, Matrices, Nodes, Points, Scalars, Tangents

_POINTS = {1: 1025, 2: 257, 3: 41}  # along each axis, by dimension
_FEWEST = 4  # points that a not-a-knot spline needs
_HELD_OUT = 2000  # points to measure the error at
_PROGRESS = 4096  # points between two steps of the bar
_SAMPLES = 64  # of the metric on a curve, at the least: a wall between two of them goes unseen
_PER_SEGMENT = (2, 8)  # samples at least and at most; two give fourth order
_HALF = 0.5  # of its mean squared speed is the least that a chord counts


@dataclass(frozen=True)
class TableError:
    r"""How far a table is from its metric: quantiles over points of :func:`Tabulated.error_at`.

    Lengths of curves on the table are off by half of that, relatively, at most.
    """

    median: float
    quantile95: float
    max: float

    @classmethod
    def of(cls, errors: Tensor) -> TableError:
        """The quantiles of errors at points (n,)."""
        shares = torch.tensor([0.5, 0.95, 1.0], dtype=errors.dtype, device=errors.device)
        return cls(*errors.quantile(shares).tolist())


class Tabulated(Metric):
    r"""Another metric, read off a table: fast where the other is dear, in up to three dimensions.

    .. math:: G(z) = L(z) L(z)^\top, \qquad L_{ii} = e^{s_i(z)}, \quad L_{ij} = s_{ij}(z), \; i > j

    with cubic splines s through the Cholesky factors of the metric at the points of a regular grid (log-Cholesky
    coordinates): positive definite everywhere, and twice continuously differentiable. The error falls with the fourth
    power of the resolution; it is measured between the points of the grid, and kept.

    Geodesics on the table are those of the metric but for that error. To have them corrected and measured on the
    metric itself, start from them there, for a fraction of what they cost from a straight line::

        path = pb.geodesic(table, start, end)
        path = pb.geodesic(table.metric, start, end, init=path.curve)

    The table is only defined within its bounds. Outside, :meth:`inner`, :meth:`matrix` and what follows from them raise
    an error, and curves have no length: in a solver, a step that leaves the bounds is made shorter, and a pair with an
    end outside fails alone. The table holds no weights: gradients go to the points, and to nothing else.

    Args:
        metric: The metric; it is neither changed nor copied, and evaluated without gradients.
        bounds: (d, 2), d <= 3, the lower and upper end of each axis; dtype and device of the table.
        resolution: Points along each axis, 4 or more: one number, or one for each axis. Default: 1025 for d = 1, 257
            for d = 2, 41 for d = 3.
        at: Points (n, d) to measure the error at, such as codes. Default: the centers of up to 2,000 cells.
        progress: Whether to show a bar.

    Attributes:
        error: A :class:`TableError`, the median, 95% quantile and maximum of :meth:`error_at` at the points `at`.

    Raises:
        ValueError: When the bounds are empty, there are more than three axes, or fewer than four points along one; when
            the metric is singular or not finite at a point of the grid. Later: for points outside of the bounds.

    Cost:
        One matrix of the metric for each point of the grid: with the default 66,000 (69,000 for d = 3), on the shipped
        model some seconds. Then no decoder is evaluated: an evaluation takes about half a microsecond for d = 2.

    Reference:
        Log-Cholesky coordinates: Lin (2019), Riemannian geometry of symmetric positive definite matrices via Cholesky
        decomposition, SIAM Journal on Matrix Analysis and Applications 40. :cite:`logcholesky`

    Example:
        >>> import pullback as pb
        >>> sphere = pb.surfaces.Sphere()
        >>> table = Tabulated(pb.Pullback(sphere), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).double(), 65)
        >>> table.error.max < 1e-6
        True
        >>> start, end = torch.tensor([[-0.5, 0.0], [0.7, 0.6]]).double()
        >>> path = pb.geodesic(table, start, end)
        >>> bool((path.length - sphere.distance(start, end)).abs() <= path.length_error + 1e-6)
        True
    """

    def __init__(
        self,
        metric: Metric,
        bounds: Tensor,
        resolution: int | Sequence[int] | None = None,
        *,
        at: Points | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(metric, Metric):
            raise _checks.not_a_metric(metric)
        wanted = _POINTS.get(len(bounds), _FEWEST) if resolution is None else resolution
        shape = _checks.grid(bounds, wanted, least=_FEWEST, otherwise="use the metric itself")
        bounds = bounds.detach()
        self._metric = (metric,)  # not as a submodule: its weights are not those of the table
        self._home = bounds.new_empty(0)  # dtype and device that the metric takes
        coordinates = _tabulate(metric, _grid(bounds, shape, 0.0), progress)
        self.spline = GridSpline(bounds, coordinates.reshape(*shape, -1))
        self.error = TableError.of(self.error_at(_held_out(bounds, shape) if at is None else _checks.cloud(at, "at")))

    @property
    def metric(self) -> Metric:
        """The metric itself; ``.to(...)`` leaves it where it is."""
        return self._metric[0]

    @property
    def bounds(self) -> Tensor:
        """The lower and upper end of each axis, (d, 2)."""
        return self.spline.bounds

    def error_at(self, z: Points) -> Scalars:
        r"""The relative error of the table at points (..., d): (...).

        The largest :math:`|\lambda - 1|` of the generalized eigenvalues of (G of the table, G of the metric): how much
        a squared length is wrong, in the worst direction. Cost: one matrix of the metric a point.
        """
        found = self.matrix(z).detach()
        with torch.no_grad():
            lower = torch.cat(
                [
                    _cholesky(part, _matrices(self.metric, part))
                    for part in z.detach().to(self._home).flatten(0, -2).split(_PROGRESS)
                ]
            )
            lower = lower.reshape(found.shape).to(found)
            half = torch.linalg.solve_triangular(lower, found, upper=False)
            ratio = torch.linalg.solve_triangular(lower, half.mT, upper=False)
            return (torch.linalg.eigvalsh(ratio) - 1).abs().amax(-1)

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        z, u, v = _checks.tangents(self._within(z), ("u", u), ("v", v))

        def products(z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor]:
            lower = _lower(self.spline(z))
            return (_total(a * b for a, b in zip(_pushed(lower, u), _pushed(lower, v), strict=True)),)

        return map_points(products, (z, u, v), self.points_at_once(z))[0]

    def matrix(self, z: Points) -> Matrices:
        z = self._within(z)
        return map_points(lambda z: (_matrix(_lower(self.spline(z))),), (z,), self.points_at_once(z))[0]

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        """The Christoffel vector of tangents u, v (..., d) at z (..., d): (..., d); NaN outside of the bounds."""
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        self._fits(z)

        def gamma(z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor]:
            g, slopes = self._matrix_and_slopes(z)
            by_u, by_v = (torch.einsum("nk,nkij->nij", w, slopes) for w in (u, v))
            lowered = (by_u @ v[..., None] + by_v @ u[..., None])[..., 0]
            lowered = 0.5 * (lowered - torch.einsum("nkij,ni,nj->nk", slopes, u, v))
            return (torch.where(self.spline.inside(z)[:, None], divide(g, lowered), torch.nan),)

        return map_points(gamma, (z, u, v), self.points_at_once(z))[0]

    def christoffel_cost(self, d: int) -> int:
        return 1 + d

    def jet(self, z: Points) -> tuple[Matrices, Tensor, Tensor]:
        """G (n, d, d) at points (n, d), and its derivatives: d_k G (n, k, d, d) and d_k d_l G (n, k, l, d, d).

        In closed form, for curvature.
        """
        z = self._within(z)
        y, slopes, bends = self.spline.jet(z)
        d = z.shape[-1]
        lower = _lower(y)
        g = _matrix(lower)
        once, twice = _lower_slopes(lower, slopes), _lower(bends)
        for i in range(d):
            by = slopes[..., i]
            twice[i][i] = (bends[..., i] + by[:, :, None] * by[:, None]) * lower[i][i][:, None, None]
        half = _product(once, _unsqueezed(lower, 1))
        across = _product(_unsqueezed(once, 2), _unsqueezed(once, 1))
        bent = _product(twice, _unsqueezed(_unsqueezed(lower, 1), 1)) + across
        return g, half + half.mT, bent + bent.mT

    def features(self, z: Points) -> Features:
        """The points themselves, NaN outside of the bounds."""
        z = _checks.points(z, finite=False)
        self._fits(z)
        return torch.where(self.spline.inside(z)[..., None], z, torch.nan)

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        r"""Squared lengths of T segments (..., T) and T // 2 pairs of segments (..., T // 2) of curves (..., T + 1, d).

        Each pair of segments carries the parabola through its nodes; with its mean squared speed on each segment by
        Gauss quadrature, their energy is that of the parabola: never negative, and of fourth order. Midpoints alone
        would give an energy without a lower bound where the metric jumps.
        """
        n = x.shape[-2] - 1
        single, double = x.new_empty(*x.shape[:-2], 0), x.new_empty(*x.shape[:-2], 0)
        if n > 1:
            speed, bend = self._speeds(x)
            single = torch.maximum(speed - bend, _HALF * speed)  # as a chord: that of the flat parabola is |step|^2
            double = 8 * single.sum(-1) - 6 * speed.sum(-1)
            single = single.flatten(-2)
        if n % 2:
            step, (weights, places) = x[..., -1:, :] - x[..., -2:-1, :], _gauss(self._per_segment(n))
            along = x[..., -2:-1, :] + x.new_tensor(places)[:, None] * step
            last = self._squares(along, step.expand_as(along))[0] @ x.new_tensor(weights)
            single = torch.cat((single, last[..., None]), -1)
        return single, double

    def energy_and_gradient(self, z: Nodes, start: Features, end: Features) -> tuple[Scalars, Nodes]:
        n = z.shape[1] + 1
        if n % 2:
            return super().energy_and_gradient(z, start, end)
        with torch.no_grad():
            x = torch.cat((start[:, None], self.features(z), end[:, None]), 1)
            value, slope, weights = _parabolas(self._per_segment(n), x)
            elements = x.unfold(1, 3, 2)  # (B, T/2, d, 3)
            places, speeds = ((elements @ table).movedim(-2, -1) for table in (value, slope))  # (B, T/2, 2p, d)
            squares, by_place, by_speed = self._squares_and_slopes(places, speeds)
            scale = 0.5 * n * weights
            energy = (squares @ scale).sum(1)
            pulled = (by_place * scale[:, None]).mT @ value.mT + (by_speed * scale[:, None]).mT @ slope.mT
            gradient = torch.zeros_like(x)
            gradient[:, :-1:2] = pulled[..., 0]
            gradient[:, 1::2] = pulled[..., 1]
            gradient[:, 2::2] += pulled[..., 2]
        return energy, gradient[:, 1:-1]

    def grams(self, z: Points) -> tuple[Matrices, Matrices, Matrices]:
        r"""What the Gauss-Newton products at nodes z (..., n, d) would be of a map into a Euclidean space.

        With :math:`B = G \, \Gamma(z_k - z_i, \cdot)` in the middle, how the metric's frame turns on the way from one
        node to another, :math:`J_i^\top J_k \approx \tfrac12 (G_i + G_k) + \tfrac12 (B - B^\top) - \tfrac12 B^\top
        G^{-1} B`. That saves a third of a solver's steps.
        """
        with torch.no_grad():
            g = self._matrix_and_slopes(z.reshape(-1, z.shape[-1]))[0].reshape(*z.shape, z.shape[-1])
            g = torch.where(self.spline.inside(z)[..., None, None], g, torch.nan)
            return g, self._across(z, g, 1), self._across(z, g, 2)

    def gram_cost(self, d: int) -> int:
        return 3 * (1 + d)

    def points_at_once(self, z: Points) -> int:
        d = z.shape[-1]
        numbers = (1 + d + d * (d + 1) // 2) * 4**d  # weights and coefficients
        return chunk_size(_PER_SEGMENT[0] * numbers * z.element_size(), z.device)

    def _fits(self, z: Tensor) -> None:
        _checks.same_kind(z, self.bounds[:, 0], "z", "table.bounds")

    def _within(self, z: Points) -> Points:
        """Points on the table, or an error."""
        z = _checks.points(z)
        self._fits(z)
        outside = ~self.spline.inside(z.detach()).reshape(-1)
        if outside.any():
            raise _checks.off_the_table(z.detach().reshape(-1, z.shape[-1]), outside, self.bounds)
        return z

    def _matrix_and_slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """G (n, d, d) at points (n, d) and its derivatives (n, d, d, d), by the coordinate of the second axis."""
        y, slopes = self.spline.value_and_slopes(z)
        lower = _lower(y)
        half = _product(_lower_slopes(lower, slopes), _unsqueezed(lower, 1))
        return _matrix(lower), half + half.mT

    def _across(self, z: Tensor, g: Tensor, k: int) -> Tensor:
        """J_i' J_{i+k} of nodes z (..., n, d) with matrices g."""
        d = z.shape[-1]
        step, middle = z[..., k:, :] - z[..., :-k, :], 0.5 * (z[..., k:, :] + z[..., :-k, :])
        within, slopes = self._matrix_and_slopes(middle.reshape(-1, d))
        within, slopes = within.reshape(*middle.shape, d), slopes.reshape(*middle.shape, d, d)
        along = torch.einsum("...k,...kij->...ij", step, slopes)
        pulled = torch.einsum("...kij,...i->...jk", slopes, step)  # d_k (G step)_j
        skew = 0.5 * (pulled - pulled.mT)
        turn = 0.5 * along + skew
        bent = turn.mT @ torch.linalg.solve_ex(within, turn).result
        return 0.5 * (g[..., :-k, :, :] + g[..., k:, :, :]) + skew - 0.5 * bent

    def _per_segment(self, n: int) -> int:
        """Samples on each of n segments."""
        least, most = _PER_SEGMENT
        return min(max(-(-_SAMPLES // n), least), most)

    def _speeds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """On both halves of parabolas through nodes x (..., T + 1, d): squared speeds, and what bending has in them.

        Means over each segment, in units of its step: (..., T // 2, 2).
        """
        n = x.shape[-2] - 1
        value, slope, weights = _parabolas(self._per_segment(n), x)
        elements = x.unfold(-2, 3, 2)
        places, speeds = ((elements @ table).movedim(-2, -1) for table in (value, slope))
        bend = elements[..., 0] - 2 * elements[..., 1] + elements[..., 2]
        off = x.new_tensor(_gauss(self._per_segment(n))[1]).repeat(2) - 0.5  # from the middle of the segment
        bends = off[:, None] * bend[..., None, :]
        squares = self._squares(places, speeds, bends)
        speed, bent = ((square * weights).unflatten(-1, (2, -1)).sum(-1) for square in squares)
        return speed, bent

    def _squares(self, z: Tensor, *vectors: Tensor) -> list[Tensor]:
        """v'G(z)v (...) of each of some vectors v (..., d) at points (..., d), NaN outside of the bounds."""
        flat, inside = z.reshape(-1, z.shape[-1]), self.spline.inside(z)
        lower = _lower(self.spline(flat))
        squares = (_total(u * u for u in _pushed(lower, v.reshape(flat.shape))) for v in vectors)
        return [torch.where(inside, square.reshape(z.shape[:-1]), torch.nan) for square in squares]

    def _squares_and_slopes(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v'G(z)v (...) at points (..., d), NaN outside of the bounds, and its derivatives (..., d) by z and v."""
        d = z.shape[-1]
        y, slopes = self.spline.value_and_slopes(z.reshape(-1, d))
        lower, vectors = _lower(y), v.reshape(-1, d).unbind(-1)
        pushed = _pushed(lower, v.reshape(-1, d))
        square = _total(u * u for u in pushed)
        by_v = [2 * _total(lower[i][j] * pushed[j] for j in range(i + 1)) for i in range(d)]
        by_y = [2 * vectors[i] * pushed[i] * lower[i][i] for i in range(d)]
        by_y += [2 * vectors[i] * pushed[j] for i in range(d) for j in range(i)]
        by_z = (slopes @ torch.stack(by_y, -1)[..., None])[..., 0]
        square = torch.where(self.spline.inside(z), square.reshape(z.shape[:-1]), torch.nan)
        return square, by_z.reshape(z.shape), torch.stack(by_v, -1).reshape(z.shape)


def _lower(y: Tensor) -> list[list[Tensor]]:
    """The rows of Cholesky factors, entry by entry, from log-Cholesky coordinates (..., m)."""
    d = (math.isqrt(8 * y.shape[-1] + 1) - 1) // 2
    entries = iter(y.unbind(-1)[d:])
    diagonal = y[..., :d].exp().unbind(-1)
    return [[*(next(entries) for _ in range(i)), diagonal[i]] for i in range(d)]


def _lower_slopes(lower: list[list[Tensor]], slopes: Tensor) -> list[list[Tensor]]:
    """The derivatives (n, k) of the entries of Cholesky factors from those of log-Cholesky coordinates (n, k, m)."""
    turned = _lower(slopes)  # as if exponentials were to be taken of derivatives, too
    for i in range(len(lower)):
        turned[i][i] = slopes[..., i] * lower[i][i][:, None]
    return turned


def _unsqueezed(lower: list[list[Tensor]], dim: int) -> list[list[Tensor]]:
    return [[entry.unsqueeze(dim) for entry in row] for row in lower]


def _pushed(lower: list[list[Tensor]], v: Tensor) -> list[Tensor]:
    """The components (n,) of L'v, vectors (n, d) as seen in an orthonormal frame."""
    vectors, d = v.unbind(-1), len(lower)
    return [_total(lower[i][j] * vectors[i] for i in range(j, d)) for j in range(d)]


def _product(a: list[list[Tensor]], b: list[list[Tensor]]) -> Tensor:
    """The products A B' (..., d, d) of lower triangular matrices, entry by entry."""
    d = len(a)
    rows = [[_total(a[i][k] * b[j][k] for k in range(min(i, j) + 1)) for j in range(d)] for i in range(d)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _matrix(lower: list[list[Tensor]]) -> Tensor:
    return _product(lower, lower)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, parts)


@functools.lru_cache(maxsize=16)
def _gauss(n: int) -> tuple[list[float], list[float]]:
    """Weights and places of Gauss quadrature with n points on [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(n)
    return (0.5 * weights).tolist(), (0.5 + 0.5 * places).tolist()


def _parabolas(n: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places and speeds on parabolas through three nodes at n Gauss points on each half: (3, 2n) twice; weights (2n,).

    The weights of each half have the sum one; speeds are those for steps of unit time.
    """
    weights, places = (like.new_tensor(values).repeat(2) for values in _gauss(n))
    t = places.clone()
    t[:n] -= 1
    value = torch.stack((0.5 * t * (t - 1), 1 - t * t, 0.5 * t * (t + 1)))
    return value, torch.stack((t - 0.5, -2 * t, t + 0.5)), weights


def _grid(bounds: Tensor, shape: tuple[int, ...], shift: float) -> Tensor:
    """The points (n, d) of a grid, or those shifted towards the next by a share of a cell, without the last."""
    axes = []
    for (low, high), count in zip(bounds.unbind(0), shape, strict=True):
        t = torch.arange(count - (shift > 0), dtype=bounds.dtype, device=bounds.device) + shift
        axes.append(low + (high - low) * t / (count - 1))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))


def _held_out(bounds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The centers of cells, where splines are off the most; of many cells some, always the same."""
    centers = _grid(bounds, shape, 0.5)
    generator = torch.Generator(device="cpu").manual_seed(0)
    chosen = torch.randperm(len(centers), generator=generator, device="cpu")[:_HELD_OUT]
    return centers[chosen.to(bounds.device)]


def _tabulate(metric: Metric, points: Tensor, progress: bool) -> Tensor:
    """The log-Cholesky coordinates (n, m) of a metric at points (n, d)."""
    d = points.shape[1]
    rows, columns = torch.tril_indices(d, d, -1, device=points.device)
    found = []
    with torch.no_grad(), tqdm(total=len(points), desc="table", unit="point", disable=not progress) as bar:
        for part in points.split(_PROGRESS):
            lower = _cholesky(part, _matrices(metric, part))
            found.append(torch.cat((lower.diagonal(dim1=-2, dim2=-1).log(), lower[:, rows, columns]), -1))
            bar.update(len(part))
    return torch.cat(found)


def _matrices(metric: Metric, z: Tensor) -> Tensor:
    """Matrices (n, d, d) of a metric at points (n, d); where it is not finite, the error names the point."""
    try:
        return metric.matrix(z)
    except _checks.NotFiniteError:
        if len(z) == 1:
            raise _checks.not_tabulated(z[0], "not finite") from None
    return torch.cat([_matrices(metric, half) for half in z.split((len(z) + 1) // 2)])


def _cholesky(z: Tensor, g: Tensor) -> Tensor:
    """The Cholesky factors of matrices (n, d, d) at points (n, d); where they are singular, the error names one."""
    lower, info = torch.linalg.cholesky_ex(g)
    rounding = 10 * g.shape[-1] * torch.finfo(g.dtype).eps
    share = lower.diagonal(dim1=-2, dim2=-1).square() / g.diagonal(dim1=-2, dim2=-1)
    regular = (info == 0) & (share > rounding).all(-1)  # False for NaN
    if not regular.all():
        i = int((~regular).nonzero()[0])
        kind = "singular" if torch.isfinite(g[i]).all() else "not finite"
        raise _checks.not_tabulated(z[i], kind)
    return lower
