"""The benchmark harness: measures what docs/benchmarks.md claims, prints the tables, and writes them there.

    OMP_NUM_THREADS=1 python tests/benchmarks/run.py                    # all of it, with 200 pairs: about 20 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/run.py --pairs 20 --dry   # a quick look; writes nothing

The rows that race against stochman need it: pip install --no-deps stochman==0.3.0
"""

from __future__ import annotations

import argparse
import datetime
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from counting import Counting
from torch import Tensor
from truth import true_lengths

import pullback as pb

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
MARK = "<!-- tables below are written by tests/benchmarks/run.py -->"
Rows = list[tuple[str, str, str]]  # what, bar, measured


def quantiles(values: Tensor) -> str:
    """Median, 95% quantile and maximum."""
    median, most, worst = values.double().quantile(torch.tensor([0.5, 0.95, 1.0], dtype=torch.float64)).tolist()
    return f"median {median:.1e}, 95% {most:.1e}, max {worst:.1e}"


def best_time(work: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def random_pairs(model: pb.models.Pretrained, n: int) -> tuple[Tensor, Tensor]:
    """Pairs of codes of the shipped model, always the same."""
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(1))[: 2 * n]
    return model.codes[chosen[:n]], model.codes[chosen[n:]]


def accuracy(n: int) -> Rows:
    """Geodesics of the shipped model against a solver of its own."""
    model = pb.models.pretrained("mnist012")
    counter = Counting(model.decoder)
    metric = pb.Pullback(counter)
    start, end = random_pairs(model, n)
    metric.features(start[:1])
    counter.reset()
    path = pb.geodesic(metric, start, end, tol=1e-4)
    counted = counter.reset()
    finer = pb.geodesic(metric, start, end, tol=1e-6)
    truth, gradient = true_lengths(model.decoder, start, end, [finer.curve.nodes])
    ok = path.converged
    excess = (pb.length(metric, path.curve, n_segments=1024) - truth) / truth
    wrong = ok & (excess > 1e-3)
    inside = (path.length - truth).abs() <= path.length_error
    return [
        ("pairs converged", f"{n} of {n}, or flagged", f"{int(ok.sum())} of {n}"),
        ("called converged with a true excess above 10 tol", "0", f"{int(wrong.sum())}: {_listed(excess, wrong)}"),
        ("excess of the returned curve", "median <= 1e-5, max <= 1e-3", quantiles(excess[ok])),
        ("true error inside `length_error`", ">= 95%", f"{100 * float(inside[ok].double().mean()):.1f}%"),
        ("decoder evaluations a geodesic, counted", "<= 1,000", f"{counted / n:.0f}"),
        ("the same, as reported", "equal", f"{float(path.evaluations.double().mean()):.0f}"),
        ("largest gradient entry of the truth", "zero", f"{float(gradient.max()):.0e}"),
    ]


def _listed(excess: Tensor, which: Tensor) -> str:
    return ", ".join(f"{100 * float(e):.2f}%" for e in excess[which]) or "none"


def race(n: int = 40) -> Rows:
    """Wall time and excess beside stochman's default geodesics, in one process on one thread."""
    try:
        from stochman.manifold import EmbeddedManifold
    except ImportError:
        return [("race against stochman", "", "not measured: pip install --no-deps stochman==0.3.0")]
    model = pb.models.pretrained("mnist012")
    start, end = random_pairs(model, n)

    class Latent(EmbeddedManifold):
        def embed(self, c, jacobian=False):
            return model.decoder(c.reshape(-1, 2)).reshape(*c.shape[:-1], -1)

    manifold, metric = Latent(), pb.Pullback(model.decoder)
    ours = best_time(lambda: pb.geodesic(metric, start, end))
    begin = time.perf_counter()
    curve, success = manifold.connecting_geodesic(start, end)
    theirs = time.perf_counter() - begin
    path = pb.geodesic(metric, start, end)
    best = pb.geodesic(metric, start, end, tol=1e-6).length
    with torch.no_grad():
        nodes = torch.stack([curve[k](torch.linspace(0, 1, 1025, dtype=torch.float64)) for k in range(n)])
    lengths = pb.curves.squared_chords(metric, nodes.reshape(n, 1025, 2))[0].sqrt().sum(1)
    their_excess = float(((lengths - best) / best).mean())
    our_excess = float((pb.length(metric, path.curve, n_segments=1024) / best - 1).mean())
    return [
        (f"{n} pairs: seconds, stochman / pullback", ">= 20", f"{theirs:.2f} / {ours:.2f} = {theirs / ours:.1f}"),
        ("mean excess, stochman / pullback", ">= 20", f"{their_excess:.1e} / {our_excess:.1e}, success flag {success}"),
    ]


