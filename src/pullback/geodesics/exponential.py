"""The exponential map: geodesics by their start and velocity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback import _checks
from pullback.chords import root
from pullback.curves import Curve
from pullback.geodesics.integrate import Integral, integrate
from pullback.geodesics.solution import ConvergenceError, Status
from pullback.metrics import Metric
from pullback.types import Points, Tangents

_SHARE = 0.3  # of the tolerance that one step may err by
_PESSIMISM = 0.2  # the estimate is that of a fourth-order method, the solution is of fifth order
_DRIFT = 100.0  # relative change of the energy, in units of the tolerance, that no smooth decoder shows
_LEAST_DRIFT = 1e-6
_REASONS = {
    Status.CONVERGED: "converged: the geodesic reached its end",
    Status.STALLED: "blew up: steps became too small, as where a geodesic runs to infinity in finite time",
    Status.MAX_STEPS: "out of steps: try a larger max_steps, a larger tol or a shorter vector",
    Status.NOT_FINITE: "not finite: the vector is, or at the start the metric is singular or the decoder NaN",
    Status.NON_SMOOTH: "not smooth: the speed is not kept, for the geodesic equation does not see creases (ReLU)",
    Status.LEFT_DOMAIN: "left the domain: the geodesic meets points where the metric is singular or not finite",
}


@dataclass(frozen=True)
class Trajectory:
    """Geodesics by their start and velocity, and what is known about them: one entry for each vector (...).

    Attributes:
        curve: The geodesics at equal steps of their parameter; of those that failed the part that exists, at equal
            steps of that.
        end: Where they end (..., d); NaN where it was not reached.
        velocity: At the end (..., d), as a derivative by the parameter in [0, 1]; NaN where it was not reached.
        length: (...) in units of the data space, the norm of the vector; NaN where the end was not reached.
        error: (...) estimated bound of the distance of the end from the true one, in units of the data space: twice
            what the drift makes of the length, and a fifth of the steps' estimated errors, each carried on in a
            straight line.
            Right for 99 of 100 geodesics of at least four digits. NaN where the end was not reached.
        drift: (...) relative change of the squared speed from start to end, zero for exact geodesics; NaN where the end
            was not reached.
        codes: (...) position of the :class:`Status` in that enumeration.
        reached: (...) share of the parameter that was reached, 1 where nothing failed.
        evaluations: (...) of the decoder.
    """

    curve: Curve
    end: Tensor
    velocity: Tensor
    length: Tensor
    error: Tensor
    drift: Tensor
    codes: Tensor
    reached: Tensor
    evaluations: Tensor

    @property
    def status(self) -> Status | np.ndarray:
        """The status of a single geodesic, or an array of them (object dtype) of the batch shape."""
        return np.array(list(Status), dtype=object)[self.codes.cpu().numpy()]

    @property
    def converged(self) -> Tensor:
        """Which geodesics reached their end: bool (...)."""
        return self.codes == Status.CONVERGED.code

    @property
    def message(self) -> str:
        """How the whole went, in words: which geodesics failed, why, and what to try."""
        return describe(self.codes, "geodesics reached their end")

    def raise_for_status(self) -> None:
        """Raise :class:`ConvergenceError` unless every geodesic reached its end."""
        if not self.converged.all():
            raise ConvergenceError(self.message)

    def __getitem__(self, index: Any) -> Trajectory:
        """The geodesics at an index of the batch."""
        return Trajectory(*(getattr(self, field.name)[index] for field in fields(self)))

    def __repr__(self) -> str:
        return f"Trajectory({self.curve!r}: {self.message})"


def exp(
    metric: Metric,
    z: Points,
    v: Tangents,
    *,
    tol: float = 1e-8,
    max_steps: int = 10_000,
    n_segments: int = 64,
    progress: bool = False,
) -> Trajectory:
    r"""The exponential map: the geodesics that start at z with velocity v, followed for one unit of time.

    .. math:: \ddot c = -\Gamma_c(\dot c, \dot c), \quad c(0) = z, \quad \dot c(0) = v, \quad \exp_z(v) = c(1)

    Each geodesic is integrated with steps of its own, by the method of Dormand and Prince (1980), order 5.

    Args:
        metric: The metric; smooth, for a crease of it goes unseen.
        z: Points (..., d).
        v: Tangent vectors (..., d) at them; both broadcast, so that one point may have many vectors.
        tol: Error of the end, relative to the length of the curve in latent space; and of the speed.
        max_steps: Steps that a geodesic may take.
        n_segments: Of the curves that are returned.
        progress: Whether to show a bar.

    Returns:
        Curves, ends, lengths, errors and a status for each vector. A geodesic that leaves the region where the metric
        is regular, or runs to infinity, has NaN for an end, a status that says why, and the part of the curve that
        exists.
        Nothing carries gradients.

    Raises:
        ValueError: When points and vectors do not fit each other or the decoder.

    Warns:
        GeodesicWarning: When some geodesic did not reach its end; it lists which, why and what to try.

    Cost:
        6 d + 48 decoder evaluations a step: see :meth:`Metric.christoffel`.

    Example:
        >>> import pullback as pb
        >>> sphere = pb.Pullback(pb.surfaces.Sphere())  # of radius 1; z = 0 is the pole, |z| = 1 the equator
        >>> quarter = torch.tensor([torch.pi / 4, 0.0], dtype=torch.float64)
        >>> [round(x, 6) for x in exp(sphere, torch.zeros(2, dtype=torch.float64), quarter).end.tolist()]
        [1.0, 0.0]
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    lost = ~torch.isfinite(v).all(-1) if isinstance(v, Tensor) else None  # as logarithms are that failed
    if lost is not None and lost.any():
        v = v.masked_fill(lost[..., None], 0)
    z, v = _checks.tangents(z, ("v", v))
    _checks.relative(tol, "tol")
    _checks.positive(max_steps, "max_steps")
    _checks.positive(n_segments, "n_segments")
    metric.points_at_once(z)  # the decoder is looked at
    batch, d = z.shape[:-1], z.shape[-1]
    z, v = z.detach().reshape(-1, d), v.detach().reshape(-1, d)
    tols = torch.full_like(z[:, 0], tol)
    trajectory = launch(metric, z, v, tol=tols, max_steps=max_steps, n_segments=n_segments, progress=progress)
    if lost is not None and lost.any():
        _lose(trajectory, lost.expand(batch).reshape(-1))
    shaped = (t.reshape((*batch, *t.shape[1:])) for t in _tensors(trajectory))
    trajectory = Trajectory(Curve(trajectory.curve.nodes.reshape((*batch, n_segments + 1, d))), *shaped)
    if not trajectory.converged.all():
        warnings.warn(trajectory.message, _checks.GeodesicWarning, stacklevel=2)
    return trajectory


