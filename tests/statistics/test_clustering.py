import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from torch import nn

import pullback as pb
from pullback.statistics.lloyd import lloyd, seeds, swapped
from small import F64, mlp, randn

FLAT = pb.Pullback(nn.Identity())
ROUND = pb.Pullback(pb.surfaces.Sphere())


def groups(n=20, k=3, spread=0.1, seed=0):
    """Points (k n, 2) around the corners of a polygon, and which ones."""
    angle = torch.arange(k, dtype=F64) * 2 * np.pi / k
    corners = torch.stack((angle.cos(), angle.sin()), 1)
    return (corners[:, None] + spread * randn(k, n, 2, seed=seed)).reshape(-1, 2), np.repeat(np.arange(k), n)


def same(labels, truth):
    """Whether two labelings are the same but for names."""
    pairs = set(zip(np.asarray(labels).tolist(), truth.tolist(), strict=True))
    return len(pairs) == len(set(truth.tolist())) == len({a for a, _ in pairs})


def squares(points):
    return (points[:, None] - points[None]).square().sum(-1).numpy()


def own(n):
    return np.stack((np.arange(n), np.arange(n)))


@pytest.mark.parametrize("assignment", ["graph", "geodesic"])
def test_groups_on_a_sphere_are_found(assignment):
    codes, truth = groups(8)
    kmeans = pb.KMeans(ROUND, 3, assignment=assignment, random_state=0).fit(codes)
    assert same(kmeans.labels_, truth)
    assert kmeans.n_failed_ == 0
    assert same(kmeans.predict(codes), truth)


def test_on_a_plane_centers_are_near_those_of_euclidean_k_means():
    from sklearn.cluster import KMeans

    codes, _ = groups(60, spread=0.2)
    ours = pb.KMeans(FLAT, 3, random_state=0).fit(codes)
    theirs = KMeans(3, random_state=0).fit(codes.numpy())
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=0.05)  # paths are a little longer than lines
    order = [int(np.argmin(((theirs.cluster_centers_ - c) ** 2).sum(1))) for c in ours.cluster_centers_.numpy()]
    assert np.abs(ours.cluster_centers_.numpy() - theirs.cluster_centers_[order]).max() < 0.05


def test_by_geodesics_centers_on_a_plane_are_those_of_euclidean_k_means():
    codes, truth = groups(10)
    kmeans = pb.KMeans(FLAT, 3, assignment="geodesic", random_state=0, tol=0).fit(codes)
    for center in kmeans.cluster_centers_:
        mine = codes[kmeans.labels_ == kmeans.predict(center[None])[0]]
        torch.testing.assert_close(center, mine.mean(0), rtol=0, atol=1e-3)
    assert same(kmeans.labels_, truth)


