"""Decoders with creases have no pointwise curvature: they are found out and refused."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.autodiff import PartsMap, direction, jet
from pullback.curvature import errors

_CREASED = frozenset(
    (
        "AdaptiveMaxPool2D",
        "Hardshrink",
        "Hardsigmoid",
        "Hardswish",
        "Hardtanh",
        "LeakyRelu",
        "MaxPool2DWithIndices",
        "MaxPool3DWithIndices",
        "PreluKernel",
        "Relu",
        "RreluWithNoise",
        "Softshrink",
        "Threshold",
    )
)
_POINTS = 4  # to look at
_BENT = 1e-3  # of the way, that is more than rounding


def refuse_creases(f: PartsMap, z: Tensor) -> None:
    """Raise when a map of points (n, d) has creases: by its operators, or because it is linear in pieces.

    Linear in pieces is a part that has a slope, but the second derivative zero, exactly and at all of a few points; and
    yet over a finite step it is not linear.

    Cost: 9 evaluations of up to four points.
    """
    if not len(z):
        return
    z = z[:: -(-len(z) // _POINTS)]
    refuse_creased_operators(f, z[:1])
    v = direction(z)
    (values, slopes), (bends,) = jet(f, z, (v,), ((v, v),))
    flat = [k for k, x in enumerate(bends) if not x.any() and slopes[k].any()]
    if not flat:
        return
    step = (1 + z.abs().amax()) * v / v.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        there, back = f(z + step), f(z - step)
    for k in flat:
        way = (there[k] - back[k]).abs().amax()
        if (there[k] - 2 * values[k] + back[k]).abs().amax() > _BENT * way:
            raise errors.creased("it is linear in pieces")


def refuse_creased_operators(f: PartsMap, z: Tensor) -> None:
    """Raise when an operator between points (n, d) and what a map makes of them has creases, if autograd tells."""
    if not len(z):
        return
    with torch.enable_grad():
        start = z.detach().requires_grad_().clone()
        nodes = [x.grad_fn for x in f(start) if x.grad_fn is not None]
    users: dict[object, list[object]] = {}
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        for below, _ in node.next_functions:
            if below is None:
                continue
            users.setdefault(below, []).append(node)
            if below not in seen:
                seen.add(below)
                nodes.append(below)
    reached: set[object] = set()  # from the points up: what weights alone go through does not matter
    todo: list[object] = [start.grad_fn]
    while todo:
        node = todo.pop()
        if node in reached:
            continue
        reached.add(node)
        todo += users.get(node, [])
    names = {type(node).__name__.partition("Backward")[0] for node in reached}
    if names & _CREASED:
        raise errors.creased(f"{min(names & _CREASED)} is among its operators")
