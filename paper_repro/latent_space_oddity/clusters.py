"""The protocol of the paper's Table 1 for any codes, metrics and labels: subsets, clusters, scores.

A *way* is a function of the rows (m,) of a subset and of a seed that returns the clusters (m,) of these rows; -1 is a
point that no center reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn import cluster
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Generator, Tensor, nn

import pullback as pb

Way = Callable[[Tensor, int], NDArray[np.int64]]
SCORES = ("f", "accuracy", "rand", "information")
FLAT = pb.Pullback(nn.Identity())


def subsets(labels: Tensor, n_subsets: int, per_class: int) -> list[Tensor]:
    """Rows of disjoint subsets with as many of each class, in the order of the rows."""
    parts = [torch.nonzero(labels == label)[:, 0].split(per_class)[:n_subsets] for label in labels.unique()]
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]


def drawn(n: int, n_subsets: int, size: int) -> list[Tensor]:
    """Rows of subsets drawn at random from n, which overlap: where there are too few for disjoint ones."""
    generator = Generator().manual_seed(0)
    return [torch.randperm(n, generator=generator)[:size] for _ in range(n_subsets)]


def euclidean(points: Tensor, k: int, n_init: int) -> Way:
    """k-means of scikit-learn, in any space."""

    def way(rows: Tensor, seed: int) -> NDArray[np.int64]:
        return cluster.KMeans(k, n_init=n_init, random_state=seed).fit_predict(points[rows].numpy())

    return way


def on_graph(metric: pb.Metric, graph: pb.Graph, codes: Tensor, k: int, n_init: int, *, power: int = 2) -> Way:
    """k-means, or k-medians for power 1, with the distances of a metric by a graph that every subset shares."""

    def way(rows: Tensor, seed: int) -> NDArray[np.int64]:
        means = pb.KMeans(metric, k, graph=graph, n_init=n_init, power=power, random_state=seed)  # pyright: ignore[reportArgumentType]
        return means.fit(codes[rows]).labels_.numpy()

    return way


def protocol(ways: Mapping[str, Way], labels: Tensor, chosen: Sequence[Tensor]) -> dict[str, Any]:
    """Scores in % of every way on every subset, ``{way: {score: [...]}}``; fits, and how many of these lost points."""
    found: dict[str, Any] = {name: {score: [] for score in SCORES} for name in ways}
    lost = 0
    for name, way in ways.items():
        for seed, rows in enumerate(chosen):
            clusters = way(rows, seed)
            lost += int((clusters < 0).any())
            for score, value in zip(SCORES, scores(clusters, labels[rows].numpy()), strict=True):
                found[name][score].append(round(100 * value, 3))
    return {"scores": found, "lost": lost, "fits": len(ways) * len(chosen)}


def scores(clusters: NDArray[np.int64], classes: NDArray[np.int64]) -> tuple[float, float, float, float]:
    r"""F-measure, accuracy of the best matching, adjusted Rand index, normalized mutual information.

    .. math:: F = \sum_i \frac{n_i}{n} \max_j \frac{2 P_{ij} R_{ij}}{P_{ij} + R_{ij}}, \qquad
        P_{ij} = \frac{n_{ij}}{n_j},\ R_{ij} = \frac{n_{ij}}{n_i}

    with :math:`n_{ij}` points of class i in cluster j. Points in no cluster count as wrong.
    """
    names, which = np.unique(classes, return_inverse=True)
    table = np.zeros((len(names), max(len(names), int(clusters.max()) + 1)))
    np.add.at(table, (which[clusters >= 0], clusters[clusters >= 0]), 1)
    sizes = np.bincount(which)
    f = 2 * table / (sizes[:, None] + table.sum(0))  # 2 P R / (P + R)
    rows, columns = linear_sum_assignment(table, maximize=True)
    rand = adjusted_rand_score(classes, clusters)
    information = normalized_mutual_info_score(classes, clusters)
    accuracy = table[rows, columns].sum() / len(classes)
    return float(sizes @ f.max(1)) / len(classes), float(accuracy), float(rand), float(information)


def means(parts: Mapping[str, Sequence[Mapping[str, Any]]], way: str, score: str = "f") -> dict[str, NDArray[Any]]:
    """The mean over subsets of what :func:`protocol` found, of each set an array with one entry a seed."""
    return {name: np.array([np.mean(part["scores"][way][score]) for part in some]) for name, some in parts.items()}
