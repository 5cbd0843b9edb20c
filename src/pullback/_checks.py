"""The one door: what comes in is looked at here, once, and every error text lives here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PullbackWarning(UserWarning):
    """Base class of the named warnings of this package."""


class DerivativeWarning(PullbackWarning):
    """A slower way to a derivative was taken, because an operator lacks the usual one."""


class RankWarning(PullbackWarning):
    """The decoder does not change in some latent direction: lengths in it are zero."""


class GeodesicWarning(PullbackWarning):
    """Some geodesics could not be had: which, why, and what to try."""


class GraphWarning(PullbackWarning):
    """A graph lost edges, or falls into parts that no path joins."""


class CurvatureWarning(PullbackWarning):
    """Some points have no curvature: how many, the first of them, and why."""


class StatisticsWarning(PullbackWarning):
    """Walks were lost, or walks, samples or kernels do not resolve the metric: which, why, and what to try."""


class NotFiniteError(ValueError):
    """Points, or what a decoder or metric gives there, are NaN or infinite."""


def points(z: Any, name: str = "z", *, finite: bool = True) -> Tensor:
    """Return z if it is a floating-point tensor of points (..., d), finite unless that does not matter, else raise."""
    if not isinstance(z, Tensor):
        kind = type(z).__name__
        raise TypeError(f"`{name}` is a {kind}: give a torch tensor of points (..., d), e.g. torch.as_tensor({name}).")
    if z.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`{name}` has dtype {_dtype(z)}: points are floating-point, float32 or float64; use {name}.float() or "
            ".double()."
        )
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"`{name}` has shape {_shape(z)}: points have shape (..., d), the coordinate last.")
    if torch.is_inference_mode_enabled():
        raise ValueError(f"`{name}` came in torch.inference_mode, where nothing has derivatives: use torch.no_grad.")
    if z.dtype == torch.float32 and torch.is_autocast_enabled(z.device.type):
        raise ValueError(
            f"`{name}` came in torch.autocast, which would leave distances two or three digits: call outside of it, or "
            f"in torch.autocast('{z.device.type}', enabled=False)."
        )
    if finite:
        all_finite(z, f"`{name}`", "remove or replace them")
    return z.clone() if z.is_inference() else z


def all_finite(x: Tensor, what: str, remedy: str) -> Tensor:
    """Return x (..., k) if it is finite, else raise and count the points where it is not."""
    bad = ~torch.isfinite(x).all(-1).reshape(-1)
    if bad.any():
        raise NotFiniteError(
            f"{what} holds NaN or infinity at {int(bad.sum())} of {bad.numel()} points "
            f"(first: {int(bad.nonzero()[0])}): {remedy}."
        )
    return x


def same_kind(z: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Raise unless both tensors share dtype, device and last axis."""
    for what, mine, its in (("dtype", _dtype(z), _dtype(other)), ("device", str(z.device), str(other.device))):
        if mine != its:
            raise ValueError(f"`{name}` has {what} {mine} but `{other_name}` has {its}: use {name}.to({other_name}).")
    if z.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"`{name}` has latent dimension {z.shape[-1]} but `{other_name}` has {other.shape[-1]}: "
            "the last axis of both is the latent coordinate."
        )


def pairs(start: Any, end: Any) -> tuple[Tensor, Tensor]:
    """Return start and end, checked and broadcast to one shape (..., d)."""
    start, end = points(start, "start"), points(end, "end")
    same_kind(start, end, "start", "end")
    try:
        start, end = torch.broadcast_tensors(start, end)
    except RuntimeError:
        raise ValueError(
            f"`start` has shape {_shape(start)} but `end` has shape {_shape(end)}: give the same number of points, "
            f"or one of them a single point ({start.shape[-1]},)."
        ) from None
    return start, end


def tangents(z: Any, *vectors: tuple[str, Any]) -> tuple[Tensor, ...]:
    """Return z and the tangent vectors at it, checked and broadcast to one shape (..., d)."""
    z, *checked = points(z), *(points(v, name) for name, v in vectors)
    for (name, _), v in zip(vectors, checked, strict=True):
        same_kind(v, z, name, "z")
    try:
        return torch.broadcast_tensors(z, *checked)
    except RuntimeError:
        shapes = ", ".join(f"`{name}` {_shape(v)}" for name, v in vectors)
        raise ValueError(f"tangents do not fit the points: `z` {_shape(z)}, {shapes}; want equal shapes.") from None


