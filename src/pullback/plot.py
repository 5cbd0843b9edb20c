"""Pictures of latent spaces: magnification maps, geodesics over them, decoded frames along curves.

Every function takes ``ax=None`` and returns the Axes that it drew on. What was drawn stays reachable as numbers:

- ``magnification``: ``ax.images[0].get_array()``, bottom row first, and ``get_extent()``; the codes are
  ``ax.collections``, one a class, labeled by the class, with ``get_offsets()``;
- ``geodesics``: ``ax.collections`` labeled "geodesic", "straight line" and "not converged", with ``get_segments()``;
- ``interpolation``: ``ax.images[0].get_array()``, the mosaic of the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pullback.curves import Curve
from pullback.geodesics import Solution
from pullback.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

Bounds = tuple[tuple[float, float], tuple[float, float]]  # (left, right), (bottom, top)

_MARGIN = 0.15  # of the codes' range, on every side
_CLIP = (0.01, 0.99)  # the quantiles between which the colors run
_HEADROOM = 0.35  # of that range, more at the bright end: regions around the data stand out
_N_POINTS = 200  # that a drawn curve is evaluated at
_CLASS_COLORS = ("#1f77ff", "#ff7f0e", "#17b33a", "#b14dff", "#00c8d7")  # not red, and readable on every gray
_CLASS_COLORS += ("#ffd400", "#ff6fb5", "#a0522d", "#a6e22e", "#008f7a")
_GEODESIC_COLOR = "#e6194b"
_GAP = 1  # pixels between frames


def magnification(
    metric: Metric,
    *,
    codes: Tensor | ArrayLike | None = None,
    labels: Tensor | ArrayLike | None = None,
    bounds: Bounds | None = None,
    resolution: int = 200,
    ax: Axes | None = None,
) -> Axes:
    r"""The log volume measure :math:`\tfrac12 \log\det G(z)` over a latent plane, with the codes on top.

    It is the logarithm of the factor by which the decoder magnifies a small latent area: bright where a short latent
    way is a long way in data space. Far off the data it may be larger than all that is of interest, so the colors run
    from the 1st to the 99th percentile over the part of the map where the codes are, and a third of that further up;
    values beyond take the end colors, and the color bar shows that by pointed ends. Singular points (-inf) are black.

    Args:
        metric: A metric on a latent space of two dimensions.
        codes: Latent points (n, 2) to draw on the map.
        labels: The class of each code (n,): one color and one entry of the legend a class.
        bounds: ((left, right), (bottom, top)). Default: the range of the codes and 15% of it on every side.
        resolution: Cells along the longer side of the map; cells are square.
        ax: Where to draw. Default: a new figure.

    Returns:
        The Axes. ``ax.images[0].get_array()`` has the values at the centers of the cells, bottom row first.

    Raises:
        ValueError: Neither codes nor bounds; empty bounds; codes that are not (n, 2); labels of another number;
            a log volume of -inf everywhere.

    Cost:
        ``metric.log_volume`` at up to ``resolution ** 2`` points.

    Example:
        >>> plane = pb.Pullback(torch.nn.Linear(2, 5))
        >>> ax = pb.plot.magnification(plane, bounds=((-1, 1), (-2, 2)), resolution=20)
        >>> values = ax.images[0].get_array()
        >>> values.shape, bool(values.max() - values.min() < 1e-5)  # one value everywhere: the metric is constant
        ((20, 10), True)
    """
    from matplotlib import colormaps

    points = None if codes is None else _plane_points(codes)
    classes = None if labels is None else _classes(labels, points)
    given = bounds
    bounds = _checked_bounds(_bounds_around(points) if bounds is None else bounds)
    like = _parameter_like(metric, codes, given)
    grid = torch.from_numpy(_cell_centers(bounds, resolution)).to(like)  # (rows, columns, 2)
    values = metric.log_volume(grid).detach().cpu().double().numpy()
    low, high, extend = _color_range(values, None if points is None else _among(grid.cpu().numpy(), points))
    ax = _axes_or_new(ax)
    image = ax.imshow(
        values,
        origin="lower",
        extent=(*bounds[0], *bounds[1]),
        vmin=low,
        vmax=high,
        cmap=colormaps["gray"].with_extremes(bad="black"),  # -inf is no hole
        interpolation="nearest",
    )
    bar = ax.figure.colorbar(image, ax=ax, extend=extend, shrink=0.85)
    bar.set_label(r"log volume $\frac{1}{2}\,\log\,\det\,G(z)$  [nats]")
    ax.set(xlabel="$z_1$", ylabel="$z_2$", xlim=bounds[0], ylim=bounds[1], aspect="equal")
    if points is not None:
        _draw_codes(ax, points, classes)
    return ax


def geodesics(path: Solution, *, straight: bool = True, ax: Axes | None = None) -> Axes:
    """Curves in a latent plane, drawn over whatever the Axes shows already.

    Args:
        path: What :func:`pullback.geodesic` returned, for any number of pairs. Curves that did not converge are dotted.
        straight: Draw the straight lines between the end points as well.
        ax: Where to draw. Default: a new figure.

    Returns:
        The Axes. The curves are ``ax.collections``, labeled "geodesic", "straight line" and "not converged".

    Raises:
        ValueError: The latent space has another dimension than 2.

    Example:
        >>> path = pb.geodesic(pb.Pullback(torch.nn.Linear(2, 5)), torch.zeros(2), torch.ones(2))
        >>> ax = pb.plot.geodesics(path, straight=False)
        >>> [entry.get_text() for entry in ax.get_legend().get_texts()]
        ['geodesic']
    """
    nodes = path.curve.nodes
    if nodes.shape[-1] != 2:
        raise ValueError(
            f"`path` has curves in {nodes.shape[-1]} dimensions, but only those in a plane can be drawn: "
            "give geodesics of a metric on two latent dimensions."
        )
    points = path.curve(torch.linspace(0, 1, _N_POINTS, dtype=nodes.dtype, device=nodes.device))
    curves = points.detach().cpu().numpy().reshape(-1, _N_POINTS, 2)
    converged = path.converged.detach().cpu().numpy().reshape(-1)
    ends = curves[:, [0, -1]]  # (n, 2, 2)
    ax = _axes_or_new(ax)
    if straight:
        _draw_curves(ax, ends, "straight line", color="white", linestyle=(0, (3, 1.5)), linewidth=1.2)
    _draw_curves(ax, curves[converged], "geodesic", color=_GEODESIC_COLOR, linewidth=1.8)
    _draw_curves(ax, curves[~converged], "not converged", color=_GEODESIC_COLOR, linestyle=":", linewidth=1.2)
    ax.scatter(*ends.reshape(-1, 2).T, s=18, color="white", edgecolor="black", linewidth=0.8, zorder=4)
    ax.set_aspect("equal")
    ax.autoscale_view()
    _draw_legend(ax)
    return ax


def interpolation(
    decode: Callable[[Tensor], Tensor],
    curves: Curve | Mapping[str, Curve],
    *,
    n: int = 12,
    shape: tuple[int, ...] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Decoded frames along curves: one row a curve, its parameter t from left to right.

    Frames stand at equal steps of t: a curve of constant speed, as a geodesic is, shows equal steps of its length.

    Args:
        decode: Maps latent points (m, d) to frames (m, h, w), (m, 1, h, w), (m, 3, h, w) or (m, h, w, 3), or to (m, D)
            when `shape` is given. The mean of a Gaussian decoder, for example.
        curves: One curve, a batch of them, or a dict from the text beside a row to its curve.
        n: Frames a row.
        shape: Shape of one frame. Default: as `decode` returns it.
        ax: Where to draw. Default: a new figure.

    Returns:
        The Axes. ``ax.images[0].get_array()`` is the mosaic: frames (h, w) with one pixel (NaN) between them.

    Raises:
        ValueError: Frames that are no images, or a `shape` with another number of entries than the decoder's output.

    Cost:
        One decoder forward a frame.

    Example:
        >>> decoder = torch.nn.Sequential(torch.nn.Linear(2, 12), torch.nn.Sigmoid())
        >>> line = pb.Curve.straight(torch.zeros(2), torch.ones(2))
        >>> ax = pb.plot.interpolation(decoder, {"straight": line}, n=5, shape=(3, 4))
        >>> ax.images[0].get_array().shape  # 5 frames of 3 x 4, 4 gaps
        (3, 24)
    """
    named = curves if isinstance(curves, Mapping) else {"": curves}
    names: list[str] = []
    rows: list[NDArray[Any]] = []
    for name, curve in named.items():
        frames = _frames(decode, curve, n, shape)  # (curves, n, h, w) or (curves, n, h, w, 3)
        names += [name] * len(frames)
        rows += list(frames)
    mosaic = _mosaic(rows)
    height, width = (side + _GAP for side in rows[0].shape[1:3])
    size = (0.6 * n + 1.5, 0.6 * len(rows) * height / width + 0.8)  # inches: 0.6 a frame, the rest for labels
    ax = _axes_or_new(ax, figsize=size)
    ax.imshow(mosaic, cmap="gray", interpolation="nearest")
    ax.set_xticks([(n - 1) * width * t + width / 2 - 1 for t in (0, 0.5, 1)], ["0", "1/2", "1"])
    ax.set_yticks([row * height + height / 2 - 1 for row in range(len(rows))], names)
    ax.set_xlabel("curve parameter $t$")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _axes_or_new(ax: Axes | None, figsize: tuple[float, float] | None = None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=figsize, layout="constrained")[1]


