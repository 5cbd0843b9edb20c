"""Walks: their time on the shipped model, how far they go, and what a weak error costs with each scheme.

OMP_NUM_THREADS=1 python tests/benchmarks/walks.py           # about six minutes
OMP_NUM_THREADS=1 python tests/benchmarks/walks.py --dry     # writes nothing
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

from run import Rows, report

import pullback as pb
from benchmarks.counting import Counting
from pullback.curvature.immersion import gram_frame

F64 = torch.float64
N_WALKS, N_STEPS, N_EXACT = 1000, 1000, 50
Step = Callable[[pb.Metric, Tensor, float, torch.Generator], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def speed() -> Rows:
    """1,000 walks of 1,000 steps on the shipped model, by the decoder and by a table: seconds of one core."""
    model = pb.models.pretrained("mnist012")
    counter = Counting(model.decoder)
    metric, codes, step = pb.Pullback(counter), model.codes, 0.5
    start = codes[torch.randperm(len(codes), generator=seeded())[:N_WALKS]]
    room = 2.0 * torch.tensor([-1.0, 1.0], dtype=F64) + torch.stack((codes.amin(0), codes.amax(0)), -1)
    metric.matrix(start[:1])
    rows: Rows = []
    made, table = timed(lambda: pb.Tabulated(pb.Pullback(model.decoder), room))
    for name, walk in (("random_walk", pb.random_walk), ("brownian_motion", pb.brownian_motion)):
        settings = {"domain": room, "full": True}
        for kind, metric_, n_steps in (("by a table", table, N_STEPS), ("by the decoder", metric, N_EXACT)):
            size = step if walk is pb.random_walk else n_steps * step**2
            counter.reset()
            seconds, found = timed(lambda: walk(metric_, start, n_steps, size, generator=seeded(), **settings))  # noqa: B023
            seconds *= N_STEPS / n_steps
            told = f"{seconds:.0f} s" if metric_ is metric else f"{made + seconds:.0f} s, {made:.0f} s of it the table"
            substeps = int(found.substeps.sum())
            told += f"; {substeps / n_steps / len(start):.2f} substeps a step"
            told += f"; {counter.reset() / substeps:.1f} evaluations each" if metric_ is metric else ""
            lost = int((~found.finished).sum())
            bar = "<= 60 s" if rows == [] else ""
            rows.append((f"1,000 walks of 1,000 steps, `{name}`, {kind}", bar, f"{told}; {lost} lost"))
    return rows


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this process's own, and the result."""
    begin = time.process_time()
    found = function()
    return time.process_time() - begin, found


def excursions(n_walks: int = 10) -> Rows:
    """How far from the codes walks get: the mean over walks of their largest distance to the nearest code."""
    model = pb.models.pretrained("mnist012")
    codes = model.codes
    room = 2.5 * torch.tensor([-1.0, 1.0], dtype=F64) + torch.stack((codes.amin(0), codes.amax(0)), -1)
    table = pb.Tabulated(pb.Pullback(model.decoder), room)
    start = codes[(codes - codes.median(0).values).norm(dim=1).argmin()].expand(n_walks, 2)
    inverse = torch.linalg.inv(table.matrix(codes)).diagonal(dim1=1, dim2=2).mean(1).median() ** 0.5
    rows: Rows = []
    for size, n_steps in ((0.02, 4000), (0.08, 1000), (0.08, 4000)):
        settings = {"generator": seeded(1)}
        riemannian = pb.random_walk(table, start, n_steps, size / float(inverse), **settings)
        plain = pb.random_walk(pb.Pullback(lambda z: z), start, n_steps, size, **settings)
        far = [_farthest(walk, codes) for walk in (riemannian, plain)]
        told = f"{far[0]:.2f} against {far[1]:.2f}: {far[0] / far[1]:.2f} times"
        rows.append(
            (f"farthest from the codes, {n_steps} steps of {size}, Riemannian against Euclidean", "<= 0.6 times", told)
        )
    return rows  # fmt: skip