def halves(y: Any) -> tuple[Tensor, Tensor]:
    """Return the points and the velocities (..., d) that a state (..., 2 d) of the geodesic equation stacks."""
    y = points(y, "y")
    if y.shape[-1] % 2:
        raise ValueError(f"`y` has shape {_shape(y)}: a state has shape (..., 2 d), the point and then the velocity.")
    z, v = y.chunk(2, -1)
    return z, v


def plane(z: Tensor) -> Tensor:
    """Return z if it holds points of two coordinates (..., 2), else raise."""
    if z.ndim == 0 or z.shape[-1] != 2:
        raise ValueError(f"`z` has shape {_shape(z)}: this surface has two coordinates; give points (..., 2).")
    return z


def outside(name: str, i: int, point: list[float], condition: str) -> ValueError:
    """The error for point i of some that lies outside of where a metric is defined."""
    return ValueError(f"`{name}` lies outside of where the metric is defined at point {i}, {point}: {condition}.")


def positive(value: float, name: str) -> None:
    """Raise unless value is a positive number."""
    if not value > 0:
        raise ValueError(f"`{name}` is {value}: it must be positive.")


def positive_and_finite(value: float, name: str) -> None:
    """Raise unless value is a positive number that is not infinite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"`{name}` is {value}: want a positive, finite number.")


def even_segments(n: int, most: int) -> None:
    """Raise unless a number of segments is even, 4 or more and at most `max_segments`."""
    if n % 2 or not 4 <= n <= most:
        raise ValueError(
            f"`n_segments` is {n}: it must be even, at least 4 and at most `max_segments`, which is {most}."
        )


def relative(value: float, name: str) -> None:
    """Raise unless value is a relative error: positive and below 1."""
    positive(value, name)
    if value >= 1:
        raise ValueError(f"`{name}` is {value}: it is a relative error, below 1.")


def rejected_points(z: Tensor, error: Exception) -> ValueError:
    """The error for a decoder that cannot digest a point (1, d), or several."""
    said = f"It said: {type(error).__name__}: {error}"
    if _FIXED_BATCH.search(str(error)):
        return ValueError(
            "the decoder takes batches of one size alone: export it for any, torch.export.export(decoder, (z,), "
            f"dynamic_shapes=({{0: torch.export.Dim('batch')}},)). {said}"
        )
    if len(z) > 1:
        return ValueError(
            f"the decoder takes one point but failed on a batch of shape {_shape(z)}: its first axis must be the "
            f"batch, of any size. {said}"
        )
    return ValueError(
        f"the decoder failed on a point of shape {_shape(z)}: is the latent dimension {z.shape[-1]}? {said}"
    )


def wrong_dimension(z: Tensor, dim: int, wanted_by: str = "the decoder takes") -> ValueError:
    """The error for points of another dimension than the decoder takes."""
    return ValueError(
        f"the points have latent dimension {z.shape[-1]} but {wanted_by} {dim}: the last axis is the coordinate."
    )


def wrong_result(name: str, result: Any, given: tuple[int, ...], wanted: tuple[int, ...]) -> ValueError:
    """The error for a function of points whose result has another shape than wanted."""
    found = f"shape {_shape(result)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
    return ValueError(f"`{name}` maps points {given} to {found}: want a tensor of shape {wanted}, one entry a point.")


def not_symmetric(z: Tensor, g: Tensor, i: int) -> ValueError:
    """The error for a matrix field g (n, d, d) that is not symmetric at point i of z (n, d)."""
    return ValueError(
        f"the matrix at point {i}, {z[i].tolist()}, is not symmetric: it differs from its transpose by "
        f"{float((g[i] - g[i].mT).abs().max()):.2g}. Return 0.5 * (G + G.mT)."
    )


def not_positive(z: Tensor, g: Tensor, i: int) -> ValueError:
    """The error for a matrix field g (n, d, d) that is not positive definite at point i of z (n, d)."""
    return ValueError(
        f"the matrix at point {i}, {z[i].tolist()}, is not positive definite: its smallest eigenvalue is "
        f"{float(torch.linalg.eigvalsh(g[i])[0]):.3g}. Add a floor to its diagonal, or keep points where it is."
    )


def factor_not_positive(z: list[float], factor: float) -> ValueError:
    """The error for a conformal factor that is no positive number at a point."""
    return ValueError(f"`factor` is {factor:.3g} at the point {z}: it must be positive; use exp or softplus.")


def choose_output(kind: str, choices: list[Any]) -> ValueError:
    """The error for a decoder that returns several things when none was chosen."""
    listed = f" of {', '.join(map(repr, choices))}" if choices else ""
    example = repr(choices[0]) if choices else "'mean'"
    return ValueError(
        f"the decoder returns a {kind}{listed}: say which part is the data point, e.g. "
        f"Pullback(decoder, output={example}); several, as output=('mean', 'stddev'), are stacked."
    )


def not_a_point(kind: str) -> ValueError:
    """The error for a decoder whose output holds no data points."""
    return ValueError(
        f"the decoder returns a {kind}: want a torch tensor (n, ...), or give Pullback(decoder, output=...) a function "
        "of what it returns that makes one by torch operations."
    )


def distribution(kind: str) -> ValueError:
    """The error for a decoder that returns a distribution where points are wanted."""
    return ValueError(
        f"the decoder returns a {kind}: for distances between distributions take FisherRao(decoder); to measure its "
        "mean, say, Pullback(decoder, output='mean'); several parameters, as output=('mean', 'stddev'), are stacked."
    )


def missing_output(output: Any, kind: str, choices: list[Any]) -> ValueError:
    """The error for a chosen output that is not there."""
    listed = f": it has {', '.join(map(repr, choices))}" if choices else ""
    return ValueError(f"`output` is {output!r} but the decoder returns a {kind} without it{listed}.")


def not_a_batch(shape: tuple[int, ...], n: int) -> ValueError:
    """The error for an output whose first axis is not the batch."""
    return ValueError(
        f"the decoder maps {n} points to an output of shape {shape}: the first axis must be the batch, one entry a "
        "point."
    )


def no_gradient() -> ValueError:
    """The error for a decoder whose output does not depend differentiably on z."""
    return ValueError(
        "the decoder's output carries no gradient to its input: it is detached (torch.no_grad, .detach(), numpy) or "
        "made of integers (argmax, round). Give the differentiable part, e.g. logits or probabilities."
    )


def mixed_batch(change: float) -> ValueError:
    """The error for a decoder that mixes the points of a batch."""
    return ValueError(
        f"the decoder mixes the points of a batch: one point's output changes by {change:.1e} (relative) when others "
        "are added or replaced. Batch statistics or randomness: call decoder.eval(), before it is exported or traced, "
        "too; or normalize each point alone."
    )


def contradicting_derivatives(difference: float) -> ValueError:
    """The error for a decoder with an operator whose second derivative is not that of the first."""
    return ValueError(
        f"the decoder's derivatives contradict each other by {difference:.1e} (relative): a custom operator has a "
        "backward that hides its argument (once_differentiable, .data, numpy). Write it with differentiable torch "
        "operations."
    )


def unfaithful_derivatives(difference: float) -> ValueError:
    """The error for a decoder whose values do not change as its derivative says."""
    return ValueError(
        f"the decoder's values do not follow its derivative: over a small step they differ by {difference:.1e} "
        "(relative). A part is detached (torch.no_grad, .detach()), or rounded and passed straight through (a "
        "codebook, fake quantization). Give the part that is differentiable, e.g. what comes after the codebook."
    )


def coarse_arithmetic(dtype: torch.dtype) -> ValueError:
    """The error for a decoder that computes in half precision, whatever it is given."""
    name = str(dtype).removeprefix("torch.")
    return ValueError(
        f"the decoder computes in {name} inside (torch.autocast, or a cast): that leaves too few digits to tell close "
        "points apart. Leave the cast or autocast out; weights may stay in half precision, or use decoder.float()."
    )


def no_derivative(reasons: list[str]) -> ValueError:
    """The error for a decoder that cannot be differentiated in any way."""
    return ValueError(
        "the decoder cannot be differentiated: an operator has neither a forward nor a second derivative. Replace it "
        f"by one that has (torch.cdist by explicit differences, say). torch says: {'; '.join(dict.fromkeys(reasons))}"
    )


def not_a_metric(metric: Any, name: str = "metric") -> TypeError:
    """The error for something that is no metric where one is wanted."""
    return TypeError(
        f"`{name}` is a {type(metric).__name__}: give a metric; a decoder is wrapped as Pullback(decoder)."
    )


def cloud(z: Any, name: str) -> Tensor:
    """Return z if it is a finite tensor of one or more points (n, d), else raise."""
    z = points(z, name)
    if z.ndim != 2 or not len(z):
        raise ValueError(f"`{name}` has shape {_shape(z)}: want one or more points (n, d); use {name}.reshape(-1, d).")
    return z


def at_least(value: Any, least: int, name: str) -> None:
    """Raise unless value is an integer that is not below the least."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"`{name}` is {value!r}: want an integer, {least} or more.")


