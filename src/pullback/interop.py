"""Other people's algorithms on our metrics: geomstats, whose learners ask for log, exp and distances.

networkx stands with graphs: :meth:`~pullback.Graph.to_networkx` and :meth:`~pullback.Graph.from_networkx`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pullback import _checks
from pullback.curvature import christoffel, riemann
from pullback.geodesics import (
    ConvergenceError,
    GeodesicSolver,
    Solution,
    Trajectory,
    distance,
    exp,
    geodesic,
    log,
    transport,
)
from pullback.geodesics.departures import departures
from pullback.geodesics.starts import Start
from pullback.metrics import Metric
from pullback.types import Matrices, Points, Scalars, Tangents

__all__ = ["to_geomstats"]

Array: TypeAlias = "NDArray[np.floating] | Tensor"


def to_geomstats(
    metric: Metric,
    dim: int,
    *,
    frame: Literal["coordinate", "orthonormal"] = "coordinate",
    tol: float = 1e-5,
    solver: GeodesicSolver | str | None = None,
    starts: Start | Sequence[Start] = "straight",
    polish: bool = False,
    on_failure: Literal["raise", "nan"] = "raise",
) -> Any:
    r"""A geomstats space, the chart R^d, whose Riemannian metric is ours: for geomstats' learning algorithms.

    ``space.metric`` has ``inner_product``, ``norm``, ``metric_matrix``, ``exp``, ``log``, ``geodesic``, ``dist``,
    ``dist_pairwise``, ``parallel_transport``, ``christoffels``, ``riemann_tensor`` and what geomstats makes of these,
    in its conventions: ``log(point, base_point)``, shapes (..., d) that broadcast. All pairs are solved at once.
    NumPy arrays give NumPy arrays, tensors give tensors: take the kind that geomstats' backend has (its environment
    variable GEOMSTATS_BACKEND, ``numpy`` unless set; nothing is set here). Whole numbers become float64. What comes
    from NumPy is worked on where the metric's weights are.

    The logarithm is minus the gradient of half the squared distance, which a geodesic gives for little more than its
    length:

    .. math:: \log_z w = -\, G(z)^{-1} \, \nabla_z \tfrac12 d(z, w)^2 .

    Args:
        metric: The metric.
        dim: The latent dimension d.
        frame: What tangent vectors are written in. "coordinate": the latent coordinates, as everywhere in this package.
            "orthonormal": at each point the frame E = L^{-T} of the Cholesky factor, G = L L^T, in which inner products
            are those of numbers: for learners that forget the metric, as TangentPCA does. Points stay as they are.
        tol: Relative error of distances and of where ``exp`` ends.
        solver: As for :func:`~pullback.geodesic`.
        starts: The same: "straight", "bends" or a graph; each is solved for, and the shortest counts.
        polish: Whether logarithms are those of :func:`~pullback.log`, by shooting: known to 1e-7, at ten times the
            cost.
        on_failure: "raise", or "nan" for NaN and a warning where no geodesic was found.

    Returns:
        The space, a ``geomstats.geometry.base.VectorSpace``; it can be pickled.

    Raises:
        ImportError: geomstats is missing, or is 2.8 with NumPy 2.4, which it cannot be imported with.
        ConvergenceError: From ``dist``, ``log``, ``exp`` and what uses them: some pairs have no geodesic; it names
            them. geomstats' learners would take NaN for the nearest center, or carry it to the end.
        ValueError: An argument that is none of those above; from the methods, points that do not fit.

    Cost:
        ``dist`` that of :func:`~pullback.distance`; ``log`` the same and 3 evaluations a node of the curve, 3,400 a
        pair on the shipped model, where ``exp`` then misses the point by 1e-4 of the distance in the median, and by
        1.4e-2 in one pair of a hundred. ``exp`` that of :func:`~pullback.exp`, which is most of what a mean takes. Only
        ``dist`` carries gradients, to points that require them.

    Reference:
        Miolane et al. (2020). :cite:`geomstats`

    Example:
        >>> import numpy as np
        >>> space = to_geomstats(pb.Pullback(pb.surfaces.Sphere()), 2)  # z = 0 is the pole, |z| = 1 the equator
        >>> print(space.metric.dist(np.zeros(2), np.array([[1.0, 0.0], [0.0, 1.0]])).round(4))  # a quarter
        [1.5708 1.5708]
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    _checks.at_least(dim, 1, "dim")
    _checks.relative(tol, "tol")
    for name, given, allowed in (
        ("frame", frame, ("coordinate", "orthonormal")),
        ("on_failure", on_failure, ("raise", "nan")),
    ):
        if given not in allowed:
            raise ValueError(f"`{name}` is {given!r}: want one of {', '.join(map(repr, allowed))}.")
    return _space(_Settings(metric, int(dim), frame, tol, solver, starts, polish, on_failure))


