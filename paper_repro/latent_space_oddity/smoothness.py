"""How smoothly decoded frames change along a curve: what the interpolations of images, of a video and of poses share.

Three curves between the same ends are compared: the geodesic, the straight line as one would sample it, and the line
resampled at constant speed in the metric. The last is a fair third: a part of what makes geodesics look smooth is
their constant speed, which any curve can have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pullback as pb

KINDS = ("geodesic", "line", "resampled")


def between(metric: pb.Metric, path: pb.Solution, n_segments: int = 256) -> dict[str, pb.Curve]:
    """The three curves (n pairs each) by kind: see the module."""
    nodes = path.curve.nodes
    line = pb.Curve.straight(nodes[:, 0], nodes[:, -1], n_segments)
    return {"geodesic": path.curve, "line": line, "resampled": pb.constant_speed(metric, line, n_segments=n_segments)}


def frames(decode: Callable[[Tensor], Tensor], curve: pb.Curve, n: int) -> Tensor:
    """What curves decode to at n equal steps of their parameter: (pairs, n, D)."""
    points = curve(torch.linspace(0, 1, n, dtype=torch.float64))
    with torch.no_grad():
        return decode(points.flatten(0, -2)).reshape(*points.shape[:-1], -1)


def jump(x: Tensor) -> Tensor:
    """The largest difference of neighboring frames (..., n, D), divided by their mean: 1 where all are equal."""
    steps = x.diff(dim=-2).norm(dim=-1)
    return steps.amax(-1) / steps.mean(-1)


def correlations(x: Tensor) -> Tensor:
    """The correlation of each frame with each other (..., n, n), around the mean of all frames (..., n, D) of a curve.

    An abrupt change shows as two blocks with sharp borders. The paper draws such autocorrelations.
    """
    x = x - x.mean(-2, keepdim=True)
    x = x / x.norm(dim=-1, keepdim=True)
    return x @ x.mT


def weakest_link(x: Tensor) -> Tensor:
    """The smallest correlation of neighboring frames by :func:`correlations`: (...). Abrupt changes lower it."""
    return correlations(x).diagonal(1, -2, -1).amin(-1)


def autocorrelation(x: Tensor, lag: int = 1) -> Tensor:
    r"""The autocorrelation of frames :math:`x_t` (..., n, D): (...).

    .. math:: r = \sum_t \langle x_t - \bar x, x_{t + lag} - \bar x \rangle / \sum_t |x_t - \bar x|^2

    Frames that stand still and then jump have a high one: it measures how much changes in all, not how evenly.
    """
    x = x - x.mean(-2, keepdim=True)
    n = x.shape[-2]
    return (x[..., : n - lag, :] * x[..., lag:, :]).sum((-2, -1)) / x.square().sum((-2, -1))


def stray(x: Tensor, data: Tensor) -> Tensor:
    """How far the farthest of some frames (..., n, D) is from the sample (m, D) nearest to it, a root mean square."""
    nearest = torch.cdist(x.flatten(0, -2), data.to(x)).amin(-1).reshape(x.shape[:-1])
    return nearest.amax(-1) / x.shape[-1] ** 0.5


def measured(
    metric: pb.Metric, decode: Callable[[Tensor], Tensor], path: pb.Solution, n_frames: int, data: Tensor
) -> dict[str, dict[str, list[float]]]:
    """Length, jump, correlations and stray by kind of curve; one number a pair, of those that converged only."""
    path, found = path[path.converged], {}
    curves = between(metric, path)
    straight = pb.length(metric, curves["line"])
    for kind, curve in curves.items():
        x = frames(decode, curve, n_frames)
        values = {"jump": jump(x), "weakest_link": weakest_link(x), "autocorrelation": autocorrelation(x)}
        values |= {"stray": stray(x, data), "length": path.length if kind == "geodesic" else straight}
        found[kind] = {name: value.tolist() for name, value in values.items()}
    return found