def shard(value: tuple[int, int], on_disk: bool, resume: bool) -> None:
    """Raise unless value is one of m shares of a matrix that is written to disk and gone on with."""
    i, m = value
    if not (isinstance(i, int) and isinstance(m, int) and 0 <= i < m):
        raise ValueError(f"`shard` is {value!r}: want (i, m) with i from 0 to m - 1.")
    if not on_disk:
        raise ValueError("`shard` goes with `out`: the shares meet on disk.")
    if not resume:
        raise ValueError("`shard` does not go with resume=False, which would remove what the other shares have done.")


def enough_points(n: int, n_neighbors: int) -> None:
    """Raise unless every one of n points has that many others."""
    if n <= n_neighbors:
        raise ValueError(
            f"`codes` holds {n} points but `n_neighbors` is {n_neighbors}: give {n_neighbors + 1} points or more, or "
            f"set n_neighbors below {n}."
        )


def extended(bounds: Tensor, name: str) -> None:
    """Raise unless bounds (d, 2) have a lower and a higher end along each axis."""
    empty = (~(bounds[:, 0] < bounds[:, 1])).nonzero().reshape(-1).tolist()
    if empty:
        low, high = bounds[empty[0]].tolist()
        raise ValueError(f"`{name}` of axis {empty[0]} are {low:g} and {high:g}: want (lower, upper) in each row.")


