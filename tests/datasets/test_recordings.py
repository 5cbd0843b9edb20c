import os
import re

import numpy as np
import pytest
import torch

from pullback import datasets
from pullback.datasets import recordings

DATA = os.environ.get("PULLBACK_DATA")
real = pytest.mark.skipif(not DATA, reason="needs the real files: set PULLBACK_DATA to the folder that holds them")

WALK, CELLS = "cmu_subject07_walk_positions.npz", "pbmc68k_reduced.npz"
POSITIONS = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)


def walk(**changes):
    """What the file of the walk holds, four joints small."""
    return {
        "pos_07_01": POSITIONS,
        "pos_07_02": POSITIONS[:3],
        "names": np.array(["hips", "spine", "head", "foot"]),
        "parents": np.array([-1, 0, 1, 0], np.int16),
        "fps": np.float32(120),
    } | changes


def cells(**changes):
    """What the file of the cells holds, three genes small."""
    return {
        "counts": np.array([[0, 3, 1], [2, 0, 0], [0, 0, 259], [1, 1, 1]], np.int16),
        "genes": np.array(["A", "B", "C"]),
        "bulk_label": np.array([1, 0, 1, 1], np.int8),
        "bulk_label_names": np.array(["B cell", "T cell"]),
    } | changes


def written(folder, name, arrays):
    np.savez(folder / name, **arrays)
    return folder


# The walk


def test_poses_are_positions_relative_to_the_root_in_the_order_of_time(tmp_path):
    data = datasets.walking(root=written(tmp_path, WALK, walk()))
    assert torch.equal(data.samples.reshape(5, 4, 3), torch.from_numpy(POSITIONS - POSITIONS[:, :1]))
    assert (data.sample_shape, data.labels, data.name) == ((4, 3), None, "walking")
    assert torch.equal(data.samples.reshape(5, 4, 3)[:, 0], torch.zeros(5, 3))


def test_a_skeleton_can_be_drawn_from_any_part_of_a_walk(tmp_path):
    part = datasets.walking(2, root=written(tmp_path, WALK, walk()))[1:]
    assert part.samples.shape == (2, 12)
    assert part.joints == ("hips", "spine", "head", "foot")
    assert part.parents == (-1, 0, 1, 0)
    assert part.rate == 120


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_07_01": np.where(np.arange(60).reshape(5, 4, 3) == 30, np.nan, 0)}, r"NaN.* 1 of 5 .*first: sample 2"),
        ({"pos_07_01": np.zeros((5, 12))}, r"shape \(5, 12\): wanted \(n, joints, 3\)"),
        ({"pos_07_01": np.zeros((5, 4, 2))}, r"shape \(5, 4, 2\): wanted \(n, joints, 3\)"),
        ({"pos_07_01": np.zeros((0, 4, 3))}, "at least one sample"),
        ({"pos_07_01": np.zeros((5, 4, 3), "U1")}, "wanted real numbers"),
        ({"names": np.array(["a"])}, r"4 joints, but names of shape \(1,\)"),
        ({"parents": np.array([-1.0, 0, 1, 0])}, "dtype float64"),
        ({"parents": np.array([-1, 0, 2, 0])}, "are no tree"),
        ({"parents": np.array([0, 0, 1, 0])}, "are no tree"),
    ],
    ids=["NaN", "flat", "plane", "empty", "text", "names", "parents", "loop", "no root"],
)
def test_a_walk_whose_arrays_do_not_fit_is_one_clear_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.walking(root=written(tmp_path, WALK, walk(**changes)))


@pytest.mark.parametrize("trial", [0, 3, "1", None])
def test_a_trial_that_was_not_recorded_is_refused(tmp_path, trial):
    with pytest.raises(ValueError, match=r"`trial` is .*: wanted 1 or 2"):
        datasets.walking(trial, root=tmp_path)


@real
@pytest.mark.parametrize(("trial", "n"), [(1, 316), (2, 329)])
def test_the_real_walk_repeats_itself_and_keeps_its_bones(trial, n):
    data = datasets.walking(trial)
    assert data.samples.shape == (n, 114)
    assert (len(data.joints), data.joints[0], data.sample_shape, data.rate) == (38, "Hips", (38, 3), 120)
    poses = data.samples.reshape(n, 38, 3)
    bones = (poses[:, 1:] - poses[:, list(data.parents[1:])]).norm(dim=-1)
    assert (bones.std(0) < 1e-4).all()  # positions that are attached to wrong parents would stretch
    steps = [float((data.samples[lag:] - data.samples[:-lag]).norm(dim=1).mean()) for lag in (65, 130)]
    assert steps[1] < 0.1 * steps[0]  # half a cycle later the other leg is ahead
    head, foot = (poses[:, data.joints.index(name), 1] for name in ("Head", "LeftFoot"))
    assert (head > 0).all()
    assert (foot < 0).all()


# The cells


def test_counts_come_as_whole_numbers_with_the_names_of_genes_and_kinds(tmp_path):
    arrays = cells()
    data = datasets.blood_cells(root=written(tmp_path, CELLS, arrays))
    assert data.samples.dtype == torch.float32
    assert data.samples.tolist() == arrays["counts"].tolist()
    assert (data.labels.tolist(), data.kinds, data.genes) == ([1, 0, 1, 1], ("B cell", "T cell"), ("A", "B", "C"))
    chosen = data[data.labels == 1]
    assert (len(chosen), chosen.kinds, chosen.genes) == (3, data.kinds, data.genes)


