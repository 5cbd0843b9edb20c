"""What commands write: arrays, pictures and tables; whole or not at all."""

from __future__ import annotations

import csv
import io as streams
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pullback import io

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def check_writable(path: str | Path, suffix: str = "") -> Path:
    """Say now, before the work, that a file cannot be written: its folder is made and tried.

    Args:
        path: A file with this suffix, or a folder when the suffix is empty.
        suffix: Such as ".npz".

    Returns:
        The path.
    """
    path = Path(path)
    if path.suffix != suffix and suffix:
        raise ValueError(f"--out is {path}: name a file that ends in {suffix}")
    if suffix and path.is_dir():
        raise ValueError(f"{path} is a folder: choose another --out, a file that ends in {suffix}")
    folder = path.parent if suffix else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
    return path


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a .npz that loads without pickle."""
    buffer = streams.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    io.write_atomically(path, buffer.getvalue())


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a PNG."""
    buffer = streams.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    io.write_atomically(path, buffer.getvalue())


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as comma-separated values; floats with all their digits."""
    buffer = streams.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def table_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table to read: columns aligned to the right, floats with four digits."""
    cells = [list(header)] + [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
