"""The contract of a metric: inner product and matrix, and what follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
                turned = _turn(g, z, u, v, graph)
                turned = 2 * turned if same else turned + _turn(g, z, v, u, graph)
                form = torch.einsum("ni,nij,nj->", u, g, v)
                options: Any = {"create_graph": graph, "materialize_grads": True}
                return (
                    divide(g if graph else g.detach(), 0.5 * (turned - torch.autograd.grad(form, z, **options)[0])),
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


def _turn(g: Tensor, z: Tensor, u: Tensor, v: Tensor, graph: bool) -> Tensor:
    """D_v G u from g = G(z), (n, d, d), as the derivative of w -> v' d/dz (w'G u), which is linear in w."""
    y = (g @ u[..., None])[..., 0]
    w = torch.zeros_like(y, requires_grad=True)  # any value does
    options: Any = {"materialize_grads": True}
    (pulled,) = torch.autograd.grad(y, z, w, create_graph=True, **options)
    return torch.autograd.grad(pulled, w, v, create_graph=graph, retain_graph=True, **options)[0]


def divide(g: Tensor, x: Tensor) -> Tensor:
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


OUTSIDE = "the points may lie outside of the region where it is defined"
