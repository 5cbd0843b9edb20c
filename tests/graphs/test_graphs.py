import pickle
import warnings

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra
from torch import nn

import pullback as pb
from pullback import surfaces
from pullback._checks import GraphWarning, PullbackWarning
from pullback.graphs import Graph, grid_graph, knn_graph
from pullback.metrics import Metric, Pullback

F64 = torch.float64
few = settings(deadline=None, max_examples=10, derandomize=True)
sphere, plane = surfaces.Sphere(), surfaces.Plane()
square = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]], dtype=F64)


def rand(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64) - 1


def ring(z):
    """A plane with a high hill in the middle: the way around is shorter."""
    return torch.cat((z, 8 * torch.exp(-12 * z.square().sum(-1, keepdim=True))), -1)


def half(z):
    """A plane that ends at the line z_1 = 0: not finite on the other side."""
    return torch.where(z[:, :1] > 0, torch.nan, z)


class HalfPlane(Metric):
    """The hyperbolic half plane, induced by no map into a Euclidean space: G = I / y^2."""

    def inner(self, z, u, v):
        return (u * v).sum(-1) / z[..., 1] ** 2

    def matrix(self, z):
        return torch.eye(2).to(z) / z[..., 1, None, None] ** 2


def true_distances(surface, points):
    return surface.distance(points[:, None], points[None])


def ratios(graph, truth):
    """Of the distances of all pairs of points that are not too close to compare."""
    found = graph.distances(range(len(graph.points)))
    far = truth > 0.2
    return (found / truth)[far]


# lengths


@pytest.mark.parametrize("surface", [sphere, plane], ids=["sphere", "plane"])
def test_neighbor_distances_are_never_below_the_true_ones_and_not_far_above(surface):
    points = rand(400, 2)
    r = ratios(knn_graph(Pullback(surface), points, 14), true_distances(surface, points))
    assert r.min() > 1 - 1e-3  # the error of the edges
    assert r.median() < 1.06
    assert r.quantile(0.95) < 1.15


def test_grid_distances_are_never_below_the_true_ones_and_at_most_what_sixteen_directions_allow():
    graph = grid_graph(Pullback(sphere), square, 25)
    truth = true_distances(sphere, graph.points)
    inside = graph.points.norm(dim=1) < 0.95  # arcs between points of a hemisphere do not leave it
    truth[~inside], truth[:, ~inside] = 0, 0
    r = ratios(graph, truth)
    assert r.min() > 1 - 1e-4
    assert r.median() < 1.02
    # the metric is isotropic: 1 / cos of half the widest angle between two moves, arctan 1/2
    assert r.max() < 1 / np.cos(0.5 * np.arctan(0.5)) + 1e-2
    flat = grid_graph(Pullback(plane), square, 15)
    assert ratios(flat, true_distances(plane, flat.points)).min() > 1 - 1e-12


def test_a_sample_inside_an_edge_and_extrapolation_make_its_length_fourth_order():
    z, errors = rand(15, 2), {}
    for n_interior in (0, 1, 3):
        graph = knn_graph(Pullback(sphere), z, 3, n_interior=n_interior)
        rows, columns = graph.edges.nonzero()
        truth = torch.tensor([straight_length(z[i], z[j]) for i, j in zip(rows, columns, strict=True)])
        found = torch.as_tensor(np.asarray(graph.edges[rows, columns]).reshape(-1))
        errors[n_interior] = (found / truth - 1).abs().max()
    assert errors[0] > 1e-2
    assert errors[1] < 0.05 * errors[0]
    assert errors[3] < 0.1 * errors[1]


def straight_length(a, b):
    return float(pb.length(Pullback(sphere), pb.Curve.straight(a, b), n_segments=200))


def test_the_error_of_an_edge_covers_its_true_error():
    z = rand(200, 2)
    graph = knn_graph(Pullback(sphere), z, 6)
    coo = graph.edges.tocoo()
    line = pb.Curve.straight(z[coo.coords[0]], z[coo.coords[1]])
    truth = pb.length(Pullback(sphere), line).numpy()
    assert (np.abs(coo.data - truth) <= graph.errors + 1e-12).all()
    assert np.isnan(knn_graph(Pullback(sphere), z, 6, n_interior=0).errors).all()


