"""LAND: its time on the shipped model and on a table of it, and the Riemannian normal on the sphere.

OMP_NUM_THREADS=2 python tests/benchmarks/land.py           # some minutes
OMP_NUM_THREADS=2 python tests/benchmarks/land.py --dry     # writes nothing
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

from run import Rows, report

import pullback as pb

F64 = torch.float64
COV = torch.tensor([[0.30, 0.10], [0.10, 0.15]], dtype=F64)


def on_the_shipped_model() -> Rows:
    """K = 2, 100 codes of zeros and ones, S = 200, 10 steps."""
    model = pb.models.pretrained("mnist012")
    pick = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(0))
    codes = model.codes[pick[model.labels[pick] != 2][:100]]
    low, high = model.codes.amin(0), model.codes.amax(0)
    exact = pb.Pullback(model.decoder)
    table = pb.Tabulated(exact, torch.stack((low - 1, high + 1), 1))
    rows: Rows = []
    for name, metric, bar in (("the metric itself", exact, "<= 120 s"), ("a table", table, "<= 5 s")):
        begin, spent = time.perf_counter(), time.process_time()
        land = pb.LAND(metric, 2, random_state=0, n_samples=200, max_iter=10, tol=0.0).fit(codes)
        seconds, spent = time.perf_counter() - begin, time.process_time() - spent
        failed = land.failures_
        rows.append(
            (f"LAND, K = 2, 100 codes, S = 200, 10 steps, {name}", bar, f"{seconds:.1f} s ({spent:.1f} s of CPU)")
        )
        counts = f"{len(failed.logs)} of 200 logarithms, {failed.casts} of 400 casts"
        rows.append(("its failures, all of them told", "0 silent", f"{counts}; {failed.beyond} past a conjugate point"))
        errors = ", ".join(f"{float(error):.3f}" for error in land.log_normalizer_errors_)
        rows.append(("standard errors of its log normalizers", "", errors))
    return rows


def on_the_sphere(seed: int, n: int = 200) -> Tensor:
    """Points of the Riemannian normal around the pole, by rejection from its closed form."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(6 * n, 2, generator=generator, dtype=F64) @ torch.linalg.cholesky(COV).mT
    r = u.norm(dim=-1)
    u = u[(torch.rand(6 * n, generator=generator, dtype=F64) < r.sin() / r) & (r < math.pi)][:n]
    r = u.norm(dim=-1, keepdim=True)
    return u / r * torch.tan(r / 2)


def closed_form(n_seeds: int = 20) -> Rows:
    """How far the mean of fits is from the truth, in standard errors of that mean."""
    truth = torch.stack((torch.zeros((), dtype=F64), torch.zeros((), dtype=F64), COV[0, 0], COV[0, 1], COV[1, 1]))
    rows: Rows = []
    for volume, bar in (("exact", "<= 3"), ("paper", "")):
        found = []
        for seed in range(n_seeds):
            land = pb.LAND(pb.Pullback(pb.surfaces.Sphere()), 1, volume=volume, random_state=seed)
            land.fit(on_the_sphere(seed))
            (a, b), (_, c) = land.covariances_[0]
            found.append(torch.stack((*land.means_[0], a, b, c)))
        values = torch.stack(found)
        off = (values.mean(0) - truth) / (values.std(0) / n_seeds**0.5)
        said = ", ".join(f"{float(value):+.1f}" for value in off)
        rows.append((f'sphere, {n_seeds} seeds, volume="{volume}": two means, three covariances, in s.e.', bar, said))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    warnings.simplefilter("ignore", pb.StatisticsWarning)  # ten steps are no convergence
    rows = [*closed_form(), *on_the_shipped_model()]
    lines = ["| what | bar | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    report("land", lines, dry=options.dry)


if __name__ == "__main__":
    main()
