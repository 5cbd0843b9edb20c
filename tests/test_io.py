import json
import os
import stat

import pytest
import torch

from pullback import io

KIND = {"format": "test.kind", "version": 2}


@pytest.fixture
def tensors():
    return {
        "points": torch.arange(6, dtype=torch.float64).reshape(2, 3),
        "images": torch.randint(256, (4, 2, 2), dtype=torch.uint8),
        "scalar": torch.tensor(1e-10, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
        "nothing": torch.empty(0, 3),
    }


def test_tensors_and_their_record_come_back_unchanged(tmp_path, tensors):
    record = {"seed": 3, "nested": {"name": "Zürich", "rate": 0.1}}
    io.save_tensors(tmp_path / "a.safetensors", tensors, record, **KIND)
    loaded, found = io.load_tensors(tmp_path / "a.safetensors", **KIND)
    assert found == record
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_that_share_memory_or_are_not_contiguous_are_saved(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    io.save_tensors(tmp_path / "a.safetensors", {"turned": base.mT, "row": base[1], "base": base}, {}, **KIND)
    loaded, _ = io.load_tensors(tmp_path / "a.safetensors", **KIND)
    assert torch.equal(loaded["turned"], base.mT)
    assert torch.equal(loaded["row"], base[1])


def test_the_same_content_gives_the_same_bytes(tmp_path, tensors):
    for name in ("a", "b"):
        io.save_tensors(tmp_path / f"{name}.safetensors", tensors, {"seed": 1}, **KIND)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_record_lies_readable_beside_the_tensors(tmp_path):
    io.save_tensors(tmp_path / "a.safetensors", {}, {"seed": 3}, **KIND)
    assert json.loads((tmp_path / "a.json").read_text()) == {"format": "test.kind", "version": 2, "seed": 3}
    assert io.load_json(tmp_path / "a.json", **KIND) == {"seed": 3}


def test_tensors_are_read_without_the_json_beside_them(tmp_path):
    # the header is the truth: an interruption between the two files must not lose the tensors
    io.save_tensors(tmp_path / "a.safetensors", {}, {"seed": 3}, **KIND)
    (tmp_path / "a.json").unlink()
    assert io.load_tensors(tmp_path / "a.safetensors", **KIND)[1] == {"seed": 3}


def test_an_older_version_is_read_and_a_newer_one_refused(tmp_path):
    io.save_tensors(tmp_path / "a.safetensors", {}, {}, format="test.kind", version=1)
    io.load_tensors(tmp_path / "a.safetensors", format="test.kind", version=2)
    io.save_tensors(tmp_path / "a.safetensors", {}, {}, format="test.kind", version=3)
    for load, name in ((io.load_tensors, "a.safetensors"), (io.load_json, "a.json")):
        with pytest.raises(ValueError, match=r"version 3 of format 'test\.kind', this package reads up to 2: update"):
            load(tmp_path / name, **KIND)


def test_another_format_is_refused(tmp_path):
    io.save_tensors(tmp_path / "a.safetensors", {}, {}, format="other.kind", version=1)
    for load, name in ((io.load_tensors, "a.safetensors"), (io.load_json, "a.json")):
        with pytest.raises(ValueError, match=r"has format 'other\.kind'; wanted 'test\.kind'"):
            load(tmp_path / name, **KIND)


@pytest.mark.parametrize("version", [0, "1", None, 1.5])
def test_a_version_that_is_no_whole_number_is_refused(tmp_path, version):
    (tmp_path / "a.json").write_text(json.dumps({"format": "test.kind", "version": version}))
    with pytest.raises(ValueError, match="wanted a whole number"):
        io.load_json(tmp_path / "a.json", **KIND)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 100, b"PK\x03\x04 a zip file"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file"):
        io.load_tensors(tmp_path / "a.safetensors", **KIND)


def test_a_truncated_file_is_refused(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    io.save_tensors(path, tensors, {}, **KIND)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a safetensors file"):
        io.load_tensors(path, **KIND)


def test_one_flipped_bit_in_a_tensor_is_noticed(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    io.save_tensors(path, tensors, {}, **KIND)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="do not match their checksum"):
        io.load_tensors(path, **KIND)


@pytest.mark.parametrize("metadata", [None, {"made by": "someone"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="was not written by pullback"):
        io.load_tensors(tmp_path / "a.safetensors", **KIND)


def test_a_damaged_record_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({}, tmp_path / "a.safetensors", metadata={"pullback": "{no json"})
    with pytest.raises(ValueError, match="damaged record"):
        io.load_tensors(tmp_path / "a.safetensors", **KIND)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="not a JSON file"):
        io.load_json(tmp_path / "a.json", **KIND)


@pytest.mark.parametrize("content", ["[]", "3", '{"seed": 1}'])
def test_json_of_other_origin_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="names no format"):
        io.load_json(tmp_path / "a.json", **KIND)


def test_a_missing_file_is_named(tmp_path):
    for load in (io.load_json, io.load_tensors):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
            load(tmp_path / "nowhere", **KIND)


def test_another_suffix_than_safetensors_is_refused(tmp_path):
    # beside model.json the record would overwrite the tensors
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        io.save_tensors(tmp_path / "model.json", {}, {}, **KIND)


def test_numbers_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        io.save_tensors(tmp_path / "a.safetensors", {}, {"loss": float("nan")}, **KIND)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a.txt"
    io.write_atomically(path, b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        io.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path):
    io.write_atomically(tmp_path / "a" / "b" / "c.txt", b"x")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"x"


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .*out\.txt: .*; choose a folder you can write to"):
        io.write_atomically(tmp_path / "file" / "out.txt", b"x")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_that_other_new_files_have(tmp_path):
    # temporary files are readable by their owner alone
    io.write_atomically(tmp_path / "a.txt", b"x")
    (tmp_path / "b.txt").write_bytes(b"x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "b.txt")]
    assert modes[0] == modes[1]
