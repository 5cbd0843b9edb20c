"""The contract of a metric, and the metric that a decoder pulls back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from pullback import _checks
from pullback._batching import chunk_size, differentiated, map_chunks, map_points
from pullback.autodiff import Parts, jacobian_columns, push, second_derivative, value
from pullback.chords import chord_energy, energy_and_cotangent, root, squared_chords
from pullback.decoders import FeatureMap, Output
from pullback.types import Features, Matrices, Nodes, Points, Scalars, Tangents


class Metric(nn.Module, ABC):
    r"""A Riemannian metric on R^d: at each point z an inner product :math:`\langle u, v\rangle_z = u^\top G(z) v`.

    Give :meth:`inner` and :meth:`matrix` and get the rest: norms, volumes, curve lengths and energies, geodesics. A
    metric that is pulled back by a map into a Euclidean space (see :class:`Pullback`) also overrides the three methods
    behind discrete curves, for which it knows something better: chords in that space.
    """

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
        eigenvalues = torch.linalg.eigvalsh(_checks.all_finite(g.flatten(-2), "the metric", _OUTSIDE).reshape(g.shape))
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
                    return (_divide(g, torch.zeros_like(z)),)
                turned = _turn(g, z, u, v, graph)
                turned = 2 * turned if same else turned + _turn(g, z, v, u, graph)
                form = torch.einsum("ni,nij,nj->", u, g, v)
                options: Any = {"create_graph": graph, "materialize_grads": True}
                return (
                    _divide(g if graph else g.detach(), 0.5 * (turned - torch.autograd.grad(form, z, **options)[0])),
                )

        return map_points(gamma, (z, u, v), self.points_at_once(z))[0]

    def christoffel_cost(self, d: int) -> int:
        """Evaluations that :meth:`christoffel` takes a point when u is v."""
        return 6

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
        last = (x.shape[-2] - 1) // 2 * 2
        chords = []
        for nodes in (x, x[..., : last + 1 : 2, :]):
            steps = nodes[..., 1:, :] - nodes[..., :-1, :]
            chords.append(self.inner(0.5 * (nodes[..., 1:, :] + nodes[..., :-1, :]), steps, steps))
        return chords[0], chords[1]

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

    def gram_cost(self, d: int) -> int:
        """Evaluations that :meth:`grams` takes a node."""
        return 3


class Pullback(Metric):
    r"""The metric that a feature map induces on its domain: :math:`G(z) = J(z)^\top J(z)`.

    Distances between nearby latent points are the Euclidean distances of their images. Results carry gradients (to z
    and to the decoder's weights) when an argument requires them, and only then: call ``z.requires_grad_()`` before you
    train weights on them.

    Args:
        decoder: Maps points (n, d) to data or features (n, ...), each point on its own; any module or callable. For a
            stochastic decoder pass :class:`Gaussian`. It is neither changed nor copied.
        output: Which part of the decoder's output is the data point: an index, key or attribute, a function of the
            output, or a tuple of these to stack; None if the output is one tensor.
        memory: Bytes that one evaluation may take; larger batches are chunked. Default: a quarter of what is free.

    Raises:
        ValueError: When the decoder is in training mode with dropout or batch norm; and, with the first points, when it
            rejects them, mixes them, is not differentiable or returns several things. When the points do not fit the
            decoder, or it gives NaN or infinity (:meth:`features` gives these on).

    Cost:
        ``inner`` 5 evaluations a point, ``norm`` 4; ``matrix`` and ``log_volume`` d + 3 or, where that is less,
        2 D + 1. The first call 15 more.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), equation 4. :cite:`oddity`

    Example:
        >>> metric = Pullback(torch.nn.Linear(2, 5))  # a plane: the metric is constant
        >>> bool(torch.allclose(metric.matrix(torch.zeros(2)), metric.matrix(torch.ones(2))))
        True
    """

    def __init__(self, decoder: Callable[[Tensor], Any], *, output: Output = None, memory: int | None = None) -> None:
        super().__init__()
        if memory is not None:
            _checks.positive(memory, "memory")
        self.feature_map = FeatureMap(decoder, output)
        self.memory = memory

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        z, *vectors = _checks.tangents(z, ("u", u), ("v", v)) if u is not v else _checks.tangents(z, ("v", v))

        def products(z: Tensor, *vectors: Tensor) -> tuple[Tensor]:
            x, *pushed = push(self.feature_map.parts, z, vectors)
            return (_dot(pushed[0], pushed[-1]) + _nan_outside(x),)

        (result,) = map_points(products, (z, *vectors), self._chunk(z, len(vectors)))
        _checks.all_finite(result[..., None], "the decoder's output or derivative", _OUTSIDE)
        return result

    def matrix(self, z: Points) -> Matrices:
        z = _checks.points(z)

        def products(z: Tensor) -> tuple[Tensor]:
            x, *columns = self._columns(z)
            return (_products(columns, columns) + _nan_outside(x)[:, None, None],)

        (g,) = map_points(products, (z,), self._chunk(z, z.shape[-1]))
        _checks.all_finite(g.flatten(-2), "the decoder's output or derivative", _OUTSIDE)
        return g

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        r"""The Christoffel vector of tangents u, v (..., d) at z (..., d), without Christoffel symbols: (..., d).

        .. math:: \Gamma(u, v) = G^{-1} J^\top f''(u, v)

        NaN at points where G is singular to working precision, or the decoder not finite: see
        :meth:`Metric.christoffel`. Cost: 5 evaluations a point beside :meth:`matrix`, d + 8.
        """
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))

        def gamma(z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor]:
            x, *columns = self._columns(z)
            bent = second_derivative(self.feature_map, z, u, v).split([part.shape[1] for part in x], 1)
            g = _products(columns, columns) + _nan_outside(x)[:, None, None]
            return (_divide(g, torch.stack([_dot(column, bent) for column in columns], -1)),)

        return map_points(gamma, (z, u, v), self._chunk(z, z.shape[-1]))[0]

    def christoffel_cost(self, d: int) -> int:
        return self.gram_cost(d) + 5

    def features(self, z: Points) -> Features:
        """The decoder's output at z (..., d), flattened: (..., D)."""
        z = _checks.points(z, finite=False)
        return value(self.feature_map, z, chunk=self.points_at_once(z))

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        return squared_chords(x)

    def energy_and_gradient(self, z: Nodes, start: Features, end: Features) -> tuple[Scalars, Nodes]:
        batch, n, d = z.shape
        with torch.enable_grad():
            nodes = z.detach().reshape(-1, d).requires_grad_()
            parts = self.feature_map.parts(nodes)
        sizes = [x.shape[1] for x in parts]
        ends = zip(start.split(sizes, 1), end.split(sizes, 1), strict=True)
        energies, cotangents = [], []
        for x, (first, last) in zip(parts, ends, strict=True):
            energy, cotangent = energy_and_cotangent(x.detach().reshape(batch, n, -1), first, last)
            energies.append(energy)
            cotangents.append(cotangent.reshape(batch * n, -1))
        moving = [(x, w) for x, w in zip(parts, cotangents, strict=True) if x.requires_grad]
        (gradient,) = torch.autograd.grad([x for x, _ in moving], nodes, [w for _, w in moving])
        return torch.stack(energies).sum(0), gradient.reshape(z.shape)

    def grams(self, z: Points) -> tuple[Matrices, Matrices, Matrices]:
        """J_i' J_i, J_i' J_{i+1} and J_i' J_{i+2} at nodes z (..., n, d). Cost: d + 3 a node."""
        n, d = z.shape[-2:]

        def products(z: Tensor) -> tuple[Tensor, ...]:
            values, *flat = self._columns(z.reshape(-1, d))
            columns = [tuple(x.reshape(len(z), n, -1) for x in column) for column in flat]
            here = [[tuple(x[:, : n - k] for x in column) for column in columns] for k in range(3)]
            there = [[tuple(x[:, k:] for x in column) for column in columns] for k in range(1, 3)]
            same = _products(here[0], here[0]) + _nan_outside(values).reshape(len(z), n, 1, 1)
            return same, _products(here[1], there[0]), _products(here[2], there[1])

        curves = max(1, self._chunk(z, d) // max(n, 1))
        with torch.no_grad():
            results = map_chunks(products, (z.reshape(-1, n, d),), curves)
        first, second, third = (r.reshape(*z.shape[:-2], *r.shape[1:]) for r in results)
        return first, second, third

    def _columns(self, z: Tensor) -> list[Parts]:
        return jacobian_columns(self.feature_map.parts, z, self.feature_map.n_features)

    def _chunk(self, z: Tensor, n_tangents: int) -> int:
        """How many points to push tangents from at once: two graphs, their values and the results are held."""
        footprint = self.feature_map.footprint(z)
        peak = 2 * footprint + 2 * (n_tangents + 1) * self.feature_map.n_features * z.element_size()
        return chunk_size(footprint, z.device, self.memory, peak=peak)

    def points_at_once(self, z: Points) -> int:
        return chunk_size(self.feature_map.footprint(z), z.device, self.memory)

    def gram_cost(self, d: int) -> int:
        return min(d + 3, 2 * self.feature_map.n_features + 1) if self.feature_map.n_features else d + 3


def _nan_outside(x: Parts) -> Tensor:
    """Zeros (n,), NaN where a feature is NaN or infinite: the Jacobian may look finite there.

    They carry the gradient zero, so that also a metric that is constant can be differentiated.
    """
    return 0 * torch.stack([a.sum(-1) for a in x]).sum(0)


def _turn(g: Tensor, z: Tensor, u: Tensor, v: Tensor, graph: bool) -> Tensor:
    """D_v G u from g = G(z), (n, d, d), as the derivative of w -> v' d/dz (w'G u), which is linear in w."""
    y = (g @ u[..., None])[..., 0]
    w = torch.zeros_like(y, requires_grad=True)  # any value does
    options: Any = {"materialize_grads": True}
    (pulled,) = torch.autograd.grad(y, z, w, create_graph=True, **options)
    return torch.autograd.grad(pulled, w, v, create_graph=graph, retain_graph=True, **options)[0]


def _divide(g: Tensor, x: Tensor) -> Tensor:
    """G^{-1} x for matrices (n, d, d) and vectors (n, d); NaN where G is singular to working precision.

    The coordinates are first brought to one scale: a short axis is not a singular one.
    """
    scale = g.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(g.dtype).tiny).rsqrt()
    lower, info = torch.linalg.cholesky_ex(scale[..., None] * g * scale[..., None, :])
    rounding = 10 * g.shape[-1] * torch.finfo(g.dtype).eps
    regular = (info == 0) & (lower.diagonal(dim1=-2, dim2=-1).square() > rounding).all(-1)
    lower = torch.where(regular[:, None, None], lower, torch.eye(g.shape[-1], dtype=g.dtype, device=g.device))
    result = scale * torch.cholesky_solve((scale * x)[..., None], lower)[..., 0]
    return torch.where(regular[:, None], result, torch.nan)


def _dot(x: Parts, y: Parts) -> Tensor:
    """Inner products (...) of vectors in parts (..., D_k)."""
    if x is y:  # three times faster than a product and its sum
        return torch.stack([torch.linalg.vector_norm(a, dim=-1) for a in x]).square().sum(0)
    return torch.stack([torch.linalg.vecdot(a, b) for a, b in zip(x, y, strict=True)]).sum(0)


def _products(x: list[Parts], y: list[Parts]) -> Tensor:
    """The inner products (..., d, d) of d columns in parts (..., D_k)."""
    if x is y and len(x) == 2:  # stacking columns costs more than their products
        a, b = x
        mixed = _dot(a, b)
        return torch.stack((_dot(a, a), mixed, mixed, _dot(b, b)), -1).unflatten(-1, (2, 2))
    stacked = [[torch.stack(part, -2) for part in zip(*columns, strict=True)] for columns in (x, y)]
    return torch.stack([a @ b.mT for a, b in zip(*stacked, strict=True)]).sum(0)


_OUTSIDE = "the points may lie outside of the region where it is defined"
