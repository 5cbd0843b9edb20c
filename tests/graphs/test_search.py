"""One path from both ends, points between codes, and neighbors by faiss."""

import builtins
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra
from torch import nn

import pullback as pb
from pullback.graphs import edges as edges_module
from pullback.graphs import search
from pullback.graphs.edges import nearest
from small import F64, mlp, randn


@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_a_path_from_both_ends_is_a_shortest_one_whatever_the_first_radius(seed, d, radius):
    graph = pb.knn_graph(pb.Pullback(mlp(d, seed=seed)), randn(60, d, seed=seed), 4)
    i, j = np.random.default_rng(seed).choice(60, 2, replace=False).tolist()
    stops, length = search.between(graph.edges, i, j, radius)
    assert length == pytest.approx(dijkstra(graph.edges, indices=i)[j], rel=1e-12)
    assert [stops[0], stops[-1]] == [i, j]
    assert len(set(stops)) == len(stops)
    assert sum(graph.edges[a, b] for a, b in itertools.pairwise(stops)) == pytest.approx(length, rel=1e-12)


def test_the_search_stays_near_its_ends(monkeypatch):
    line = torch.arange(5000, dtype=F64)[:, None]
    graph = pb.Graph.from_edges(line, [(i, i + 1) for i in range(4999)], np.ones(4999))
    seen = []

    def counted(*arguments, **settings):
        found = dijkstra(*arguments, **settings)
        seen.append(int(np.isfinite(found[0]).sum()))
        return found

    monkeypatch.setattr(search, "dijkstra", counted)
    assert graph.path(2000, 2030).tolist() == list(range(2000, 2031))
    assert sum(seen) < 300


def test_edges_of_length_zero_and_one_point_alone_have_paths():
    points = torch.zeros(4, 2, dtype=F64)
    graph = pb.Graph.from_edges(points, [(0, 1), (1, 2)], [0.0, 0.0])
    assert graph.path(0, 2).tolist() == [0, 1, 2]
    assert graph.path(3, 3).tolist() == [3]
    for i, j in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="no path"):
            graph.path(i, j)


def test_points_in_a_gap_make_the_way_across_short_and_stand_behind_the_codes():
    turn = torch.arange(200, dtype=F64) * 2 * torch.pi / 200
    codes, metric = torch.stack((turn.cos(), turn.sin()), 1), pb.Pullback(nn.Identity())
    ring = pb.knn_graph(metric, codes, 10)
    assert ring.distances(0)[100] == pytest.approx(torch.pi, rel=1e-2)
    filled = ring.fill_gaps(metric, 60, generator=torch.Generator().manual_seed(0))
    assert 2.0 <= filled.distances(0)[100] < 2.1
    assert torch.equal(filled.points[:200], codes)
    spread = torch.cdist(filled.points, filled.points).fill_diagonal_(torch.inf)[200:].amin(1)
    assert spread.min() > 0.1  # far from codes and from each other
    matrix = pb.distance_matrix(metric, codes, graph=filled)
    assert matrix.shape == (200, 200)
    assert matrix[0, 100] == filled.distances(0)[100]
    again = ring.fill_gaps(metric, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.points, filled.points)


def test_gaps_are_filled_by_a_metric_and_one_point_or_more():
    graph = pb.knn_graph(pb.Pullback(nn.Identity()), randn(9, 2), 2)
    with pytest.raises(ValueError, match="`n_points` is 0"):
        graph.fill_gaps(pb.Pullback(nn.Identity()), 0)
    with pytest.raises(TypeError, match="`metric` is a Identity"):
        graph.fill_gaps(nn.Identity(), 3)


def test_faiss_finds_nearly_all_neighbors(monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    points = randn(3000, 10)
    truth = nearest(points, points[:500], 31)
    monkeypatch.setattr(edges_module, "_MANY", 1000)
    found = nearest(points, points[:500], 31)
    assert found.shape == truth.shape
    assert (found[:, 0] == np.arange(500)).all()
    assert np.mean([len({*a} & {*b}) / 31 for a, b in zip(found, truth, strict=True)]) > 0.9
    graph = pb.knn_graph(pb.Pullback(mlp(10)), points[:400], 6)
    assert int(graph.components().max()) == 0


def test_a_point_whose_cells_are_empty_still_has_all_its_neighbors(monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    points = torch.cat((0.01 * randn(400, 10), 100 + randn(3, 10)))
    monkeypatch.setattr(edges_module, "_MANY", 1000)
    monkeypatch.setattr(edges_module, "_PROBES", 1)
    found = nearest(points, points, 5)
    assert ((found >= 0) & (found < 403)).all()


def test_without_faiss_many_points_in_many_dimensions_are_refused_with_the_command(monkeypatch):
    def missing(name, *arguments, **settings):
        if name == "faiss":
            raise ImportError("No module named 'faiss'")
        return imports(name, *arguments, **settings)

    imports = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr(edges_module, "_MANY", 1000)
    with pytest.raises(ImportError, match=r"50 points in 10 dimensions .* pip install faiss-cpu"):
        nearest(randn(50, 10), randn(50, 10), 3)
