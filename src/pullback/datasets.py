"""Data to train on: digits (embedded), MNIST and Fashion-MNIST (from files or by download), and arrays in files."""

import gzip
import hashlib
import logging
import math
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from pullback.io import write_atomically

_log = logging.getLogger("pullback")

MIRRORS: dict[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": ("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",),
}
_TIMEOUT = 30.0  # seconds without a byte before the next mirror is tried
_BLOCK = 1 << 16  # bytes read at once
_SAMPLE_KEYS, _LABEL_KEYS = ("samples", "x", "data"), ("labels", "y")
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)  # what numpy and gzip raise on bad files


@dataclass(frozen=True)
class RemoteFile:
    """A file with the size and the checksum that every copy of it has."""

    name: str
    size: int  # bytes
    sha256: str


FILES: dict[str, dict[str, tuple[RemoteFile, RemoteFile]]] = {  # images and labels of each split
    name: {
        split: (
            RemoteFile(f"{prefix}-images-idx3-ubyte.gz", *images),
            RemoteFile(f"{prefix}-labels-idx1-ubyte.gz", *labels),
        )
        for split, prefix, images, labels in splits
    }
    for name, splits in {
        "mnist": (
            (
                "train",
                "train",
                (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            ),
            (
                "test",
                "t10k",
                (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
            ),
        ),
        "fashion-mnist": (
            (
                "train",
                "train",
                (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            ),
            (
                "test",
                "t10k",
                (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            ),
        ),
    }.items()
}


@dataclass(frozen=True)
class Dataset:
    """Samples with the shape they had before they were flattened.

    Attributes:
        samples: x (n, D), float32; images are scaled to [0, 1].
        labels: (n,) int64, or None.
        sample_shape: Shape of one sample; its product is D.
        name: What to call it in records.

    Raises:
        ValueError: Shapes or dtypes are others than these, or there is no sample.
    """

    samples: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"] | None
    sample_shape: tuple[int, ...]
    name: str

    def __post_init__(self) -> None:
        x, labels = self.samples, self.labels
        if x.ndim != 2 or x.dtype != torch.float32 or x.numel() == 0:
            raise ValueError(
                f"`samples` has shape {tuple(x.shape)} and dtype {x.dtype}: wanted (n, D), float32, n > 0; "
                "use samples.flatten(1).float()"
            )
        if labels is not None and (labels.shape != x.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)} and dtype {labels.dtype}: wanted ({len(x)},), int64"
            )
        if math.prod(self.sample_shape) != x.shape[1]:
            raise ValueError(f"`sample_shape` is {self.sample_shape}: wanted a shape of {x.shape[1]} numbers")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: Tensor | slice) -> "Dataset":
        """The samples and labels at some rows: an index or boolean tensor (m,) or a slice."""
        labels = None if self.labels is None else self.labels[rows]
        return Dataset(self.samples[rows], labels, self.sample_shape, self.name)


def digits() -> Dataset:
    """The 1797 handwritten digits of scikit-learn, 8 x 8, scaled to [0, 1]; embedded, so always there.

    Returns:
        Samples (1797, 64), labels 0 to 9.

    Reference:
        Alpaydin, Kaynak (1998), Optical recognition of handwritten digits, UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    samples = torch.from_numpy(pixels / 16).float()
    return Dataset(samples, torch.from_numpy(labels.astype(np.int64)), (8, 8), "digits")


def mnist(
    split: str = "train",
    classes: Sequence[int] | None = None,
    *,
    root: str | Path | None = None,
    progress: bool = False,
) -> Dataset:
    """MNIST: 28 x 28 handwritten digits, 60,000 to train and 10,000 to test, scaled to [0, 1].

    The files are looked for in ``$PULLBACK_DATA/mnist``, then in the cache folder (``$PULLBACK_CACHE``, by default
    ``~/.cache/pullback``), and are downloaded there if they are nowhere. Every file is checked by size and SHA-256.

    Args:
        split: ``"train"`` or ``"test"``.
        classes: Digits to keep, such as ``(0, 1, 2)``; default: all.
        root: Folder that holds the idx .gz files itself. Then nothing else is searched, nothing is downloaded, and
            files of the same form with other contents are welcome: only their structure is checked.
        progress: Show a bar of the download.

    Returns:
        Samples (n, 784), labels 0 to 9, in the order of the files.

    Raises:
        ValueError: Unknown split or class; a file is damaged or is not what its name says.
        FileNotFoundError: ``root`` is given and lacks a file.
        ConnectionError: No mirror gave an intact file; the message says how to put it there by hand.

    Reference:
        LeCun, Bottou, Bengio, Haffner (1998), Gradient-based learning applied to document recognition.
    """
    return _idx_dataset("mnist", split, classes, root, progress)


def fashion_mnist(
    split: str = "train",
    classes: Sequence[int] | None = None,
    *,
    root: str | Path | None = None,
    progress: bool = False,
) -> Dataset:
    """Fashion-MNIST: 28 x 28 images of clothes, in the form of MNIST; see :func:`mnist` for everything else.

    Reference:
        Xiao, Rasul, Vollgraf (2017), Fashion-MNIST. arXiv 1708.07747.
    """
    return _idx_dataset("fashion-mnist", split, classes, root, progress)


def from_file(path: str | Path) -> Dataset:
    """Samples from a ``.npy`` or ``.npz`` file. Nothing is unpickled.

    Args:
        path: ``.npy``: an array (n, ...), first axis the samples. ``.npz``: such an array under ``samples``, ``x`` or
            ``data``, or as the only one; whole numbers (n,) under ``labels`` or ``y`` become the labels. Arrays of
            dtype uint8 are taken as pixels and divided by 255; all others keep their values.

    Returns:
        Samples (n, D), float32.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, pickled or of another kind; it has no clear array of samples; samples are
            not real numbers, none, or not finite as float32; labels do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` is {path}: there is no such file; check the path")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"`path` is {path}: wanted a .npy or .npz file; write one with numpy.save or numpy.savez")
    try:
        with path.open("rb") as file:  # numpy would leave a damaged file open
            content = np.load(file, allow_pickle=False)
            arrays = {"samples": content} if isinstance(content, np.ndarray) else dict(content.items())
    except _UNREADABLE as error:
        hint = "it holds pickled objects; save plain numbers instead" if "pickle" in str(error) else "it may be damaged"
        raise ValueError(f"`path` {path} cannot be read ({error}): {hint}") from error
    key = _sample_key(path, arrays)
    samples = _checked_samples(path, key, arrays[key])
    labels = next((arrays[name] for name in _LABEL_KEYS if name in arrays and name != key), None)
    if labels is not None:
        labels = _checked_labels(path, labels, len(samples))
    return Dataset(samples.flatten(1), labels, tuple(samples.shape[1:]), path.stem)


def _sample_key(path: Path, arrays: Mapping[str, Any]) -> str:
    candidates = [key for key in arrays if key not in _LABEL_KEYS] or list(arrays)
    if len(candidates) == 1:
        return candidates[0]
    for key in _SAMPLE_KEYS:
        if key in arrays:
            return key
    found = ", ".join(arrays) or "none"
    raise ValueError(f"`path` {path} holds the arrays {found}: wanted one, or one named {', '.join(_SAMPLE_KEYS)}")


def _checked_samples(path: Path, key: str, array: np.ndarray) -> Tensor:
    name = f"the array '{key}' of `path` {path}"
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
    return torch.from_numpy(samples / np.float32(255) if array.dtype == np.uint8 else samples)


def _checked_labels(path: Path, labels: np.ndarray, n_samples: int) -> Tensor:
    if labels.shape != (n_samples,) or labels.dtype.kind not in "iub":
        raise ValueError(
            f"the labels of `path` {path} have shape {labels.shape} and dtype {labels.dtype}: "
            f"wanted whole numbers of shape ({n_samples},), one a sample"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _idx_dataset(
    name: str, split: str, classes: Sequence[int] | None, root: str | Path | None, progress: bool
) -> Dataset:
    if split not in FILES[name]:
        raise ValueError(f"`split` is {split!r}: wanted one of {', '.join(FILES[name])}")
    images, labels = (_read_idx(_located(name, file, root, progress)) for file in FILES[name][split])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"the images of {name} have shape {images.shape}, the labels {labels.shape}: they do not match"
        )
    if classes is not None:
        known = np.unique(labels)
        unknown = [label for label in classes if label not in known]
        if unknown or not len(classes):
            raise ValueError(f"`classes` is {tuple(classes)}: wanted some of {', '.join(map(str, known))}")
        keep = np.isin(labels, list(classes))
        images, labels = images[keep], labels[keep]
    samples = torch.from_numpy(images.reshape(len(images), -1) / np.float32(255))
    return Dataset(samples, torch.from_numpy(labels.astype(np.int64)), tuple(images.shape[1:]), name)


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes from an idx .gz file: two zeros, type 8, number of axes, their lengths (32 bit), the bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not an intact .gz file ({error}): delete it and get it again") from error
    n_axes = content[3] if len(content) > 3 else 0
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(n_axes))
    if content[:3] != b"\x00\x00\x08" or not n_axes:
        raise ValueError(f"{path} starts with {content[:4].hex()}: wanted the magic number 000008.. of an idx file")
    start = 4 + 4 * n_axes
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} has {len(content) - start} bytes of data: wanted {math.prod(shape)} for shape {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _located(name: str, file: RemoteFile, root: str | Path | None, progress: bool) -> Path:
    """Where the file lies; downloaded into the cache if it lies nowhere."""
    if root is not None:
        path = Path(root) / file.name
        if not path.is_file():
            raise FileNotFoundError(f"`root` {root} has no file {file.name}; leave out `root` to download it")
        return path
    data = os.environ.get("PULLBACK_DATA")
    if data and (path := Path(data) / name / file.name).is_file():
        if flaw := _flaw(path.read_bytes(), file):
            raise ValueError(f"{path} {flaw}: delete it and get it again, or give `root` to use it as it is")
        return path
    path = _cache() / name / file.name
    if not path.is_file() or _flaw(path.read_bytes(), file):
        download(file, MIRRORS[name], path, progress=progress)
    return path


def _cache() -> Path:
    if folder := os.environ.get("PULLBACK_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pullback"


def _flaw(content: bytes, file: RemoteFile) -> str | None:
    """What is wrong with the bytes of a file, if anything."""
    if len(content) != file.size:
        return f"has {len(content)} bytes, wanted {file.size} (truncated, or another file)"
    if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        return f"has SHA-256 {found}, wanted {file.sha256} (damaged, or another file)"
    return None


def download(file: RemoteFile, mirrors: Iterable[str], path: Path, *, progress: bool = False) -> None:
    """Get a file from the first mirror that gives an intact copy; whole or not at all.

    Args:
        file: Name, size and checksum.
        mirrors: Addresses that the name is appended to.
        path: Where to put it; the folder is made.
        progress: Show a bar.

    Raises:
        ConnectionError: No mirror gave an intact copy; the message has the reason of each.
        OSError: ``path`` cannot be written.
    """
    reasons = []
    for mirror in mirrors:
        url = mirror + file.name
        try:
            content = _fetched(url, file, progress)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that is none
            reasons.append(f"{url}: {error}")
            continue
        if flaw := _flaw(content, file):
            reasons.append(f"{url} {flaw}")
            continue
        _log.info("downloaded %s to %s", url, path)
        write_atomically(path, content)
        return
    raise ConnectionError(
        f"{file.name} could not be downloaded ({'; '.join(reasons)}): put it into {path.parent} by hand, or set "
        "PULLBACK_DATA to the folder that holds it"
    )


def _fetched(url: str, file: RemoteFile, progress: bool) -> bytes:
    """The bytes behind an address, in memory: an interruption leaves nothing behind. At most one block too many."""
    content = bytearray()
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
        tqdm(total=file.size, unit="B", unit_scale=True, desc=file.name, disable=not progress) as bar,
    ):
        while len(content) <= file.size and (block := response.read(_BLOCK)):
            content += block
            bar.update(len(block))
    return bytes(content)
