"""The solver contract, and minimization of the energy of many curves, each at its own pace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.geodesics.blocktridiagonal import Factor, solve
from pullback.geodesics.energy import DiscreteEnergy, Grams
from pullback.geodesics.solution import Solution, Status
from pullback.metrics import Metric

RUNNING = -1  # in tensors of status codes


class GeodesicSolver(ABC):
    """A frozen record of settings that turns pairs of points into geodesics; it holds no tensors and no state."""

    @abstractmethod
    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        """Geodesics of B pairs (B, d), from curves (B, T + 1, d) to start with."""

    def draft(self) -> GeodesicSolver | None:
        """A solver that tells for little which geodesic a start leads to, roughly; None if there is none."""
        return None


class Memory(NamedTuple):
    """The last m steps of L-BFGS, newest first."""

    steps: Tensor  # (B, m, n, d)
    changes: Tensor  # (B, m, n, d) of the gradient along them
    weights: Tensor  # (B, m) 1 / (step . change), 0 where there is none

    @classmethod
    def empty(cls, z: Tensor, m: int) -> Memory:
        """For curves of interior nodes z (B, n, d)."""
        nothing = z.new_zeros(len(z), m, *z.shape[1:])
        return cls(nothing, nothing, z.new_zeros(len(z), m))

    def push(self, step: Tensor, change: Tensor) -> Memory:
        """Remember steps (B, n, d), but those along which the energy bends down or not at all."""
        product = (step * change).sum((1, 2))
        useful = product > 1e-10 * (step.square().sum((1, 2)) * change.square().sum((1, 2))).sqrt()
        weight = torch.where(useful, 1 / product, 0)

        def pushed(old: Tensor, new: Tensor) -> Tensor:
            grown = torch.cat((new[:, None], old[:, :-1]), 1)
            return torch.where(useful.reshape(-1, *[1] * (grown.ndim - 1)), grown, old)

        return Memory(pushed(self.steps, step), pushed(self.changes, change), pushed(self.weights, weight))


@dataclass(frozen=True)
class State:
    """Curves on their way down, one row each."""

    z: Tensor  # (B, n, d) interior nodes
    energy: Tensor  # (B,)
    gradient: Tensor  # (B, n, d)
    direction: Tensor  # (B, n, d) the next step, tried whole first
    decrement: Tensor  # (B,) -gradient . direction, twice the energy that the step promises
    before: Tensor  # (B, 3) the decrements of the last three steps, newest first
    memory: Memory
    grams: Grams  # products of Jacobians, and the Gauss-Newton matrix made of them: the recursion's initial Hessian
    factor: Factor
    goal: Tensor  # (B,) the relative gap to stop at
    limit: Tensor  # (B,) evaluations to stop at
    age: Tensor  # (B,) steps since it was formed
    failures: Tensor  # (B,) line searches that failed in a row
    iterations: Tensor  # (B,)
    evaluations: Tensor  # (B,)

    def select(self, index: Tensor) -> State:
        """The curves at an index of the batch."""
        return _each(lambda t: t[index], self)

    def put(self, rows: Tensor, other: State) -> State:
        """The same curves, some rows of them replaced."""
        return _each(lambda old, new: old.index_copy(0, rows, new), self, other)

    def restart(self, index: Tensor) -> State:
        """The curves at an index of the batch, with nothing spent yet."""
        chosen = self.select(index)
        return replace(chosen, evaluations=torch.zeros_like(chosen.evaluations))


@dataclass(frozen=True)
class Minimizer:
    """L-BFGS whose initial Hessian is a rarely refreshed Gauss-Newton matrix: 3 evaluations a node and step.

    Args:
        gap: Stop a curve when its length is above the minimum by less than this, relatively: by the Newton decrement,
            (-gradient . direction) / (4 E), which knows no scale.
        max_steps: Steps a curve may take.
        memory: How many steps the recursion remembers.
    """

    gap: float
    max_steps: int = 100
    memory: int = 8

    def init(self, energy: DiscreteEnergy, z: Tensor, grams: Grams, limit: Tensor) -> State:
        """The state at interior nodes z (B, n, d), with products of Jacobians that may come from a coarser solution."""
        batch, n, _ = z.shape
        value, gradient = energy.value_and_gradient(z)
        counts = torch.zeros(batch, dtype=torch.long, device=z.device)
        state = State(
            z, value, gradient, gradient, value, z.new_full((batch, 3), torch.inf),
            Memory.empty(z, self.memory), grams, grams.gauss_newton(), torch.full_like(value, self.gap), limit,
            counts, counts, counts, counts + 3 * n,
        )  # fmt: skip
        return _aim(state)

    def step(self, energy: DiscreteEnergy, state: State) -> State:
        """One line search a curve, then a new direction; the Gauss-Newton matrix is formed again where it got stale."""
        found = _line_search(energy, state)
        stale = (found.age >= 5) & (found.decrement > 0.02 * found.before[:, 2])
        stale |= found.failures == 1
        stale &= torch.isfinite(found.energy)
        if stale.any():
            found = _refresh(energy, found, stale.nonzero().reshape(-1))
        return _aim(found)

    def terminate(self, energy: DiscreteEnergy, state: State) -> Tensor:
        """Status codes (B,), RUNNING where a curve is not done."""
        codes = torch.full_like(state.iterations, RUNNING)
        codes[(state.iterations >= self.max_steps) | (state.evaluations >= state.limit)] = Status.MAX_STEPS.code
        codes[state.failures >= 2] = Status.STALLED.code
        codes[self.relative_gap(state) <= torch.maximum(state.goal, noise(energy, state))] = Status.CONVERGED.code
        codes[~torch.isfinite(state.energy)] = Status.NOT_FINITE.code
        return codes

    @staticmethod
    def relative_gap(state: State) -> Tensor:
        """The estimated relative excess (B,) of each curve's discrete length over the minimum."""
        return state.decrement / (4 * state.energy).clamp_min(torch.finfo(state.energy.dtype).tiny)