def _farthest(walk: Tensor, codes: Tensor) -> float:
    distances = [torch.cdist(path, codes[::4]).amin(1).amax() for path in walk.nan_to_num(0.0)]
    return float(torch.stack(distances).mean())


def euler(metric: pb.Metric, z: Tensor, h: float, generator: torch.Generator) -> Tensor:
    """Euler and Maruyama, with the drift from Christoffel vectors along a frame."""
    frame, _ = gram_frame(metric.matrix(z))
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    drift = sum(metric.christoffel(z, e, e) for e in frame.unbind(-1))
    return z + h**0.5 * (frame @ noise[..., None])[..., 0] - 0.5 * h * drift


def taylor(metric: pb.Metric, z: Tensor, h: float, generator: torch.Generator) -> Tensor:
    """Along a geodesic to second order, with a Christoffel vector."""
    frame, _ = gram_frame(metric.matrix(z))
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    v = h**0.5 * (frame @ noise[..., None])[..., 0]
    return z + v - 0.5 * metric.christoffel(z, v, v)


def midpoint(metric: pb.Metric, z: Tensor, h: float, generator: torch.Generator) -> Tensor:
    """Without derivatives of G: its difference over the step gives the drift in the mean."""
    g = metric.matrix(z)
    frame, _ = gram_frame(g)
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    v = h**0.5 * (frame @ noise[..., None])[..., 0]
    there = metric.matrix(z + v)
    turned = torch.linalg.solve(there, g @ v[..., None])[..., 0]
    stretch = 0.5 * (torch.logdet(there) - torch.logdet(g))
    return z + 0.5 * (v + turned) + 0.5 * stretch[:, None] * v


def ours(scheme: str) -> Step:
    def step(metric: pb.Metric, z: Tensor, h: float, generator: torch.Generator) -> Tensor:
        settings = {"scheme": scheme, "generator": generator, "max_bend": math.inf}
        return pb.brownian_motion(metric, z, 1, h, **settings)[:, -1]  # pyright: ignore[reportCallIssue, reportArgumentType]

    return step


def weak_errors(n: int = 40_000, total: float = 0.25) -> list[str]:
    """E cos r on the sphere after a time, by scheme and number of steps; evaluations of the decoder a step."""
    schemes = {
        "geodesic (ours)": ours("geodesic"),
        "metropolis (ours)": ours("metropolis"),
        "along a geodesic, with Christoffel vectors": taylor,
        "Euler, with the drift": euler,
        "midpoint, without derivatives": midpoint,
    }
    counts = (2, 4, 8, 16)
    lines = [
        f"E cos r on the unit sphere at t = {total}, {n:,} walks, standard error 0.001:",
        "",
        f"| scheme | evaluations a step | {' | '.join(f'error, {k} steps' for k in counts)} |",
        "|---|---|" + "---|" * len(counts),
    ]
    for name, step in schemes.items():
        sphere = pb.surfaces.Sphere()
        counter = Counting(sphere)
        metric, start = pb.Pullback(counter), torch.tensor([0.5, -0.3], dtype=F64)
        metric.matrix(start)
        errors = []
        for count in counts:
            generator = seeded(count)
            z = start.expand(n, 2)
            for _ in range(count):
                z = step(metric, z, total / count, generator)
            cosine = sphere.distance(start, z).cos()
            errors.append(f"{float(cosine.nanmean()) - math.exp(-total):+.4f}")
        counter.reset()
        if name.endswith("(ours)"):
            settings = {"scheme": name.split()[0], "full": True, "generator": seeded()}
            walk = pb.brownian_motion(metric, start.expand(100, 2), 50, 0.01, max_bend=math.inf, **settings)
            each = counter.reset() / int(walk.substeps.sum())
        else:
            step(metric, start.expand(100, 2), 0.01, seeded())
            each = counter.reset() / 100
        lines.append(f"| {name} | {each:.1f} | {' | '.join(errors)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*speed(), *excursions()]
    lines = ["| what | bar | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    report("walks", [*lines, "", *weak_errors()], dry=options.dry)


if __name__ == "__main__":
    main()
