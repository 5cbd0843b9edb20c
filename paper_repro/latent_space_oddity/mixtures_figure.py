"""The picture of two kinds of mixtures on a latent plane: densities, samples decoded, distances between these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from mixtures_fits import Scene

Part = Mapping[str, Any]
TITLES = {"gauss": "Gaussian mixture", "paper": "LAND, the paper's factor", "exact": "LAND, exact factor"}
COLORS = ("#0072b2", "#e69f00")  # of digits
MARK = "#009e73"  # of samples
DEEP = 7  # below the top of a density, in nats, it is white


def picture(scene: Scene, drawn: Mapping[str, Part], resolution: int) -> Figure:
    """A row a mixture: its density, its samples decoded, distances between these."""
    figure = Figure(figsize=(11, 3.5 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 3, width_ratios=(1.25, 1.1, 1), squeeze=False)
    for (left, middle, right), (kind, part) in zip(axes, drawn.items(), strict=True):
        draw_density(left, scene, part, resolution)
        left.set_title(TITLES[kind])
        draw_samples(middle, scene, part)
        image = right.imshow(part["distances"], cmap="magma", interpolation="nearest")
        unit = "Euclidean, latent units" if kind == "gauss" else "Riemannian, units of the data"
        figure.colorbar(image, ax=right, shrink=0.8, label=f"distance ({unit})")
        right.set(title="Distances between samples", xlabel="sample", ylabel="sample")
    return figure


def draw_density(ax: Axes, scene: Scene, part: Part, resolution: int) -> None:
    """The logarithm of a density in latent units, with codes and samples."""
    values = np.array(part["density"], dtype=float).reshape(resolution, resolution)
    top = np.nanmax(values)
    image = ax.imshow(
        values, origin="lower", extent=scene.limits.reshape(-1).tolist(), cmap="gray_r", vmin=top - DEEP, vmax=top,
        interpolation="nearest", aspect="equal",
    )  # fmt: skip
    ax.figure.colorbar(image, ax=ax, shrink=0.8, extend="min", label="log density, per latent area")
    z, component = np.array(part["samples"]), np.array(part["component"])
    for color, digit in zip(COLORS, scene.digits.unique().tolist(), strict=True):
        ax.plot(*scene.held[scene.digits == digit].T, ".", color=color, ms=3, alpha=0.8, label=f"codes of {digit}")
    for k, marker in enumerate("+x"):
        ax.plot(*z[component == k].T, marker, color=MARK, ms=5, mew=1.1, label=f"samples of component {k + 1}")
    across, up = scene.limits.tolist()
    ax.set(xlabel="$z_1$", ylabel="$z_2$", xlim=across, ylim=up)
    ax.legend(fontsize=6, loc="upper right", framealpha=0.8)


def draw_samples(ax: Axes, scene: Scene, part: Part, columns: int = 10) -> None:
    """The decoded means of samples, those of the first component above those of the second."""
    z, component = torch.tensor(part["samples"], dtype=torch.float64), torch.tensor(part["component"])
    images = scene.model.vae.decoder(z).reshape(len(z), *scene.model.sample_shape[-2:])
    height, width = images.shape[1:]
    blocks = []
    for k in (0, 1):
        own = images[component == k]
        empty = own.new_zeros(-len(own) % columns, height, width)
        rows = torch.cat((own, empty)).reshape(-1, columns, height, width).transpose(1, 2).reshape(-1, columns * width)
        blocks += [rows, rows.new_ones(2, columns * width)]
    ax.imshow(torch.cat(blocks[:-1]).clamp(0, 1), cmap="gray_r", interpolation="nearest")
    ends = np.cumsum([0, *(len(block) for block in blocks)])
    ax.set_yticks(
        [(ends[0] + ends[1]) / 2, (ends[2] + ends[3]) / 2], ["component 1", "component 2"], rotation=90, va="center"
    )
    ax.set_xticks([])
    ax.set_title("Samples, decoded")
