"""Geodesics and distances of any metric, for any number of pairs at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pullback import _checks
from pullback.chords import chord_energy, root
from pullback.curves import Curve
from pullback.geodesics.batch import OnInterrupt, solve_pairs
from pullback.geodesics.collocate import Collocate
from pullback.geodesics.equation import geodesic_ode
from pullback.geodesics.exponential import Trajectory, exp
from pullback.geodesics.fallback import Fallback
from pullback.geodesics.files import load, save
from pullback.geodesics.georce import Georce
from pullback.geodesics.halves import by_halves
from pullback.geodesics.newton import Newton
from pullback.geodesics.relax import Relax
from pullback.geodesics.shoot import Shoot, aim
from pullback.geodesics.solution import ConvergenceError, Solution, Status
from pullback.geodesics.solver import GeodesicSolver
from pullback.geodesics.starts import Paths, Start
from pullback.geodesics.transport import transport
from pullback.geodesics.verify import Verification, verify
from pullback.metrics import Metric
from pullback.types import Points, Scalars, Tangents

__all__ = [
    "Collocate", "ConvergenceError", "Fallback", "GeodesicSolver", "Georce", "Newton", "Relax", "Shoot", "Solution",
    "Status", "Trajectory", "Verification", "distance", "exp", "geodesic", "geodesic_ode", "load", "log", "save",
    "transport", "verify",
]  # fmt: skip

_SOLVERS = {"relax": Relax, "collocate": Collocate, "shoot": Shoot, "georce": Georce, "newton": Newton}
_OTHER = 0.01  # relative difference of lengths from which on a shot has followed another geodesic
_EPSILONS = 32  # a smaller tolerance of log, in units of the dtype's rounding, is not met
_LOOKS = 16  # points at most to show to a decoder that raises errors, before these are the user's


def geodesic(
    metric: Metric,
    start: Points,
    end: Points,
    *,
    tol: float = 1e-4,
    solver: GeodesicSolver | str | None = None,
    init: Start | None = None,
    starts: Start | Sequence[Start] = "straight",
    progress: bool = False,
    on_interrupt: OnInterrupt = "raise",
) -> Solution:
    r"""Geodesics between pairs of points.

    Curves with fixed ends of least energy

    .. math:: E(c) = \tfrac12 \int_0^1 |\dot c|^2_{G(c)} \, dt .

    A geodesic found is a local minimum near the curve that the solver started from. Where several may exist (decoders
    with a variance have walls to go around) give several `starts`: the shortest wins, and ``candidates`` holds the
    lengths from all.

    Args:
        metric: The metric.
        start: Points (..., d).
        end: Points (..., d); both broadcast, so that one start may have many ends.
        tol: How well each length has to be known, relatively: the reported ``length_error`` is at most that.
        solver: How: a solver such as ``Relax()``, the default, or its name ("relax", "collocate", "shoot", "georce",
            "newton").
        init: What to start from: curves (..., T + 1, d) with the same ends, as of an earlier solution, or a graph.
        starts: The same for one or several: "straight", "bends" (to each side), curves, a graph. Each is solved for.
        progress: Whether to show a bar.
        on_interrupt: What Ctrl-C does: "raise", or "keep" the pairs that are finished, in blocks of 256 (on a GPU of
            16,384); the others are INTERRUPTED.

    Returns:
        Curves, lengths, errors and a status for each pair. A pair that failed has NaN and a status that says why.

    Raises:
        ValueError: When the points do not fit each other, the decoder or `init`. What the decoder raises on all pairs
            is raised here too; pairs that it raises on while others finish have the status RAISED.

    Warns:
        GeodesicWarning: When some pair failed; it lists which, why and what to try.

    Cost:
        About 230 decoder evaluations a pair where it is nearly flat, 1,400 in the mean on a VAE, for each start; see
        :class:`Relax`.

    Example:
        >>> import pullback as pb
        >>> path = pb.geodesic(pb.Pullback(torch.nn.Identity()), torch.zeros(2), torch.tensor([3.0, 4.0]))
        >>> round(float(path.length), 4)
        5.0
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    start, end = _checks.pairs(start, end)
    _checks.relative(tol, "tol")
    _look(metric, start, end)
    batch, d = start.shape[:-1], start.shape[-1]
    if on_interrupt not in ("raise", "keep"):
        raise ValueError(f'`on_interrupt` is {on_interrupt!r}: want "raise" or "keep".')
    flat = (start.detach().reshape(-1, d), end.detach().reshape(-1, d))
    raised: list[Exception] = []
    solution = solve_pairs(
        _solver(solver), metric, *flat, _starts(init, starts, batch), tol=tol, progress=progress,
        on_interrupt=on_interrupt, on_raise=raised.append,
    ).reshape(batch)  # fmt: skip
    if not solution.converged.all():
        warnings.warn(solution.message + _said(raised), _checks.GeodesicWarning, stacklevel=2)
    return solution