def grid(
    bounds: Any, resolution: Any, *, least: int = 2, otherwise: str = "in more dimensions use knn_graph"
) -> tuple[int, ...]:
    """Return the number of points along each axis of a grid within bounds (d, 2), d <= 3, or raise."""
    if points(bounds, "bounds").ndim != 2 or bounds.shape[1] != 2:
        raise ValueError(f"`bounds` has shape {_shape(bounds)}: want (d, 2), the lower and upper end of each axis.")
    d = len(bounds)
    if not 1 <= d <= 3:
        raise ValueError(f"`bounds` has {d} axes: a grid has 1 to 3; {otherwise}.")
    extended(bounds, "bounds")
    shape = (resolution,) * d if isinstance(resolution, Integral) else tuple(resolution)
    if len(shape) != d or not all(isinstance(count, Integral) and int(count) >= least for count in shape):
        raise ValueError(
            f"`resolution` is {resolution!r}: want an integer, {least} or more, or {d} of them, one each axis."
        )
    return tuple(int(count) for count in shape)


def off_the_table(z: Tensor, outside: Tensor, bounds: Tensor) -> NotFiniteError:
    """The error for points z (n, d), some of them outside (n,) of the bounds (d, 2) of a table."""
    i = int(outside.nonzero()[0])
    box = " x ".join(f"[{low:.6g}, {high:.6g}]" for low, high in bounds.tolist())
    return NotFiniteError(
        f"{int(outside.sum())} of {len(z)} points lie outside of the table (first: {i}, at {_place(z[i])}; its bounds "
        f"are {box}): make a table with larger bounds, or ask the metric itself."
    )


def singular_nodes(n_singular: int, n: int) -> str:
    """The warning of a metric that is singular at some of n nodes of curves."""
    return (
        f"the metric is singular at {n_singular} of {n} sampled points: the decoder does not change in some latent "
        "direction, so that lengths in it are zero and geodesics are not unique. A dead latent dimension? Leave it out."
    )


