"""Frechet means against Karcher's flow, the time of k-means, and what the metric is worth downstream.

OMP_NUM_THREADS=1 python tests/benchmarks/means.py                         # an hour or more: the flow is slow
OMP_NUM_THREADS=1 python tests/benchmarks/means.py --only means --dry      # one part; writes nothing
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

from run import Rows

import pullback as pb
from pullback.statistics.logs import LOGARITHM, logarithms, moved

SHARE = 1e-8  # of the spread: the step that ends Karcher's flow
PATIENCE = 4  # steps without a smaller one: what is left are the errors of logarithms


def shipped(n: int, seed: int = 0) -> tuple[pb.Metric, Tensor, np.ndarray]:
    """The shipped model's metric, some of its codes (n, d) and their labels."""
    model = pb.models.pretrained("mnist012")
    some = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(seed))[:n]
    return pb.Pullback(model.decoder), model.codes[some], model.labels[some].numpy()


def karcher(
    metric: pb.Metric, codes: Tensor, start: Tensor, begin: pb.Graph | pb.Curve, tol: float, *, warm: bool,
    max_steps: int = 120, share: float = SHARE,
) -> tuple[Tensor, list[float], list[int]]:  # fmt: skip
    """Karcher's flow: the mean, the steps as shares of the spread, and evaluations a code up to each."""
    point, curves, steps, spent = start, begin if isinstance(begin, pb.Curve) else None, [], []
    total = 0
    for _ in range(max_steps):
        again = warm and curves is not None
        init = {"init": moved(curves, point)} if again else {"starts": begin}
        logs, path = logarithms(metric, point, codes, tol=tol, **init)
        curves = path.curve
        total += int(path.evaluations.sum()) + LOGARITHM * len(codes)
        known = ~logs.isnan().any(1)
        step = logs[known].mean(0)
        spread = float(path.length[known].square().mean().sqrt())
        steps.append(float(metric.norm(point, step)) / spread)
        spent.append(total // len(codes))
        point = point + step
        stuck = len(steps) > PATIENCE and min(steps[-PATIENCE:]) > 0.5 * min(steps[:-PATIENCE])
        if steps[-1] <= share or stuck:
            break
    return point, steps, spent


def means(n: int = 1000, tol: float = 1e-5, *, anew: bool = False) -> Rows:
    """The mean of the shipped model's codes against Karcher's flow, on a table: evaluations there are counted as any.

    Which of several geodesics a code has depends on where its curve started; so the end of the flow is looked for from
    our mean and its geodesics, and the work for a way there is counted from the medoid, with logarithms as good. `anew`
    also counts a flow that starts each geodesic from the graph in every step.
    """
    exact, codes, _ = shipped(n)
    metric = pb.Tabulated(exact, torch.stack((codes.amin(0) - 0.5, codes.amax(0) + 0.5), 1))
    graph = pb.knn_graph(metric, codes)
    begin = time.process_time()
    ours = pb.frechet_mean(metric, codes, tol=tol, graph=graph, full=True)
    seconds = time.process_time() - begin
    spread = math.sqrt(ours.value)
    per_code = (ours.evaluations + 49 * n) / n  # with the graph
    fine = min((50 * tol) ** 2, 1e-7)
    point, steps, _ = karcher(metric, codes, ours.point, ours.curves, fine, warm=True, max_steps=30)
    gap = float(metric.norm(point, ours.point - point)) / spread
    rows = [(f"Frechet mean of {n:,} codes: distance to the end of Karcher's flow, in spreads", "<= 1e-5",
             f"{gap:.1e} (its steps: {steps[0]:.0e} to {steps[-1]:.0e})")]  # fmt: skip
    start = codes[pb.medoid(metric, codes, graph=graph)]
    for warm, name in ((True, "from its last geodesics"), (False, "each geodesic anew"))[: 1 + anew]:
        _, steps, spent = karcher(metric, codes, start, graph, fine, warm=warm, share=tol)
        rows.append((
            f"{n:,} codes: times fewer evaluations than Karcher's flow, {name}, to steps of {tol:g} spreads", ">= 5",
            f"{spent[-1] / per_code:.1f} ({per_code:,.0f} against {spent[-1]:,} a code, {ours.iterations} steps "
            f"against {len(steps)}, the last {steps[-1]:.0e})",
        ))  # fmt: skip
    return [*rows, ("processor time of that mean", "-", f"{seconds:.0f} s")]


def both_means() -> Rows:
    """Few codes against both flows, many against the one that costs less."""
    return [*means(200, anew=True), *means()]


def exact_mean(n: int = 1000) -> Rows:
    """The mean on the decoder itself, to the default tolerance, against that on the table."""
    exact, codes, _ = shipped(n)
    begin = time.process_time()
    ours = pb.frechet_mean(exact, codes, full=True)
    seconds = time.process_time() - begin
    per_code = ours.evaluations / n
    text = f"{per_code:,.0f} evaluations a code, {seconds:.0f} s of a processor, {len(ours.failed)} failed"
    return [(f"the same on the decoder, tol = 1e-4, step left {ours.error / math.sqrt(ours.value):.0e}", "-", text)]


def clusters(n: int = 3000, k: int = 3) -> Rows:
    """k-means and k-medoids by graph, and how their clusters agree with the digits."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    metric, codes, labels = shipped(n)
    rows = []
    for name, estimator in (
        ("k-means", pb.KMeans(metric, k, n_init=10, random_state=0)),
        ("k-medians", pb.KMeans(metric, k, power=1, n_init=10, random_state=0)),
        ("k-medoids", pb.KMedoids(metric, k, n_init=10, random_state=0)),
    ):
        begin = time.process_time()
        found = estimator.fit_predict(codes.numpy())
        seconds = time.process_time() - begin
        score = adjusted_rand_score(labels, found)
        bar = "<= 60 s" if name == "k-means" else "-"
        rows.append(
            (
                f"{name}, k = {k}, {n:,} codes, 10 restarts",
                bar,
                f"{seconds:.0f} s of a processor, Rand index {score:.3f}",
            )
        )
    theirs = adjusted_rand_score(labels, KMeans(k, n_init=10, random_state=0).fit_predict(codes.numpy()))
    return [*rows, ("Euclidean k-means of scikit-learn on the same", "-", f"Rand index {theirs:.3f}")]


def interval(values: np.ndarray, n_draws: int = 2000) -> str:
    """A mean and its 95% bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (n_draws, len(values))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def downstream(n: int = 2000, k: int = 10) -> Rows:
    """kNN accuracy (leave one out) and silhouette of held-out codes, Riemannian against Euclidean."""
    from sklearn.metrics import silhouette_samples

    model = pb.models.pretrained("mnist012")
    data = pb.datasets.mnist("test", (0, 1, 2))
    some = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:n]
    codes, labels = model.encode(data.samples[some]), np.asarray(data.labels[some])
    metric = pb.Pullback(model.decoder)
    ours = pb.distance_matrix(metric, codes).numpy()
    flat = torch.cdist(codes, codes).numpy()
    right, width = {}, {}
    for name, matrix in (("Riemannian", ours), ("Euclidean", flat)):
        others = matrix + np.diag(np.full(len(matrix), np.inf))
        near = labels[np.argsort(others, 1)[:, :k]]
        votes = np.stack([(near == label).sum(1) for label in np.unique(labels)], 1)
        right[name] = (np.unique(labels)[votes.argmax(1)] == labels).astype(float)
        width[name] = silhouette_samples(matrix * (1 - np.eye(len(matrix))), labels, metric="precomputed")
    rows = []
    for what, values in ((f"{k}-nearest-neighbor accuracy", right), ("silhouette of the digits", width)):
        both = f"{values['Riemannian'].mean():.4f} against {values['Euclidean'].mean():.4f}"
        gap = interval(values["Riemannian"] - values["Euclidean"])
        rows.append((f"{what}, {len(codes):,} held-out codes, Riemannian against Euclidean", "-", f"{both}: {gap}"))
    return rows


PARTS = {"clusters": clusters, "downstream": downstream, "means": both_means, "exact": exact_mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pb.PullbackWarning)
    rows: Rows = []
    for name in options.only:
        rows += PARTS[name]()
        for row in rows[-4:]:
            print(" | ".join(row), flush=True)
    print("\n" + "\n".join(f"| {what} | {bar} | {value} |" for what, bar, value in rows))


if __name__ == "__main__":
    main()
