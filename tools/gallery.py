"""Trains the models of docs/gallery.md on real data and draws its pictures into docs/_static.

OMP_NUM_THREADS=1 python tools/gallery.py                       # all, in about half an hour; less than 20 minutes each
OMP_NUM_THREADS=1 python tools/gallery.py walking blood-cells   # some

The data come from $PULLBACK_DATA or by download. Interrupted trainings go on where they stopped: checkpoints stay in
--folder. Logs what the page states: how many geodesics converged, and how much longer straight lines are.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import pullback as pb
from pullback.commands.demo import constant_speed

STATIC = Path(__file__).parents[1] / "docs" / "_static"
FASHION = (0, 1, 8, 9)  # T-shirt, trouser, bag, ankle boot
NAMES = ("T-shirt", "trouser", "bag", "ankle boot")
PAIRS = 60  # that the ratio of lengths is taken over
DRAWN = 15  # pairs to choose those from that are shown: where the straight line is worst
SHOWN = 5  # pairs on the map; the first ROWS of them are decoded
ROWS = 2

log = logging.getLogger("gallery")


class Scene(NamedTuple):
    """A latent plane to show: its metric, codes with their kinds, and what a code decodes to."""

    metric: pb.Metric
    codes: Tensor  # (n, 2), float64
    labels: Tensor | None
    names: tuple[str, ...]
    decode: Callable[[Tensor], Tensor]  # codes (m, 2) to data (m, ...)


def solved(scene: Scene, start: Tensor, end: Tensor) -> pb.Solution:
    """Geodesics from the straight line and from bends; failures are told by the numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        return pb.geodesic(scene.metric, start, end, starts=("straight", "bends"))


def pairs(scene: Scene, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random codes, two of different kinds where there are kinds."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(scene.codes), (40 * n, 2), generator=generator)
    if scene.labels is not None:
        chosen = chosen[scene.labels[chosen[:, 0]] != scene.labels[chosen[:, 1]]]
    start, end = scene.codes[chosen[:n]].unbind(1)
    return start, end


def measured(name: str, scene: Scene) -> None:
    """Log what a user wants to know first: does it matter that the space is curved?"""
    start, end = pairs(scene, PAIRS, 1)
    path = solved(scene, start, end)
    line = pb.length(scene.metric, pb.Curve.straight(start, end), n_segments=512)
    ratio = (line / path.length)[path.converged]
    low, middle, high = ratio.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=ratio.dtype)).tolist()
    log.info(
        "%s: %d of %d geodesics converged; straight / geodesic %.3f (5%% to 95%%: %.3f to %.3f); %.0f evaluations",
        name, int(path.converged.sum()), PAIRS, middle, low, high, float(path.evaluations.double().median()),
    )  # fmt: skip


