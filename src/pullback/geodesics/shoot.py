r"""Geodesics by shooting: the initial velocity v for which exp_z(v) is the point to reach.

Newton's method on the miss exp_z(v) - w. It is fast near a solution and honest, for what it returns satisfies the
geodesic equation to the integrator's precision. It needs a good velocity to begin with: the end of a long geodesic
swings widely with its start. At a conjugate point the derivative of exp_z is singular, for nearby velocities meet
there, and shooting stalls. Past it, a geodesic that is found is not the shortest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.exponential import follow, launch
from pullback.geodesics.integrate import RUNNING
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import GeodesicSolver
from pullback.metrics import Metric

_DIRECT = 16  # up to this dimension the derivative of exp is formed at the start
_APART = 3e-2  # step of its differences, relative to the velocity
_ROUGH = 1e-3  # tolerance of these differences
_SHARE = 0.3  # of the miss that is allowed for may come from the integrator
_AHEAD = 1e-3  # of the last miss is how well the next is integrated: it will hardly be smaller
_FIRST = 1e-4  # tolerance of the first trajectory
_SHORTEST = 1 / 64  # step of the line search


@dataclass(frozen=True)
class Shoot(GeodesicSolver):
    """Aims at the end: Newton's method on the initial velocity, by Broyden's updates of a derivative formed once.

    It starts from the velocity that the given curves have at their start, so that it polishes what another solver
    found: ``geodesic(metric, a, b, init=path.curve, solver=Shoot())``. From straight lines it succeeds where the
    geodesic is nearly straight. Where the derivative of the exponential map is nearly singular (a conjugate point) it
    stalls.

    The error it reports is that of the miss and of the integrator; it says nothing of other, shorter geodesics.

    Args:
        max_steps: Velocities to try for a pair.
        max_integrator_steps: Steps that a trajectory may take.
        n_segments: Of the curves that are returned.

    Cost:
        d + 3 to d + 6 trajectories a pair, most of them at low precision: see `exp`. Above d = 16 fewer than d if the
        curve nearly knows its velocity, for no derivative is formed.
    """

    max_steps: int = 50
    max_integrator_steps: int = 2_000
    n_segments: int = 64

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_integrator_steps", "n_segments"):
            _checks.positive(getattr(self, name), name)

    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        velocity = Curve(nodes).velocity(torch.zeros(1, dtype=nodes.dtype, device=nodes.device))[:, 0]
        shot = _shoot(metric, start, end, velocity, tol=tol, solver=self, progress=progress)
        hit = shot.codes == Status.CONVERGED.code
        last = launch(
            metric, start[hit], shot.velocity[hit], tol=shot.tol[hit], max_steps=self.max_integrator_steps,
            n_segments=self.n_segments,
        )  # fmt: skip
        codes = shot.codes.clone()
        codes[hit] = last.codes
        length, error = (torch.full_like(shot.miss, torch.nan) for _ in range(2))
        length[hit] = last.length
        rounding = 10 * torch.finfo(length.dtype).eps * last.length
        error[hit] = shot.miss[hit] * last.length + last.error + rounding
        curves = Curve(nodes).resample(self.n_segments).nodes.clone()
        share = torch.linspace(0, 1, self.n_segments + 1, dtype=nodes.dtype, device=nodes.device)[:, None]
        gap = (end[hit] - last.end).nan_to_num()
        curves[hit] = last.curve.nodes + share * gap[:, None]
        curves[hit, -1] = end[hit]
        evaluations = shot.evaluations.clone()
        evaluations[hit] += last.evaluations
        missed = error > 10 * tol * length + 100 * torch.finfo(length.dtype).eps * length
        codes[missed & (codes == Status.CONVERGED.code)] = Status.STALLED.code
        failed = codes != Status.CONVERGED.code
        length, error = (x.masked_fill(failed, torch.nan) for x in (length, error))
        return Solution(Curve(curves), length, error, 0.5 * length**2, codes, shot.steps, evaluations)


def aim(
    metric: Metric, start: Tensor, end: Tensor, velocity: Tensor, *, tol: float, solver: Shoot | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The initial velocities of geodesics from start to end (B, d), from a guess of them (B, d).

    Args:
        metric: The metric.
        start: Points (B, d).
        end: Points (B, d) to reach.
        velocity: Where to begin; none zero.
        tol: Miss that is allowed for, :math:`|exp(v) - w|` over the length, both measured by G(w).
        solver: Limits.

    Returns:
        Velocities (B, d), NaN where it failed; the relative miss; Status codes; decoder evaluations; each (B,).
    """
    shot = _shoot(metric, start, end, velocity, tol=tol, solver=solver if solver is not None else Shoot())
    hit = shot.codes == Status.CONVERGED.code
    return torch.where(hit[:, None], shot.velocity, torch.nan), shot.miss, shot.codes, shot.evaluations


