"""Beyond the paper: k-means by geodesic distances on clothes and on blood cells, and against other methods.

The paper compares Riemannian with straight k-means on the codes of digits. Here the same protocol with the same
settings runs on sets of three kinds of clothes (Fashion-MNIST) and on single cells of ten kinds, whose VAE has a
negative binomial likelihood and whose metric is Fisher-Rao. And on the same samples runs what needs no decoder: k-means
in data space, on a spectral embedding and on UMAP. Every method sees all samples of a set for its representation;
k-means sees a subset of 300. In the smoke tier other digits stand in for clothes, and pixels, whole numbers from 0 to
16, for the molecules in cells.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from clusters import SCORES, Way, drawn, euclidean, means, on_graph, protocol, subsets
from context import Context, box, labels_of, sampled
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from results import Claim, Result, Verdict, spread
from sklearn.manifold import SpectralEmbedding
from torch import Tensor

import pullback as pb
from pullback import datasets
from pullback.datasets import Dataset
from pullback.models import VAE

CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
WAYS = {
    "straight": "codes, straight distances",
    "riemannian": "codes, Riemannian distances",
    "data": "data space",
    "spectral": "spectral embedding",
    "umap": "UMAP",
}
OTHERS = {
    "data": "k-means in data space",
    "spectral": "k-means on a spectral embedding",
    "umap": "k-means on UMAP",
}
COLORS = ("#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7")  # of Okabe and Ito

Parts = Mapping[str, list[dict[str, Any]]]  # of each set, one of every seed


def run(context: Context) -> Result:
    """Train, cluster, compare."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for kind, sets in (("digits", context["kmeans"]["sets"]), ("clothes", context["clothes"])):
        for classes in sets:
            name = f"{kind}-{''.join(map(str, classes))}"
            parts[name] = [
                context.once(
                    f"{name}-{seed}",
                    lambda kind=kind, classes=classes, seed=seed: _images(context, kind, classes, seed),
                )
                for seed in context.seeds
            ]
    parts["cells"] = [context.once(f"cells-{seed}", lambda seed=seed: _cells(context, seed)) for seed in context.seeds]
    every = [part for of_set in parts.values() for part in of_set]
    return Result(
        title="k-means on other data, and against other methods",
        claims=_claims(parts),
        numbers=_numbers(parts),
        caption=(
            "F-measure of k-means on subsets of 300 samples in several representations of the same samples, mean over "
            "models and subsets; bars show the standard deviation over training seeds."
            + (" Smoke tier: other digits stand in for clothes, pixels for cells." if context.smoke else "")
        ),
        paper_figure="none: the paper clusters codes of digits only.",
        figure=_figure(parts),
        solved=sum(part["fits"] for part in every),
        failed=sum(part["lost"] for part in every),
        findings=_findings(parts),
    )


def _images(context: Context, kind: str, classes: list[int], seed: int) -> dict[str, Any]:
    """All ways to cluster the images of three classes."""
    settings = context["kmeans"]
    if kind == "digits" or context.smoke:
        data = context.images(classes, settings["per_class"], seed=seed)
    else:
        data = sampled(datasets.fashion_mnist("train", classes), settings["per_class"], seed)
    labels = labels_of(data)
    model = context.model(data, seed)
    codes, metric = model.encode(data.samples), pb.Pullback(model.decoder)
    chosen = subsets(labels, settings["n_subsets"], settings["subset_per_class"])
    ways = _ways(context, data.samples, codes, {"riemannian": metric}, len(classes), seed)
    return protocol(ways, labels, chosen)


