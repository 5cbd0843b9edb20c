"""The best known length of each pair: the shortest curve that any method has found, measured finely.

The candidates are our own solver with its tolerance at 1e-7, from several starts, where there are walls also a slower
one whose chords cannot jump them, and whatever the contestants of the race return. A subset of the pairs is checked by
:func:`benchmarks.truth.true_lengths`, which shares no code with it.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

import pullback as pb
from benchmarks.problems import Problem
from benchmarks.truth import true_lengths
from pullback.graphs import Graph, grid_graph

TOL = 1e-7
SAMPLES = 4096
_graphs: dict[str, Graph] = {}


class Reference(NamedTuple):
    """Lengths (B,), finely measured."""

    best: Tensor  # of the shortest curve known
    line: Tensor  # of the straight line
    gap: Tensor  # by how much the worst local minimum found is longer than the best, relatively


def metric_of(problem: Problem) -> pb.Pullback:
    """The metric of a problem's decoder."""
    return pb.Pullback(problem.decoder)


def fine_lengths(problem: Problem, nodes: Tensor) -> Tensor:
    """Lengths (B,) by 4,096 plain chords of the splines through nodes (B, M + 1, d); inf where one is not finite."""
    finite = torch.isfinite(nodes).flatten(1).all(1)
    lengths = torch.full((len(nodes),), torch.inf, dtype=nodes.dtype)
    metric = metric_of(problem)
    for row in finite.nonzero().reshape(-1).tolist():
        fine = pb.Curve(nodes[row]).resample(SAMPLES).nodes
        x = torch.cat([metric.features(part) for part in fine.split(512)])
        lengths[row] = x.diff(dim=0).norm(dim=1).sum().nan_to_num(torch.inf)
    return lengths


def graph_of(problem: Problem) -> Graph | None:
    """A grid graph over the plane of a problem that has walls, made once."""
    if problem.bounds is None:
        return None
    if problem.name not in _graphs:
        _graphs[problem.name] = grid_graph(metric_of(problem), problem.bounds, problem.resolution, n_interior=3)
    return _graphs[problem.name]


def reference(problem: Problem, start: Tensor, end: Tensor) -> Reference:
    """The best of what is found from the straight line, bends to both sides and, where there is one, a graph.

    Curves that fall short of the tolerance count as well: each is an upper bound of the distance.
    """
    lengths = torch.stack([fine_lengths(problem, nodes) for nodes in _candidates(problem, start, end)])
    line = fine_lengths(problem, torch.stack((start, end), 1))
    best = torch.minimum(lengths.amin(0), line)
    worst = torch.where(torch.isfinite(lengths), lengths, -torch.inf).amax(0)
    return Reference(best, line, worst / best - 1)


def polished(problem: Problem, nodes: Tensor) -> Tensor:
    """Lengths (B,) of the geodesics next to curves (B, M + 1, d): is one of these the curve meant, or another?"""
    found = _solve(problem, nodes[:, 0], nodes[:, -1], pb.Curve(nodes))
    return torch.minimum(fine_lengths(problem, found), fine_lengths(problem, nodes))


def check(problem: Problem, start: Tensor, end: Tensor, best: Tensor) -> tuple[float, float]:
    """Over some pairs, by how much the reference is above the independent truth and below it, relatively, at most."""
    found = _solve(problem, start, end, "straight")
    truth, _ = true_lengths(problem.decoder, start, end, [found])
    off = best / truth - 1
    return max(float(off.max()), 0.0), max(float(-off.min()), 0.0)


def sagged(problem: Problem, nodes: Tensor, n: int = 64, finer: int = 8, max_steps: int = 40) -> Tensor:
    """Curves (B, n + 1, d) of least energy next to given ones, with more samples than unknowns: no chord jumps a wall.

    Levenberg-Marquardt on the chord energy of n * finer samples of a spline through n + 1 nodes, each curve with its
    own damping; dense, so for small d. Slow, but it shares nothing with the solver but the spline.
    """
    z = pb.Curve(nodes).resample(n).nodes.clone()
    weights = pb.Curve(torch.eye(n + 1, dtype=z.dtype)).resample(n * finer).nodes  # (samples, n + 1)
    damping = torch.full((len(z),), 1e-3, dtype=z.dtype)
    energy, gradient, matrix = _quadratic(problem, z, weights)
    running = torch.isfinite(energy).nonzero().reshape(-1)
    for _ in range(max_steps):
        if not len(running):
            break
        scale = matrix[running].diagonal(dim1=1, dim2=2)
        shift = damping[running, None] * scale + 1e-12 * scale.amax(1, keepdim=True)
        damped = matrix[running] + torch.diag_embed(shift)
        step = torch.linalg.solve_ex(damped, gradient[running][..., None])[0]
        trial = z[running].clone()
        trial[:, 1:-1] -= step.reshape(len(trial), n - 1, -1)
        new = _quadratic(problem, trial, weights)
        fall = energy[running] - new[0]
        good = fall > 0  # False for NaN
        rows = running[good]
        z[rows], energy[rows], gradient[rows], matrix[rows] = trial[good], *(part[good] for part in new)
        damping[running] = torch.where(good, damping[running] / 4, damping[running] * 8).clamp_min(1e-10)
        done = (good & (fall < 1e-9 * energy[running])) | (damping[running] > 1e8)
        running = running[~done]
    return z


