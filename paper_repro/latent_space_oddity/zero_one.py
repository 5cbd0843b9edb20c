"""What `near_and_far` and `interpolation` share: three metrics of the model of zeros and ones, and two solvers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from context import Context
from torch import Tensor

import pullback as pb
from pullback.metrics import Metric
from pullback.models import RBFVAE

PAPER, NARROW, MEAN = "a = 2", "a = 1", "mean alone"  # bandwidths of the precision; the mean's metric without it
SAME = 1e-3  # relative difference of lengths up to which two solvers have found the same geodesic


def metrics(context: Context, seed: int) -> tuple[RBFVAE, dict[str, Metric]]:
    """The shared model of zeros and ones, and its metrics: as in the paper, with a narrow variance, of the mean."""
    dataset, model = context.zero_one(seed)
    narrow = context.model(dataset, seed, rbf_bandwidth=1.0)
    decoders = {PAPER: model.decoder, NARROW: narrow.decoder, MEAN: model.vae.decoder}
    return model, {name: pb.Pullback(decoder) for name, decoder in decoders.items()}


def side_by_side(context: Context, metric: Metric, start: Tensor, end: Tensor) -> dict[str, Any]:
    """The same pairs (n, d) by the default solver and by collocation of the geodesic equation, both from lines.

    Collocation also begins at what the default solver found: does that obey the equation? And the default solver begins
    from bends to the sides, too: is there a shorter geodesic?
    """
    relax, collocate = pb.Relax(max_evaluations=context["max_evaluations"]), pb.Collocate(context["max_nodes"])
    record: dict[str, Any] = {"pairs": len(start)}
    begun = pb.geodesic(metric, start, end, solver=relax).curve
    lengths = {}
    for name, solver, init in (
        ("relax", relax, None),
        ("collocate", collocate, None),
        ("continued", collocate, begun),
        ("several", relax, None),
    ):
        starts = ["straight", "bends"] if name == "several" else "straight"
        begin = time.process_time()
        path = pb.geodesic(metric, start, end, solver=solver, init=init, starts=starts)
        record[f"{name}_seconds"] = (time.process_time() - begin) / len(start)
        record[f"{name}_evaluations"] = float(path.evaluations.double().mean())
        record[f"{name}_failed"] = int((~path.converged).sum())
        lengths[name] = path.length
    for name in ("collocate", "continued"):
        difference = lengths[name] / lengths["relax"] - 1
        record[f"{name}_differences"] = difference[difference.isfinite()].tolist()
    record["shorter"] = int((lengths["several"] < (1 - SAME) * lengths["relax"]).sum())
    return record


def trials(parts: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many solves the records of :func:`side_by_side` hold, and how many of these failed."""
    names = ("relax", "collocate", "continued", "several")
    solved = sum(len(names) * part["pairs"] for part in parts)
    return solved, sum(part[f"{name}_failed"] for part in parts for name in names)


def told(metric: str, parts: Sequence[dict[str, Any]]) -> str:
    """A sentence on both solvers, from the records of several seeds."""
    total = {
        name: sum(part[name] for part in parts)
        for name in ("pairs", "relax_failed", "collocate_failed", "continued_failed", "shorter")
    }
    mean = {
        name: statistics.fmean(part[name] for part in parts)
        for name in parts[0]
        if name.endswith(("_seconds", "_evaluations"))
    }
    return (
        f"Collocation of the geodesic equation, the paper's way, against the default solver ({metric}, "
        f"{total['pairs']} pairs, both from lines): {total['collocate_failed']} against {total['relax_failed']} fail, "
        f"{mean['collocate_evaluations']:,.0f} against {mean['relax_evaluations']:,.0f} decoder evaluations and "
        f"{1000 * mean['collocate_seconds']:.0f} against {1000 * mean['relax_seconds']:.0f} ms a pair; "
        f"{_agreement(parts, 'collocate')}. Begun at the default solver's curves, collocation fails for "
        f"{total['continued_failed']}; {_agreement(parts, 'continued')}. From bends to the sides the default solver "
        f"finds a shorter geodesic for {total['shorter']}."
    )


def _agreement(parts: Sequence[dict[str, Any]], name: str) -> str:
    """How far the lengths by collocation are from those of the default solver, in words."""
    differences = [value for part in parts for value in part[f"{name}_differences"]]
    same = [abs(value) for value in differences if abs(value) <= SAME]
    text = f"of {len(differences)} pairs that both solve {len(same)} have the same length within {100 * SAME:g}%"
    if same:
        text += f" (median difference {statistics.median(same):.0e}, at most {max(same):.0e})"
    longer, shorter = sum(value > SAME for value in differences), sum(value < -SAME for value in differences)
    return text + (f", {longer} are longer by collocation, {shorter} shorter" if longer + shorter else "")


def wide(model: RBFVAE, share: float = 0.005, margin: float = 0.15) -> tuple[tuple[float, float], tuple[float, float]]:
    """Bounds of a map that shows all codes but a small share at each side."""
    shares = torch.tensor([share, 1 - share], dtype=torch.float64)
    low, high = model.codes.quantile(shares, dim=0)
    low, high = (low - margin * (high - low)).tolist(), (high + margin * (high - low)).tolist()
    return (low[0], high[0]), (low[1], high[1])