@dataclass(frozen=True)
class _Shot:
    """Velocities on their way to the right ones, one row each."""

    velocity: Tensor  # (B, d)
    gap: Tensor  # (B, d) exp(velocity) - end; of a first velocity that is not tried yet: start - end
    miss: Tensor  # (B,) its norm over the length; infinite at first
    length: Tensor  # (B,) of the trajectory
    tol: Tensor  # (B,) of the integrator, when the gap was measured
    step: Tensor  # (B, d) to try next, times its size
    size: Tensor  # (B,)
    inverse: Tensor  # (B, d, d) of the derivative of exp
    age: Tensor  # (B,) Broyden's updates since that was formed; below 0 where it never was
    lost: Tensor  # (B,) code of the last trajectory that did not arrive
    codes: Tensor  # (B,)
    steps: Tensor  # (B,)
    evaluations: Tensor  # (B,)

    def select(self, index: Tensor) -> _Shot:
        return _Shot(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def put(self, rows: Tensor, other: _Shot) -> _Shot:
        names = self.__dataclass_fields__
        return _Shot(*(getattr(self, name).index_copy(0, rows, getattr(other, name)) for name in names))


def _shoot(
    metric: Metric, start: Tensor, end: Tensor, velocity: Tensor, *, tol: float, solver: Shoot, progress: bool = False
) -> _Shot:
    """Newton's method for all pairs, each at its own pace."""
    at_start, at_end, defined = _unit(metric, start, end)
    range_ = _Range(metric, start, end, at_start, at_end, defined, tol, solver.max_integrator_steps)
    shot = _begin(range_, velocity)
    with torch.no_grad(), tqdm(total=len(start), desc="shots", unit="pair", disable=not progress) as bar:
        rows = (shot.codes == RUNNING).nonzero().reshape(-1)
        bar.update(len(start) - len(rows))
        while len(rows):
            now = range_.select(rows)
            part = _form(now, _try(now, shot.select(rows)))
            shot = shot.put(rows, replace(part, codes=_judge(now, part, solver.max_steps)))
            left = rows[shot.codes[rows] == RUNNING]
            bar.update(len(rows) - len(left))
            rows = left
    return shot


@dataclass(frozen=True)
class _Range:
    """From where to shoot, and at what."""

    metric: Metric
    start: Tensor  # (B, d)
    end: Tensor  # (B, d)
    at_start: Tensor  # (B, d, d) G there, by which a length is measured
    at_end: Tensor  # (B, d, d) and a miss
    defined: Tensor  # (B,) whether they are
    tol: float
    max_steps: int

    def select(self, rows: Tensor) -> _Range:
        tensors = {name: getattr(self, name)[rows] for name in ("start", "end", "at_start", "at_end", "defined")}
        return replace(self, **tensors)

    def fly(self, velocity: Tensor, tol: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gaps (B, d) and relative misses (B,), infinite where it did not arrive; Status codes and evaluations."""
        d = velocity.shape[1]
        way = follow(self.metric, self.start, velocity, tol=tol, max_steps=self.max_steps)
        arrived = way.codes == Status.CONVERGED.code
        gap = way.state[:, :d] - self.end
        miss = _norm(self.at_end, gap) / self.length(velocity)
        return gap, torch.where(arrived, miss, torch.inf), way.codes, way.calls * self.metric.christoffel_cost(d)

    def length(self, velocity: Tensor) -> Tensor:
        return _norm(self.at_start, velocity)


def _norm(g: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("ni,nij,nj->n", v, g, v).clamp_min(0).sqrt()


def _unit(metric: Metric, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G at start and end (B, d), and where it is defined: a metric refuses points at which it is not finite."""
    z = torch.cat((start, end))
    g, one = z.new_zeros(*z.shape, z.shape[1]), torch.ones_like(z)
    defined = torch.isfinite(metric.christoffel(z, one, one)).all(-1)
    if defined.any():
        g[defined] = metric.matrix(z[defined]).detach()
    at_start, at_end = g.chunk(2)
    return at_start, at_end, defined.reshape(2, -1).all(0)


def _begin(range_: _Range, velocity: Tensor) -> _Shot:
    batch, d = velocity.shape
    none, counts = torch.zeros_like(velocity[:, 0]), torch.zeros(batch, dtype=torch.long, device=velocity.device)
    moving = (velocity != 0).any(-1)
    velocity = torch.where(moving[:, None], velocity, range_.end - range_.start)
    cost = 2 * (range_.metric.christoffel_cost(d) + range_.metric.gram_cost(d))
    codes = torch.where(range_.defined, RUNNING, Status.NOT_FINITE.code)
    identity = torch.eye(d, dtype=velocity.dtype, device=velocity.device).expand(batch, d, d)
    return _Shot(
        torch.zeros_like(velocity), range_.start - range_.end, none + torch.inf, none, none, velocity, none + 1,
        identity, counts - 1, counts, codes, counts, counts + cost,
    )  # fmt: skip


def _try(range_: _Range, shot: _Shot) -> _Shot:
    """Shoot with the step; take it where it brings the end nearer, else make it shorter."""
    first = ~torch.isfinite(shot.miss)
    finest = _SHARE * range_.tol
    tol = torch.where(first, _FIRST, _AHEAD * shot.miss).clamp(finest, max(finest, _FIRST))
    velocity = shot.velocity + shot.size[:, None] * shot.step
    gap, miss, codes, cost = range_.fly(velocity, tol)
    believed = shot.miss + 10 * shot.tol  # a miss is known as well as it was integrated
    length = range_.length(velocity)
    better = miss * length < (1 - 0.1 * shot.size) * believed * shot.length
    better |= first & torch.isfinite(miss)
    known = torch.isfinite(miss) & ~first
    inverse = torch.where(known[:, None, None], _broyden(shot, gap), shot.inverse)

    def taken(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return replace(
        shot,
        velocity=taken(velocity, shot.velocity),
        gap=taken(gap, shot.gap),
        miss=taken(miss, shot.miss),
        length=taken(length, shot.length),
        tol=taken(tol, shot.tol),
        size=torch.where(better, 1.0, 0.5 * shot.size),
        inverse=inverse,
        age=torch.where(better & (shot.age >= 0), shot.age + 1, shot.age),
        lost=torch.where(torch.isfinite(miss), 0, codes),
        steps=shot.steps + 1,
        evaluations=shot.evaluations + cost,
    )


def _broyden(shot: _Shot, gap: Tensor) -> Tensor:
    """The inverse derivative (B, d, d) that agrees with what the last step did, and else with the one before."""
    step, change = shot.size[:, None] * shot.step, gap - shot.gap
    expected = (shot.inverse @ change[..., None])[..., 0]
    weight = (step * expected).sum(-1)
    usable = weight.abs() > 1e-3 * step.norm(dim=-1) * expected.norm(dim=-1)
    row = (step[:, None] @ shot.inverse)[:, 0] / torch.where(usable, weight, 1)[:, None]
    update = (step - expected)[..., None] * row[:, None, :]
    return torch.where(usable[:, None, None], shot.inverse + update, shot.inverse)


def _form(range_: _Range, shot: _Shot) -> _Shot:
    """Form the derivative of exp by differences where it is wanted, then the next step: Newton's."""
    d = shot.velocity.shape[1]
    arrived = torch.isfinite(shot.miss)
    never = shot.age < 0
    failing = (shot.size < 0.2) & (shot.age != 0)
    wanted = arrived & (shot.miss > range_.tol) & (failing | (never & (d <= _DIRECT)))
    rows = wanted.nonzero().reshape(-1)
    if len(rows):
        shot = shot.put(rows, _differences(range_.select(rows), shot.select(rows)))
    step = -(shot.inverse @ shot.gap[..., None])[..., 0]
    return replace(shot, step=torch.where(arrived[:, None], step, shot.step))


def _differences(range_: _Range, shot: _Shot) -> _Shot:
    """The inverse of the derivative of exp, formed anew from d + 1 trajectories in one batch."""
    batch, d = shot.velocity.shape
    apart = _APART * shot.velocity.norm(dim=-1)
    bundle = torch.cat((torch.zeros_like(shot.inverse[:, :1]), torch.ones_like(shot.inverse[:, 0]).diag_embed()), 1)
    velocities = shot.velocity[:, None] + apart[:, None, None] * bundle
    every = torch.arange(batch, device=apart.device).repeat_interleave(d + 1)
    tol = torch.full_like(apart, _ROUGH)
    gaps, misses, _, cost = range_.select(every).fly(velocities.reshape(-1, d), tol[every])
    gaps = gaps.reshape(batch, d + 1, d)
    derivative = (gaps[:, 1:] - gaps[:, :1]).mT / apart[:, None, None]
    inverse, info = torch.linalg.inv_ex(derivative.nan_to_num(0, 0, 0))
    good = torch.isfinite(misses).reshape(batch, d + 1).all(-1) & (info == 0) & torch.isfinite(inverse).all((-2, -1))
    return replace(
        shot,
        inverse=torch.where(good[:, None, None], inverse, shot.inverse),
        size=torch.where(good, 1.0, shot.size),
        age=torch.zeros_like(shot.age),
        evaluations=shot.evaluations + cost.reshape(batch, d + 1).sum(-1),
    )


def _judge(range_: _Range, shot: _Shot, max_steps: int) -> Tensor:
    """Status codes (B,), RUNNING where a velocity is not found yet."""
    codes = torch.full_like(shot.steps, RUNNING)
    codes[shot.steps >= max_steps] = Status.MAX_STEPS.code
    stuck = shot.size < _SHORTEST
    codes[stuck] = torch.where(shot.lost > 0, shot.lost, Status.STALLED.code)[stuck]
    precise = shot.tol <= _SHARE * range_.tol * (1 + 1e-6)
    codes[(shot.miss <= range_.tol) & precise] = Status.CONVERGED.code
    return codes