def _quadratic(problem: Problem, z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy, gradient and Gauss-Newton matrix of many curves, four at a time: one may take 100 MB."""
    parts = [_quadratic_of_few(problem, part, weights) for part in z.split(4)]
    energy, gradient, matrix = (torch.cat(values) for values in zip(*parts, strict=True))
    return energy, gradient, matrix


def _quadratic_of_few(problem: Problem, z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy (B,), its gradient (B, m) and Gauss-Newton matrix (B, m, m) by the m coordinates of the inner nodes."""
    batch, d, jvp = len(z), z.shape[2], torch.func.jvp
    y = weights @ z
    flat, n = y.reshape(-1, d), y.shape[1] - 1
    with torch.no_grad():
        x = problem.decoder(flat).reshape(batch, n + 1, -1)
        axes = torch.eye(d, dtype=z.dtype)
        pushed = [jvp(problem.decoder, (flat,), (axis.expand_as(flat).contiguous(),))[1] for axis in axes]
    j = torch.stack(pushed, -1).reshape(batch, n + 1, -1, d)
    chords = x.diff(dim=1)
    tension = torch.nn.functional.pad(chords, (0, 0, 1, 0)) - torch.nn.functional.pad(chords, (0, 0, 0, 1))
    inner = weights[:, 1:-1]
    pulled = (j.mT @ tension[..., None])[..., 0]  # before the sum over samples, or einsum makes an array of all indices
    gradient = 2 * n * torch.einsum("sp,bsa->bpa", inner, pulled)
    # each chord has the residual J_{i+1} w_{i+1} - J_i w_i, of which the matrix is the sum of squares
    same = j.mT @ j
    next_one = j[:, :-1].mT @ j[:, 1:]
    ends = same[:, 1:-1]
    twice = torch.cat((same[:, :1], 2 * ends, same[:, -1:]), 1)
    matrix = torch.einsum("sp,bsac,sq->bpaqc", inner, twice, inner)
    mixed = torch.einsum("sp,bsac,sq->bpaqc", inner[:-1], next_one, inner[1:])
    matrix = 2 * n * (matrix - mixed - mixed.permute(0, 3, 4, 1, 2))
    m = inner.shape[1] * d
    return n * chords.square().sum((1, 2)), gradient.reshape(batch, m), matrix.reshape(batch, m, m)


def _candidates(problem: Problem, start: Tensor, end: Tensor) -> list[Tensor]:
    graph = graph_of(problem)
    starts: list = ["straight", *_bends(start, end)]
    if graph is not None:
        starts.append(graph.curves(metric_of(problem), start, end, n_segments=128)[0])
    found = [_solve(problem, start, end, one) for one in starts]
    if graph is None:
        return found
    found.append(starts[-1].nodes)
    lengths = torch.stack([fine_lengths(problem, nodes) for nodes in found])
    n = max(nodes.shape[1] - 1 for nodes in found)
    even = torch.stack([pb.Curve(nodes).resample(n).nodes for nodes in found])
    best = even[lengths.argmin(0), torch.arange(len(start))]
    return [*found, sagged(problem, best)]


def _bends(start: Tensor, end: Tensor) -> list[pb.Curve]:
    """Half waves to both sides, in the direction of one axis made normal to the line."""
    along = end - start
    side = torch.nn.functional.one_hot(along.abs().argmin(1), along.shape[1]).to(along)
    side = side - (side * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True) * along
    side = side / side.norm(dim=1, keepdim=True) * along.norm(dim=1, keepdim=True)
    t = torch.linspace(0, 1, 17, dtype=start.dtype)[:, None]
    line = pb.Curve.straight(start, end, 16).nodes
    curves = [line + size * torch.sin(torch.pi * t) * side[:, None] for size in (0.3, -0.3)]
    for nodes in curves:
        nodes[:, 0], nodes[:, -1] = start, end
    return [pb.Curve(nodes) for nodes in curves]


def _solve(problem: Problem, start: Tensor, end: Tensor, init: str | pb.Curve) -> Tensor:
    """Nodes of the curves that the solver ends with at the finest tolerance, converged or not."""
    first = 8 if problem.smooth else 128  # creases: few nodes find another minimum
    solver = pb.Relax(first_segments=first, max_segments=512, max_evaluations=60_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pb.geodesic(metric_of(problem), start, end, tol=TOL, solver=solver, init=init).curve.nodes
