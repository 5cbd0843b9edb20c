"""Logarithms of many points at many means, from curves alone: their directions by the first variation of the energy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics import Solution, geodesic
from pullback.geodesics.departures import departures
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
        v[good] = departures(metric, _even(path.curve.nodes[good]), path.length[good])
    return v, path


def moved(curves: Curve, starts: Points) -> Curve:
    """Curves (..., T + 1, d) whose first nodes are brought to other starts (..., d), to start a solver from."""
    nodes = curves.resample(min(_WARM, curves.n_segments)).nodes
    t = torch.linspace(0, 1, nodes.shape[-2], dtype=nodes.dtype, device=nodes.device)[:, None]
    nodes = nodes + (1 - t) * (starts - nodes[..., 0, :])[..., None, :]
    nodes[..., 0, :], nodes[..., -1, :] = starts, curves.nodes[..., -1, :]
    return Curve(nodes)


def _even(nodes: Tensor) -> Tensor:
    """Curves (B, T + 1, d) by fewer nodes, enough to measure a direction with."""
    n = nodes.shape[1] - 1
    stride = max(1, n // _SEGMENTS)
    return nodes[:, ::stride] if n % stride == 0 else Curve(nodes).resample(_SEGMENTS).nodes
