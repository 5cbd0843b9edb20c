"""Arrays in files of NumPy, looked at before anything is computed from them."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.datasets.dataset import Dataset

_SAMPLE_KEYS, _LABEL_KEYS = ("samples", "x", "data"), ("labels", "y")
_EXACT = 2**24  # the largest count below which float32 has all
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)  # what numpy and gzip raise on bad files


def from_file(path: str | Path, *, counts: bool = False) -> Dataset:
    """Samples from a ``.npy`` or ``.npz`` file. Nothing is unpickled.

    Args:
        path: ``.npy``: an array (n, ...), first axis the samples. ``.npz``: such an array under ``samples``, ``x`` or
            ``data``, or as the only one; whole numbers (n,) under ``labels`` or ``y`` become the labels. Arrays of
            dtype uint8 are taken as pixels and divided by 255; all others keep their values.
        counts: Whether samples have to be counts: whole numbers, not negative. Then uint8 keeps its values, too.

    Returns:
        Samples (n, D), float32.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, pickled or of another kind; it has no clear array of samples; samples are
            not real numbers, none, or not finite as float32, or not counts; labels do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` is {path}: there is no such file; check the path")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"`path` is {path}: wanted a .npy or .npz file; write one with numpy.save or numpy.savez")
    arrays = read_arrays(path)
    key = _sample_key(path, arrays)
    samples = checked_samples(f"the array '{key}' of `path` {path}", arrays[key], counts=counts)
    labels = next((arrays[name] for name in _LABEL_KEYS if name in arrays and name != key), None)
    if labels is not None:
        labels = _checked_labels(path, labels, len(samples))
    return Dataset(samples.flatten(1), labels, tuple(samples.shape[1:]), path.stem)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by their names, or that of a ``.npy`` file as "samples"; ValueError if damaged."""
    try:
        with path.open("rb") as file:  # numpy would leave a damaged file open
            content = np.load(file, allow_pickle=False)
            return {"samples": content} if isinstance(content, np.ndarray) else dict(content.items())
    except UNREADABLE as error:
        hint = "it holds pickled objects; save plain numbers instead" if "pickle" in str(error) else "it may be damaged"
        raise ValueError(f"`path` {path} cannot be read ({error}): {hint}") from error


def _sample_key(path: Path, arrays: Mapping[str, Any]) -> str:
    candidates = [key for key in arrays if key not in _LABEL_KEYS] or list(arrays)
    if len(candidates) == 1:
        return candidates[0]
    for key in _SAMPLE_KEYS:
        if key in arrays:
            return key
    found = ", ".join(arrays) or "none"
    raise ValueError(f"`path` {path} holds the arrays {found}: wanted one, or one named {', '.join(_SAMPLE_KEYS)}")


def checked_samples(name: str, array: np.ndarray, *, counts: bool = False) -> Tensor:
    """Samples (n, ...), float32, from an array of finite real numbers; pixels (uint8) are scaled unless they count.

    Args:
        name: What errors call the array.
        array: (n, ...).
        counts: Whether they have to be whole numbers that are not negative, and that float32 holds exactly.
    """
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {array.dtype}: wanted real numbers")
    if array.ndim < 2:
        raise ValueError(f"{name} has shape {array.shape}: wanted (n, ...), one sample a row; reshape it to (n, 1)")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: wanted at least one sample with at least one number")
    with np.errstate(over="ignore"):
        samples = array.astype(np.float32)
    if not (finite := np.isfinite(samples)).all():
        bad = np.flatnonzero(~finite.reshape(len(samples), -1).all(1))
        raise ValueError(
            f"{name} holds NaN, inf or numbers too large for float32 in {len(bad)} of {len(samples)} samples "
            f"(first: sample {bad[0]}): remove these samples or fill the gaps"
        )
    if not counts:
        return torch.from_numpy(samples / np.float32(255) if array.dtype == np.uint8 else samples)
    wrong = np.flatnonzero((array < 0) | (array != np.rint(array)) | (array > _EXACT))
    if len(wrong):
        raise ValueError(
            f"{name} holds {array.flat[wrong[0]]} in sample {wrong[0] // (array.size // len(array))}: counts are whole "
            f"numbers from 0 to {_EXACT}; give raw counts, before any normalization or logarithm"
        )
    return torch.from_numpy(samples)


def _checked_labels(path: Path, labels: np.ndarray, n_samples: int) -> Tensor:
    if labels.shape != (n_samples,) or labels.dtype.kind not in "iub":
        raise ValueError(
            f"the labels of `path` {path} have shape {labels.shape} and dtype {labels.dtype}: "
            f"wanted whole numbers of shape ({n_samples},), one a sample"
        )
    return torch.from_numpy(labels.astype(np.int64))
