r"""Ordinary differential equations, many at once, each with steps of its own: Dormand-Prince 5(4).

A state y (B, k) ends in a velocity (B, d), whose Euclidean norm is the unit of a row's error: nothing depends on where
the origin is, or on the scale of the coordinates. A right-hand side may be NaN for some rows: these take shorter steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback.geodesics.solution import Status

RUNNING = -1
_SHORTEST = 1e-7  # step: a solution that wants shorter ones runs to infinity, or out of steps
RightHandSide = Callable[[Tensor, Tensor, Tensor], Tensor]  # times (b,), states (b, k), rows (b,) -> (b, k)

# Dormand and Prince (1980): stages, and the difference of the two solutions. The last stage is the next step's first.
_NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_DIFFERENCE = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class Integral:
    """Solutions on [0, 1], one row each, known at the steps that were taken.

    Attributes:
        state: (B, k) where each row ended: at t = 1 if it converged.
        slope: (B, k) the right-hand side there.
        time: (B,) t there.
        error: (B, k) sums of the estimated local errors, by component, each carried on in a straight line.
        codes: (B,) Status codes.
        calls: (B,) of the right-hand side.
        steps: (B,) accepted and rejected.
    """

    state: Tensor
    slope: Tensor
    time: Tensor
    error: Tensor
    codes: Tensor
    calls: Tensor
    steps: Tensor
    _history: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # rows, times, states, slopes at accepted steps

    def sample(self, t: Tensor) -> Tensor:
        """The first halves (B, n, k / 2) of states (z, z') at times t (B, n) up to where each row ended.

        Quintic Hermite interpolation of z, z' and z'' at the steps: sixth order, one more than these.
        """
        rows, times, states, slopes = (torch.cat(parts) for parts in zip(*self._history, strict=True))
        # times of a row fit between those of its neighbours; a stable order keeps what came first first
        keys, order = torch.sort(2 * rows.double() + times.double(), stable=True)
        times, states, slopes = times[order], states[order], slopes[order].nan_to_num()  # NaN where nothing began
        row = torch.arange(len(t), device=t.device)[:, None]
        first = torch.searchsorted(rows[order].contiguous(), row.contiguous())
        last = torch.searchsorted(rows[order].contiguous(), row.contiguous(), right=True) - 1
        right = torch.searchsorted(keys, (2 * row + t).double().contiguous())
        right = torch.minimum(torch.maximum(right, first + 1), last)
        left = torch.maximum(right - 1, first)  # the same where nothing but the start is known
        h = times[right] - times[left]
        s = ((t - times[left]) / h.clamp_min(torch.finfo(t.dtype).tiny)).clamp(0, 1)
        return _quintic(s, h, states[left], slopes[left], states[right], slopes[right])


def integrate(
    rhs: RightHandSide, y: Tensor, *, d: int, tol: Tensor, max_steps: int, n_stops: int = 1, progress: bool = False
) -> Integral:
    """Solve y' = rhs(t, y) on [0, 1].

    Args:
        rhs: Right-hand side at times (b,), states (b, k) of the rows (b,) of `y`; NaN where there is none.
        y: States (B, k) at t = 0.
        d: The last d components of a state are a velocity, not zero.
        tol: (B,) local error of a step, relative to the velocity.
        max_steps: Steps, accepted or not, that a row may take.
        n_stops: No step crosses a multiple of 1 / n_stops, where the right-hand side may have a kink.
        progress: Whether to show a bar.

    Cost:
        6 calls a step and one at the start.
    """
    run = _Run.begin(rhs, y, d, tol, n_stops)
    rows = torch.arange(len(y), device=y.device)
    done: list[tuple[Tensor, _Run]] = []
    history = [(rows, run.t, run.y, run.slope)]
    with tqdm(total=len(y), desc="trajectories", unit="curve", disable=not progress) as bar:
        while len(rows):
            codes = run.terminate(max_steps, n_stops)
            finished, going = (codes != RUNNING).nonzero().reshape(-1), (codes == RUNNING).nonzero().reshape(-1)
            if len(finished):
                done.append((rows[finished], run.select(finished).coded(codes[finished])))
                bar.update(len(finished))
                rows, run = rows[going], run.select(going)
            if len(rows):
                run, accepted = run.step(rhs, rows, d, n_stops)
                history.append((rows[accepted], run.t[accepted], run.y[accepted], run.slope[accepted]))
    if not done:  # an empty batch
        done.append((rows, run))
    order = torch.cat([r for r, _ in done]).argsort()

    def final(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for _, part in done])[order]

    state, slope, time, error, codes, calls, steps = map(final, ("y", "slope", "t", "error", "codes", "calls", "steps"))
    return Integral(state, slope, time, error, codes, calls, steps, history)


@dataclass(frozen=True)
class _Run:
    """Rows on their way."""

    y: Tensor  # (b, k)
    slope: Tensor  # (b, k)
    t: Tensor  # (b,)
    h: Tensor  # (b,) the step to try next
    tol: Tensor  # (b,) error that a step may make, relative to the velocity
    before: Tensor  # (b,) error of the last accepted step, relative to tol
    error: Tensor  # (b, k)
    stop: Tensor  # (b,) how many stops were passed
    lost: Tensor  # (b,) whether the last step met NaN
    codes: Tensor  # (b,)
    calls: Tensor  # (b,)
    steps: Tensor  # (b,)

    @classmethod
    def begin(cls, rhs: RightHandSide, y: Tensor, d: int, tol: Tensor, n_stops: int) -> _Run:
        t, counts = y.new_zeros(len(y)), torch.zeros(len(y), dtype=torch.long, device=y.device)
        errors: list[Exception] = []
        slope = _defined(rhs, t, y, torch.arange(len(y), device=y.device), errors)
        if errors and len(errors) == len(y):
            raise errors[0]
        turning = slope[:, -d:].norm(dim=-1) / y[:, -d:].norm(dim=-1)
        h = (2 * tol**0.2 / turning.clamp_min(1e-6)).clamp_max(1 / n_stops)
        lost = ~torch.isfinite(slope).all(-1)
        running = torch.full_like(counts, RUNNING)
        one, none = torch.ones_like(t), torch.zeros_like(y)
        return cls(y, slope, t, h, tol, one, none, counts, lost, running, counts + 1, counts)

    def select(self, index: Tensor) -> _Run:
        return _Run(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def coded(self, codes: Tensor) -> _Run:
        return _Run(*(codes if name == "codes" else getattr(self, name) for name in self.__dataclass_fields__))

    def terminate(self, max_steps: int, n_stops: int) -> Tensor:
        """Status codes (b,), RUNNING where a row is on its way."""
        smallest = max(_SHORTEST, 100 * torch.finfo(self.t.dtype).eps)
        at_the_edge = self.lost & (self.h < smallest)
        nowhere = (at_the_edge & (self.t == 0)) | ~torch.isfinite(self.slope).all(-1)
        codes = torch.full_like(self.steps, RUNNING)
        codes[self.steps >= max_steps] = Status.MAX_STEPS.code
        codes[self.h < smallest] = Status.STALLED.code
        codes[at_the_edge] = Status.LEFT_DOMAIN.code
        codes[nowhere] = Status.NOT_FINITE.code
        codes[self.stop >= n_stops] = Status.CONVERGED.code
        return codes

    def step(self, rhs: RightHandSide, rows: Tensor, d: int, n_stops: int) -> tuple[_Run, Tensor]:
        """Try one step in each row; also which rows (b,) took it."""
        limit = (self.stop + 1).to(self.t) / n_stops
        lands = self.h >= (1 - 1e-6) * (limit - self.t)
        h = torch.where(lands, limit - self.t, self.h)
        slopes = [self.slope]
        y = self.y
        for weights, node in zip(_STAGES, _NODES[1:], strict=True):
            y = self.y + h[:, None] * _combine(weights, slopes)
            slopes.append(_defined(rhs, self.t + node * h, y, rows, []))
        local = h[:, None] * _combine(_DIFFERENCE, slopes)
        unit = torch.maximum(self.y[:, -d:].norm(dim=-1), y[:, -d:].norm(dim=-1))
        ratio = local.norm(dim=-1) / (unit * self.tol)
        lost = ~(torch.isfinite(ratio) & torch.isfinite(slopes[-1]).all(-1))
        accepted = ~lost & (ratio <= 1)
        ratio = ratio.clamp_min(1e-6)
        factor = 0.9 * ratio**-0.14 * self.before**0.08  # PI control
        factor = torch.where(accepted, factor.clamp(0.2, 10), (0.9 * ratio**-0.2).clamp(0.1, 0.9))
        proposed = torch.where(lost, 0.2, factor) * h
        proposed = torch.where(accepted & lands, torch.maximum(proposed, self.h.clamp_max(1 / n_stops)), proposed)

        def taken(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(accepted.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        later = _Run(
            taken(y, self.y), taken(slopes[-1], self.slope), taken(torch.where(lands, limit, self.t + h), self.t),
            proposed, self.tol, taken(ratio, self.before), taken(self.error + _carried(local, self.t, d), self.error),
            taken(self.stop + lands, self.stop), lost, self.codes, self.calls + 6, self.steps + 1,
        )  # fmt: skip
        return later, accepted


def _carried(local: Tensor, t: Tensor, d: int) -> Tensor:
    """The absolute error (b, k) at t = 1 that a local error makes: a wrong velocity moves the point ever further."""
    local = local.abs()
    if local.shape[1] == d:
        return local
    z, v = local[:, :-d], local[:, -d:]
    return torch.cat((z + (1 - t)[:, None] * v, v), -1)


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return torch.stack([w * k for w, k in zip(weights, slopes, strict=True) if w]).sum(0)


def _defined(rhs: RightHandSide, t: Tensor, y: Tensor, rows: Tensor, errors: list[Exception]) -> Tensor:
    """The right-hand side where the state is finite; NaN elsewhere, and where it raises an error, which is kept."""
    result = torch.full_like(y, torch.nan)
    finite = torch.isfinite(y).all(-1)
    if finite.any():
        result[finite] = _without_raising(rhs, t[finite], y[finite], rows[finite], errors)
    return result


def _without_raising(rhs: RightHandSide, t: Tensor, y: Tensor, rows: Tensor, errors: list[Exception]) -> Tensor:
    try:
        return rhs(t, y, rows)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:
        if len(y) == 1:
            errors.append(error)
            return torch.full_like(y, torch.nan)
    half = len(y) // 2
    parts = (slice(None, half), slice(half, None))
    return torch.cat([_without_raising(rhs, t[part], y[part], rows[part], errors) for part in parts])


def _quintic(s: Tensor, h: Tensor, y0: Tensor, f0: Tensor, y1: Tensor, f1: Tensor) -> Tensor:
    """z at the share s of steps h between states (z, v) with slopes (v, a)."""
    s, h = s[..., None], h[..., None]
    (z0, v0), (z1, v1) = y0.chunk(2, -1), y1.chunk(2, -1)
    a0, a1 = f0.chunk(2, -1)[1], f1.chunk(2, -1)[1]
    # the Taylor polynomial at the left end, and what is missing from it at the right end
    gap = z1 - z0 - h * (v0 + 0.5 * h * a0)
    slope = h * (v1 - v0 - h * a0)
    bend = h**2 * (a1 - a0)
    cubic = 10 * gap - 4 * slope + 0.5 * bend
    quartic = -15 * gap + 7 * slope - bend
    fifth = 6 * gap - 3 * slope + 0.5 * bend
    return z0 + s * h * (v0 + 0.5 * s * h * a0) + s**3 * (cubic + s * (quartic + s * fifth))
