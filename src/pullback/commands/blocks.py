"""A long run in blocks: each finished block is kept in the run's folder, so that an interrupted run can go on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pullback import io
from pullback._checks import PullbackWarning
from pullback.commands.inputs import read_arrays
from pullback.commands.outputs import save_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORMAT, _VERSION = "pullback.run", 1
_NAME = re.compile(r"block-[0-9]{6}\.npz")


class Blocks:
    """The finished blocks of one run, in order, and the file that they are joined in at the end.

    Args:
        result: The ``.npz`` of the whole run. Beside it stand its ``.csv``, ``run.json`` and, until the end,
            ``block-000000.npz`` and so on. No other file is touched.
        request: What the run computes from, as JSON can hold it.
        names: The arrays of a block.
        resume: Go on with what the folder holds. False: begin anew.

    Raises:
        ValueError: The folder holds a run with another request, or such files without a ``run.json``.
    """

    def __init__(self, result: Path, request: Mapping[str, Any], names: Iterable[str], *, resume: bool) -> None:
        self.result, self.names = result, frozenset(names)
        record = result.parent / "run.json"
        if not record.exists():
            foreign = [path.name for path in (result, result.with_suffix(".csv"), *self._paths()) if path.exists()]
            if foreign:
                raise ValueError(
                    f"{result.parent} holds {foreign[0]}, but no run.json that says what it was made from: "
                    "choose another --out, or remove the file"
                )
            io.save_json(record, request, format=_FORMAT, version=_VERSION)
            return
        found = io.load_json(record, format=_FORMAT, version=_VERSION)  # refuses a foreign one
        if resume:
            other = [name for name, value in request.items() if found.get(name) != value]
            if other:
                raise ValueError(
                    f"{result.parent} holds a run with other {' and '.join(other)}: "
                    "choose another --out, or --no-resume to overwrite it"
                )
        else:
            result.unlink(missing_ok=True)
            self._clear()
            io.save_json(record, request, format=_FORMAT, version=_VERSION)

    def whole(self, n_rows: int) -> dict[str, NDArray[Any]] | None:
        """The finished run with this many rows; None when it is not finished, or its file is damaged."""
        if not self.result.is_file():
            return None
        arrays = self._read(self.result)
        if arrays is None or any(len(arrays[name]) != n_rows for name in self.names):
            warnings.warn(f"{self.result} is damaged: it is made again", PullbackWarning, stacklevel=2)
            return None
        return arrays

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep the next block: arrays with the same number of rows."""
        save_arrays(self._path(len(self._paths())), arrays)

    def load(self) -> list[dict[str, NDArray[Any]]]:
        """The blocks that are there, in order; from the first that is missing or damaged on they are removed."""
        blocks: list[dict[str, NDArray[Any]]] = []
        paths = self._paths()
        for path in paths:
            arrays = self._read(path) if path == self._path(len(blocks)) else None
            if arrays is None:
                warnings.warn(
                    f"{self._path(len(blocks))} is missing or damaged: solved again from there",
                    PullbackWarning,
                    stacklevel=2,
                )
                self._clear(len(blocks))
                break
            blocks.append(arrays)
        return blocks

    def finish(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the whole run and remove its blocks."""
        save_arrays(self.result, arrays)
        self._clear()

    def _read(self, path: Path) -> dict[str, NDArray[Any]] | None:
        try:
            arrays = read_arrays(path)
        except ValueError:
            return None
        return arrays if self.names <= arrays.keys() else None

    def _clear(self, first: int = 0) -> None:
        for path in reversed(self._paths()[first:]):  # the last one first: what an interruption leaves has no gap
            path.unlink()

    def _path(self, index: int) -> Path:
        return self.result.parent / f"block-{index:06d}.npz"

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.result.parent.glob("block-*.npz") if _NAME.fullmatch(path.name))