def test_an_odd_number_of_chords_is_added_up_as_it_is():
    points = rand(2, 2)
    x = sphere(pb.Curve.straight(points[0], points[1], 3).nodes)
    graph = knn_graph(Pullback(sphere), points, 1, n_interior=2)
    assert graph.distances(0)[1] == pytest.approx(float((x[1:] - x[:-1]).norm(dim=1).sum()), rel=1e-12)


def test_the_other_neighbors_are_spread_over_those_that_were_measured():
    # paths of short hops alone turn often: long hops make them straighter, for the same evaluations and edges
    points = torch.stack((torch.arange(100, dtype=F64), torch.zeros(100, dtype=F64)), 1)
    ends = set(knn_graph(Pullback(nn.Identity()), points, 6).edges[[0]].indices.tolist())
    assert ends >= {1, 2, 3, 4, 9, 14}  # of 18 that were measured: the first 3, and every fifth behind
    assert not ends & {6, 11, 16, 17, 18}


def test_an_edge_that_bends_is_measured_with_more_samples():
    bump = Pullback(lambda z: torch.cat((z, torch.exp(-(((z - 0.3) / 0.05) ** 2))), 1))
    ends = torch.tensor([[0.0], [0.6]], dtype=F64)
    truth = pb.length(bump, pb.Curve.straight(*ends), n_segments=2000)
    once, more = (knn_graph(bump, ends, 1, n_interior=n) for n in (1, None))
    assert abs(once.distances(0)[1] / truth - 1) > 0.02
    assert abs(more.distances(0)[1] / truth - 1) < 0.02
    gentle = ends / 60
    assert torch.equal(*(knn_graph(bump, gentle, 1, n_interior=n).distances(0) for n in (1, None)))


def test_neighbors_behind_a_hole_of_the_decoder_are_replaced_by_finite_ones():
    points = torch.linspace(0, 1, 50, dtype=F64)[:, None]
    hole = Pullback(lambda z: torch.where((z > 0.105) & (z < 0.119), torch.nan, z))
    with pytest.warns(pb.GraphWarning):
        graph = knn_graph(hole, points, 4)
    assert np.diff(graph.edges.indptr).min() >= 4


def test_a_kink_inside_an_edge_is_not_extrapolated():
    corner = Pullback(lambda z: torch.cat((z.clamp_max(0), z.clamp_min(0)), 1))  # a right angle at 0
    graph = knn_graph(corner, torch.tensor([[-1.0], [1.0]], dtype=F64), 1)
    assert graph.distances(0)[1] == pytest.approx(2.0, rel=1e-12)


def test_half_of_the_neighbors_are_the_closest_by_decoded_length():
    # neighbors in latent space alone are wrong where the metric is anisotropic
    scale, points = torch.tensor([3.0, 1.0], dtype=F64), rand(400, 2)
    graph = knn_graph(Pullback(lambda z: z * scale), points, 8)

    def neighbors(z):
        return torch.cdist(z, z).fill_diagonal_(torch.inf).topk(4, largest=False).indices

    decoded, latent = neighbors(scale * points), neighbors(points)
    kept = np.mean([[graph.edges[i, j] > 0 for j in row] for i, row in enumerate(decoded.tolist())])
    assert kept > 0.95
    assert np.mean([len({*a} & {*b}) / 4 for a, b in zip(decoded.tolist(), latent.tolist(), strict=True)]) < 0.75


def test_a_metric_that_no_map_induces_works_as_well():
    grid = grid_graph(HalfPlane(), torch.tensor([[-1.0, 1.0], [0.5, 2.0]], dtype=F64), (33, 25))
    a, b = torch.tensor([-0.8, 0.6], dtype=F64), torch.tensor([0.8, 0.6], dtype=F64)
    truth = torch.acosh(1 + (b - a).square().sum() / (2 * a[1] * b[1]))
    curve, found = grid.curves(HalfPlane(), a, b)
    assert bool(found)
    assert truth < pb.length(HalfPlane(), curve) < 1.02 * truth


