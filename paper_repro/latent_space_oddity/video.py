"""Interpolation in a convolutional VAE of a video (section 6.2, figure 8), and in poses of a person who walks.

The paper trains a convolutional VAE on the frames of a video, whose standard deviation comes from radial basis
functions through transposed convolutions with positive filters, and shows that frames along geodesics change more
smoothly than along straight lines. Neither the video nor the layers nor the settings are published. Here the video is
drawn by code, a ball on a figure of eight, and the layers are those of ``pb.models.ConvolutionalVAE``. The poses are
ours alone: real recordings, but vectors, hence dense layers.

For pairs of frames at random three curves are compared, see ``smoothness.py``: the geodesic, the straight line, and the
line at constant speed in the metric. Geodesics are found on a table of the metric, from the straight line and from a
path over the graph of all codes, and then corrected on the metric itself.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import motion
import numpy as np
import smoothness
import torch
from context import Context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from motion import Scene
from results import Claim, Result, Verdict, rounded
from torch import Tensor

import pullback as pb

SCENES = {"film": motion.film, "poses": motion.walk}
NAMES = {"film": "film of a ball on an eight", "poses": "poses of a walk"}
MOST, MANY = 0.8, 0.6  # shares of pairs: for the claim to hold, and to hold partly
ROUNDING = 1e-3  # that a geodesic may be longer than a line, relatively
SHORTER = 1 / 0.99  # median of line / geodesic that counts as a difference
COLORS = {"geodesic": "#0072B2", "line": "#D55E00", "resampled": "#CC79A7"}  # told apart by color-blind people, too
LABELS = {"geodesic": "geodesic", "line": "straight line", "resampled": "line, constant speed"}

Parts = Mapping[str, Sequence[Mapping[str, Any]]]


def run(context: Context) -> Result:
    """Train, interpolate, compare."""
    parts = {}
    for name, scene in SCENES.items():
        parts[name] = [
            context.once(f"{name}-{seed}", partial(compared, context, scene, seed)) for seed in context.seeds
        ]
    claims = [claim for name in SCENES for claim in claims_of(name, parts[name])]
    solved, failed = (sum(part[key] for several in parts.values() for part in several) for key in ("solved", "failed"))
    return Result(
        title="Interpolation in a video and in poses",
        claims=claims,
        numbers=numbers(parts),
        caption=(
            "Left: log volume of the decoder, codes, and curves between two frames, the pair of the first model whose "
            "line is longest relative to its geodesic. Middle: what lies on them at equal steps. Right: all pairs of "
            "all models; the largest change from frame to frame, divided by the mean, along lines and along geodesics."
        ),
        paper_figure="Frames of a video along a straight line and along a geodesic: the latter change smoothly.",
        figure=figure(context, parts),
        solved=solved,
        failed=failed,
        findings=findings(parts),
    )


def compared(context: Context, make: Any, seed: int) -> dict[str, Any]:
    """Measures of the three curves between pairs of frames in the model of a seed, and the pair to show."""
    scene: Scene = make(context, seed)
    metric = scene.metric
    table = motion.tabulated(metric, scene.codes, context["resolution"], context["margin"])
    chosen = pairs(len(scene.codes), context["pairs"])
    start, end = scene.codes[chosen].unbind(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)  # failures are counted, below
        graph = pb.knn_graph(table, scene.codes, context["neighbors"])
        rough = pb.geodesic(table, start, end, starts=("straight", graph))
        path = pb.geodesic(metric, start, end, init=rough.curve)
    if not path.converged.any():
        raise RuntimeError(f"seed {seed}: none of {len(chosen)} geodesics was found: there is nothing to compare")
    found = smoothness.measured(metric, scene.decode, path, context["frames"], scene.data.samples)
    ratio = torch.tensor(found["line"]["length"]) / torch.tensor(found["geodesic"]["length"])
    shown = path[path.converged][int(ratio.argmax())].curve.resample(128).nodes
    known = path.converged & rough.converged
    error = (scene.decode(scene.codes) - scene.data.samples).square().mean().sqrt()
    return {
        "curves": {kind: {name: rounded(v) for name, v in measures.items()} for kind, measures in found.items()},
        "pairs": chosen[path.converged].tolist(),
        "shown": rounded(shown.flatten()),
        "solved": len(chosen),
        "failed": int((~path.converged).sum()),
        "rough": int((path.codes == pb.Status.NON_SMOOTH.code).sum()),
        "table_error": table.error.quantile95,
        "table_length_error": float((rough.length / path.length - 1)[known].abs().median()),
        "reconstruction": float(error),
        "contrast": float(scene.data.samples.std(0).square().mean().sqrt()),
    }


def pairs(n: int, count: int) -> Tensor:
    """Pairs (count, 2) of different frames, the same in every run."""
    drawn = torch.randint(n, (2 * count, 2), generator=torch.Generator().manual_seed(0))
    return drawn[drawn[:, 0] != drawn[:, 1]][:count]


def claims_of(name: str, parts: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """What the paper shows, and what of it is more than constant speed."""
    what = NAMES[name]
    spread = "; models " + ", ".join(f"{share(part, 'jump', 'line'):.0%}" for part in parts)
    steady, fair = (statistics.mean(share(part, "jump", other) for part in parts) for other in ("line", "resampled"))
    links = statistics.mean(share(part, "weakest_link", "resampled") for part in parts)
    ratios = [ratio for part in parts for ratio in ratios_of(part)]
    ratio, least = statistics.median(ratios), min(ratios)
    jumps = {kind: statistics.median(v for part in parts for v in part["curves"][kind]["jump"]) for kind in COLORS}
    paper = "frames along the geodesic change smoothly" if name == "film" else "not in the paper"
    return [
        Claim(
            f"{name}-smooth",
            f"The {what}: frames change more evenly along the geodesic than along the straight line",
            paper,
            f"in {steady:.0%} of pairs{spread}; largest/mean change, medians: geodesic {jumps['geodesic']:.2f}, line "
            f"{jumps['line']:.2f}",
            steady,
            0.15,
            Verdict.of(steady >= MOST, partly=steady >= MANY),
        ),
        Claim(
            f"{name}-fair",
            f"The {what}: more evenly, too, than along the line at constant speed in the metric",
            "not asked",
            f"in {fair:.0%} of pairs ({jumps['resampled']:.2f} at the line); the weakest correlation of neighboring "
            f"frames is higher in {links:.0%}",
            fair,
            0.3,
            Verdict.of(fair >= MOST, partly=fair >= MANY),
            "" if fair >= MOST else "constant speed alone makes frames change evenly, also along a line",
        ),
        Claim(
            f"{name}-shorter",
            f"The {what}: geodesics are shorter than straight lines, and not by a trifle",
            "the line leaves the data",
            f"line / geodesic: median {ratio:.3f}, 95% below {quantile(ratios, 0.95):.3f}, least {least:.5f}",
            ratio,
            0.5 * (ratio - 1) + 0.02,
            Verdict.of(least >= 1 - ROUNDING and ratio >= SHORTER, partly=least >= 1 - ROUNDING and ratio >= 1.001),
            "" if ratio >= SHORTER else "most lines cross no wall: between them the decoder is nearly flat",
        ),
    ]


def share(part: Mapping[str, Any], measure: str, other: str) -> float:
    """In which share of pairs the geodesic is better than another curve; one that failed is not."""
    ours, theirs = (np.array(part["curves"][kind][measure]) for kind in ("geodesic", other))
    better = ours > theirs if measure in ("weakest_link", "autocorrelation") else ours < theirs
    return float(better.sum()) / part["solved"]


def ratios_of(part: Mapping[str, Any]) -> list[float]:
    """Length of the line over that of the geodesic, pair by pair."""
    line, geodesic = (part["curves"][kind]["length"] for kind in ("line", "geodesic"))
    return [a / b for a, b in zip(line, geodesic, strict=True)]


def findings(parts: Parts) -> list[str]:
    """What else was found, in sentences."""
    lines = []
    for name, several in parts.items():
        what = NAMES[name]
        stray = {k: statistics.median(v for part in several for v in part["curves"][k]["stray"]) for k in COLORS}
        auto = {k: statistics.median(v for p in several for v in p["curves"][k]["autocorrelation"]) for k in COLORS}
        closer = statistics.mean(share(part, "stray", "line") for part in several)
        contrast = statistics.mean(part["contrast"] for part in several)
        lines.append(
            f"The {what}: the farthest of the decoded frames is, in the median, {stray['geodesic'] / contrast:.2f} "
            f"from the real frame nearest to it along the geodesic and {stray['line'] / contrast:.2f} along the line, "
            f"in units of the standard deviation of the data; the geodesic stays closer in {closer:.0%} of pairs."
        )
        lines.append(
            f"The {what}: the autocorrelation of frames at lag 1 is {auto['geodesic']:.3f} along the geodesic, "
            f"{auto['line']:.3f} along the line, {auto['resampled']:.3f} along the line at constant speed (medians): "
            "frames that stand still and then jump have a high one, so that it does not tell which is smooth."
        )
        rough, solved = (sum(part[key] for part in several) for key in ("rough", "solved"))
        table = statistics.median(part["table_length_error"] for part in several)
        lines.append(
            f"The {what}: lengths on the table of the metric differ from those on the metric by {table:.1e} in the "
            f"median; {rough} of {solved} geodesics are known only as far as steep walls allow."
        )
    return lines


def numbers(parts: Parts) -> dict[str, Any]:
    """Lengths and changes pair by pair, of the rest the medians."""
    kept = ("solved", "failed", "rough", "table_error", "table_length_error", "reconstruction", "contrast")
    found = {}
    for name, several in parts.items():
        found[name] = []
        for part in several:
            curves = part["curves"]
            medians = {
                kind: {measure: statistics.median(values) for measure, values in measures.items()}
                for kind, measures in curves.items()
            }
            pairwise = {"jump": {kind: curves[kind]["jump"] for kind in COLORS}}
            pairwise["length"] = {kind: curves[kind]["length"] for kind in ("geodesic", "line")}
            found[name].append({key: part[key] for key in kept} | {"medians": medians} | pairwise)
    return found


def figure(context: Context, parts: Parts) -> Figure:
    """A row a scene: map, frames on the three curves, all pairs."""
    drawn = Figure(figsize=(15, 5.2 * len(SCENES)), layout="constrained")
    axes = drawn.subplots(len(SCENES), 3, width_ratios=(1, 1.45, 0.8))
    for row, (name, make) in zip(axes, SCENES.items(), strict=True):
        scene = make(context, context.seeds[0])
        nodes = torch.tensor(parts[name][0]["shown"], dtype=torch.float64).reshape(1, -1, 2)
        line = pb.Curve.straight(nodes[:, 0], nodes[:, -1], 512)
        curves = {"geodesic": pb.Curve(nodes), "line": line}
        curves["resampled"] = pb.constant_speed(scene.metric, line)
        pb.plot.magnification(scene.metric, codes=scene.codes, resolution=context["map"], ax=row[0])
        for kind in ("geodesic", "line"):
            row[0].plot(*curves[kind].nodes[0].T, color="white", lw=3.5)
            row[0].plot(*curves[kind].nodes[0].T, color=COLORS[kind], lw=2, label=LABELS[kind])
        row[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
        row[0].set_title(f"{NAMES[name][0].upper()}{NAMES[name][1:]}: model of seed {context.seeds[0]}")
        if name == "film":
            strips(row[1], scene, curves)
        else:
            skeletons(row[1], scene, curves)
        row[1].set_title("decoded at equal steps of each curve")
        scatter(row[2], parts[name])
    return drawn


def strips(ax: Axes, scene: Scene, curves: Mapping[str, pb.Curve], n: int = 10) -> None:
    """Rows of decoded frames."""
    rows = {LABELS[kind]: pb.Curve(curve.nodes[0]) for kind, curve in curves.items()}
    pb.plot.interpolation(scene.decode, rows, n=n, shape=scene.data.sample_shape, ax=ax)


def skeletons(ax: Axes, scene: Scene, curves: Mapping[str, pb.Curve], n: int = 10) -> None:
    """Rows of decoded poses, from the side."""
    parents = scene.data.parents
    tall = float(np.ptp(scene.data.samples.reshape(-1, len(parents), 3)[..., 1].numpy()))
    for row, (kind, curve) in enumerate(curves.items()):
        poses = smoothness.frames(scene.decode, curve, n).reshape(n, len(parents), 3)
        for k, pose in enumerate(poses):
            for joint, parent in enumerate(parents):
                if parent >= 0:
                    x = pose[[joint, parent], 2] + 0.7 * tall * k
                    ax.plot(x, pose[[joint, parent], 1] - 1.15 * tall * row, color=COLORS[kind], lw=1)
        ax.text(-0.45 * tall, -1.15 * tall * row, LABELS[kind], ha="right", va="center", fontsize=9)
    ax.set_aspect("equal")
    ax.axis("off")


def scatter(ax: Axes, parts: Sequence[Mapping[str, Any]]) -> None:
    """The largest change over the mean, of the geodesic against the others, pair by pair."""
    for kind in ("line", "resampled"):
        x, y = ([v for part in parts for v in part["curves"][k]["jump"]] for k in (kind, "geodesic"))
        ax.scatter(x, y, s=14, color=COLORS[kind], alpha=0.7, label=LABELS[kind], lw=0)
    top = max(v for part in parts for kind in COLORS for v in part["curves"][kind]["jump"])
    highest = max(v for part in parts for v in part["curves"]["geodesic"]["jump"])
    ax.plot([1, top], [1, top], color="0.6", lw=1, label="equal")
    ax.set_ylim(1 - 0.1 * (highest - 1), highest + 0.3 * (highest - 1))
    ax.set_xlabel("largest / mean change of frames, on lines")
    ax.set_ylabel("the same on geodesics")
    ax.set_title("below gray: geodesics are more even", fontsize=10)
    ax.legend(fontsize=8)


def quantile(values: Sequence[float], p: float) -> float:
    """The quantile of some numbers."""
    return float(np.quantile(values, p))
