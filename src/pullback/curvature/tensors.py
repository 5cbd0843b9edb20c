"""The curvature tensor and the connection at many points, by the two routes that lead there.

A map into Euclidean space: the Gauss equation, from second derivatives of the map. Any other metric: first and second
derivatives of its matrix. What is asked for elsewhere are contractions of these.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pullback import _checks
from pullback._batching import differentiated, map_points
from pullback.autodiff import Parts, jet
from pullback.curvature import errors
from pullback.curvature.immersion import Immersion, Pairs, axes, gram_frame, immersion, normal, tangent_basis
from pullback.metrics import Metric, Tabulated
from pullback.types import Matrices, Points


def riemann_and_frame(metric: Metric, z: Points, scale: float | None) -> tuple[Tensor, Matrices]:
    """The curvature tensor (..., d, d, d, d) and an orthonormal frame (..., d, d); NaN where G is singular."""
    surface = immersion(metric, z, scale)
    d = z.shape[-1]

    def found(z: Tensor) -> tuple[Tensor, Tensor]:
        if surface is not None:
            columns, bends = surface.jet(z, (e := axes(z)), _pairs(e))
            basis, frame = tangent_basis(columns)
            return _gauss(normal(bends, basis), d), frame
        g, slopes, bends = _matrix_jet(metric, z)
        return _from_matrix(g, slopes, bends), gram_frame(g)[0]

    held = d + d * (d + 1) // 2
    r, frame = map_points(found, (z,), _chunk(surface, metric, z, held))
    tell_failures(metric, z, frame)
    return r, frame


def symbols(metric: Metric, z: Points, scale: float | None) -> Tensor:
    """The Christoffel symbols (..., d, d, d), the upper index first; NaN where G is singular."""
    surface = immersion(metric, z, scale)
    d = z.shape[-1]

    def found(z: Tensor) -> tuple[Tensor, Tensor]:
        if surface is not None:
            columns, bends = surface.jet(z, (e := axes(z)), _pairs(e))
            frame = tangent_basis(columns)[1]
            lowered = (columns @ bends.mT)[..., _places(d)]
        else:
            g, slopes, _ = _matrix_jet(metric, z, second=False)
            frame, lowered = gram_frame(g)[0], _lowered(slopes)
        return torch.einsum("nka,nla,nlij->nkij", frame, frame, lowered), frame

    held = d + d * (d + 1) // 2
    gamma, frame = map_points(found, (z,), _chunk(surface, metric, z, held))
    tell_failures(metric, z, frame)
    return gamma


def tell_failures(metric: Metric, z: Points, frame: Matrices) -> None:
    """Warn of the points (..., d) where there is no frame (..., d, d), and say why at the first."""
    at = z.detach().reshape(-1, z.shape[-1])
    failed = frame.detach().isnan().any(-1).any(-1).reshape(-1)
    if not failed.any():
        return
    i = int(failed.nonzero()[0])
    try:
        g = metric.matrix(at[i])
    except _checks.NotFiniteError:
        reason = "the decoder or metric is not finite there"
    else:
        diagonal = g.detach().diagonal().clamp_min(torch.finfo(g.dtype).tiny).rsqrt()
        eigenvalues = torch.linalg.eigvalsh(diagonal[:, None] * g.detach() * diagonal)
        rank = int((eigenvalues > 10 * len(g) * torch.finfo(g.dtype).eps).sum())
        reason = f"the metric is singular there, of rank {min(rank, len(g) - 1)} of {len(g)}"
    warnings.warn(
        errors.no_curvature(int(failed.sum()), len(at), i, at[i].tolist(), reason),
        _checks.CurvatureWarning,
        stacklevel=4,
    )


def _chunk(surface: Immersion | None, metric: Metric, z: Tensor, held: int) -> int:
    """How many points at once, each with that many vectors of features, or of the matrix's entries."""
    if surface is not None:
        return surface.points_at_once(z, held)
    return max(1, metric.points_at_once(z) // _GRAPHS)


def _pairs(e: list[Tensor]) -> Pairs:
    return [(e[i], e[j]) for i in range(len(e)) for j in range(i, len(e))]


def _places(d: int) -> Tensor:
    """Where the pair (i, j) stands among the d (d + 1) / 2 of :func:`_pairs`: (d, d), on the CPU."""
    rows, columns = torch.triu_indices(d, d, device="cpu")
    places = torch.zeros(d, d, dtype=torch.long, device="cpu")
    places[rows, columns] = places[columns, rows] = torch.arange(len(rows), device="cpu")
    return places


def _gauss(bends: Tensor, d: int) -> Tensor:
    """R_ijkl = <II_ik, II_jl> - <II_il, II_jk> from the second fundamental form (n, d (d + 1) / 2, D)."""
    products, at = bends @ bends.mT, _places(d)
    i, j, k, l = torch.meshgrid(*[torch.arange(d, device="cpu")] * 4, indexing="ij")  # noqa: E741
    return products[:, at[i, k], at[j, l]] - products[:, at[i, l], at[j, k]]


def _matrix_jet(metric: Metric, z: Tensor, *, second: bool = True) -> tuple[Matrices, Tensor, Tensor]:
    """G (n, d, d) at points (n, d), d_k G (n, k, d, d), and d_k d_l G (n, k, l, d, d)."""
    if isinstance(metric, Tabulated):  # in closed form
        return metric.jet(z)
    d = z.shape[-1]
    rows, columns = torch.triu_indices(d, d, device="cpu")
    g = metric.matrix(z)

    def entries(z: Tensor) -> Parts:
        return (metric.matrix(z)[:, rows, columns],)

    def whole(found: list[Parts]) -> Tensor:
        return torch.stack([x for (x,) in found], 1)[..., _places(d)]

    if not differentiated(z):
        with torch.enable_grad():
            constant = not metric.matrix(z[:1].detach().requires_grad_()).requires_grad
    else:
        constant = not g.requires_grad
    if constant:  # or one that hides its argument
        if not torch.equal(g, metric.matrix(z + 0.01 * (1 + z.abs()))):
            raise _checks.metric_without_gradient()
        zero = torch.zeros_like(g)[:, None].expand(-1, d, -1, -1)
        return g, zero, zero[:, None].expand(-1, d, -1, -1, -1)
    e = axes(z)
    (_, *first), bent = jet(entries, z, e, _pairs(e) if second else ())
    bends = whole(bent)[:, _places(d)] if second else g
    return g, whole(first), bends


def _lowered(slopes: Tensor) -> Tensor:
    """G Gamma_ij (n, k, i, j), the lowered index k first, from d_k G_ij (n, k, i, j)."""
    turned = slopes.permute(0, 3, 1, 2)  # d_i G_jk at (k, i, j)
    return 0.5 * (turned + turned.mT - slopes)


def _from_matrix(g: Matrices, slopes: Tensor, bends: Tensor) -> Tensor:
    """R_ijkl from the derivatives of the matrix, as :func:`_matrix_jet` has them."""
    lowered = _lowered(slopes)
    frame = gram_frame(g)[0]
    lifted = torch.einsum("nka,nkij->naij", frame, lowered)  # Gamma_ij in the frame
    products = torch.einsum("naij,nakl->nijkl", lifted, lifted)  # <Gamma_ij, Gamma_kl>
    # d_j d_k G_il stands in bends at (j, k, i, l)
    twice = (
        torch.einsum("njkil->nijkl", bends)
        + torch.einsum("niljk->nijkl", bends)
        - torch.einsum("nikjl->nijkl", bends)
        - torch.einsum("njlik->nijkl", bends)
    )
    return 0.5 * twice + torch.einsum("njkil->nijkl", products) - torch.einsum("njlik->nijkl", products)


_GRAPHS = 8  # a matrix's graph and those of its derivatives