# shortest paths


def test_every_pair_of_thirty_points_agrees_with_networkx_and_with_brute_force():
    graph = knn_graph(Pullback(sphere), rand(30, 2), 3)
    found = graph.distances(list(range(30)))
    exchanged = graph.to_networkx()
    brute = torch.full((30, 30), torch.inf, dtype=F64).fill_diagonal_(0)
    for i, j, edge in exchanged.edges(data=True):
        brute[i, j] = brute[j, i] = edge["weight"]
    for k in range(30):  # Floyd and Warshall
        brute = torch.minimum(brute, brute[:, k, None] + brute[k])
    assert torch.allclose(found, brute, rtol=1e-12)
    for i, j in ((0, 29), (3, 17), (11, 11)):
        assert graph.path(i, j).tolist() == nx.dijkstra_path(exchanged, i, j)
        assert float(found[i, j]) == pytest.approx(nx.dijkstra_path_length(exchanged, i, j), rel=1e-12)


@given(seed=st.integers(0, 10**6), n_neighbors=st.integers(1, 6), d=st.integers(1, 10))
@few
def test_distances_are_a_metric(seed, n_neighbors, d):
    graph = knn_graph(Pullback(surfaces.Sphere()), rand(25, d, seed=seed), n_neighbors)
    distance = graph.distances(torch.arange(25))
    assert torch.allclose(distance, distance.T, rtol=1e-12)
    assert (distance.diagonal() == 0).all()
    assert torch.isfinite(distance).all()  # joined
    through = distance[:, :, None] + distance[None]
    assert (distance[:, None] <= through + 1e-12).all()
    assert (graph.edges != graph.edges.T).nnz == 0


def test_one_source_gives_one_row_in_the_kind_of_the_points():
    graph = knn_graph(Pullback(surfaces.Sphere()), rand(20, 2).float(), 4)
    assert graph.distances(3).shape == (20,)
    assert graph.distances([3]).shape == (1, 20)
    assert graph.distances([]).shape == (0, 20)
    assert graph.distances(3).dtype == torch.float32
    assert torch.equal(graph.distances(torch.tensor([5, 3]))[1], graph.distances(3))


def test_edges_of_length_zero_stay_edges():
    # sparse matrices drop zeros when they are added, and many algorithms take a stored zero for no edge
    points = torch.cat((rand(10, 2), rand(10, 2)))
    graph = knn_graph(Pullback(sphere), points, 3)
    assert (graph.edges.data == 0).sum() == 20
    assert torch.equal(graph.distances(0)[[0, 10]], torch.zeros(2, dtype=F64))
    assert graph.path(0, 10).tolist() == [0, 10]
    assert graph.components().max() == 0
    assert torch.equal(Graph.from_networkx(graph.to_networkx()).distances(0), graph.distances(0))


def test_many_duplicates_are_joined_to_the_rest():
    points = torch.cat((rand(1, 2).expand(12, 2), rand(12, 2, seed=1)))
    graph = knn_graph(Pullback(sphere), points, 2)
    assert len(graph.bridges) > 0
    assert torch.isfinite(graph.distances(0)).all()
    assert graph.distances(0)[:12].abs().max() == 0


# parts


def clusters():
    return torch.cat((0.1 * rand(20, 2), 0.1 * rand(20, 2, seed=1) + 5, torch.tensor([[-3.0, 4.0]], dtype=F64)))


def test_clusters_and_an_isolated_point_are_joined_by_their_cheapest_links():
    points = clusters()
    graph = knn_graph(Pullback(nn.Identity()), points, 4)
    gaps = torch.cdist(points, points)
    between, alone = gaps[:20, 20:40], gaps[40, :20]
    assert graph.components().tolist() == [0] * 41
    # the lone point is joined by its own edges, which are mutual
    assert graph.bridges.tolist() == [[int(between.min(1).values.argmin()), 20 + int(between.min(0).values.argmin())]]
    assert graph.distances(40)[:20].min() == pytest.approx(float(alone.min()), rel=1e-12)
    assert graph.distances(range(20))[:, 20:40].min() == pytest.approx(float(between.min()), rel=1e-12)


