"""Graph distances: how near to geodesics, how fast, how large.

    OMP_NUM_THREADS=1 python tests/benchmarks/graphs.py accuracy all-pairs peers    # about five minutes
    OMP_NUM_THREADS=2 python tests/benchmarks/graphs.py million                     # half an hour, 10 GiB

A million codes need faiss-cpu, the row against stochman: pip install --no-deps stochman==0.3.0
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from counting import Counting
from run import Rows, random_pairs, report
from torch import Tensor, nn

import pullback as pb

F64 = torch.float64


def box(codes: Tensor) -> Tensor:
    """The range of codes and 10% on each side: (d, 2)."""
    low, high = codes.amin(0), codes.amax(0)
    return torch.stack((low - 0.1 * (high - low), high + 0.1 * (high - low)), 1)


def quantiles(ratio: Tensor) -> str:
    """Median, 95% quantile and maximum."""
    middle, most, worst = ratio.quantile(torch.tensor([0.5, 0.95, 1.0], dtype=ratio.dtype)).tolist()
    return f"median {middle:.4f}, 95% {most:.4f}, max {worst:.3f}"


def accuracy(n_pairs: int = 300, n_codes: int = 5000) -> Rows:
    """Paths over graphs against geodesics of the shipped model."""
    model = pb.models.pretrained("mnist012")
    metric = pb.Pullback(model.decoder)
    start, end = random_pairs(model, n_pairs)
    every = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(3))
    codes = torch.unique(torch.cat((start, end, model.codes[every[: n_codes - 2 * n_pairs]])), dim=0)
    where = [int((codes == z).all(1).nonzero()[0]) for z in torch.cat((start, end))]
    i, j = torch.tensor(where).split(n_pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        counting = Counting(model.decoder)
        pb.knn_graph(pb.Pullback(counting), codes)
        near = pb.knn_graph(metric, codes)
        filled = near.fill_gaps(metric, 250, generator=torch.Generator().manual_seed(0))
        truth = pb.geodesic(metric, start, end, starts=("straight", "bends", near), tol=1e-5)
        ok = truth.converged
        grid = pb.grid_graph(metric, box(model.codes), 120).insert(metric, torch.cat((start, end)))
        refined = pb.distance_matrix(metric, codes, graph=near, refine=torch.stack((i, j), 1))
    own = len(grid.points) - 2 * n_pairs + torch.arange(n_pairs)
    across = grid.distances(own)[torch.arange(n_pairs), own + n_pairs]
    ratios = {
        "kNN graph of 5,000 codes": near.distances(i)[torch.arange(n_pairs), j] / truth.length,
        "the same and 250 points between": filled.distances(i)[torch.arange(n_pairs), j] / truth.length,
        "grid 120 x 120, points inserted": across / truth.length,
        "kNN graph, refined": refined[i, j] / truth.length,
    }
    bars = ("median <= 1.03, 95% <= 1.10", "", "median <= 1.01", "1.000")
    rows: Rows = [
        (f"{name}: path over geodesic, {int(ok.sum())} pairs", bar, quantiles(ratio[ok]))
        for (name, ratio), bar in zip(ratios.items(), bars, strict=True)
    ]
    text = f"{counting.evaluations / len(codes):.1f} for {near.edges.nnz / 2 / len(codes):.1f} edges"
    return [*rows, ("decoder evaluations a code to build the kNN graph, counted", "", text)]


def all_pairs(n: int = 10_000) -> Rows:
    """Build and Dijkstra on two cores, in a process of its own: the peak is of all processes together."""
    command = [sys.executable, __file__, "--inner", str(n)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    build, paths, peak = map(float, printed.split())
    return [
        (f"all pairs of {n:,} codes, 2 cores: build + Dijkstra", "<= 60 s", f"{build:.0f} s + {paths:.0f} s"),
        ("its peak memory, of all processes", "<= 2.5 GiB", f"{peak:.2f} GiB"),
    ]


def _inner(n: int) -> None:
    model = pb.models.pretrained("mnist012")
    metric = pb.Pullback(model.decoder)
    codes = model.codes[:n]
    if len(codes) < n:
        raise SystemExit(f"the shipped model has {len(codes)} codes")
    begin = time.perf_counter()
    graph = pb.knn_graph(metric, codes)
    build = time.perf_counter() - begin
    begin = time.perf_counter()
    with ProcessPoolExecutor(2) as executor:
        pb.distance_matrix(metric, codes, graph=graph, executor=executor, block=250)
    paths = time.perf_counter() - begin
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(build, paths, (own + 2 * largest_child) / 2**20)


def peers(n: int = 1500) -> Rows:
    """networkx on the same graph, and stochman's grid of 40 x 40."""
    import networkx

    model = pb.models.pretrained("mnist012")
    metric = pb.Pullback(model.decoder)
    graph = pb.knn_graph(metric, model.codes[:n])
    begin = time.perf_counter()
    ours = graph.distances(range(n))
    seconds = time.perf_counter() - begin
    theirs = graph.to_networkx()
    begin = time.perf_counter()
    some = [networkx.single_source_dijkstra_path_length(theirs, i) for i in range(20)]
    slow = (time.perf_counter() - begin) * n / 20
    off = max(abs(found[j] - float(ours[i, j])) for i, found in enumerate(some) for j in found)
    rows: Rows = [
        (f"all sources, {n:,} codes: times faster than networkx on the same graph", ">= 50", f"{slow / seconds:.0f}"),
        ("largest difference to networkx", "rounding", f"{off:.0e}"),
    ]
    bounds = box(model.codes)
    begin = time.perf_counter()
    pb.grid_graph(metric, bounds, 40)
    built = time.perf_counter() - begin
    try:
        theirs_built = _stochman(model, bounds)
    except ImportError:
        return [*rows, ("grid 40 x 40: times faster to build than stochman's", ">= 20", "stochman is not installed")]
    text = f"{theirs_built / built:.0f} ({theirs_built:.1f} s against {built:.2f} s)"
    return [*rows, ("grid 40 x 40: times faster to build than stochman's DiscretizedManifold", ">= 20", text)]


