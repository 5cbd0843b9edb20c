"""With which velocities geodesics leave: by the first variation of their energy."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.chords import chord_energy
from pullback.curvature.immersion import gram_frame
from pullback.metrics import Metric


def departures(metric: Metric, nodes: Tensor, length: Tensor) -> Tensor:
    r"""Velocities (B, d) with which geodesics (B, T + 1, d) of known lengths (B,) leave; NaN where G is singular.

    The direction is :math:`-G(z)^{-1} \nabla_z E`: derivatives of a spline at its end are known to a per cent, while
    the energy of a whole curve, which is moved with its end, hides its errors.

    Cost: 3 evaluations a node, and a matrix.
    """
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