def test_bridges_of_many_parts_are_as_many_as_needed():
    centers = 10 * rand(8, 3)
    points = (centers[:, None] + 0.01 * rand(6, 3)).reshape(-1, 3)
    graph = knn_graph(Pullback(nn.Identity()), points, 1)
    joined = nx.Graph(graph.to_networkx())
    joined.remove_edges_from(graph.bridges.tolist())
    assert nx.number_connected_components(joined) == len(graph.bridges) + 1
    assert graph.components().max() == 0


def test_edges_where_the_decoder_is_not_finite_are_dropped_counted_and_warned():
    with pytest.warns(GraphWarning, match=r"edges were dropped: the decoder is not finite"):
        grid = grid_graph(Pullback(half), square, 8)
    assert issubclass(GraphWarning, PullbackWarning)
    assert grid.dropped > 0
    assert grid.edges.nnz // 2 + grid.dropped == 2 * 8 * 7 + 2 * 7 * 7 + 4 * 7 * 6
    assert torch.isinf(grid.distances(0)[grid.points[:, 0] > 0]).all()
    assert torch.isfinite(grid.distances(0)[grid.points[:, 0] < 0]).all()
    points = rand(60, 2)
    with pytest.warns(GraphWarning, match=rf"falls into {1 + int((points[:, 0] > 0).sum())} parts"):
        graph = knn_graph(Pullback(half), points, 4)
    assert torch.equal(torch.isfinite(graph.distances(int(points[:, 0].argmin()))), points[:, 0] <= 0)


def test_points_where_the_decoder_is_not_finite_do_not_keep_parts_from_being_joined():
    shift = torch.tensor([[-5.0, 0.0]] * 20 + [[-0.2, 0.0]] * 6 + [[0.2, 0.0]] * 30, dtype=F64)
    with pytest.warns(GraphWarning, match="falls into 31 parts"):
        graph = knn_graph(Pullback(half), shift + 0.1 * rand(56, 2), 3)
    assert len(graph.bridges) == 1
    assert torch.isfinite(graph.distances(0)).tolist() == [True] * 26 + [False] * 30


def test_an_edge_given_in_both_directions_is_one_edge_and_the_shorter_counts():
    graph = Graph.from_edges(rand(3, 2), [(2, 0), (0, 2), (1, 0), (1, 1)], [3.0, 2.0, 1.0, 5.0])
    assert graph.edges.nnz == 4
    assert graph.distances(2).tolist() == [2.0, 3.0, 0.0]


def test_a_path_that_does_not_exist_is_an_error_and_an_infinite_distance():
    graph = Graph.from_edges(rand(4, 2), [(0, 1), (2, 3)], [1.0, 2.0])
    assert graph.components().tolist() == [0, 0, 1, 1]
    assert graph.distances(0).tolist() == [0.0, 1.0, torch.inf, torch.inf]
    with pytest.raises(ValueError, match="no path leads from point 0 to point 3"):
        graph.path(0, 3)


# what it costs


