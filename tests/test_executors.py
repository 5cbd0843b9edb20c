"""RayExecutor: on one node by default, on several of which one dies with `-m slow`. Without Ray these are skipped."""

import os
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch

import pullback as pb
from pullback import executors
from pullback.stores import MatrixStore
from small import mlp, randn

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def metric():
    return pb.Pullback(mlp())


@pytest.fixture(scope="module")
def codes():
    return randn(60, 2)


@pytest.fixture(scope="module")
def ray():
    """Ray with files and a password for these tests alone, not in the user's home nor next to his clusters."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-") as folder:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
        yield ray
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def node(ray):
    """Ray on this machine alone, with room for two calls; nothing of it is left afterwards."""
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def executor(node):
    with pb.RayExecutor() as executor:
        yield executor


def _mark(folder, name):
    """Leave a file behind, a new one each time."""
    (Path(folder) / f"{name}.{os.getpid()}.{time.monotonic_ns()}").touch()


def _marks(folder, name="*"):
    return sorted(path.name for path in Path(folder).glob(f"{name}.*"))


# one node


def test_ray_gives_the_same_matrix_bit_for_bit(executor, metric, codes):
    settings = {"n_neighbors": 4, "block": 7}
    whole = pb.distance_matrix(metric, codes, **settings)
    assert torch.equal(pb.distance_matrix(metric, codes, executor=executor, **settings), whole)
    refined = pb.distance_matrix(metric, codes, refine=[[3, 17], [40, 3]], **settings)
    assert not torch.equal(refined, whole)
    found = pb.distance_matrix(metric, codes, refine=[[3, 17], [40, 3]], executor=executor, **settings)
    assert torch.equal(found, refined)


def test_ray_writes_what_one_piece_writes(executor, metric, codes, tmp_path):
    pytest.importorskip("zarr")
    found = pb.distance_matrix(metric, codes, out=tmp_path / "d", block=13, executor=executor)
    assert np.array_equal(found[:], pb.distance_matrix(metric, codes).numpy())


class _Heavy:
    """Says each time that it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return _loaded, (self.folder,)


def _loaded(folder):
    _mark(folder, "loaded")
    return _Heavy(folder)


def _who(heavy, number, *, other=None):
    return os.getpid(), type(heavy).__name__, type(other).__name__, number


def test_what_is_shared_is_loaded_once_by_each_worker(executor, tmp_path):
    heavy = executor.share(_Heavy(str(tmp_path)))
    found = [executor.submit(_who, heavy, k, other=heavy) for k in range(20)]
    pids, kinds, others, numbers = zip(*(future.result() for future in found), strict=True)
    assert set(kinds) == set(others) == {"_Heavy"}
    assert numbers == tuple(range(20))
    assert len(_marks(tmp_path)) == len(set(pids))


def test_a_shared_metric_solves_geodesics_in_workers(executor, metric, codes):
    starts, ends = codes[:6].split(3), codes[6:12].split(3)
    found = torch.cat(list(executor.map(pb.distance, [executor.share(metric)] * 2, starts, ends)))
    assert torch.allclose(found, pb.distance(metric, codes[:6], codes[6:12]), rtol=1e-9)


@pytest.mark.slow
def test_the_scripts_of_the_page_on_scaling_run(node, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)
    scripts = re.findall(r"^```\{code-block\} python\n(.*?)^```$", PAGE.read_text(encoding="utf8"), re.M | re.S)
    names = {}
    exec("".join(scripts), names)
    metric, codes = names["metric"], names["codes"]
    assert np.array_equal(names["distances"][:], pb.distance_matrix(metric, codes).numpy())
    assert torch.isclose(names["total"], pb.distance(metric, codes[:20], codes[20:40]).sum(), rtol=1e-6)


def _raise(folder):
    _mark(folder, "call")
    raise KeyError("here")


def test_errors_arrive_as_they_were_raised_and_are_not_retried(executor, tmp_path):
    with pytest.raises(KeyError, match="here") as found:
        executor.submit(_raise, str(tmp_path)).result(60)
    assert type(found.value) is KeyError
    assert "_raise" in str(found.value.__cause__)  # where in the worker it was
    assert len(_marks(tmp_path)) == 1


