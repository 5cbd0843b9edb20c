"""Draws the picture of docs/metrics.md into docs/_static, and logs how long geodesics are under each metric.

OMP_NUM_THREADS=1 python tools/figures_metrics.py                 # about two minutes
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pullback as pb

STATIC = Path(__file__).parents[1] / "docs" / "_static"
PAIRS = 6

log = logging.getLogger("figures_metrics")


class Density(nn.Module):
    """How many codes are near, relative to where they are densest: a kernel estimate (n,)."""

    def __init__(self, codes: Tensor, bandwidth: float) -> None:
        super().__init__()
        self.codes, self.bandwidth = codes, bandwidth
        self.largest = float(self.sum(codes).max())

    def sum(self, z: Tensor) -> Tensor:
        squares = (z[:, None] - self.codes).square().sum(-1)
        return (-squares / (2 * self.bandwidth**2)).exp().sum(-1)

    def forward(self, z: Tensor) -> Tensor:
        return self.sum(z) / self.largest


def metrics(model: pb.models.Pretrained) -> dict[str, pb.Metric]:
    """Six geometries of one latent plane, all from the shipped model."""
    mean, some = model.decoder.mean, model.codes[::40]
    density = Density(some, 0.25)
    logits = nn.Sequential(*list(mean.children())[:-1])  # without the sigmoid
    return {
        "Pullback(mean)": pb.Pullback(mean),
        "Pullback(Gaussian(mean, std))": pb.Pullback(model.decoder),
        "FisherRao(Bernoulli)": pb.FisherRao(logits, lambda x: torch.distributions.Bernoulli(logits=x)),
        "Pullback(mean, features=edges)": pb.Pullback(mean, features=edges),
        "Conformal(Pullback(mean), 1 / density)": pb.Conformal(pb.Pullback(mean), lambda z: 1 / (density(z) + 0.02)),
        "LocalVariance(codes)": pb.LocalVariance(some, bandwidth=0.15, floor=1e-3),
    }


def edges(image: Tensor) -> Tensor:
    """Where an image changes: differences of neighboring pixels (n, 2, 27, 27)."""
    square = image.reshape(-1, 28, 28)
    across, down = square[:, :-1].diff(dim=2), square[:, :, :-1].diff(dim=1)
    return torch.stack((across, down), 1)


def draw(model: pb.models.Pretrained, start: Tensor, end: Tensor) -> Figure:
    """A map for each metric, and the geodesics between the same pairs of codes."""
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    for ax, (name, metric) in zip(figure.subplots(2, 3).flat, metrics(model).items(), strict=True):
        pb.plot.magnification(metric, codes=model.codes[::8], labels=model.labels[::8], resolution=120, ax=ax)
        path = pb.geodesic(metric, start, end, starts=("straight", "bends"))
        pb.plot.geodesics(path, ax=ax)
        line = pb.length(metric, pb.Curve.straight(start, end), n_segments=512)
        log.info(
            "%s: %s; straight / geodesic %s", name, path.message, [f"{r:.3f}" for r in (line / path.length).tolist()]
        )
        ax.set_title(name, fontsize=10)
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    return figure


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(4))[: 2 * PAIRS]
    start, end = model.codes[chosen[:PAIRS]], model.codes[chosen[PAIRS:]]
    draw(model, start, end).savefig(STATIC / "metrics.png", dpi=80)


if __name__ == "__main__":
    main()
