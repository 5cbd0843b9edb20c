"""The contract of a metric: inner product and matrix, and what follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor, nn

from pullback import _checks
from pullback._batching import chunk_size, differentiated, map_points
from pullback.chords import chord_energy, root
from pullback.types import Features, Matrices, Nodes, Points, Scalars, Tangents


class Metric(nn.Module, ABC):
    r"""A Riemannian metric on R^d: at each point z an inner product :math:`\langle u, v\rangle_z = u^\top G(z) v`.

    Give :meth:`inner` and :meth:`matrix` and get the rest: norms, volumes, curve lengths and energies, geodesics. A
    metric that is pulled back by a map into a Euclidean space (see :class:`Pullback`) also overrides the three methods
    behind discrete curves, for which it knows something better: chords in that space.

    Metrics add up, and a number scales them: ``metric_a + 3.0 * metric_b`` is a metric.
    """

    @property
    def immersed(self) -> bool:
        """Whether :meth:`features` is a map into a Euclidean space whose metric this one is the pullback of."""
        return False

    @abstractmethod
    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        """The inner product of tangents u, v (..., d) at z (..., d): (...)."""

    @abstractmethod
    def matrix(self, z: Points) -> Matrices:
        """G(z), symmetric and positive semi-definite: (..., d) -> (..., d, d)."""

    @final
    def norm(self, z: Points, v: Tangents) -> Scalars:
        r"""The length :math:`\sqrt{\langle v, v\rangle_z}` of tangents v (..., d) at z (..., d): (...)."""
        return root(self.inner(z, v, v))

    @final
    def log_volume(self, z: Points) -> Scalars:
        r"""The logarithm of the magnification factor, :math:`\tfrac12 \log\det G(z)`: (..., d) -> (...).

        The volume of the image of a small latent region over that of the region. ``-inf`` where G is singular to
        working precision. Cost: that of :meth:`matrix`.
        """
        g = self.matrix(z)
        eigenvalues = torch.linalg.eigvalsh(_checks.all_finite(g.flatten(-2), "the metric", OUTSIDE).reshape(g.shape))
        rounding = eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * eigenvalues[..., -1:]
        return 0.5 * torch.where(eigenvalues > rounding, eigenvalues, 0).log().sum(-1)

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        r"""The Christoffel vector :math:`\Gamma^k_{ij} u^i v^j` of tangents u, v (..., d) at z (..., d): (..., d).

        .. math:: \Gamma(u, v) = \tfrac12 G^{-1} \big(D_v G \, u + D_u G \, v - \nabla_z (u^\top G v)\big)

        Symmetric and bilinear. Geodesics are the curves with z'' = -christoffel(z, z', z'). NaN at points where G is
        singular to working precision, or not finite: no geodesic is determined there.

        Cost: one graph of :meth:`matrix` and five passes through it, two less when u is v.

        Raises:
            ValueError: When :meth:`matrix` changes from point to point but carries no gradient.
        """
        same = u is v
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))

        def gamma(z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor]:
            graph = differentiated(z, u, v)
            with torch.enable_grad():
                z = z if graph and z.requires_grad else z.detach().requires_grad_()
                g = self.matrix(z)
                if not g.requires_grad:  # a constant metric, or one that hides its argument
                    if not torch.equal(g, self.matrix(z + 0.01 * (1 + z.abs()))):
                        raise _checks.metric_without_gradient()
                    return (divide(g, torch.zeros_like(z)),)
                turned = _turn((g @ u[..., None])[..., 0], z, v, graph)
                turned = 2 * turned if same else turned + _turn((g @ v[..., None])[..., 0], z, u, graph)
                form = torch.einsum("ni,nij,nj->", u, g, v)
                options: Any = {"create_graph": graph, "materialize_grads": True}
                return (
                    divide(g if graph else g.detach(), 0.5 * (turned - torch.autograd.grad(form, z, **options)[0])),
                )

        return map_points(gamma, (z, u, v), self.points_at_once(z))[0]

    def christoffel_cost(self, d: int) -> int:
        """Evaluations that :meth:`christoffel` takes a point when u is v."""
        return 6 * self.matrix_cost(d)

    # Discrete curves. A solver moves nodes z_0 .. z_T; it decodes them to features and measures chords between these.

    def features(self, z: Points) -> Features:
        """What chords are measured between: z itself, or its image in the space whose metric is pulled back."""
        return z

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        """Squared lengths of the T chords of a curve x (..., T + 1, D) and of its T // 2 double chords.

        The double chord i joins x_{2i} to x_{2i+2}. Both have even error expansions in 1/T, so that two-to-one
        Richardson extrapolation gives fourth order. Here: the inner product at the middle of the segment; a map into a
        Euclidean space has true chords.
        """
        return midpoint_chords(self.inner, x)

    def energy_and_gradient(self, z: Nodes, start: Features, end: Features) -> tuple[Scalars, Nodes]:
        """The discrete energy (B,) of curves with decoded ends (B, D), and its gradient by inner nodes z (B, n, d).

        Cost: 3 evaluations a node.
        """
        with torch.enable_grad():
            nodes = z.detach().requires_grad_()
            x = torch.cat((start[:, None], self.features(nodes), end[:, None]), 1)
            energy = chord_energy(*self.squared_chords(x))
            (gradient,) = torch.autograd.grad(energy.sum(), nodes)
        return energy.detach(), gradient

    def grams(self, z: Points) -> tuple[Matrices, Matrices, Matrices]:
        """The Gauss-Newton products of nodes z (..., n, d): J_i' J_i, J_i' J_{i+1} and J_i' J_{i+2}.

        They only precondition a solver, so that an approximation (here: G in the middle) does no harm.
        """
        middle, over_one = (0.5 * (z[..., :-k, :] + z[..., k:, :]) for k in (1, 2))
        return self.matrix(z), self.matrix(middle), self.matrix(over_one)

    def points_at_once(self, z: Points) -> int:
        """How many points the memory budget allows in one evaluation."""
        return chunk_size(4 * z.shape[-1] ** 2 * z.element_size(), z.device)

    def matrix_cost(self, d: int) -> int:
        """Evaluations (of a decoder, if there is one) that :meth:`matrix` takes a point."""
        return 1

    def gram_cost(self, d: int) -> int:
        """Evaluations that :meth:`grams` takes a node."""
        return 3 * self.matrix_cost(d)

    def __add__(self, other: Metric) -> Metric:
        return Sum(self, other) if isinstance(other, Metric) else NotImplemented

    def __mul__(self, factor: float) -> Metric:
        return Scaled(self, factor) if isinstance(factor, Real) else NotImplemented

    def __rmul__(self, factor: float) -> Metric:
        return self * factor


class Sum(Metric):
    """The sum of metrics, as ``metric_a + metric_b`` makes it: inner products and matrices add up.

    The squared length of a small step is the sum of those by each. Cost: that of all of them.
    """

    def __init__(self, *metrics: Metric) -> None:
        super().__init__()
        parts = [part for metric in metrics for part in (metric.metrics if isinstance(metric, Sum) else [metric])]
        self.metrics = nn.ModuleList(parts)
        self._sizes: dict[int, list[int]] = {}  # of the parts' features, by their sum

    @property
    def parts(self) -> list[Metric]:
        """The metrics that are added."""
        return [part for part in self.metrics if isinstance(part, Metric)]

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        return torch.stack([part.inner(z, u, v) for part in self.parts]).sum(0)

    def matrix(self, z: Points) -> Matrices:
        return torch.stack([part.matrix(z) for part in self.parts]).sum(0)

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        r"""The Christoffel vector :math:`\big(\sum_k G_k\big)^{-1} \sum_k G_k \Gamma_k(u, v)`: (..., d)."""
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        matrices = [part.matrix(z) for part in self.parts]
        gammas = [part.christoffel(z, u, v) for part in self.parts]
        lowered = [(g @ x[..., None])[..., 0] for g, x in zip(matrices, gammas, strict=True)]
        return divide(torch.stack(matrices).sum(0), torch.stack(lowered).sum(0))

    def christoffel_cost(self, d: int) -> int:
        return sum(part.christoffel_cost(d) + part.matrix_cost(d) for part in self.parts)

    def features(self, z: Points) -> Features:
        """The features of all, side by side."""
        found = [part.features(z) for part in self.parts]
        sizes = [x.shape[-1] for x in found]
        self._sizes[sum(sizes)] = sizes
        return torch.cat(found, -1)

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        chords = [part.squared_chords(y) for part, y in zip(self.parts, self._split(x), strict=True)]
        single, double = (torch.stack(values).sum(0) for values in zip(*chords, strict=True))
        return single, double

    def energy_and_gradient(self, z: Nodes, start: Features, end: Features) -> tuple[Scalars, Nodes]:
        ends = zip(self._split(start), self._split(end), strict=True)
        found = [part.energy_and_gradient(z, a, b) for part, (a, b) in zip(self.parts, ends, strict=True)]
        energy, gradient = (torch.stack(values).sum(0) for values in zip(*found, strict=True))
        return energy, gradient

    def grams(self, z: Points) -> tuple[Matrices, Matrices, Matrices]:
        first, second, third = zip(*(part.grams(z) for part in self.parts), strict=True)
        return torch.stack(first).sum(0), torch.stack(second).sum(0), torch.stack(third).sum(0)

    def matrix_cost(self, d: int) -> int:
        return sum(part.matrix_cost(d) for part in self.parts)

    def gram_cost(self, d: int) -> int:
        return sum(part.gram_cost(d) for part in self.parts)

    def points_at_once(self, z: Points) -> int:
        return min(part.points_at_once(z) for part in self.parts)

    def _split(self, x: Features) -> tuple[Tensor, ...]:
        return x.split(self._sizes[x.shape[-1]], -1)


class Scaled(Metric):
    """A positive number times a metric, as ``3.0 * metric`` makes it: lengths grow by the root of the number.

    Raises:
        ValueError: When the number is not positive and finite.
    """

    def __init__(self, metric: Metric, factor: float) -> None:
        super().__init__()
        _checks.positive_and_finite(factor, "factor")
        self.metric, self.factor = metric, float(factor)

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        return self.factor * self.metric.inner(z, u, v)

    def matrix(self, z: Points) -> Matrices:
        return self.factor * self.metric.matrix(z)

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        """That of the metric: a constant factor bends nothing."""
        return self.metric.christoffel(z, u, v)

    def christoffel_cost(self, d: int) -> int:
        return self.metric.christoffel_cost(d)

    def features(self, z: Points) -> Features:
        """Those of the metric."""
        return self.metric.features(z)

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        single, double = self.metric.squared_chords(x)
        return self.factor * single, self.factor * double

    def energy_and_gradient(self, z: Nodes, start: Features, end: Features) -> tuple[Scalars, Nodes]:
        energy, gradient = self.metric.energy_and_gradient(z, start, end)
        return self.factor * energy, self.factor * gradient

    def grams(self, z: Points) -> tuple[Matrices, Matrices, Matrices]:
        first, second, third = self.metric.grams(z)
        return self.factor * first, self.factor * second, self.factor * third

    def matrix_cost(self, d: int) -> int:
        return self.metric.matrix_cost(d)

    def gram_cost(self, d: int) -> int:
        return self.metric.gram_cost(d)

    def points_at_once(self, z: Points) -> int:
        return self.metric.points_at_once(z)


def midpoint_chords(inner: Callable[[Tensor, Tensor, Tensor], Tensor], x: Features) -> tuple[Tensor, Tensor]:
    """Squared chords (..., T) and double chords (..., T // 2) of nodes x (..., T + 1, D) by an inner product.

    That of the step with itself, at the middle of the segment; NaN where a node is not finite.
    """
    last = (x.shape[-2] - 1) // 2 * 2
    chords = []
    for nodes in (x, x[..., : last + 1 : 2, :]):
        steps, middle = nodes[..., 1:, :] - nodes[..., :-1, :], 0.5 * (nodes[..., 1:, :] + nodes[..., :-1, :])
        chords.append(where_finite(lambda z, v: inner(z, v, v), middle, steps))
    return chords[0], chords[1]


def where_finite(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A function of tensors (..., k) of one batch shape, at the rows where all are finite; NaN elsewhere."""
    finite = torch.stack([torch.isfinite(t.detach()).all(-1) for t in tensors]).all(0)
    if finite.all():
        return function(*tensors)
    found = function(*(t[finite] for t in tensors))
    whole = found.new_full((*finite.shape, *found.shape[1:]), torch.nan)
    return whole.index_put((finite,), found)


def lowered_christoffel(metric: Metric, x: Points, a: Tangents, b: Tangents) -> Tangents:
    r"""The Christoffel covector :math:`G \, \Gamma(a, b)` of tangents a, b (n, D) at x (n, D), by inner products alone.

    .. math:: G \, \Gamma(a, b) = \tfrac12 \big(D_b (G a) + D_a (G b) - \nabla_x \langle a, b \rangle_x\big)

    No matrix is formed. Cost: about ten inner products a point.
    """
    graph = differentiated(x, a, b)
    with torch.enable_grad():
        x = x if graph and x.requires_grad else x.detach().requires_grad_()
        turned = _turn(lower(metric, x, a), x, b, graph)
        turned = 2 * turned if a is b else turned + _turn(lower(metric, x, b), x, a, graph)
        square = metric.inner(x, a, b).sum()
        if not square.requires_grad:
            return 0.5 * turned
        slope = torch.autograd.grad(square, x, create_graph=graph, allow_unused=True)[0]
        return 0.5 * (turned if slope is None else turned - slope)


def lower(metric: Metric, x: Points, a: Tangents) -> Tangents:
    """The covector G(x) a of tangents a (n, D) at points x (n, D), as the derivative of w -> <w, a>."""
    with torch.enable_grad():
        w = torch.zeros_like(a, requires_grad=True)  # any value does
        return torch.autograd.grad(metric.inner(x, w, a).sum(), w, create_graph=True)[0]


def _turn(y: Tensor, z: Tensor, v: Tensor, graph: bool) -> Tensor:
    """D_v y of y (n, d), a function of z, as the derivative of w -> v' d/dz (w'y), which is linear in w."""
    if not y.requires_grad:
        return torch.zeros_like(y)
    w = torch.zeros_like(y, requires_grad=True)  # any value does
    options: Any = {"materialize_grads": True}
    (pulled,) = torch.autograd.grad(y, z, w, create_graph=True, **options)
    if not pulled.requires_grad:  # y does not depend on z
        return torch.zeros_like(y)
    return torch.autograd.grad(pulled, w, v, create_graph=graph, retain_graph=True, **options)[0]


def divide(g: Tensor, x: Tensor) -> Tensor:
    """G^{-1} x for matrices (..., d, d) and vectors (..., d); NaN where G is singular to working precision.

    The coordinates are first brought to one scale: a short axis is not a singular one.
    """
    scale = g.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(g.dtype).tiny).rsqrt()
    lower, info = torch.linalg.cholesky_ex(scale[..., None] * g * scale[..., None, :])
    rounding = 10 * g.shape[-1] * torch.finfo(g.dtype).eps
    regular = (info == 0) & (lower.diagonal(dim1=-2, dim2=-1).square() > rounding).all(-1)
    lower = torch.where(regular[..., None, None], lower, torch.eye(g.shape[-1], dtype=g.dtype, device=g.device))
    result = scale * torch.cholesky_solve((scale * x)[..., None], lower)[..., 0]
    return torch.where(regular[..., None], result, torch.nan)


OUTSIDE = "the points may lie outside of the region where it is defined"
