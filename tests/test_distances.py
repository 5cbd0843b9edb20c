import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from pullback import distances
from small import F64, mlp, randn


@pytest.fixture(scope="module")
def metric():
    return pb.Pullback(mlp())


@pytest.fixture(scope="module")
def codes():
    return randn(60, 2)


@given(st.integers(0, 10**6), st.integers(2, 3))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_the_matrix_is_a_metric_and_not_below_geodesics(seed, d):
    metric, codes = pb.Pullback(mlp(d, seed=seed)), randn(25, d, seed=seed)
    found = pb.distance_matrix(metric, codes, n_neighbors=6)
    assert (found.diagonal() == 0).all()
    assert torch.allclose(found, found.mT, rtol=1e-12)
    assert (found[:, None] <= found[:, :, None] + found[None] + 1e-12).all()
    graph = pb.knn_graph(metric, codes, 6)
    path = pb.geodesic(metric, codes[:5], codes[5:10], starts=("straight", "bends", graph))
    assert (found[range(5), range(5, 10)] >= (path.length - path.length_error) * (1 - 5e-3)).all()  # edges have errors


def test_entries_are_those_of_the_graph(metric, codes):
    graph = pb.knn_graph(metric, codes, 6)
    assert torch.equal(pb.distance_matrix(metric, codes, n_neighbors=6), graph.distances(range(60)))
    assert torch.equal(pb.distance_matrix(metric, codes, graph=graph), graph.distances(range(60)))


def test_geodesics_of_all_pairs_on_a_sphere_are_great_circles():
    sphere, codes = pb.surfaces.Sphere(), 0.5 * randn(12, 2)
    found = pb.distance_matrix(pb.Pullback(sphere), codes, method="geodesic", tol=1e-6)
    assert torch.allclose(found, sphere.distance(codes[:, None], codes), rtol=1e-5, atol=1e-12)
    assert torch.equal(found, found.mT)


def test_codes_inserted_into_a_grid_have_the_distances_of_the_grid():
    sphere, codes = pb.surfaces.Sphere(), 0.5 * randn(20, 2)
    metric = pb.Pullback(sphere)
    grid = pb.grid_graph(metric, torch.tensor([[-2.0, 2.0], [-2.0, 2.0]], dtype=F64), 61).insert(metric, codes)
    found = pb.distance_matrix(metric, codes, graph=grid)
    exact = sphere.distance(codes[:, None], codes)
    ratio = (found / exact)[exact > 0.2]
    assert (ratio > 1 - 1e-9).all()
    assert ratio.median() < 1.02