def test_points_are_decoded_once_and_edges_at_their_inner_samples_alone(counting):
    decoder = counting(sphere)
    metric = Pullback(decoder)
    metric.features(rand(1, 2))
    decoder.reset()
    grid = grid_graph(metric, square, (9, 7), n_interior=3)
    assert decoder.reset() == 63 + 3 * grid.edges.nnz // 2
    points = rand(100, 2)
    graph = knn_graph(metric, points, 5, n_interior=1)
    near = torch.cdist(points, points).fill_diagonal_(torch.inf).topk(15, largest=False).indices
    measured = {(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row}
    assert len(graph.bridges) == 0
    assert decoder.reset() == 100 + len(measured)
    bent = int((graph.errors > 0.01 * graph.edges.data).sum()) // 2
    assert bent > 20
    knn_graph(metric, points, 5)
    assert decoder.reset() == 100 + len(measured) + 7 * bent  # the nodes are known by then


def test_the_decoder_is_called_on_many_points_at_once():
    calls = []

    def recorded(z):
        calls.append(len(z))
        return sphere(z)

    metric = Pullback(recorded)
    metric.features(rand(1, 2))
    calls.clear()
    graph = knn_graph(metric, rand(1000, 2), 8)
    assert len(calls) < 10
    calls.clear()
    graph.curves(metric, rand(50, 2, seed=1), rand(50, 2, seed=2))
    assert len(calls) < 10


def test_features_that_do_not_fit_the_memory_are_decoded_in_turns(monkeypatch):
    points = rand(120, 2)
    whole = knn_graph(Pullback(sphere), points, 5)
    monkeypatch.setattr("pullback.graphs.edges.free_memory", lambda device: 4 * 40 * 3 * 8)  # forty points
    monkeypatch.setattr(Pullback, "points_at_once", lambda self, z: 32)
    parts = knn_graph(Pullback(sphere), points, 5)
    assert np.array_equal(parts.edges.indices, whole.edges.indices)
    assert np.allclose(parts.edges.data, whole.edges.data, rtol=1e-13)


def test_curves_of_many_starts_are_found_in_blocks(monkeypatch):
    graph, a, b = grid_graph(Pullback(sphere), square, 9), rand(30, 2), rand(30, 2, seed=1)
    whole, _ = graph.curves(Pullback(sphere), a, b)
    monkeypatch.setattr("pullback.graphs.graph.BLOCK", 12 * 81 * 4)  # four starts
    parts, _ = graph.curves(Pullback(sphere), a, b)
    assert torch.equal(parts.nodes, whole.nodes)


# curves to start from


def around():
    """Pairs on opposite sides of the hill."""
    angle = torch.linspace(0, 3, 12, dtype=F64)
    start = 0.8 * torch.stack((angle.cos(), angle.sin()), 1)
    return start, -start + 0.02 * rand(12, 2)


@pytest.mark.parametrize("kind", ["grid", "neighbors"])
def test_curves_lead_around_a_hill_that_straight_lines_climb(kind):
    metric, (start, end) = Pullback(ring), around()
    graph = grid_graph(metric, square, 25) if kind == "grid" else knn_graph(metric, rand(800, 2), 10)
    curves, found = graph.curves(metric, start, end)
    assert curves.nodes.shape == (12, 33, 2)
    assert torch.equal(curves.nodes[:, 0], start)
    assert torch.equal(curves.nodes[:, -1], end)
    assert found.all()
    straight = pb.energy(metric, pb.Curve.straight(start, end, 32))
    assert (pb.energy(metric, curves) < 0.1 * straight).all()


def test_the_solver_ends_lower_from_the_graph_than_from_straight_lines():
    metric, (start, end) = Pullback(ring), around()
    graph = grid_graph(metric, square, 25)
    path = pb.geodesic(metric, start, end, init=graph.curves(metric, start, end)[0])
    assert path.converged.all()
    links = graph.curves(metric, start, end, 400)[0]
    assert (path.length < pb.length(metric, links) + path.length_error).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        over = pb.geodesic(metric, start[:3], end[:3])
    assert (over.length.nan_to_num(torch.inf) > path.length[:3] - path.length_error[:3]).all()


def test_smoothing_makes_paths_shorter(monkeypatch):
    metric, (start, end) = Pullback(ring), around()
    graph = grid_graph(metric, square, 25)
    smooth = pb.length(metric, graph.curves(metric, start, end)[0])
    monkeypatch.setattr("pullback.graphs.graph._PASSES", 0)
    rough = pb.length(metric, graph.curves(metric, start, end)[0])
    assert smooth.mean() < 0.995 * rough.mean()


def test_nodes_stand_at_equal_decoded_steps():
    metric = Pullback(lambda z: torch.exp(2 * z))  # steps in latent space are not equal at all
    graph = grid_graph(metric, square, 33)
    curves, _ = graph.curves(metric, rand(20, 2), rand(20, 2, seed=1), 16)
    x = metric.features(curves.nodes)
    steps = (x[:, 1:] - x[:, :-1]).norm(dim=-1)
    assert (steps.amax(1) < 1.35 * steps.amin(1)).all()


def test_where_the_straight_line_is_shortest_it_is_the_curve():
    start, end = rand(20, 2), rand(20, 2, seed=1)
    curves, found = grid_graph(Pullback(plane), square, 9).curves(Pullback(plane), start, end)
    assert found.all()
    assert torch.allclose(curves.nodes, pb.Curve.straight(start, end, 32).nodes, atol=1e-12)


def test_a_curve_does_not_depend_on_the_others_of_its_batch():
    metric, graph = Pullback(ring), grid_graph(Pullback(ring), square, 16)
    start, end = rand(15, 2), rand(15, 2, seed=1)
    start[7], end[3], end[4] = start[2], end[2], start[4]
    together, found = graph.curves(metric, start, end)
    again, _ = graph.curves(metric, start, end)
    assert torch.equal(together.nodes, again.nodes)
    for i in range(15):
        alone, one = graph.curves(metric, start[i], end[i])
        assert torch.allclose(alone.nodes, together.nodes[i], atol=1e-12, rtol=0)
        assert one == found[i]
    turned, _ = graph.curves(metric, start.flip(0), end.flip(0))
    assert torch.allclose(turned.nodes.flip(0), together.nodes, atol=1e-12, rtol=0)


def test_pairs_without_a_path_are_said_and_are_straight_lines():
    with pytest.warns(GraphWarning):
        graph = grid_graph(Pullback(half), square, 12)
    start = torch.tensor([[-0.9, -0.9], [-0.9, 0.0], [0.95, 0.9]], dtype=F64)
    end = torch.tensor([[-0.2, 0.9], [0.95, 0.3], [0.95, -0.5]], dtype=F64)
    curves, found = graph.curves(Pullback(half), start, end)
    assert found.tolist() == [True, False, False]
    assert torch.equal(curves.nodes[1:, -1], end[1:])
    assert torch.allclose(curves.nodes, pb.Curve.straight(start, end, 32).nodes, atol=1e-12)


def test_points_outside_of_the_grid_are_joined_to_what_is_nearest():
    metric = Pullback(ring)
    curves, found = grid_graph(metric, square, 16).curves(
        metric, torch.tensor([1.5, 0.1], dtype=F64), torch.tensor([-1.5, 0.0], dtype=F64)
    )
    assert bool(found)
    assert pb.length(metric, curves) < 4


def test_any_batch_shape_and_broadcasting():
    graph = grid_graph(Pullback(sphere), square, 6)
    curves, found = graph.curves(Pullback(sphere), rand(2, 3, 2), rand(2), 5)
    assert curves.nodes.shape == (2, 3, 6, 2)
    assert found.shape == (2, 3)
    empty, none = graph.curves(Pullback(sphere), rand(0, 2), rand(0, 2))
    assert empty.nodes.shape == (0, 33, 2)
    assert none.shape == (0,)
    for n in (1, 2, 3):
        assert graph.curves(Pullback(sphere), rand(4, 2), rand(4, 2, seed=1), n)[0].n_segments == n


def test_a_point_on_the_graph_and_equal_ends_are_no_special_case():
    graph = grid_graph(Pullback(ring), square, 16)
    z = graph.points[[0, 40, 40]]
    curves, found = graph.curves(Pullback(ring), z, graph.points[[255, 200, 40]])
    assert found.all()
    assert torch.equal(curves.nodes[2], z[2].expand(33, 2))
    assert (pb.length(Pullback(ring), curves[:2]) < graph.distances([0, 40])[[0, 1], [255, 200]] * 1.001).all()


def test_float32_points_give_float32_curves_without_gradients():
    metric = Pullback(surfaces.Sphere())
    codes = rand(50, 2).float().requires_grad_()
    graph = knn_graph(metric, codes, 5)
    curves, _ = graph.curves(metric, codes[:4], codes[4:8])
    assert curves.nodes.dtype == torch.float32
    assert not curves.nodes.requires_grad
    assert not graph.points.requires_grad
    assert not Graph.from_edges(codes, [(0, 1)], [1.0]).points.requires_grad


# exchange


def test_networkx_and_pickle_give_the_same_graph_back():
    graph = knn_graph(Pullback(sphere), clusters(), 4, n_interior=3)
    for back in (Graph.from_networkx(graph.to_networkx()), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(back.points, graph.points)
        assert (back.edges != graph.edges).nnz == 0
        assert np.array_equal(back.errors, graph.errors)
        assert (back.n_neighbors, back.n_interior) == (4, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(graph)).bridges, graph.bridges)
    assert repr(graph) == f"Graph(41 points, d = 2, {graph.edges.nnz // 2} edges, 1 components)"


def test_networkx_finds_communities_centers_and_places_to_draw_at():
    graph = knn_graph(Pullback(nn.Identity()), clusters()[:40], 4)
    exchanged = graph.to_networkx()
    found = nx.community.greedy_modularity_communities(exchanged, weight=None)
    assert len(found) >= 2
    assert all(len({i // 20 for i in part}) == 1 for part in found)  # a bridge is no community
    nearest_to_all = max(nx.closeness_centrality(exchanged, distance="weight").items(), key=lambda item: item[1])[0]
    assert nearest_to_all == int(graph.distances(range(len(graph.points))).sum(1).argmin())
    places = dict(exchanged.nodes(data="point"))  # what nx.draw takes as pos
    assert np.array_equal(np.stack([places[i] for i in range(len(places))]), graph.points.numpy())


def test_a_graph_with_names_and_parallel_edges_can_come_from_networkx():
    g = nx.MultiGraph()
    g.add_node("a", point=[0.0])
    g.add_node("b", point=[1.0])
    g.add_edge("a", "b", weight=3.0)
    g.add_edge("b", "a", weight=2.0)
    g.add_edge("a", "a", weight=1.0)
    graph = Graph.from_networkx(g)
    assert graph.distances(0).tolist() == [0.0, 2.0]
    assert graph.edges.nnz == 2
    with pytest.raises(ValueError, match="directed"):
        Graph.from_networkx(nx.DiGraph(g))
    g.add_edge("a", "b")
    with pytest.raises(ValueError, match="has no attribute 'weight'"):
        Graph.from_networkx(g)
    g.add_node("c")
    with pytest.raises(ValueError, match="node 'c' of `graph` has no attribute 'point'"):
        Graph.from_networkx(g)


# the door

metric = Pullback(sphere)
small = Graph.from_edges(rand(3, 2), [(0, 1)], [1.0])
spoiled = torch.tensor([[0.0, 0.0], [1.0, 0.0], [torch.nan, 0.0]], dtype=F64)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: knn_graph(metric, rand(16, 2)), "`codes` holds 16 points but `n_neighbors` is 16: give 17 points"),
        (lambda: knn_graph(metric, spoiled, 1), r"`codes` holds NaN or infinity at 1 of 3 points \(first: 2\)"),
        (lambda: knn_graph(metric, rand(2, 9, 2), 1), r"`codes` has shape \(2, 9, 2\): want one or more points"),
        (lambda: knn_graph(metric, rand(9, 2), 0), "`n_neighbors` is 0: want an integer, 1 or more"),
        (lambda: knn_graph(metric, rand(9, 2), 2.5), "`n_neighbors` is 2.5"),
        (lambda: knn_graph(metric, rand(9, 2), 2, n_interior=-1), "`n_interior` is -1"),
        (lambda: knn_graph(metric, rand(9, 2).half(), 2), "`codes` has dtype float16"),
        (lambda: grid_graph(metric, square[0], 5), r"`bounds` has shape \(2,\): want \(d, 2\)"),
        (lambda: grid_graph(metric, square.repeat(2, 1), 5), "`bounds` has 4 axes: a grid has 1 to 3"),
        (lambda: grid_graph(metric, square.flip(1), 5), "`bounds` of axis 0 are 1 and -1"),
        (lambda: grid_graph(metric, square, 1), "`resolution` is 1: want an integer, 2 or more"),
        (lambda: grid_graph(metric, square, (5, 5, 5)), r"`resolution` is \(5, 5, 5\)"),
        (lambda: grid_graph(metric, square, (5, 2.5)), "`resolution` is"),
        (lambda: grid_graph(metric, square * torch.nan, 5), "`bounds` holds NaN"),
        (lambda: small.distances(3), "`sources` reaches from 3 to 3: the graph has points 0 to 2"),
        (lambda: small.distances(-1), "`sources` reaches from -1"),
        (lambda: small.distances(0.5), "`sources` is 0.5: want the index of a point"),
        (lambda: small.path(0, 7), "`j` reaches from 7"),
        (lambda: small.curves(metric, rand(3), rand(3)), "`start` has latent dimension 3 but `graph.points` has 2"),
        (lambda: small.curves(metric, rand(2).float(), rand(2).float()), "`start` has dtype float32"),
        (lambda: small.curves(metric, rand(3, 2), rand(4, 2)), "`start` has shape"),
        (lambda: small.curves(metric, rand(2), rand(2), 0), "`n_segments` is 0"),
        (lambda: Graph.from_edges(rand(3, 2), [(0, 3)], [1.0]), r"edge 0 joins points \[0, 3\]: the points are 0 to 2"),
        (lambda: Graph.from_edges(rand(3, 2), [(0, 1)], [-1.0]), r"edge 0 \(\[0, 1\]\) has length -1.0"),
        (lambda: Graph.from_edges(rand(3, 2), [(0, 1)], []), "there are 1 `pairs` but 0 `lengths`"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_that_says_what_came_and_what_was_wanted(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: knn_graph(sphere, rand(9, 2), 2),
        lambda: grid_graph(sphere, square, 3),
        lambda: small.curves(sphere, rand(2), rand(2)),
    ],
)
def test_a_decoder_is_no_metric(call):
    with pytest.raises(TypeError, match=r"`metric` is a Sphere: give a metric"):
        call()


# the shipped model


def test_on_the_shipped_model_paths_are_near_geodesics_and_never_shorter():
    model = pb.models.pretrained("mnist012")
    metric, codes = Pullback(model.decoder), model.codes[::20]
    graph = knn_graph(metric, codes)
    start, end = torch.arange(0, 6), torch.arange(100, 106)
    path = pb.geodesic(metric, codes[start], codes[end])
    ratio = graph.distances(start)[torch.arange(6), end] / path.length
    assert ratio.min() > 0.99  # where the geodesic is global
    assert ratio.median() < 1.3  # 1.02 with 3,300 codes
    curves, found = graph.curves(metric, codes[start], codes[end])
    assert found.all()
    straight = pb.length(metric, pb.Curve.straight(codes[start], codes[end]))
    assert (pb.length(metric, curves) < 1.005 * straight).all()
    assert (pb.length(metric, curves) / path.length).median() < 1.03


def test_a_graph_that_is_saved_is_loaded_bit_for_bit(tmp_path):
    graph = knn_graph(Pullback(sphere), torch.cat((rand(30, 2), 10 + rand(5, 2), rand(1, 2).expand(2, 2))), 3)
    graph.save(tmp_path / "g.safetensors")
    again = Graph.load(tmp_path / "g.safetensors")
    assert torch.equal(again.points, graph.points)
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(again.edges, name), getattr(graph.edges, name))
        assert getattr(again.edges, name).dtype == getattr(graph.edges, name).dtype
    assert np.array_equal(again.errors, graph.errors, equal_nan=True)
    assert len(graph.bridges)
    assert np.array_equal(again.bridges, graph.bridges)
    assert (again.dropped, again.n_neighbors, again.n_interior) == (graph.dropped, 3, graph.n_interior)
    with pytest.raises(ValueError, match="safetensors"):
        graph.save(tmp_path / "g.npz")
    pb.save(tmp_path / "c.safetensors", pb.Curve.straight(*rand(2, 2)))
    with pytest.raises(ValueError, match=r"wanted 'pullback\.graph': it holds something else"):
        Graph.load(tmp_path / "c.safetensors")


def test_all_edges_count_in_both_directions_so_that_directed_search_is_exact():
    graph = knn_graph(Pullback(sphere), rand(80, 2), 5)
    undirected = dijkstra(graph.edges, directed=False, indices=[0, 5])
    assert np.allclose(graph.distances([0, 5]), undirected, rtol=1e-12)
