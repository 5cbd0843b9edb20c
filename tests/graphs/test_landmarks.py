import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pullback as pb
from pullback.graphs import Graph, Landmarks, knn_graph
from small import mlp, randn


def graph_of(n=60, seed=0):
    return knn_graph(pb.Pullback(mlp()), randn(n, 2, seed=seed), 5)


@given(st.integers(0, 10**6), st.integers(1, 12))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_the_bounds_hold_for_all_pairs(seed, n_landmarks):
    graph = graph_of(seed=seed)
    exact = graph.distances(range(60)).float()
    i, j = torch.cartesian_prod(torch.arange(60), torch.arange(60)).unbind(1)
    lower, upper = Landmarks.of(graph, n_landmarks).bounds(i, j)
    assert (lower <= exact[i, j] * (1 + 1e-6)).all()
    assert (upper >= exact[i, j] * (1 - 1e-6)).all()
    assert (lower[i == j] == 0).all()
    assert (upper[i == j] == 0).all()


def test_distances_to_a_landmark_are_exact():
    graph = graph_of()
    landmarks = Landmarks.of(graph, 4)
    l = int(landmarks.indices[2])  # noqa: E741
    lower, upper = landmarks.bounds([l] * 60, range(60))
    exact = graph.distances(l).float()
    assert torch.allclose(lower, exact, rtol=1e-5, atol=1e-6)
    assert torch.allclose(upper, exact, rtol=1e-5, atol=1e-6)


def test_more_landmarks_never_loosen_the_bounds():
    graph, pairs = graph_of(), torch.randint(60, (2, 200), generator=torch.Generator().manual_seed(0))
    few, many = (Landmarks.of(graph, n).bounds(*pairs) for n in (3, 12))
    assert (many[0] >= few[0]).all()
    assert (many[1] <= few[1]).all()
    assert float((many[1] - many[0]).mean()) < 0.8 * float((few[1] - few[0]).mean())


def test_each_landmark_is_farthest_from_those_before():
    graph = graph_of()
    landmarks = Landmarks.of(graph, 5)
    found = graph.distances(landmarks.indices.tolist())
    for k in range(1, 5):
        assert int(found[:k].amin(0).argmax()) == landmarks.indices[k]


def test_parts_that_no_path_joins_are_infinitely_far_and_each_gets_a_landmark():
    graph = Graph.from_edges(torch.arange(6.0)[:, None], [(0, 1), (1, 2), (3, 4), (4, 5)], [1.0] * 4)
    landmarks = Landmarks.of(graph, 2)
    assert {int(graph.components()[i]) for i in landmarks.indices} == {0, 1}
    lower, upper = landmarks.bounds([0, 0], [5, 2])
    assert torch.isinf(lower[0])
    assert torch.isinf(upper[0])
    assert torch.isfinite(upper[1])


def test_queries_in_pieces_are_the_same(monkeypatch):
    landmarks, pairs = Landmarks.of(graph_of(), 4), np.random.default_rng(0).integers(60, size=(2, 500))
    whole = landmarks.bounds(*pairs)
    monkeypatch.setattr("pullback.graphs.landmarks._BLOCK", 40)
    pieces = landmarks.bounds(*pairs)
    assert torch.equal(torch.stack(whole), torch.stack(pieces))


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (lambda g: Landmarks.of(g, 0), "`n_landmarks` is 0"),
        (lambda g: Landmarks.of(g, 61), "`n_landmarks` is 61, but the graph has 60 points"),
        (lambda g: Landmarks.of(g, 2, first=60), "`first` reaches from 60"),
        (lambda g: Landmarks.of(g, 2).bounds([0, 1], [2]), "`i` has 2 points but `j` has 1"),
        (lambda g: Landmarks.of(g, 2).bounds([0], [60]), "`j` reaches from 60"),
    ],
)
def test_unfit_arguments_are_named(work, text):
    with pytest.raises(ValueError, match=text):
        work(graph_of())


# points that are inserted


def test_inserted_points_have_the_distances_of_a_graph_that_was_built_with_them():
    metric = pb.Pullback(pb.surfaces.Sphere())
    grid = pb.grid_graph(metric, torch.tensor([[-1.5, 1.5], [-1.5, 1.5]]).double(), 41)
    codes = 0.5 * randn(40, 2)
    more = grid.insert(metric, codes)
    found = more.distances(range(1681, 1721))[:, 1681:]
    exact = pb.surfaces.Sphere().distance(codes[:, None], codes)
    far = exact > 0.3
    ratio = (found / exact)[far]
    assert (ratio > 1 - 1e-9).all()
    assert ratio.median() < 1.02
    assert torch.equal(more.points[1681:], codes)
    assert len(more.edges.data) > len(grid.edges.data)


def test_insertion_keeps_every_edge_and_changes_nothing():
    metric, graph = pb.Pullback(mlp()), graph_of()
    before = graph.edges.copy()
    more = graph.insert(metric, randn(3, 2, seed=9))
    assert (graph.edges != before).nnz == 0
    old = more.edges[:60][:, :60]
    assert (abs(old - graph.edges) > 1e-12).nnz == 0


def test_a_point_that_is_there_already_is_at_no_distance():
    metric, graph = pb.Pullback(mlp()), graph_of()
    more = graph.insert(metric, graph.points[7:8])
    assert float(more.distances(60)[7]) < 1e-14  # the rounding of a middle


def test_one_point_among_few_is_linked_to_all():
    line = Graph.from_edges(torch.tensor([[0.0], [1.0]]).double(), [(0, 1)], [1.0])
    more = line.insert(pb.Pullback(torch.nn.Identity()), torch.tensor([[0.25]]).double())
    assert torch.allclose(more.distances(2), torch.tensor([0.25, 0.75, 0.0]).double())


def test_points_that_do_not_fit_are_refused():
    graph = graph_of()
    with pytest.raises(ValueError, match="latent dimension 3"):
        graph.insert(pb.Pullback(mlp()), randn(2, 3))
    with pytest.raises(TypeError, match="`metric` is a Linear"):
        graph.insert(torch.nn.Linear(2, 2), randn(2, 2))
