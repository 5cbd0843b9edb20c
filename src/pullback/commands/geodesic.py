"""``pullback geodesic``: geodesics between many pairs, kept block by block."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pullback import io
from pullback._checks import GeodesicWarning
from pullback.commands.blocks import Blocks
from pullback.commands.inputs import codes_from, model_named, pairs_from, random_pairs
from pullback.commands.outputs import check_writable, csv_text
from pullback.curves import Curve, length
from pullback.geodesics import Solution, geodesic
from pullback.metrics import Metric, Pullback
from pullback.models import RBFVAE
from pullback.stores import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

_COLUMNS = ("straight_length", "length", "length_error", "status")  # behind the pair and its end points
_NAMES = ("start", "end", *_COLUMNS, "converged", "nodes")  # the arrays of a block
_N_STRAIGHT = 512  # segments that a straight line is measured with


def run(options: Namespace) -> None:
    """Solve what is not solved yet, then write everything as one .npz."""
    model = model_named(options.model)
    start, end, indices = _pairs(options, model)
    folder = check_writable(options.out)
    request = {
        "model": digest(tensor.cpu().numpy() for tensor in model.decoder.state_dict().values()),
        "pairs": digest((start.numpy(), end.numpy())),
        "tol": options.tol,
    }
    table, result = folder / "geodesics.csv", folder / "geodesics.npz"
    blocks = Blocks(result, request, _NAMES, resume=options.resume)
    header = ["pair", *(f"{side}_{i}" for side in ("start", "end") for i in range(model.latent_dim)), *_COLUMNS]
    if arrays := blocks.whole(len(start)):
        if not table.is_file():
            io.write_atomically(table, csv_text([header, *_rows(arrays, 0)]).encode())
        print(f"{len(start)} pairs are solved already: {table} and {result}")
        return
    _solve_all(Pullback(model.decoder), start, end, options, blocks, table, header)
    arrays = _joined(blocks.load()) | ({} if indices is None else {"indices": indices.numpy()})
    if len(arrays["length"]) != len(start):
        raise ValueError(
            f"the blocks in {folder} hold {len(arrays['length'])} pairs, wanted {len(start)}: "
            "something else changed them; give the same command again, or --no-resume to begin anew"
        )
    blocks.finish(arrays)
    print(f"{len(start)} pairs, {int(arrays['converged'].sum())} converged: {table} and {result}")


def _pairs(options: Namespace, model: RBFVAE) -> tuple[Tensor, Tensor, Tensor | None]:
    """Start and end points (n, d), and their indices (n, 2) among the codes when they were drawn from these."""
    if options.pairs is not None:
        if options.codes is not None:
            raise ValueError("--codes goes with --random; with --pairs the points come from the file of pairs")
        return *pairs_from(options.pairs, model.latent_dim), None
    codes, _ = codes_from(options.codes, model)
    indices = random_pairs(len(codes), options.random, options.seed)
    return codes[indices[:, 0]], codes[indices[:, 1]], indices


def _solve_all(
    metric: Metric, start: Tensor, end: Tensor, options: Namespace, blocks: Blocks, table: Path, header: list[str]
) -> None:
    """Solve block after block; the table is written anew from the blocks that are there, then grows with each."""
    n_done = 0
    with open(table, "w", newline="", encoding="utf8") as file:
        file.write(csv_text([header]))
        for block in blocks.load():
            file.write(csv_text(_rows(block, n_done)))
            n_done += len(block["length"])
        file.flush()
        with tqdm(total=len(start), initial=n_done, unit="pair", desc="geodesics") as bar:
            while n_done < len(start):
                a, b = (points[n_done : n_done + options.block] for points in (start, end))
                block = as_arrays(metric, solution(metric, a, b, tol=options.tol))
                blocks.add(block)
                file.write(csv_text(_rows(block, n_done)))
                file.flush()
                n_done += len(a)
                bar.update(len(a))


def solution(metric: Metric, start: Tensor, end: Tensor, *, tol: float = 1e-4, progress: bool = False) -> Solution:
    """Geodesics without a warning about those that failed: the column of the status has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeodesicWarning)
        return geodesic(metric, start, end, tol=tol, progress=progress)


def as_arrays(metric: Metric, path: Solution) -> Arrays:
    """A solution of n pairs, and the lengths of the straight lines, as arrays with n rows."""
    nodes = path.curve.nodes  # (n, T + 1, d)
    start, end = nodes[:, 0], nodes[:, -1]
    tensors = {
        "start": start,
        "end": end,
        "straight_length": length(metric, Curve.straight(start, end), n_segments=_N_STRAIGHT),
        "length": path.length,
        "length_error": path.length_error,
        "converged": path.converged,
        "nodes": nodes,
    }
    status = np.array([status.name for status in np.ravel(np.asarray(path.status))])
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()} | {"status": status}


def _rows(block: Arrays, first: int) -> Iterator[list[object]]:
    for i in range(len(block["length"])):
        yield [
            first + i,
            *block["start"][i].tolist(),
            *block["end"][i].tolist(),
            *(block[name][i] for name in _COLUMNS),
        ]


def _joined(blocks: list[Arrays]) -> Arrays:
    """All blocks as one; curves with fewer segments get as many as the finest."""
    n_segments = max(block["nodes"].shape[1] for block in blocks) - 1
    for block in blocks:
        block["nodes"] = Curve(torch.from_numpy(block["nodes"])).resample(n_segments).nodes.numpy()
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
