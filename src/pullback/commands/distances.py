"""``pullback distances``: the distances between all pairs of codes, written block by block."""

from __future__ import annotations

import os
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from pullback import io
from pullback.commands.inputs import any_model_named, codes_in
from pullback.commands.latent import latent_of
from pullback.distances import distance_matrix
from pullback.graphs import Graph, knn_graph
from pullback.metrics import Metric
from pullback.stores import digest, need_zarr

_FORMAT, _VERSION = "pullback.distances", 1


def run(options: Namespace) -> None:
    """Build the graph, or load the one that was built; then make what is missing of the matrix."""
    if options.shard and not options.resume:
        raise ValueError("--no-resume does not go with --shard: it would remove what the other shares have done")
    need_zarr()
    model = any_model_named(options.model)
    latent = latent_of(model)
    codes = codes_in(options.codes, latent.dim)[0]
    out = Path(options.out)
    weights = digest(tensor.detach().cpu().numpy() for tensor in model.state_dict().values())
    request = {"model": weights, "codes": digest([codes.numpy()]), "neighbors": options.neighbors}
    graph = _graph(latent.metric, codes, out, request, options)
    workers = options.workers or (1 if options.shard else os.cpu_count() or 1)
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as executor:
        matrix = distance_matrix(
            latent.metric, codes, graph=graph, out=out, block=options.block, executor=executor, shard=options.shard,
            resume=options.resume, progress=True,
        )  # fmt: skip
    share = f", of which this was share {options.shard[0]} of {options.shard[1]}" if options.shard else ""
    print(f"{graph!r}\n{len(codes):,} x {len(codes):,} distances, {matrix.dtype}{share}: {out}")


def _graph(metric: Metric, codes: Tensor, out: Path, request: dict[str, object], options: Namespace) -> Graph:
    """The graph of an earlier run, or of another share of this one; else a new one, kept beside the matrix."""
    path, origin = out.with_name(f"{out.stem}.graph.safetensors"), out.with_name(f"{out.stem}.run.json")
    if options.resume and origin.is_file():
        return _known(path, origin, request)
    graph = knn_graph(metric, codes, options.neighbors)
    if options.resume and origin.is_file():  # another share was faster: all use one graph
        return _known(path, origin, request)
    graph.save(path)
    io.save_json(origin, request, format=_FORMAT, version=_VERSION)
    return graph


def _known(path: Path, origin: Path, request: dict[str, object]) -> Graph:
    """The graph in a file, if it was built from the same."""
    there = io.load_json(origin, format=_FORMAT, version=_VERSION)
    other = [name for name, value in request.items() if there.get(name) != value]
    if other:
        raise ValueError(
            f"{origin} is of a run with other {' and '.join(other)}: choose another --out, or --no-resume to overwrite "
            "it"
        )
    return Graph.load(path)