@dataclass(frozen=True)
class _Settings:
    """What makes a space: the arguments of :func:`to_geomstats`."""

    metric: Metric
    dim: int
    frame: str
    tol: float
    solver: GeodesicSolver | str | None
    starts: Start | Sequence[Start]
    polish: bool
    on_failure: str


def _space(settings: _Settings) -> Any:
    """The equipped space; what unpickling calls."""
    space, metric = _types(*_bases())
    return space(settings).equip_with_metric(metric, settings=settings)


def _bases() -> tuple[type, type]:
    """geomstats' classes of spaces and of metrics."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # of the way in which geomstats imports its backend
            from geomstats.geometry.base import VectorSpace
            from geomstats.geometry.riemannian_metric import RiemannianMetric
    except ImportError as error:
        if "trapz" not in str(error):
            raise
        raise ImportError(
            f"geomstats 2.8 and older cannot be imported with numpy {np.__version__}, which has no `trapz` any more: "
            'pip install "numpy<2.4".'
        ) from error
    return VectorSpace, RiemannianMetric


@functools.cache
def _types(vector_space: type, riemannian_metric: type) -> tuple[type, type]:
    """Ours on top of geomstats': made when asked for, because importing geomstats takes seconds."""
    metric = type("LatentMetric", (_LatentMetric, riemannian_metric), {"__module__": __name__})
    return type("LatentSpace", (_LatentSpace, vector_space), {"__module__": __name__}), metric


class _LatentSpace:
    """The chart R^d, to be mixed with geomstats' vector space."""

    dim: int

    def __init__(self, settings: _Settings) -> None:
        arguments: dict[str, Any] = {"shape": (settings.dim,), "equip": False}
        super().__init__(**arguments)
        self.settings = settings

    def _create_basis(self) -> Array:
        import geomstats.backend as gs  # pyright: ignore[reportMissingImports]

        return gs.eye(self.dim)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _space, (self.settings,)


