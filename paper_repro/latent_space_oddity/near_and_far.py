"""Points A, B, C of the paper's introduction (Fig. 1): what is near by the Euclidean distance may be far on the data.

The paper shows the latent space of zeros and ones with three codes: A and B of one class, C of the other, B and C
close to the border between them. B is nearer to C than to A by the Euclidean distance, and nearer to A by the
Riemannian one.

One triple proves little, so that many are drawn by a rule: B at random from the part of its class that lies nearest to
the other class, C the nearest code of the other class, A the first code of B's class that is twice as far from B as C
is, and from the other class. Then the geodesics from A to B and from B to C tell which of the two is nearer. The same
is asked of the mean's metric alone and of a narrow variance (a = 1): does the paper's variance matter here?
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from context import Context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Claim, Result, Verdict, spread
from torch import Generator, Tensor
from zero_one import MEAN, NARROW, PAPER, metrics, side_by_side, told, trials, wide

import pullback as pb
from pullback.metrics import Metric
from pullback.models import RBFVAE

NAMES = (PAPER, NARROW, MEAN)
TWICE, THRICE = "2", "3"  # how much farther from B than C is A, at least


def run(context: Context) -> Result:
    """Draw triples on the models of all seeds and measure their sides."""
    parts = {seed: context.once(f"seed-{seed}", lambda seed=seed: _measured(context, seed)) for seed in context.seeds}
    sides = [side for part in parts.values() for far in part["far"].values() for side in far["metrics"].values()]
    tried, lost = trials([record for part in parts.values() for record in part["solvers"].values()])
    return Result(
        title="Near and far: points A, B, C",
        claims=_claims(list(parts.values())),
        numbers={"seeds": {str(seed): _short(part) for seed, part in parts.items()}},
        caption=(
            "Left: log volume of the latent space (a = 2) with codes of zeros and ones, a triple A, B, C, and lines "
            "and geodesics between them. Right: Riemannian distances in all triples whose A is twice as far from B as "
            "C is; above the diagonal the order is reversed."
        ),
        paper_figure="Latent space of zeros and ones with three codes A, B, C, lines and shortest paths between them.",
        figure=_figure(context, parts[context.seeds[0]], list(parts.values())),
        solved=tried + sum(2 * len(side["ab"]) for side in sides),
        failed=lost + sum(side["ab"].count(None) + side["bc"].count(None) for side in sides),
        findings=_findings(list(parts.values())),
    )


def _measured(context: Context, seed: int) -> dict[str, Any]:
    """The sides of all triples of one model, by three metrics; a part of them by two solvers."""
    model, by_name = metrics(context, seed)
    part: dict[str, Any] = {"far": {}, "solvers": {}}
    for far in (TWICE, THRICE):
        a, b, c = triples(model, context["triples"], context["border"], float(far), seed)
        measured = {name: _sides(context, metric, a, b, c) for name, metric in by_name.items()}
        part["far"][far] = {"points": torch.stack((a, b, c), 1).tolist(), "metrics": measured}
    some = torch.tensor(part["far"][TWICE]["points"], dtype=torch.float64)[: context["collocated"]]
    for name in (PAPER, NARROW):
        part["solvers"][name] = side_by_side(
            context, by_name[name], some[:, :2].flatten(0, 1), some[:, 1:].flatten(0, 1)
        )
    return part


def triples(model: RBFVAE, n: int, border: float, far: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes A, B, C, each (m, d), m at most n: half of them with B in either class."""
    labels, generator = torch.as_tensor(model.labels), Generator().manual_seed(seed)
    drawn = []
    for label in labels.unique():
        own, other = model.codes[labels == label], model.codes[labels != label]
        gaps, nearest = torch.cdist(own, other).min(1)
        candidates = gaps.argsort()[: max(round(border * len(own)), 1)]
        of_class = []
        for b in candidates[torch.randperm(len(candidates), generator=generator)].tolist():
            apart = (own - own[b]).norm(dim=1)
            allowed = (apart > far * gaps[b]) & (gaps > 2 * gaps[b])
            if allowed.any():
                a = int(torch.where(allowed, apart, torch.inf).argmin())
                of_class.append(torch.stack((own[a], own[b], other[nearest[b]])))
        drawn += of_class[: n // 2]
    a, b, c = torch.stack(drawn).unbind(1)
    return a, b, c


def _sides(context: Context, metric: Metric, a: Tensor, b: Tensor, c: Tensor) -> dict[str, Any]:
    """Lengths of the sides A-B and B-C, None where no geodesic was found, and lengths of the lines."""
    solver = pb.Relax(max_evaluations=context["max_evaluations"])
    path = pb.geodesic(metric, torch.cat((a, b)), torch.cat((b, c)), solver=solver)
    lines = pb.length(metric, pb.Curve.straight(torch.cat((a, b)), torch.cat((b, c))))
    (ab, bc), (line_ab, line_bc) = path.length.chunk(2), lines.chunk(2)
    named = {"ab": ab, "bc": bc, "line_ab": line_ab, "line_bc": line_bc}
    return {name: [x if math.isfinite(x) else None for x in values.tolist()] for name, values in named.items()}


def _reversed(part: dict[str, Any], far: str, name: str) -> float:
    """The share of triples whose A is nearer to B than C is; where a geodesic failed it counts as not."""
    side = part["far"][far]["metrics"][name]
    return statistics.fmean(known(ab, bc) and ab < bc for ab, bc in zip(side["ab"], side["bc"], strict=True))


def known(*values: float | None) -> bool:
    """Whether no geodesic failed."""
    return None not in values


def _magnification(part: dict[str, Any], far: str, name: str) -> float:
    """How much more a unit of latent length weighs from B to C than from A to B: the median over triples."""
    side, points = part["far"][far]["metrics"][name], part["far"][far]["points"]
    ratios = [
        (bc / math.dist(b, c)) / (ab / math.dist(a, b))
        for ab, bc, (a, b, c) in zip(side["ab"], side["bc"], points, strict=True)
        if known(ab, bc)
    ]
    return statistics.median(ratios)


def _straightness(part: dict[str, Any], name: str) -> float:
    """The median over all sides of line to geodesic."""
    ratios = []
    for far in part["far"].values():
        side = far["metrics"][name]
        for of in ("ab", "bc"):
            ratios += [line / x for line, x in zip(side[f"line_{of}"], side[of], strict=True) if known(x)]
    return statistics.median(ratios)


def _alike(part: dict[str, Any], name: str) -> float:
    """The share of triples in which lengths of lines say the same as those of geodesics, where these are known."""
    side = part["far"][TWICE]["metrics"][name]
    sides = zip(side["ab"], side["bc"], side["line_ab"], side["line_bc"], strict=True)
    same = [(ab < bc) == (line_ab < line_bc) for ab, bc, line_ab, line_bc in sides if known(ab, bc)]
    return sum(same) / max(len(same), 1)


def _claims(parts: list[dict[str, Any]]) -> list[Claim]:
    shares = [100 * _reversed(part, TWICE, PAPER) for part in parts]
    alone = [100 * _reversed(part, TWICE, MEAN) for part in parts]
    gained = statistics.fmean(shares) - statistics.fmean(alone)
    factors = [_magnification(part, TWICE, PAPER) for part in parts]
    n = sum(len(part["far"][TWICE]["points"]) for part in parts)
    return [
        Claim(
            "order",
            "A and B of one class are nearer to each other than B and C across the border, though not in latent space",
            "one triple, drawn",
            f"{spread(shares, '.0f', '%')} of {n} triples with A at least twice as far from B as C is",
            statistics.fmean(shares),
            15.0,
            Verdict.of(min(shares) >= 70 and statistics.fmean(shares) >= 80, partly=statistics.fmean(shares) > 50),
        ),
        Claim(
            "border",
            "A unit of latent length weighs more across the border than inside of a class (at least twice as much)",
            "no number",
            f"{spread(factors, '.2f')} times as much in the median",
            statistics.fmean(factors),
            1.5,
            Verdict.of(min(factors) >= 2, partly=statistics.fmean(factors) > 1),
        ),
        Claim(
            "variance",
            "The variance of the generator has a part in this: with it 10% more of the triples are reversed",
            "its metric has both parts; no number",
            f"{spread(alone, '.0f', '%')} of the triples by the mean alone: the variance adds {gained:.1f} points",
            gained,
            10.0,
            Verdict.of(gained >= 10, partly=gained >= 5),
            "the mean changes so fast across the border that it reverses the order by itself"
            if gained < 10 and statistics.fmean(alone) > 50
            else "",
        ),
    ]


def _findings(parts: list[dict[str, Any]]) -> list[str]:
    thrice = {name: spread([100 * _reversed(part, THRICE, name) for part in parts], ".0f", "%") for name in NAMES}
    narrow = spread([100 * _reversed(part, TWICE, NARROW) for part in parts], ".0f", "%")
    lines = {name: 100 * (statistics.fmean(_straightness(part, name) for part in parts) - 1) for name in NAMES}
    alike = {name: 100 * statistics.fmean(_alike(part, name) for part in parts) for name in NAMES}
    return [
        f"With A three times as far from B as C is, {thrice[PAPER]} of the triples are reversed at a = 2, "
        f"{thrice[NARROW]} at a = 1 and {thrice[MEAN]} by the mean alone.",
        f"A narrow variance (a = 1) reverses {narrow} of the triples with A twice as far.",
        f"The lines between these points are longer than the geodesics by {lines[PAPER]:.1f}% in the median at a = 2, "
        f"{lines[NARROW]:.1f}% at a = 1 and {lines[MEAN]:.1f}% for the mean alone. Lengths of lines, without any "
        f"geodesic, give the same order of the sides in {alike[PAPER]:.0f}% of the triples at a = 2 and "
        f"{alike[NARROW]:.0f}% at a = 1.",
        *(told(name, [part["solvers"][name] for part in parts]) for name in (PAPER, NARROW)),
    ]


def _short(part: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one model for the record."""
    return {
        "reversed": {far: {name: _reversed(part, far, name) for name in NAMES} for far in (TWICE, THRICE)},
        "magnification": {far: {name: _magnification(part, far, name) for name in NAMES} for far in (TWICE, THRICE)},
        "line_to_geodesic": {name: _straightness(part, name) for name in NAMES},
        "failed": {
            name: sum(far["metrics"][name][of].count(None) for far in part["far"].values() for of in ("ab", "bc"))
            for name in NAMES
        },
        "solvers": part["solvers"],
    }


def _figure(context: Context, part: dict[str, Any], parts: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _map(context, part["far"][TWICE], left)
    for name, color, marker in ((NARROW, "#e69f00", "s"), (PAPER, "#0072b2", "o")):
        sides = [side for each in parts for side in _pairs(each["far"][TWICE]["metrics"][name])]
        right.scatter(*zip(*sides, strict=True), s=22, color=color, marker=marker, alpha=0.7, linewidth=0, label=name)
    right.axline((1, 1), slope=1, color="0.3", linewidth=1, label="equal")
    right.set(xscale="log", yscale="log")
    right.set(
        xlabel="Riemannian distance of A and B (one class)", ylabel="Riemannian distance of B and C (two classes)"
    )
    right.set_title("Above the line: A is nearer to B than C is")
    right.legend(loc="lower right")
    return figure


def _pairs(side: dict[str, Any]) -> list[tuple[float, float]]:
    return [(ab, bc) for ab, bc in zip(side["ab"], side["bc"], strict=True) if known(ab, bc)]


def _map(context: Context, far: dict[str, Any], ax: Axes) -> None:
    """The triple whose B and C are farthest apart among those that are reversed, over the log volume."""
    model, by_name = metrics(context, context.seeds[0])
    side = far["metrics"][PAPER]
    gaps = [
        math.dist(b, c) * (known(ab, bc) and ab < bc)
        for ab, bc, (_, b, c) in zip(side["ab"], side["bc"], far["points"], strict=True)
    ]
    shown = gaps.index(max(gaps))
    points = torch.tensor(far["points"][shown], dtype=torch.float64)
    some = torch.randperm(len(model.codes), generator=Generator().manual_seed(0))[: context["drawn"]]
    labels = None if model.labels is None else model.labels[some]
    pb.plot.magnification(by_name[PAPER], codes=model.codes[some], labels=labels, bounds=wide(model), ax=ax)
    path = pb.geodesic(by_name[PAPER], points[:2], points[1:])
    pb.plot.geodesics(path, ax=ax)
    for name, offset, (x, y) in zip("ABC", ((8, 8), (9, 6), (-8, -24)), points.tolist(), strict=True):
        ax.plot(x, y, "o", markersize=8, markerfacecolor="white", markeredgecolor="black", zorder=4)
        ax.annotate(name, (x, y), offset, textcoords="offset points", fontsize=15, fontweight="bold", zorder=5,
                    bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.85})  # fmt: skip
    (ab, bc), (near_ab, near_bc) = path.length.tolist(), (points[1:] - points[:2]).norm(dim=1).tolist()
    ax.set_title(
        f"Euclidean: A-B {near_ab:.2f}, B-C {near_bc:.2f}; Riemannian: A-B {ab:.2f}, B-C {bc:.2f}", fontsize="medium"
    )
