"""The metric that a decoder pulls back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import _checks
from pullback._batching import chunk_size, map_chunks, map_points
from pullback.autodiff import Parts, jacobian_columns, push, second_derivative, value
from pullback.chords import energy_and_cotangent, squared_chords
from pullback.decoders import FeatureMap, Output
from pullback.metrics.contract import OUTSIDE, Metric, divide
from pullback.types import Features, Matrices, Nodes, Points, Scalars, Tangents


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
        _checks.all_finite(result[..., None], "the decoder's output or derivative", OUTSIDE)
        return result

    def matrix(self, z: Points) -> Matrices:
        z = _checks.points(z)

        def products(z: Tensor) -> tuple[Tensor]:
            x, *columns = self._columns(z)
            return (_products(columns, columns) + _nan_outside(x)[:, None, None],)

        (g,) = map_points(products, (z,), self._chunk(z, z.shape[-1]))
        _checks.all_finite(g.flatten(-2), "the decoder's output or derivative", OUTSIDE)
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
            return (divide(g, torch.stack([_dot(column, bent) for column in columns], -1)),)

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
