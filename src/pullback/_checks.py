"""The one door: what comes in is looked at here, once, and every error text lives here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm


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


def positive(value: float, name: str) -> None:
    """Raise unless value is a positive number."""
    if not value > 0:
        raise ValueError(f"`{name}` is {value}: it must be positive.")


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


def evaluation_mode(decoder: Callable[..., Any]) -> bool:
    """Refuse a module in training mode whose output is random, depends on the batch, or changes from call to call.

    Returns whether anything that is not known to do so is in training mode.
    """
    training = False
    for name, module in _modules(decoder):
        training |= module.training
        effect = _effect_of_training(module) if module.training else None
        if effect is not None:
            raise ValueError(
                f"the decoder is in training mode and holds {type(module).__name__} ('{name}'): its output would "
                f"{effect}. Call decoder.eval() first."
            )
    return training


def _effect_of_training(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "depend on the whole batch"
    if isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU):
        return "be random"
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0:
        return "be random"
    if getattr(module, "track_running_stats", False) or isinstance(module, _SpectralNorm):
        return "change its running statistics"
    return None


def _modules(decoder: Callable[..., Any]) -> Iterator[tuple[str, nn.Module]]:
    """The modules in a decoder, also when it is a method of one."""
    owner = getattr(decoder, "__self__", decoder)
    if isinstance(owner, nn.Module):
        yield from owner.named_modules()


def fits_decoder(z: Tensor, decoder: Callable[..., Any]) -> None:
    """Raise when points and the decoder's weights differ in dtype or device."""
    tensors = (w for _, module in _modules(decoder) for w in (*module.parameters(False), *module.buffers(False)))
    weight = next((w for w in tensors if w.is_floating_point()), None)
    if weight is None:
        return
    if weight.device != z.device:
        raise ValueError(
            f"the points are on {z.device} but the decoder is on {weight.device}: use z.to('{weight.device}') "
            f"or decoder.to('{z.device}')."
        )
    if weight.dtype != z.dtype:
        raise ValueError(
            f"the points have dtype {_dtype(z)} but the decoder has {_dtype(weight)}: use z.to(torch.{_dtype(weight)}) "
            f"or decoder.to(torch.{_dtype(z)})."
        )


def rejected_points(z: Tensor, error: Exception) -> ValueError:
    """The error for a decoder that cannot digest a point (1, d)."""
    return ValueError(
        f"the decoder failed on a point of shape {_shape(z)}: is the latent dimension {z.shape[-1]}? "
        f"It said: {type(error).__name__}: {error}"
    )


def wrong_dimension(z: Tensor, dim: int) -> ValueError:
    """The error for points of another dimension than the decoder takes."""
    return ValueError(
        f"the points have latent dimension {z.shape[-1]} but the decoder takes {dim}: the last axis is the coordinate."
    )


def choose_output(kind: str, choices: list[Any]) -> ValueError:
    """The error for a decoder that returns several things when none was chosen."""
    listed = f" of {', '.join(map(repr, choices))}" if choices else ""
    example = repr(choices[0]) if choices else "'mean'"
    return ValueError(
        f"the decoder returns a {kind}{listed}: say which part is the data point, e.g. "
        f"Pullback(decoder, output={example}); several, as output=('mean', 'stddev'), are stacked."
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
        "are replaced. Batch statistics or randomness: call decoder.eval(), or normalize each point alone."
    )


def contradicting_derivatives(difference: float) -> ValueError:
    """The error for a decoder with an operator whose second derivative is not that of the first."""
    return ValueError(
        f"the decoder's derivatives contradict each other by {difference:.1e} (relative): a custom operator has a "
        "backward that hides its argument (once_differentiable, .data, numpy). Write it with differentiable torch "
        "operations."
    )


def no_derivative(reasons: list[str]) -> ValueError:
    """The error for a decoder that cannot be differentiated in any way."""
    return ValueError(
        "the decoder cannot be differentiated: an operator has neither a forward nor a second derivative. Replace it "
        f"by one that has (torch.cdist by explicit differences, say). torch says: {'; '.join(dict.fromkeys(reasons))}"
    )


def not_a_metric(metric: Any) -> TypeError:
    """The error for something that is no metric where one is wanted."""
    return TypeError(
        f"`metric` is a {type(metric).__name__}: give a metric; a decoder is wrapped as Pullback(decoder)."
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


def enough_points(n: int, n_neighbors: int) -> None:
    """Raise unless every one of n points has that many others."""
    if n <= n_neighbors:
        raise ValueError(
            f"`codes` holds {n} points but `n_neighbors` is {n_neighbors}: give {n_neighbors + 1} points or more, or "
            f"set n_neighbors below {n}."
        )


def grid(bounds: Any, resolution: Any) -> tuple[int, ...]:
    """Return the number of points along each axis of a grid within bounds (d, 2), d <= 3, or raise."""
    if points(bounds, "bounds").ndim != 2 or bounds.shape[1] != 2:
        raise ValueError(f"`bounds` has shape {_shape(bounds)}: want (d, 2), the lower and upper end of each axis.")
    d = len(bounds)
    if not 1 <= d <= 3:
        raise ValueError(f"`bounds` has {d} axes: a grid has 1 to 3; in more dimensions use knn_graph.")
    empty = (bounds[:, 0] >= bounds[:, 1]).nonzero().reshape(-1).tolist()
    if empty:
        low, high = bounds[empty[0]].tolist()
        raise ValueError(f"`bounds` of axis {empty[0]} are {low:g} and {high:g}: want (lower, upper) in each row.")
    shape = (resolution,) * d if isinstance(resolution, Integral) else tuple(resolution)
    if len(shape) != d or not all(isinstance(count, Integral) and int(count) >= 2 for count in shape):
        raise ValueError(f"`resolution` is {resolution!r}: want an integer, 2 or more, or {d} of them, one each axis.")
    return tuple(int(count) for count in shape)


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


def not_immersed(metric: Any, solver: str) -> ValueError:
    """The error for a solver that needs a map into a Euclidean space."""
    return ValueError(
        f"{solver} takes second derivatives of a feature map, and a {type(metric).__name__} has none: use Relax() or "
        "Georce(), or give the metric as Pullback(map into a Euclidean space)."
    )


def metric_without_gradient() -> ValueError:
    """The error for a metric that changes from point to point but does not depend differentiably on z."""
    return ValueError(
        "the metric's matrix carries no gradient to z, but changes with it: it is detached (torch.no_grad, .detach(), "
        "numpy) or looked up. Compute it by torch operations, or override christoffel."
    )


def _dtype(z: Tensor) -> str:
    return str(z.dtype).removeprefix("torch.")


def _shape(z: Tensor) -> str:
    return str(tuple(z.shape))
