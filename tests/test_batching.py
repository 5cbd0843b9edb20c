import os

import pytest
import torch

from pullback import _batching
from pullback._batching import chunk_size, free_memory, map_chunks, map_points

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 11])
def test_chunks_give_what_the_whole_gives_in_order(size):
    a, b = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    together = map_chunks(lambda a, b: (a * b[:, None], a.sum(1)), (a, b), 10)
    apart = map_chunks(lambda a, b: (a * b[:, None], a.sum(1)), (a, b), size)
    for one, many in zip(together, apart, strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize(("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (100, 33, [25] * 4), (5, 5, [5]), (0, 3, [0])])
def test_no_chunk_is_larger_than_asked_and_the_last_is_no_crumb(n, size, sizes):
    seen = []
    map_chunks(lambda z: (seen.append(len(z)), (z,))[1], (torch.zeros(n, 2),), size)
    assert seen == sizes


@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (0,), (2, 0)])
def test_points_of_any_batch_shape_come_back_in_it(batch):
    z, v = torch.randn(*batch, 4), torch.randn(*batch, 3)
    scalar, vector, matrix = map_points(lambda z, v: (z.sum(1), v, z[:, :, None] * v[:, None]), (z, v), 2)
    assert torch.equal(scalar, z.sum(-1))
    assert torch.equal(vector, v)
    assert torch.equal(matrix, z[..., :, None] * v[..., None, :])


def test_no_graph_is_made_unless_a_tensor_requires_gradients():
    weight, z, seen = torch.ones(2, requires_grad=True), torch.ones(5, 2), []

    def weighted(z):
        seen.append((len(z), torch.is_grad_enabled()))
        return (z * weight,)

    assert not map_points(weighted, (z,), 2)[0].requires_grad
    assert seen == [(2, False), (2, False), (1, False)]
    seen.clear()
    (result,) = map_points(weighted, (z.requires_grad_(),), 2)
    assert result.requires_grad
    assert seen == [(5, True)]
    with torch.no_grad():
        assert not map_points(weighted, (z,), 2)[0].requires_grad


def test_results_are_written_into_place_one_chunk_at_a_time():
    alive, most = [], []

    def tracked(z):
        alive[:] = [reference for reference in alive if reference() is not None]
        result = z.clone()
        alive.append(_weak(result))
        most.append(len(alive))
        return (result,)

    map_chunks(tracked, (torch.zeros(20, 2),), 2)
    assert max(most) == 1


def _weak(tensor):
    import weakref

    return weakref.ref(tensor)


def test_a_chunk_fits_the_memory_and_holds_one_point_at_least():
    assert chunk_size(1000, CUDA, 100_000) == 100
    assert chunk_size(1000, CPU, 20_000) == 20
    assert chunk_size(1000, CUDA, 100_000, peak=4000) == 25
    assert chunk_size(1000, CUDA, 10) == chunk_size(10**12, CPU) == chunk_size(1000, CPU, 10, peak=10**6) == 1
    assert chunk_size(0, CUDA, 100) == 100


def test_a_chunk_on_a_cpu_stays_in_the_cache():
    plenty = 1 << 40
    assert chunk_size(1000, CPU, plenty) * 1000 <= _batching._CACHE < (chunk_size(1000, CPU, plenty) + 1) * 1000
    assert chunk_size(_batching._CACHE, CPU, plenty) == _batching._SMALLEST
    assert chunk_size(1000, CUDA, plenty) == plenty // 1000


def test_a_quarter_of_what_is_free_is_taken_where_no_budget_is_given(monkeypatch):
    monkeypatch.setattr(_batching, "free_memory", lambda device: 4000 if device == CUDA else 400)
    assert chunk_size(10, CUDA) == 100
    assert chunk_size(10, CPU) == 10


def test_free_memory_is_some_of_what_there_is(monkeypatch):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory(CPU) < total
    monkeypatch.setattr(os, "sysconf_names", {})
    assert free_memory(CPU) == 4 << 30


@pytest.mark.gpu
def test_free_memory_of_a_gpu_is_its_own():
    free = free_memory(CUDA)
    block = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    assert free_memory(CUDA) <= free - len(block) // 2