BYTES = np.array([[0, 3, 1], [2, 0, 0], [0, 0, 255], [1, 1, 1]], np.uint8)


def test_small_counts_are_not_mistaken_for_pixels(tmp_path):
    data = datasets.blood_cells(root=written(tmp_path, CELLS, cells(counts=BYTES)))
    assert data.samples.max() == 255
    np.save(tmp_path / "counts.npy", BYTES)
    assert datasets.from_file(tmp_path / "counts.npy", counts=True).samples.max() == 255
    assert datasets.from_file(tmp_path / "counts.npy").samples.max() == 1


NO_COUNTS = [
    ([[0.0, 3.0, 1.0], [2.0, 0.5, 0.0]], r"holds 0\.5 in sample 1: counts are whole numbers .*raw counts"),
    ([[0, 3, 1], [2, -1, 0]], "holds -1 in sample 1"),
    ([[0.0, np.nan, 1.0], [2.0, 0.0, 0.0]], "NaN"),
    ([[0, 3, 1], [2, 0, 2**24 + 1]], "holds 16777217 in sample 1"),
    ([[np.inf, 3, 1], [2, 0, 1]], "inf"),
]


@pytest.mark.parametrize(("counts", "message"), NO_COUNTS)
def test_numbers_that_are_no_counts_are_one_clear_error(tmp_path, counts, message):
    written(tmp_path, CELLS, cells(counts=np.array(counts), bulk_label=np.array([0, 1])))
    with pytest.raises(ValueError, match=message):
        datasets.blood_cells(root=tmp_path)
    np.save(tmp_path / "own.npy", np.array(counts))
    with pytest.raises(ValueError, match=message):
        datasets.from_file(tmp_path / "own.npy", counts=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": np.zeros((4, 3, 1), int)}, r"do not fit together: counts \(4, 3, 1\)"),
        ({"genes": np.array(["A"])}, r"genes \(1,\)"),
        ({"bulk_label": np.array([0, 1])}, r"bulk_label \(2,\)"),
        ({"bulk_label": np.array([0, 1, 2, 0])}, "whole numbers from 0 to 1"),
        ({"bulk_label": np.array([0, -1, 1, 0])}, "whole numbers from 0 to 1"),
        ({"bulk_label": np.array([0.0, 1, 1, 0])}, "whole numbers from 0 to 1"),
    ],
)
def test_cells_whose_arrays_do_not_fit_are_one_clear_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.blood_cells(root=written(tmp_path, CELLS, cells(**changes)))


@real
def test_the_real_cells_are_the_published_ones():
    data = datasets.blood_cells()
    assert data.samples.shape == (700, 765)
    assert data.labels.bincount().tolist() == [68, 8, 19, 54, 43, 129, 95, 13, 31, 240]
    assert data.kinds[9] == "Dendritic"
    assert torch.equal(data.samples, data.samples.round())
    assert (float(data.samples.min()), float(data.samples.max())) == (0, 259)
    # known markers: what marks a kind is counted in it far more often than in all cells
    for gene, kind in (("CD79A", "CD19+ B"), ("NKG7", "CD56+ NK")):
        counts = data.samples[:, data.genes.index(gene)]
        assert counts[data.labels == data.kinds.index(kind)].mean() > 2 * counts.mean()


@real
def test_the_counts_are_those_that_the_recipe_gives():
    with np.load(f"{DATA}/singlecell/{CELLS}", allow_pickle=False) as file:
        totals, log = file["n_counts_total"][:, None], file["lognorm"].astype(np.float64)
    assert np.array_equal(np.rint(np.expm1(log) * totals / 1e4), datasets.blood_cells().samples.numpy())


# Both


LOADERS = [("mocap", WALK, datasets.walking, "mocap.cs.cmu.edu"), ("singlecell", CELLS, datasets.blood_cells, "scanpy")]


@pytest.mark.parametrize(("folder", "name", "load", "origin"), LOADERS)
@pytest.mark.parametrize("given", [True, False])
def test_a_missing_file_is_named_with_its_folder_and_where_it_comes_from(
    tmp_path, monkeypatch, folder, name, load, origin, given
):
    if given:
        monkeypatch.setenv("PULLBACK_DATA", str(tmp_path))
    else:
        monkeypatch.delenv("PULLBACK_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder}/{name}")) as raised:
        load()
    assert all(word in str(raised.value) for word in ("PULLBACK_DATA", origin, "`root`"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"`root` {tmp_path} has no file {name}")):
        load(root=tmp_path)


@pytest.mark.parametrize(("folder", "name", "load", "_"), LOADERS)
def test_another_file_of_that_name_is_taken_from_root_alone(tmp_path, monkeypatch, folder, name, load, _):
    (tmp_path / folder).mkdir()
    written(tmp_path / folder, name, walk() if folder == "mocap" else cells())
    monkeypatch.setenv("PULLBACK_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"has \d+ bytes, wanted ({recordings.WALK.size}|{recordings.CELLS.size})"):
        load()
    assert len(load(root=tmp_path / folder)) in (4, 5)


@pytest.mark.parametrize(("_", "name", "load", "__"), LOADERS)
def test_a_file_that_is_damaged_or_lacks_arrays_is_one_clear_error(tmp_path, _, name, load, __):
    (tmp_path / name).write_bytes(b"PK\x03\x04 garbage")
    with pytest.raises(ValueError, match="cannot be read"):
        load(root=tmp_path)
    np.savez(tmp_path / name, other=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks the arrays .*: it has other"):
        load(root=tmp_path)
