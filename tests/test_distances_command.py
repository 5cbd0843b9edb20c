"""``pullback distances``."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.cli import main
from pullback.graphs import Graph

zarr = pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def model():
    return pb.models.pretrained("mnist012")


@pytest.fixture
def codes(model, tmp_path):
    np.savez(tmp_path / "codes.npz", codes=model.codes[:90].numpy())
    return str(tmp_path / "codes.npz")


def run(*arguments):
    return main(["distances", "mnist012", *map(str, arguments)])


def matrix(folder):
    return zarr.open_array(folder, mode="r")[:]


def test_the_matrix_is_that_of_the_package_and_the_graph_stands_beside_it(model, codes, tmp_path, capsys):
    assert run(codes, "--out", tmp_path / "D.zarr", "--neighbors", 6, "--block", 20, "--workers", 1) == 0
    metric = pb.Pullback(model.decoder)
    truth = pb.distance_matrix(metric, model.codes[:90], n_neighbors=6)
    assert np.array_equal(matrix(tmp_path / "D.zarr"), truth.numpy())
    graph = Graph.load(tmp_path / "D.graph.safetensors")
    assert torch.equal(graph.distances(range(90)), truth)
    assert "90 x 90 distances" in capsys.readouterr().out


def test_shares_in_processes_of_their_own_make_one_matrix(codes, tmp_path):
    command = [sys.executable, "-m", "pullback.cli", "distances", "mnist012", codes, "--out", str(tmp_path / "D.zarr")]
    command += ["--neighbors", "6", "--block", "10"]
    shares = [subprocess.Popen([*command, "--shard", f"{i}/2"]) for i in range(2)]
    assert [share.wait() for share in shares] == [0, 0]
    together = matrix(tmp_path / "D.zarr")
    assert run(codes, "--out", tmp_path / "one.zarr", "--neighbors", 6, "--workers", 2) == 0
    assert np.array_equal(together, matrix(tmp_path / "one.zarr"))


def test_a_killed_run_goes_on_with_the_graph_that_it_built(codes, tmp_path, monkeypatch):
    out = tmp_path / "D.zarr"
    program = """
import sys, time
from pullback import distances, cli
block = distances._block
distances._block = lambda *arguments: time.sleep(0.5) or block(*arguments)
sys.exit(cli.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", program, "distances", "mnist012", codes, "--out", str(out)]
    process = subprocess.Popen([*command, "--neighbors", "6", "--block", "10", "--workers", "1"])
    deadline = time.monotonic() + 60
    while len(list(out.glob("blocks/*.sha256"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("blocks/*.sha256")}
    assert 2 <= len(finished) < 9
    monkeypatch.setattr("pullback.commands.distances.knn_graph", lambda *_: pytest.fail("the graph is there"))
    assert run(codes, "--out", out, "--neighbors", 6, "--block", 10, "--workers", 1) == 0
    assert {name: (out / "blocks" / name).stat().st_mtime_ns for name in finished} == finished
    assert np.isfinite(matrix(out)).all()


def test_a_run_of_something_else_is_refused_unless_it_is_to_be_overwritten(codes, model, tmp_path, capsys):
    out = tmp_path / "D.zarr"
    assert run(codes, "--out", out, "--neighbors", 6, "--workers", 1) == 0
    np.save(tmp_path / "other.npy", model.codes[5:95].numpy())
    assert run(tmp_path / "other.npy", "--out", out, "--neighbors", 7, "--workers", 1) == 2
    assert "is of a run with other codes and neighbors: choose another --out" in capsys.readouterr().err
    assert run(tmp_path / "other.npy", "--out", out, "--neighbors", 7, "--workers", 1, "--no-resume") == 0
    assert np.array_equal(
        matrix(out), pb.distance_matrix(pb.Pullback(model.decoder), model.codes[5:95], n_neighbors=7).numpy()
    )


def test_bad_input_is_one_line(codes, tmp_path, capsys, monkeypatch):
    for share in ("2/2", "x", "-1/3", "1"):
        with pytest.raises(SystemExit):
            run(codes, "--out", tmp_path / "D.zarr", f"--shard={share}")
        assert "is not a share such as 0/32" in capsys.readouterr().err
    assert run(codes, "--out", tmp_path / "D.zarr", "--shard", "0/2", "--no-resume") == 2
    assert "--no-resume does not go with --shard" in capsys.readouterr().err
    assert run(codes, "--out", tmp_path / "D.zarr", "--neighbors", 90) == 2
    assert "`n_neighbors` is 90: give 91 points" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert run(codes, "--out", tmp_path / "D.zarr") == 2
    assert "pip install zarr" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "D.zarr")
