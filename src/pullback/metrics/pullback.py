"""The metric that a decoder pulls back."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pullback import _checks
from pullback._batching import chunk_size, differentiated, map_chunks, map_points
from pullback.autodiff import Parts, jacobian_columns, push, second_derivative, value
from pullback.chords import energy_and_cotangent, squared_chords
from pullback.decoders import FeatureMap, Output, Stacked
from pullback.metrics.contract import OUTSIDE, Metric, divide, lower, lowered_christoffel, where_finite
from pullback.types import Features, Matrices, Nodes, Points, Scalars, Tangents


class Pullback(Metric):
    r"""The metric that a feature map induces on its domain: :math:`G(z) = J(z)^\top J(z)`.

    Distances between nearby latent points are the Euclidean distances of their images. Results carry gradients (to z
    and to the decoder's weights) when an argument requires them, and only then: call ``z.requires_grad_()`` before you
    train weights on them.

    Args:
        decoder: Maps points (n, d) to data or features (n, ...), each point on its own; any module or callable. For a
            stochastic decoder pass :class:`Gaussian` or :class:`Ensemble`. It is neither changed nor copied.
        output: Which part of the decoder's output is the data point: an index, key or attribute, a function of the
            output, or a tuple of these to stack; None if the output is one tensor.
        features: Maps the output (n, ...), in its own shape, to what distances are measured between, such as the layers
            of a network that sees as people do; any module or callable. Default: the output itself.
        ambient: The metric H of the output space R^D (or of the space of `features`), flattened:
            :math:`G(z) = J^\top H(f(z)) J`. Default: the Euclidean one.
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

    def __init__(
        self,
        decoder: Callable[[Tensor], Any],
        *,
        output: Output = None,
        features: Callable[..., Any] | None = None,
        ambient: Metric | None = None,
        memory: int | None = None,
    ) -> None:
        super().__init__()
        if memory is not None:
            _checks.positive(memory, "memory")
        if ambient is not None and not isinstance(ambient, Metric):
            raise _checks.not_a_metric(ambient, "ambient")
        self.feature_map = FeatureMap(decoder, output, features)
        while type(ambient) is Pullback:  # a map behind the map
            self.feature_map, ambient = FeatureMap(self.feature_map, features=ambient.feature_map), ambient.ambient
        self._ambient = ambient
        self.memory = memory

    @property
    def ambient(self) -> Metric | None:
        """The metric of the feature space; None for the Euclidean one."""
        return self._ambient

    @property
    def immersed(self) -> bool:
        """Whether the feature space is Euclidean, so that this is the metric of a surface in it."""
        return self.ambient is None

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        z, *vectors = _checks.tangents(z, ("u", u), ("v", v)) if u is not v else _checks.tangents(z, ("v", v))

        def products(z: Tensor, *vectors: Tensor) -> tuple[Tensor]:
            x, *pushed = push(self.feature_map.parts, z, vectors)
            return (self._product(x, pushed[0], pushed[-1]) + _nan_outside(x),)

        (result,) = map_points(products, (z, *vectors), self._chunk(z, len(vectors)))
        _checks.all_finite(result[..., None], "the decoder's output or derivative", OUTSIDE)
        return result

    def matrix(self, z: Points) -> Matrices:
        z = _checks.points(z)

        def products(z: Tensor) -> tuple[Tensor]:
            x, *columns = self._columns(z)
            return (self._gram(x, columns, columns) + _nan_outside(x)[:, None, None],)

        (g,) = map_points(products, (z,), self._chunk(z, z.shape[-1]))
        _checks.all_finite(g.flatten(-2), "the decoder's output or derivative", OUTSIDE)
        return g

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        r"""The Christoffel vector of tangents u, v (..., d) at z (..., d), without Christoffel symbols: (..., d).

        .. math:: \Gamma(u, v) = G^{-1} J^\top f''(u, v)

        With an ambient metric H it is :math:`G^{-1} J^\top H (f''(u, v) + \Gamma_H(J u, J v))`. NaN at points where G
        is singular to working precision, or the decoder not finite: see :meth:`Metric.christoffel`.

        Cost: 5 evaluations a point beside :meth:`matrix`, d + 8.
        """
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))

        def gamma(z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor]:
            x, *columns = self._columns(z)
            bent = second_derivative(self.feature_map, z, u, v).split([part.shape[1] for part in x], 1)
            g = self._gram(x, columns, columns) + _nan_outside(x)[:, None, None]
            if self.ambient is not None:
                bent = (self._lowered(x, bent, *(_along(columns, vector) for vector in (u, v))),)
                columns = [(_joined(column),) for column in columns]
            return (divide(g, torch.stack([_dot(column, bent) for column in columns], -1)),)

        return map_points(gamma, (z, u, v), self._chunk(z, z.shape[-1]))[0]

    def christoffel_cost(self, d: int) -> int:
        return self.matrix_cost(d) + 5

    def features(self, z: Points) -> Features:
        """The decoder's output at z (..., d), flattened: (..., D); with an ambient metric the features of that."""
        z = _checks.points(z, finite=False)
        x = value(self.feature_map, z, chunk=self.points_at_once(z))
        return x if self.ambient is None else self.ambient.features(x)

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        return squared_chords(x) if self.ambient is None else self.ambient.squared_chords(x)

    def energy_and_gradient(self, z: Nodes, start: Features, end: Features) -> tuple[Scalars, Nodes]:
        if self.ambient is not None:
            return super().energy_and_gradient(z, start, end)
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
            x = tuple(part.reshape(len(z), n, -1) for part in values)
            columns = [tuple(part.reshape(len(z), n, -1) for part in column) for column in flat]
            found = []
            for k in range(3):
                here = [tuple(part[:, : n - k] for part in column) for column in columns]
                there = here if k == 0 else [tuple(part[:, k:] for part in column) for column in columns]
                middle = tuple(0.5 * (part[:, : n - k] + part[:, k:]) for part in x) if self.ambient else x
                found.append(self._gram(middle, here, there))
            found[0] = found[0] + _nan_outside(values).reshape(len(z), n, 1, 1)
            return tuple(found)

        curves = max(1, self._chunk(z, d) // max(n, 1))
        with torch.no_grad():
            results = map_chunks(products, (z.reshape(-1, n, d),), curves)
        first, second, third = (r.reshape(*z.shape[:-2], *r.shape[1:]) for r in results)
        return first, second, third

    def _product(self, x: Parts, a: Parts, b: Parts) -> Tensor:
        """The inner product (...) of feature vectors a, b in parts (..., D_k) at features x."""
        if self.ambient is None:
            return _dot(a, b)
        return where_finite(self.ambient.inner, _joined(x), _joined(a), _joined(a if a is b else b))

    def _gram(self, x: Parts, here: list[Parts], there: list[Parts]) -> Tensor:
        """The inner products (..., d, d) of two times d feature vectors at features x."""
        if self.ambient is None:
            return _products(here, there)
        d, symmetric = len(here), here is there
        at = (_joined(x),)
        here = [(_joined(column),) for column in here]
        there = here if symmetric else [(_joined(column),) for column in there]
        rows: list[list[Tensor]] = []
        for i in range(d):
            known = [row[i] for row in rows] if symmetric else []
            rows.append(known + [self._product(at, here[i], there[j]) for j in range(len(known), d)])
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    def _lowered(self, x: Parts, bent: Parts, a: Parts, b: Parts) -> Tensor:
        """The covector H (bent + Gamma_H(a, b)) at features x, all in parts (n, D_k): (n, D)."""
        ambient = self.ambient
        if ambient is None:
            return _joined(bent)

        def covector(x: Tensor, bent: Tensor, a: Tensor, b: Tensor) -> Tensor:
            turned = lower(ambient, x, bent) + lowered_christoffel(ambient, x, a, b)
            return turned if differentiated(x, bent, a, b) else turned.detach()

        return where_finite(covector, _joined(x), _joined(bent), _joined(a), _joined(b))

    def _columns(self, z: Tensor) -> list[Parts]:
        return jacobian_columns(self.feature_map.parts, z, self.feature_map.n_features)

    def _chunk(self, z: Tensor, n_tangents: int) -> int:
        """How many points to push tangents from at once: two graphs, their values and the results are held."""
        footprint = self.feature_map.footprint(z)
        peak = 2 * footprint + 2 * (n_tangents + 1) * self.feature_map.n_features * z.element_size()
        return chunk_size(footprint, z.device, self.memory, peak=peak)

    def __add__(self, other: Metric) -> Metric:
        plain = type(self) is type(other) is Pullback and self.immersed and other.immersed
        if plain and isinstance(other, Pullback):
            return Pullback(Stacked([self.feature_map, other.feature_map]), memory=self.memory or other.memory)
        return super().__add__(other)

    def __mul__(self, factor: float) -> Metric:
        if type(self) is Pullback and self.immersed and isinstance(factor, Real):
            _checks.positive_and_finite(float(factor), "factor")
            return Pullback(Stacked([self.feature_map], [float(factor)]), memory=self.memory)
        return super().__mul__(factor)

    def points_at_once(self, z: Points) -> int:
        return chunk_size(self.feature_map.footprint(z), z.device, self.memory)

    def matrix_cost(self, d: int) -> int:
        return min(d + 3, 2 * self.feature_map.n_features + 1) if self.feature_map.n_features else d + 3

    def gram_cost(self, d: int) -> int:
        return self.matrix_cost(d)


def _nan_outside(x: Parts) -> Tensor:
    """Zeros (n,), NaN where a feature is NaN or infinite: the Jacobian may look finite there.

    They carry the gradient zero, so that also a metric that is constant can be differentiated.
    """
    return 0 * torch.stack([a.sum(-1) for a in x]).sum(0)


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


def _joined(x: Parts) -> Tensor:
    """Parts (..., D_k) as one (..., D)."""
    return x[0] if len(x) == 1 else torch.cat(x, -1)


def _along(columns: list[Parts], v: Tensor) -> Parts:
    """J v in parts from the columns of J and vectors v (n, d)."""
    return tuple(torch.einsum("knp,nk->np", torch.stack(parts), v) for parts in zip(*columns, strict=True))
