"""What a command line names: models, data sets, codes and pairs. Errors name the file, and the line if there is one."""

import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from pullback import datasets, models
from pullback.datasets import Dataset
from pullback.models import RBFVAE, rbfvae
from pullback.models.model import Model
from pullback.models.shipped import NAMES

Loaded = TypeVar("Loaded", bound=RBFVAE | Model)

_DATA_SETS = ("mnist", "fashion-mnist", "digits", "walking", "blood-cells")


def model_named(name: str) -> RBFVAE:
    """A shipped model by its name, or one that `pullback train` wrote by its folder."""
    return _named(name, rbfvae.load)


def any_model_named(name: str) -> RBFVAE | Model:
    """A shipped model by its name, or a saved one of any kind by its folder."""
    return _named(name, models.load)


def _named(name: str, load: Callable[[str], Loaded]) -> RBFVAE | Loaded:
    if name in NAMES and not Path(name).exists():
        return models.pretrained(name)
    if not Path(name).is_dir():
        raise ValueError(
            f"MODEL is {name}, which is neither a folder nor a shipped model: "
            f"give a folder that `pullback train` wrote, or {', '.join(NAMES)}"
        )
    return load(name)


def dataset_named(name: str, classes: Sequence[int] | None = None, split: str = "train") -> Dataset:
    """A data set by its name, or the samples in a file; only some classes of it when they are given."""
    if name == "mnist":
        return datasets.mnist(split, classes=classes, progress=True)
    if name == "fashion-mnist":
        return datasets.fashion_mnist(split, classes=classes, progress=True)
    whole = {"digits": datasets.digits, "walking": datasets.walking, "blood-cells": datasets.blood_cells}
    if name not in whole and Path(name).suffix not in (".npy", ".npz"):
        raise ValueError(f"DATA is {name}: give {', '.join(_DATA_SETS)}, or a .npy or .npz file")
    data = whole[name]() if name in whole else datasets.from_file(name)
    if classes is None:
        return data
    if data.labels is None:
        raise ValueError(f"--classes {','.join(map(str, classes))} needs labels, and {name} has none")
    chosen = torch.isin(data.labels, torch.tensor(classes))
    if not bool(chosen.any()):
        raise ValueError(f"no sample of {name} has one of the labels {', '.join(map(str, classes))}")
    return data[chosen]


def codes_from(path: str | None, model: RBFVAE) -> tuple[Tensor, Tensor | None]:
    """Codes (n, d) and labels (n,) from a file of ``pullback encode``; without a file those kept with the model."""
    if path is None:
        return model.codes, model.labels
    return codes_in(path, model.latent_dim)


def codes_in(path: str, latent_dim: int) -> tuple[Tensor, Tensor | None]:
    """Codes (n, d) and labels (n,) from a file of ``pullback encode``, or codes alone from a .npy."""
    if not Path(path).exists() or Path(path).is_dir():
        raise FileNotFoundError(f"there is no file {path} with codes; write it with `pullback encode`")
    try:
        arrays = {"codes": _array(path)} if Path(path).suffix == ".npy" else read_arrays(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read, it is damaged or no .npz: write it with `pullback encode`") from error
    if "codes" not in arrays:
        raise ValueError(f"{path} has no array named 'codes': write it with `pullback encode`")
    codes, labels = arrays["codes"], arrays.get("labels")
    wide = codes.dtype.kind == "f" and codes.dtype.itemsize >= 4  # half precision cannot tell close points apart
    if codes.ndim != 2 or codes.shape[1] != latent_dim or not wide or len(codes) == 0:
        raise ValueError(
            f"the codes in {path} have shape {codes.shape} and dtype {codes.dtype}; "
            f"wanted floats (n, {latent_dim}), 32 or 64 bits, with n > 0, as MODEL has {latent_dim} latent dimensions"
        )
    if not np.isfinite(codes).all():
        row = int(np.nonzero(~np.isfinite(codes).all(1))[0][0])
        raise ValueError(f"the codes in {path} hold NaN or inf, the first in row {row}: remove them")
    if labels is not None and labels.shape != codes.shape[:1]:
        raise ValueError(f"{path} has {len(codes)} codes, but labels of shape {labels.shape}: wanted one label a code")
    return torch.from_numpy(codes).double(), None if labels is None else torch.from_numpy(labels)


def _array(path: str) -> np.ndarray:
    """The array of a .npy; ValueError whatever is wrong with its content."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        raise ValueError("it holds several arrays: name it .npz")
    except (ValueError, EOFError, SyntaxError) as error:  # a damaged header is text that Python cannot parse
        raise ValueError(f"{path} is damaged or no .npy ({error})") from error


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz; ValueError whatever is wrong with its content, OSError when it cannot be opened."""
    content = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            damaged = file.testzip()  # compares the checksums
        if damaged is None:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                return dict(file)
    except Exception as error:  # flipped bits raise nearly anything in zipfile, zlib and NumPy
        raise ValueError(f"{path} is damaged or no .npz ({error})") from error
    raise ValueError(f"{path} is damaged: the checksum of {damaged} is wrong")


def random_pairs(n_codes: int, n_pairs: int, seed: int) -> Tensor:
    """Indices (n_pairs, 2) of random pairs of codes, the two of a pair different."""
    if n_codes < 2:
        raise ValueError(f"there are {n_codes} codes, but a pair needs two")
    generator = Generator().manual_seed(seed)
    first = torch.randint(n_codes, (n_pairs,), generator=generator)
    step = torch.randint(1, n_codes, (n_pairs,), generator=generator)
    return torch.stack([first, (first + step) % n_codes], dim=-1)


def pairs_from(path: str, latent_dim: int) -> tuple[Tensor, Tensor]:
    """Start and end points (n, d) of the rows of a CSV file.

    The first row may name the columns start_0, ..., end_0, ...; other columns are then ignored, so what
    ``pullback geodesic`` writes can be read. Without names a row is d numbers of the start and d of the end.
    """
    names = [f"{side}_{i}" for side in ("start", "end") for i in range(latent_dim)]
    if not Path(path).exists() or Path(path).is_dir():
        raise FileNotFoundError(
            f"--pairs is {path}, which is no file: wanted a CSV file, a pair a row, {','.join(names)}"
        )
    columns: list[int] | None = None
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark in front
        reader = csv.reader(file)
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if not rows and columns is None and set(names) <= {cell.strip() for cell in cells}:
                    columns = [[cell.strip() for cell in cells].index(name) for name in names]
                    continue
                rows.append(_numbers(cells, columns, latent_dim, f"{path}, line {reader.line_num}"))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}, line {reader.line_num + 1}: not text of comma-separated values ({error})"
            ) from error
    if not rows:
        raise ValueError(f"{path} has no pairs: give one a row, {', '.join(names)}")
    start, end = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2, latent_dim).unbind(1)
    return start, end


def _numbers(cells: list[str], columns: list[int] | None, latent_dim: int, place: str) -> list[float]:
    if columns is not None and len(cells) > max(columns):
        cells = [cells[column] for column in columns]
    elif columns is not None or len(cells) != 2 * latent_dim:
        raise ValueError(
            f"{place}: {len(cells)} columns, wanted {2 * latent_dim if columns is None else max(columns) + 1}: "
            f"start and end in {latent_dim} latent dimensions"
        )
    numbers = []
    for cell in cells:
        try:
            number = float(cell)
        except ValueError:
            raise ValueError(f"{place}: {cell!r} is not a number") from None
        if not np.isfinite(number):
            raise ValueError(f"{place}: {cell!r} is not finite")
        numbers.append(number)
    return numbers
