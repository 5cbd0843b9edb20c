"""A matrix on disk that is written in blocks of rows and survives being killed between any two instructions."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pullback import io
from pullback._checks import PullbackWarning

FORMAT, VERSION = "pullback.matrix", 1
RECORD = "pullback.json"
_LEDGER = "blocks"


class MatrixStore:
    """A zarr array, and in its folder a ledger of the blocks that are whole: a file each, with the block's checksum.

    A block counts once its file is there, which is written whole and last: what was being written when a process died
    is written again. So several processes may write blocks of their own into one store.

    Attributes:
        array: The zarr array; blocks that are not there yet are NaN.
    """

    def __init__(self, folder: Path, array: Any, rows: int) -> None:
        self.folder, self.array, self._rows = folder, array, rows

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
        """
        zarr = need_zarr()
        folder = Path(folder)
        if (folder / RECORD).is_file() and not resume:
            shutil.rmtree(folder)
        if not (folder / RECORD).is_file():
            _create(folder, record, shape=shape, chunks=(rows, shape[1]), dtype=dtype)
        there = io.load_json(folder / RECORD, format=FORMAT, version=VERSION)
        different = [f"{name} {there.get(name)} there, {now} now" for name, now in record.items()
                     if now != there.get(name)]  # fmt: skip
        if different:
            raise ValueError(
                f"`out` {folder} holds another matrix ({'; '.join(different)}): choose another folder, or overwrite it "
                "with resume=False."
            )
        return cls(folder, zarr.open_array(folder, mode="r+"), rows)

    def missing(self, starts: Sequence[int]) -> list[int]:
        """Of the blocks that begin at these rows those that are not whole. Cost: reads the others.

        Warns:
            PullbackWarning: Blocks that are damaged; they count as missing.
        """
        written = [start for start in starts if self._entry(start).is_file()]
        bad = [start for start in written if not self._intact(start)]
        if bad:
            text = f"{len(bad)} blocks of {self.folder} are damaged (the first begins at row {bad[0]}): made again"
            warnings.warn(text, PullbackWarning, stacklevel=3)
        return sorted(set(starts) - set(written) | set(bad))

    def put(self, start: int, block: NDArray[Any]) -> None:
        """Write a block of rows, and then say so."""
        self._entry(start).unlink(missing_ok=True)
        self.array[start : start + len(block)] = block
        io.write_atomically(self._entry(start), digest([block]).encode())

    def _entry(self, start: int) -> Path:
        return self.folder / _LEDGER / f"{start}.sha256"

    def _intact(self, start: int) -> bool:
        try:
            block = np.asarray(self.array[start : start + self._rows])
        except (OSError, ValueError, RuntimeError):  # of zarr, for files that are cut off or gone
            return False
        return digest([block]) == self._entry(start).read_text()


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 over shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _create(folder: Path, record: Mapping[str, Any], **settings: Any) -> None:
    """A store without blocks, made beside its place and moved there: of processes that begin together one succeeds."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`out` is {folder}, which holds something else: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        # numbers like these hardly shrink, and compression would be what a run waits for
        need_zarr().create_array(new, fill_value=np.nan, overwrite=True, compressors=None, **settings)
        (new / _LEDGER).mkdir()
        io.save_json(new / RECORD, record, format=FORMAT, version=VERSION)
        new.chmod(0o755)
        new.rename(folder)
    except OSError:
        if not (folder / RECORD).is_file():  # another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def need_zarr() -> Any:
    """The module; call it before long work whose result it is to hold."""
    try:
        import zarr
    except ImportError as error:
        raise ImportError('matrices on disk need zarr: pip install "pullback[zarr]", or pip install zarr.') from error
    return zarr