def drawn(scene: Scene, strips: Callable[[Axes, Scene, dict[str, pb.Curve]], object], title: str) -> Figure:
    """The map on the left, with geodesics and straight lines; on the right what lies on two of them."""
    start, end = pairs(scene, DRAWN, 5)
    path = solved(scene, start, end)
    line = pb.length(scene.metric, pb.Curve.straight(start, end), n_segments=512)
    worst = (line / path.length).nan_to_num(0).topk(SHOWN).indices
    start, end, path = start[worst], end[worst], path[worst]
    figure = Figure(figsize=(14, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    labels = None if scene.labels is None else scene.labels[:: max(1, len(scene.codes) // 2000)]
    if labels is not None and scene.names:
        labels = np.array(scene.names)[labels.numpy()]
    few = scene.codes[:: max(1, len(scene.codes) // 2000)]
    pb.plot.magnification(scene.metric, codes=few, labels=labels, resolution=120, ax=left)
    pb.plot.geodesics(path, ax=left)
    left.set_title(title)
    if len(scene.names) > 5:
        left.legend(loc="lower left", fontsize=6, framealpha=0.6)
    curves = {}
    for i in range(ROWS):
        curves[f"{i + 1}: straight"] = constant_speed(scene.metric, start[i], end[i])
        curves[f"{i + 1}: geodesic"] = pb.Curve(path.curve.nodes[i])
        left.annotate(str(i + 1), start[i].tolist(), color="white", fontweight="bold", fontsize=12)
    strips(right, scene, curves)
    return figure


def images(ax: Axes, scene: Scene, curves: dict[str, pb.Curve]) -> None:
    """Rows of decoded images."""
    pb.plot.interpolation(scene.decode, curves, shape=(28, 28), ax=ax)
    ax.set_title("decoded, at constant speed in the metric")


def fashion(n: int = 12000) -> pb.datasets.Dataset:
    """Some clothes, their labels counted from 0."""
    data = pb.datasets.fashion_mnist(classes=FASHION)[slice(0, n)]
    labels = torch.searchsorted(torch.tensor(FASHION), data.labels)
    return pb.datasets.Dataset(data.samples, labels, data.sample_shape, data.name)


def autoencoder(folder: Path) -> Figure:
    """An autoencoder of clothes, and its plain pullback metric."""
    data = fashion()
    model = trained_autoencoder(data, folder).double()
    codes = model.encode(data.samples.double()).detach()
    scene = Scene(pb.Pullback(model.decoder), codes, data.labels, NAMES, model.decoder)
    measured("autoencoder", scene)
    return drawn(scene, images, "Autoencoder, Fashion-MNIST: Pullback(decoder)")


def trained_autoencoder(data: pb.datasets.Dataset, folder: Path) -> pb.models.Autoencoder:
    model = pb.models.Autoencoder(784, hidden=(128, 64))
    return model.fit(data, epochs=60, learning_rate=1e-3, folder=folder / "autoencoder", progress=True)


def ensemble(folder: Path) -> Figure:
    """Eight decoders of that autoencoder's codes, and the mean of their metrics."""
    data = fashion()
    codes = trained_autoencoder(data, folder).encode(data.samples).detach()
    model = pb.models.DecoderEnsemble(784, hidden=(128, 64), members=8)
    model.fit(data, codes, epochs=30, folder=folder / "ensemble", progress=True)
    members = pb.Ensemble(list(model.double().decoders))
    scene = Scene(pb.Pullback(members), codes.double(), data.labels, NAMES, pb.Ensemble(members.members, weight=0.0))
    measured("ensemble", scene)
    return drawn(scene, images, "Eight decoders, Fashion-MNIST: Pullback(Ensemble(decoders))")


def vae(folder: Path) -> Figure:
    """A VAE of digits with Bernoulli pixels, and the Fisher-Rao metric of its likelihood."""
    data = pb.datasets.mnist(classes=(0, 1, 2, 3, 4))[slice(0, 15000)]
    model = pb.models.VAE(784, hidden=(128, 64), likelihood="bernoulli")
    model.fit(data, epochs=40, learning_rate=1e-3, folder=folder / "vae", progress=True).double()
    codes = model.encode(data.samples.double())[0].detach()
    scene = Scene(pb.FisherRao(model.distribution), codes, data.labels, tuple("01234"), model.decoder)
    measured("vae", scene)
    return drawn(scene, images, "VAE, MNIST, Bernoulli pixels: FisherRao(vae.distribution)")


def blood_cells(folder: Path) -> Figure:
    """Single cells: a VAE with a negative binomial likelihood, and the Fisher-Rao metric of it."""
    data = pb.datasets.blood_cells()
    model = pb.models.VAE(765, hidden=(128, 64), likelihood="negative_binomial")
    model.fit(data, epochs=150, batch_size=64, learning_rate=3e-3, folder=folder / "cells", progress=True).double()
    codes = model.encode(data.samples.double())[0].detach()
    scene = Scene(pb.FisherRao(model.distribution), codes, data.labels, data.kinds, model.decoder)
    measured("blood cells", scene)

    def genes(ax: Axes, scene: Scene, curves: dict[str, pb.Curve]) -> None:
        """The genes that change most, along the geodesic (full) and the straight line (dashed) of the first pair."""
        t = torch.linspace(0, 1, 100, dtype=torch.float64)
        straight, bent = (scene.decode(curves[f"1: {kind}"](t)).detach() for kind in ("straight", "geodesic"))
        most = (bent.log().amax(0) - bent.log().amin(0) + bent.amax(0).log()).topk(8).indices
        for k, gene in enumerate(most.tolist()):
            ax.plot(t, bent[:, gene], color=f"C{k}", label=data.genes[gene])
            ax.plot(t, straight[:, gene], color=f"C{k}", ls="--", lw=1)
        ax.set_xlabel("t, at constant speed in the metric")
        ax.set_ylabel("mean count in a cell of median size")
        ax.set_title("pair 1: eight genes along the geodesic (straight line dashed)")
        ax.legend(fontsize=8, ncols=2)

    return drawn(scene, genes, "VAE, blood cells, negative binomial: FisherRao(vae.distribution)")


def walking(folder: Path) -> Figure:
    """Poses of a walk: an autoencoder, and the pullback metric in units of the skeleton."""
    data = pb.datasets.walking(1)
    model = pb.models.Autoencoder(data.samples.shape[1], hidden=(64, 32), output="linear")
    model.fit(data, epochs=1500, batch_size=64, learning_rate=2e-3, folder=folder / "walking", progress=True).double()
    codes = model.encode(data.samples.double()).detach()
    scene = Scene(pb.Pullback(model.decoder), codes, None, (), model.decoder)
    measured("walking", scene)

    def skeletons(ax: Axes, scene: Scene, curves: dict[str, pb.Curve]) -> None:
        """Rows of poses from the side."""
        t = torch.linspace(0, 1, 10, dtype=torch.float64)
        for row, (name, curve) in enumerate(curves.items()):
            poses = scene.decode(curve(t)).detach().reshape(10, 38, 3)
            for k, pose in enumerate(poses):
                for joint, parent in enumerate(data.parents):
                    if parent >= 0:
                        x = pose[[joint, parent], 2] + 22 * k
                        ax.plot(x, pose[[joint, parent], 1] - 38 * row, color=f"C{row % 2}", lw=1)
            ax.text(-22, -38 * row, name, ha="right", va="center")
        ax.set_aspect("equal")
        ax.axis("off")
        ax.set_title("decoded poses, at constant speed in the metric")

    return drawn(scene, skeletons, "Autoencoder, a walk (CMU motion capture): Pullback(decoder)")


def gan(folder: Path) -> Figure:
    """A GAN of clothes: no encoder, so that codes are drawn from its prior."""
    data = fashion(8000)
    model = pb.models.GAN((28, 28))
    model.fit(data, epochs=25, folder=folder / "gan", progress=True).double()
    log.info("gan: coverage %.2f", model.coverage(data.samples.double()))
    codes, _ = model.sample(2000, generator=torch.Generator().manual_seed(0))
    scene = Scene(pb.Pullback(model.generator), codes, None, (), model.generator)
    measured("gan", scene)
    return drawn(scene, images, "GAN, Fashion-MNIST: Pullback(generator), codes from the prior")


SCENES = {
    "autoencoder": autoencoder,
    "gan": gan,
    "ensemble": ensemble,
    "vae": vae,
    "blood-cells": blood_cells,
    "walking": walking,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=f"some of {', '.join(SCENES)}; default: all")
    parser.add_argument("--folder", type=Path, default=Path("pullback-gallery"), help="where checkpoints are kept")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in options.scenes or SCENES:
        begin = time.perf_counter()
        SCENES[name](options.folder).savefig(STATIC / f"gallery_{name.replace('-', '_')}.png", dpi=70)
        log.info("%s: %.1f minutes", name, (time.perf_counter() - begin) / 60)


if __name__ == "__main__":
    main()
