import json
import threading

import numpy as np
import pytest

from pullback._checks import PullbackWarning
from pullback.stores import RECORD as RECORD_FILE
from pullback.stores import MatrixStore

zarr = pytest.importorskip("zarr")
RECORD = {"codes": 10, "graph": "abc"}


def opened(folder, *, resume=True, **record):
    return MatrixStore.open(folder, {**RECORD, **record}, (10, 10), 4, "float64", resume=resume)


def block(start):
    return np.arange(10.0) + 100 * np.arange(start, min(start + 4, 10))[:, None]


def test_blocks_that_were_put_are_held_by_another_process(tmp_path):
    store = opened(tmp_path / "d")
    store.put(4, block(4))
    again = opened(tmp_path / "d")
    assert again.missing([0, 4, 8]) == [0, 8]
    assert np.array_equal(again.array[4:8], block(4))
    assert np.isnan(again.array[0:4]).all()


def test_a_block_without_its_entry_in_the_ledger_does_not_count(tmp_path):
    store = opened(tmp_path / "d")
    store.array[0:4] = block(0)  # and then the process dies
    assert opened(tmp_path / "d").missing([0]) == [0]


def test_a_block_that_is_being_written_again_does_not_count(tmp_path, monkeypatch):
    store = opened(tmp_path / "d")
    store.put(0, block(0))
    monkeypatch.setattr(store, "array", None)  # which cannot be written
    with pytest.raises(TypeError):
        store.put(0, block(0))
    assert opened(tmp_path / "d").missing([0]) == [0]


def test_a_damaged_block_is_made_again(tmp_path):
    store = opened(tmp_path / "d")
    store.put(0, block(0))
    store.put(4, block(4))
    store.array[5, 3] = 7.0
    with pytest.warns(PullbackWarning, match="1 blocks of .* damaged .the first begins at row 4"):
        assert opened(tmp_path / "d").missing([0, 4]) == [4]
    assert opened(tmp_path / "d").missing([0]) == []  # blocks of others are not looked at


def test_a_file_of_the_array_that_is_cut_off_is_damage(tmp_path):
    store = opened(tmp_path / "d")
    store.put(0, block(0))
    (file,) = [path for path in (tmp_path / "d" / "c").rglob("*") if path.is_file()]
    file.write_bytes(file.read_bytes()[:20])
    with pytest.warns(PullbackWarning, match="damaged"):
        assert opened(tmp_path / "d").missing([0]) == [0]


def test_a_store_of_another_matrix_is_refused_with_what_differs(tmp_path):
    opened(tmp_path / "d").put(0, block(0))
    with pytest.raises(ValueError, match=r"holds another matrix .graph abc there, xyz now.: choose another folder"):
        opened(tmp_path / "d", graph="xyz")
    assert opened(tmp_path / "d", graph="xyz", resume=False).missing([0]) == [0]


def test_several_that_begin_at_once_share_one_store(tmp_path):
    stores, barrier = [], threading.Barrier(8)

    def begin():
        barrier.wait()
        stores.append(opened(tmp_path / "d"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    stores[0].put(0, block(0))
    stores[1].put(4, block(4))
    assert stores[2].missing([0, 4, 8]) == [8]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]  # nothing else is left


def test_zarr_reads_the_folder_as_an_array(tmp_path):
    opened(tmp_path / "d").put(4, block(4))
    assert np.array_equal(zarr.open_array(tmp_path / "d", mode="r")[4:8], block(4))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(ValueError, match="holds something else"):
            opened(tmp_path, resume=resume)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_ledger_of_a_newer_version_is_refused(tmp_path):
    opened(tmp_path / "d")
    ledger = tmp_path / "d" / RECORD_FILE
    ledger.write_text(json.dumps({**json.loads(ledger.read_text()), "version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        opened(tmp_path / "d")


def test_without_zarr_the_cure_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(ImportError, match="pip install zarr"):
        opened(tmp_path / "d")
