"""Parallel transport of tangent vectors along curves."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.exponential import describe
from pullback.geodesics.integrate import integrate
from pullback.geodesics.solution import Status
from pullback.metrics import Metric
from pullback.types import Tangents

_SHARE = 0.3  # of the tolerance that one step may err by


def transport(metric: Metric, curve: Curve, v: Tangents, *, tol: float = 1e-8, max_steps: int = 10_000) -> Tangents:
    r"""Parallel transport: the vectors at the curves' ends that stay as they are along the way from their starts.

    .. math:: \dot v = -\Gamma_c(\dot c, v), \quad v(0) = v

    Linear in v, and an isometry: inner products are kept, whatever the curve. Around a closed curve a vector turns by
    the curvature that the curve encloses.

    Args:
        metric: The metric; smooth, for a crease of it goes unseen.
        curve: Any curves (...), geodesics or not.
        v: Tangent vectors (..., d) at their starts; batches broadcast, so that one curve may have many vectors.
        tol: Error relative to the vector, in latent coordinates.
        max_steps: Steps that a vector may take.

    Returns:
        Vectors at the ends (..., d); NaN where the curve meets points at which the metric is singular or not finite.
        They carry no gradient.

    Raises:
        ValueError: When curves and vectors do not fit each other or the decoder.

    Warns:
        GeodesicWarning: When some vector did not get to the end; it lists which, why and what to try.

    Cost:
        6 d + 48 decoder evaluations a step, and at least one step for each segment: a cubic spline has kinks between
        them, in its third derivative.

    Example:
        >>> import pullback as pb
        >>> plane = pb.Pullback(torch.nn.Identity())
        >>> transport(plane, Curve(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])), torch.tensor([3.0, 4.0]))
        tensor([3., 4.])
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    if not isinstance(curve, Curve):
        raise TypeError(f"`curve` is a {type(curve).__name__}: give a Curve, e.g. Curve(nodes) or a solution's .curve.")
    v = _checks.points(v, "v")
    _checks.same_kind(v, curve.nodes, "v", "curve")
    _checks.relative(tol, "tol")
    _checks.positive(max_steps, "max_steps")
    metric.points_at_once(curve.nodes)  # the decoder is looked at
    batch, (n_nodes, d) = _batch(curve, v), curve.nodes.shape[-2:]
    nodes = curve.nodes.detach().expand(*batch, n_nodes, d).reshape((-1, n_nodes, d))
    v = v.detach().expand(*batch, d).reshape(-1, d)
    carried, codes = _carry(metric, nodes, v, tol, max_steps)
    if (codes != Status.CONVERGED.code).any():
        text = describe(codes.reshape(batch), "vectors reached the end of their curve")
        warnings.warn(text, _checks.GeodesicWarning, stacklevel=2)
    return carried.reshape((*batch, d))


def _carry(metric: Metric, nodes: Tensor, v: Tensor, tol: float, max_steps: int) -> tuple[Tensor, Tensor]:
    """Vectors (B, d) at the ends of curves (B, T + 1, d), NaN where they did not get there, and Status codes (B,)."""
    carried, codes = v.clone(), torch.zeros(len(v), dtype=torch.long, device=v.device)
    moving = (v != 0).any(-1)
    if not moving.any():
        return carried, codes
    nodes = nodes[moving]

    def equation(t: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        along = Curve(nodes[rows])
        t = t.clamp(0, 1)[:, None]
        return -metric.christoffel(along(t)[:, 0], along.velocity(t)[:, 0], v)

    with torch.no_grad():
        size = max(_SHARE * tol, 10 * torch.finfo(v.dtype).eps)
        tols = torch.full_like(v[moving, 0], size)
        way = integrate(equation, v[moving], d=v.shape[1], tol=tols, max_steps=max_steps, n_stops=nodes.shape[1] - 1)
    arrived = way.codes == Status.CONVERGED.code
    carried[moving] = torch.where(arrived[:, None], way.state, torch.nan)
    codes[moving] = way.codes
    return carried, codes


def _batch(curve: Curve, v: Tensor) -> torch.Size:
    curves, vectors = curve.nodes.shape[:-2], v.shape[:-1]
    try:
        return torch.broadcast_shapes(curves, vectors)
    except RuntimeError:
        raise ValueError(
            f"`v` has shape {tuple(v.shape)} but `curve` holds curves {tuple(curves)}: give one vector for each curve, "
            f"{(*curves, curve.nodes.shape[-1])}, or one of them alone."
        ) from None
