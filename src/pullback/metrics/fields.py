"""Metrics that no decoder pulls back: matrices of your own, the local variance of data, a factor on another metric."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pullback import _checks
from pullback._batching import chunk_size, differentiated, map_points
from pullback.metrics.contract import OUTSIDE, Metric, divide, midpoint_chords
from pullback.types import Features, Matrices, Points, Scalars, Tangents

_ASYMMETRY = 1e-5  # of a matrix, relative to its largest entry, that is more than rounding


class MatrixField(Metric):
    r"""A metric by its matrix: :math:`\langle u, v \rangle_z = u^\top G(z) v` for a G of your own.

    Args:
        field: Maps points (n, d) to matrices (n, d, d), symmetric and positive definite, by differentiable torch
            operations; a module or any callable.

    Raises:
        ValueError: With the first points where a matrix has another shape, is not symmetric or not positive definite;
            it names the point and the eigenvalue. On a solver's way such points only make steps shorter.

    Cost:
        One evaluation of the field a point; a curve takes one a segment.

    Example:
        >>> stretched = MatrixField(lambda z: torch.diag_embed(torch.stack((z.new_ones(len(z)), 4 * z[:, 0].exp()), 1)))
        >>> stretched.norm(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(2.)
    """

    def __init__(self, field: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(field):
            raise TypeError(f"`field` is a {type(field).__name__}: give a function of points (n, d).")
        self.field = field

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        return _form(self.matrix(z), u, v)

    def matrix(self, z: Points) -> Matrices:
        z = _checks.points(z)
        (g,) = map_points(lambda z: (self._matrices(z),), (z,), self.points_at_once(z))
        _checks.all_finite(g.flatten(-2), "the metric", OUTSIDE)
        flat, at = g.detach().reshape(-1, *g.shape[-2:]), z.detach().reshape(-1, z.shape[-1])
        skew = (flat - flat.mT).abs().amax((-2, -1)) > _ASYMMETRY * flat.abs().amax((-2, -1))
        if skew.any():
            raise _checks.not_symmetric(at, flat, int(skew.nonzero()[0]))
        info = torch.linalg.cholesky_ex(flat)[1]
        if info.any():
            raise _checks.not_positive(at, flat, int(info.nonzero()[0]))
        return g

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        def inner(z: Tensor, u: Tensor, v: Tensor) -> Tensor:
            square = _form(self._matrices(z.reshape(-1, z.shape[-1])).reshape(*z.shape, z.shape[-1]), u, v)
            return torch.where(square < 0, torch.nan, square)

        return midpoint_chords(inner, x)

    def _matrices(self, z: Tensor) -> Tensor:
        """What the field gives at points (n, d): (n, d, d)."""
        if not len(z):
            return z.new_zeros(0, z.shape[1], z.shape[1])
        g = self.field(z)
        if not isinstance(g, Tensor) or g.shape != (*z.shape, z.shape[1]):
            raise _checks.wrong_result("field", g, tuple(z.shape), (*z.shape, z.shape[1]))
        return g.to(z)


class LocalVariance(Metric):
    r"""A metric that is small where data are: the inverse of their local variance along each axis.

    .. math:: G(z) = \operatorname{diag}\Big(\sum_n w_n(z) (x_n - z)^2 + \rho\Big)^{-1}, \qquad
        w_n(z) = e^{-|x_n - z|^2 / (2 \sigma^2)}

    Away from the data it tends to the plateau :math:`I / \rho`: geodesics follow the data. It needs no decoder.

    Args:
        data: Points (N, d) of the latent space, such as codes.
        bandwidth: :math:`\sigma`, a latent length: how near data have to be to count.
        floor: :math:`\rho`, a squared latent length.

    Raises:
        ValueError: Data are not points (N, d), or bandwidth or floor not positive.

    Cost:
        N kernels a point.

    Reference:
        Arvanitidis, Hansen, Hauberg (2016), equation 5. :cite:`land`

    Example:
        >>> metric = LocalVariance(torch.zeros(1, 2), bandwidth=1.0, floor=0.01)
        >>> metric.norm(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0]))
        tensor([10.0000,  1.2736])
    """

    data: Tensor
    middle: Tensor

    def __init__(self, data: Points, *, bandwidth: float, floor: float) -> None:
        super().__init__()
        data = _checks.cloud(data, "data").detach()
        for name, number in (("bandwidth", bandwidth), ("floor", floor)):
            _checks.positive(number, name)
        self.bandwidth, self.floor = bandwidth, floor
        self.register_buffer("middle", data.mean(0))
        self.register_buffer("data", data - self.middle)  # so that nothing cancels

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        return map_points(lambda z, u, v: ((u * v / self._variance(z)).sum(-1),), (z, u, v), self.points_at_once(z))[0]

    def matrix(self, z: Points) -> Matrices:
        z = _checks.points(z)
        return map_points(lambda z: (torch.diag_embed(1 / self._variance(z)),), (z,), self.points_at_once(z))[0]

    def points_at_once(self, z: Points) -> int:
        return chunk_size(4 * (len(self.data) + z.shape[-1]) * z.element_size(), z.device)

    def _variance(self, z: Tensor) -> Tensor:
        """The variance (n, d) of the data around points (n, d), and the floor."""
        if z.shape[-1] != self.data.shape[1]:
            raise _checks.wrong_dimension(z, self.data.shape[1], "`data` has")
        z, x = z - self.middle.to(z), self.data.to(z)
        squares = z.square().sum(-1, keepdim=True) - 2 * z @ x.mT + x.square().sum(-1)
        weights = (squares * (-0.5 / self.bandwidth**2)).clamp_max(0).exp()
        moments = weights @ x.square() - 2 * z * (weights @ x) + z.square() * weights.sum(-1, keepdim=True)
        return moments.clamp_min(0) + self.floor


class Conformal(Metric):
    r"""Another metric times a factor that depends on the place: :math:`G(z) = \varphi(z) \, G_0(z)`.

    Angles stay, lengths grow by :math:`\sqrt{\varphi}`. Chords take the mean of the factors at their ends.

    Args:
        metric: :math:`G_0`.
        factor: :math:`\varphi`, maps points (n, d) to positive numbers (n,), by differentiable torch operations.

    Raises:
        ValueError: Where the factor has another shape, or is not positive; it names the point.

    Cost:
        That of the metric and one evaluation of the factor.

    Example:
        >>> from pullback.metrics import Pullback
        >>> half = Conformal(Pullback(torch.nn.Identity()), lambda z: 0.25 * torch.ones_like(z[:, 0]))
        >>> half.norm(torch.zeros(2), torch.tensor([3.0, 4.0]))
        tensor(2.5000)
    """

    def __init__(self, metric: Metric, factor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not isinstance(metric, Metric):
            raise _checks.not_a_metric(metric)
        if not callable(factor):
            raise TypeError(f"`factor` is a {type(factor).__name__}: give a function of points (n, d).")
        self.metric, self.factor = metric, factor

    def inner(self, z: Points, u: Tangents, v: Tangents) -> Scalars:
        same = u is v
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        return self._positive(z) * self.metric.inner(z, u, u if same else v)

    def matrix(self, z: Points) -> Matrices:
        z = _checks.points(z)
        return self._positive(z)[..., None, None] * self.metric.matrix(z)

    def christoffel(self, z: Points, u: Tangents, v: Tangents) -> Tangents:
        r"""The Christoffel vector of tangents u, v (..., d) at z (..., d): (..., d).

        .. math:: \Gamma(u, v) = \Gamma_0(u, v) + \tfrac12 \big( u \, D_v + v \, D_u
            - \langle u, v \rangle_0 \, G_0^{-1} \nabla \big) \log \varphi

        Cost: that of the metric's, its matrix and inner product, and a gradient of the factor.
        """
        z, u, v = _checks.tangents(z, ("u", u), ("v", v))
        graph = differentiated(z, u, v)
        with torch.enable_grad():
            leaf = z if graph and z.requires_grad else z.detach().requires_grad_()
            height = self._log_factor(leaf)
            if height.requires_grad:
                (slope,) = torch.autograd.grad(height.sum(), leaf, create_graph=graph, materialize_grads=True)
            else:
                slope = torch.zeros_like(z)
        turned = u * (slope * v).sum(-1, keepdim=True) + v * (slope * u).sum(-1, keepdim=True)
        steepest = divide(self.metric.matrix(z), slope)
        pulled = self.metric.inner(z, u, v)[..., None] * steepest
        return self.metric.christoffel(z, u, v) + 0.5 * (turned - pulled)

    def christoffel_cost(self, d: int) -> int:
        return self.metric.christoffel_cost(d) + self.metric.matrix_cost(d) + 8

    def features(self, z: Points) -> Features:
        """The features of the metric and, behind them, the logarithm of the factor."""
        z = _checks.points(z, finite=False)
        x = self.metric.features(z)
        return torch.cat((x, self._log_factor(z)[..., None]), -1)

    def squared_chords(self, x: Features) -> tuple[Tensor, Tensor]:
        factor = x[..., -1].exp()
        last = (x.shape[-2] - 1) // 2 * 2
        single, double = self.metric.squared_chords(x[..., :-1])
        twice = factor[..., : last + 1 : 2]
        return (
            0.5 * (factor[..., 1:] + factor[..., :-1]) * single,
            0.5 * (twice[..., 1:] + twice[..., :-1]) * double,
        )

    def grams(self, z: Points) -> tuple[Matrices, Matrices, Matrices]:
        root = (0.5 * self._log_factor(z)).exp()[..., None, None]
        products = self.metric.grams(z)
        return (
            root * root * products[0],
            root[..., :-1, :, :] * root[..., 1:, :, :] * products[1],
            root[..., :-2, :, :] * root[..., 2:, :, :] * products[2],
        )

    def matrix_cost(self, d: int) -> int:
        return self.metric.matrix_cost(d) + 1

    def gram_cost(self, d: int) -> int:
        return self.metric.gram_cost(d) + 1

    def points_at_once(self, z: Points) -> int:
        return self.metric.points_at_once(z)

    def _log_factor(self, z: Tensor) -> Tensor:
        """The logarithm of the factor (...) at points (..., d), NaN where it is not positive."""
        flat = z.reshape(-1, z.shape[-1])
        factor = self.factor(flat) if len(flat) else flat[:, 0]
        if not isinstance(factor, Tensor) or factor.shape != flat.shape[:1]:
            raise _checks.wrong_result("factor", factor, tuple(flat.shape), (len(flat),))
        graph = differentiated(z)
        factor = factor.to(z) if graph else factor.detach().to(z)
        return torch.where(factor > 0, factor, torch.nan).log().reshape(z.shape[:-1])

    def _positive(self, z: Tensor) -> Tensor:
        """The factor (...) at points (..., d), or an error."""
        height = self._log_factor(z)
        bad = height.detach().isnan().reshape(-1)
        if bad.any():
            at = z.detach().reshape(-1, z.shape[-1])[bad][:1]
            raise _checks.factor_not_positive(at[0].tolist(), float(self.factor(at).detach()))
        return height.exp()


def _form(g: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """u'Gv for matrices (..., d, d) and vectors (..., d): (...)."""
    return (u[..., None, :] @ g @ v[..., None])[..., 0, 0]
