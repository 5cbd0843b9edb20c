"""A matrix on disk that is written in blocks of rows and survives being killed between any two instructions."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pullback import io
from pullback._checks import PullbackWarning

FORMAT, VERSION = "pullback.matrix", 1
LEDGER = "ledger.json"


class MatrixStore:
    """A zarr array and, beside it, a ledger of the blocks that are whole, with their checksums.

    A block counts once the ledger says so, and the ledger is replaced whole: what was being written when a process died
    is written again.

    Attributes:
        array: The zarr array; blocks that are not there yet are NaN.
    """

    def __init__(self, folder: Path, array: Any, record: Mapping[str, Any], done: dict[str, str]) -> None:
        self.folder, self.array = folder, array
        self.record, self._done = dict(record), done

    @classmethod
    def open(
        cls,
        folder: str | Path,
        record: Mapping[str, Any],
        shape: tuple[int, int],
        rows: int,
        dtype: str,
        *,
        resume: bool,
    ) -> MatrixStore:
        """A store of a new matrix, or of one that was begun.

        Args:
            folder: Made if it is missing.
            record: What tells this matrix from others, as JSON can hold it.
            shape: Of the matrix.
            rows: In a block: one file of the array each.
            dtype: Of its numbers.
            resume: Go on with what is there. False: begin anew.

        Raises:
            ImportError: zarr is not installed.
            ValueError: The folder holds another matrix, or something else.
            OSError: It cannot be written.

        Warns:
            PullbackWarning: Blocks that are damaged: they are made again.
        """
        zarr = _zarr()
        folder = Path(folder)
        ledger = folder / LEDGER
        if folder.exists() and not ledger.is_file() and any(folder.iterdir()):
            raise ValueError(f"`out` is {folder}, which holds something else: choose another folder.")
        if ledger.is_file() and not resume:
            shutil.rmtree(folder)
        if not ledger.is_file():
            array = zarr.create_array(
                folder / "matrix", shape=shape, chunks=(rows, shape[1]), dtype=dtype, fill_value=np.nan, overwrite=True
            )
            store = cls(folder, array, record, {})
            store._write()
            return store
        held = io.load_json(ledger, format=FORMAT, version=VERSION)
        there = held["record"]
        different = [f"{name} {there.get(name)} there, {now} now" for name, now in record.items()
                     if now != there.get(name)]  # fmt: skip
        if different:
            raise ValueError(
                f"`out` {folder} holds another matrix ({'; '.join(different)}): choose another folder, or overwrite it "
                "with resume=False."
            )
        store = cls(folder, zarr.open_array(folder / "matrix", mode="r+"), record, dict(held["done"]))
        store._drop_damaged(rows)
        return store

    def holds(self, start: int) -> bool:
        """Whether the block that begins at a row is whole."""
        return str(start) in self._done

    def put(self, start: int, block: NDArray[Any]) -> None:
        """Write a block of rows, and then say so."""
        self.array[start : start + len(block)] = block
        self._done[str(start)] = digest([block])
        self._write()

    def _drop_damaged(self, rows: int) -> None:
        bad = []
        for start, checksum in self._done.items():
            try:
                intact = digest([np.asarray(self.array[int(start) : int(start) + rows])]) == checksum
            except (OSError, ValueError, RuntimeError):
                intact = False
            bad += [] if intact else [start]
        if bad:
            for start in bad:
                del self._done[start]
            text = f"{len(bad)} blocks of {self.folder} are damaged (the first begins at row {bad[0]}): made again"
            warnings.warn(text, PullbackWarning, stacklevel=4)

    def _write(self) -> None:
        content = {"record": self.record, "done": self._done}
        io.save_json(self.folder / LEDGER, content, format=FORMAT, version=VERSION)


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 over shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError('matrices on disk need zarr: pip install "pullback[zarr]", or pip install zarr.') from error
    return zarr