def distance(
    metric: Metric,
    a: Points,
    b: Points,
    *,
    tol: float = 1e-4,
    solver: GeodesicSolver | str | None = None,
    init: Start | None = None,
    starts: Start | Sequence[Start] = "straight",
    progress: bool = False,
) -> Scalars:
    r"""The length of the geodesic from a to b (..., d): (...), in units of the data space; NaN where none was found.

    It can be a training loss: it carries gradients to a, b and the decoder's weights. A geodesic is stationary, so that
    to first order its length changes by what the change of ends and decoder does to the fixed curve (envelope theorem):

    .. math:: \nabla_b d(a, b) = G(b) \, \dot c(1) / |\dot c(1)| .

    So the graph is that of one evaluation of the curve, however many steps the solver took. The gradient is as good as
    the curve: its relative error is below the root of `tol`, mostly far below. It is zero at a = b, and of pairs that
    failed: a loss that sums over pairs leaves these out by ``nansum``. There are no second derivatives.

    Weights get their gradient if they are parameters of `metric`, hence of a decoder that is a module. A function that
    only refers to some is not searched for them: give it as a module, or let `a` require a gradient.

    Arguments and warnings as for :func:`geodesic`.

    Cost: that of :func:`geodesic`; where a gradient is wanted, 1 evaluation a node of the finest curve more, and 2 for
    the backward pass.

    Example:
        >>> import pullback as pb
        >>> a, b = torch.zeros(2), torch.tensor([3.0, 4.0], requires_grad=True)
        >>> distance(pb.Pullback(torch.nn.Identity()), a, b).backward()
        >>> [round(x, 4) for x in b.grad.tolist()]
        [0.6, 0.8]
    """
    path = geodesic(metric, a, b, tol=tol, solver=solver, init=init, starts=starts, progress=progress)
    wanted = [a, b, *metric.parameters()]
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in wanted)):
        return path.length
    start, end = _checks.pairs(a, b)
    good = path.converged & (start != end).any(-1)  # at others the decoder may not even be defined
    start, end, nodes = start[good], end[good], path.curve.nodes[good]
    t = torch.linspace(0, 1, nodes.shape[-2], dtype=nodes.dtype, device=nodes.device)[:, None]
    # any motion of the curve that moves its ends has the same derivative; a smooth one suffers least from its errors
    moved = nodes + (1 - t) * (start - start.detach())[:, None] + t * (end - end.detach())[:, None]
    moved = _FirstOrder.apply(moved if moved.requires_grad else moved.requires_grad_())  # features ask for that
    length = root(2 * chord_energy(*metric.squared_chords(metric.features(moved))))
    return path.length + torch.zeros_like(path.length).masked_scatter(good, length - length.detach())


