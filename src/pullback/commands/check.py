"""``pullback check``: does the curvature of a latent space matter, and can it be believed?"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from pullback import io, plot
from pullback.commands.inputs import any_model_named, codes_in
from pullback.commands.latent import latent_of
from pullback.commands.outputs import check_writable, save_figure
from pullback.diagnostics import GeometryReport, Spectrum, check_geometry
from pullback.metrics import Metric
from pullback.models import GAN
from pullback.types import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOUBTFUL = 1  # exit code: the report is written, but says that the geometry cannot be believed
_FORMAT, _VERSION = "pullback.check", 1
_DRAWN = 2000  # codes of a generator without an encoder; codes on the map
_BINS = 30
_ON_DATA, _IN_BOX = "C0", "C1"


def run(options: Namespace) -> int:
    """Check, print the report, write it with its pictures; the exit code tells whether it can be believed."""
    model = any_model_named(options.model)
    latent = latent_of(model, options.seed)
    codes, labels = latent.codes, latent.labels
    if options.codes is not None:
        codes, labels = codes_in(options.codes, latent.dim)
    elif codes is None:
        raise ValueError(
            f"MODEL is a {type(model).__name__}, which keeps no codes: give --codes FILE, a .npy of floats "
            f"(n, {latent.dim}), as np.save(FILE, codes) writes it"
        )
    elif isinstance(model, GAN):
        print(f"a generator has no encoder: {len(codes):,} codes are drawn from its prior\n")
    folder = check_writable(options.out)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # most decoders are so small that threads would only wait for each other
    try:
        source = Generator(device="cpu").manual_seed(options.seed)
        report = check_geometry(latent.metric, codes, n_pairs=options.pairs, generator=source, progress=True)
        written = _write(folder, report, latent.metric, codes, labels, options.model)
    finally:
        torch.set_num_threads(n_threads)
    print(report)
    print(f"\nwritten to {folder}: {', '.join(written)}")
    return 0 if report.believable else DOUBTFUL


def _write(
    folder: Path, report: GeometryReport, metric: Metric, codes: Points, labels: Tensor | None, model: str
) -> list[str]:
    """Text, JSON and pictures; returns their names."""
    io.write_atomically(folder / "report.txt", f"{report}\n".encode())
    io.save_json(folder / "report.json", {"model": model, **report.to_dict()}, format=_FORMAT, version=_VERSION)
    pictures = {"growth.png": growth, "ratios.png": ratios, "spectrum.png": spectrum}
    for name, draw in pictures.items():
        figure = _figure()
        draw(report, figure.subplots())
        save_figure(folder / name, figure)
    names = ["report.txt", "report.json", *pictures]
    if report.dim == 2 and np.isfinite(report.on_data.log_volume.median):
        chosen = torch.linspace(0, len(codes) - 1, min(len(codes), _DRAWN)).long()
        figure = _figure((7, 6))
        kinds = None if labels is None else labels[chosen]
        plot.magnification(metric, codes=codes[chosen], labels=kinds, resolution=100, ax=figure.subplots())
        save_figure(folder / "map.png", figure)
        names.append("map.png")
    return names


def _figure(size: tuple[float, float] = (7, 5)) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def growth(report: GeometryReport, ax: Axes) -> None:
    """What a latent unit step gains, against the distance to the data."""
    shells = [shell for shell in report.growth.shells if shell.n_points]
    distance = [shell.distance for shell in shells]
    low, middle, high = (
        np.exp(np.clip([getattr(shell.log_stretch, name) for shell in shells], -_MOST, _MOST))
        for name in ("low", "median", "high")
    )
    on_data = report.growth.on_data
    ax.axhspan(
        *np.exp(np.clip([on_data.low, on_data.high], -_MOST, _MOST)), color="0.9", label="on the data, 5% to 95%"
    )
    ax.axhline(float(np.exp(on_data.median)), color="0.5", lw=1)
    ax.fill_between(distance, low, high, color=_ON_DATA, alpha=0.25, lw=0, label="off the data, 5% to 95%")
    ax.plot(distance, middle, "o-", color=_ON_DATA, ms=4, label="median")
    ax.set(xscale="log", yscale="log", xlabel="distance to the nearest code", ylabel="length of a latent unit step")
    ax.set_title(f"the metric {report.growth.verdict.value}", wrap=True)
    ax.legend()


def ratios(report: GeometryReport, ax: Axes) -> None:
    """The histogram of straight over geodesic length."""
    values = np.asarray(report.lines.ratios)
    if len(values):
        ax.hist(100 * (values - 1), bins=_BINS, color=_ON_DATA)
        ax.axvline(100 * (report.lines.ratio.median - 1), color="black", lw=1.5, label="median")
    if report.lines.interval is not None:
        low, high = (100 * (value - 1) for value in report.lines.interval)
        ax.axvspan(low, high, color="0.5", alpha=0.35, lw=0, label="its 95% interval")
    failed = f", {report.lines.n_failed} more without a ratio" if report.lines.n_failed else ""
    ax.set(xlabel="straight lines longer than geodesics by, in %", ylabel="pairs")
    ax.set_title(f"{report.verdict.value}: {report.lines.n_used} random pairs of codes{failed}")
    if len(values):
        ax.legend()


def spectrum(report: GeometryReport, ax: Axes) -> None:
    """What a unit step gains along each principal direction, at the codes and in the box."""
    for shift, points, color in ((-0.08, report.on_data, _ON_DATA), (0.08, report.in_box, _IN_BOX)):
        _bars(points, shift, color, ax)
    ax.set(yscale="log", xlabel="principal direction", ylabel="length of a latent unit step")
    ax.set_xticks(range(1, report.dim + 1)) if report.dim <= _TICKS else None
    ax.set_title("roots of the eigenvalues of G: median, 5% to 95%")
    ax.legend()


def _bars(points: Spectrum, shift: float, color: str, ax: Axes) -> None:
    low, middle, high = (np.array([getattr(s, name) for s in points.stretch]) for name in ("low", "median", "high"))
    shown = middle > 0  # a dead direction has no place on a logarithmic axis
    k = (np.arange(len(middle)) + 1 + shift)[shown]
    ends = np.stack((middle - low, high - middle))[:, shown]
    ax.errorbar(k, middle[shown], yerr=ends, fmt="o", color=color, ms=5, capsize=3, label=points.where)


_MOST = 300.0  # whose exponential a picture can show
_TICKS = 20