def minimize(minimizer: Minimizer, energy: DiscreteEnergy, state: State) -> tuple[State, Tensor]:
    """Run until every curve is done; a curve that is done costs nothing more. Returns final states and status codes."""
    codes = torch.full_like(state.iterations, RUNNING)
    rows = torch.arange(len(codes), device=codes.device)  # which curve each row of the running state is
    done: list[tuple[Tensor, State]] = []
    while len(rows):
        now = minimizer.terminate(energy, state)
        finished, running = (now != RUNNING).nonzero().reshape(-1), (now == RUNNING).nonzero().reshape(-1)
        if len(finished):
            codes[rows[finished]] = now[finished]
            done.append((rows[finished], state.select(finished)))
            rows, state, energy = rows[running], state.select(running), energy.select(running)
        if len(rows):
            state = minimizer.step(energy, state)
    order = torch.cat([rows for rows, _ in done]).argsort()
    return _each(lambda *parts: torch.cat(parts), *(state for _, state in done)).select(order), codes


def along(energy: DiscreteEnergy, state: State) -> Tensor:
    """How stiff the energy is along the next steps (B,): its second difference over that of the quasi-Newton model.

    1 where a step gains what it promises, and where that is less than rounding; the best step is 1 / stiffness of it.
    Cost: 1 evaluation a node.
    """
    value = energy.measure(state.z + state.direction)[1]
    promised = state.decrement.clamp_min(torch.finfo(value.dtype).tiny)
    off = 2 * (value - state.energy) / promised + 1
    doubt = 20 * noise(energy, state) * state.energy / promised  # twice the most that two energies of a line differ by
    return 1 + off.sign() * (off.abs() - doubt).clamp_min(0)


