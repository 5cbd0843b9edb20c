"""Handwritten digits (embedded), MNIST and Fashion-MNIST (from files or by download)."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pullback.datasets.arrays import UNREADABLE
from pullback.datasets.dataset import Dataset
from pullback.datasets.files import RemoteFile, cache, download, flaw_of, local

MIRRORS: dict[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": ("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",),
}

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
    except UNREADABLE as error:
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
    if path := local(name, file, root, "leave out `root` to download it"):
        return path
    path = cache() / name / file.name
    if not path.is_file() or flaw_of(path.read_bytes(), file):
        download(file, MIRRORS[name], path, progress=progress)
    return path
