"""The contestants of the race, each behind the same call: pairs in; curves, flags and counts out.

What a contestant costs is counted by the decoder that it is given, unless it says itself what a lean implementation
would have cost (GEORCE, and the right-hand side for scipy), which is less.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import pullback as pb
from benchmarks.problems import Problem
from benchmarks.reference import graph_of
from pullback.geodesics.certificate import certificate_cost
from pullback.geodesics.energy import DiscreteEnergy

SAMPLES = 256  # segments of the curves that are returned by parametric contestants
CHORDS = 100  # of the discrete energy that L-BFGS minimizes


class Answer(NamedTuple):
    """What a contestant returns for B pairs."""

    nodes: Tensor  # (B, M + 1, d), of a spline
    converged: Tensor  # (B,) what it says itself
    error: Tensor | None = None  # (B,) its estimate of the error of its lengths, if it has one
    evaluations: Tensor | None = None  # (B,) where it knows better than a counter


Solve = Callable[[Problem, Tensor, Tensor], Answer]


@dataclass(frozen=True)
class Contestant:
    """A method at one setting.

    Attributes:
        name: As in the table.
        solve: Geodesics of pairs of a problem.
        tol: The relative accuracy that it promises where it says converged.
        at_once: Pairs that it is given in one call; 1 for what knows no batches.
        most: Pairs it is given at most, where it takes minutes each.
        ours: Whether its results are void when the package has changed.
        fits: Which problems it is tried on.
    """

    name: str
    solve: Solve
    tol: float = 1e-4
    at_once: int = 1
    most: int = 10_000
    ours: bool = False
    fits: Callable[[Problem], bool] = lambda problem: True


def pullback(tol: float = 1e-4, starts: str = "straight", **settings: Any) -> Solve:
    """This package. `starts`: "straight", "bends" (and straight), "graph" (and straight)."""

    def solve(problem: Problem, start: Tensor, end: Tensor) -> Answer:
        metric = pb.Pullback(problem.decoder)
        chosen: Any = {"straight": "straight", "bends": ["straight", "bends"], "graph": ["straight", graph_of(problem)]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = pb.geodesic(metric, start, end, tol=tol, starts=chosen[starts], **settings)
        return Answer(path.curve.nodes, path.converged, path.length_error, path.evaluations)

    return solve


def georce(n_segments: int = 100, tol: float = 1e-4, gradient_tol: float | None = None) -> Solve:
    """GEORCE at a fixed number of segments; the costs of looking at its minimum are not counted."""

    def solve(problem: Problem, start: Tensor, end: Tensor) -> Answer:
        metric = pb.Pullback(problem.decoder)
        solver = pb.Georce(n_segments=n_segments, max_segments=n_segments, max_steps=300, gradient_tol=gradient_tol)
        nodes = torch.stack((start, end), 1)
        path = solver.solve(metric, start, end, tol=tol, nodes=nodes)
        # it stands at a minimum of its own sum, though that may be a poor approximation
        minimal = path.converged | (path.codes == pb.Status.WALL.code) | (path.codes == pb.Status.STALLED.code)
        energy = DiscreteEnergy(metric, start, end, start, end)
        looked = n_segments - 1 + certificate_cost(energy, n_segments)
        spent = path.evaluations - torch.where(minimal, looked, 0)
        return Answer(path.curve.nodes, minimal & (path.iterations < 300), None, spent)

    return solve


def stochman(max_iter: int = 150, eval_grid: int = 20, num_nodes: int = 5) -> Solve:
    """stochman 0.3.0: a cubic spline whose energy Adam lowers, all pairs of a batch with one stopping test."""

    def solve(problem: Problem, start: Tensor, end: Tensor) -> Answer:
        from stochman.curves import CubicSpline
        from stochman.geodesic import geodesic_minimizing_energy
        from stochman.manifold import EmbeddedManifold

        class Latent(EmbeddedManifold):
            def embed(self, c, jacobian=False):
                return problem.decoder(c.reshape(-1, problem.d)).reshape(*c.shape[:-1], -1)

        curve = CubicSpline(start, end, num_nodes=num_nodes)
        success = geodesic_minimizing_energy(curve, Latent(), max_iter=max_iter, eval_grid=eval_grid)
        with torch.no_grad():
            nodes = curve(torch.linspace(0, 1, SAMPLES + 1, dtype=start.dtype)).reshape(len(start), SAMPLES + 1, -1)
        nodes[:, 0], nodes[:, -1] = start, end
        return Answer(nodes, torch.full((len(start),), bool(success)))

    return solve


def lbfgs(**settings: Any) -> Solve:
    """torch.optim.LBFGS with strong Wolfe conditions on the energy of 100 chords, one curve after the other."""

    def solve(problem: Problem, start: Tensor, end: Tensor) -> Answer:
        answers = [_lbfgs_one(problem, a, b, settings) for a, b in zip(start, end, strict=True)]
        nodes, converged = zip(*answers, strict=True)
        return Answer(torch.stack(nodes), torch.tensor(converged))

    return solve


def _lbfgs_one(problem: Problem, a: Tensor, b: Tensor, settings: dict[str, Any]) -> tuple[Tensor, bool]:
    line = pb.Curve.straight(a, b, CHORDS).nodes
    z = line[1:-1].clone().requires_grad_()
    with torch.no_grad():
        first, last = problem.decoder(torch.stack((a, b))).split(1)
    optimizer = torch.optim.LBFGS([z], line_search_fn="strong_wolfe", **settings)

    def energy() -> Tensor:
        optimizer.zero_grad()
        value = CHORDS * torch.cat((first, problem.decoder(z), last)).diff(dim=0).square().sum()
        value.backward()
        return value

    optimizer.step(energy)
    state, limit = optimizer.state[z], optimizer.param_groups[0]
    stopped_itself = state["n_iter"] < limit["max_iter"] and state["func_evals"] < limit["max_eval"]
    return torch.cat((line[:1], z.detach(), line[-1:])), stopped_itself


def solve_bvp(tol: float = 1e-3, max_nodes: int = 1000, first_nodes: int = 11) -> Solve:
    """scipy's collocation on z'' = -G^{-1} J' f''(z', z'), from the straight line, one curve after the other."""

    def solve(problem: Problem, start: Tensor, end: Tensor) -> Answer:
        from scipy.integrate import solve_bvp as collocate

        t, fine = np.linspace(0, 1, first_nodes), np.linspace(0, 1, SAMPLES + 1)
        nodes, converged, spent = [], [], []
        for a, b in zip(start.numpy(), end.numpy(), strict=True):
            field = _GeodesicField(problem)
            line = np.concatenate((a + t[:, None] * (b - a), np.broadcast_to(b - a, (len(t), len(a)))), 1).T

            def ends(left: np.ndarray, right: np.ndarray, a: np.ndarray = a, b: np.ndarray = b) -> np.ndarray:
                return np.concatenate((left[: len(a)] - a, right[: len(a)] - b))

            with np.errstate(all="ignore"):
                found = collocate(field, ends, t, line, tol=tol, max_nodes=max_nodes)
            curve = torch.from_numpy(found.sol(fine)[: len(a)].T.copy())
            curve[0], curve[-1] = torch.from_numpy(a), torch.from_numpy(b)
            nodes.append(curve)
            converged.append(found.status == 0)
            spent.append(field.evaluations)
        return Answer(torch.stack(nodes), torch.tensor(converged), None, torch.tensor(spent))

    return solve


class _GeodesicField:
    """The geodesic equation as scipy wants it, with nothing of the package: (2d, m) to (2d, m); d + 5 a point."""

    def __init__(self, problem: Problem) -> None:
        self.decoder, self.d, self.evaluations = problem.decoder, problem.d, 0

    def __call__(self, t: np.ndarray, y: np.ndarray) -> np.ndarray:
        z, v = torch.from_numpy(y.T.copy()).split(self.d, 1)
        self.evaluations += len(z) * (self.d + 5)
        jvp = torch.func.jvp

        def along(z: Tensor) -> Tensor:
            return jvp(self.decoder, (z,), (v,))[1]

        bent = jvp(along, (z,), (v,))[1]
        axes = torch.eye(self.d, dtype=z.dtype)
        jacobian = torch.stack([jvp(self.decoder, (z,), (axis.expand_as(z),))[1] for axis in axes], -1)  # (m, D, d)
        metric = jacobian.mT @ jacobian
        pulled = jacobian.mT @ bent[..., None]
        turn, _ = torch.linalg.solve_ex(metric, pulled)
        return np.concatenate((v.numpy().T, -turn[..., 0].numpy().T))


def geomstats(straighten: bool = False) -> Solve:
    """geomstats 2.8, `PullbackMetric.log`: shooting with 100 Euler steps by default, or path straightening."""

    def solve(problem: Problem, start: Tensor, end: Tensor) -> Answer:
        space = immersed(problem, start)
        if straighten:
            from geomstats.numerics.geodesic import PathStraightening

            space.metric.log_solver = PathStraightening(space, n_nodes=CHORDS + 1)
        nodes, converged = [], []
        for a, b in zip(start, end, strict=True):
            if straighten:
                curve = space.metric.log_solver.discrete_geodesic_bvp(b, a).detach()
                converged.append(True)
            else:
                velocity = space.metric.log(b, a)
                curve = space.metric.exp_solver._solve(velocity, a).y[..., 0, :].detach()  # all its Euler steps
                hit = float((curve[-1] - b).norm()) <= 1e-3 * float((b - a).norm())
                converged.append(hit)
            curve = curve.reshape(-1, problem.d)
            curve[0], curve[-1] = a, b
            nodes.append(curve)
        return Answer(torch.stack(nodes), torch.tensor(converged))

    return solve


def immersed(problem: Problem, start: Tensor) -> Any:
    """The decoder as an immersed set of geomstats, on its torch backend."""
    os.environ["GEOMSTATS_BACKEND"] = "pytorch"
    default = torch.get_default_dtype()
    from geomstats.geometry.base import ImmersedSet
    from geomstats.geometry.euclidean import Euclidean

    torch.set_default_dtype(torch.float64)  # its integrator makes numbers of the default type
    with torch.no_grad():
        n_features = problem.decoder(start[:1]).shape[1]

    class Latent(ImmersedSet):
        def __init__(self) -> None:
            super().__init__(dim=problem.d)

        def _define_embedding_space(self) -> Any:
            return Euclidean(n_features)

        def immersion(self, point: Tensor) -> Tensor:
            return problem.decoder(point.reshape(-1, problem.d)).reshape(*point.shape[:-1], n_features)

    space = Latent()
    torch.set_default_dtype(default)
    return space


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside when the time is over; on the main thread of Unix."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _smooth(problem: Problem) -> bool:
    return problem.smooth


def _small(problem: Problem) -> bool:
    return problem.smooth and problem.d <= 3 and problem.bounds is None


CONTESTANTS: dict[str, Contestant] = {
    "pullback": Contestant("pullback", pullback(), at_once=100, ours=True),
    "pullback-loose": Contestant("pullback, tol 3e-3", pullback(3e-3), tol=3e-3, at_once=100, ours=True),
    "pullback-starts": Contestant("pullback, several starts", pullback(starts="bends"), at_once=100, ours=True),
    "pullback-graph": Contestant(
        "pullback, graph start", pullback(starts="graph"), at_once=100, ours=True, fits=lambda p: p.bounds is not None
    ),
    "stochman": Contestant("stochman 0.3.0, defaults", stochman(), at_once=40),
    "stochman-best": Contestant(
        "stochman, 1,000 steps, 64 points, 12 nodes", stochman(1000, 64, 12), at_once=40, most=40
    ),
    "bvp": Contestant("scipy solve_bvp, defaults", solve_bvp(), tol=1e-3, fits=_smooth),
    "bvp-best": Contestant("scipy solve_bvp, tol 1e-5, 10,000 nodes", solve_bvp(1e-5, 10_000, 33), fits=_smooth),
    "lbfgs": Contestant("torch L-BFGS, 100 chords, defaults", lbfgs()),
    "lbfgs-best": Contestant(
        "torch L-BFGS, 100 chords, 2,000 steps", lbfgs(max_iter=2000, max_eval=5000, history_size=30), most=40
    ),
    "geomstats": Contestant("geomstats 2.8, log by shooting", geomstats(), most=3, fits=_small),
    "geomstats-best": Contestant("geomstats 2.8, path straightening", geomstats(True), most=3, fits=_small),
    "georce": Contestant("GEORCE, T = 100, its authors' stop", georce(gradient_tol=1e-4), at_once=5, ours=True),
} | {
    f"georce-{n}{suffix}": Contestant(f"GEORCE, T = {n}{words}", georce(n, tol), at_once=5, ours=True)
    for suffix, words, tol in (("", "", 1e-4), ("-tight", ", stop at 1e-6", 1e-6))
    for n in (24, 50, 100, 200)
}  # fmt: skip