def _cells(context: Context, seed: int) -> dict[str, Any]:
    """All ways to cluster cells by kind; subsets are drawn at random and overlap, since there are only 700."""
    data = _digit_counts() if context.smoke else datasets.blood_cells()
    labels = labels_of(data)
    settings = context["cells"]
    vae = VAE(data.samples.shape[1], hidden=settings["hidden"], likelihood="negative_binomial")
    vae.fit(data, **settings["training"], seed=seed).double().requires_grad_(False)
    codes = vae.encode(data.samples.double())[0]
    metrics = {"riemannian": pb.FisherRao(vae.distribution), "mean": pb.Pullback(vae.decoder)}
    shares = torch.log1p(1e4 * data.samples / data.samples.sum(1, keepdim=True))  # what single-cell analyses begin with
    ways = _ways(context, shares, codes, metrics, len(labels.unique()), seed)
    return protocol(ways, labels, drawn(len(codes), context["kmeans"]["n_subsets"], settings["subset"]))


def _digit_counts() -> Dataset:
    """Pixels as counts, for the smoke tier."""
    digits = datasets.digits()
    return Dataset((16 * digits.samples).round(), digits.labels, digits.sample_shape, "digit-counts")


def _ways(
    context: Context, samples: Tensor, codes: Tensor, metrics: Mapping[str, pb.Metric], k: int, seed: int
) -> dict[str, Way]:
    """k-means on codes by straight and by other distances, and on representations without a decoder."""
    settings = context["kmeans"]
    n_init, bounds = settings["n_init"], box(codes, settings["margin"])
    ways = {"straight": euclidean(codes, k, n_init)}
    for name, metric in metrics.items():
        ways[name] = on_graph(metric, pb.grid_graph(metric, bounds, settings["resolution"]), codes, k, n_init)
    ways["data"] = euclidean(samples, k, n_init)
    embedding = SpectralEmbedding(k, affinity="nearest_neighbors", n_neighbors=context["neighbors"], random_state=seed)
    spectral = torch.from_numpy(embedding.fit_transform(samples.numpy()))
    ways["spectral"] = euclidean(spectral / spectral.std(), k, n_init)
    if context["umap"] and importlib.util.find_spec("umap"):
        ways["umap"] = euclidean(_umap(samples, seed), k, n_init)
    return ways


