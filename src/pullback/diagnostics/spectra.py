"""The metric's matrices at many points: ranks, conditions, volumes, dead directions, defects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import NotFiniteError
from pullback.diagnostics.records import Direction, Isometry, Spectrum, Spread
from pullback.geodesics.halves import by_halves
from pullback.metrics import Metric
from pullback.types import Matrices, Points

_ROUNDING = 10.0  # times d, in units of the dtype's rounding: eigenvalues below are zero
_WEAK = 0.01  # of the way along the strongest direction
_UNUSED = 1e-3  # of the largest standard deviation of the codes in a coordinate
_AXIS = 0.95  # of a direction that lies along one axis, so that it has the name of that


@dataclass(frozen=True)
class Sampled:
    """A metric at points where it is defined.

    Attributes:
        z: The points (n, d).
        g: The matrices (n, d, d), float64.
        eigenvalues: Of these (n, d), ascending and not negative.
        rank: Numerical ranks (n,).
        log_volume: (n,), -inf where the rank is below d.
        undefined: Rows of what was asked for that have no metric.
        asked: How many were asked for.
        rounding: Relative rounding of an eigenvalue.
        error: What was raised first, if anything was.
    """

    z: Points
    g: Matrices
    eigenvalues: Tensor
    rank: Tensor
    log_volume: Tensor
    undefined: list[int]
    asked: int
    rounding: float
    error: Exception | None

    def log_stretch(self, rank: int) -> Tensor:
        """The log volume over the number of dimensions (n,), in the `rank` strongest directions alone."""
        if rank == self.z.shape[1]:
            return self.log_volume / rank
        return 0.5 * self.eigenvalues[:, self.z.shape[1] - rank :].log().mean(-1)

    def summary(self, where: str, rows: Tensor | None = None) -> Spectrum:
        """For the report; undefined points are named by the rows that were taken, if only some were."""
        first = self.undefined[0] if self.undefined else None
        d, regular = self.z.shape[1], self.rank == self.z.shape[1]
        quotient = self.eigenvalues[:, -1] / self.eigenvalues[:, 0]
        return Spectrum(
            where=where,
            n_points=self.asked,
            n_undefined=len(self.undefined),
            first_undefined=first if first is None or rows is None else int(rows[first]),
            rank=int(self.rank.min()) if len(self.rank) else 0,
            n_deficient=int((~regular).sum()),
            condition=Spread.of(torch.where(regular, quotient, torch.inf)),
            log_volume=Spread.of(self.log_volume),
            stretch=tuple(Spread.of(self.eigenvalues[:, d - 1 - k].sqrt()) for k in range(d)),
        )


def sampled(metric: Metric, z: Points) -> Sampled:
    """The metric at points (n, d), without those where it raises an error or is no metric."""
    where, found, error = _matrices(metric, z)
    kept = [some for some, g in zip(where, found, strict=True) if g is not None]
    at = torch.cat(kept) if kept else torch.arange(0, device=z.device)
    matrices = [g.detach().double() for g in found if g is not None]
    g = torch.cat(matrices) if matrices else z.new_zeros(0, z.shape[1], z.shape[1], dtype=torch.float64)
    rounding = _ROUNDING * z.shape[1] * torch.finfo(z.dtype).eps
    g, finite = 0.5 * (g + g.mT), torch.isfinite(g).all(-1).all(-1)
    g, at = g[finite], at[finite]
    eigenvalues = torch.linalg.eigvalsh(g)
    positive = eigenvalues[:, :1] >= -rounding * eigenvalues[:, -1:]
    g, at, eigenvalues = g[positive[:, 0]], at[positive[:, 0]], eigenvalues[positive[:, 0]].clamp_min(0)
    rank, log_volume = _rank_and_volume(g, rounding)
    missing = torch.ones(len(z), dtype=torch.bool, device=z.device)
    missing[at] = False
    undefined = missing.nonzero()[:, 0].tolist()
    return Sampled(z[at], g, eigenvalues, rank, log_volume, undefined, len(z), rounding, error)


def dead_and_weak(data: Sampled, codes: Points) -> tuple[tuple[Direction, ...], tuple[Direction, ...]]:
    """Latent directions that the decoder does not follow at any code, and those that it hardly follows."""
    trace = data.g.diagonal(dim1=-2, dim2=-1).sum(-1)
    pooled = (data.g / trace.clamp_min(torch.finfo(torch.float64).tiny)[:, None, None]).mean(0)
    d, diagonal = len(pooled), pooled.diagonal()
    still = diagonal <= data.rounding**2 * diagonal.max()  # exactly zero, or rounding of the derivative
    vectors = list(torch.eye(d, dtype=pooled.dtype, device=pooled.device)[still])
    scale = torch.where(still, 0, diagonal.clamp_min(torch.finfo(pooled.dtype).tiny).rsqrt())
    values, frame = torch.linalg.eigh(scale[:, None] * pooled * scale + torch.diag(still.double()))
    vectors += list((scale[:, None] * frame).mT[values <= data.rounding])
    std = codes.double().std(0, correction=0)
    unit = torch.where(std > 0, std, std.max())
    dead = tuple(_direction(v, 0.0, v / unit) for v in vectors)
    values, frame = torch.linalg.eigh(unit[:, None] * pooled * unit)
    share = (values.clamp_min(0) / values[-1].clamp_min(torch.finfo(values.dtype).tiny)).sqrt()
    hardly = [i for i in range(len(dead), d) if share[i] < _WEAK]
    return dead, tuple(_direction(unit * frame[:, i], float(share[i]), frame[:, i]) for i in hardly)


def unused(codes: Points) -> tuple[int, ...]:
    """Coordinates in which codes (n, d) hardly differ."""
    std = codes.double().std(0, correction=0)
    return tuple((std < _UNUSED * std.max()).nonzero()[:, 0].tolist())


def isometry(data: Sampled) -> Isometry:
    """How far the metric at the codes is from a multiple of the identity, and from a constant matrix."""
    stretch = data.eigenvalues.sqrt()
    values, frame = torch.linalg.eigh(data.g.mean(0))
    live = values > data.rounding * values[-1]
    half = frame[:, live] * values[live].rsqrt()
    whitened = torch.linalg.eigvalsh(half.mT @ data.g @ half).clamp_min(0).sqrt()
    return Isometry(float(stretch.mean()), _variation(stretch), _variation(whitened))


def _variation(x: Tensor) -> float:
    """The relative standard deviation of all entries."""
    return float(x.std(correction=0) / x.mean()) if len(x) and float(x.mean()) > 0 else 0.0


def _matrices(metric: Metric, z: Points) -> tuple[list[Tensor], list[Tensor | None], Exception | None]:
    """Matrices at points (n, d) by their rows, None for rows that raise; and the first error."""
    rows = torch.arange(len(z), device=z.device)
    try:
        return [rows], [metric.matrix(z)], None
    except NotFiniteError as error:  # features tell at once where that is
        reason = error
    finite: list[Tensor] = []
    with torch.no_grad():
        for some in rows.split(metric.points_at_once(z)):
            finite.append(some[torch.isfinite(metric.features(z[some])).all(-1)])
    where, found, _ = by_halves(lambda some: metric.matrix(z[some]), torch.cat(finite))
    return where, found, reason


def _rank_and_volume(g: Matrices, rounding: float) -> tuple[Tensor, Tensor]:
    """Numerical ranks and log volumes of matrices (n, d, d): (n,), (n,).

    Coordinates are first brought to one scale: a short axis is not a singular one, unless it is short as rounding is.
    """
    d, diagonal = g.shape[-1], g.diagonal(dim1=-2, dim2=-1)
    live = diagonal > rounding**2 * diagonal.amax(-1, keepdim=True)
    scale = torch.where(live, diagonal.clamp_min(torch.finfo(g.dtype).tiny).rsqrt(), 0)
    values = torch.linalg.eigvalsh(scale[:, :, None] * g * scale[:, None, :])
    rank = (values > rounding).sum(-1)
    volume = 0.5 * (values.clamp_min(torch.finfo(g.dtype).tiny).log() + diagonal.log()).sum(-1)
    return rank, torch.where(rank == d, volume, -torch.inf)


def _direction(v: Tensor, share: float, shown: Tensor) -> Direction:
    """A direction by a vector (d,); `shown`, in units in which coordinates compare, decides whether it is an axis."""
    v, shown = v / v.norm(), shown / shown.norm()
    axis = int(shown.abs().argmax())
    sign = torch.sign(v[axis])
    numbers = tuple((sign * v).tolist())
    if float(shown[axis].abs()) >= _AXIS:
        return Direction(f"z_{axis + 1}", numbers, share)
    strongest = sorted(sorted(range(len(v)), key=lambda i: -abs(numbers[i]))[:_SHOWN])
    terms = " ".join(f"{numbers[i]:+.2g} z_{i + 1}" for i in strongest)
    return Direction(f"({terms}{' ...' if len(v) > _SHOWN else ''})", numbers, share)


_SHOWN = 4  # coordinates of a direction
