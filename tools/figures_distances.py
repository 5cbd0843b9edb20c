"""Draws the picture of docs/distances.md into docs/_static, and logs what the page states.

OMP_NUM_THREADS=1 python tools/figures_distances.py                 # about a minute
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

import pullback as pb

STATIC = Path(__file__).parents[1] / "docs" / "_static"
N_CODES, N_BETWEEN, N_PAIRS = 2000, 150, 300

log = logging.getLogger("figures_distances")


def ratios(graph: pb.Graph, pairs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Path over geodesic of pairs (m, 2)."""
    return graph.distances(pairs[:, 0])[torch.arange(len(pairs)), pairs[:, 1]] / truth


def draw(metric: pb.Metric, codes: torch.Tensor) -> Figure:
    """A pair that has to cross a gap: graph, path, geodesic and line; and path over geodesic of random pairs."""
    graph = pb.knn_graph(metric, codes)
    filled = graph.fill_gaps(metric, N_BETWEEN, generator=torch.Generator().manual_seed(0))
    pairs = torch.randint(len(codes), (N_PAIRS, 2), generator=torch.Generator().manual_seed(1))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    path = pb.geodesic(metric, codes[pairs[:, 0]], codes[pairs[:, 1]], starts=("straight", "bends", filled))
    pairs, length = pairs[path.converged], path.length[path.converged]
    both = {"codes": ratios(graph, pairs, length), f"and {N_BETWEEN} points between": ratios(filled, pairs, length)}
    for name, ratio in both.items():
        log.info("%s: %s", name, ratio.quantile(torch.tensor([0.5, 0.95, 1.0], dtype=ratio.dtype)).tolist())

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    pb.plot.magnification(metric, codes=codes, resolution=160, ax=left)
    coo = graph.edges.tocoo()
    once = coo.row < coo.col
    ends = torch.stack((codes[coo.row[once]], codes[coo.col[once]]), 1).numpy()
    left.add_collection(LineCollection(list(ends), colors="white", linewidths=0.25, alpha=0.18))
    straight = pb.length(metric, pb.Curve.straight(codes[pairs[:, 0]], codes[pairs[:, 1]]), n_segments=512)
    worst = int((both["codes"] * (straight / length > 1.1)).argmax())
    i, j = pairs[worst].tolist()
    solved = pb.geodesic(metric, codes[i], codes[j], starts=("straight", "bends", filled))
    line = torch.stack((codes[i], codes[j]))
    stops = graph.points[graph.path(i, j)]
    for nodes, color, style, text, size in (
        (line, "tab:red", "--", "straight line", float(straight[worst])),
        (stops, "tab:orange", ".-", "path over the graph", float(both["codes"][worst] * length[worst])),
        (solved.curve.nodes, "tab:cyan", "-", "geodesic", float(solved.length)),
    ):
        left.plot(nodes[:, 0], nodes[:, 1], style, color=color, lw=2, ms=5, label=f"{text}: {size:.2f}")
    left.legend(loc="lower left")
    left.set_title(f"the graph of {len(codes):,} codes, and one pair")
    for (name, ratio), color in zip(both.items(), ("tab:orange", "tab:blue"), strict=True):
        right.hist(100 * (ratio - 1), bins=40, range=(0, 40), histtype="step", lw=2, color=color, label=name)
    right.set_xlabel("path over the graph longer than the geodesic by, in %")
    right.set_ylabel(f"pairs of {len(pairs)}")
    right.legend(title="a graph over")
    right.set_title("what a graph adds to the distance")
    return figure


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    model = pb.models.pretrained("mnist012")
    some = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(0))[:N_CODES]
    draw(pb.Pullback(model.decoder), model.codes[some]).savefig(STATIC / "distances.png", dpi=110)


if __name__ == "__main__":
    main()
