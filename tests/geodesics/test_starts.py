import math
import warnings

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.geodesics.starts import start_nodes

F64 = torch.float64
FLAT = pb.Pullback(nn.Identity())


def points(n, d=2, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def hill(z):  # straight over it is far, and there are two ways around
    return torch.cat((z, 3 * torch.exp(-2 * z.square().sum(-1, keepdim=True))), -1)


LEFT = torch.tensor([-1.0, 0.02], dtype=F64)
RIGHT = torch.tensor([1.0, 0.05], dtype=F64)


def all_starts(metric):
    bounds = torch.tensor([[-1.5, 1.5], [-1.5, 1.5]], dtype=F64)
    t = torch.linspace(0, 1, 9, dtype=F64)[:, None]
    line = LEFT + t * (RIGHT - LEFT)
    below = line - torch.sin(torch.pi * t) * torch.tensor([0.0, 0.5], dtype=F64)
    below[0], below[-1] = LEFT, RIGHT
    return {
        "straight": "straight",
        "bends": "bends",
        "curve": pb.Curve(below),
        "graph": pb.grid_graph(metric, bounds, 16),
    }


# what each start is


@pytest.mark.parametrize(("d", "expected"), [(1, 1), (2, 2), (3, 4), (5, 4)])
def test_bends_leave_the_line_to_both_sides_of_up_to_two_directions(d, expected):
    a, b = points(6, d, 1), points(6, d, 2)
    nodes = start_nodes(FLAT, a, b, "bends")
    assert len(nodes) == expected
    for one in nodes:
        assert torch.equal(one[:, 0], a)
        assert torch.equal(one[:, -1], b)
    if d == 1:  # there are no sides
        return
    along = (b - a) / (b - a).norm(dim=1, keepdim=True)
    middles = torch.stack([one[:, one.shape[1] // 2] - 0.5 * (a + b) for one in nodes])
    assert (middles * along).sum(-1).abs().max() < 1e-12
    assert torch.allclose(middles.norm(dim=-1), 0.3 * (b - a).norm(dim=1).expand(expected, -1))
    assert torch.allclose(middles[0], -middles[1])
    if expected == 4:
        assert (middles[0] * middles[2]).sum(-1).abs().max() < 1e-12


def test_bends_of_points_that_coincide_or_differ_along_an_axis_are_finite():
    a = torch.zeros(3, 3, dtype=F64)
    b = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 1e-300]], dtype=F64)
    for nodes in start_nodes(FLAT, a, b, "bends"):
        assert torch.isfinite(nodes).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_starts_have_the_dtype_of_the_points(dtype):
    a, b = points(3, seed=1).to(dtype), points(3, seed=2).to(dtype)
    bounds = torch.tensor([[-2.0, 2.0], [-2.0, 2.0]], dtype=dtype)
    several = ("straight", "bends", pb.Curve.straight(a, b, 4), pb.grid_graph(FLAT, bounds, 5))
    assert [nodes.dtype for nodes in start_nodes(FLAT, a, b, several)] == [dtype] * 5


# the shortest of several wins


@pytest.mark.parametrize("name", ["straight", "bends", "curve", "graph"])
def test_every_kind_of_start_leads_to_a_geodesic_alone_and_by_either_name(name):
    metric = pb.Pullback(hill)
    start = all_starts(metric)[name]
    path = pb.geodesic(metric, LEFT, RIGHT, starts=start)
    assert path.converged
    assert abs(float(path.length) - (2.9594 if name == "curve" else 2.8459)) < 1e-3
    same = pb.geodesic(metric, LEFT, RIGHT, init=start)
    assert torch.equal(same.curve.nodes, path.curve.nodes)
    assert (path.candidates is None) == (name != "bends")


def test_of_several_starts_the_shortest_wins_and_all_lengths_are_told():
    metric = pb.Pullback(hill)
    starts = all_starts(metric)
    alone = [pb.geodesic(metric, LEFT, RIGHT, starts=start) for start in starts.values()]
    path = pb.geodesic(metric, LEFT, RIGHT, starts=tuple(starts.values()))
    assert path.candidates.shape == (5,)  # bends are two
    expected = torch.stack([alone[0].length, *alone[1].candidates, alone[2].length, alone[3].length])
    assert torch.allclose(path.candidates, expected, rtol=2e-4)
    assert path.length == path.candidates.min()
    assert path.evaluations > alone[0].evaluations
    assert path.iterations > alone[0].iterations
    assert abs(float(pb.length(metric, path.curve) - path.length)) < 1e-3  # the curve is the one of that length


def test_two_ways_around_a_hill_are_reported_as_two_minima():
    # beyond the conjugate point of the straight line: log has two answers, both local minima
    metric = pb.Pullback(hill)
    path = pb.geodesic(metric, LEFT, RIGHT, starts="bends", tol=1e-6)
    low, high = path.candidates.sort().values.tolist()
    assert 1.03 < high / low < 1.05
    assert "not unique" in path.report()
    ways = [pb.geodesic(metric, LEFT, RIGHT, init=all_starts(metric)["curve"], tol=1e-6), path]
    assert abs(float(ways[0].length) - high) < 1e-4
    assert ways[0].curve.nodes[:, 1].min() < -0.3
    assert path.curve.nodes[:, 1].max() > 0.3
    for way in ways:  # no nearby curve is shorter
        t = torch.linspace(0, 1, 129, dtype=F64)
        for size in (-0.02, 0.02):
            for axis in (0, 1):
                side = size * torch.sin(torch.pi * t)[:, None] * torch.eye(2, dtype=F64)[axis]
                assert pb.length(metric, pb.Curve(way.curve(t) + side)) > way.length
    velocity, solution = pb.log(metric, LEFT, RIGHT, starts="bends", full=True)
    assert torch.allclose(metric.norm(LEFT, velocity), torch.tensor(low, dtype=F64), rtol=1e-4)
    assert solution.candidates.shape == (2,)


def test_bends_find_a_shorter_way_on_the_shipped_model():
    model = pb.models.pretrained("mnist012")
    metric = pb.Pullback(model.decoder)
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(1))[:120]
    a, b = model.codes[chosen[7]], model.codes[chosen[67]]
    path = pb.geodesic(metric, a, b, starts=("straight", "bends"))
    assert path.converged
    assert path.candidates[0] > 1.05 * path.length
    assert abs(float(pb.length(metric, path.curve, n_segments=2048) / path.length) - 1) < 1e-3


