"""Logarithms of many points at many means, from curves alone: their directions by the first variation of the energy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from pullback import _checks
from pullback.chords import chord_energy
from pullback.curvature.immersion import gram_frame
from pullback.curves import Curve
from pullback.geodesics import Solution, geodesic
from pullback.geodesics.starts import Start
from pullback.metrics import Metric
from pullback.types import Points, Tangents

_SEGMENTS = 64  # of a curve, to measure its direction with: of fourth order
LOGARITHM = 3 * (_SEGMENTS + 1)  # evaluations a pair, besides those of its geodesic
_WARM = 32  # segments of a curve to start from: finer ones would be solved for at their own resolution, for more


def logarithms(
    metric: Metric,
    z: Points,
    w: Points,
    *,
    tol: float,
    starts: Start | Sequence[Start] = "straight",
    init: Curve | None = None,
    progress: bool = False,
) -> tuple[Tangents, Solution]:
    r"""Logarithms (..., d) of w at z, both (..., d), NaN where no geodesic was found; and the geodesics.

    A geodesic of energy E that departs from z has :math:`\log_z w = -G(z)^{-1} \nabla_z E`: the derivative of an
    integral is known better than that of the curve at its end. Its length is that of the curve. On the shipped model
    the direction is off by 1e-3 in the mean at ``tol=1e-3``, a tenth of ``log(polish=False)``.

    Cost: that of :func:`geodesic`, and 3 evaluations for each of 65 nodes a pair.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _checks.GeodesicWarning)  # callers count
        if init is not None:  # coarse curves that were moved may touch a wall
            warnings.simplefilter("ignore", _checks.RankWarning)
        path = geodesic(metric, z, w, tol=tol, init=init, starts=starts, progress=progress)
    start, end = torch.broadcast_tensors(z.detach(), w.detach())
    apart = (start != end).any(-1)
    v = torch.where(apart[..., None], torch.nan, torch.zeros_like(start))
    v[~path.converged] = torch.nan
    good = path.converged & apart
    if good.any():
        v[good] = _departures(metric, path.curve.nodes[good], path.length[good])
    return v, path


def moved(curves: Curve, starts: Points) -> Curve:
    """Curves (..., T + 1, d) whose first nodes are brought to other starts (..., d), to start a solver from."""
    nodes = curves.resample(min(_WARM, curves.n_segments)).nodes
    t = torch.linspace(0, 1, nodes.shape[-2], dtype=nodes.dtype, device=nodes.device)[:, None]
    nodes = nodes + (1 - t) * (starts - nodes[..., 0, :])[..., None, :]
    nodes[..., 0, :], nodes[..., -1, :] = starts, curves.nodes[..., -1, :]
    return Curve(nodes)


def _departures(metric: Metric, nodes: Tensor, length: Tensor) -> Tensor:
    """Velocities (B, d) with which curves (B, T + 1, d) of known lengths (B,) leave their first nodes."""
    n = nodes.shape[1] - 1
    stride = max(1, n // _SEGMENTS)
    nodes = nodes[:, ::stride] if n % stride == 0 else Curve(nodes).resample(_SEGMENTS).nodes
    size = max(1, metric.points_at_once(nodes) // nodes.shape[1])
    momentum = torch.cat([_momenta(metric, part) for part in nodes.split(size)])
    frame, _ = gram_frame(metric.matrix(nodes[:, 0]).detach())
    pulled = (frame.mT @ momentum[..., None])[..., 0]
    direction = pulled / pulled.norm(dim=-1, keepdim=True)
    return (frame @ (length[:, None] * direction)[..., None])[..., 0]


def _momenta(metric: Metric, nodes: Tensor) -> Tensor:
    """How much the energy of curves falls as their starts move: (B, d).

    A curve moves as a whole, less and less towards its end: that suffers least from its errors.
    """
    t = torch.linspace(0, 1, nodes.shape[1], dtype=nodes.dtype, device=nodes.device)[:, None]
    with torch.enable_grad():
        shift = torch.zeros_like(nodes[:, :1], requires_grad=True)
        energy = chord_energy(*metric.squared_chords(metric.features(nodes + (1 - t) * shift)))
        (slope,) = torch.autograd.grad(energy.sum(), shift)
    return -slope[:, 0]
