"""Fisher information as a metric on the coordinates of a family of distributions, block by block for each output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pullback._batching import differentiated
from pullback.autodiff import push
from pullback.metrics.contract import Metric, where_finite
from pullback.types import Features, Matrices, Points, Scalars, Tangents


class Information(Metric):
    """The Fisher information of many outputs in coordinates x (..., M): inner products cost O(M)."""

    @abstractmethod
    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        """The inner product of tangents u, v (..., M) at coordinates z (..., M): (...)."""

    def matrix(self, z: Points) -> Matrices:
        """All of it, (..., M) -> (..., M, M): for looking at few outputs."""
        axes = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return torch.stack([self.inner(z[..., None, :], axes, axis) for axis in axes], -1)


class HalfPlane(Information):
    r"""A hyperbolic half-plane for each output: coordinates (m, s) with :math:`w (e^{-2 s} dm^2 + ds^2)`.

    Every family of a location and a scale :math:`e^s` is one, in the right coordinates; its curvature is -1 / w.

    Args:
        weight: w; None where it differs between outputs and is a third, constant coordinate.
    """

    def __init__(self, weight: float | None) -> None:
        super().__init__()
        self.weight = weight

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        n = 3 if self.weight is None else 2
        scale, (m_u, s_u), (m_v, s_v) = (-z.chunk(n, -1)[1]).exp(), u.chunk(n, -1)[:2], v.chunk(n, -1)[:2]
        products = (scale * m_u) * (scale * m_v) + s_u * s_v  # in this order nothing overflows
        return ((z.chunk(n, -1)[2] if self.weight is None else self.weight) * products).sum(-1)


class GammaInformation(Information):
    r"""Gamma distributions by the logarithms of shape a and mean: :math:`a^2 \psi'(a) - a` and a on the diagonal."""

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        (log_shape, _), (a_u, m_u), (a_v, m_v) = z.chunk(2, -1), u.chunk(2, -1), v.chunk(2, -1)
        shape = log_shape.exp()
        return (excess(shape) * a_u * a_v + shape * m_u * m_v).sum(-1)


class DirichletInformation(Information):
    r"""Dirichlet distributions by the logarithms of their K concentrations, output by output.

    With :math:`\varphi(a) = a^2 \psi'(a) - a`, the sum a of the concentrations and the mean of a tangent
    :math:`\bar u = \sum_k a_k u_k / a` it is :math:`\sum_k a_k (u_k - \bar u)(v_k - \bar v) + \varphi(a_k) u_k v_k
    - \varphi(a) \bar u \bar v`, where no large terms cancel.
    """

    def __init__(self, n_categories: int) -> None:
        super().__init__()
        self.n_categories = n_categories

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        log_a, u, v = (x.unflatten(-1, (-1, self.n_categories)) for x in (z, u, v))
        a, share = log_a.exp(), log_a.softmax(-1)
        mean_u, mean_v = ((share * x).sum(-1, keepdim=True) for x in (u, v))
        products = a * (u - mean_u) * (v - mean_v) + excess(a) * u * v
        return (products.sum(-1) - (excess(a.sum(-1, keepdim=True)) * mean_u * mean_v)[..., 0]).sum(-1)


class VonMisesInformation(Information):
    r"""Von Mises distributions by :math:`\eta = \kappa (\cos \mu, \sin \mu)`: smooth at :math:`\kappa = 0`, too.

    The covariance of (cos, sin): A'(k) along :math:`\eta`, A(k) / k across it, where A = I_1 / I_0.
    """

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        eta, both, other = (x.double().unflatten(-1, (2, -1)) for x in (z, u, v))
        across, turn = bessel_ratio(eta.square().sum(-2))
        products = across * (both * other).sum(-2) + turn * (eta * both).sum(-2) * (eta * other).sum(-2)
        return products.sum(-1).to(z)


class Divergence(Information):
    r"""Any family by its parameters: the second-order expansion of the Kullback-Leibler divergence that torch knows.

    .. math:: \langle u, v \rangle_\theta = u^\top \, \nabla_{\theta'}^2 \,
        \mathrm{KL}(p_\theta \,\|\, p_{\theta'}) \big|_{\theta' = \theta} \, v

    Computed in float64, where the divergence of neighbors does not drown in rounding.

    Args:
        kind: The family.
        shapes: The shape of each parameter, at one point; the coordinates are the parameters, flattened, in this order.
    """

    def __init__(self, kind: type[Distribution], shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.kind, self.shapes = kind, dict(shapes)

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        z, u, v = torch.broadcast_tensors(z, u, v)
        if not z.numel():  # not all families can take an empty batch
            return (z * u * v).sum(-1)
        graph = differentiated(z, u, v)
        with torch.enable_grad():
            x = z if graph else z.detach()
            there = x.clone() if x.requires_grad else x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.divergence(x, there).sum(), there, create_graph=True)
            options: Any = {"create_graph": graph, "materialize_grads": True}
            return (torch.autograd.grad(slope, there, u, **options)[0] * v).sum(-1)

    @property
    def closed(self) -> bool:
        """Whether inner products have a closed form, so that the divergence need not be twice differentiable."""
        return False

    def divergence(self, a: Tensor, b: Tensor) -> Tensor:
        """KL(p, q) of distributions at coordinates a and b (..., M), summed over outputs: (...), in float64."""
        if not a.numel():
            return (a * b).sum(-1).double()
        found = kl_divergence(self.distribution(a.double()), self.distribution(b.double()))
        return (found.flatten(1).sum(1) if found.ndim > 1 else found).reshape(a.shape[:-1])

    def distribution(self, x: Tensor) -> Distribution:
        """The distributions at coordinates x (..., M), one batch of them."""
        parts = x.reshape(-1, x.shape[-1]).split([shape.numel() for shape in self.shapes.values()], 1)
        named = zip(self.shapes.items(), parts, strict=True)
        values: dict[str, Any] = {name: part.reshape(-1, *shape) for (name, shape), part in named}
        return self.kind(**values, validate_args=False)

    def regular(self, x: Tensor, v: Tensor) -> bool:
        """Whether the divergence from x (1, M) grows as its derivatives say along v (1, M), if x is finite.

        It does not where the support moves with a parameter, or where a derivative is hidden or jumps. Here v is what a
        step of length 1 in the latent space changes.
        """
        x, v = x.detach().double(), v.detach().double()
        if not (torch.isfinite(x) & torch.isfinite(v)).all():
            return True  # the decoder's fault, which others tell
        square = float(self.inner(x, v, v))
        h = 1e-5 / max(1.0, abs(square) ** 0.5)  # small for the latent space, and for the family
        with torch.enable_grad():
            here = x.clone().requires_grad_()
            far = self.divergence(here, x + h * v)
            slope = torch.autograd.grad(far.sum(), here, materialize_grads=True)[0] if far.requires_grad else 0 * x
        # both of them are h^2 v'Hv
        grown, pulled = 2 * float(far.detach()), -h * float((slope.detach() * v).sum())
        slack = 0.1 * h**2 * abs(square) + 1e-12  # and rounding
        return square > -1e-12 and all(abs(found - h**2 * square) < slack for found in (grown, pulled))


class DivergenceChords(Divergence):
    """The divergence also between neighbors: a squared chord is KL(p, q) + KL(q, p).

    Args:
        kind: As for :class:`Divergence`.
        shapes: Likewise.
        coordinates: What a distribution is measured in for inner products; None for the divergence itself.
        information: The metric of these coordinates; None for the Euclidean one.
    """

    def __init__(
        self,
        kind: type[Distribution],
        shapes: Mapping[str, torch.Size],
        coordinates: Callable[[Any], tuple[Tensor, ...]] | None,
        information: Metric | None,
    ) -> None:
        super().__init__(kind, shapes)
        self.coordinates, self.information = coordinates, information

    @property
    def closed(self) -> bool:
        return self.coordinates is not None

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        if self.coordinates is None or not z.numel():
            return super().inner(z, u, v)
        z, u, v = torch.broadcast_tensors(z, u, v)
        flat = [x.reshape(-1, x.shape[-1]) for x in (z, u, v)]
        x, a, b = (torch.cat(parts, 1) for parts in push(self._parts, flat[0], (flat[1], flat[2])))
        found = (a * b).sum(-1) if self.information is None else self.information.inner(x, a, b)
        return found.reshape(z.shape[:-1])

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        last = (x.shape[-2] - 1) // 2 * 2
        ways = (x, x[..., : last + 1 : 2, :])
        single, double = (where_finite(self._there_and_back, y[..., :-1, :], y[..., 1:, :]) for y in ways)
        return single, double

    def _there_and_back(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.divergence(a, b) + self.divergence(b, a)).to(a)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The coordinates in parts (n, D_k) of the distributions at parameters x (n, M)."""
        parts = self.coordinates(self.distribution(x)) if self.coordinates else ()
        return tuple(part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts)


def excess(a: Tensor) -> Tensor:
    r""":math:`a^2 \psi'(a) - a` for a > 0: from 1 at zero down to 1/2 at infinity."""
    low = a.clamp_max(_LARGE_SHAPE)
    near = 1 - low + low.square() * torch.polygamma(1, 1 + low)
    w = 1 / a.clamp_min(_LARGE_SHAPE)  # there the difference would cancel: its asymptotic series
    far = 0.5 + w * horner((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730), w.square())
    return torch.where(a <= _LARGE_SHAPE, near, far)


def bessel_ratio(q: Tensor) -> tuple[Tensor, Tensor]:
    r"""A(k) / k and :math:`(A'(k) - A(k) / k) / k^2` of q = k^2 (float64), where A = I_1 / I_0."""
    small, large = q < 1, q > _LARGE_KAPPA**2
    # I_2 / I_1 = k / (4 + q / (6 + q / (8 + ...))), and likewise I_1 / I_0: no differences
    s = torch.where(small, q, 1)
    fraction = torch.ones_like(s)
    for j in range(20, 2, -2):
        fraction = j + s / fraction
    next_near = 1 / fraction
    near = 1 / (2 + s * next_near)

    r = torch.where(small | large, 1, q)
    k = r.sqrt()
    middle = torch.special.i1e(k) / torch.special.i0e(k) / k
    next_middle = (1 / middle - 2) / r

    w = torch.where(large, q, _LARGE_KAPPA**2).rsqrt()
    far = w * horner(_RATIO, w)
    slope = w.square() * horner([-j * c for j, c in enumerate(_RATIO)][1:], w)  # A'
    turn = torch.where(small, near * (next_near - near), middle * (next_middle - middle))
    return (
        torch.where(large, far, torch.where(small, near, middle)),
        torch.where(large, (slope - far) * w.square(), turn),
    )


def horner(coefficients: tuple[float, ...] | list[float], x: Tensor) -> Tensor:
    """The polynomial with these coefficients, the constant first."""
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = c + x * result
    return result


def _asymptotic(n: int) -> list[float]:
    """Coefficients of I_1(k) / I_0(k) in powers of 1 / k, from the equation A' = 1 - A / k - A^2."""
    c = [1.0]
    for m in range(1, n):
        c.append(0.5 * ((m - 2) * c[m - 1] - sum(c[i] * c[m - i] for i in range(1, m))))
    return c


_LARGE_SHAPE = 16.0
_LARGE_KAPPA = 50.0
_RATIO = _asymptotic(12)