def bend(energy: DiscreteEnergy, state: State, share: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Steps (B, n, d) to one side of the curves, downhill, and how stiff the energy is along them: (B,).

    The steps are the answer of the Gauss-Newton model to a force that is the same all along and pulls sideways; by the
    model they take that share of the energy. Stiffness is the true second difference over the model's: 1 where the
    surface does not bend towards the curve, less on long arcs, negative at a saddle. Cost: 1 evaluation a node.
    """
    along = energy.end - energy.start
    side = torch.nn.functional.one_hot(along.abs().argmin(1), along.shape[1]).to(along)
    side = side - (side * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True) * along
    force = side[:, None].expand_as(state.z)
    answer = _inverse_hessian(replace(state, gradient=force), torch.zeros_like(state.memory.weights))
    work = (force * answer).sum((1, 2)).clamp_min(torch.finfo(along.dtype).tiny)
    step = answer * (2 * share * state.energy / work).sqrt()[:, None, None]
    slope = (state.gradient * step).sum((1, 2))
    step = torch.where((slope > 0)[:, None, None], -step, step)
    change = energy.measure(state.z + step)[1] - state.energy
    model = (share * state.energy).clamp_min(torch.finfo(along.dtype).tiny)
    return step, (change + slope.abs()) / model


def _line_search(energy: DiscreteEnergy, state: State) -> State:
    """The first of the steps 1, then shorter by interpolation, that lowers the energy enough along the direction."""
    batch = len(state.z)
    z, value, gradient = state.z.clone(), state.energy.clone(), state.gradient.clone()
    evaluations = state.evaluations.clone()
    size = torch.ones_like(value)
    todo = torch.arange(batch, device=z.device)
    rounding = noise(energy, state) * value
    for _ in range(12):
        trial = state.z[todo] + size[todo, None, None] * state.direction[todo]
        e, g = energy.select(todo).value_and_gradient(trial) if len(todo) < batch else energy.value_and_gradient(trial)
        evaluations[todo] += 3 * z.shape[1]
        promised = size[todo] * state.decrement[todo]
        good = e <= state.energy[todo] - 1e-4 * promised + rounding[todo]  # False for NaN
        z[todo[good]], value[todo[good]], gradient[todo[good]] = trial[good], e[good], g[good]
        # minimum of the parabola through the two energies and the slope
        curvature = (e - state.energy[todo] + promised).nan_to_num(torch.inf, torch.inf)
        shorter = size[todo] * (0.5 * promised / curvature).clamp(0.1, 0.5)
        size[todo[~good]] = shorter[~good]
        todo = todo[~good]
        if not len(todo):
            break
    failed = torch.zeros(batch, dtype=torch.bool, device=z.device)
    failed[todo] = True
    return replace(
        state, z=z, energy=value, gradient=gradient, memory=state.memory.push(z - state.z, gradient - state.gradient),
        evaluations=evaluations, iterations=state.iterations + 1, age=state.age + 1,
        failures=torch.where(failed, state.failures + 1, 0),
    )  # fmt: skip


def _refresh(energy: DiscreteEnergy, state: State, rows: Tensor) -> State:
    """Form the Gauss-Newton matrix of some curves again and forget their steps."""
    fresh = energy.select(rows).grams(state.z[rows])
    grams = state.grams.put(rows, fresh)
    fresh = fresh.gauss_newton()
    factor = Factor(*(old.index_copy(0, rows, new) for old, new in zip(state.factor, fresh, strict=True)))
    cost = state.z.shape[1] * energy.metric.gram_cost(state.z.shape[2])
    return replace(
        state,
        grams=grams,
        factor=factor,
        memory=state.memory._replace(weights=state.memory.weights.index_fill(0, rows, 0.0)),
        age=state.age.index_fill(0, rows, 0),
        evaluations=state.evaluations.index_add(0, rows, torch.full_like(rows, cost)),
    )


def _aim(state: State) -> State:
    """The quasi-Newton direction; the Gauss-Newton one where it does not point down."""
    direction = -_inverse_hessian(state, state.memory.weights)
    decrement = -(state.gradient * direction).sum((1, 2))
    bad = ~(decrement >= 0)
    if bad.any():
        plain = -_inverse_hessian(state, torch.zeros_like(state.memory.weights))
        direction = torch.where(bad[:, None, None], plain, direction)
        decrement = -(state.gradient * direction).sum((1, 2))
    before = torch.cat((state.decrement[:, None], state.before[:, :-1]), 1)
    return replace(state, direction=direction, decrement=decrement, before=before)


def _inverse_hessian(state: State, weights: Tensor) -> Tensor:
    """H^{-1} gradient by the two-loop recursion of L-BFGS, from the Gauss-Newton matrix."""
    batch, n, d = state.z.shape
    steps, changes = state.memory.steps, state.memory.changes
    q = state.gradient
    coefficients = []
    remembered = int((weights != 0).any(0).nonzero().max()) + 1 if weights.any() else 0
    for i in range(remembered):
        coefficient = weights[:, i] * (steps[:, i] * q).sum((1, 2))
        q = q - coefficient[:, None, None] * changes[:, i]
        coefficients.append(coefficient)
    padded = torch.cat((q, q.new_zeros(batch, 1, d)), 1).reshape(batch, (n + 1) // 2, 2 * d)
    q = solve(state.factor, padded).reshape(batch, n + 1, d)[:, :n]
    for i in reversed(range(remembered)):
        correction = coefficients[i] - weights[:, i] * (changes[:, i] * q).sum((1, 2))
        q = q + correction[:, None, None] * steps[:, i]
    return q


def noise(energy: DiscreteEnergy, state: State) -> Tensor:
    """The relative rounding error (B,) of each energy."""
    length = (2 * state.energy).clamp_min(torch.finfo(state.energy.dtype).tiny).sqrt()
    return (energy.rounding(state.z.shape[1] + 1) / length).clamp(torch.finfo(length.dtype).eps, 1)


def _each(function: Callable[..., Tensor], *states: State) -> State:
    """A state whose tensors are a function of those of the given states."""

    def combined(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], Tensor):
            return function(*values)
        return type(values[0])(*(function(*parts) for parts in zip(*values, strict=True)))  # Memory, Grams, Factor

    return State(*(combined(tuple(getattr(s, f.name) for s in states)) for f in fields(State)))
