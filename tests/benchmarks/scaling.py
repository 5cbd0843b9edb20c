"""What one core does, for the plans of docs/scaling.md, in seconds of the processor: other work hardly changes them.

OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py                # about ten minutes, 4 GiB
OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py paths ray      # some of it
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from counting import Counting
from run import Rows, random_pairs, report
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

import pullback as pb
from pullback.stores import MatrixStore


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, in this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def codes(n: int) -> torch.Tensor:
    """Codes of the shipped model, and others next to them."""
    there = pb.models.pretrained("mnist012").codes
    generator = torch.Generator().manual_seed(0)
    chosen = there[torch.randint(len(there), (n,), generator=generator)]
    return chosen + 0.05 * there.std(0) * torch.randn(n, 2, generator=generator, dtype=there.dtype)


def build() -> Rows:
    rows: Rows = []
    decoder = pb.models.pretrained("mnist012").decoder
    for n in (10_000, 100_000):
        counter, z = Counting(decoder), codes(n)
        taken = seconds(lambda z=z, counter=counter: pb.knn_graph(pb.Pullback(counter), z))
        forward = seconds(lambda z=z: [decoder(some) for some in z[:10_000].split(1000)]) / 10_000
        per = counter.evaluations / n
        text = f"{1e3 * taken / n:.2f} ms, {per:.0f} evaluations ({1e3 * per * forward:.2f} ms of forward passes)"
        rows.append((f"kNN graph, shipped model, {n:,} codes: a code", "", text))
    return rows


def neighbors(n: int, k: int = 20) -> csr_array:
    """A graph of neighbors in the plane without a decoder, with as many edges as knn_graph has with 16 neighbors."""
    z = codes(n).numpy()
    length, near = KDTree(z).query(z, k=k + 1)
    half = coo_array((length.ravel(), (np.repeat(np.arange(n), k + 1), near.ravel())), shape=(n, n)).tocsr()
    return half.maximum(half.T).tocsr()


def paths() -> Rows:
    rows: Rows = []
    for n, sources in ((10_000, 100), (100_000, 20), (1_000_000, 3)):
        graph = neighbors(n)
        taken = seconds(lambda g=graph, m=sources: dijkstra(g, indices=np.arange(m))) / sources
        text = f"{1 / taken:.1f} rows or {8 * n / taken / 1e6:.0f} MB a second, {graph.nnz / n:.0f} edges a code"
        rows.append((f"Dijkstra, {n:,} codes", "", text))
    return rows


def geodesics(n: int = 200) -> Rows:
    model = pb.models.pretrained("mnist012")
    metric, (start, end) = pb.Pullback(model.decoder), random_pairs(model, n)
    taken = seconds(lambda: pb.geodesic(metric, start, end))
    evaluations = float(pb.geodesic(metric, start, end).evaluations.double().mean())
    text = f"{n / taken:.0f} a second, {evaluations:,.0f} evaluations"
    return [(f"geodesics, shipped model, {n} at once, tol 1e-4", "", text)]


def writing(n: int = 20_000, rows_of_block: int = 800) -> Rows:
    graph = neighbors(n)
    block = dijkstra(graph, indices=np.arange(rows_of_block))
    with tempfile.TemporaryDirectory() as folder:
        shape = (n, n)
        store = MatrixStore.open(Path(folder) / "d", {}, shape, rows_of_block, "float64", resume=False)
        taken = seconds(lambda: [store.put(start, block) for start in range(0, 4 * rows_of_block, rows_of_block)]) / 4
        size = sum(path.stat().st_size for path in Path(folder).rglob("c/**/*") if path.is_file()) / 4
    text = f"{block.nbytes / taken / 1e6:.0f} MB a second, {size / block.nbytes:.2f} of its size on disk"
    return [(f"a block of {block.nbytes / 1e6:.0f} MB to zarr, with its checksum", "", text)]


def over_ray(calls: int = 200, n: int = 20_000) -> Rows:
    """What the process that hands out blocks spends on each, apart from writing: how many workers it can serve."""
    with pb.RayExecutor() as executor:
        list(executor.map(np.zeros, [1] * 4))
        small = seconds(lambda: list(executor.map(np.zeros, [1] * calls))) / calls
        large = seconds(lambda: [found.sum() for found in executor.map(np.zeros, [16 << 20] * 10)]) / 10
        graph = neighbors(n)
        shared = executor.share(graph)
        list(executor.map(_touch, [shared] * 4))
        given = seconds(lambda: list(executor.map(_touch, [shared] * calls))) / calls
    return [
        ("Ray, the driver's work on a call", "", f"{1e3 * small:.1f} ms"),
        (f"the same, with a graph of {n:,} codes that is shared", "", f"{1e3 * given:.1f} ms"),
        ("the same, with a block of 134 MB that is read", "", f"{1e3 * large:.0f} ms"),
    ]


def _touch(graph: csr_array) -> int:
    return graph.nnz


PARTS = {"paths": paths, "geodesics": geodesics, "writing": writing, "ray": over_ray, "build": build}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: Rows = []
    for part in options.parts or PARTS:
        rows += PARTS[part]()
        print(part, rows, flush=True)
    lines = ["| what | bar | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    report("scaling, seconds of one core", lines, dry=options.dry)


if __name__ == "__main__":
    main()