class _FirstOrder(torch.autograd.Function):
    """The identity, whose gradient has none: the second derivative of a fixed curve is not that of a distance."""

    @staticmethod
    def forward(ctx: Any, nodes: Tensor) -> Tensor:
        return nodes.view_as(nodes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pulled: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return pulled


def log(
    metric: Metric,
    z: Points,
    w: Points,
    *,
    tol: float = 1e-7,
    solver: GeodesicSolver | str | None = None,
    init: Start | None = None,
    starts: Start | Sequence[Start] = "straight",
    polish: bool = True,
    full: bool = False,
    progress: bool = False,
) -> Tangents | tuple[Tangents, Solution]:
    r"""The logarithm: the velocity (..., d) at z of the geodesic that reaches w (..., d) in unit time.

    :math:`\exp_z(\log_z w) = w`, and :math:`|\log_z w|_{G(z)}` is the distance. NaN where no geodesic was found.
    Beyond a conjugate point several geodesics lead from z to w; give several `starts`, and the shortest counts.

    Args:
        metric: The metric.
        z: Points (..., d).
        w: Points (..., d); both broadcast, so that one z may have many w.
        tol: How closely the geodesic equation is to hit w, relative to the distance; 32 roundings of the dtype (4e-6 in
            float32) are as close as it gets.
        solver: As for :func:`geodesic`, for the curve to begin with, which is found to at most 1e-4.
        init: The same.
        starts: The same.
        polish: Whether the velocity is corrected by shooting. Without, it is that of the curve, known to a per cent
            or so, at a tenth of the cost; it is also what decoders with creases get.
        full: Whether to return the curves as well.
        progress: Whether to show a bar.

    Returns:
        Velocities; with `full` also the :class:`Solution` whose ``status`` says what failed. Nothing carries gradients.

    Raises:
        ValueError: As for :func:`geodesic`.

    Warns:
        GeodesicWarning: When some pair failed; it lists which, why and what to try.

    Cost:
        That of :func:`geodesic`, then d + 4 integrations of the geodesic equation, see :func:`exp`: on a VAE with d = 2
        about 40,000 evaluations a pair, 1,400 with ``polish=False``.

    Example:
        >>> import pullback as pb
        >>> velocity = log(pb.Pullback(torch.nn.Identity()), torch.zeros(2), torch.tensor([3.0, 4.0]))
        >>> [round(x, 4) for x in velocity.tolist()]
        [3.0, 4.0]
    """
    _checks.relative(tol, "tol")
    path = geodesic(metric, z, w, tol=max(tol, 1e-4), solver=solver, init=init, starts=starts, progress=progress)
    start, end = (points.detach() for points in _checks.pairs(z, w))
    zero = torch.zeros(1, dtype=start.dtype, device=start.device)
    velocity = path.curve.velocity(zero)[..., 0, :]
    apart = (start != end).any(-1)
    velocity = torch.where(path.converged[..., None], torch.where(apart[..., None], velocity, 0), torch.nan)
    moving = (path.converged & apart) & (path.codes != Status.NON_SMOOTH.code)  # creases bend no geodesic equation
    if polish and moving.any():
        tol = max(tol, _EPSILONS * torch.finfo(start.dtype).eps)
        polished, codes, evaluations, raised = _polish(metric, start[moving], end[moving], velocity[moving], tol)
        path.evaluations[moving] += evaluations + 4
        speed = metric.norm(start[moving], polished.nan_to_num())
        other = (speed - path.length[moving]).abs() > path.length_error[moving] + _OTHER * path.length[moving]
        codes[other & (codes == Status.CONVERGED.code)] = (
            Status.STALLED.code
        )  # it hit by another geodesic, or by a crease
        failed = codes != Status.CONVERGED.code
        velocity[moving] = torch.where(failed[:, None], torch.nan, polished)
        if failed.any():
            path.codes[moving] = torch.where(failed, codes, path.codes[moving])
            for values in (path.length, path.length_error, path.energy):
                values[~path.converged] = torch.nan
            text = f"{path.message}{_said(raised)}. Shooting did not hit the end: try polish=False, or a larger tol"
            warnings.warn(text, _checks.GeodesicWarning, stacklevel=2)
    return (velocity, path) if full else velocity


def _polish(
    metric: Metric, start: Tensor, end: Tensor, velocity: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, list[Exception]]:
    """Velocities (B, d) by shooting, NaN where it failed; Status codes, evaluations; and what the decoder raised."""
    found = torch.full_like(velocity, torch.nan)
    codes = torch.full((len(start),), Status.RAISED.code, device=start.device)
    evaluations = torch.zeros_like(codes)
    every = torch.arange(len(start), device=start.device)
    where, parts, error = by_halves(lambda rows: aim(metric, start[rows], end[rows], velocity[rows], tol=tol), every)
    if error is not None and all(part is None for part in parts):
        raise error
    for rows, part in zip(where, parts, strict=True):
        if part is not None:
            found[rows], _, codes[rows], evaluations[rows] = part
    return found, codes, evaluations, [error] if error is not None else []


def _look(metric: Metric, start: Tensor, end: Tensor) -> None:
    """Have the decoder looked at, even when no curve will need it: at the first point that it does not raise on."""
    points = torch.cat((start.detach().reshape(-1, start.shape[-1]), end.detach().reshape(-1, end.shape[-1])))
    if not len(points):
        metric.points_at_once(start)
        return
    looks = torch.linspace(0, len(points) - 1, min(_LOOKS, len(points)), device=points.device).long()
    _, seen, error = by_halves(lambda rows: metric.points_at_once(points[rows]), looks)
    if error is not None and all(size is None for size in seen):
        raise error


def _said(raised: list[Exception]) -> str:
    """What the decoder said when it raised an error, to follow a message."""
    return "".join(f"; the decoder said: {type(error).__name__}: {error}" for error in raised[:1])


def _solver(solver: GeodesicSolver | str | None) -> GeodesicSolver:
    if solver is None:
        return Relax()
    if isinstance(solver, GeodesicSolver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"`solver` is a {type(solver).__name__}: give a solver such as Relax(), or its name.")
    if solver not in _SOLVERS:
        raise ValueError(f"`solver` is {solver!r}: want one of {', '.join(map(repr, _SOLVERS))}.")
    return _SOLVERS[solver]()


def _starts(init: Start | None, starts: Start | Sequence[Start], batch: torch.Size) -> Start | Sequence[Start]:
    """What to start from; curves are checked against the batch shape of the pairs."""
    if init is not None and starts != "straight":
        raise ValueError("`init` and `starts` are both given: put all into `starts`.")
    name, several = ("starts", starts) if init is None else ("init", init)
    for one in several if isinstance(several, list | tuple) else [several]:
        if not isinstance(one, str | Curve | Paths):
            kind = type(one).__name__
            raise TypeError(f'`{name}` is a {kind}: give "straight", "bends", a Curve, a Graph, or several of these.')
        if isinstance(one, Curve) and one.nodes.shape[:-2] != batch:
            want = (*batch, "T + 1", one.nodes.shape[-1])
            raise ValueError(f"`{name}` holds curves {tuple(one.nodes.shape)}: want {want}, one for each pair.")
    return several
