"""Recordings of the real world: a person walking, and the genes that are active in blood cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pullback.datasets.arrays import checked_samples, read_arrays
from pullback.datasets.dataset import Dataset
from pullback.datasets.files import RemoteFile, local

WALK = RemoteFile(
    "cmu_subject07_walk_positions.npz", 389440, "1ef6014d5bcbad8565adb8de73330978e626e8a7026c9b27b965f96e63a6d7c8"
)
CELLS = RemoteFile("pbmc68k_reduced.npz", 596965, "e9d6e86f81f5a668dacf5991df0be808aadacf19007461ef6dfcc4047e01bc6c")


@dataclass(frozen=True)
class Poses(Dataset):
    """Poses of a body in the order of time: positions of its J joints.

    Attributes:
        joints: Names of the joints, J of them.
        parents: Index of the joint that each hangs on, -1 for the root; a bone leads from each joint to its parent.
        rate: Poses a second.
    """

    joints: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    rate: float = 1.0


@dataclass(frozen=True)
class Cells(Dataset):
    """Cells by how many molecules of each gene were counted in them.

    Attributes:
        genes: Names of the genes, one a column of the samples.
        kinds: Names of the kinds of cells; the labels are their indices.
    """

    genes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


def walking(trial: int = 1, *, root: str | Path | None = None) -> Poses:
    """A person walking, by motion capture: 120 poses a second of 38 joints, relative to the joint at the hips.

    Subject 07 of the motion capture database of Carnegie Mellon University, trials 01 and 02. A pose is the positions
    of the joints minus that of the root (x to the side, y up, z ahead), in units of the database (0.0564 m).
    More than two cycles of the walk: poses lie near a closed curve.

    The data used in this project was obtained from mocap.cs.cmu.edu. The database was created with funding from NSF
    EIA-0196217.

    Args:
        trial: 1 (316 poses) or 2 (329).
        root: Folder that holds ``cmu_subject07_walk_positions.npz``; default: ``$PULLBACK_DATA/mocap``, checked by size
            and SHA-256. In `root` any file of that form is welcome: ``pos_07_01`` and ``pos_07_02`` (n, J, 3), the
            positions of the joints; ``names`` (J,); ``parents`` (J,), -1 for the first and an earlier joint for each
            other; ``fps``. It is not downloaded: its positions follow from the motion files by forward kinematics.

    Returns:
        Samples (n, 38 * 3) in the order of time, sample_shape (38, 3); no labels.

    Raises:
        FileNotFoundError: The file is not there; the message says where it belongs.
        ValueError: Another trial; the file is damaged, or its arrays do not fit together or hold NaN.
    """
    if trial not in (1, 2):
        raise ValueError(f"`trial` is {trial!r}: wanted 1 or 2")
    key = f"pos_07_0{trial}"
    origin = "it holds joint positions of subject 07 of the CMU motion capture database, mocap.cs.cmu.edu"
    path, arrays = _arrays("mocap", WALK, root, origin, (key, "names", "parents", "fps"))
    positions, names, parents = arrays[key], arrays["names"], arrays["parents"]
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise ValueError(f"'{key}' of {path} has shape {positions.shape}: wanted (n, joints, 3), a position a joint")
    count = positions.shape[1]
    if names.shape != (count,) or parents.shape != (count,) or parents.dtype.kind not in "iu":
        raise ValueError(
            f"{path} has {count} joints, but names of shape {names.shape} and parents of shape {parents.shape} and "
            f"dtype {parents.dtype}: wanted ({count},), whole numbers"
        )
    if parents[0] != -1 or not ((parents[1:] >= 0) & (parents[1:] < np.arange(1, count))).all():
        raise ValueError(f"the parents in {path} are no tree: wanted -1, and then for each joint an earlier one")
    samples = checked_samples(f"'{key}' of {path}", positions)
    return Poses(
        (samples - samples[:, :1]).flatten(1), None, tuple(samples.shape[1:]), "walking",
        tuple(map(str, names)), tuple(map(int, parents)), float(arrays["fps"]),
    )  # fmt: skip


def blood_cells(*, root: str | Path | None = None) -> Cells:
    """Single blood cells: in 700 of them, how many molecules of 765 genes were counted; 10 kinds.

    The counts of ``pbmc68k_reduced``, a part of 68,000 cells of one donor that scanpy distributes (dendritic cells are
    240 of the 700, far more than in blood). Whole numbers from 0 to 259, two of three zero: for a likelihood of counts.
    The label of a cell is the kind whose cells, purified, it resembles most. Licenses: CC BY 4.0 (10x Genomics), BSD-3
    (scanpy).

    Args:
        root: Folder that holds ``pbmc68k_reduced.npz``; default: ``$PULLBACK_DATA/singlecell``, checked by size and
            SHA-256. In `root` any file of that form is welcome: ``counts`` (n, g), whole numbers; ``genes`` (g,);
            ``bulk_label`` (n,), indices into ``bulk_label_names``. It is not downloaded; scanpy has the same counts::

                cells = scanpy.datasets.pbmc68k_reduced()
                totals = cells.obs["n_counts"].to_numpy()[:, None]
                labels = cells.obs["bulk_labels"].cat
                numpy.savez(
                    "pbmc68k_reduced.npz",
                    counts=numpy.rint(numpy.expm1(cells.raw.X.toarray()) * totals / 1e4).astype("int16"),
                    genes=cells.raw.var_names.to_numpy(str),
                    bulk_label=labels.codes.to_numpy(),
                    bulk_label_names=labels.categories.to_numpy(str),
                )

    Returns:
        Samples (700, 765), float32 that are whole numbers; labels 0 to 9.

    Raises:
        FileNotFoundError: The file is not there; the message says where it belongs.
        ValueError: The file is damaged; counts are not whole, negative or NaN; arrays do not fit together.

    Reference:
        Zheng et al. (2017), Massively parallel digital transcriptional profiling of single cells.
        Wolf, Angerer, Theis (2018), SCANPY: large-scale single-cell gene expression data analysis.
    """
    origin = "it holds the counts of scanpy.datasets.pbmc68k_reduced(), see help(pullback.datasets.blood_cells)"
    path, arrays = _arrays("singlecell", CELLS, root, origin, ("counts", "genes", "bulk_label", "bulk_label_names"))
    counts, genes, labels, kinds = arrays.values()
    samples = checked_samples(f"'counts' of {path}", counts, counts=True)
    if counts.ndim != 2 or genes.shape != counts.shape[1:] or labels.shape != counts.shape[:1] or kinds.ndim != 1:
        raise ValueError(
            f"the arrays of {path} do not fit together: counts {counts.shape}, genes {genes.shape}, bulk_label "
            f"{labels.shape}, bulk_label_names {kinds.shape}; wanted (n, g), (g,), (n,), (k,)"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(kinds):
        raise ValueError(f"'bulk_label' of {path} has to hold whole numbers from 0 to {len(kinds) - 1}, a kind a cell")
    return Cells(
        samples, torch.from_numpy(labels.astype(np.int64)), tuple(samples.shape[1:]), "blood-cells",
        tuple(map(str, genes)), tuple(map(str, kinds)),
    )  # fmt: skip


def _arrays(
    folder: str, file: RemoteFile, root: str | Path | None, origin: str, keys: tuple[str, ...]
) -> tuple[Path, dict[str, np.ndarray]]:
    """Where the file lies, and its arrays of these names."""
    path = local(folder, file, root, origin)
    if path is None:
        raise FileNotFoundError(
            f"{folder}/{file.name} is not in the folder that PULLBACK_DATA names, and has no address to download it "
            f"from: {origin}. Put it into a folder '{folder}' and set PULLBACK_DATA to the folder above, or give "
            "`root`, the folder that holds it"
        )
    arrays = read_arrays(path)
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}: it has {', '.join(arrays) or 'none'}")
    return path, {key: arrays[key] for key in keys}
