import json
from dataclasses import fields

import pytest
import torch

import pullback as pb
from pullback import io
from pullback.geodesics import files
from pullback.geodesics.files import FORMAT, VERSION, load, save

F64 = torch.float64


def solution(dtype=F64, candidates=False, batch=(3,)):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn((*batch, *shape), generator=generator, dtype=dtype)

    codes = torch.full(batch, pb.Status.WALL.code)
    length = draw()
    if codes.numel() > 1:
        length[0] = torch.nan
        codes[-1] = pb.Status.NON_SMOOTH.code
    counts = torch.arange(codes.numel()).reshape(batch)
    lengths = draw(2) if candidates else None
    return pb.Solution(pb.Curve(draw(5, 2)), length, draw(), draw(), codes, counts, counts * 10, lengths)


def same(one, other):
    assert type(one) is type(other)
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, pb.Curve):
            mine, its = mine.nodes, its.nodes
        if mine is None:
            assert its is None
            continue
        assert mine.dtype == its.dtype
        assert mine.shape == its.shape
        assert torch.equal(mine.nan_to_num(-7.0), its.nan_to_num(-7.0))
        assert torch.equal(mine.isnan(), its.isnan())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2), (0,)])
def test_a_solution_comes_back_bit_for_bit(tmp_path, dtype, candidates, batch):
    path = solution(dtype, candidates, batch)
    save(tmp_path / "a.safetensors", path)
    same(load(tmp_path / "a.safetensors"), path)


def test_trajectories_and_curves_come_back_as_what_they_are(tmp_path):
    metric = pb.Pullback(pb.surfaces.Sphere())
    z, v = torch.zeros(3, 2, dtype=F64), torch.eye(3, 2, dtype=F64)
    trajectory = pb.exp(metric, z[:2], v[:2])
    save(tmp_path / "t.safetensors", trajectory)
    same(load(tmp_path / "t.safetensors"), trajectory)
    save(tmp_path / "c.safetensors", trajectory.curve)
    loaded = load(str(tmp_path / "c.safetensors"))
    assert isinstance(loaded, pb.Curve)
    assert torch.equal(loaded.nodes, trajectory.curve.nodes)


def test_what_requires_gradients_is_saved_without(tmp_path):
    curve = pb.Curve(torch.zeros(3, 2, dtype=F64, requires_grad=True))
    save(tmp_path / "a.safetensors", curve)
    assert not load(tmp_path / "a.safetensors").nodes.requires_grad


def rewrite(path, change):
    """Save again with another record."""
    tensors, record = io.load_tensors(path, format=FORMAT, version=VERSION)
    change(record)
    io.save_tensors(path, tensors, record, format=FORMAT, version=VERSION)


def test_statuses_are_kept_by_name_when_their_order_changes(tmp_path):
    path = solution()
    save(tmp_path / "a.safetensors", path)
    tensors, record = io.load_tensors(tmp_path / "a.safetensors", format=FORMAT, version=VERSION)
    assert set(record["statuses"]) == set(pb.Status.__members__)
    names = record["statuses"][::-1]  # as a version with another order would have written it
    tensors["codes"] = len(names) - 1 - tensors["codes"]
    io.save_tensors(tmp_path / "a.safetensors", tensors, {**record, "statuses": names}, format=FORMAT, version=VERSION)
    same(load(tmp_path / "a.safetensors"), path)


def test_a_status_that_is_not_known_asks_for_an_update_only_where_it_occurs(tmp_path):
    save(tmp_path / "a.safetensors", solution())
    rewrite(tmp_path / "a.safetensors", lambda record: record["statuses"].append("TUNNELED"))
    same(load(tmp_path / "a.safetensors"), solution())
    rewrite(
        tmp_path / "a.safetensors",
        lambda record: record.update(statuses=["TUNNELED" if s == "WALL" else s for s in record["statuses"]]),
    )
    with pytest.raises(ValueError, match=r"a\.safetensors has the status TUNNELED.*update pullback"):
        load(tmp_path / "a.safetensors")


def test_files_that_are_missing_foreign_newer_or_damaged_are_refused_by_name(tmp_path, monkeypatch):
    name = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors"):
        load(name)
    io.save_tensors(name, {"weight": torch.zeros(3)}, {}, format="pullback.rbfvae", version=1)
    with pytest.raises(ValueError, match=r"a\.safetensors has format 'pullback\.rbfvae'; wanted 'pullback\.geodesics'"):
        load(name)
    monkeypatch.setattr(files, "VERSION", VERSION + 1)
    save(name, solution())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="update pullback"):
        load(name)
    save(name, solution())
    rewrite(name, lambda record: record.update(kind="Surface"))
    with pytest.raises(ValueError, match=r"holds a 'Surface'.*update pullback"):
        load(name)
    save(name, solution())
    content = bytearray(name.read_bytes())
    content[-9] ^= 1
    name.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors.*damaged"):
        load(name)
    name.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file"):
        load(name)


def test_what_is_no_solution_or_has_a_wrong_name_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`solution` is a Tensor: give a Solution, a Trajectory or a Curve"):
        save(tmp_path / "a.safetensors", torch.zeros(3))
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        save(tmp_path / "a.npz", solution())
    assert list(tmp_path.iterdir()) == []


def test_the_record_lies_readable_beside_the_file(tmp_path):
    save(tmp_path / "a.safetensors", solution())
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["kind"] == "Solution"
    assert record["shape"] == [3, 5, 2]


def test_a_loaded_curve_saves_most_of_the_work(tmp_path):
    model = pb.models.pretrained("mnist012")
    metric = pb.Pullback(model.decoder)
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(1))[:16]
    a, b = model.codes[chosen[:8]], model.codes[chosen[8:]]
    path = pb.geodesic(metric, a, b)
    save(tmp_path / "a.safetensors", path)
    again = pb.geodesic(metric, a, b, init=load(tmp_path / "a.safetensors").curve)
    assert again.converged.all()
    assert (again.length - path.length).abs().max() < 1e-3
    assert 3 * again.evaluations.sum() < path.evaluations.sum()


@pytest.mark.gpu
def test_a_file_is_loaded_to_the_device_that_is_asked_for(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    save(tmp_path / "a.safetensors", solution())
    loaded = load(tmp_path / "a.safetensors", device="cuda")
    assert loaded.curve.nodes.is_cuda
    assert loaded.codes.is_cuda