def launch(
    metric: Metric, z: Tensor, v: Tensor, *, tol: Tensor, max_steps: int, n_segments: int, progress: bool = False
) -> Trajectory:
    """`exp` of flat batches z, v (B, d), each with its own tol (B,), without checks or warnings."""
    moving = (v != 0).any(-1)
    way = follow(metric, z[moving], v[moving], tol=tol[moving], max_steps=max_steps, progress=progress)
    d, cost = z.shape[-1], metric.christoffel_cost(z.shape[-1])
    arrived = way.codes == Status.CONVERGED.code
    state = torch.where(arrived[:, None], way.state, torch.nan)
    share = torch.arange(n_segments + 1, dtype=z.dtype, device=z.device) / n_segments
    nodes = way.sample(way.time[:, None] * share) if len(arrived) else z.new_zeros(0, n_segments + 1, d)
    nodes[:, 0] = z[moving]
    nodes[:, -1] = way.state[:, :d]
    square, later, local = (torch.full_like(way.time, torch.nan) for _ in range(3))
    thrown = v[moving][arrived]
    square[arrived] = metric.inner(z[moving][arrived], thrown, thrown).detach()
    end, velocity = state[arrived].split(d, -1)
    later[arrived], local[arrived] = _at_the_end(metric, end, velocity, way.error[arrived, :d])

    length, drift = root(square), (later / square - 1).abs()
    creased = drift > (_DRIFT * tol[moving]).clamp_min(max(_LEAST_DRIFT, 1e4 * torch.finfo(z.dtype).eps))
    codes = torch.where(creased, Status.NON_SMOOTH.code, way.codes)
    state = torch.where(creased[:, None], torch.nan, state)
    length = length.masked_fill(creased, torch.nan)

    def filled(rest: Tensor, part: Tensor) -> Tensor:
        rest = rest.clone()
        rest[moving] = part
        return rest

    zero, none = torch.zeros_like(z[:, 0]), torch.zeros(len(z), dtype=torch.long, device=z.device)
    return Trajectory(
        Curve(filled(z[:, None].expand(-1, n_segments + 1, -1), nodes)),
        filled(z, state[:, :d]),
        filled(v, state[:, d:]),
        filled(zero, length),
        filled(zero, 2 * length * drift + _PESSIMISM * local),
        filled(zero, drift),
        filled(none, codes),
        filled(torch.ones_like(zero), way.time),
        filled(none, way.calls * cost + arrived * (4 + metric.gram_cost(d))),
    )