def test_walls_part_what_is_close_in_latent_space():
    # two bars side by side with a wall between: Euclidean clusters cut both in halves, those of the metric do not
    wall = pb.Pullback(lambda z: torch.cat((z, 20 * torch.sigmoid(40 * z[:, 1:])), 1))
    t = torch.linspace(-1, 1, 30, dtype=F64)
    codes = torch.cat([torch.stack((t, torch.full_like(t, y)), 1) for y in (-0.2, 0.2)])
    truth = np.repeat([0, 1], 30)
    assert same(pb.KMeans(wall, 2, random_state=0).fit_predict(codes), truth)
    assert not same(pb.KMeans(FLAT, 2, random_state=0).fit_predict(codes), truth)
    assert same(pb.KMedoids(wall, 2, random_state=0).fit_predict(codes), truth)


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_the_inertia_never_rises_and_is_that_of_the_labels(seed, k, power):
    points = randn(25, 2, seed=seed)
    costs = squares(points) ** (power / 2)
    start = seeds(costs, own(25), k, torch.Generator().manual_seed(seed))
    found = lloyd(costs, own(25), start, max_iter=50, tol=0.0)
    assert all(a >= b for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.inertia == pytest.approx(costs[:, found.centers].min(1).sum())
    assert (costs[:, found.centers].argmin(1) == found.labels).all()
    assert len(set(found.labels.tolist())) == k  # none is empty


@pytest.mark.parametrize("power", [1, 2])
def test_the_inertia_of_the_estimator_never_rises_also_off_the_graph(power):
    codes = randn(150, 2)
    kmeans = pb.KMeans(pb.Pullback(mlp()), 4, power=power, random_state=1, n_init=3, tol=0).fit(codes)
    assert all(a >= b for a, b in zip(kmeans.history_, kmeans.history_[1:], strict=False))
    assert kmeans.inertia_ == pytest.approx((kmeans.transform(codes).min(1).values ** power).sum())
    assert kmeans.score(codes) == pytest.approx(-kmeans.inertia_)
    assert torch.equal(kmeans.predict(codes), kmeans.labels_)


def test_centers_may_leave_the_points():
    codes = randn(200, 2)
    kmeans = pb.KMeans(pb.Pullback(mlp()), 6, random_state=0, n_init=1, tol=0).fit(codes)
    among = (kmeans.cluster_centers_[:, None] == codes[None]).all(-1).any(1)
    assert not among.all()
    there = kmeans.transform(kmeans.cluster_centers_)
    assert torch.equal(there.diagonal(), torch.zeros(6, dtype=F64))
    torch.testing.assert_close(there, there.mT, rtol=1e-9, atol=0)


def test_an_empty_cluster_gets_the_point_that_costs_most():
    points = torch.tensor([[0.0], [0.1], [0.2], [5.0]], dtype=F64)
    found = lloyd(squares(points), own(4), np.array([0, 0]), max_iter=50, tol=0.0)
    assert sorted(found.centers.tolist()) == [1, 3]


def test_seeds_are_spread_and_never_the_same_while_points_differ():
    points = torch.cat((randn(50, 2) * 0.01, randn(50, 2, seed=1) * 0.01 + 10))
    for seed in range(20):
        a, b = seeds(squares(points), own(100), 2, torch.Generator().manual_seed(seed))
        assert (a < 50) != (b < 50)


def test_medians_move_less_than_means_with_an_outlier():
    codes = torch.cat((0.1 * randn(40, 2), torch.tensor([[30.0, 0.0]], dtype=F64)))
    mean, median = (pb.KMeans(FLAT, 1, power=p, random_state=0).fit(codes).cluster_centers_[0] for p in (2, 1))
    assert median.norm() < 0.1 < mean.norm()


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_no_swap_of_a_medoid_lowers_the_sum(seed):
    distances = np.sqrt(squares(randn(12, 2, seed=seed)))
    found = swapped(distances, np.array([0, 1, 2]), max_iter=100)
    assert all(a > b for a, b in zip(found.history, found.history[1:], strict=False))
    for j in range(3):
        for candidate in range(12):
            other = found.centers.copy()
            other[j] = candidate
            assert distances[:, other].min(1).sum() >= found.inertia - 1e-12


def test_medoids_of_a_metric_are_those_of_its_precomputed_distances():
    codes, truth = groups(12)
    metric = pb.Pullback(mlp())
    ours = pb.KMedoids(metric, 3, random_state=0).fit(codes)
    given_matrix = pb.KMedoids("precomputed", 3, random_state=0).fit(pb.distance_matrix(metric, codes))
    assert ours.medoid_indices_.tolist() == given_matrix.medoid_indices_.tolist()
    assert torch.equal(ours.cluster_centers_, codes[ours.medoid_indices_])
    assert same(ours.labels_, truth)
    assert torch.equal(ours.predict(codes), ours.labels_)
    assert given_matrix.cluster_centers_ is None


def test_a_grid_graph_serves_any_points():
    codes, truth = groups(10)
    grid = pb.grid_graph(ROUND, torch.tensor([[-2.0, 2.0], [-2.0, 2.0]], dtype=F64), 25)
    kmeans = pb.KMeans(ROUND, 3, graph=grid, random_state=0).fit(codes)
    assert same(kmeans.labels_, truth)
    assert len(grid.points) == 625


def test_a_large_set_has_a_part_of_its_points_as_candidates(monkeypatch):
    monkeypatch.setattr("pullback.statistics.clustering._ENTRIES", 2000)
    codes, truth = groups(40)
    kmeans = pb.KMeans(ROUND, 3, random_state=0).fit(codes)
    assert same(kmeans.labels_, truth)
    assert kmeans.inertia_ == pytest.approx(kmeans.transform(codes).min(1).values.square().sum())


def test_points_without_a_path_have_no_label_and_are_counted():
    class Hole(nn.Module):
        def forward(self, z):
            return torch.where((z[:, :1] > 5).expand(-1, 2), torch.nan, z)

    codes, truth = groups(10)
    codes = torch.cat((codes, torch.tensor([[9.0, 0.0]], dtype=F64)))
    with pytest.warns(pb.PullbackWarning) as said:
        kmeans = pb.KMeans(pb.Pullback(Hole()), 3, random_state=0).fit(codes)
    assert any("do not count" in str(w.message) for w in said)
    assert kmeans.n_failed_ == 1
    assert kmeans.labels_[-1] == -1
    assert same(kmeans.labels_[:-1], truth)


@pytest.mark.parametrize("make", [pb.KMeans, pb.KMedoids])
def test_identical_points_make_one_cluster(make):
    codes = torch.zeros(6, 2, dtype=F64)
    one = make(FLAT, 1, random_state=0).fit(codes)
    assert one.inertia_ == 0
    if make is pb.KMeans:
        with pytest.warns(ConvergenceWarning, match="fewer distinct points"):
            make(FLAT, 2, random_state=0).fit(codes)


@pytest.mark.parametrize("make", [pb.KMeans, pb.KMedoids])
def test_a_cluster_of_identical_points_is_one_like_any(make):
    codes = torch.cat((torch.full((8, 2), 0.5, dtype=F64), randn(12, 2) + 9))
    found = make(FLAT, 2, n_init=2, random_state=0).fit(codes)
    assert same(found.labels_, torch.arange(20) >= 8)
    rest = found.labels_ == found.labels_[-1]
    far = found.transform(codes)[rest].amin(1)
    assert found.inertia_ == pytest.approx(float((far.square() if make is pb.KMeans else far).sum()), rel=1e-6)
    assert float(found.transform(codes[:1]).amin()) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: pb.KMeans(FLAT, 4).fit(x), "n_samples=3 points but `n_clusters` is 4"),
        (lambda x: pb.KMeans(FLAT, 0).fit(x), "`n_clusters` is 0"),
        (lambda x: pb.KMeans(FLAT, 2, power=3).fit(x), "`power` is 3"),
        (lambda x: pb.KMeans(FLAT, 2, assignment="line").fit(x), "`assignment` is 'line'"),
        (lambda x: pb.KMeans(FLAT, 2, n_init=0).fit(x), "`n_init` is 0"),
        (lambda x: pb.KMeans(FLAT, 2).fit(x * torch.nan), "NaN"),
        (lambda x: pb.KMedoids(FLAT, 4).fit(x), "n_samples=3 points but `n_clusters` is 4"),
        (lambda x: pb.KMedoids("precomputed", 2).fit(x), r"shape \(3, 2\)"),
        (lambda x: pb.KMedoids("precomputed", 2).fit(-torch.ones(3, 3)), "negative"),
        (lambda x: pb.KMedoids("precomputed", 2).fit(torch.arange(9.0).reshape(3, 3)), "both directions"),
    ],
)
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make(randn(3, 2))


def test_a_decoder_in_place_of_a_metric_is_refused():
    with pytest.raises(TypeError, match=r"Pullback\(decoder\)"):
        pb.KMeans(nn.Identity(), 2).fit(randn(5, 2))