def test_what_cannot_be_pickled_is_an_error_of_its_future_alone(executor):
    bad, good = executor.submit(print, threading.Lock()), executor.submit(abs, -3)
    with pytest.raises(TypeError, match="pickle"):
        bad.result(60)
    assert good.result(60) == 3


def test_unfit_settings_are_named(node):
    for settings, text in (
        ({"num_cpus": 0}, "`num_cpus` is 0, `num_gpus` 0"),
        ({"num_gpus": -1}, "`num_gpus` -1"),
        ({"max_in_flight": 0}, "`max_in_flight` is 0"),
        ({"max_retries": -2}, "`max_retries` is -2"),
        ({"address": "192.0.2.7:1"}, r"`address` is '192.0.2.7:1' but this process is connected to"),
    ):
        with pytest.raises(ValueError, match=text):
            pb.RayExecutor(**settings)
    with pytest.warns(pb.PullbackWarning, match=r"a call takes 1 GPU and the cluster has 0: .* check num_gpus="):
        pb.RayExecutor(num_gpus=1).shutdown()
    with pb.RayExecutor(num_cpus=0.5) as executor:
        assert executor.max_workers == 4
        assert executor.max_in_flight == 8


def _wait_for(folder, seconds=60.0):
    """Run until there is a file that says to stop."""
    _mark(folder, "begun")
    end = time.monotonic() + seconds
    while not (Path(folder) / "stop").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return "stopped"


def test_calls_wait_here_beyond_those_in_flight(node, tmp_path):
    with pb.RayExecutor(max_in_flight=1) as executor:
        first, *others = [executor.submit(_wait_for, str(tmp_path)) for _ in range(4)]
        time.sleep(0.5)
        assert len(_marks(tmp_path, "begun")) <= 1
        assert [promise.reference is None for promise in (first, *others)] == [False, True, True, True]
        assert others[1].cancel()
        (tmp_path / "stop").touch()
        assert [future.result(60) for future in (first, others[0], others[2])] == ["stopped"] * 3
    assert len(_marks(tmp_path, "begun")) == 3
    with pytest.raises(CancelledError):
        others[1].result()


def test_calls_that_have_begun_can_be_cancelled(executor, tmp_path):
    future = executor.submit(_wait_for, str(tmp_path))
    while not _marks(tmp_path, "begun"):
        time.sleep(0.01)
    assert future.cancel()
    assert wait([future], 50).done == {future}  # sooner than it would have ended
    with pytest.raises(CancelledError):
        future.result()
    assert executor.submit(abs, -1).result(60) == 1


def test_where_interrupts_are_ignored_as_by_scripts_calls_can_be_cancelled_all_the_same():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert executors._call(abs, (-1,), {}) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_cancellation_that_ray_loses_is_repeated(executor, node, tmp_path, monkeypatch):
    heard = node.cancel
    told = []

    def cancel(reference):
        told.append(reference)
        if len(told) > 1:
            heard(reference)

    monkeypatch.setattr(executors, "_AGAIN", 0.2)
    monkeypatch.setattr(node, "cancel", cancel)
    future = executor.submit(_wait_for, str(tmp_path))
    while not _marks(tmp_path, "begun"):
        time.sleep(0.01)
    assert future.cancel()
    assert wait([future], 50).done == {future}
    assert len(told) > 1
    assert executor.submit(abs, -1).result(60) == 1