def test_a_start_that_fails_leaves_the_pair_to_the_others():
    # the straight line crosses a disk where the decoder is not defined
    metric = pb.Pullback(lambda z: torch.cat((z, (z.square().sum(-1, keepdim=True) - 0.04).sqrt()), -1))
    a, b = torch.tensor([[-1.0, 0.0]], dtype=F64), torch.tensor([[1.0, 0.1]], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        alone = pb.geodesic(metric, a, b)
    path = pb.geodesic(metric, a, b, starts=("straight", "bends"))
    assert alone.status[0] is pb.Status.NOT_FINITE
    assert path.converged.all()
    assert path.candidates[0].isnan().tolist() == [True, False, False]


def test_candidates_have_the_batch_shape_and_points_that_coincide_are_at_zero():
    metric = pb.Pullback(hill)
    a, b = points(6, seed=1).reshape(2, 3, 2), points(6, seed=2).reshape(2, 3, 2)
    b[1, 2] = a[1, 2]
    path = pb.geodesic(metric, a, b, starts=["straight", "bends"])
    assert path.candidates.shape == (2, 3, 3)
    assert path.candidates[1, 2].tolist() == [0, 0, 0]
    assert torch.equal(path.candidates.amin(-1), path.length)
    assert pb.geodesic(metric, a[:0], b[:0], starts=("straight", "bends")).candidates.shape == (0, 3, 3)


def test_in_one_dimension_all_starts_are_the_straight_one():
    metric = pb.Pullback(lambda z: torch.cat((z.cos(), z.sin()), -1))
    path = pb.geodesic(metric, torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64), starts=("straight", "bends"))
    assert torch.allclose(path.candidates, torch.ones(2, dtype=F64), rtol=1e-4)