def follow(metric: Metric, z: Tensor, v: Tensor, *, tol: Tensor, max_steps: int, progress: bool = False) -> Integral:
    """Integrate the geodesic equation from points z with velocities v (B, d), none zero, to tolerances (B,)."""
    d = z.shape[-1]

    def equation(_: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        z, v = y.split(d, -1)
        return torch.cat((v, -metric.christoffel(z, v, v)), -1)

    rounding = 10 * torch.finfo(z.dtype).eps * (1 + z.norm(dim=-1) / v.norm(dim=-1))
    with torch.no_grad():
        local = torch.maximum(_SHARE * tol, rounding)
        return integrate(equation, torch.cat((z, v), -1), d=d, tol=local, max_steps=max_steps, progress=progress)


def describe(codes: Tensor, success: str) -> str:
    """Status codes of trajectories in words: how many succeeded, which failed, and why."""
    if not codes.ndim:
        return _REASONS[list(Status)[int(codes)]]
    flat = codes.reshape(-1)
    lines = [f"{int((flat == Status.CONVERGED.code).sum())} of {len(flat)} {success}"]
    for status, reason in _REASONS.items():
        rows = (flat == status.code).nonzero().reshape(-1).tolist()
        if rows and status is not Status.CONVERGED:
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            lines.append(f"{len(rows)} {reason} (rows {shown})")
    return "; ".join(lines)


def _lose(trajectory: Trajectory, rows: Tensor) -> None:
    """Mark those geodesics whose velocity was not finite."""
    trajectory.codes[rows] = Status.NOT_FINITE.code
    for values in (trajectory.end, trajectory.velocity, trajectory.length, trajectory.error, trajectory.drift):
        values[rows] = torch.nan


def _at_the_end(metric: Metric, z: Tensor, v: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Squared speeds (B,) and errors of the end in units of the data space, from those of its coordinates (B, d)."""
    with torch.no_grad():
        g = metric.matrix(z)
    sizes = g.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    rounding = torch.finfo(z.dtype).eps * z.abs()
    return torch.einsum("ni,nij,nj->n", v, g, v), ((error + rounding) * sizes).sum(-1)


def _tensors(trajectory: Trajectory) -> list[Tensor]:
    return [getattr(trajectory, field.name) for field in fields(trajectory)[1:]]
