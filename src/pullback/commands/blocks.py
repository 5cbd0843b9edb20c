"""A long run in blocks: each finished block is kept in the run's folder, so that an interrupted run can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pullback import io
from pullback.commands.outputs import save_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORMAT, _VERSION = "pullback.run", 1


class Blocks:
    """The finished blocks of one run, in order, and the file that they are joined in at the end.

    Args:
        result: The ``.npz`` of the whole run. Beside it stand ``run.json`` and, until the end, ``block-....npz``.
        request: What the run computes from, as JSON can hold it.
        resume: Go on with what the folder holds. False: begin anew.

    Raises:
        ValueError: The folder holds a run with another request.
    """

    def __init__(self, result: Path, request: Mapping[str, Any], *, resume: bool) -> None:
        self.result = result
        record = result.parent / "run.json"
        if resume and record.is_file():
            found = io.load_json(record, format=_FORMAT, version=_VERSION)
            other = [name for name, value in request.items() if found.get(name) != value]
            if other:
                raise ValueError(
                    f"{result.parent} holds a run with other {' and '.join(other)}: "
                    "choose another --out, or --no-resume to overwrite it"
                )
        else:
            record.unlink(missing_ok=True)
            result.unlink(missing_ok=True)
            self._clear()
            io.save_json(record, request, format=_FORMAT, version=_VERSION)

    @property
    def finished(self) -> bool:
        """Whether the whole run stands in its file."""
        return self.result.is_file()

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep the next block: arrays with the same number of rows."""
        save_arrays(self.result.parent / f"block-{len(self._paths()):06d}.npz", arrays)

    def load(self) -> list[dict[str, NDArray[Any]]]:
        """The blocks that are there, in order."""
        blocks = []
        for path in self._paths():
            with np.load(path, allow_pickle=False) as file:
                blocks.append(dict(file))
        return blocks

    def finish(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the whole run and remove its blocks."""
        save_arrays(self.result, arrays)
        self._clear()

    def _clear(self) -> None:
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.result.parent.glob("block-*.npz"))


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 over shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
