"""The contract of a metric, and the metric that a decoder pulls back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from pullback import _checks
from pullback._batching import chunk_size, map_chunks, map_points
from pullback.autodiff import Parts, jacobian_columns, push, value
from pullback.decoders import FeatureMap, Output
from pullback.types import Features, Matrices, Points, Scalars, Tangents


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

    def features(self, z: Points) -> Features:
        """The decoder's output at z (..., d), flattened: (..., D)."""
        z = _checks.points(z, finite=False)
        return value(self.feature_map, z, chunk=self.points_at_once(z))

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        return _SquaredChords.apply(x)  # pyright: ignore[reportReturnType]

    def grams(self, z: Points) -> tuple[Matrices, Matrices, Matrices]:
        """J_i' J_i, J_i' J_{i+1} and J_i' J_{i+2} at nodes z (..., n, d). Cost: d + 3 a node."""
        n, d = z.shape[-2:]

        def products(z: Tensor) -> tuple[Tensor, ...]:
            _, *flat = self._columns(z.reshape(-1, d))
            columns = [tuple(x.reshape(len(z), n, -1) for x in column) for column in flat]
            here = [[tuple(x[:, : n - k] for x in column) for column in columns] for k in range(3)]
            there = [[tuple(x[:, k:] for x in column) for column in columns] for k in range(1, 3)]
            return _products(here[0], here[0]), _products(here[1], there[0]), _products(here[2], there[1])

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


def root(square: Tensor) -> Tensor:
    """The square root of a squared length; its derivative at zero is zero, as that of a norm."""
    zero = square <= 0  # NaN stays NaN
    return torch.where(zero, 1, square).sqrt().masked_fill(zero, 0)


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


_OUTSIDE = "the points may lie outside of the region where it is defined"


class _SquaredChords(torch.autograd.Function):
    """|x_{i+1} - x_i|^2 and |x_{2i+2} - x_{2i}|^2, with fewer passes over x than automatic ones take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        single, double = _chords(x)
        return torch.linalg.vector_norm(single, dim=-1).square(), torch.linalg.vector_norm(double, dim=-1).square()

    @staticmethod
    def backward(ctx: Any, to_single: Tensor, to_double: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        single, double = _chords(x)
        last = single.shape[-2] // 2 * 2
        pull = single * (2 * to_single[..., None])
        both = double * (2 * to_double[..., None])
        pull[..., 0:last:2, :] += both
        pull[..., 1:last:2, :] += both
        return torch.cat((-pull[..., :1, :], pull[..., :-1, :] - pull[..., 1:, :], pull[..., -1:, :]), -2)


def _chords(x: Tensor) -> tuple[Tensor, Tensor]:
    single = x[..., 1:, :] - x[..., :-1, :]
    last = single.shape[-2] // 2 * 2
    return single, single[..., 0:last:2, :] + single[..., 1:last:2, :]
