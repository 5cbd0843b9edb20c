"""Error texts and checks of statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pullback._checks import _dtype, _place, _shape, extended


def weights(value: Any, n: int) -> None:
    """Raise unless value is a tensor of n finite weights that are not negative, nor all zero."""
    if not isinstance(value, Tensor) or value.shape != (n,):
        found = f"shape {_shape(value)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"`weights` has {found}: want a tensor ({n},), one weight a code.")
    bad = ~(torch.isfinite(value) & (value >= 0))
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(f"`weights` is {value[i].item():g} at code {i}: weights are finite and not negative.")
    if not (value > 0).any():
        raise ValueError("`weights` are all zero: one or more must be positive.")


def distances(matrix: NDArray[np.float64]) -> None:
    """Raise unless a matrix (n, n) holds distances: finite, not negative, symmetric."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`X` has shape {matrix.shape}: want the distances between all pairs, (n, n).")
    bad = np.argwhere(~np.isfinite(matrix) | (matrix < 0))
    if len(bad):
        i, j = bad[0].tolist()
        raise ValueError(
            f"{len(bad)} distances are infinite, NaN or negative (first: between points {i} and {j}): no path joins "
            "them, or no geodesic was found. Leave these points out, or use a graph that joins them."
        )
    gap = np.abs(matrix - matrix.T).max(initial=0)
    if gap > 1e-3 * matrix.max(initial=0):
        raise ValueError(f"the distances differ by up to {gap:.2g} in both directions: use 0.5 * (D + D.T).")


def power(value: Any) -> None:
    """Raise unless value is 1 or 2."""
    if value not in (1, 2):
        raise ValueError(f"`power` is {value!r}: want 2 for means, of squared distances, or 1 for medians.")


def box(bounds: Any, like: Tensor, name: str = "bounds") -> Tensor:
    """Return bounds (d, 2) of a box for points like these (..., d), with their dtype and device, or raise."""
    d = like.shape[-1]
    if not isinstance(bounds, Tensor) or bounds.shape != (d, 2):
        found = f"has shape {_shape(bounds)}" if isinstance(bounds, Tensor) else f"is a {type(bounds).__name__}"
        raise ValueError(f"`{name}` {found}: want a tensor ({d}, 2), the lower and upper end of each axis.")
    extended(bounds, name)
    return bounds.detach().to(like)


def no_domain(domain: Any) -> ValueError:
    """The error for something that is neither a box nor a function."""
    return ValueError(
        f"`domain` is a {type(domain).__name__}: want a tensor (d, 2), the lower and upper end of each axis, or a "
        "function of points (n, d) that is True (n,) inside."
    )


def no_region(found: Any, n: int) -> ValueError:
    """The error for a function that does not say of each of n points whether it is inside."""
    what = f"{_dtype(found)} {_shape(found)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    return ValueError(f"`domain` gave {what} for {n} points: want a bool tensor ({n},), True inside.")


def outside_domain(start: Tensor, outside: Tensor) -> ValueError:
    """The error for walks whose starts (n, d) are outside (n,) of their domain."""
    i = int(outside.nonzero()[0])
    return ValueError(
        f"`start` lies outside of `domain` for {int(outside.sum())} of {len(start)} walks (first: {i}, at "
        f"{_place(start[i])}): start inside, or make the domain larger."
    )


def singular_start(start: Tensor, bad: Tensor) -> ValueError:
    """The error for walks whose starts (n, d) have a singular metric where bad (n,)."""
    i = int(bad.nonzero()[0])
    return ValueError(
        f"the metric is singular, or not finite, at `start` for {int(bad.sum())} of {len(start)} walks (first: {i}, at "
        f"{_place(start[i])}): no step has a size there; start elsewhere."
    )


def wrong_distances(distances: Tensor, m: int, n: int) -> ValueError:
    """The error for distances that are not those from m points to n codes."""
    return ValueError(
        f"`distances` has shape {_shape(distances)} but there are {m} points and {n} codes: want "
        f"({m}, {n}), one row a point."
    )


def enough_codes(n: int, least: int) -> None:
    """Raise unless there are codes enough."""
    if n < least:
        raise ValueError(f"`codes` holds {n} points: want {least} or more.")


