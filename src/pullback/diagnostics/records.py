"""What a check of a latent geometry finds, as records of plain numbers that JSON can hold."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

_SHARES = (0.05, 0.5, 0.95)


class Verdict(Enum):
    """What the geometry is on these data, in a word."""

    FLAT = "flat"
    NEARLY_FLAT = "nearly flat"
    CURVED = "curved"
    STRONGLY_CURVED = "strongly curved"
    NOT_BELIEVABLE = "cannot be believed"


class Off(Enum):
    """What the metric does away from the data; the value is the sentence that says it."""

    GROWS = "grows away from the data"
    SATURATES = "grows, then stays on a plateau"
    RING = "rises, then falls: the data stand inside of a ring or wall with an outer side"
    FLAT = "stays flat: off the data it is what it is on them"
    SHRINKS = "shrinks away from the data"
    UNKNOWN = "is not defined off the data, so that nothing can be said of it there"


@dataclass(frozen=True)
class Spread:
    """The 5%, 50% and 95% quantiles of some numbers; NaN of none."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Quantiles of values (n,), none of them NaN; each is one of the values, so that infinite ones do no harm."""
        if not len(values):
            return cls(math.nan, math.nan, math.nan)
        shares = torch.tensor(_SHARES, dtype=torch.float64, device=values.device)
        return cls(*values.double().quantile(shares, interpolation="nearest").tolist())

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Direction:
    """A latent direction that the decoder hardly follows, or not at all.

    Attributes:
        name: In words: ``z_1``, or its coordinates.
        vector: Of unit length (d,), in the coordinates of the codes.
        share: How far the decoder goes along it, as a share of the way along the strongest direction, in units of the
            standard deviation of the codes; zero for a dead one.
    """

    name: str
    vector: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class Spectrum:
    """The metric matrix at some points.

    Attributes:
        where: Which points, in words.
        n_points: How many.
        n_undefined: At how many of these there is no finite, symmetric, positive semi-definite matrix.
        first_undefined: The first of them, as a row of what was given; None if there is none.
        rank: The smallest numerical rank.
        n_deficient: At how many points the rank is below d.
        condition: Largest over smallest eigenvalue.
        log_volume: 1/2 log det G, in nats.
        stretch: How many data units a latent unit step gains along the k-th principal direction, the largest first: the
            roots of the eigenvalues, d of them.
    """

    where: str
    n_points: int
    n_undefined: int
    first_undefined: int | None
    rank: int
    n_deficient: int
    condition: Spread
    log_volume: Spread
    stretch: tuple[Spread, ...]


@dataclass(frozen=True)
class Shell:
    """Points at one distance from the data.

    Attributes:
        distance: To the nearest code, a latent length.
        n_points: How many have a metric; with fewer than half of those drawn the shell does not count.
        log_stretch: The log volume over the number of dimensions: the logarithm of what a unit step gains, in nats.
        above: Share of the points where that is more than the median on the data.
    """

    distance: float
    n_points: int
    log_stretch: Spread
    above: float


@dataclass(frozen=True)
class Growth:
    """The metric against the distance to the data.

    Attributes:
        verdict: An :class:`Off`.
        on_data: The log stretch at the codes.
        shells: From the inside out, up to the `reach`.
        spread: Root mean square distance of the codes to their mean, the unit of the reach.
        spacing: Median distance of a code to the next one.
        rise: By which factor lengths are larger on the highest shell than on the data (medians).
        peak: The distance of that shell.
        fall: By which factor they are smaller on the last shell than on the highest.
    """

    verdict: Off
    on_data: Spread
    shells: tuple[Shell, ...]
    spread: float
    spacing: float
    rise: float
    peak: float
    fall: float


@dataclass(frozen=True)
class Variance:
    """Whether uncertainty is in the metric, and how much of it.

    Attributes:
        kind: ``"gaussian"`` (a decoder with a standard deviation), ``"ensemble"`` (its members' disagreement),
            ``"likelihood"`` (Fisher-Rao), ``"data"`` (local variance), ``"none"`` (a plain decoder: nobody knows what
            its outputs are) or ``"unknown"`` (a metric, or a choice of outputs, of the user's own).
        on_data: Its share of the trace of G at the codes, a median from 0 to 1; None where it cannot be told apart.
        off_data: The same on the last shell.
        family: Of a likelihood, such as ``"Bernoulli"``; else empty.
    """

    kind: str
    on_data: float | None
    off_data: float | None
    family: str