def _array(values: Tensor | ArrayLike) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _plane_points(codes: Tensor | ArrayLike) -> NDArray[Any]:
    points = _array(codes)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(
            f"`codes` has shape {points.shape}, but a map shows points of a latent plane, (n, 2): "
            "for a latent space of another dimension choose two coordinates and a metric on them."
        )
    if not np.isfinite(points).all():
        raise ValueError("`codes` has entries that are not finite: drop them, or give `bounds` and no codes.")
    return points


def _classes(labels: Tensor | ArrayLike, points: NDArray[Any] | None) -> NDArray[Any]:
    classes = _array(labels)
    n_points = 0 if points is None else len(points)
    if classes.shape != (n_points,):
        raise ValueError(f"`labels` has shape {classes.shape}, but there are {n_points} codes: give one label a code.")
    return classes


def _bounds_around(points: NDArray[Any] | None) -> Bounds:
    if points is None:
        raise ValueError(
            "nothing says which part of the plane to draw: give `codes`, or `bounds=((left, right), (bottom, top))`."
        )
    low, high = points.min(0), points.max(0)
    margin = _MARGIN * np.where(high > low, high - low, max((high - low).max(), 1.0))
    left, bottom = (low - margin).tolist()
    right, top = (high + margin).tolist()
    return (left, right), (bottom, top)