def test_an_error_in_the_block_gives_up_what_is_left_and_does_not_wait_for_it(node, tmp_path):
    begin, futures = time.monotonic(), []

    def interrupted():
        with pb.RayExecutor() as executor:
            futures.extend(executor.submit(_wait_for, str(tmp_path)) for _ in range(10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < 50
    assert all(future.cancelled() for future in futures)


def test_after_a_shutdown_what_was_given_is_finished_and_nothing_more_is_taken(node):
    executor = pb.RayExecutor()
    futures = [executor.submit(abs, -k) for k in range(10)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="make a new one"):
        executor.submit(abs, -1)
    assert [future.result(60) for future in futures] == list(range(10))
    executor.shutdown()
    assert node.is_initialized()  # it was there before


def _killed_at_first(folder):
    _mark(folder, "call")
    if len(_marks(folder)) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@pytest.mark.slow
def test_a_call_whose_worker_dies_is_made_again(executor, tmp_path):
    assert executor.submit(_killed_at_first, str(tmp_path)).result(60) == "done"
    assert len(_marks(tmp_path)) == 3


@pytest.mark.slow
def test_a_call_that_kills_each_worker_fails_in_the_end(node, tmp_path):
    with pb.RayExecutor(max_retries=1) as executor:
        future = executor.submit(_killed_at_first, str(tmp_path))
        with pytest.raises(node.exceptions.WorkerCrashedError):
            future.result(60)
    assert len(_marks(tmp_path)) == 2


# without Ray


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "pullback\[ray\]"'):
        pb.RayExecutor()


def test_each_worker_of_an_executor_has_a_block_and_few_wait(metric, codes):
    class Counting(ThreadPoolExecutor):
        flying, most = 0, 0

        def submit(self, *arguments):
            self.flying += 1
            self.most = max(self.most, self.flying)
            future = super().submit(*arguments)
            result = future.result
            future.result = lambda: (setattr(self, "flying", self.flying - 1), result())[1]
            return future

    for workers in (2, 30):
        with Counting(workers) as executor:
            found = pb.distance_matrix(metric, codes, block=1, executor=executor)
        assert torch.equal(found, pb.distance_matrix(metric, codes))
        assert workers < executor.most <= workers + 8


# several nodes


@pytest.fixture
def cluster(ray):
    """A cluster on this machine: the driver's node, which works for nobody, and two with room for one call each."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}  # to notice the dead
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class _Marking(executors.RayExecutor):
    """Marks each block when it is begun, with the node that works on it, and takes its time."""

    folder = ""

    def submit(self, fn, /, *args, **kwargs):
        return super().submit(_marked, self.folder, fn, *args, **kwargs)


def _marked(folder, block, *arguments):
    import ray

    _mark(folder, f"{arguments[-2]}.{ray.get_runtime_context().get_node_id()}")
    time.sleep(0.5)
    return block(*arguments)


@pytest.mark.slow
def test_a_node_dies_in_mid_run_and_the_matrix_is_that_of_one_piece(ray, cluster, metric, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    codes = randn(400, 2)  # a block is larger than what Ray sends with the answer: it dies with its node
    out, marks, kept = tmp_path / "d", tmp_path / "marks", []
    marks.mkdir()
    put = MatrixStore.put

    def put_and_kill(store, start, block):
        put(store, start, block)
        whole = [path.stem for path in (out / "blocks").glob("*.sha256")]
        if len(whole) != 3:
            return
        kept.extend(whole)
        before, fresh = set(_marks(marks)), set()
        while not fresh:
            fresh = set(_marks(marks)) - before
            time.sleep(0.005)
        busy = fresh.pop().split(".")[1]
        cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == busy), allow_graceful=False)

    monkeypatch.setattr(MatrixStore, "put", put_and_kill)
    with _Marking(cluster.address) as executor:
        executor.folder = str(marks)
        found = pb.distance_matrix(metric, codes, out=out, block=40, executor=executor)[:]
        begun = [mark.split(".")[0] for mark in _marks(marks)]
        again = pb.distance_matrix(metric, codes, out=out, block=40, executor=executor)[:]
    assert not ray.is_initialized()  # the executor closes what it has opened
    assert np.array_equal(found, pb.distance_matrix(metric, codes).numpy())
    assert np.array_equal(again, found)
    assert len(begun) == len(_marks(marks))  # the second call had nothing to do
    assert len({mark.split(".")[1] for mark in _marks(marks)}) == 2
    times = {start: begun.count(start) for start in map(str, range(0, 400, 40))}
    assert min(times.values()) == 1
    assert max(times.values()) > 1  # what the dead node worked on
    assert [times[start] for start in kept] == [1] * 3  # what had been written was not made again
    assert len(cluster.worker_nodes) == 1