def singular_table(n_singular: int, n: int) -> str:
    """The same of a table, which was made of regular matrices."""
    return (
        f"the table is singular at {n_singular} of {n} sampled points, between points of its grid where the metric is "
        "regular: it changes too fast there for the grid, as in a wall around the data. What lengths say there is not "
        "to be believed: give Tabulated more `resolution` or smaller `bounds`, or take the metric itself; "
        "table.error_at(points) tells how far it is off."
    )


def not_tabulated(z: Tensor, kind: str) -> NotFiniteError:
    """The error for a metric that has no Cholesky factor at a point z (d,)."""
    return NotFiniteError(
        f"the metric is {kind} at {_place(z)}: a table needs a regular one everywhere within its bounds. Make these "
        "smaller; where a latent dimension is dead, leave it out."
    )


def indices(index: Any, n: int, name: str) -> NDArray[np.int64]:
    """Return the indices of some of n points, () or (k,), or raise."""
    found = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    found = found if found.size else found.astype(np.int64)  # [] has no integers
    if found.dtype.kind not in "iu" or found.ndim > 1:
        raise ValueError(f"`{name}` is {index!r}: want the index of a point, or a list of indices.")
    if found.size and not (found.min() >= 0 and found.max() < n):
        raise ValueError(f"`{name}` reaches from {found.min()} to {found.max()}: the graph has points 0 to {n - 1}.")
    return found.astype(np.int64)


def edges(pairs: NDArray[np.int64], lengths: NDArray[np.float64], n: int) -> None:
    """Raise unless edges (m, 2) join some of n points and their lengths (m,) are finite and not negative."""
    if len(pairs) != len(lengths):
        raise ValueError(f"there are {len(pairs)} `pairs` but {len(lengths)} `lengths`: want one length an edge.")
    bad = np.nonzero(((pairs < 0) | (pairs >= n)).any(1))[0]
    if len(bad):
        raise ValueError(f"edge {bad[0]} joins points {pairs[bad[0]].tolist()}: the points are 0 to {n - 1}.")
    bad = np.nonzero(~np.isfinite(lengths) | (lengths < 0))[0]
    if len(bad):
        joined = pairs[bad[0]].tolist()
        raise ValueError(f"edge {bad[0]} ({joined}) has length {lengths[bad[0]]}: lengths are finite and not negative.")


def attributes(nodes: Iterable[tuple[Any, Any]], edges: Iterable[tuple[Any, Any, Any]]) -> None:
    """Raise unless every node of a networkx graph has a point and every edge a weight."""
    for name, held in nodes:
        if "point" not in held:
            raise ValueError(f"node {name!r} of `graph` has no attribute 'point': give its latent coordinates (d,).")
    for i, j, held in edges:
        if "weight" not in held:
            raise ValueError(f"edge {(i, j)!r} of `graph` has no attribute 'weight': give its length.")


def directed() -> ValueError:
    """The error for a networkx graph whose edges have directions."""
    return ValueError("`graph` is directed, and a distance has no direction: use graph.to_undirected().")


def no_path(i: int, j: int) -> ValueError:
    """The error for two points of a graph that no path joins."""
    return ValueError(f"no path leads from point {i} to point {j}: they lie in different parts, see components().")


def torn_graph(dropped: int, measured: int, parts: int) -> str:
    """What a warning says of a graph that lost edges or falls into parts."""
    lost = f"{dropped} of {measured} edges were dropped: the decoder is not finite on them" if dropped else ""
    torn = f"the graph falls into {parts} parts, and no path joins them: see components()" if parts > 1 else ""
    return "; ".join(filter(None, (lost, torn))) + "."


def metric_without_gradient() -> ValueError:
    """The error for a metric that changes from point to point but does not depend differentiably on z."""
    return ValueError(
        "the metric's matrix carries no gradient to z, but changes with it: it is detached (torch.no_grad, .detach(), "
        "numpy) or looked up. Compute it by torch operations, or override christoffel."
    )


_FIXED_BATCH = re.compile(r"(size\(\)|shape)\[0\]")  # what a program that was exported without dynamic shapes says


def _dtype(z: Tensor) -> str:
    return str(z.dtype).removeprefix("torch.")


def _place(z: Tensor) -> str:
    return f"({', '.join(f'{x:.6g}' for x in z.tolist())})"


def _shape(z: Tensor) -> str:
    return str(tuple(z.shape))