def _checked_bounds(bounds: Bounds) -> Bounds:
    sides = np.asarray(bounds, dtype=float)
    if sides.shape != (2, 2) or not np.isfinite(sides).all() or (sides[:, 0] >= sides[:, 1]).any():
        raise ValueError(
            f"`bounds` is {bounds}: give ((left, right), (bottom, top)) with left < right and bottom < top."
        )
    (left, right), (bottom, top) = sides.tolist()
    return (left, right), (bottom, top)


def _cell_centers(bounds: Bounds, resolution: int) -> NDArray[Any]:
    """Points (rows, columns, 2) in the middle of the cells of the map, bottom row first."""
    if resolution < 1:
        raise ValueError(f"`resolution` is {resolution}: give the number of cells along the longer side, at least 1.")
    (left, right), (bottom, top) = bounds
    cell = max(right - left, top - bottom) / resolution
    n_columns, n_rows = (max(1, round(side / cell)) for side in (right - left, top - bottom))
    x = left + (np.arange(n_columns) + 0.5) * (right - left) / n_columns
    y = bottom + (np.arange(n_rows) + 0.5) * (top - bottom) / n_rows
    return np.stack(np.meshgrid(x, y), axis=-1)


def _parameter_like(metric: Metric, codes: Any, bounds: Any) -> Tensor:
    """A tensor with the dtype and on the device that the metric works in; without parameters those of codes or bounds.

    Codes and bounds of Python numbers have no dtype: they are PyTorch's default.
    """
    for tensor in chain(metric.parameters(), metric.buffers()):
        if tensor.is_floating_point():
            return tensor
    if isinstance(codes, Tensor) and codes.is_floating_point():
        return codes
    sides = [] if bounds is None else [bounds, *bounds, *chain.from_iterable(bounds)]
    for values in (codes, *sides):
        if isinstance(values, np.ndarray | np.generic) and values.dtype in (np.float32, np.float64):
            return torch.from_numpy(np.empty(0, values.dtype))
    return torch.empty(0)