class _LatentMetric:
    """A metric of this package, to be mixed with geomstats' Riemannian metric: its names, its order of arguments."""

    _space: Any

    def __init__(self, space: Any, *, settings: _Settings) -> None:
        arguments: dict[str, Any] = {"space": space}
        super().__init__(**arguments)
        self.settings = settings

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (self._space, "metric")

    # Tensors: inner products and tensors at points

    def metric_matrix(self, base_point: Array | None = None) -> Array:
        """G(z), or the identity in orthonormal frames: (..., d) -> (..., d, d)."""
        (z,), back = self._given(base_point=base_point)
        g = self.settings.metric.matrix(z)
        return back(torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand_as(g).clone() if self._framed else g)

    def inner_product(self, tangent_vec_a: Array, tangent_vec_b: Array, base_point: Array | None = None) -> Array:
        """The inner product of tangents (..., d) at points (..., d): (...)."""
        (u, v, z), back = self._given(tangent_vec_a=tangent_vec_a, tangent_vec_b=tangent_vec_b, base_point=base_point)
        if self._framed:
            return back((u * v).sum(-1).expand(torch.broadcast_shapes(u.shape, v.shape, z.shape)[:-1]))
        return back(self.settings.metric.inner(z, u, v))

    def squared_norm(self, vector: Array, base_point: Array | None = None) -> Array:
        """The squared length of tangents (..., d) at points (..., d): (...)."""
        return self.inner_product(vector, vector, base_point)

    def norm(self, vector: Array, base_point: Array | None = None) -> Array:
        """The length of tangents (..., d) at points (..., d): (...)."""
        return self.squared_norm(vector, base_point) ** 0.5

    def christoffels(self, base_point: Array | None = None) -> Array:
        """The Christoffel symbols of the latent coordinates, the upper index first: (..., d) -> (..., d, d, d)."""
        if self._framed:
            raise ValueError(
                "`christoffels` belong to coordinates, and this space has orthonormal frames: take them from "
                "to_geomstats(metric, dim)."
            )
        (z,), back = self._given(base_point=base_point)
        return back(christoffel(self.settings.metric, z))

    def riemann_tensor(self, base_point: Array | None = None) -> Array:
        """R_{ijk}^l at [..., i, j, k, l], component l of R(e_j, e_k) e_i: (..., d) -> (..., d, d, d, d)."""
        (z,), back = self._given(base_point=base_point)
        metric = self.settings.metric
        lowered = riemann(metric, z)  # R_{lijk} = <R(e_j, e_k) e_i, e_l>
        if self._framed:
            e = _frame(metric, z)
            return back(torch.einsum("...la,...ib,...jc,...kd,...lijk->...bcda", e, e, e, e, lowered))
        inverse = torch.linalg.inv(metric.matrix(z))
        return back(torch.einsum("...ml,...lijk->...ijkm", inverse, lowered))

    # Geodesics

    def dist(self, point_a: Array, point_b: Array) -> Array:
        """The geodesic distance of points (..., d): (...)."""
        (a, b), back = self._given(point_a=point_a, point_b=point_b)
        wanted = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)  # a decoder's weights always do
        with self._failures("dist"), torch.set_grad_enabled(wanted):
            return back(distance(self.settings.metric, a, b, **self._solving))

    def squared_dist(self, point_a: Array, point_b: Array) -> Array:
        """Its square: (...)."""
        return self.dist(point_a, point_b) ** 2

    def dist_pairwise(self, points: Array, n_jobs: int = 1, **joblib_kwargs: Any) -> Array:
        """The distances between all of n points (n, d): (n, n). Solved at once; jobs are taken and ignored."""
        (z,), back = self._given(points=points)
        n = len(_checks.cloud(z, "points"))
        i, j = torch.triu_indices(n, n, 1, device=z.device)
        with self._failures("dist_pairwise"):
            found = geodesic(self.settings.metric, z[i], z[j], **self._solving).length
        whole = found.new_zeros(n, n)
        whole[i, j] = whole[j, i] = found
        return back(whole)

    def diameter(self, points: Array) -> Array:
        """The largest distance between two of n points (n, d): ()."""
        return self.dist_pairwise(points).max()

    def log(self, point: Array, base_point: Array) -> Array:
        """The velocity (..., d) at base points of geodesics to points (..., d) that arrive at time 1."""
        (w, z), back = self._given(point=point, base_point=base_point)
        metric, settings = self.settings.metric, self.settings
        with self._failures("log"):
            velocity: Any
            if settings.polish:
                velocity = log(metric, z, w, solver=settings.solver, starts=settings.starts)
            else:
                velocity = _velocity(metric, geodesic(metric, z, w, **self._solving))
        return back(self._into_frame(z, velocity))

    def exp(self, tangent_vec: Array, base_point: Array) -> Array:
        """Where geodesics from base points (..., d) with velocities (..., d) are at time 1: (..., d)."""
        (v, z), back = self._given(tangent_vec=tangent_vec, base_point=base_point)
        return back(self._exp(z, v).end)

    def geodesic(
        self, initial_point: Array, end_point: Array | None = None, initial_tangent_vec: Array | None = None
    ) -> Callable[[Any], Array]:
        """Geodesics as a function of times (n,), which gives points (..., n, d).

        Between two points times are in [0, 1]; from a velocity any times do, and each is integrated to by itself.
        """
        if (end_point is None) == (initial_tangent_vec is None):
            raise ValueError("give one of `end_point` and `initial_tangent_vec`, which say where the geodesic leads.")
        if end_point is not None:
            (start, end), back = self._given(initial_point=initial_point, end_point=end_point)
            with self._failures("geodesic"):
                found = geodesic(self.settings.metric, start, end, **self._solving)
            lost = ~found.converged[..., None, None]  # whose curves look like any other
            return lambda t: back(found.curve(_times(t, start)).masked_fill(lost, torch.nan))
        (z, v), back = self._given(initial_point=initial_point, initial_tangent_vec=initial_tangent_vec)

        def path(t: Any) -> Array:
            return back(self._exp(z[..., None, :], _times(t, z)[:, None] * v[..., None, :]).end)

        return path

    def parallel_transport(
        self, tangent_vec: Array, base_point: Array, direction: Array | None = None, end_point: Array | None = None
    ) -> Array:
        """Tangents (..., d) carried along geodesics, from base points in a direction or to end points: (..., d)."""
        if (direction is None) == (end_point is None):
            raise ValueError("give one of `direction` and `end_point`, which say where the geodesic leads.")
        metric, there = self.settings.metric, {"direction": direction, "end_point": end_point}
        there = {name: x for name, x in there.items() if x is not None}
        (v, z, to), back = self._given(tangent_vec=tangent_vec, base_point=base_point, **there)
        with self._failures("parallel_transport"):
            way = self._exp(z, to) if end_point is None else geodesic(metric, z, to, **self._solving)
            carried = transport(metric, way.curve, self._out_of_frame(z, v), tol=self.settings.tol)
        carried = carried.masked_fill(~way.converged[..., None], torch.nan)
        return back(self._into_frame(way.curve.nodes[..., -1, :], carried))

    # What these need

    @property
    def _framed(self) -> bool:
        return self.settings.frame == "orthonormal"

    @property
    def _solving(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in ("tol", "solver", "starts")}

    def _exp(self, z: Points, v: Tangents) -> Trajectory:
        with self._failures("exp"):
            return exp(self.settings.metric, z, self._out_of_frame(z, v), tol=self.settings.tol)

    def _into_frame(self, z: Points, v: Tangents) -> Tangents:
        """Components in the frame of tangents in latent coordinates: L' v."""
        return (_factor(self.settings.metric, z).mT @ v[..., None])[..., 0] if self._framed else v

    def _out_of_frame(self, z: Points, v: Tangents) -> Tangents:
        """Latent coordinates of tangents by their components in the frame: E v."""
        return (_frame(self.settings.metric, z) @ v[..., None])[..., 0] if self._framed else v

    def _given(self, **arrays: Any) -> tuple[list[Tensor], Callable[[Tensor], Array]]:
        """Arrays (..., d) as tensors of one dtype and device, and the way back to what they were."""
        for name, x in arrays.items():
            if x is None:
                raise ValueError(f"`{name}` is missing: this metric changes from point to point.")
        known = [x for x in arrays.values() if isinstance(x, Tensor)]
        weight = next((w for w in (*known, *self.settings.metric.parameters(), *self.settings.metric.buffers())), None)
        device = torch.device("cpu") if weight is None else weight.device
        tensors = [x if isinstance(x, Tensor) else torch.from_numpy(np.array(x, order="C")) for x in arrays.values()]
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
        dtype = dtype if dtype.is_floating_point else torch.float64
        tensors = [x.to(device, dtype) for x in tensors]
        for name, x in zip(arrays, tensors, strict=True):
            _checks.points(x, name, finite="point" in name)  # vectors may be logarithms that failed
            if x.shape[-1] != self.settings.dim:
                want = self.settings.dim
                raise ValueError(
                    f"`{name}` has shape {tuple(x.shape)} but the space has dimension {want}: (..., {want})."
                )
        try:
            torch.broadcast_shapes(*(x.shape for x in tensors))
        except RuntimeError:
            shapes = ", ".join(f"`{name}` {tuple(x.shape)}" for name, x in zip(arrays, tensors, strict=True))
            raise ValueError(f"shapes do not fit each other: {shapes}; want equal ones, or single ones (d,).") from None
        return tensors, (lambda x: x) if known else (lambda x: x.detach().cpu().numpy())

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """Turn the warning that some geodesics were not found into an error, if that was asked for."""
        if self.settings.on_failure == "nan":
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("error", _checks.GeodesicWarning)
            try:
                yield
            except _checks.GeodesicWarning as said:
                raise ConvergenceError(
                    f"`{what}`: {said}. Leave such points out, give to_geomstats other `starts` or a larger `tol`, or "
                    'on_failure="nan" for NaN in their place.'
                ) from None


