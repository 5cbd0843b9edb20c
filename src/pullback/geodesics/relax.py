"""Geodesics by relaxation of the discrete energy, coarse to fine; each curve gets the resolution that it needs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import GeodesicSolver, Minimizer, State, bend, minimize
from pullback.metrics import Metric

_LEFT_OVER = 0.3  # share of the estimated gap to a minimum that a last quasi-Newton step leaves at the least
_SADDLE = 0.05  # stiffness, as a share of the Gauss-Newton model's, that counts as none; negative, as a saddle
_SAFETY = 4.0  # times the estimated error is the error that is reported
_FEWEST_SAMPLES = 64  # of a curve whose length is measured: a wall between two of them goes unseen


@dataclass(frozen=True)
class Relax(GeodesicSolver):
    r"""Minimizes the energy of a curve's nodes, first few, then twice as many, until its length is known to `tol`.

    At each resolution: L-BFGS with a Gauss-Newton matrix as initial Hessian, on an energy of fourth order. Then a curve
    gets twice as many nodes, evenly spaced in its Riemannian length; the gradient there tells how far it is from a
    minimum. When that is little, the curve takes one more step, and its length is measured on finer samples. It is done
    when these and the nodes agree; where chords jump over a wall of the metric or a crease of the decoder they do not,
    and the curve is refined; where they jumped to a longer way, it starts again from the curve it began as.

    Args:
        first_segments: Segments at the coarsest resolution, even.
        max_segments: Segments at the finest; a curve that is not resolved there gets the status WALL.
        max_steps: Steps at each resolution.
        max_evaluations: A curve that has cost more gets no finer, and the status MAX_STEPS if it is not resolved.
        memory: Steps that L-BFGS remembers.

    Cost: 230 evaluations for a nearly straight curve, about 1,000 in the mean between codes of a VAE.
    """

    first_segments: int = 8
    max_segments: int = 512
    max_steps: int = 100
    max_evaluations: int = 100_000
    memory: int = 8

    def __post_init__(self) -> None:
        for name in ("first_segments", "max_segments", "max_steps", "max_evaluations", "memory"):
            _checks.positive(getattr(self, name), name)
        if self.first_segments % 2 or not 4 <= self.first_segments <= self.max_segments:
            raise ValueError(
                f"`first_segments` is {self.first_segments}: it must be even, at least 4 and at most `max_segments`, "
                f"which is {self.max_segments}."
            )

    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        energy = DiscreteEnergy.between(metric, start, end)
        record = _Record(start, tol)
        rows = torch.arange(len(start), device=start.device)
        n, curves, grams = self.first_segments, Curve(nodes), None
        with tqdm(total=len(start), desc="geodesics", unit="curve", disable=not progress) as bar:
            while len(rows):
                coarsest, finest = n == self.first_segments, 2 * n > self.max_segments
                minimizer = Minimizer(10 * tol if coarsest else tol, self.max_steps, self.memory)
                z, detours = record.even(rows, energy, curves, Curve(nodes[rows]), n)
                if grams is not None and len(detours):
                    grams = grams.put(detours, energy.select(detours).grams(z[detours]))
                    record.evaluations[rows[detours]] += z.shape[1] * metric.gram_cost(z.shape[2])
                state = minimizer.init(energy, z, grams)
                if coarsest:
                    _warn_of_rank(state.grams.same)
                else:
                    record.spend(rows, state)
                    settled, saddle, state = record.settle(rows, energy, state)
                    if saddle.any():
                        fresh = minimizer.init(energy.select(saddle), state.z[saddle], state.grams.select(saddle))
                        record.spend(rows[saddle], fresh)
                        state = state.put(saddle.nonzero().reshape(-1), fresh)
                    rows, energy, state = rows[~settled], energy.select(~settled), state.restart(~settled)
                if len(rows):
                    state, codes = minimize(minimizer, energy, state)
                    record.spend(rows, state)
                    spent = record.evaluations[rows] > self.max_evaluations
                    codes[spent & (codes == Status.CONVERGED.code)] = Status.MAX_STEPS.code
                    stop = (codes == Status.NOT_FINITE.code) | finest | spent
                    record.close(rows[stop], energy.select(stop), state.select(stop), codes[stop])
                    rows, energy, state = rows[~stop], energy.select(~stop), state.select(~stop)
                    n, curves, grams = 2 * n, Curve(energy.nodes(state.z)), state.grams.prolong()
                bar.update(len(start) - len(rows) - bar.n)
        return record.solution()


def _warn_of_rank(g: Tensor) -> None:
    """Warn when G (..., d, d) is singular to working precision at some nodes."""
    g = g[torch.isfinite(g).flatten(-2).all(-1)]
    if not len(g):
        return
    eigenvalues = torch.linalg.eigvalsh(g)
    singular = eigenvalues[:, 0] <= g.shape[-1] * torch.finfo(g.dtype).eps * eigenvalues[:, -1]
    if singular.any():
        warnings.warn(
            f"the metric is singular at {int(singular.sum())} of {len(g)} sampled points: the decoder does not change "
            "in some latent direction, so that lengths in it are zero and geodesics are not unique. A dead latent "
            "dimension? Leave it out.",
            _checks.RankWarning,
            stacklevel=5,
        )


class _Record:
    """What is known of each curve; filled in as they finish, at different resolutions."""

    def __init__(self, start: Tensor, tol: float) -> None:
        zero = torch.zeros(len(start), dtype=torch.long, device=start.device)
        self.tol = tol
        self.codes, self.iterations, self.evaluations = zero, zero.clone(), zero + 2
        self.length, self.error, self.energy = (start.new_full((len(start),), torch.nan) for _ in range(3))
        self.longest = start.new_full((len(start),), torch.nan)  # a geodesic is no longer than the curve it began as
        self.nodes: list[tuple[Tensor, Tensor]] = []  # rows and the nodes of their curves

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
        detour = (length > (1 + self.tol) * self.longest[rows]).nonzero().reshape(-1)
        if len(detour):
            again, length = energy.select(detour).even(origin[detour], n, samples)
            z = z.index_copy(0, detour, again.nodes[:, 1:-1])
            self.longest[rows[detour]] = length
            self.evaluations[rows[detour]] += samples - 1
        return z, detour

    def spend(self, rows: Tensor, state: State) -> None:
        """Count what a run cost."""
        self.iterations[rows] += state.iterations
        self.evaluations[rows] += state.evaluations

    def settle(self, rows: Tensor, energy: DiscreteEnergy, state: State) -> tuple[Tensor, Tensor, State]:
        """Enter the curves that are close enough to a minimum and whose length can be measured.

        Returns which ones (B,), which are at a saddle (B,), and the state: moved off saddles, with a lower goal where
        the gap was small but not small enough.
        """
        settled, saddle = (torch.zeros_like(rows, dtype=torch.bool) for _ in range(2))
        gap = Minimizer.relative_gap(state)
        nothing = (2 * state.energy).sqrt() <= energy.rounding(state.z.shape[1] + 1)  # no length at all
        near = ((_LEFT_OVER * gap <= self.tol) | nothing).nonzero().reshape(-1)
        if not len(near):
            return settled, saddle, state
        step, stiffness = bend(energy.select(near), state.select(near))
        self.evaluations[rows[near]] += state.z.shape[1]
        saddle[near] = (stiffness < -_SADDLE) & ~nothing[near]
        # a step of a model that is too stiff by the factor s leaves (1 - 1/s)^2 of a gap that is s times as large
        soft = 1 / stiffness.clamp(_SADDLE, 1)
        left = (soft * (1 - 1 / soft).square()).clamp_min(_LEFT_OVER) * gap[near]
        good = ~saddle[near] & ((left <= self.tol) | nothing[near])
        if good.any():
            ready = near[good]
            settled[ready] = self._measure(rows[ready], energy.select(ready), state.select(ready), left[good])
        at = saddle[near]
        z = state.z.index_copy(0, near[at], (state.z[near] + step)[at])
        goal = state.goal.index_copy(0, near, torch.minimum(state.goal[near], 0.5 * self.tol / soft))
        return settled, saddle, replace(state, z=z, goal=goal)

    def close(self, rows: Tensor, energy: DiscreteEnergy, state: State, codes: Tensor) -> None:
        """Enter curves that get no finer: converged if they settle now, else with the status that says why not."""
        if not len(rows):
            return
        settled, _, state = self.settle(rows, energy, state)
        codes = torch.where(settled, Status.CONVERGED.code, codes)
        self.codes[rows] = torch.where(~settled & (codes == Status.CONVERGED.code), Status.WALL.code, codes)
        self.nodes.append((rows[~settled], energy.nodes(state.z)[~settled]))

    def _measure(self, rows: Tensor, energy: DiscreteEnergy, state: State, left: Tensor) -> Tensor:
        """Take the last step on trust, sample the curves more finely and enter those that can be believed."""
        curves = Curve(energy.nodes(state.z + state.direction))
        claimed = (2 * state.energy - state.decrement).clamp_min(0).sqrt()
        n = max(2 * curves.n_segments, _FEWEST_SAMPLES)
        length, value = energy.measure(curves.resample(n).nodes[:, 1:-1])
        self.evaluations[rows] += n - 1
        off = (length - claimed).abs()
        share = off / length.clamp_min(torch.finfo(length.dtype).tiny)
        # the finer length, of fourth order, is off by a fifteenth of the difference; an energy that is wrong by a share
        # moves its minimum by the square of that; and the last step leaves a part of the gap
        estimate = off / 15 + length * (share.square() + left)
        rounding = energy.rounding(n)
        settled = (estimate <= self.tol * length) & (length <= (1 + self.tol) * self.longest[rows] + rounding)
        settled |= length <= rounding
        entered = rows[settled]
        self.codes[entered] = Status.CONVERGED.code
        self.length[entered] = length[settled]
        self.error[entered] = (_SAFETY * estimate + rounding)[settled]
        self.energy[entered] = value[settled]
        self.nodes.append((entered, curves.nodes[settled]))
        return settled

    def solution(self) -> Solution:
        """All curves; a spline with more nodes is the same spline."""
        n = max((nodes.shape[1] - 1 for rows, nodes in self.nodes if len(rows)), default=1)
        order = torch.cat([rows for rows, _ in self.nodes]).argsort()
        nodes = torch.cat([Curve(nodes).resample(n).nodes for rows, nodes in self.nodes if len(rows)])[order]
        return Solution(
            Curve(nodes), self.length, self.error, self.energy, self.codes, self.iterations, self.evaluations
        )