def _among(grid: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    """Which cells (rows, columns) lie in the box of the central points; all when no center of a cell does."""
    low, high = np.quantile(points, _CLIP, axis=0)
    inside = ((grid >= low) & (grid <= high)).all(-1)
    return inside if inside.any() else np.ones_like(inside)


def _color_range(values: NDArray[Any], among: NDArray[Any] | None) -> tuple[float, float, str]:
    """Lowest and highest color of a map, and which ends of its color bar are pointed."""
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("the log volume is -inf everywhere on the map: the decoder is constant in a direction.")
    chosen = finite if among is None or not (finite & among).any() else finite & among
    low, high = np.quantile(values[chosen], _CLIP).tolist()
    if among is not None:
        high += _HEADROOM * (high - low)
    if high - low < 1e-6 * max(1.0, abs(high)):  # a flat metric: one color, not magnified rounding errors
        low, high = low - 0.5, high + 0.5
    pointed = bool((values < low).any()), bool((values > high).any())
    return low, high, {(True, True): "both", (True, False): "min", (False, True): "max"}.get(pointed, "neither")


def _draw_codes(ax: Axes, points: NDArray[Any], classes: NDArray[Any] | None) -> None:
    size = float(np.clip(21_000 / len(points), 3, 20))  # 7 for 3,000
    if classes is None:
        ax.scatter(*points.T, s=size, color=_CLASS_COLORS[0], linewidth=0, alpha=0.85, label="codes")
    else:
        for k, name in enumerate(np.unique(classes)):
            color = _CLASS_COLORS[k % len(_CLASS_COLORS)]
            ax.scatter(*points[classes == name].T, s=size, color=color, linewidth=0, alpha=0.85, label=str(name))
    _draw_legend(ax)


def _draw_curves(ax: Axes, curves: NDArray[Any], label: str, **style: Any) -> None:
    """Polylines (n, T, 2) with a dark rim, so that they stand out on black and on white."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import Normal, Stroke

    if len(curves) == 0:
        return
    rim = [Stroke(linewidth=style["linewidth"] + 1.4, foreground="black"), Normal()]
    ax.add_collection(LineCollection(list(curves), label=label, zorder=3, path_effects=rim, **style))


def _draw_legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper right", framealpha=0.85, fontsize="small", markerscale=2, facecolor="0.8")


def _frames(decode: Callable[[Tensor], Tensor], curve: Curve, n: int, shape: tuple[int, ...] | None) -> NDArray[Any]:
    """Images (curves, n, h, w) or (curves, n, h, w, 3) along a batch of curves."""
    nodes = curve.nodes
    points = curve(torch.linspace(0, 1, n, dtype=nodes.dtype, device=nodes.device)).reshape(-1, nodes.shape[-1])
    with torch.no_grad():
        decoded = decode(points)
    frame = tuple(decoded.shape[1:]) if shape is None else tuple(shape)
    if decoded[0].numel() != int(np.prod(frame)):
        raise ValueError(f"`shape` is {frame}, but a decoded frame has {decoded[0].numel()} entries.")
    images = decoded.detach().cpu().double().numpy().reshape(-1, n, *frame)
    if len(frame) == 3 and frame[0] in (1, 3):  # channels first
        images = np.moveaxis(images, 2, -1)
    if images.ndim == 5 and images.shape[-1] == 1:
        images = images[..., 0]
    if not (images.ndim == 4 or (images.ndim == 5 and images.shape[-1] == 3)):
        raise ValueError(
            f"`decode` gives frames of shape {frame}, which are no images: "
            "give `shape=(h, w)`, or decode to (h, w), (h, w, 3) or (3, h, w)."
        )
    return np.clip(images, 0, 1) if images.ndim == 5 else images


def _mosaic(rows: list[NDArray[Any]]) -> NDArray[Any]:
    """Frames row below row, a white gap between them: NaN, or 1 where frames have colors."""
    if len({row.shape for row in rows}) > 1:
        raise ValueError(f"the curves decode to frames of different shapes: {sorted({row.shape[1:] for row in rows})}.")
    n_frames, height, width = rows[0].shape[:3]
    step_down, step_right = height + _GAP, width + _GAP
    gap = np.nan if rows[0].ndim == 3 else 1.0
    mosaic = np.full((len(rows) * step_down - _GAP, n_frames * step_right - _GAP, *rows[0].shape[3:]), gap)
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            mosaic[i * step_down : i * step_down + height, j * step_right : j * step_right + width] = frame
    return mosaic
