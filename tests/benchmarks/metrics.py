"""What each metric costs, in evaluations and seconds of the shipped model's decoder, and whether geodesics work on it.

    OMP_NUM_THREADS=1 python tests/benchmarks/metrics.py                # about five minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/metrics.py --pairs 4 --points 1000 --dry

Evaluations are counted by an instrumented decoder; seconds are those of the metric over those of the decoder's forward
pass on the same points in the same process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from counting import Counting
from run import best_time, random_pairs, report
from torch import Tensor, nn
from torch.distributions import Bernoulli, Gamma, Normal

import pullback as pb
from pullback.metrics import Metric

F64 = torch.float64
WEIGHTS = torch.linspace(0.5, 2.0, 784, dtype=F64)


class Weighted(Metric):
    """Weights of the pixels that grow with their brightness: a metric of the output space by inner products alone."""

    def inner(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return ((WEIGHTS.to(z) + z.square()) * u * v).sum(-1)

    def matrix(self, z: Tensor) -> Tensor:
        raise RuntimeError("a matrix of the output space was formed")


def bowl(z: Tensor) -> Tensor:
    """A matrix that grows away from the origin."""
    return (1 + z.square().sum(-1))[:, None, None] * torch.eye(2, dtype=z.dtype, device=z.device)


class Counted(NamedTuple):
    """A metric, and what counts in it: decoders, or a field that stands for one."""

    metric: Metric
    counters: list[Counting]


def kinds(model: pb.models.Pretrained) -> dict[str, Counted]:
    """Every kind of metric, on the latent plane of the shipped model."""
    mean, std = model.decoder.mean, model.decoder.std
    logits = nn.Sequential(*list(mean.children())[:-1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        members = [nn.Sequential(nn.Linear(2, 2), mean).double().requires_grad_(False) for _ in range(4)]
    for member in members:
        member[0].weight.copy_(torch.eye(2) + 0.05 * member[0].weight)
    some = model.codes[:: len(model.codes) // 500]

    def one(make: Callable[[nn.Module], Metric], decoder: nn.Module) -> Counted:
        counter = Counting(decoder)
        return Counted(make(counter), [counter])

    counters = [Counting(member) for member in members]
    found = {
        "Pullback(mean)": one(pb.Pullback, mean),
        "Pullback(Gaussian(mean, std))": one(lambda f: pb.Pullback(pb.Gaussian(f, std)), mean),
        "Pullback(Ensemble of 4)": Counted(pb.Pullback(pb.Ensemble(counters)), counters),
        "Pullback(mean, features=edges)": one(
            lambda f: pb.Pullback(f, features=lambda x: x.reshape(-1, 28, 28).diff(dim=2)), mean
        ),
        "Pullback(mean, ambient=weights)": one(lambda f: pb.Pullback(f, ambient=Weighted()), mean),
        "FisherRao, Bernoulli": one(lambda f: pb.FisherRao(f, lambda x: Bernoulli(logits=x)), logits),
        "FisherRao, Normal": one(lambda f: pb.FisherRao(lambda z: Normal(f(z), std(z))), mean),
        "FisherRao, Gamma": one(lambda f: pb.FisherRao(lambda z: Gamma(1 + f(z), 1 + std(z))), mean),
        "FisherRao, Normal, chords='kl'": one(
            lambda f: pb.FisherRao(lambda z: Normal(f(z), std(z)), chords="kl"), mean
        ),
        "Conformal(Pullback(mean), ...)": one(
            lambda f: pb.Conformal(pb.Pullback(f), lambda z: 1 + z.square().sum(-1)), mean
        ),
        "Pullback(mean) + LocalVariance(500 codes)": one(
            lambda f: pb.Pullback(f) + pb.LocalVariance(some, bandwidth=0.3, floor=0.01), mean
        ),
        "LocalVariance(500 codes)": Counted(pb.LocalVariance(some, bandwidth=0.3, floor=0.01), []),
        "MatrixField": Counted(pb.MatrixField(bowl), []),
    }
    low, high = model.codes.amin(0), model.codes.amax(0)
    bounds = torch.stack((low - 0.15 * (high - low), high + 0.15 * (high - low)), 1)
    found["Tabulated(Pullback(Gaussian(mean, std)))"] = Counted(pb.Tabulated(pb.Pullback(model.decoder), bounds), [])
    return found


def row(name: str, counted: Counted, model: pb.models.Pretrained, n_points: int, n_pairs: int) -> tuple[str, ...]:
    """A line of the table."""
    metric, counters = counted
    z = model.codes[torch.arange(n_points) % len(model.codes)]
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    metric.inner(z[:1], v[:1], v[:1])
    forward = best_time(lambda: pb.Pullback(model.decoder.mean).features(z))

    def evaluations(work: Callable[[], object]) -> str:
        for counter in counters:
            counter.reset()
        work()
        return f"{sum(counter.reset() for counter in counters) / n_points:.1f}" if counters else "0"

    cells = []
    for work in (lambda: metric.inner(z, v, -v), lambda: metric.matrix(z)):
        cells += [evaluations(work), f"{best_time(work) / forward:.1f}"]
    start, end = random_pairs(model, n_pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        path = pb.geodesic(metric, start, end)
    cost = f"{float(path.evaluations.double().median()):,.0f}"
    return (name, *cells, f"{int(path.converged.sum())} of {n_pairs}", cost)


MEMORY = """
import resource, torch, pullback as pb
from metrics import Weighted
import metrics
metrics.WEIGHTS = torch.linspace(0.5, 2.0, 1_000_000, dtype=torch.float64)
w = torch.linspace(0, 1, 1_000_000, dtype=torch.float64)
f = lambda z: torch.sin(z[:, :1] + w) + z[:, 1:] * w
metric = {metric}
z, v = torch.zeros(8, 2, dtype=torch.float64), torch.ones(8, 2, dtype=torch.float64)
metric.inner(z, v, -v), metric.matrix(z)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def memory(metric: str) -> float:
    """GiB at the peak of a process that measures 8 points at D = 1,000,000 under a budget of 512 MiB."""
    program = MEMORY.format(metric=metric)
    here = Path(__file__).parent
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=here)
    return float(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = pb.models.pretrained("mnist012")
    lines = [
        "| metric | `inner`: evaluations | times forward | `matrix`: evaluations | times forward | geodesics converged "
        "| evaluations, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, counted in kinds(model).items():
        lines.append("| " + " | ".join(row(name, counted, model, options.points, options.pairs)) + " |")
        print(lines[-1], flush=True)
    alone = memory("pb.Pullback(torch.nn.Identity())")
    lines += [
        "",
        f"Peak memory of a process that measures 8 points at D = 1,000,000 (of one at D = 2: {alone:.2f} GiB):",
    ]
    lines += ["", "| metric, budget 512 MiB | GiB |", "|---|---|"]
    for name in ("pb.Pullback(f, memory=1 << 29)", "pb.Pullback(f, ambient=Weighted(), memory=1 << 29)",
                 "pb.FisherRao(f, lambda x: torch.distributions.Bernoulli(logits=x), memory=1 << 29)",
                 "pb.Pullback(pb.Ensemble([f, f]), memory=1 << 29)"):  # fmt: skip
        lines.append(f"| `{name}` | {memory(name):.2f} |")
        print(lines[-1], flush=True)
    report(f"what each metric costs, {options.points:,} points, {options.pairs} pairs", lines, dry=options.dry)


if __name__ == "__main__":
    main()
