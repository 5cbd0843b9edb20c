"""``pullback demo``: geodesics of the shipped model, compared with straight lines."""

from __future__ import annotations

from argparse import Namespace
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Generator, Tensor

from pullback import io, models, plot
from pullback.commands.geodesic import as_arrays, solution
from pullback.commands.outputs import check_writable, csv_text, save_figure, table_text
from pullback.curves import Curve, constant_speed
from pullback.geodesics import Solution
from pullback.metrics import Metric, Pullback
from pullback.models import RBFVAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_N_STRIPS = 3  # pairs in the picture of decoded frames


def run(options: Namespace) -> None:
    """Solve, print the table, write the pictures and the numbers."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the decoder is so small that threads would only wait for each other
    try:
        _run(options)
    finally:
        torch.set_num_threads(n_threads)


def _run(options: Namespace) -> None:
    folder = check_writable(options.out)
    model = models.pretrained("mnist012")
    metric = Pullback(model.decoder)
    labels = cast(Tensor, model.labels)  # a shipped model has them
    pairs = pairs_of_classes(labels, options.pairs, options.seed)
    print(f"{len(pairs)} pairs of digits in the latent plane of a VAE: geodesics and straight lines\n")
    path = solution(metric, *model.codes[pairs].unbind(1), progress=True)

    columns = _columns(metric, path, labels[pairs])
    io.write_atomically(
        folder / "geodesics.csv", csv_text([list(columns), *zip(*columns.values(), strict=True)]).encode()
    )
    print(_table(columns))
    save_figure(folder / "magnification.png", _map(metric, model, path))
    save_figure(folder / "interpolation.png", _strips(metric, model, path, columns))
    print(f"\nwritten to {folder}: magnification.png, interpolation.png, geodesics.csv")


def pairs_of_classes(labels: Tensor, n_pairs: int, seed: int) -> Tensor:
    """Indices (n_pairs, 2) of codes: by turns two of one class and two of different classes, all classes in turn."""
    generator = Generator().manual_seed(seed)
    classes = labels.unique().tolist()
    same, cross = [(k, k) for k in classes], list(combinations(classes, 2))
    pairs = []
    for i in range(n_pairs):
        turn = same if i % 2 else cross
        first, second = (torch.nonzero(labels == k)[:, 0] for k in turn[i // 2 % len(turn)])
        a = first[torch.randint(len(first), (), generator=generator)]
        second = second[second != a]
        pairs.append(torch.stack([a, second[torch.randint(len(second), (), generator=generator)]]))
    return torch.stack(pairs)


def _columns(metric: Metric, path: Solution, classes: Tensor) -> dict[str, list[Any]]:
    """The table with all digits: lists by the name of the column."""
    arrays = as_arrays(metric, path)
    ends = {f"{side}_{i}": arrays[side][:, i] for side in ("start", "end") for i in range(2)}
    table = {
        "pair": np.arange(len(classes)),
        "start_class": classes[:, 0].numpy(),
        "end_class": classes[:, 1].numpy(),
        **ends,
        **{name: arrays[name] for name in ("straight_length", "length")},
        "ratio": arrays["straight_length"] / arrays["length"],
        **{name: arrays[name] for name in ("length_error", "status")},
    }
    return {name: column.tolist() for name, column in table.items()}


def _table(columns: dict[str, list[Any]]) -> str:
    """The table to read."""
    classes = [f"{a} - {b}" for a, b in zip(columns["start_class"], columns["end_class"], strict=True)]
    numbers = [columns[name] for name in ("straight_length", "length", "ratio")]
    errors = [f"{error:.1e}" for error in columns["length_error"]]
    rows = zip(columns["pair"], classes, *numbers, errors, columns["status"], strict=True)
    return table_text(["pair", "classes", "straight", "geodesic", "ratio", "error", "status"], list(rows))


def _map(metric: Metric, model: RBFVAE, path: Solution) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6.2), layout="constrained")
    ax = plot.magnification(metric, codes=model.codes, labels=model.labels, ax=figure.subplots())
    plot.geodesics(path, ax=ax)
    ax.set_title("How much the decoder stretches its latent plane")
    return figure


def _strips(metric: Metric, model: RBFVAE, path: Solution, columns: dict[str, list[Any]]) -> Figure:
    """Decoded frames of the pairs that gain most by the geodesic, both curves at constant speed."""
    from matplotlib.figure import Figure

    order = np.argsort(-np.nan_to_num(columns["ratio"]))[:_N_STRIPS]
    nodes = path.curve.nodes
    curves = {}
    for i in order.tolist():
        what = f"pair {i}, {columns['start_class'][i]} to {columns['end_class'][i]}"
        curves[f"{what}: straight"] = constant_speed(metric, Curve.straight(nodes[i, 0], nodes[i, -1]))
        curves[f"{what}: geodesic"] = Curve(nodes[i])
    figure = Figure(figsize=(9, 0.62 * len(curves) + 0.6), layout="constrained")
    plot.interpolation(model.decoder.mean, curves, shape=model.sample_shape, ax=figure.subplots())
    return figure