def jacobians() -> Rows:
    """metric.matrix against forward passes and against vmap(jacfwd)."""
    model = pb.models.pretrained("mnist012")
    decoder, metric = model.decoder, pb.Pullback(model.decoder)
    z = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric.matrix(z[:2])
    with torch.no_grad():
        at_once = best_time(lambda: decoder(z))
        chunked = min(best_time(lambda c=c: [decoder(part) for part in z.split(c)]) for c in (125, 250, 500, 1000))
    ours = best_time(lambda: metric.matrix(z))
    peer = best_time(lambda: torch.func.vmap(torch.func.jacfwd(lambda p: decoder(p[None])[0]))(z), 3)
    return [
        (
            "`matrix` at 10,000 points, d = 2, D = 784: over a forward pass in one call",
            "<= 4.8",
            f"{ours / at_once:.1f}",
        ),
        ("the same, over a forward pass in the best chunks", "", f"{ours / chunked:.1f}"),
        ("vmap(jacfwd) in one call, over `matrix`", ">= 3", f"{peer / ours:.1f} (without the product J'J)"),
    ]


_MILLION = """
import pathlib, torch, pullback as pb
def peak():  # of this process alone; ru_maxrss begins with that of the parent
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
a = torch.randn(2, 1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
metric = pb.Pullback(lambda z: torch.sin(z @ a), memory=1 << 30)
z = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
before = peak()
g = metric.matrix(z)
rise = (peak() - before) / 2**20
j = torch.cos(z @ a)  # d f_k / d z_i = a_ik cos
exact = torch.einsum("ik,jk,nk->nij", a, a, j.square())
print(rise, float(((g - exact).abs() / exact.abs().amax((1, 2), keepdim=True)).max()))
"""


def million_outputs() -> Rows:
    """Memory of metric.matrix for a decoder with a million outputs, in a process of its own."""
    printed = subprocess.run([sys.executable, "-c", _MILLION], capture_output=True, text=True, check=True).stdout
    rise, off = map(float, printed.split())
    return [
        ("`matrix` at 64 points, D = 1,000,000, budget 1 GiB: rise of the peak", "< 1.5 GiB", f"{rise:.2f} GiB"),
        ("its largest relative difference to the closed form", "rounding", f"{off:.0e}"),
    ]


def start_up() -> Rows:
    """Seconds of importing, beyond torch, and of --help."""

    def seconds(code: str) -> float:
        return best_time(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True), 3)

    use = "import torch, pullback as pb; pb.geodesic; pb.Pullback"
    rise = seconds(use) - seconds("import torch")
    help_page = seconds("import sys; sys.argv = ['pullback', '--help']; from pullback.cli import main; main()")
    return [
        ("import pullback and its solver, beyond import torch", "< 1 s", f"{max(rise, 0):.2f} s"),
        ("pullback --help", "< 0.5 s", f"{help_page:.2f} s"),
    ]


def closed_forms() -> Rows:
    """Flat space and spheres."""
    plane = pb.surfaces.Plane()
    a, b = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    flat = pb.Pullback(plane)
    off = max(
        float(abs(pb.length(flat, pb.Curve.straight(a, b, n), n_segments=n) / plane.distance(a, b) - 1))
        for n in (1, 2, 3, 10, 17, 100)
    )
    rows: Rows = [("straight line in a flat metric, 1 to 100 segments: relative error", "<= 1e-12", f"{off:.0e}")]
    for d, tol in ((2, 1e-4), (3, 1e-4), (10, 1e-4), (2, 1e-7), (3, 1e-7), (10, 1e-7)):
        generator = torch.Generator().manual_seed(d)
        start, end = (0.6 * torch.randn(200, d, generator=generator, dtype=torch.float64) for _ in range(2))
        sphere = pb.surfaces.Sphere()
        path = pb.geodesic(pb.Pullback(sphere), start, end, tol=tol)
        ok = path.converged
        off_by = (path.length - sphere.distance(start, end)).abs()[ok]
        inside = float((off_by <= path.length_error[ok]).double().mean())
        worst = float((off_by / path.length[ok]).max())
        cost = float(path.evaluations.double().median())
        counts = f"{int(ok.sum())} converged, inside `length_error` {100 * inside:.0f}%"
        measured = f"{worst:.0e}; {counts}; median {cost:.0f} evaluations"
        bar = "<= 1e-6" if tol == 1e-7 else ""
        rows.append((f"200 great circles, d = {d}, tol {tol:.0e}: relative error", bar, measured))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--dry", action="store_true", help="print, but leave docs/benchmarks.md alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        *closed_forms(), *jacobians(), *million_outputs(), *start_up(), *race(), *accuracy(options.pairs)
    ]  # fmt: skip
    table = ["| what | bar | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    report(f"the spine, {options.pairs} pairs", table, dry=options.dry)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def report(title: str, lines: list[str], *, dry: bool) -> None:
    """Print a table with its date and versions and, unless it is dry, put it on top of docs/benchmarks.md."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, one thread"
    text = "\n".join([f"## {datetime.date.today():%Y-%m-%d}: {title}", "", versions, "", *lines, ""])
    print(text)
    if not dry:
        head, _, tables = PAGE.read_text().partition(MARK)
        PAGE.write_text(f"{head}{MARK}\n\n{text}{tables}")


if __name__ == "__main__":
    main()
