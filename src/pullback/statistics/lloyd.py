"""Clustering by a matrix of distances: k-means with centers among candidates, and k-medoids by swaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Clusters:
    """A clustering of n points with k centers among N candidates.

    Attributes:
        centers: Candidates (k,).
        labels: Of each point (n,); -1 where no center can be reached.
        history: The inertia after each assignment; the last is that of the labels.
    """

    centers: Indices
    labels: Indices
    history: tuple[float, ...]

    @property
    def inertia(self) -> float:
        """The sum over points of the cost of their centers."""
        return self.history[-1]


def assigned(costs: Array) -> tuple[Indices, Array]:
    """The nearest of k centers for each of n points by costs (n, k), -1 where all are infinite; and what it costs."""
    labels, least = costs.argmin(1), costs.min(1)
    reached = np.isfinite(least)
    return np.where(reached, labels, -1), np.where(reached, least, 0.0)


def members(labels: Indices, k: int) -> Array:
    """The indicator (n, k) of clusters."""
    return (labels[:, None] == np.arange(k)).astype(np.float64)


def seeds(costs: Array, columns: Indices, k: int, generator: torch.Generator) -> Indices:
    """k candidates by k-means++: each drawn with probability as the cost of what is there, the best of some draws.

    Args:
        costs: Of n points with N candidates as center (n, N).
        columns: The candidates (m,) that may be drawn, and for each the point that it is: (2, m).
        k: How many.
        generator: On the CPU.

    Reference:
        Arthur, Vassilvitskii (2007), k-means++: the advantages of careful seeding.
    """
    candidates, points = columns
    trials = 2 + int(np.log(k))
    first = int(torch.randint(len(candidates), (), generator=generator))
    chosen = [int(candidates[first])]
    nearest = costs[:, chosen[0]]
    while len(chosen) < k:
        share = np.nan_to_num(nearest[points], posinf=2 * nearest[np.isfinite(nearest)].max(initial=1.0))
        if not share.sum() > 0:  # all that may be drawn lie on centers
            share = np.ones(len(points))
        share /= share.sum()
        drawn = torch.multinomial(torch.from_numpy(share), trials, replacement=True, generator=generator).numpy()
        tried = np.minimum(nearest[:, None], costs[:, candidates[drawn]])
        finite = np.isfinite(tried)
        best = int(
            np.lexsort((np.where(finite, tried, 0).sum(0), -finite.sum(0)))[0]
        )  # who reaches most, at least cost
        chosen.append(int(candidates[drawn[best]]))
        nearest = tried[:, best]
    return np.array(chosen)


def lloyd(costs: Array, columns: Indices, centers: Indices, *, max_iter: int, tol: float) -> Clusters:
    """k-means: each center goes to the candidate of least cost for its cluster; the inertia never rises.

    Args:
        costs: Of n points with N candidates as center (n, N), inf where these cannot be reached.
        columns: As for :func:`seeds`; an empty cluster gets the point that costs most.
        centers: To begin with (k,).
        max_iter: Steps at most.
        tol: Stop when the inertia falls by less, relatively.
    """
    k, history = len(centers), []
    finite = np.isfinite(costs)
    bounded = costs if finite.all() else np.where(finite, costs, 1e6 * (1 + costs[finite].max(initial=0)) * len(costs))
    while True:
        centers = repaired(costs, columns, centers)
        labels, least = assigned(costs[:, centers])
        history.append(float(least.sum()))
        if len(history) > max_iter or (len(history) > 1 and history[-2] - history[-1] <= tol * history[-2]):
            return Clusters(centers, labels, tuple(history))
        totals = bounded.T @ members(labels, k)  # (N, k)
        best = totals.argmin(0)
        lower = totals[best, np.arange(k)] < totals[centers, np.arange(k)]
        centers = np.where(lower, best, centers)


def repaired(costs: Array, columns: Indices, centers: Indices) -> Indices:
    """The centers, those without points moved to the points that cost most."""
    candidates, points = columns
    for _ in range(len(centers)):
        labels, least = assigned(costs[:, centers])
        empty = np.setdiff1d(np.arange(len(centers)), labels)
        farthest = least[points].argmax()
        if not len(empty) or not least[points][farthest] > 0:
            break
        centers = centers.copy()
        centers[empty[0]] = candidates[farthest]
    return centers


def swapped(distances: Array, medoids: Indices, *, max_iter: int) -> Clusters:
    """k-medoids: the best swap of a medoid with another point, until none lowers the sum of distances.

    Args:
        distances: (n, n), finite.
        medoids: To begin with (k,).
        max_iter: Swaps at most.

    Reference:
        Schubert, Rousseeuw (2021), Fast and eager k-medoids clustering. :cite:`fasterpam`
    """
    k, n, history = len(medoids), len(distances), []
    while True:
        near = distances[:, medoids]
        order = np.argsort(near, 1, kind="stable")
        labels, first = order[:, 0], near.min(1)
        second = np.take_along_axis(near, order[:, 1:2], 1)[:, 0] if k > 1 else np.full(n, np.inf)
        history.append(float(first.sum()))
        if len(history) > max_iter:
            break
        closer = np.minimum(distances - first, 0)  # (candidate, point): what a new medoid gains
        lost = np.minimum(distances, second) - first - closer  # what it does not make up for if that point's one goes
        change = closer.sum(1)[:, None] + lost @ members(labels, k)
        candidate, leaving = np.unravel_index(change.argmin(), change.shape)
        if not change[candidate, leaving] < -1e-12 * history[-1]:
            break
        medoids = medoids.copy()
        medoids[leaving] = candidate
    return Clusters(medoids, labels, tuple(history))