def _umap(samples: Tensor, seed: int) -> Tensor:
    """Two dimensions by UMAP, with its default settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of a part that wants tensorflow
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    return torch.from_numpy(np.asarray(UMAP(random_state=seed, n_jobs=1).fit_transform(samples.numpy())))


def _gain(parts: Parts, baseline: str, of: str = "", way: str = "riemannian") -> np.ndarray:
    """F over a baseline, mean over the sets of a kind, by default over those of images: one entry a seed."""
    some = {name: of_set for name, of_set in parts.items() if (name.startswith(of) if of else name != "cells")}
    over, under = means(some, way), means(some, baseline)
    return np.mean([over[name] - under[name] for name in some], 0)


def _claims(parts: Parts) -> list[Claim]:
    claims = []
    for key, text in (
        ("clothes", "On three sets of clothes Riemannian k-means beats the straight one by 5 points of F on average"),
        ("cells", "On blood cells of ten kinds, with the Fisher-Rao metric, it beats the straight one by 5 points"),
    ):
        gain = _gain(parts, "straight", key)
        some = {name: of_set for name, of_set in parts.items() if name.startswith(key)}
        under, over = means(some, "straight"), means(some, "riemannian")
        rows = [f"{_label(name)} {under[name].mean():.1f} -> {over[name].mean():.1f}" for name in some]
        claims.append(
            Claim(
                key=key,
                text=text,
                paper="digits: +14.9",
                ours=f"{spread(gain)} ({'; '.join(rows)})",
                value=float(gain.mean()),
                tolerance=5.0,
                verdict=Verdict.of(gain.mean() >= 5, partly=gain.mean() > 0),
                reason=_losses({name: over[name].mean() - under[name].mean() for name in some}),
            )
        )
    for key, what in OTHERS.items():
        if not _has(parts, key):
            continue
        gain = _gain(parts, key)
        digits, clothes = (_gain(parts, key, of).mean() for of in ("digits", "clothes"))
        claims.append(
            Claim(
                key=key,
                text=f"On digits and clothes Riemannian k-means on codes is no worse than {what}",
                paper="not compared",
                ours=f"{spread(gain)} (digits {digits:+.1f}, clothes {clothes:+.1f})",
                value=float(gain.mean()),
                tolerance=6.0,
                verdict=Verdict.of(gain.mean() >= 0, partly=gain.mean() >= -5),
                reason=_losses({name: _gain({name: parts[name]}, key).mean() for name in parts if name != "cells"}),
            )
        )
    return claims


def _losses(gains: Mapping[str, float]) -> str:
    """Where F is lower, in words."""
    lost = [f"{_label(name)} {gain:+.1f}" for name, gain in gains.items() if gain < 0]
    return f"loses on {'; '.join(lost)}" if lost else ""


def _findings(parts: Parts) -> list[str]:
    found = []
    for of, what in (("digits", "digits"), ("clothes", "clothes"), ("cells", "cells")):
        others = [way for way in OTHERS if _has(parts, way)]
        differences = [f"{_gain(parts, way, of).mean():+.1f} from {OTHERS[way]}" for way in others]
        found.append(
            f"On {what} F of Riemannian k-means on codes is {_gain(parts, 'straight', of).mean():+.1f} points from "
            f"that of straight k-means on codes, {', '.join(differences)}."
        )
    if not _has(parts, "umap"):
        found.append("UMAP: umap-learn is not installed (or left out by the settings), so its row is empty.")
    mean = _gain(parts, "straight", "cells", "mean")
    found.append(
        f"On cells the pullback of mean counts, without Fisher-Rao, gains {spread(mean)} over straight distances."
    )
    for score, what in zip(
        SCORES[1:], ("accuracy", "adjusted Rand index", "normalized mutual information"), strict=True
    ):
        a, b = means(parts, "straight", score), means(parts, "riemannian", score)
        row = "; ".join(
            f"{_label(name)} {a[name].mean():.1f} -> {b[name].mean():.1f}".replace("\n", " ") for name in parts
        )
        found.append(f"By {what}: {row}.")
    return found


def _has(parts: Parts, way: str) -> bool:
    return all(way in part["scores"] for some in parts.values() for part in some)


def _numbers(parts: Parts) -> dict[str, Any]:
    """Means and standard deviations over subsets of every score, way, set and model."""
    return {
        name: {
            way: {
                score: {
                    "mean": [round(float(np.mean(part["scores"][way][score])), 3) for part in some],
                    "std_over_subsets": [round(float(np.std(part["scores"][way][score], ddof=1)), 3) for part in some],
                }
                for score in SCORES
            }
            for way in some[0]["scores"]
        }
        for name, some in parts.items()
    }


def _figure(parts: Parts) -> Figure:
    figure, ax = plt.subplots(figsize=(11, 4.6), layout="constrained")
    ways = [way for way in WAYS if _has(parts, way)]
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        f = list(means(parts, way).values())
        places, heights = np.arange(len(parts)) + (i - (len(ways) - 1) / 2) * width, [some.mean() for some in f]
        ax.bar(places, heights, 0.92 * width, color=COLORS[list(WAYS).index(way)], label=WAYS[way])
        if len(f[0]) > 1:
            ax.errorbar(places, heights, [some.std(ddof=1) for some in f], fmt="none", ecolor="0.2", capsize=2)
    labels = [_label(name).replace(", ", ",\n" if name.startswith("clothes") else ", ") for name in parts]
    ax.set_xticks(range(len(parts)), labels, fontsize=8.5)
    ax.set(ylabel="F-measure in %", ylim=(0, 102), title="k-means on 300 samples in several representations")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *ax.get_legend_handles_labels(), ncols=len(ways), loc="outside lower center", frameon=False, fontsize=9
    )
    return figure


def _label(name: str) -> str:
    kind, _, classes = name.partition("-")
    if kind == "clothes":  # in the smoke tier digits
        return ", ".join(CLOTHES[int(c)] for c in classes)
    return "{" + ", ".join(classes) + "}" if classes else "blood cells"
