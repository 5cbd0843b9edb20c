"""What a check-up costs: seconds and decoder evaluations of check_geometry on the shipped model.

OMP_NUM_THREADS=1 python tests/benchmarks/diagnostics.py           # half a minute
OMP_NUM_THREADS=1 python tests/benchmarks/diagnostics.py --dry     # writes nothing
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

from run import Rows, report

import pullback as pb
from benchmarks.counting import Counting

N_CODES = 2000


def check_up() -> Rows:
    """2,000 codes of the shipped model, all settings as they are."""
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(1))[:N_CODES]
    codes, metric = model.codes[chosen], pb.Pullback(model.decoder)
    metric.matrix(codes[:1])
    begin, cpu = time.perf_counter(), time.process_time()
    found = pb.check_geometry(metric, codes)
    seconds, busy = time.perf_counter() - begin, time.process_time() - cpu
    # a wrapped decoder hides its variance: the same but for its share, which is counted apart
    counter = Counting(model.decoder)
    pb.check_geometry(pb.Pullback(counter), codes)
    whole = counter.reset()
    pb.check_geometry(pb.Pullback(counter), codes, n_pairs=1)
    lines = found.lines
    each = (whole - counter.reset()) / (lines.n_pairs - 1)
    matrices = whole - lines.n_pairs * each
    low, high = lines.interval or (float("nan"), float("nan"))
    return [
        (
            f"`check_geometry`, {N_CODES:,} codes of the shipped model: seconds",
            "<= 20",
            f"{seconds:.1f} ({busy:.1f} CPU)",
        ),
        ("its decoder evaluations, counted", "", f"{whole:,}, of which {matrices:,.0f} for matrices at points"),
        ("the same for a pair: straight line and geodesic", "", f"{each:,.0f}"),
        (
            "straight / geodesic, median and its 95% interval",
            "",
            f"{lines.ratio.median:.4f}, {low:.4f} to {high:.4f}; {lines.n_failed} of {lines.n_pairs} failed",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| what | bar | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in check_up())]
    report("a check-up", lines, dry=options.dry)


if __name__ == "__main__":
    main()