def _stochman(model: pb.models.Pretrained, bounds: Tensor) -> float:
    from stochman.discretized_manifold import DiscretizedManifold
    from stochman.manifold import EmbeddedManifold

    class Latent(EmbeddedManifold):
        def embed(self, c: Tensor, jacobian: bool = False) -> Tensor:
            flat = c.reshape(-1, c.shape[-1])
            return model.decoder(flat).reshape(*c.shape[:-1], -1)

        def curve_length(self, curve: Tensor, dt: Tensor | None = None) -> Tensor:
            return (self.embed(curve)[..., 1:, :] - self.embed(curve)[..., :-1, :]).norm(dim=-1).sum(-1)

        def metric(self, c: Tensor, return_deriv: bool = False) -> Tensor:
            return pb.Pullback(model.decoder).matrix(c)

    grid = [torch.linspace(float(low), float(high), 40, dtype=F64) for low, high in bounds]
    default = torch.get_default_dtype()
    torch.set_default_dtype(F64)  # its curves are made in the default type
    begin = time.perf_counter()
    DiscretizedManifold().fit(Latent(), grid, batch_size=128)
    seconds = time.perf_counter() - begin
    torch.set_default_dtype(default)
    return seconds


class Waves(nn.Module):
    """A cheap smooth decoder from d to 16 dimensions."""

    def __init__(self, d: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(d)
        self.register_buffer("weight", torch.randn(d, 16, generator=generator) / d**0.5)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(z @ self.weight) + 0.5 * (z @ self.weight)


def million(n: int = 1_000_000, n_landmarks: int = 256) -> Rows:
    """Build, landmarks and queries of a million codes, d = 2 and d = 10, in float32."""
    rows: Rows = []
    for d in (2, 10):
        codes = torch.randn(n, d, generator=torch.Generator().manual_seed(d))
        metric = pb.Pullback(Waves(d))
        begin = time.perf_counter()
        graph = pb.knn_graph(metric, codes, 10)
        build = time.perf_counter() - begin
        begin = time.perf_counter()
        landmarks = pb.Landmarks.of(graph, n_landmarks)
        spread = time.perf_counter() - begin
        pairs = torch.randint(n, (2, 1000), generator=torch.Generator().manual_seed(0))
        begin = time.perf_counter()
        lower, upper = landmarks.bounds(*pairs)
        query = time.perf_counter() - begin
        sources = pairs[0, :20]
        exact = torch.stack([graph.distances(int(i))[pairs[1, k * 10 : k * 10 + 10]] for k, i in enumerate(sources)])
        low, high = landmarks.bounds(sources.repeat_interleave(10), pairs[1, :200])
        flat = exact.reshape(-1)
        holds = int(((low <= flat * (1 + 1e-5)) & (high >= flat * (1 - 1e-5))).sum())
        gap = float(((upper - lower) / upper)[upper > 0].median())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        text = f"{build / 60:.1f} + {spread / 60:.1f} minutes, {peak:.1f} GiB"
        rows += [
            (f"{n:,} codes, d = {d}: build, {n_landmarks} landmarks", "<= 30 minutes, 24 GiB", text),
            ("a query, of 1,000 at once", "<= 1 ms", f"{1e3 * query / 1000:.3f} ms"),
            ("bounds hold, of 200 exact checks", "200", f"{holds}"),
            ("upper less lower bound, relative, median", "", f"{gap:.2f}"),
        ]
        print(*rows[-4:], sep="\n", flush=True)
        del graph, landmarks, codes
    return rows


PARTS = {"accuracy": accuracy, "all-pairs": all_pairs, "peers": peers, "million": million}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    parser.add_argument("--inner", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.seterr(all="raise")
    if options.inner:
        _inner(options.inner)
        return
    chosen = options.parts or list(PARTS)
    rows = [row for part in chosen for row in PARTS[part]()]
    lines = ["| what | bar | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    report(f"graph distances ({', '.join(chosen)})", lines, dry=options.dry)


if __name__ == "__main__":
    main()
