"""Draws the pictures of docs/diagnostics.md into docs/_static, and logs what the page states.

OMP_NUM_THREADS=1 python tools/figures_diagnostics.py --folder pullback-gallery   # about two minutes, once trained

The models are those of tools/gallery.py: with its checkpoints in --folder they are at hand, without they are trained
first, in about a quarter of an hour. The data come from $PULLBACK_DATA or by download.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import gallery
import numpy as np
import torch
from matplotlib.figure import Figure

import pullback as pb
from pullback.diagnostics import GeometryReport

STATIC = Path(__file__).parents[1] / "docs" / "_static"
MODELS: dict[str, Callable[[Path], Figure]] = {
    "autoencoder": gallery.autoencoder,
    "VAE, Bernoulli, Fisher-Rao": gallery.vae,
    "GAN": gallery.gan,
    "ensemble of 8": gallery.ensemble,
}
ZETAS = (1e-10, 1e-6, 1e-3)

log = logging.getLogger("figures_diagnostics")


def scene(train: Callable[[Path], Figure], folder: Path) -> gallery.Scene:
    """The metric and the codes of a scene of the gallery, which is not drawn."""
    found: list[gallery.Scene] = []
    with (
        patch.object(gallery, "measured", lambda _, scene: found.append(scene)),
        patch.object(gallery, "drawn", lambda *_: Figure()),
    ):
        train(folder)
    return found[0]


def reports(folder: Path) -> dict[str, GeometryReport]:
    """The check-ups of the gallery's models and of the shipped one."""
    found = {}
    for name, train in MODELS.items():
        one = scene(train, folder)
        found[name] = pb.check_geometry(one.metric, one.codes)
    model = pb.models.pretrained("mnist012")
    found["RBF-VAE, shipped"] = pb.check_geometry(pb.Pullback(model.decoder), model.codes)
    for name, report in found.items():
        log.info("%s\n%s\n", name, report)
    return found


def compared(found: dict[str, GeometryReport]) -> Figure:
    """All models: what the metric does off the data, and how much straight lines are longer than geodesics."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, report) in enumerate(found.items()):
        shells = [shell for shell in report.growth.shells if shell.n_points]
        base = report.growth.on_data.median
        distance = [shell.distance / report.growth.spread for shell in shells]
        gain = np.exp([[getattr(s.log_stretch, q) - base for q in ("low", "median", "high")] for s in shells])
        left.fill_between(distance, gain[:, 0], gain[:, 2], color=f"C{k}", alpha=0.12, lw=0)
        left.plot(
            distance, gain[:, 1], "o-", ms=4, color=f"C{k}", label=f"{name}: {report.growth.verdict.name.lower()}"
        )
        excess = np.sort(100 * (np.asarray(report.lines.ratios) - 1)).clip(1e-2)
        share = (np.arange(len(excess)) + 0.5) / len(excess)
        right.plot(excess, 100 * share, color=f"C{k}", label=f"{name}: {report.verdict.value}")
    left.axhline(1, color="0.5", lw=1)
    left.set(xscale="log", yscale="log", ylim=(1e-3, 1e4))
    left.set_xlabel("distance to the nearest code, in spreads of the codes")
    left.set_ylabel("length of a unit step, times that on the data")
    right.axhline(50, color="0.5", lw=1)
    right.set(xscale="log", xlim=(1e-2, 300))
    right.set_xlabel("straight line longer than the geodesic by at most, in %")
    right.set_ylabel("share of 200 random pairs, in %")
    for ax in (left, right):
        ax.legend(fontsize=8)
    left.set_title("off the data: median, 5% to 95%")
    right.set_title("straight lines against geodesics")
    return figure


def rings() -> Figure:
    """The shipped model with several floors of its precision: the wall is a ring, seen or not."""
    model = pb.models.pretrained("mnist012")
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    ax = figure.subplots()
    for k, zeta in enumerate(ZETAS):
        rbf = pb.models.RBFPrecision(model.rbf.centers, model.rbf.bandwidths, 784, zeta=zeta)
        rbf.weight = model.rbf.weight
        metric = pb.Pullback(pb.Gaussian(model.vae.decoder, rbf.requires_grad_(False)))
        report = pb.check_geometry(metric, model.codes, n_pairs=1, reach=3.0)
        log.info("zeta %g: %s; rise %.3g at %.2g, then fall %.3g", zeta, report.growth.verdict.name,
                 report.growth.rise, report.growth.peak, report.growth.fall)  # fmt: skip
        distance = [shell.distance for shell in report.growth.shells]
        gain = [np.exp(shell.log_stretch.median - report.growth.on_data.median) for shell in report.growth.shells]
        ax.plot(
            distance,
            gain,
            "o-",
            ms=4,
            color=f"C{k}",
            label=rf"$\zeta$ = {zeta:g}: {report.growth.verdict.name.lower()}",
        )
    ax.set(xscale="log", yscale="log", xlabel="distance to the nearest code")
    ax.set_ylabel("length of a unit step, times that on the data")
    ax.set_title("the shipped model with three floors of its precision")
    ax.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("pullback-gallery"), help="checkpoints of the gallery")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    rings().savefig(STATIC / "diagnostics_ring.png", dpi=80)
    compared(reports(options.folder)).savefig(STATIC / "diagnostics.png", dpi=80)


if __name__ == "__main__":
    main()
