"""Interpolation between zeros and ones (the paper's Fig. 7): do decoded images change more smoothly along geodesics?

The paper draws two interpolations, their decoded images and the autocorrelation of these: along the straight line the
image changes abruptly where the class does, along the geodesic it changes at an even pace.

Here many pairs of a zero and a one are drawn. Three curves join each: the geodesic; the line, at equal steps in latent
space as the paper has it; and the line resampled at constant Riemannian speed, because an even pace is something that
any curve can be given. Frames at equal steps of the parameter are compared by their largest step, divided by the mean
one, and by the smallest correlation of neighbors, which is where the blocks of an autocorrelation matrix meet. The
last comparison tells what the way itself does, beyond the pace. The same is asked of a narrow variance (a = 1).
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
from smoothness import between, correlations, frames, measured
from torch import Generator, Tensor
from zero_one import MEAN, NARROW, PAPER, metrics, side_by_side, told, trials, wide

import pullback as pb

NAMES = (PAPER, NARROW, MEAN)
KINDS = {"geodesic": "geodesic", "line": "line", "resampled": "line at constant\nRiemannian speed"}
COLORS = {"geodesic": "#d55e00", "line": "#0072b2", "resampled": "#56b4e9"}


def run(context: Context) -> Result:
    """Interpolate on the models of all seeds."""
    by_seed = {seed: context.once(f"seed-{seed}", lambda seed=seed: _measured(context, seed)) for seed in context.seeds}
    parts = list(by_seed.values())
    tried, lost = trials([record for part in parts for record in part["solvers"].values()])
    return Result(
        title="Interpolation between zeros and ones",
        claims=_claims(parts),
        numbers={"seeds": {str(seed): _short(part) for seed, part in by_seed.items()}},
        caption=(
            "Top left: log volume of the latent space (a = 2) with two interpolations: geodesics that bend as much as "
            "the median one (1) and the most (2). Top right: correlations of the frames of the second with each other, "
            "and how uneven the steps of all pairs are. Bottom: decoded frames along three curves of both."
        ),
        paper_figure="Latent space with two interpolations, their decoded images, and the autocorrelation of these.",
        figure=_figure(context, parts),
        solved=tried + sum(len(part["start"]) for part in parts) * len(NAMES),
        failed=lost + sum(part["metrics"][name]["failed"] for part in parts for name in NAMES),
        findings=_findings(context, parts),
    )


def _measured(context: Context, seed: int) -> dict[str, Any]:
    """All pairs of one model by three metrics; a part of them by two solvers."""
    model, by_name = metrics(context, seed)
    start, end = _pairs(model.codes, torch.as_tensor(model.labels), context["pairs"], seed)
    images = context.images([0, 1]).samples.flatten(1)
    part: dict[str, Any] = {"start": start.tolist(), "end": end.tolist(), "metrics": {}, "solvers": {}}
    for name, metric in by_name.items():
        path = _path(context, metric, start, end)
        part["metrics"][name] = {"failed": int((~path.converged).sum())}
        if path.converged.any():
            data = images[:: context["compare_every"]]
            part["metrics"][name]["kinds"] = measured(metric, model.vae.decoder, path, context["frames"], data)
        if name == PAPER:
            part["shown"] = _shown(path)
    for name in (PAPER, NARROW):
        n = context["collocated"]
        part["solvers"][name] = side_by_side(context, by_name[name], start[:n], end[:n])
    return part


def _pairs(codes: Tensor, labels: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes (n, d) of zeros and (n, d) of ones."""
    generator = Generator().manual_seed(seed)
    first, second = (codes[labels == label] for label in labels.unique())
    return tuple(of[torch.randperm(len(of), generator=generator)[:n]] for of in (first, second))  # pyright: ignore[reportReturnType]


def _path(context: Context, metric: pb.Metric, start: Tensor, end: Tensor) -> pb.Solution:
    return pb.geodesic(metric, start, end, solver=pb.Relax(max_evaluations=context["max_evaluations"]))


