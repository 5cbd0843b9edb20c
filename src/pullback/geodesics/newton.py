"""Newton's method on the discrete energy: lengths to ten digits and more, from a curve that is nearly there."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve, chord_energy
from pullback.geodesics.certificate import certificate_cost, certify, divide
from pullback.geodesics.energy import DiscreteEnergy, Grams
from pullback.geodesics.record import Record
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import RUNNING, GeodesicSolver
from pullback.metrics import Metric

_FEWEST_SEGMENTS = 16
_APART = 5  # nodes from which on a second derivative of the energy is zero, and that with all between them
_SHARE = 0.1  # of tol that the steps may leave; the rest is for the resolution
_INDEFINITE = 1e-5  # shift, relative to the mean of the diagonal, above which a matrix was not positive definite


@dataclass(frozen=True)
class Newton(GeodesicSolver):
    r"""Exact Newton steps on the energy of a curve's nodes: a polish, for tolerances down to 1e-10.

    The second derivative is the Gauss-Newton matrix and, on its diagonal, the blocks that the bending of the surface
    adds: :math:`\nabla^2_z \langle r_i, f(z) \rangle` with the force :math:`r_i = \partial E / \partial f_i` held. So
    it is block-tridiagonal, and convergence is quadratic near a geodesic. A metric that no map into a Euclidean space
    induces has the same blocks; they come from products of the second derivative with vectors that are zero but at
    every fifth node. Far from one it need not be positive
    definite: it is damped, for each curve on its own, until a step lowers the energy. Start it from a curve that is
    nearly a geodesic: ``geodesic(metric, a, b, tol=1e-10, solver=Newton(), init=geodesic(metric, a, b).curve)``.

    A curve whose length is not known to `tol` then gets twice as many segments. One that ends at a saddle of the energy
    (a geodesic, but no shortest way, such as a great arc longer than half the circle) gets the status STALLED.

    Args:
        n_segments: Segments at first, even. Default: as many as the curves given have, at least 16.
        max_segments: Segments at the finest; a curve that is not resolved there gets the status WALL.
        max_steps: Steps at each resolution.

    Cost: a step takes 4 d + 7 evaluations a node (of a general metric about 20 d), and 1 each time that it is damped.

    Reference:
        Nocedal and Wright (2006), chapters 3 and 10. :cite:`nocedal`

    Example:
        >>> import pullback as pb
        >>> sphere = pb.surfaces.Sphere()
        >>> a, b = torch.tensor([0.0, -1.0]).double(), torch.tensor([0.5, 0.5]).double()
        >>> path = pb.geodesic(pb.Pullback(sphere), a, b, solver=Newton(), tol=1e-10)
        >>> abs(float(path.length - sphere.distance(a, b))) < 1e-9
        True
    """

    n_segments: int | None = None
    max_segments: int = 1024
    max_steps: int = 50

    def __post_init__(self) -> None:
        for name in ("max_segments", "max_steps"):
            _checks.positive(getattr(self, name), name)
        first = self.n_segments if self.n_segments is not None else _FEWEST_SEGMENTS
        _checks.even_segments(first, self.max_segments)

    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        energy = DiscreteEnergy.between(metric, start, end)
        record = Record(start, evaluations=2)
        rows, n = torch.arange(len(start), device=start.device), self._first_segments(nodes)
        with tqdm(total=len(start), desc="geodesics", unit="curve", disable=not progress) as bar:
            while len(rows):
                z = energy.even(Curve(nodes), n, max(n, nodes.shape[1] - 1))[0].nodes[:, 1:-1]
                state, codes = self._descend(energy, z, tol)
                record.spend(rows, state.iterations, state.evaluations + max(n, nodes.shape[1] - 1) - 1)
                whole, found = energy.nodes(state.z), codes == Status.CONVERGED.code
                record.fail(rows[~found], codes[~found], whole[~found])
                rows, energy, n = rows[found], energy.select(found), 2 * n
                if not len(rows):
                    break
                verdict = certify(energy, Curve(whole[found]).resample(n).nodes, tol)
                record.spend(rows, 0, certificate_cost(energy, n))
                again = (verdict.codes == Status.WALL.code) & (n <= self.max_segments)
                record.enter(rows[~again], verdict, ~again)
                rows, energy, nodes = rows[again], energy.select(again), verdict.nodes[again]
                bar.update(len(start) - len(rows) - bar.n)
        return record.solution()

    def _first_segments(self, nodes: Tensor) -> int:
        if self.n_segments is not None:
            return self.n_segments
        given = nodes.shape[1] - 1
        return min(max(given + given % 2, _FEWEST_SEGMENTS), self.max_segments // 2 * 2)

    def _descend(self, energy: DiscreteEnergy, z: Tensor, tol: float) -> tuple[_State, Tensor]:
        """Interior nodes z (B, n, d) stepped down until each curve is done: final states and status codes."""
        state = _begin(energy, z)
        codes = torch.full_like(state.iterations, RUNNING)
        rows = torch.arange(len(z), device=z.device)
        done: list[tuple[Tensor, _State]] = []
        while len(rows):
            now = self._terminate(energy, state, tol)
            if (now != RUNNING).any():
                running, finished = now == RUNNING, now != RUNNING
                codes[rows[finished]] = now[finished]
                done.append((rows[finished], state.select(finished)))
                rows, state, energy = rows[running], state.select(running), energy.select(running)
            if len(rows):
                state = _step(energy, state)
        order = torch.cat([rows for rows, _ in done]).argsort()
        parts = zip(*([getattr(state, f.name) for f in fields(state)] for _, state in done), strict=True)
        return _State(*(torch.cat(tensors)[order] for tensors in parts)), codes

    def _terminate(self, energy: DiscreteEnergy, state: _State, tol: float) -> Tensor:
        """Status codes (B,), RUNNING where a curve is not done."""
        codes = torch.full_like(state.iterations, RUNNING)
        codes[state.iterations >= self.max_steps] = Status.MAX_STEPS.code
        codes[state.failures >= 12] = Status.STALLED.code
        small = state.gap <= (2 * energy.rounding(state.z.shape[1] + 1) / state.length).clamp_min(_SHARE * tol)
        codes[small & (state.damping == 0)] = Status.CONVERGED.code
        codes[small & (state.shift > _INDEFINITE)] = Status.STALLED.code
        codes[~(torch.isfinite(state.value) & torch.isfinite(state.gap))] = Status.NOT_FINITE.code
        return codes


@dataclass(frozen=True)
class _State:
    """Curves on their way down, one row each."""

    z: Tensor  # (B, n, d) interior nodes
    value: Tensor  # (B,) the energy
    gradient: Tensor  # (B, n, d)
    same: Tensor  # (B, n, d, d) J_i' J_i
    bent: Tensor  # (B, n, d, d) what bending adds to it
    next_one: Tensor  # (B, n - 1, d, d) J_i' J_{i+1}
    next_two: Tensor  # (B, n - 2, d, d)
    direction: Tensor  # (B, n, d) the step
    decrement: Tensor  # (B,) -gradient . direction, twice the energy that the step promises
    shift: Tensor  # (B,) what was added to the matrix to make it positive definite, relative to its diagonal
    damping: Tensor  # (B,) share of the J_i' J_i that is added to the matrix
    failures: Tensor  # (B,) steps that failed in a row
    iterations: Tensor  # (B,)
    evaluations: Tensor  # (B,)

    def select(self, index: Tensor) -> _State:
        """The curves at an index of the batch."""
        return _State(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def length(self) -> Tensor:
        """The discrete length (B,) at constant speed, not zero."""
        return (2 * self.value).clamp_min(torch.finfo(self.value.dtype).tiny).sqrt()

    @property
    def gap(self) -> Tensor:
        """The relative excess (B,) of the discrete length over the minimum, by the model."""
        return self.decrement / (2 * self.length.square())


def _begin(energy: DiscreteEnergy, z: Tensor) -> _State:
    nothing, none = z.new_zeros(len(z)), torch.zeros(len(z), dtype=torch.long, device=z.device)
    return _aim(
        _State(
            z=z, **_model(energy, z), direction=z, decrement=nothing, shift=nothing, damping=nothing,
            failures=none, iterations=none, evaluations=none + _model_cost(energy, z),
        )
    )  # fmt: skip


def _step(energy: DiscreteEnergy, state: _State) -> _State:
    """Take the step where it lowers the energy, with a new model there; elsewhere damp the model that there is."""
    trial = state.z + state.direction
    value = energy.measure(trial)[1]
    noise = 4 * energy.rounding(state.z.shape[1] + 1) * state.length
    good = value <= state.value - 1e-4 * state.decrement + noise  # False for NaN
    spent = state.evaluations + state.z.shape[1]
    rows = good.nonzero().reshape(-1)
    changed = {"z": torch.where(good[:, None, None], trial, state.z)}
    if len(rows):
        fresh = _model(energy.select(rows), trial[rows])
        changed |= {name: getattr(state, name).index_copy(0, rows, part) for name, part in fresh.items()}
        spent[rows] += _model_cost(energy, trial)
    less = torch.where(state.damping > 1e-3, state.damping / 10, 0)
    damping = torch.where(good, less, (10 * state.damping).clamp_min(1e-3))
    failures = torch.where(good, 0, state.failures + 1)
    return _aim(
        replace(
            state, **changed, damping=damping, failures=failures, evaluations=spent, iterations=state.iterations + 1
        )
    )


def _aim(state: _State) -> _State:
    """The Newton direction of the damped model."""
    same = state.same * (1 + state.damping[:, None, None, None]) + state.bent
    factor = Grams(same, state.next_one, state.next_two).gauss_newton()
    direction = -divide(factor, state.gradient)
    decrement = -(state.gradient * direction).sum((1, 2))
    return replace(state, direction=direction, decrement=decrement, shift=factor.shift)


def _model_cost(energy: DiscreteEnergy, z: Tensor) -> int:
    """Evaluations a curve takes for :func:`_model`."""
    n, d = z.shape[1:]
    return n * (3 + (3 if energy.metric.immersed else 4 * _APART) * d + energy.metric.gram_cost(d))


def _model(energy: DiscreteEnergy, z: Tensor) -> dict[str, Tensor]:
    """Energy, gradient and the parts of the second derivative at interior nodes z (B, n, d), as a state names them.

    The second derivative of the energy by node i in feature space is 16 T/6 at an odd node and 14 T/6 at an even one:
    divided by that, the bending goes with J_i' J_i.
    """
    if not energy.metric.immersed:
        return _general_model(energy, z)
    n, d = z.shape[1:]
    grams = energy.grams(z)
    weight = _weights(z)
    values, gradients, bent = [], [], []
    curves = max(1, energy.metric.points_at_once(z) // (4 * n))
    for part in torch.arange(len(z), device=z.device).split(curves):
        with torch.enable_grad():
            leaf = z[part].detach().requires_grad_()
            x = energy.select(part).decode(leaf)
            still = x.detach().requires_grad_()
            value = chord_energy(*energy.metric.squared_chords(still))
            (force,) = torch.autograd.grad(value.sum(), still)
            (pulled,) = torch.autograd.grad(x, leaf, force, create_graph=True, materialize_grads=True)
        rows = [_row(pulled[..., k].sum(), leaf) for k in range(d)]
        values.append(value.detach())
        gradients.append(pulled.detach())
        bent.append(torch.stack(rows, -2))
    bending = torch.cat(bent)
    return {
        "value": torch.cat(values),
        "gradient": torch.cat(gradients),
        "same": grams.same,
        "bent": 0.5 * (bending + bending.mT) / weight[:, None, None],
        "next_one": grams.next_one,
        "next_two": grams.next_two,
    }


def _general_model(energy: DiscreteEnergy, z: Tensor) -> dict[str, Tensor]:
    """The same of a metric with chords of any kind: :math:`G` on the diagonal, and what is missing there as bending."""
    n = z.shape[1]
    grams = energy.grams(z)
    curves = max(1, energy.metric.points_at_once(z) // (4 * n))
    pieces = torch.arange(len(z), device=z.device).split(curves)
    parts = [_second_derivatives(energy.select(piece), z[piece]) for piece in pieces]
    value, gradient, same, next_one, next_two = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return {
        "value": value,
        "gradient": gradient,
        "same": grams.same,
        "bent": 0.5 * (same + same.mT) / _weights(z)[:, None, None] - grams.same,
        "next_one": next_one / (-8 * (n + 1) / 6),
        "next_two": next_two / ((n + 1) / 6),
    }


def _second_derivatives(energy: DiscreteEnergy, z: Tensor) -> tuple[Tensor, ...]:
    """Energy, gradient and the second derivatives by nodes (i, i), (i, i + 1), (i, i + 2) at z (B, n, d)."""
    batch, n, d = z.shape
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = chord_energy(*energy.metric.squared_chords(energy.decode(leaf)))
        (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    columns = z.new_zeros(batch, n, 5, d, d)  # of node i: by nodes i - 2 .. i + 2
    for first in range(min(_APART, n)):
        for k in range(d):
            vector = torch.zeros_like(z)
            vector[:, first::_APART, k] = 1
            (product,) = torch.autograd.grad(gradient, leaf, vector, retain_graph=True, materialize_grads=True)
            around = torch.nn.functional.pad(product, (0, 0, 2, 2)).unfold(1, 5, 1)  # (B, n, d, 5)
            columns[:, first::_APART, :, :, k] = around[:, first::_APART].mT
    # the column of node i + m at node i is the derivative by both
    blocks = (columns[:, m:, 2 - m] for m in range(3))
    return value.detach(), gradient.detach(), *blocks


def _weights(z: Tensor) -> Tensor:
    """What multiplies J_i' J_i in the second derivative of the energy (n,), at odd nodes first."""
    n = z.shape[1]
    weight = z.new_full((n,), 16 * (n + 1) / 6)
    weight[1::2] = 14 * (n + 1) / 6
    return weight


def _row(entry: Tensor, z: Tensor) -> Tensor:
    """The derivative of a sum of gradient entries; zero where the gradient does not depend on z."""
    if not entry.requires_grad:
        return torch.zeros_like(z)
    return torch.autograd.grad(entry, z, retain_graph=True, materialize_grads=True)[0]
