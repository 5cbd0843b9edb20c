"""Geodesics by relaxation of the discrete energy, coarse to fine; each curve gets the resolution that it needs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.energy import DiscreteEnergy, Grams
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import GeodesicSolver, Minimizer, State, along, bend, minimize, noise
from pullback.metrics import Metric, Tabulated

_LEFT_OVER = 0.3  # share of the estimated gap to a minimum that a last quasi-Newton step leaves at the least
_SADDLE = 0.05  # stiffness, as a share of the Gauss-Newton model's, that counts as none; negative, as a saddle
_LONGEST, _SHORTEST = 4.0, 0.05  # last steps, in units of the quasi-Newton step
_SAFETY = 4.0  # times the estimated error is the error that is reported
_LOOSEST = 1e-2  # a larger tolerance is met as well, and coarser curves do not know their error
_FEWEST_SAMPLES = 64  # of a curve whose length is measured: a wall between two of them goes unseen
_EPSILONS = 256  # a smaller tolerance, in units of the dtype's rounding, is not met, and not waited for
_WARM = 64  # segments at most to begin with where a curve is given
_CREASED = 6.0  # a gap that falls by less in two doublings does not fall like that of a smooth decoder
_DETOUR = 0.01  # by how much a curve is longer than the one it began as, to begin again
_ROUGH = 0.02  # relative error up to which the length on a decoder with creases is worth telling
_MANY_DIMENSIONS = 64  # from which on one Jacobian a curve has to do


@dataclass(frozen=True)
class Relax(GeodesicSolver):
    r"""Minimizes the energy of a curve's nodes, first few, then twice as many, until its length is known to `tol`.

    At each resolution: L-BFGS with a Gauss-Newton matrix as initial Hessian, on an energy of fourth order. Then a curve
    gets twice as many nodes, evenly spaced in its Riemannian length; the gradient there tells how far it is from a
    minimum. When that is little, the curve takes one more step, and its length is measured on finer samples. It is done
    when these and the nodes agree; where chords jump over a wall of the metric or a crease of the decoder they do not,
    and the curve is refined; where they jumped to a longer way, it starts again from the curve it began as.

    On decoders with creases (ReLU, max-pool) more nodes help little: the gap to a minimum falls by half with each
    doubling, not by a sixteenth. Such a curve stops at the resolution where that shows, 64 segments or more. Its length
    is measured finely, hence from above; its chords measure the true length from below; the difference is the error,
    and the status NON_SMOOTH.

    A tolerance below 256 roundings of the dtype (3e-5 in float32) is taken as that: `length_error` says so.

    Args:
        first_segments: Segments at the coarsest resolution, a power of two.
        max_segments: Segments at the finest; a curve that is not resolved there gets the status WALL.
        max_steps: Steps at each resolution.
        max_evaluations: A curve that has cost more stops with the status MAX_STEPS.
        memory: Steps that L-BFGS remembers.

    Cost: 245 evaluations for a nearly straight curve, 1,400 in the mean between codes of a VAE. A `start` that is
    a curve of many nodes skips the coarse resolutions; if it is a geodesic already, 250.
    """

    first_segments: int = 8
    max_segments: int = 512
    max_steps: int = 100
    max_evaluations: int = 100_000
    memory: int = 8

    def __post_init__(self) -> None:
        for name in ("first_segments", "max_segments", "max_steps", "max_evaluations", "memory"):
            _checks.at_least(getattr(self, name), 1, name)
        n = self.first_segments
        if n & (n - 1) or not 4 <= n <= self.max_segments:
            raise ValueError(
                f"`first_segments` is {n}: it must be a power of two, at least 4 and at most `max_segments`, "
                f"which is {self.max_segments}."
            )

    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        energy = DiscreteEnergy.between(metric, start, end)
        finest_tol = _EPSILONS * torch.finfo(start.dtype).eps
        record = _Record(start, max(min(tol, _LOOSEST), finest_tol) / _SAFETY, self.max_evaluations)
        rows = torch.arange(len(start), device=start.device)
        n = first = self._first(nodes.shape[1] - 1)
        curves, grams = Curve(nodes), None
        with tqdm(total=len(start), desc="geodesics", unit="curve", disable=not progress) as bar:
            while len(rows):
                coarse, finest = n == first == self.first_segments, 2 * n > self.max_segments
                minimizer = Minimizer((10 if coarse else 1) * record.tol, self.max_steps, self.memory)
                z, again = record.even(rows, energy, curves, Curve(nodes[rows]), n)
                if grams is None:
                    grams = self._grams(energy, z)
                    record.evaluations[rows] += self._gram_cost(metric, z)
                    _warn_of_rank(metric, grams.same)
                elif len(again):
                    grams = grams.put(again, self._grams(energy.select(again), z[again]))
                    record.evaluations[rows[again]] += self._gram_cost(metric, z)
                state = minimizer.init(energy, z, grams, record.left(rows))
                if not coarse:
                    record.spend(rows, state)
                    settled, saddle, state = record.settle(rows, energy, state)
                    if saddle.any():
                        at = saddle.nonzero().reshape(-1)
                        moved = state.select(at)
                        fresh = minimizer.init(energy.select(at), moved.z, moved.grams, record.left(rows[at]))
                        record.spend(rows[at], fresh)
                        state = state.put(at, fresh)
                    rows, energy, state = rows[~settled], energy.select(~settled), state.restart(~settled)
                if len(rows):
                    state, codes = minimize(minimizer, energy, state)
                    record.spend(rows, state)
                    stop = (codes == Status.NOT_FINITE.code) | (record.left(rows) <= 0) | finest
                    record.close(rows[stop], energy.select(stop), state.select(stop), codes[stop])
                    rough = (record.creased(rows) & (codes == Status.CONVERGED.code) & ~stop).nonzero().reshape(-1)
                    stop[rough] = record.measure_roughly(rows[rough], energy.select(rough), state.select(rough))
                    rows, energy, state = rows[~stop], energy.select(~stop), state.select(~stop)
                    n, curves, grams = 2 * n, Curve(energy.nodes(state.z)), state.grams.prolong()
                bar.update(len(start) - len(rows) - bar.n)
        return record.solution()

    def draft(self) -> Relax:
        """The coarsest resolution alone."""
        return replace(self, max_segments=self.first_segments)

    def _first(self, n_given: int) -> int:
        """How many segments to begin with where the curve to start from has that many: no more than it knows about."""
        n = self.first_segments
        while 2 * n <= min(n_given, _WARM, self.max_segments):
            n *= 2
        return n

    def _grams(self, energy: DiscreteEnergy, z: Tensor) -> Grams:
        """Products of Jacobians at nodes z (B, n, d): of few nodes, as at others they need not be exact."""
        n = z.shape[1] + 1
        if z.shape[2] >= _MANY_DIMENSIONS:
            middle = energy.grams(z[:, n // 2 - 1 : n // 2]).same
            return Grams(*(middle.expand(-1, n - 1 - k, -1, -1) for k in range(3)))
        step = n // self.first_segments
        grams = energy.grams(z[:, step - 1 :: step])
        for _ in range(step.bit_length() - 1):
            grams = grams.prolong()
        return grams

    def _gram_cost(self, metric: Metric, z: Tensor) -> int:
        return metric.gram_cost(z.shape[2]) * (1 if z.shape[2] >= _MANY_DIMENSIONS else self.first_segments - 1)


def _left_over(stiffness: Tensor) -> Tensor:
    """The share of a gap that a step leaves where the energy is that stiff along it.

    A step of a model that is too stiff by the factor s leaves (1 - 1/s)^2 of a gap that is s times as large. Where the
    model is too soft the step is cut short and gains less than the gap; other directions may have the rest.
    """
    soft = stiffness.clamp(_SADDLE, 1)
    return torch.maximum((1 - soft).square() / soft, (stiffness - 1).clamp_max(1)).clamp_min(_LEFT_OVER)


def _warn_of_rank(metric: Metric, g: Tensor) -> None:
    """Warn when G (..., d, d) is singular to working precision at some nodes."""
    g = g[torch.isfinite(g).flatten(-2).all(-1)]
    if not len(g):
        return
    eigenvalues = torch.linalg.eigvalsh(g)
    singular = int((eigenvalues[:, 0] <= g.shape[-1] * torch.finfo(g.dtype).eps * eigenvalues[:, -1]).sum())
    if singular:
        told = _checks.singular_table if isinstance(metric, Tabulated) else _checks.singular_nodes
        warnings.warn(told(singular, len(g)), _checks.RankWarning, stacklevel=9)


class _Record:
    """What is known of each curve; filled in as they finish, at different resolutions."""

    def __init__(self, start: Tensor, tol: float, max_evaluations: int) -> None:
        zero = torch.zeros(len(start), dtype=torch.long, device=start.device)
        self.tol = tol  # of the estimated error
        self.max_evaluations = max_evaluations
        self.codes, self.iterations, self.evaluations = zero, zero.clone(), zero + 2
        self.length, self.error, self.energy = (start.new_full((len(start),), torch.nan) for _ in range(3))
        self.longest = start.new_full((len(start),), torch.nan)  # a geodesic is no longer than the curve it began as
        self.gaps = start.new_full((len(start), 3), torch.inf)  # to a minimum, at this resolution and coarser ones
        self.fine = zero.bool()  # has 64 nodes or more
        self.nodes: list[tuple[Tensor, Tensor]] = []  # rows and the nodes of their curves

    def left(self, rows: Tensor) -> Tensor:
        """Evaluations that curves may still cost."""
        return self.max_evaluations - self.evaluations[rows]

    def even(self, rows: Tensor, energy: DiscreteEnergy, curves: Curve, origin: Curve, n: int) -> tuple[Tensor, Tensor]:
        """Interior nodes of curves at n segments; of those they began as where chords have jumped to a longer way.

        Returns the nodes (B, n - 1, d), and which ones began again.
        """
        samples = max(n, _FEWEST_SAMPLES // 2)
        even, length = energy.even(curves, n, samples)
        self.evaluations[rows] += samples - 1
        first = self.longest[rows].isnan()
        self.longest[rows[first]] = length[first]
        z = even.nodes[:, 1:-1]
        detour = (length > (1 + _DETOUR) * self.longest[rows]).nonzero().reshape(-1)
        if len(detour):
            again, length = energy.select(detour).even(origin[detour], n, samples)
            z = z.index_copy(0, detour, again.nodes[:, 1:-1])
            self.longest[rows[detour]] = length
            self.gaps[rows[detour]] = torch.inf
            self.evaluations[rows[detour]] += samples - 1
        return z, detour

    def spend(self, rows: Tensor, state: State) -> None:
        """Count what a run cost."""
        self.iterations[rows] += state.iterations
        self.evaluations[rows] += state.evaluations

    def creased(self, rows: Tensor) -> Tensor:
        """Which curves converge as slowly as on a decoder with creases."""
        gaps = self.gaps[rows]
        return self.fine[rows] & (gaps[:, 0] > gaps[:, 2] / _CREASED) & (gaps[:, 0] > self.tol)

    def settle(self, rows: Tensor, energy: DiscreteEnergy, state: State) -> tuple[Tensor, Tensor, State]:
        """Enter the curves that are close enough to a minimum and whose length can be measured.

        Returns which ones (B,), which are at a saddle (B,), and the state: moved off saddles, with a lower goal where
        the gap was small but not small enough.
        """
        settled, saddle = (torch.zeros_like(rows, dtype=torch.bool) for _ in range(2))
        gap = Minimizer.relative_gap(state)
        self.gaps[rows] = torch.cat((gap[:, None], self.gaps[rows, :-1]), 1)
        self.fine[rows] = 2 * state.z.shape[1] > _FEWEST_SAMPLES
        nothing = (2 * state.energy).sqrt() <= energy.rounding(state.z.shape[1] + 1)  # no length at all
        enough = torch.maximum(noise(energy, state), torch.full_like(gap, self.tol))
        near = ((_LEFT_OVER * gap <= enough) | nothing).nonzero().reshape(-1)
        if not len(near):
            return settled, saddle, state
        step, stiffness = bend(energy.select(near), state.select(near))
        self.evaluations[rows[near]] += state.z.shape[1]
        saddle[near] = (stiffness < -_SADDLE) & ~nothing[near]
        left = _left_over(stiffness) * gap[near]
        good = ~saddle[near] & ((left <= enough[near]) | nothing[near])
        if good.any():
            ready = near[good]
            settled[ready] = self._measure(rows[ready], energy.select(ready), state.select(ready), left[good])
        at = saddle[near]
        z = state.z.index_copy(0, near[at], (state.z[near] + step)[at])
        # where the step was not to be trusted, more of them are taken here, before the curve gets finer
        lower = torch.minimum(0.5 * self.tol * stiffness.clamp(_SADDLE, 1), 0.1 * gap[near])
        goal = state.goal.index_copy(0, near, torch.minimum(state.goal[near], lower))
        return settled, saddle, replace(state, z=z, goal=goal)

    def close(self, rows: Tensor, energy: DiscreteEnergy, state: State, codes: Tensor) -> None:
        """Enter curves that get no finer: converged if they settle now, else with the status that says why not."""
        if not len(rows):
            return
        settled, _, state = self.settle(rows, energy, state)
        rest = (~settled).nonzero().reshape(-1)
        rows, energy, state, codes = rows[rest], energy.select(rest), state.select(rest), codes[rest]
        if not len(rows):
            return
        minimal = codes == Status.CONVERGED.code
        out_of_evaluations = self.left(rows) <= 0
        self.codes[rows] = torch.where(minimal, Status.WALL.code, codes)
        self.codes[rows[minimal & out_of_evaluations]] = Status.MAX_STEPS.code
        told = torch.zeros_like(minimal)
        told[minimal] = self.measure_roughly(rows[minimal], energy.select(minimal), state.select(minimal))
        self.nodes.append((rows[~told], energy.nodes(state.z)[~told]))

    def _measure(self, rows: Tensor, energy: DiscreteEnergy, state: State, left: Tensor) -> Tensor:
        """Take the last step, as long as it has to be, sample the curves more finely and enter those to be believed."""
        stiffness = along(energy, state)
        self.evaluations[rows] += state.z.shape[1]
        size = 1 / stiffness.clamp(1 / _LONGEST, 1 / _SHORTEST)
        curves = Curve(energy.nodes(state.z + size[:, None, None] * state.direction))
        claimed = (2 * state.energy - size * (2 - stiffness * size) * state.decrement).clamp_min(0).sqrt()
        gap = Minimizer.relative_gap(state)
        left = torch.maximum(left, _left_over(stiffness) * gap)
        n = max(2 * curves.n_segments, _FEWEST_SAMPLES)
        length, value = energy.measure(curves.resample(n).nodes[:, 1:-1])
        self.evaluations[rows] += n - 1
        off = (length - claimed).abs()
        share = off / length.clamp_min(torch.finfo(length.dtype).tiny)
        broken = torch.minimum((length - claimed).clamp_min(0), length * gap)
        # the finer length, of fourth order, is off by a fifteenth of the difference; an energy that is wrong by a share
        # moves its minimum by the square of that; the last step leaves a part of the gap, and may not keep its promise
        estimate = (off / 15 + length * (share.square() + left) + broken).nan_to_num()  # no length at all
        rounding = energy.rounding(n)
        error = _SAFETY * estimate + rounding
        settled = (estimate <= self.tol * length + rounding) & (length <= (1 + _DETOUR) * self.longest[rows] + rounding)
        settled |= length <= rounding
        known = (error <= _SAFETY * self.tol * length + torch.finfo(length.dtype).tiny) | (length == 0)
        for status, which in ((Status.CONVERGED, settled & known), (Status.ROUNDING, settled & ~known)):
            self._enter(rows[which], status, length[which], error[which])
        self.energy[rows[settled]] = value[settled]
        self.nodes.append((rows[settled], curves.nodes[settled]))
        return settled

    def measure_roughly(self, rows: Tensor, energy: DiscreteEnergy, state: State) -> Tensor:
        """Enter the curves of least energy whose chords and finely sampled lengths agree to some per cent; which (B,).

        Chords are too short, and their minimum as well: the true length lies between.
        """
        if not len(rows):
            return torch.zeros_like(rows, dtype=torch.bool)
        n = state.z.shape[1] + 1
        nodes = energy.nodes(state.z)
        length, value = energy.measure(Curve(nodes).resample(4 * n).nodes[:, 1:-1])
        self.evaluations[rows] += 5 * n - 2
        error = (length - energy.chords(state.z)).clamp_min(0)
        # the next resolution may reveal as large a gap as this one did
        error += length * self.gaps[rows, :2].amax(1) + energy.rounding(4 * n)
        good = (error <= _ROUGH * length) & (length <= (1 + _ROUGH) * self.longest[rows])
        self._enter(rows[good], Status.NON_SMOOTH, length[good], error[good])
        self.energy[rows[good]] = value[good]
        self.nodes.append((rows[good], nodes[good]))
        return good

    def _enter(self, rows: Tensor, status: Status, length: Tensor, error: Tensor) -> None:
        self.codes[rows] = status.code
        self.length[rows] = length
        self.error[rows] = error

    def solution(self) -> Solution:
        """All curves; a spline with more nodes is the same spline."""
        n = max((nodes.shape[1] - 1 for rows, nodes in self.nodes if len(rows)), default=1)
        order = torch.cat([rows for rows, _ in self.nodes]).argsort()
        nodes = torch.cat([Curve(nodes).resample(n).nodes for rows, nodes in self.nodes if len(rows)])[order]
        return Solution(
            Curve(nodes), self.length, self.error, self.energy, self.codes, self.iterations, self.evaluations
        )