@dataclass(frozen=True)
class Isometry:
    """How far the metric is from simpler ones, over codes and principal directions.

    Attributes:
        scale: What a latent unit step gains in the mean.
        defect: Relative standard deviation of that: 0 where G = c I.
        constant_defect: The same after the mean of G is made the identity: 0 where G is constant.
    """

    scale: float
    defect: float
    constant_defect: float


@dataclass(frozen=True)
class Lines:
    """Straight latent lines against geodesics, over random pairs of codes.

    Attributes:
        n_pairs: How many.
        n_used: Those with a ratio: the geodesic converged and both lengths are positive.
        statuses: How many geodesics ended in which way, by the name of the :class:`~pullback.Status`.
        ratio: Riemannian length of the straight line over that of the geodesic.
        mean, worst: Of that ratio.
        interval: 95% bootstrap interval of its median, over pairs; None with fewer than ten.
        disjoint: Whether no code is in two pairs; otherwise the interval is a little too narrow.
        n_shorter: Straight lines that are shorter than the geodesic by more than the errors.
        line_off, geodesic_off: Share of the points along lines and geodesics that are farther from every code than 99%
            of the codes are from each other.
        ratios: All of them (n_used,).
    """

    n_pairs: int
    n_used: int
    statuses: dict[str, int]
    ratio: Spread
    mean: float
    worst: float
    interval: tuple[float, float] | None
    disjoint: bool
    n_shorter: int
    line_off: float
    geodesic_off: float
    ratios: tuple[float, ...]

    @property
    def n_failed(self) -> int:
        """Pairs without a ratio."""
        return self.n_pairs - self.n_used


@dataclass(frozen=True)
class Findings:
    """What was measured, before it is judged.

    Attributes:
        metric: The kind of metric.
        n_codes: How many codes were given.
        dim: d.
        dtype: Of the codes: what was computed in.
        dead: Latent directions that the decoder does not follow at any code.
        weak: Those that it follows for less than 1% of the strongest one, in units of the codes' spread.
        unused: Latent coordinates in which the codes hardly differ.
        on_data: The metric at the codes, or at some of them.
        in_box: At random points of the box around the codes, a quarter larger.
        growth: Against the distance to the data.
        variance: Whether it is modeled.
        creases: What makes the decoder rough, in words; empty when it is smooth, None when that cannot be told.
        isometry: The defects.
        lines: Straight lines against geodesics.
        rounding: Of an eigenvalue, relative to the largest one.
    """

    metric: str
    n_codes: int
    dim: int
    dtype: str
    dead: tuple[Direction, ...]
    weak: tuple[Direction, ...]
    unused: tuple[int, ...]
    on_data: Spectrum
    in_box: Spectrum
    growth: Growth
    variance: Variance
    creases: str | None
    isometry: Isometry
    lines: Lines
    rounding: float


@dataclass(frozen=True)
class GeometryReport(Findings):
    """What :func:`check_geometry` found; ``print`` shows it to people, :meth:`to_dict` to programs.

    Besides what was measured, which stands in :class:`Findings`:

    Attributes:
        verdict: A :class:`Verdict`.
        sentence: The same with its numbers, or with the reason.
        advice: What is wrong and what to do about it, a line each; empty when nothing is.
    """

    verdict: Verdict
    sentence: str
    advice: tuple[str, ...]

    @property
    def believable(self) -> bool:
        """Whether the geometry means something on these data."""
        return self.verdict is not Verdict.NOT_BELIEVABLE

    def __str__(self) -> str:
        from pullback.diagnostics.text import report_text  # which needs these records

        return report_text(self)

    def to_dict(self) -> dict[str, Any]:
        """All fields as dictionaries, lists, strings and finite numbers; None for what is infinite or unknown."""
        found = dataclasses.asdict(self)
        first = {name: found.pop(name) for name in ("verdict", "sentence", "advice")}
        return _plain(first | found)

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(held) for held in value]
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, Off):
        return value.name.lower()
    return None if isinstance(value, float) and not math.isfinite(value) else value
