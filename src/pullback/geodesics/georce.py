"""GEORCE: geodesics as a control problem with a frozen metric, solved in closed form again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.curves import Curve
from pullback.geodesics.certificate import certificate_cost, certify
from pullback.geodesics.energy import DiscreteEnergy
from pullback.geodesics.record import Record
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import RUNNING, GeodesicSolver
from pullback.metrics import Metric

_SHARE = 0.25  # of tol that the steps may leave; the rest is for the left-point rule
_UNKNOWN_RATE = 0.9  # of contraction, before it is measured


@dataclass(frozen=True)
class Georce(GeodesicSolver):
    r"""GEORCE: minimizes :math:`\sum_t u_t^\top G(x_t) u_t` over steps u that lead from start to end.

    With G and its derivative :math:`\nu_t = \nabla_x (u_t^\top G(x) u_t)` frozen, the best steps are known in closed
    form: :math:`\hat u_t = -\tfrac12 G_t^{-1} (\mu + \sum_{s > t} \nu_s)`, with the one :math:`\mu` for which they add
    up to end - start. A line search goes from u towards them. It converges linearly, at a rate that depends on the
    chart, and the energy takes the metric at the left end of each segment, which is of first order; :class:`Relax`
    needs some 20 times fewer evaluations. It is here to compare with, and because it wants nothing of a metric but
    `inner` and `matrix`.

    A minimum is looked at with an energy of fourth order. A curve that is not within `tol` by that gets twice as many
    segments.

    Args:
        n_segments: Segments at first, even.
        max_segments: Segments at the finest; a curve that is not resolved there gets the status WALL.
        max_steps: Steps at each resolution.
        gradient_tol: Stop where the gradient of the sum above is shorter than that, as the authors do; it depends on
            the scale of the decoder. Default: where the sum is minimal within `tol`, relatively.

    Cost: a step takes d + 9 evaluations a segment, and 4 more for each time that the line search has to go back.

    Reference:
        Rygaard and Hauberg (2025). :cite:`georce`

    Example:
        >>> import pullback as pb
        >>> sphere = pb.surfaces.Sphere()
        >>> a, b = torch.tensor([0.0, -1.0]), torch.tensor([0.5, 0.5])
        >>> path = pb.geodesic(pb.Pullback(sphere), a.double(), b.double(), solver=Georce())
        >>> abs(float(path.length - sphere.distance(a.double(), b.double()))) < 1e-3
        True
    """

    n_segments: int = 100
    max_segments: int = 1600
    max_steps: int = 1000
    gradient_tol: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_segments", "max_segments", "max_steps"):
            _checks.positive(getattr(self, name), name)
        if self.gradient_tol is not None:
            _checks.positive(self.gradient_tol, "gradient_tol")
        _checks.even_segments(self.n_segments, self.max_segments)

    def solve(
        self, metric: Metric, start: Tensor, end: Tensor, *, tol: float, nodes: Tensor, progress: bool = False
    ) -> Solution:
        metric.points_at_once(start)  # the decoder is looked at before anything it raises is taken for NaN
        energy = DiscreteEnergy.between(metric, start, end)
        record = Record(start, evaluations=2)
        rows, n = torch.arange(len(start), device=start.device), self.n_segments
        with tqdm(total=len(start), desc="geodesics", unit="curve", disable=not progress) as bar:
            while len(rows):
                state, codes = self._descend(metric, Curve(nodes).resample(n).nodes, tol, bar)
                record.spend(rows, state.iterations, state.evaluations)
                found = codes == Status.CONVERGED.code
                record.fail(rows[~found], codes[~found], state.x[~found])
                rows, nodes = rows[found], state.x[found]
                if not len(rows):
                    break
                here = energy.select(rows)
                verdict = certify(here, here.even(Curve(nodes), n, n)[0].nodes, tol)
                record.spend(rows, 0, n - 1 + certificate_cost(energy, n))
                again = (verdict.codes == Status.WALL.code) & (2 * n <= self.max_segments)
                record.enter(rows[~again], verdict, ~again)
                rows, nodes, n = rows[again], verdict.nodes[again], 2 * n
                bar.update(len(start) - len(rows) - bar.n)
        return record.solution()

    def _descend(self, metric: Metric, x: Tensor, tol: float, bar: tqdm) -> tuple[_State, Tensor]:
        """Curves (B, T + 1, d) stepped down until each is done: final states and status codes."""
        state = _begin(metric, x)
        codes = torch.full_like(state.iterations, RUNNING)
        rows = torch.arange(len(x), device=x.device)
        done: list[tuple[Tensor, _State]] = []
        while len(rows):
            now = self._terminate(state, tol)
            if (now != RUNNING).any():
                running, finished = now == RUNNING, now != RUNNING
                codes[rows[finished]] = now[finished]
                done.append((rows[finished], state.select(finished)))
                rows, state = rows[running], state.select(running)
            if len(rows):
                state = _aim(metric, _line_search(metric, state))
                bar.set_postfix(steps=int(state.iterations.max()), running=len(rows), refresh=False)
        order = torch.cat([rows for rows, _ in done]).argsort()
        parts = zip(*([getattr(state, f.name) for f in fields(state)] for _, state in done), strict=True)
        return _State(*(torch.cat(tensors)[order] for tensors in parts)), codes

    def _terminate(self, state: _State, tol: float) -> Tensor:
        """Status codes (B,), RUNNING where a curve is not done."""
        codes = torch.full_like(state.iterations, RUNNING)
        codes[state.iterations >= self.max_steps] = Status.MAX_STEPS.code
        codes[state.stuck] = Status.STALLED.code
        if self.gradient_tol is None:
            small = state.gap <= max(_SHARE * tol, 10 * torch.finfo(state.x.dtype).eps)
        else:
            small = state.gradient.flatten(1).norm(dim=1) < self.gradient_tol
        codes[small] = Status.CONVERGED.code
        codes[~(torch.isfinite(state.value) & torch.isfinite(state.decrement))] = Status.NOT_FINITE.code
        return codes


@dataclass(frozen=True)
class _State:
    """Curves on their way down, one row each."""

    x: Tensor  # (B, T + 1, d) nodes
    g: Tensor  # (B, T, d, d) the metric at all of them but the last
    value: Tensor  # (B,) sum u'Gu
    gradient: Tensor  # (B, T - 1, d) of that by the interior nodes
    direction: Tensor  # (B, T - 1, d) to where the frozen problem has its minimum
    decrement: Tensor  # (B,) -gradient . direction, twice what the step promises
    gap: Tensor  # (B,) the estimated relative excess of the discrete length over the minimum
    stuck: Tensor  # (B,) whether no step was small enough
    iterations: Tensor  # (B,)
    evaluations: Tensor  # (B,)

    def select(self, index: Tensor) -> _State:
        """The curves at an index of the batch."""
        return _State(*(getattr(self, f.name)[index] for f in fields(self)))


def _begin(metric: Metric, x: Tensor) -> _State:
    g, value = _metric_and_value(metric, x)
    zero, count = torch.zeros_like(x[:, 1:-1]), torch.zeros(len(x), dtype=torch.long, device=x.device)
    unknown = torch.full_like(value, torch.nan)
    spent = count + (x.shape[1] - 1) * _costs(metric, x.shape[2])[0]
    return _aim(metric, _State(x, g, value, zero, zero, unknown, unknown, count > 0, count, spent))


def _aim(metric: Metric, state: _State) -> _State:
    """The gradient, and the direction to the steps that are the best ones while G and nu stay as they are."""
    x, g = state.x, state.g
    steps = x.diff(dim=1)
    nu = _guarded(lambda x: _turning(metric, x), x, *state.direction.shape[1:])
    pulled = 2 * (g @ steps[..., None])[..., 0]
    gradient = pulled[:, :-1] - pulled[:, 1:] + nu
    inverse = _inverse(g)
    behind = torch.nn.functional.pad(nu.flip(1).cumsum(1).flip(1), (0, 0, 0, 1))  # sums of the nu behind each node
    turned = (inverse @ behind[..., None])[..., 0]
    right = 2 * (x[:, -1] - x[:, 0]) + turned.sum(1)
    best = -0.5 * (turned - (inverse @ torch.linalg.solve_ex(inverse.sum(1), right)[0][:, None, :, None])[..., 0])
    direction = (best - steps).cumsum(1)[:, :-1]
    decrement = -(gradient * direction).sum((1, 2))
    # contraction of the gradient's length; the gap is what is left when all later steps contract as the last one did
    rate = (decrement / state.decrement).clamp(0, 0.98).sqrt().nan_to_num(_UNKNOWN_RATE)
    gap = decrement / (4 * state.value * (1 - rate)).clamp_min(torch.finfo(x.dtype).tiny)
    spent = state.evaluations + nu.shape[1] * _costs(metric, x.shape[2])[2]
    return replace(state, gradient=gradient, direction=direction, decrement=decrement, gap=gap, evaluations=spent)


def _line_search(metric: Metric, state: _State) -> _State:
    """The first of the steps 1, 1/2, 1/4, ... that lowers the sum enough along the direction.

    The whole step is tried with the metric that the next one needs; shorter ones with norms, which are cheaper.
    """
    n, d = state.x.shape[1] - 1, state.x.shape[2]
    per_matrix, per_norm, _ = _costs(metric, d)
    x, g, value = state.x.clone(), state.g.clone(), state.value.clone()
    spent = state.evaluations.clone()
    size = torch.ones_like(value)
    todo = torch.arange(len(x), device=x.device)
    noise = 10 * torch.finfo(x.dtype).eps * value
    for attempt in range(30):
        trial = state.x[todo].clone()
        trial[:, 1:-1] += size[todo, None, None] * state.direction[todo]
        tried, e = _metric_and_value(metric, trial) if not attempt else (None, _value(metric, trial))
        spent[todo] += n * (per_norm if attempt else per_matrix)
        promised = size[todo] * state.decrement[todo]
        good = e <= state.value[todo] - 1e-4 * promised + noise[todo]  # False for NaN
        accepted = todo[good]
        if len(accepted):
            x[accepted], value[accepted] = trial[good], e[good]
            g[accepted] = tried[good] if tried is not None else _metric_and_value(metric, trial[good])[0]
            spent[accepted] += 0 if tried is not None else n * per_matrix
        todo = todo[~good]
        size[todo] /= 2
        if not len(todo):
            break
    stuck = torch.zeros_like(state.stuck).index_fill(0, todo, True)
    return replace(state, x=x, g=g, value=value, stuck=stuck, iterations=state.iterations + 1, evaluations=spent)


def _metric_and_value(metric: Metric, x: Tensor) -> tuple[Tensor, Tensor]:
    """G at all nodes (B, T + 1, d) but the last, and sum u'Gu; NaN for curves on which the metric is not finite."""
    steps = x.diff(dim=1)
    g = _guarded(lambda x: metric.matrix(x[:, :-1]), x, *steps.shape[1:], x.shape[2])
    return g, torch.einsum("bti,btij,btj->b", steps, g, steps)