def coinciding(name: str) -> ValueError:
    """The error for points that are all one."""
    return ValueError(f"all `{name}` lie at distance zero from each other: nothing can be told from them.")


def codes_outside(codes: Tensor, outside: Tensor) -> ValueError:
    """The error for codes (n, d) that are outside (n,) of a box."""
    i = int(outside.nonzero()[0])
    return ValueError(
        f"{int(outside.sum())} of {len(codes)} codes lie outside of `bounds` (first: {i}, at {_place(codes[i])}): "
        "make these larger, or leave those codes out."
    )


def no_volume() -> ValueError:
    """The error for a box in which the metric is nowhere regular."""
    return ValueError("the metric is singular, or not finite, everywhere in `bounds`: there is no volume to draw from.")


def too_few_accepted(n: int, accepted: int, proposed: int) -> ValueError:
    """The error for a box whose volume lies in so few places that rejection finds no end."""
    return ValueError(
        f"{accepted} of {proposed} proposals were accepted where {n} points were wanted: nearly all volume of `bounds` "
        "lies in too few places. Make them smaller."
    )


def singular_mean(z: list[float]) -> ValueError:
    """The error for a mean at which the metric has no frame."""
    return ValueError(
        f"the metric is singular, or not finite, at the mean {z}: no frame exists there. Give other `init` points, or "
        "leave out a latent dimension that is dead."
    )


def no_normalizer(z: list[float]) -> ValueError:
    """The error for a mean from which no geodesic finds volume."""
    return ValueError(
        f"no geodesic cast from the mean {z} has an end with a volume: the distribution has no normalizer. Is the mean "
        "in the region where the metric is regular, and the region larger than the spread of the data?"
    )


def no_logs(n: int) -> ValueError:
    """The error for means from which no geodesic leads to any of n codes."""
    return ValueError(f"no geodesic was found from any mean to any of {n} codes: try other `init`, or other `starts`.")


def enough_for(n: int, k: int, name: str, what: str = "codes") -> None:
    """Raise unless n codes are enough for k of something."""
    if n < k:
        raise ValueError(f"there are {n} {what} but `{name}` is {k}: give {k} {what} or more, or a smaller `{name}`.")


def wrong_init(shape: tuple[int, ...], k: int, d: int) -> ValueError:
    """The error for first means of the wrong shape."""
    return ValueError(f"`init` has shape {shape}: want ({k}, {d}), a mean for each component; or 'kmeans' or 'random'.")


def not_negative(value: float, name: str) -> None:
    """Raise unless value is a number that is not negative, nor infinite."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` is {value}: want a finite number, 0 or more.")


def one_of(value: Any, choices: tuple[str, ...], name: str) -> None:
    """Raise unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}: want {' or '.join(map(repr, choices))}.")


def wrong_scores(scores: Any, m: int) -> ValueError:
    """The error for scores that do not fit the principal geodesics."""
    found = f"has shape {_shape(scores)}" if isinstance(scores, Tensor) else f"is a {type(scores).__name__}"
    return ValueError(f"`scores` {found}: want a tensor (..., {m}), one for each of {m} directions.")


def too_many_components(n: int, d: int) -> ValueError:
    """The error for more principal geodesics than dimensions."""
    return ValueError(f"`n_components` is {n} but the codes have {d} dimensions: give {d} or less.")


def no_mean() -> ValueError:
    """The error for codes whose mean was not found."""
    return ValueError("no Frechet mean of the codes was found: give a point (d,) to look from, `mean`.")


def wrong_mean(shape: tuple[int, ...], d: int) -> ValueError:
    """The error for a point to look from that has another shape than a code."""
    return ValueError(f"`mean` has shape {shape}: want one point ({d},).")


def no_geodesic_to(rows: list[int], n: int) -> str:
    """What a warning says of points that no geodesic led to from where they are looked at."""
    shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return (
        f"no geodesic was found to {len(rows)} of {n} points ({shown}): they do not count, or have no value. They may "
        "lie off the data, or off a table; else try other `starts`."
    )
