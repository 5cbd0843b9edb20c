"""Curvature of chosen planes and directions, without the whole tensor: for any number of dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback._batching import map_points
from pullback.autodiff import Parts, jet
from pullback.curvature import errors
from pullback.curvature.immersion import Immersion, Pairs, gram_frame, immersion, normal, tangent_basis
from pullback.curvature.tensors import tell_failures
from pullback.metrics import Metric
from pullback.types import Features, Matrices, Points, Scalars, Tangents

_PARALLEL = 1e2  # times rounding: the sine of the angle below which two tangents span no plane


def sectional_curvature(metric: Metric, z: Points, u: Tangents, v: Tangents, scale: float | None) -> Scalars:
    """The curvature of the planes that u and v span, all (..., d): (...)."""
    surface = immersion(metric, z, scale)

    def chosen(frame: Matrices, g: Matrices, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """An orthonormal pair for each plane, and the sine of the angle between u and v."""
        a, b = (frame.mT @ (g @ x[..., None]) for x in (u, v))  # (n, d, 1) in the frame
        a, length = _unit(a)
        b, other = _unit(b)
        b = b - (a * b).sum(-2, keepdim=True) * a
        b = b - (a * b).sum(-2, keepdim=True) * a
        sine = torch.where((length > 0) & (other > 0), b.norm(dim=-2, keepdim=True), 0)
        return (frame @ torch.cat((a, _unit(b)[0]), -1)).mT[:, None], sine[:, 0, 0]

    def found(z: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        g, basis, frame = _tangents(metric, surface, z)
        planes, sine = chosen(frame, g, u, v)
        k = _curvature_of(metric, surface, z, basis, planes)[:, 0]
        return k, torch.where(frame.isnan().any(-1).any(-1), 1, sine), frame

    k, sine, frame = map_points(found, (z, u, v), _chunk(metric, surface, z, z.shape[-1] + 4))
    bad = (sine.detach() < _PARALLEL * torch.finfo(z.dtype).eps).reshape(-1)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise errors.parallel(i, len(bad), z.detach().reshape(-1, z.shape[-1])[i].tolist())
    tell_failures(metric, z, frame)
    return k


def random_planes(
    metric: Metric, z: Points, n_probes: int, generator: torch.Generator | None, scale: float | None
) -> Tensor:
    """The curvature (..., n_probes) of planes that are drawn uniformly from all at each point (..., d)."""
    surface = immersion(metric, z, scale)
    d = z.shape[-1]
    source = generator or torch.Generator(device="cpu").manual_seed(0)
    # a seed for each point: what it is given does not depend on chunks
    seeds = torch.randint(2**62, (*z.shape[:-1], 1), generator=source, device=source.device)

    def found(z: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        _, basis, frame = _tangents(metric, surface, z)
        x = z.new_empty(len(z), n_probes, 2, d)
        for place, seed in zip(x, seeds[:, 0].tolist(), strict=True):
            place.copy_(_normal(place, seed))
        a = _unit(x[:, :, 0], -1)[0]
        b = x[:, :, 1] - (a * x[:, :, 1]).sum(-1, keepdim=True) * a
        planes = torch.stack((a, _unit(b, -1)[0]), 2) @ frame.mT[:, None]
        return _curvature_of(metric, surface, z, basis, planes), frame

    k, frame = map_points(found, (z, seeds), _chunk(metric, surface, z, z.shape[-1] + 4))
    tell_failures(metric, z, frame)
    return k


def bending(
    metric: Metric, z: Points, vectors: tuple[Tangents, ...], scale: float | None, *, trace: bool = False
) -> Features:
    """The second fundamental form of u and v (..., d), or its trace over an orthonormal frame: (..., D)."""
    surface = immersion(metric, z, scale)
    if surface is None:
        raise errors.immersion_needed()

    def found(z: Tensor, *vectors: Tensor) -> tuple[Tensor, Tensor]:
        basis, frame = tangent_basis(surface.columns(z))
        if trace:
            bent = basis.new_zeros(len(z), 1, basis.shape[-1])
            for e in frame.nan_to_num().unbind(-1):  # one direction at a time: D numbers a point are kept
                bent = bent + surface.jet(z, (), ((e, e),))[1]
        else:
            bent = surface.jet(z, (), (vectors,))[1]  # pyright: ignore[reportArgumentType]
        return normal(bent, basis)[:, 0], frame

    result, frame = map_points(found, (z, *vectors), _chunk(metric, surface, z, z.shape[-1] + 4))
    tell_failures(metric, z, frame)
    return result


def _tangents(metric: Metric, surface: Immersion | None, z: Tensor) -> tuple[Matrices, Tensor | None, Matrices]:
    """At points (n, d) the matrix G, orthonormal tangents (n, d, D) of a surface if there is one, and a frame."""
    if surface is None:
        g = metric.matrix(z)
        return g, None, gram_frame(g)[0]
    columns = surface.columns(z)
    return columns @ columns.mT, *tangent_basis(columns)


def _curvature_of(metric: Metric, surface: Immersion | None, z: Tensor, basis: Tensor | None, planes: Tensor) -> Tensor:
    """The curvature (n, s) of s planes at each of n points, given by orthonormal pairs (n, s, 2, d)."""
    n, _, _, d = planes.shape
    missing = planes[:, :, 0].isnan().any(-1)
    planes = planes.nan_to_num()  # where there is no frame

    def of_probes(planes: Tensor) -> Tensor:
        """(n, s, 2, d) -> (n, s)."""
        at, (u, v) = z[:, None].expand(n, planes.shape[1], d).reshape(-1, d), planes.reshape(-1, 2, d).unbind(1)
        if surface is None or basis is None:
            return _from_inner_products(metric, at, u, v).reshape(planes.shape[:2])
        bent = surface.jet(at, (), ((u, u), (u, v), (v, v)))[1].unflatten(0, planes.shape[:2])
        uu, uv, vv = (normal(y, basis) for y in bent.unbind(2))
        return (uu * vv).sum(-1) - uv.square().sum(-1)

    at_once = max(1, _chunk(metric, surface, z, 8) // max(n, 1))
    return torch.where(missing, torch.nan, torch.cat([of_probes(part) for part in planes.split(at_once, 1)], 1))


def _from_inner_products(metric: Metric, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    r"""R(u, v, u, v) at points (n, d) by inner products and Christoffel vectors: no matrix is differentiated.

    D_u D_v <u, v> - (D_u D_u <v, v> + D_v D_v <u, u>) / 2 + <Gamma(u, v), Gamma(u, v)> - <Gamma(u, u), Gamma(v, v)>
    """

    def products(z: Tensor) -> Parts:
        found = torch.stack((metric.inner(z, u, u), metric.inner(z, u, v), metric.inner(z, v, v)), -1)
        return (found + 0 * z.sum(-1, keepdim=True),)  # a constant metric has a derivative, too

    pairs: Pairs = ((u, u), (u, v), (v, v))
    _, ((along_u,), (mixed,), (along_v,)) = jet(products, z, (), pairs)
    uu, uv, vv = (metric.christoffel(z, a, b).nan_to_num() for a, b in pairs)  # NaN where there is no frame
    second = mixed[:, 1] - 0.5 * (along_u[:, 2] + along_v[:, 0])
    return second + metric.inner(z, uv, uv) - metric.inner(z, uu, vv)


def _normal(like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers in the shape and dtype of a tensor, on the CPU."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu")


def _unit(x: Tensor, dim: int = -2) -> tuple[Tensor, Tensor]:
    """Vectors along an axis, at unit length, and their lengths."""
    length = x.norm(dim=dim, keepdim=True)
    return x / length.clamp_min(torch.finfo(x.dtype).tiny), length


def _chunk(metric: Metric, surface: Immersion | None, z: Tensor, held: int) -> int:
    """How many points at once, each with that many vectors of features."""
    if surface is not None:
        return surface.points_at_once(z, held)
    return max(1, metric.points_at_once(z) // _GRAPHS)


_GRAPHS = 8  # an inner product's graph, those of its derivatives and of three Christoffel vectors