def _velocity(metric: Metric, path: Solution) -> Tangents:
    """Velocities (..., d) at the starts of geodesics; NaN where none was found or, with a warning, G is singular."""
    nodes, length = path.curve.nodes, path.length
    velocity = torch.zeros_like(nodes[..., 0, :])
    moving = path.converged & (nodes[..., 0, :] != nodes[..., -1, :]).any(-1)
    if moving.any():
        velocity[moving] = departures(metric, nodes[moving], length[moving])
        lost = velocity.isnan().any(-1).reshape(-1).nonzero().reshape(-1).tolist()
        if lost:
            text = f"at {len(lost)} of {moving.numel()} base points the metric is singular (pairs {lost[:10]})"
            warnings.warn(text, _checks.GeodesicWarning, stacklevel=3)
    return velocity.masked_fill(length.isnan()[..., None], torch.nan)


def _factor(metric: Metric, z: Points) -> Matrices:
    """The Cholesky factor L of G = L L': (..., d) -> (..., d, d)."""
    g = metric.matrix(z).detach()
    factor, info = torch.linalg.cholesky_ex(g)
    if (info != 0).any():
        i = int((info != 0).reshape(-1).nonzero()[0])
        raise _checks.not_positive(z.reshape(-1, z.shape[-1]), g.reshape(-1, *g.shape[-2:]), i)
    return factor


def _frame(metric: Metric, z: Points) -> Matrices:
    """The orthonormal frame E = L^{-T}, its vectors in columns: (..., d) -> (..., d, d)."""
    factor = _factor(metric, z)
    identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    return torch.linalg.solve_triangular(factor.mT, identity.expand_as(factor), upper=True)


def _times(t: Any, like: Tensor) -> Scalars:
    """Times (n,), from a number or an array."""
    return torch.as_tensor(t, dtype=like.dtype, device=like.device).reshape(-1)