def _shown(path: pb.Solution) -> list[int]:
    """The pairs with the median and the largest ratio of the geodesic's latent length to that of the line."""
    nodes = path.curve.nodes
    detour = nodes.diff(dim=1).norm(dim=2).sum(1) / (nodes[:, -1] - nodes[:, 0]).norm(dim=1)
    order = detour.argsort()
    order = order[path.converged[order]].tolist()
    return [order[len(order) // 2], order[-1]]


def _share(part: dict[str, Any], name: str, what: str, other: str, sign: int) -> float:
    """In how many of 100 pairs the geodesic has less (sign 1) or more (-1) of something; failed ones count as not."""
    own, others = (_values([part], name, kind, what) for kind in ("geodesic", other))
    wins = [sign * a < sign * b for a, b in zip(own, others, strict=True)]
    return 100 * sum(wins) / (len(wins) + part["metrics"][name]["failed"])


def _values(parts: list[dict[str, Any]], name: str, kind: str, what: str) -> list[float]:
    """One number a pair of all models, but of those whose geodesic failed."""
    return [value for part in parts for value in part["metrics"][name].get("kinds", {}).get(kind, {}).get(what, [])]


def _typical(parts: list[dict[str, Any]], name: str, kind: str, what: str) -> float:
    """The median over the pairs of all models."""
    return statistics.median(_values(parts, name, kind, what))


def _longer(parts: list[dict[str, Any]], name: str) -> list[float]:
    """Line to geodesic of each pair, in length."""
    lines, own = (_values(parts, name, kind, "length") for kind in ("line", "geodesic"))
    return [line / length for line, length in zip(lines, own, strict=True)]


def _pace(parts: list[dict[str, Any]], name: str) -> str:
    """How much of what the geodesic gains on the line in evenness the line gains by its pace alone, in words."""
    jumps = {kind: math.log(_typical(parts, name, kind, "jump")) for kind in KINDS}
    gain, alone = (jumps["line"] - jumps[kind] for kind in ("geodesic", "resampled"))
    return f"constant speed alone makes up {100 * alone / gain:.0f}% of the gain" if gain > 0 else "there is no gain"


def _claims(parts: list[dict[str, Any]]) -> list[Claim]:
    even = [_share(part, PAPER, "jump", "line", 1) for part in parts]
    linked = [_share(part, PAPER, "weakest_link", "line", -1) for part in parts]
    fair = [_share(part, PAPER, "jump", "resampled", 1) for part in parts]
    longer = _longer(parts, PAPER)
    median, least = statistics.median(longer), min(longer)
    jumps = {kind: _typical(parts, PAPER, kind, "jump") for kind in KINDS}
    links = {kind: _typical(parts, PAPER, kind, "weakest_link") for kind in KINDS}
    fairly = statistics.fmean(fair)
    return [
        Claim(
            "smooth",
            "Images change more evenly along the geodesic than along the line",
            "significantly smoother; no number",
            f"in {spread(even, '.0f', '%')} of the pairs; largest step {jumps['geodesic']:.2f} times the mean one, "
            f"{jumps['line']:.2f} along the line",
            statistics.fmean(even),
            15.0,
            Verdict.of(statistics.fmean(even) >= 80, partly=statistics.fmean(even) > 60),
        ),
        Claim(
            "autocorrelation",
            "Where images change most, neighbors correlate more along the geodesic than along the line",
            "autocorrelation matrices, drawn",
            f"in {spread(linked, '.0f', '%')} of the pairs; the weakest correlation of neighbors is "
            f"{links['geodesic']:.2f} against {links['line']:.2f}",
            statistics.fmean(linked),
            15.0,
            Verdict.of(statistics.fmean(linked) >= 80, partly=statistics.fmean(linked) > 60),
        ),
        Claim(
            "shorter",
            "The geodesic is a shorter way than the line (by 1% in the median, and never longer)",
            "shortest curves, drawn",
            f"the line is longer by {100 * (median - 1):.1f}% in the median, {100 * (max(longer) - 1):.0f}% at most",
            100 * (median - 1),
            2.0,
            Verdict.of(least >= 0.999 and median > 1.01, partly=least >= 0.999 and median > 1.001),
            "" if median > 1.01 else "the model is nearly flat between such pairs at a = 2",
        ),
        Claim(
            "fair",
            "The way itself, and not only its pace, makes the images change evenly",
            "not asked",
            f"more even than the line at constant Riemannian speed in {spread(fair, '.0f', '%')} of the pairs; largest "
            f"step {jumps['geodesic']:.2f} against {jumps['resampled']:.2f} times the mean one",
            fairly,
            20.0,
            Verdict.of(fairly >= 80, partly=fairly >= 60),
            _pace(parts, PAPER),
        ),
    ]


def _findings(context: Context, parts: list[dict[str, Any]]) -> list[str]:
    lines = []
    for name in NAMES:
        longer = _longer(parts, name)
        if not longer:
            lines.append(f"With {name} no geodesic was found within {context['max_evaluations']:,} evaluations.")
            continue
        jumps = {kind: _typical(parts, name, kind, "jump") for kind in KINDS}
        stray = {kind: _typical(parts, name, kind, "stray") for kind in KINDS}
        lines.append(
            f"{'The metric of the ' + name if name == MEAN else 'With ' + name}: the line is longer by "
            f"{100 * (statistics.median(longer) - 1):.1f}% in the median, {100 * (max(longer) - 1):.0f}% at most; the "
            f"largest step is {jumps['geodesic']:.2f} times the mean one along geodesics, {jumps['line']:.2f} along "
            f"lines, {jumps['resampled']:.2f} along lines at constant Riemannian speed ({_pace(parts, name)}); the "
            f"frame farthest from all training images differs from the nearest by {stray['geodesic']:.3f}, "
            f"{stray['line']:.3f} and {stray['resampled']:.3f} a pixel."
        )
    return lines + [told(name, [part["solvers"][name] for part in parts]) for name in (PAPER, NARROW)]


def _short(part: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one model for the record: medians over pairs, and in how many pairs the geodesic is better."""
    record: dict[str, Any] = {"solvers": part["solvers"], "pairs": len(part["start"]), "shown": part["shown"]}
    for name in NAMES:
        longer = _longer([part], name)
        record[name] = {"failed": part["metrics"][name]["failed"]}
        if not longer:
            continue
        record[name] |= {
            "line_to_geodesic": [min(longer), statistics.median(longer), max(longer)],
            "more_even_than": {other: _share(part, name, "jump", other, 1) for other in ("line", "resampled")},
            "better_linked_than": {
                other: _share(part, name, "weakest_link", other, -1) for other in ("line", "resampled")
            },
            "medians": {
                kind: {what: statistics.median(values) for what, values in of_kind.items()}
                for kind, of_kind in part["metrics"][name]["kinds"].items()
            },
        }
    return record


def _figure(context: Context, parts: list[dict[str, Any]]) -> Figure:
    """Map, correlations, evenness, frames: of the first model, but for the evenness."""
    model, by_name = metrics(context, context.seeds[0])
    rows = parts[0]["shown"]
    start, end = (torch.tensor(parts[0][side], dtype=torch.float64)[rows] for side in ("start", "end"))
    path = _path(context, by_name[PAPER], start, end)
    curves = between(by_name[PAPER], path)
    figure = Figure(figsize=(13, 11.3), layout="constrained")
    halves: Any = figure.subfigures(2, 1)
    (left, right), bottom = halves[0].subfigures(1, 2, width_ratios=(1, 1.15)), halves[1]
    _map(context, by_name[PAPER], path, left.subplots())
    above, below = right.subfigures(2, 1, height_ratios=(1, 0.95))
    axes = above.subplots(1, 3, sharey=True)
    for ax, (kind, curve) in zip(axes, curves.items(), strict=True):
        matrix = correlations(frames(model.vae.decoder, curve, context["frames"]))[1]
        ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        ax.set_title(KINDS[kind], fontsize="medium")
        ax.set_xlabel("frame")
    axes[0].set_ylabel("frame of pair 2")
    above.colorbar(axes[0].images[0], ax=axes, label="correlation", shrink=0.8)
    _evenness(parts, below.subplots())
    named = {f"{i + 1}: {KINDS[kind]}": curve[i] for i in range(2) for kind, curve in curves.items()}
    pb.plot.interpolation(model.vae.decoder, named, n=context["frames"], shape=model.sample_shape, ax=bottom.subplots())
    return figure


def _map(context: Context, metric: pb.Metric, path: pb.Solution, ax: Axes) -> None:
    model = context.zero_one(context.seeds[0])[1]
    some = torch.randperm(len(model.codes), generator=Generator().manual_seed(0))[: context["drawn"]]
    labels = torch.as_tensor(model.labels)[some]
    pb.plot.magnification(metric, codes=model.codes[some], labels=labels, bounds=wide(model), ax=ax)
    pb.plot.geodesics(path, ax=ax)
    for name, offset, (x, y) in zip("12", ((6, 6), (-16, -16)), path.curve.nodes[:, 0].tolist(), strict=True):
        ax.annotate(name, (x, y), offset, textcoords="offset points", fontsize=13, fontweight="bold", zorder=5,
                    bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.85})  # fmt: skip


def _evenness(parts: list[dict[str, Any]], ax: Axes) -> None:
    """Boxes of the largest step divided by the mean one: three kinds of curves, two metrics."""
    for j, (kind, label) in enumerate(KINDS.items()):
        values = [_values(parts, name, kind, "jump") for name in (PAPER, NARROW)]
        boxes = ax.boxplot(
            values, positions=[i + 0.27 * (j - 1) for i in range(2)], widths=0.2, patch_artist=True,
            medianprops={"color": "black"}, flierprops={"markersize": 3},
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set(facecolor=COLORS[kind], label=label.replace("\n", " ") if box is boxes["boxes"][0] else None)
    ax.set_xticks(range(2), (PAPER, NARROW))
    ax.set(ylabel="largest step / mean step", yscale="log", ylim=(1, None))
    ticks = [1, 1.5, 2, 3, 4]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.legend(fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