def _value(metric: Metric, x: Tensor) -> Tensor:
    """Sum u'Gu (B,) without the matrices."""

    def squares(x: Tensor) -> Tensor:
        steps = x.diff(dim=1)
        return metric.inner(x[:, :-1], steps, steps).sum(1)

    return _guarded(squares, x)


def _turning(metric: Metric, x: Tensor) -> Tensor:
    """nu, the gradient of u'G(x)u by the interior nodes x (B, T - 1, d), the steps u held."""
    steps = x.diff(dim=1)[:, 1:]
    curves = max(1, metric.points_at_once(x) // (4 * steps.shape[1]))
    parts = []
    for z, u in zip(x[:, 1:-1].split(curves), steps.split(curves), strict=True):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            squares = metric.inner(leaf, u, u)
        if squares.requires_grad:
            parts.append(torch.autograd.grad(squares.sum(), leaf, materialize_grads=True)[0])
            continue
        if not torch.equal(squares, metric.inner(z + 0.01 * (1 + z.abs()), u, u)):
            raise _checks.metric_without_gradient()
        parts.append(torch.zeros_like(z))  # a constant metric
    return torch.cat(parts)


def _inverse(g: Tensor) -> Tensor:
    """G^{-1} of matrices (..., d, d); a direction in which the decoder does not change counts as a very short one."""
    mean = g.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(g.dtype).tiny)
    least = max(1e-9, 10 * torch.finfo(g.dtype).eps) * mean
    identity = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
    lower, _ = torch.linalg.cholesky_ex(g + least[..., None, None] * identity)
    return torch.cholesky_inverse(lower)


def _guarded(function: Callable[[Tensor], Tensor], x: Tensor, *shape: int) -> Tensor:
    """A function (B, *shape) of curves (B, T + 1, d), NaN for those on which it meets a metric that is not finite."""
    try:
        return function(x)
    except _checks.NotFiniteError:
        if len(x) == 1:
            return x.new_full((1, *shape), torch.nan)
        half = len(x) // 2
        return torch.cat((_guarded(function, x[:half], *shape), _guarded(function, x[half:], *shape)))


def _costs(metric: Metric, d: int) -> tuple[int, int, int]:
    """Evaluations a node of `matrix`, of `inner` with one vector, and of that with its gradient."""
    matrix = metric.matrix_cost(d)
    return matrix, min(matrix, 4), min(matrix, 4) + 2
