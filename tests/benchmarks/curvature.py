"""Curvature against geomstats, its memory in many dimensions, and whether its error bars are right.

OMP_NUM_THREADS=1 python tests/benchmarks/curvature.py           # about two minutes
OMP_NUM_THREADS=1 python tests/benchmarks/curvature.py --dry     # writes nothing
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

from run import Rows, best_time, report

import pullback as pb
from benchmarks.counting import Counting
from benchmarks.peers import immersed
from benchmarks.problems import PROBLEMS, perceptron

F64 = torch.float64

MANY = """
import resource, torch, pullback as pb
from curvature import wide
metric, z = pb.Pullback(wide(), memory=1 << 29), torch.zeros(128, dtype=torch.float64)
value, error = pb.curvature.scalar(metric, z, n_probes=64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, float(value), float(error))
"""


def wide() -> nn.Module:
    """A smooth decoder from 128 to 100,000 dimensions."""
    return perceptron((128, 256, 100_000), nn.Tanh, 1.5, seed=128).requires_grad_(False)


def against_geomstats(n_points: int = 1000, n_theirs: int = 6) -> Rows:
    """Scalar curvature of the shipped model, a point, side by side."""
    problem, sphere = PROBLEMS["mnist"](), PROBLEMS["sphere2"]()
    z = pb.models.pretrained("mnist012").codes[:n_points]
    metric = pb.Pullback(problem.decoder)
    pb.curvature.scalar(metric, z[:1])
    seconds = best_time(lambda: pb.curvature.scalar(metric, z), 3) / n_points
    space = immersed(problem, z[:1])
    default = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    begin = time.perf_counter()
    for point in z[:n_theirs]:
        space.metric.scalar_curvature(point)
    slow = (time.perf_counter() - begin) / n_theirs
    on_sphere = immersed(sphere, z[:1]).metric.scalar_curvature(torch.tensor([0.3, 0.4], dtype=F64))
    torch.set_default_dtype(default)
    factor = f"{slow / seconds:,.0f} ({1e3 * slow:,.0f} ms against {1e6 * seconds:.0f} us)"
    return [
        ("scalar curvature a point, shipped model, times faster than geomstats 2.8", ">= 500", factor),
        ("what geomstats 2.8, torch backend, gives on the unit sphere", "2", f"{float(on_sphere):.2g}"),
    ]


def many_dimensions() -> Rows:
    """d = 128, D = 100,000, one point, 64 probes."""
    here = Path(__file__).parent
    printed = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=True, cwd=here).stdout
    peak, value, error = map(float, printed.split())
    counter = Counting(wide())
    metric, z = pb.Pullback(counter, memory=1 << 29), torch.zeros(128, dtype=F64)
    metric.features(z)
    counter.reset()
    begin = time.perf_counter()
    pb.curvature.scalar(metric, z, n_probes=64)
    seconds, counted = time.perf_counter() - begin, counter.reset()
    forward = best_time(lambda: metric.features(z.expand(16, -1))) / 16
    return [
        ("d = 128, D = 100,000, 64 planes: peak memory of the process", "<= 2 GiB", f"{peak:.2f} GiB"),
        ("its evaluations, counted", "128 + 3 and 21 a plane", f"{counted} ({(counted - 131) / 64:.1f} a plane)"),
        ("its time, in forward passes, a plane", "near 21", f"{(seconds / forward) / 64:.0f} (with the Jacobian)"),
        ("its value and standard error", "", f"{value:.3g} +- {error:.2g}"),
    ]


def calibration(n: int = 200) -> Rows:
    """How often the exact value lies within 1.96 standard errors."""
    rows: Rows = []
    for d, n_features in ((5, 20), (10, 40), (16, 60)):
        metric = pb.Pullback(perceptron((d, 32, n_features), nn.Tanh, 1.5, seed=d).requires_grad_(False))
        z = torch.randn(1, d, generator=torch.Generator().manual_seed(d), dtype=F64)
        exact = pb.curvature.scalar(metric, z)
        generator = torch.Generator().manual_seed(1)
        value, error = pb.curvature.scalar(metric, z.expand(n, d), n_probes=64, generator=generator)
        inside = ((value - exact).abs() < 1.96 * error).double().mean()
        measured = f"{100 * float(inside):.1f}%"
        rows.append((f"{n} estimates of 64 planes, d = {d}: exact value inside 95% bars", "90 to 99%", measured))
    return rows


def surfaces() -> Rows:
    """Closed forms."""
    rows: Rows = []
    for d in (2, 5, 10):
        z = 0.5 * torch.randn(100, d, generator=torch.Generator().manual_seed(d), dtype=F64)
        off = (pb.curvature.scalar(pb.Pullback(pb.surfaces.Sphere()), z) / (d * (d - 1)) - 1).abs().max()
        rows.append((f"sphere, d = {d}: scalar curvature, relative error", "<= 1e-6", f"{float(off):.0e}"))
    turn = 2 * torch.pi
    box = torch.tensor([[0.0, turn], [0.0, turn]], dtype=F64)
    value, error = pb.curvature.total(pb.Pullback(pb.surfaces.Torus()), box)
    rows.append(("Gauss-Bonnet, torus", "0 to 1e-3", f"{float(value):.0e} +- {float(error):.0e}"))

    def globe(z: torch.Tensor) -> torch.Tensor:
        theta, phi = z.unbind(-1)
        return torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), -1)

    half = torch.tensor([[0.0, torch.pi], [0.0, turn]], dtype=F64)
    value, _ = pb.curvature.total(pb.Pullback(globe), half)
    rows.append(("Gauss-Bonnet, sphere", "4 pi to 1e-3", f"4 pi {float(value) - 4 * torch.pi:+.0e}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [*surfaces(), *calibration(), *many_dimensions(), *against_geomstats()]
    lines = ["| what | bar | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    report("curvature", lines, dry=options.dry)


if __name__ == "__main__":
    main()