def test_refined_pairs_have_geodesic_distances_and_others_stay(metric, codes):
    pairs = torch.tensor([[3, 17], [17, 40], [40, 3], [5, 5], [17, 3]])
    plain = pb.distance_matrix(metric, codes, n_neighbors=4)
    found = pb.distance_matrix(metric, codes, n_neighbors=4, refine=pairs, tol=1e-5)
    changed = (found != plain).nonzero().tolist()
    assert sorted(changed) == sorted([[i, j] for i, j in ((3, 17), (17, 40), (40, 3))] + [[17, 3], [40, 17], [3, 40]])
    exact = pb.distance(metric, codes[[3, 17, 40]], codes[[17, 40, 3]], starts=("straight", "bends"), tol=1e-5)
    assert torch.allclose(found[[3, 17, 40], [17, 40, 3]], exact, rtol=2e-4)
    assert torch.equal(found, found.mT) or torch.allclose(found, found.mT, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
def test_blocks_give_the_same_matrix_as_one_piece(metric, codes, size):
    assert torch.equal(pb.distance_matrix(metric, codes, block=size), pb.distance_matrix(metric, codes))


def test_threads_and_processes_give_the_same_matrix_and_leave_no_files(metric, codes, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    whole = pb.distance_matrix(metric, codes)
    for kind in (ThreadPoolExecutor, ProcessPoolExecutor):
        with kind(2) as executor:
            assert torch.equal(pb.distance_matrix(metric, codes, block=7, executor=executor), whole)
    assert not list(tmp_path.iterdir())


def test_the_matrix_has_the_dtype_of_the_codes():
    metric, codes = pb.Pullback(mlp().float()), randn(30, 2).float()
    assert pb.distance_matrix(metric, codes, n_neighbors=5).dtype == torch.float32


def test_duplicates_and_parts_that_no_path_joins():
    line = torch.cat((torch.linspace(0, 1, 10, dtype=F64), torch.zeros(1, dtype=F64)))[:, None]
    plane = pb.Pullback(nn.Identity())
    found = pb.distance_matrix(plane, line, n_neighbors=3)
    assert float(found[0, 10]) == 0
    broken = pb.Graph.from_edges(line, [(0, 1)], [1.0])
    assert torch.isinf(pb.distance_matrix(plane, line, graph=broken)[0, 5])


def test_scikit_learn_takes_it(metric):
    from sklearn.cluster import DBSCAN
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import KNeighborsClassifier

    codes = torch.cat((0.2 * randn(30, 2), 0.2 * randn(30, 2, seed=1) + 3))
    labels = np.repeat([0, 1], 30)
    found = pb.distance_matrix(metric, codes, n_neighbors=5).numpy()
    assert len(set(DBSCAN(eps=float(np.quantile(found, 0.2)), metric="precomputed").fit_predict(found))) >= 2
    assert silhouette_score(found, labels, metric="precomputed") > 0.5
    assert KNeighborsClassifier(3, metric="precomputed").fit(found, labels).score(found, labels) > 0.95


# on disk


def test_a_matrix_on_disk_is_that_in_memory_and_a_second_call_only_reads(metric, codes, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    whole = pb.distance_matrix(metric, codes)
    found = pb.distance_matrix(metric, codes, out=tmp_path / "d", block=13)
    assert np.array_equal(found[:], whole.numpy())
    assert found.chunks == (13, 60)
    monkeypatch.setattr(distances, "_block", lambda *_: pytest.fail("nothing was left to compute"))
    assert np.array_equal(pb.distance_matrix(metric, codes, out=tmp_path / "d", block=13)[:], whole.numpy())
    with pytest.raises(ValueError, match=r"holds another matrix .*graph"):
        pb.distance_matrix(metric, codes + 1e-9, out=tmp_path / "d", block=13)


def test_an_interruption_keeps_finished_blocks(metric, codes, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    done = []
    block = distances._block

    def stopped(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments[-2])
        return block(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(distances, "_block", stopped)
        with pytest.raises(KeyboardInterrupt):
            pb.distance_matrix(metric, codes, out=tmp_path / "d", block=10)
    again = []
    monkeypatch.setattr(distances, "_block", lambda *arguments: again.append(arguments[-2]) or block(*arguments))
    found = pb.distance_matrix(metric, codes, out=tmp_path / "d", block=10)
    assert done == [0, 10, 20]
    assert again == [30, 40, 50]
    assert np.array_equal(found[:], pb.distance_matrix(metric, codes).numpy())


def test_a_killed_run_goes_on_and_gives_the_same_matrix_bit_for_bit(metric, codes, tmp_path):
    pytest.importorskip("zarr")
    program = """
    import os, signal, sys
    import pullback as pb
    from pullback import distances, stores
    sys.path.insert(0, sys.argv[2])
    from small import mlp, randn

    write, n = stores.io.write_atomically, []
    def dying(path, content):
        n.append(0)
        if len(n) == 4:
            os.kill(os.getpid(), signal.SIGKILL)  # the block is written, its entry in the ledger is not
        write(path, content)
    stores.io.write_atomically = dying
    pb.distance_matrix(pb.Pullback(mlp()), randn(60, 2), out=sys.argv[1], block=10)
    """
    tests = os.path.dirname(__file__)
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "d"), tests]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    found = pb.distance_matrix(metric, codes, out=tmp_path / "d", block=10)
    assert np.array_equal(found[:], pb.distance_matrix(metric, codes).numpy())


def test_a_disk_that_is_full_leaves_nothing_half_done(metric, codes, tmp_path):
    pytest.importorskip("zarr")
    program = """
    import resource, sys
    import pullback as pb
    from pullback import distances
    sys.path.insert(0, sys.argv[2])
    from small import mlp, randn

    block, n = distances._block, []
    def filling(*arguments):
        n.append(0)
        if len(n) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # less than a block: writing fails half way
        return block(*arguments)
    distances._block = filling
    try:
        pb.distance_matrix(pb.Pullback(mlp()), randn(60, 2), out=sys.argv[1], block=10)
    except OSError as error:
        sys.exit(7)
    """
    tests = os.path.dirname(__file__)
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "d"), tests]
    assert subprocess.run(command, check=False).returncode == 7
    found = pb.distance_matrix(metric, codes, out=tmp_path / "d", block=10)
    assert np.array_equal(found[:], pb.distance_matrix(metric, codes).numpy())


def test_shards_make_one_matrix_each_its_own_blocks(metric, codes, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    block, made = distances._block, []
    monkeypatch.setattr(distances, "_block", lambda *arguments: made.append(arguments[-2]) or block(*arguments))
    for i in (2, 0, 1):
        assert np.isnan(pb.distance_matrix(metric, codes, out=tmp_path / "d", block=10, shard=(i, 3))[:]).any() == (
            i != 1
        )
    assert made == [20, 50, 0, 30, 10, 40]
    found = pb.distance_matrix(metric, codes, out=tmp_path / "d", block=10)
    assert len(made) == 6
    assert np.array_equal(found[:], pb.distance_matrix(metric, codes).numpy())


# bad input


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "dijkstra"}, "`method` is 'dijkstra'"),
        ({"block": 0}, "`block` is 0"),
        ({"tol": 2.0}, "`tol` is 2.0"),
        ({"shard": (0, 2)}, "`shard` goes with `out`"),
        ({"shard": (2, 2), "out": "d"}, r"`shard` is \(2, 2\): want \(i, m\) with i from 0 to m - 1"),
        ({"shard": (0, 2), "out": "d", "resume": False}, "`shard` does not go with resume=False"),
        ({"refine": [1, 2, 3]}, r"`refine` has shape \(3,\): want pairs"),
        ({"refine": [[0, 60]]}, "`refine` reaches from 0 to 60"),
        ({"method": "geodesic", "refine": [[0, 1]]}, "`refine` goes with method='graph'"),
        ({"n_neighbors": 60}, "`codes` holds 60 points but `n_neighbors` is 60"),
    ],
)
def test_unfit_settings_are_named(metric, codes, settings, text):
    with pytest.raises(ValueError, match=text):
        pb.distance_matrix(metric, codes, **settings)


def test_a_graph_of_other_points_is_refused(metric, codes):
    with pytest.raises(ValueError, match=r"neither the first nor the last 60 are the codes: make it by knn_graph"):
        pb.distance_matrix(metric, codes, graph=pb.knn_graph(metric, randn(80, 2, seed=5)))


def test_what_is_no_metric_or_no_points_is_refused(metric, codes):
    with pytest.raises(TypeError, match="`metric` is a Sequential"):
        pb.distance_matrix(mlp(), codes)
    with pytest.raises(ValueError, match=r"`codes` has shape \(2,\)"):
        pb.distance_matrix(metric, codes[0])
    with pytest.raises(ValueError, match=r"`codes` holds NaN or infinity at 1 of 60 points .first: 7"):
        pb.distance_matrix(metric, torch.where(torch.arange(60)[:, None] == 7, torch.nan, codes))