@pytest.mark.parametrize("d", [2, 5])
def test_starts_may_be_curves_of_an_earlier_solution_of_any_batch_shape(d):
    metric = pb.Pullback(pb.surfaces.Sphere())
    a, b = points(1, d, 1, 0.5)[0], points(6, d, 2, 0.5).reshape(2, 3, d)
    path = pb.geodesic(metric, a, b)
    again = pb.geodesic(metric, a, b, starts=("bends", path.curve))
    assert torch.allclose(again.length, path.length, rtol=1e-3)
    assert again.candidates.shape == (2, 3, 3 if d == 2 else 5)


# graphs


def test_paths_through_a_graph_are_its_own():
    metric = pb.Pullback(hill)
    graph = all_starts(metric)["graph"]
    a, b = points(4, seed=1, scale=0.5), points(4, seed=2, scale=0.5)
    assert torch.equal(start_nodes(metric, a, b, graph)[0], graph.curves(metric, a, b)[0].nodes)


class Half:
    """Paths for pairs whose start is right of zero; it raises left of -2."""

    def curves(self, metric, start, end):
        if (start[:, 0] < -2).any():
            raise ValueError("out of range")
        return pb.Curve.straight(start, end, 4), start[:, 0] > 0


def test_pairs_that_a_graph_does_not_join_start_straight_and_are_named():
    a, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]], dtype=F64), points(3, seed=2)
    with pytest.warns(pb.GeodesicWarning, match=r"no path for 2 of 3 pairs \(1, 2\)") as told:
        path = pb.geodesic(FLAT, a, b, starts=Half())
    assert told[0].filename == __file__
    assert torch.allclose(path.length, (b - a).norm(dim=1))


def test_what_a_graph_raises_on_all_pairs_is_the_users():
    a = torch.full((3, 2), -3.0, dtype=F64)
    with pytest.raises(ValueError, match="out of range"):
        pb.geodesic(FLAT, a, a + 1, init=Half())


# what is no start


@pytest.mark.parametrize("name", ["init", "starts"])
def test_what_is_no_start_is_refused_with_what_would_be(name):
    a, b = points(3, seed=1), points(3, seed=2)
    bad = [
        ("bend", ValueError, '\'bend\' is no start: give "straight", "bends", a Curve, a Graph'),
        (("straight", "zigzag"), ValueError, "'zigzag' is no start"),
        ((), ValueError, "`starts` is empty"),
        (a, TypeError, f"`{name}` is a Tensor"),
        (("straight", a), TypeError, f"`{name}` is a Tensor"),
        (3, TypeError, f"`{name}` is a int"),
        (pb.Curve.straight(a[0], b[0]), ValueError, rf"`{name}` holds curves \(2, 2\): want \(3, 'T \+ 1', 2\)"),
        (pb.Curve.straight(points(3, 3), points(3, 3, 1)), ValueError, r"nodes \(3, 2, 3\): want \(3, 'T \+ 1', 2\)"),
        (pb.Curve.straight(b, a), ValueError, "ends are not `start` and `end`"),
        (pb.Curve.straight(a.float(), b.float()), ValueError, "dtype float32"),
    ]
    for start, kind, message in bad:
        with pytest.raises(kind, match=message):
            pb.geodesic(FLAT, a, b, **{name: start})


def test_init_and_starts_together_are_refused():
    a, b = points(2)
    with pytest.raises(ValueError, match="put all into `starts`"):
        pb.geodesic(FLAT, a, b, init="bends", starts=("straight", "bends"))


def test_the_reported_cost_of_several_starts_is_what_the_decoder_saw(counting):
    counter = counting(hill)
    metric = pb.Pullback(counter)
    metric.points_at_once(LEFT)
    counter.reset()
    path = pb.geodesic(metric, LEFT, RIGHT, starts=("straight", "bends"))
    assert counter.evaluations == path.evaluations
    assert math.isclose(float(path.length), 2.8459, rel_tol=1e-4)
