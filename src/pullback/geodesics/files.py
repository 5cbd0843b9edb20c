"""Geodesics in files: safetensors with a JSON record."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback import io
from pullback.curves import Curve
from pullback.geodesics.exponential import Trajectory
from pullback.geodesics.solution import Solution, Status

FORMAT = "pullback.geodesics"
VERSION = 1
_KINDS: dict[str, type[Solution] | type[Trajectory]] = {"Solution": Solution, "Trajectory": Trajectory}


def save(path: str | Path, solution: Solution | Trajectory | Curve) -> None:
    """Write geodesics into a file that :func:`load` reads, whole or not at all, and its record as JSON beside it.

    Statuses are kept by name. The metric is not kept: a loaded curve is worth something to the decoder that it was
    solved with, as the result, and to others as a start.

    Args:
        path: The file, named ``*.safetensors``.
        solution: What :func:`geodesic` or :func:`exp` returned, or curves alone.

    Raises:
        TypeError: `solution` is something else.
        ValueError: The name of the file does not end in ``.safetensors``.
        OSError: The file cannot be written.
    """
    kind = type(solution).__name__
    if isinstance(solution, Curve):
        tensors, statuses = {"curve": solution.nodes}, []
    elif isinstance(solution, Solution | Trajectory):
        values = {field.name: getattr(solution, field.name) for field in fields(solution)}
        curve = values.pop("curve")
        tensors = {"curve": curve.nodes} | {name: value for name, value in values.items() if value is not None}
        statuses = [status.name for status in Status]
    else:
        raise TypeError(f"`solution` is a {kind}: give a Solution, a Trajectory or a Curve.")
    record = {"kind": kind, "shape": list(tensors["curve"].shape), "statuses": statuses}
    io.save_tensors(path, tensors, record, format=FORMAT, version=VERSION)


def load(path: str | Path, *, device: torch.device | str = "cpu") -> Solution | Trajectory | Curve:
    """Read what :func:`save` wrote, bit for bit.

    A loaded curve is a start that saves most of the work: ``geodesic(metric, a, b, init=load(path).curve)``.

    Args:
        path: The file.
        device: Where its tensors are to be.

    Returns:
        What was saved: a :class:`Solution`, a :class:`Trajectory` or a :class:`Curve`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, is damaged, or was written by a newer version of this package.
    """
    tensors, record = io.load_tensors(path, format=FORMAT, version=VERSION)
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    curve = Curve(tensors.pop("curve"))
    kind = record["kind"]
    if kind == "Curve":
        return curve
    if kind not in _KINDS:
        raise ValueError(f"{path} holds a {kind!r}, which this package does not know: update pullback")
    tensors["codes"] = _codes(path, tensors["codes"], record["statuses"])
    values: dict[str, Any] = {"curve": curve, **tensors}
    return _KINDS[kind](**values)


def _codes(path: str | Path, codes: Tensor, names: list[str]) -> Tensor:
    """The codes of today for codes that counted in a list of names."""
    used = sorted({names[code] for code in codes.reshape(-1).tolist()})
    unknown = [name for name in used if name not in Status.__members__]
    if unknown:
        raise ValueError(f"{path} has the status {unknown[0]}, which this package does not know: update pullback")
    today = [Status[name].code if name in Status.__members__ else -1 for name in names]
    return torch.tensor(today, dtype=codes.dtype, device=codes.device)[codes]
