import copy
import os
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.poincare_half_space import PoincareHalfSpace
from geomstats.learning.frechet_mean import FrechetMean
from geomstats.learning.kmeans import RiemannianKMeans
from geomstats.learning.knn import KNearestNeighborsClassifier
from geomstats.learning.pca import TangentPCA
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from torch import nn

import pullback as pb
from pullback.interop import to_geomstats
from small import F64, Bowl, mlp, randn

SPHERE = pb.surfaces.Sphere()
HYPERBOLIC = [
    (pb.surfaces.PoincareBall(), PoincareBall(2), np.zeros(2)),
    (pb.surfaces.HyperbolicHalfPlane(), PoincareHalfSpace(2), np.array([0.0, 2.0])),
]
MODEL_TOL = 1e-3


def randoms(*shape, seed=0):
    return randn(*shape, seed=seed).numpy()


def on_the_sphere(z):
    """Latent points (..., 2) as geomstats has them: (..., 3)."""
    return SPHERE(torch.from_numpy(z)).numpy()


def pushed(z, v):
    """Latent tangents as geomstats has them: J v."""
    return torch.func.jvp(SPHERE, (torch.from_numpy(z),), (torch.from_numpy(v),))[1].numpy()


def close(found, wanted, tol=1e-5):
    return np.abs(found - wanted).max() <= tol * max(1.0, np.abs(wanted).max())


def run(code, **environment):
    """A program in a process of its own, for geomstats is imported once, with one backend."""
    command, environment = [sys.executable, "-c", textwrap.dedent(code)], {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def sphere():
    return to_geomstats(pb.Pullback(SPHERE), 2, tol=1e-6)


@pytest.fixture(scope="module")
def framed_sphere():
    return to_geomstats(pb.Pullback(SPHERE), 2, tol=1e-6, frame="orthonormal")


@pytest.fixture(scope="module")
def model():
    return pb.models.pretrained("mnist012")


@pytest.fixture(scope="module")
def codes(model):
    """Six codes, two of each digit."""
    return np.concatenate([model.codes[model.labels == digit][[0, 5]].numpy() for digit in range(3)])


@pytest.fixture(scope="module")
def space(model):
    return to_geomstats(pb.Pullback(model.decoder), 2, tol=MODEL_TOL)


@pytest.fixture(scope="module")
def table(model, codes):
    """The same read off a table, a tenth of the time."""
    low, high = torch.from_numpy(codes.min(0) - 0.5), torch.from_numpy(codes.max(0) + 0.5)
    metric = pb.Tabulated(pb.Pullback(model.decoder), torch.stack((low, high), 1), resolution=65)
    return to_geomstats(metric, 2, tol=MODEL_TOL)


# geomstats' closed forms as oracles


def test_on_a_sphere_all_maps_are_those_of_geomstats_hypersphere(sphere):
    ours, theirs = sphere.metric, Hypersphere(2).metric
    z, w, v = (0.5 * randoms(5, 2, seed=seed) for seed in range(3))
    x, y, u = on_the_sphere(z), on_the_sphere(w), pushed(z, v)
    assert close(ours.dist(z, w), theirs.dist(x, y))
    assert close(ours.squared_dist(z, w), theirs.squared_dist(x, y))
    assert close(ours.dist_pairwise(z), theirs.dist_pairwise(x))
    assert close(ours.diameter(z), theirs.diameter(x))
    assert close(ours.dist_broadcast(z, w[:4]), theirs.dist_broadcast(x, y[:4]))
    assert close(on_the_sphere(ours.exp(v, z)), theirs.exp(u, x))
    assert close(pushed(z, ours.log(w, z)), theirs.log(y, x), 1e-4)
    assert close(ours.norm(v, z), theirs.norm(u, x))
    assert close(ours.inner_product(v, z, z), theirs.inner_product(u, pushed(z, z), x))
    t = np.array([0.0, 0.3, 1.0])
    assert close(on_the_sphere(ours.geodesic(z, w)(t)), theirs.geodesic(x, end_point=y)(t), 1e-4)
    assert close(
        on_the_sphere(ours.geodesic(z[0], initial_tangent_vec=v[0])(3 * t)),
        theirs.geodesic(x[0], initial_tangent_vec=u[0])(3 * t),
    )


def test_vectors_carried_over_a_sphere_are_those_of_geomstats_hypersphere(sphere):
    ours, theirs = sphere.metric, Hypersphere(2).metric
    z, w, v, way = (0.4 * randoms(2, 2, seed=seed) for seed in range(4))
    x, u = on_the_sphere(z), pushed(z, v)
    to_end, along = ours.parallel_transport(v, z, end_point=w), ours.parallel_transport(v, z, direction=way)
    assert close(pushed(w, to_end), theirs.parallel_transport(u, x, end_point=on_the_sphere(w)), 1e-4)
    assert close(pushed(ours.exp(way, z), along), theirs.parallel_transport(u, x, direction=pushed(z, way)), 1e-4)


@pytest.mark.parametrize(("ours", "theirs", "center"), HYPERBOLIC, ids=["ball", "half space"])
def test_in_hyperbolic_space_all_maps_are_those_of_geomstats(ours, theirs, center):
    ours, theirs = to_geomstats(ours, 2, tol=1e-6).metric, theirs.metric
    z, w, v = (center + 0.25 * randoms(6, 2, seed=seed) for seed in range(3))
    v = v - center
    assert close(ours.dist(z, w), theirs.dist(z, w))
    assert close(ours.exp(v, z), theirs.exp(v, z))
    assert close(ours.log(w, z), theirs.log(w, z), 1e-4)
    assert close(ours.inner_product(v, w, z), theirs.inner_product(v, w, z))
    t = np.array([0.0, 0.3, 1.0])
    assert close(ours.geodesic(z[0], w[0])(t), theirs.geodesic(z[0], end_point=w[0])(t), 1e-4)


def test_curvature_by_geomstats_names_has_the_values_and_index_order_that_geomstats_has(sphere, framed_sphere):
    # geomstats' own: the sphere's closed form agrees; its torch backend is wrong, see below
    z, u, v, w = (0.6 * randoms(5, 2, seed=seed) for seed in range(4))
    theirs = Hypersphere(2).metric
    x, (a, b, c) = on_the_sphere(z), (pushed(z, t) for t in (u, v, w))
    assert close(pushed(z, sphere.metric.curvature(u, v, w, z)), theirs.curvature(a, b, c, x))
    for space in (sphere, framed_sphere):
        assert close(space.metric.sectional_curvature(u, v, z), 1.0)
        assert close(space.metric.scalar_curvature(z), 2.0)
        assert close(space.metric.ricci_tensor(z), space.metric.metric_matrix(z))
        flipped = space.metric.covariant_riemann_tensor(z).swapaxes(-1, -2)
        assert close(space.metric.covariant_riemann_tensor(z), -flipped)
    hyperbolic = to_geomstats(pb.surfaces.PoincareBall(), 2).metric
    assert close(hyperbolic.sectional_curvature(u, v, 0.5 * z), -1.0)


def test_the_index_order_of_curvature_and_christoffels_is_theirs_where_nothing_is_symmetric():
    metric, z = pb.MatrixField(Bowl()), randn(3, 3)
    ours = to_geomstats(metric, 3).metric
    u, v, w = (randoms(3, 3, seed=seed) for seed in range(1, 4))
    curved = ours.curvature(u, v, w, z.numpy())  # R(u, v) w
    third = randoms(3, 3, seed=7)
    lowered = torch.einsum(
        "...lijk,...l,...i,...j,...k", pb.curvature.riemann(metric, z), *map(torch.from_numpy, (third, w, u, v))
    )
    assert close(ours.inner_product(curved, third, z.numpy()), lowered.numpy())
    gamma = np.einsum("...kij,...i,...j->...k", ours.christoffels(z.numpy()), u, v)
    assert close(gamma, metric.christoffel(z, *map(torch.from_numpy, (u, v))).numpy())
    state = np.stack((z.numpy(), u), 1)
    assert close(ours.geodesic_equation(state)[:, 1], -metric.christoffel(z, *2 * (torch.from_numpy(u),)).numpy())


def test_orthonormal_frames_make_inner_products_those_of_numbers(sphere, framed_sphere):
    metric = pb.Pullback(mlp(3))
    plain, framed = (to_geomstats(metric, 3, tol=1e-6, frame=f).metric for f in ("coordinate", "orthonormal"))
    z, w, v = randoms(4, 3), randoms(4, 3, seed=1), randoms(4, 3, seed=2)
    logs = framed.log(w, z)
    assert np.allclose(np.linalg.norm(logs, axis=1), framed.dist(z, w), rtol=1e-12)
    assert close(framed.norm(logs, z), plain.norm(plain.log(w, z), z))
    assert close(framed.inner_product(logs, v, z), (logs * v).sum(1), 1e-12)
    assert close(framed.metric_matrix(z), np.eye(3)[None].repeat(4, 0), 1e-12)
    assert close(framed.exp(logs, z), w, 1e-4)
    assert close(framed.exp(logs, z), plain.exp(plain.log(w, z), z), 1e-9)
    carried = framed.parallel_transport(np.stack((v, logs)), z, end_point=w)
    assert close((carried[0] * carried[1]).sum(1), (v * logs).sum(1), 1e-3)
    ends = framed.geodesic(z, initial_tangent_vec=logs)(1.0)
    assert close(ends[:, 0], framed.exp(logs, z), 1e-9)


# Learners


def test_frechet_means_on_a_sphere_are_those_of_geomstats_hypersphere(sphere, framed_sphere):
    z = 0.4 * randoms(10, 2)
    weights = np.arange(1.0, 11)
    theirs = FrechetMean(Hypersphere(2)).set(epsilon=1e-12).fit(on_the_sphere(z), weights=weights).estimate_
    for space in (sphere, framed_sphere):
        ours = FrechetMean(space).set(epsilon=1e-12).fit(z, weights=weights).estimate_
        assert close(on_the_sphere(ours), theirs, 1e-4)


@pytest.mark.parametrize("method", ["adaptive", "batch"])
def test_other_ways_down_to_the_mean_work_too(sphere, method):
    z = 0.4 * randoms(5, 2)
    theirs = FrechetMean(Hypersphere(2)).set(epsilon=1e-12).fit(on_the_sphere(z)).estimate_
    points = np.stack((z, -z), 1) if method == "batch" else z
    ours = FrechetMean(sphere, method=method).set(epsilon=1e-5).fit(points).estimate_
    assert close(on_the_sphere(ours.reshape(-1, 2))[0], theirs, 1e-3)
    assert method != "batch" or close(ours[1], -ours[0], 1e-4)


def test_tangent_pca_on_a_sphere_is_that_of_geomstats_hypersphere_in_orthonormal_frames_alone(sphere, framed_sphere):
    z, center = randoms(12, 2) * np.array([0.5, 0.1]) + np.array([0.8, 0.3]), np.array([0.8, 0.3])
    theirs = TangentPCA(Hypersphere(2), n_components=2).fit(on_the_sphere(z), base_point=on_the_sphere(center))
    framed, plain = (TangentPCA(s, n_components=2).fit(z, base_point=center) for s in (framed_sphere, sphere))
    assert close(framed.explained_variance_, theirs.explained_variance_)
    assert close(np.abs(framed.transform(z)), np.abs(theirs.transform(on_the_sphere(z))), 1e-4)
    assert close(framed.inverse_transform(framed.transform(z)), z, 1e-4)
    assert not close(plain.explained_variance_, theirs.explained_variance_, 0.1)  # geomstats forgets the metric


def test_the_frechet_mean_of_codes_has_less_variance_by_our_distances_than_its_neighbors(model, codes, space):
    metric, points = pb.Pullback(model.decoder), torch.from_numpy(codes)
    mean = torch.from_numpy(FrechetMean(space).set(epsilon=1e-4, init_point=codes.mean(0)).fit(codes).estimate_)
    aside = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=F64)
    aside = aside / metric.norm(mean, aside).clamp_min(1e-9)[:, None]  # by 1 in data space; codes are 5 to 25 apart
    near = (mean + aside)[:, None].requires_grad_()
    variance = pb.distance(metric, near, points).square().mean(1)
    assert (variance[1:] > variance[0] + 0.5).all()  # in flat space by 1
    (slope,) = torch.autograd.grad(variance[0], near)  # of length 2 at a distance of 1 from the mean
    assert torch.linalg.solve(metric.matrix(mean), slope[0, 0]) @ slope[0, 0] < 0.1**2
    assert pb.distance(metric, pb.frechet_mean(metric, points, tol=1e-3), mean) < 0.1


@pytest.mark.filterwarnings("ignore:the table is singular")  # trial curves reach the table's walls
def test_k_means_of_codes_gives_each_its_nearest_center_and_centers_the_means_of_theirs(codes, table):
    codes = codes[:4]
    learner = RiemannianKMeans(table, n_clusters=2, tol=0.5, init=codes[::2].copy()).fit(codes)
    check_k_means(codes, table, learner)
    ours = pb.KMeans(table.settings.metric, 2, assignment="geodesic", random_state=0).fit(codes)
    assert adjusted_rand_score(ours.labels_, learner.labels_) == 1
    assert np.isclose(ours.inertia_, learner.inertia_, rtol=1e-2)


def check_k_means(codes, space, learner):
    metric, centers = space.settings.metric, torch.from_numpy(learner.cluster_centers_)
    far = pb.distance(metric, torch.from_numpy(codes)[:, None], centers, tol=1e-4)
    assert np.array_equal(far.argmin(1).numpy(), learner.labels_)
    assert np.array_equal(learner.predict(codes), learner.labels_)
    assert np.isclose(learner.inertia_, float(far.amin(1).square().sum()), rtol=1e-2)
    for label, center in enumerate(centers):
        own = torch.from_numpy(codes[learner.labels_ == label])
        step = pb.log(metric, center, own, polish=False).mean(0)
        assert metric.norm(center, step) < 0.1 * far.mean()


def test_tangent_pca_of_codes_is_that_of_tangent_vectors_in_data_space(model, codes, space):
    # J log is the tangent vector among the images: plain PCA there needs no frame
    framed = to_geomstats(pb.Pullback(model.decoder), 2, tol=MODEL_TOL, frame="orthonormal")
    base = codes[0] + 0.1
    learner = TangentPCA(framed, n_components=2).fit(codes, base_point=base)
    jacobian = torch.func.jacfwd(lambda z: space.settings.metric.features(z[None])[0])(torch.from_numpy(base)).numpy()
    tangents = space.metric.log(codes, base) @ jacobian.T
    values = np.linalg.svd(tangents - tangents.mean(0), compute_uv=False)[:2] ** 2 / (len(codes) - 1)
    assert close(learner.explained_variance_, values)
    assert not close(TangentPCA(space).fit(codes, base_point=base).explained_variance_, values, 0.5)


def test_principal_geodesics_are_those_of_geomstats_tangent_pca(framed_sphere):
    metric, z = pb.Pullback(SPHERE), 0.4 * randn(12, 2) + 0.2
    ours = pb.principal_geodesics(metric, z)
    theirs = TangentPCA(framed_sphere, n_components=2).fit(z.numpy(), base_point=ours.mean.numpy())
    assert close(ours.explained_variance.numpy(), theirs.explained_variance_, 1e-3)
    assert close(ours.explained_variance_ratio.numpy(), theirs.explained_variance_ratio_, 1e-3)


@pytest.mark.slow
def test_the_mean_of_codes_stands_still_under_karcher_flow_by_shooting_and_k_means_works_on_the_decoder(model, codes):
    metric, points = pb.Pullback(model.decoder), torch.from_numpy(codes)
    space = to_geomstats(metric, 2)
    found = torch.from_numpy(FrechetMean(space).set(epsilon=1e-8, init_point=codes.mean(0)).fit(codes).estimate_)
    for aside, still in ((0.0, True), (0.05, False)):
        step = metric.norm(found, pb.log(metric, found + aside, points, tol=1e-5).mean(0))
        assert (step < 5e-3) == still
    check_k_means(codes, space, RiemannianKMeans(space, n_clusters=3, init=codes[::2].copy(), tol=0.1).fit(codes))


def test_neighbors_of_codes_are_found_by_geodesic_distance(codes, table):
    learner = KNearestNeighborsClassifier(table, n_neighbors=1).fit(codes, np.arange(6))
    assert np.array_equal(learner.predict(codes[4:]), [4, 5])


def test_tensors_learn_on_the_torch_backend_whose_own_curvature_is_wrong():
    # geomstats 2.8 differentiates its Christoffel symbols by torch without the graph of the derivative inside them: the
    # curvature that it finds on the unit sphere is 0, in hyperbolic space +1; ours is not affected
    code = """
        import warnings
        import torch
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        from geomstats.geometry.base import ImmersedSet
        from geomstats.geometry.euclidean import Euclidean
        from geomstats.geometry.poincare_ball import PoincareBall
        from geomstats.learning.frechet_mean import FrechetMean
        from geomstats.learning.kmeans import RiemannianKMeans
        import pullback as pb
        from pullback.interop import to_geomstats
        sphere = pb.surfaces.Sphere()
        class Immersed(ImmersedSet):
            def __init__(self): super().__init__(dim=2)
            def _define_embedding_space(self): return Euclidean(3)
            def immersion(self, point): return sphere(point)
        z = 0.4 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        space = to_geomstats(pb.Pullback(sphere), 2, tol=1e-3)
        mean = FrechetMean(space).set(epsilon=1e-4).fit(z).estimate_
        assert pb.log(space.settings.metric, mean, z, polish=False).mean(0).norm() < 2e-2
        learner = RiemannianKMeans(space, n_clusters=1, init=mean[None].clone(), tol=0.5).fit(z)
        assert (learner.labels_ == 0).all()
        assert learner.cluster_centers_.shape == (1, 2)
        assert abs(space.metric.scalar_curvature(z[0]) - 2) < 1e-9
        print(float(Immersed().metric.scalar_curvature(z[0])), float(PoincareBall(2).metric.scalar_curvature(z[0])))
    """
    done = run(code, GEOMSTATS_BACKEND="pytorch")
    on_sphere, hyperbolic = map(float, done.stdout.split()[-2:])
    assert abs(on_sphere) < 1e-9, "geomstats gives 2 now: say so in docs/geomstats.md"
    assert hyperbolic != pytest.approx(-2), "geomstats gives -2 now: say so in docs/geomstats.md"


# Arrays and tensors, copies


def test_arrays_give_arrays_and_tensors_give_tensors_of_their_kind(sphere):
    metric, z, w = sphere.metric, 0.4 * randn(3, 2), 0.4 * randn(3, 2, seed=1)
    for call in (
        metric.squared_dist, metric.log, metric.exp, metric.norm, lambda a, b: metric.dist_pairwise(a),
        lambda a, b: metric.geodesic(a, b)([0.0, 1.0]), lambda a, b: metric.riemann_tensor(a),
        lambda a, b: metric.christoffels(a), lambda a, b: metric.metric_matrix(a),
    ):  # fmt: skip
        arrays, tensors = call(z.numpy(), w.numpy()), call(z, w)
        assert isinstance(arrays, np.ndarray)
        assert isinstance(tensors, torch.Tensor)
        assert tensors.dtype == F64
        assert np.array_equal(arrays, tensors.numpy())
    metric = to_geomstats(pb.Pullback(SPHERE), 2, tol=1e-3).metric
    for call in (metric.dist, metric.log, metric.exp):
        assert call(z.float(), w.float()).dtype == torch.float32
        assert call(z.float().numpy(), w.float().numpy()).dtype == np.float32
    assert metric.dist([0, 0], [1, 0]) == pytest.approx(np.pi / 2)  # whole numbers
    assert isinstance(metric.dist(z, w.numpy()), torch.Tensor)


def test_batches_of_any_shape_broadcast_and_single_points_and_empty_batches_do(sphere):
    metric, z, w = sphere.metric, 0.4 * randoms(2, 3, 2), 0.4 * randoms(3, 2, seed=1)
    for call in (metric.dist, metric.norm, metric.log, metric.exp):
        whole = call(z, w)
        assert close(call(z[1, 2], w[2]), whole[1, 2], 1e-7)
        assert close(call(z, w[2])[:, 2], whole[:, 2], 1e-7)
        assert call(np.zeros((0, 2)), w[0]).shape[0] == 0
    assert metric.dist_pairwise(w[:1]).tolist() == [[0.0]]
    assert metric.geodesic(w, w[::-1])(0.5).shape == (3, 1, 2)
    assert metric.geodesic(z, initial_tangent_vec=w)([0.0, 0.5]).shape == (2, 3, 2, 2)


def test_the_logarithm_of_a_point_at_itself_is_zero_and_in_one_dimension_it_is_a_difference_of_lengths(sphere):
    z = 0.4 * randoms(2, 2)
    assert np.array_equal(sphere.metric.log(z, z), np.zeros((2, 2)))
    line = to_geomstats(pb.Pullback(lambda z: torch.cat((z.cos(), z.sin()), -1)), 1).metric
    assert close(line.log(np.array([[1.5], [-0.5]]), np.array([0.5])), np.array([[1.0], [-1.0]]))


def test_polished_logarithms_hit_closer():
    metric, z, w = pb.Pullback(mlp()), randoms(2, 2), randoms(2, 2, seed=1)
    misses = []
    for settings in ({}, {"polish": True}):
        velocity = torch.from_numpy(to_geomstats(metric, 2, **settings).metric.log(w, z))
        misses.append(np.abs(pb.exp(metric, torch.from_numpy(z), velocity).end.numpy() - w).max())
    assert misses[0] < 1e-4
    assert misses[1] < 0.1 * misses[0]


def test_logarithms_are_the_same_however_small_the_memory():
    z, w = randoms(9, 2), randoms(9, 2, seed=1)
    large, small = (to_geomstats(pb.Pullback(mlp(), memory=m), 2).metric.log(w, z) for m in (None, 20_000))
    assert np.allclose(large, small, rtol=1e-9)


def test_only_distances_carry_gradients_and_only_to_points_that_want_them(sphere):
    decoder = mlp()
    metric = to_geomstats(pb.Pullback(decoder), 2).metric
    z, w = randn(3, 2).requires_grad_(), randn(3, 2, seed=1)
    (slope,) = torch.autograd.grad(0.5 * metric.squared_dist(z, w).sum(), z)
    raised = -(metric.metric_matrix(z) @ metric.log(w, z)[..., None])[..., 0]
    assert torch.allclose(slope, raised, rtol=1e-3, atol=1e-4)
    for found in (metric.dist(z.detach(), w), metric.log(w, z), metric.exp(w, z), metric.dist_pairwise(z)):
        assert not found.requires_grad
    assert all(p.requires_grad and p.grad is None for p in decoder.parameters())


def test_spaces_are_pickled_copied_and_cloned_with_what_refers_to_them(model):
    space = to_geomstats(pb.Pullback(model.decoder), 2, tol=1e-3, frame="orthonormal", solver="relax")
    a, b = model.codes[:2].numpy()
    there = pickle.loads(pickle.dumps(space))
    assert there.metric._space is there
    assert type(there) is type(space)
    for other in (there.metric, pickle.loads(pickle.dumps(space.metric)), copy.deepcopy(space).metric):
        assert other.dist(a, b) == space.metric.dist(a, b)
    assert clone(TangentPCA(space)).space.settings.frame == "orthonormal"


def test_a_graph_to_start_from_and_a_multiple_of_the_metric_do():
    metric, z = pb.Pullback(mlp()), randn(30, 2)
    graph = pb.knn_graph(metric, z, 5)
    plain, started = (to_geomstats(metric, 2, starts=s).metric for s in ("straight", ["straight", graph]))
    assert (started.dist_pairwise(z[:4]) <= plain.dist_pairwise(z[:4]) * (1 + 1e-4)).all()
    for unknown in ({"starts": "nowhere"}, {"solver": "nobody"}):
        with pytest.raises(ValueError, match=r"'nowhere' is no start|`solver` is 'nobody'"):
            to_geomstats(metric, 2, **unknown).metric.log(z[0], z[1])
    a, b = z[:2].numpy()
    assert (4.0 * plain).dist(a, b) == pytest.approx(2 * plain.dist(a, b))


# What does not work, and says so


class Torn(nn.Module):
    """A plane that is not finite for x > 0."""

    def forward(self, z):
        return torch.where(z[:, :1] > 0, torch.nan, z)


def test_pairs_without_a_geodesic_raise_or_are_nan_and_the_others_are_found():
    apart, a, b = pb.Pullback(Torn()), -np.eye(2), np.array([[-2.0, 0.0], [1.0, 0.0]])
    raising = to_geomstats(apart, 2).metric
    for name, call in (
        ("dist", lambda: raising.dist(a, b)), ("log", lambda: raising.log(b, a)),
        ("geodesic", lambda: raising.geodesic(a, b)), ("exp", lambda: raising.exp(b - a, a)),
        ("parallel_transport", lambda: raising.parallel_transport(a, a, end_point=b)),
        ("dist_pairwise", lambda: raising.dist_pairwise(b)),
        ("exp", lambda: raising.parallel_transport(a, a, direction=b - a)),
    ):  # fmt: skip
        with pytest.raises(pb.ConvergenceError, match=f"`{name}`: .*on_failure="):
            call()
    silent = to_geomstats(apart, 2, on_failure="nan").metric
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [
            silent.dist(a, b)[:, None], silent.log(b, a), silent.exp(b - a, a), silent.geodesic(a, b)([0.5])[:, 0],
            silent.parallel_transport(a, a, end_point=b), silent.parallel_transport(a, a, direction=b - a),
        ]  # fmt: skip
    for values in found:
        assert np.isfinite(values[0]).all()
        assert np.isnan(values[1]).all()
    assert {warning.category for warning in said} == {pb.GeodesicWarning}


def test_a_base_point_where_the_metric_is_singular_has_no_logarithm():
    funnel = to_geomstats(pb.Pullback(lambda z: torch.stack((z[:, 0] ** 3, z[:, 1]), 1)), 2).metric
    assert np.isfinite(funnel.log(np.array([2.0, 1.0]), np.array([1.0, 1.0]))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.RankWarning)
        with pytest.raises(pb.ConvergenceError, match=r"`log`: .*singular .pairs .1.."):
            funnel.log(np.array([2.0, 1.0]), np.array([[1.0, 1.0], [0.0, 1.0]]))


def test_a_decoder_with_creases_has_logarithms_but_no_exp():
    metric = pb.Pullback(mlp(activation=nn.ReLU))
    space = to_geomstats(metric, 2, tol=1e-3)
    z, w = randoms(4, 2), randoms(4, 2, seed=1)
    assert np.allclose(space.metric.norm(space.metric.log(w, z), z), space.metric.dist(z, w))
    with pytest.raises(pb.ConvergenceError, match=r"`exp`: .*not smooth"):
        space.metric.exp(space.metric.log(w, z), z)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, z: m.dist(z, np.ones(3)), r"`point_b` has shape \(3,\) but the space has dimension 2"),
        (lambda m, z: m.log(np.ones((4, 3)), z), r"`point` has shape \(4, 3\) but the space has dimension 2"),
        (lambda m, z: m.dist(1.0, z), r"`point_a` has shape \(\)"),
        (lambda m, z: m.norm(z), "`base_point` is missing: this metric changes from point to point"),
        (lambda m, z: m.inner_product(z, z), "`base_point` is missing"),
        (lambda m, z: m.metric_matrix(), "`base_point` is missing"),
        (lambda m, z: m.scalar_curvature(), "`base_point` is missing"),
        (lambda m, z: m.dist(z, np.full(2, np.nan)), "`point_b` holds NaN or infinity"),
        (lambda m, z: m.dist(z, z[:2]), r"`point_a` \(3, 2\), `point_b` \(2, 2\); want equal ones"),
        (lambda m, z: m.dist(z.astype(np.float16), z.astype(np.float16)), "dtype float16"),
        (lambda m, z: m.dist_pairwise(z[0]), r"`points` has shape \(2,\)"),
        (lambda m, z: m.geodesic(z), "give one of `end_point` and `initial_tangent_vec`"),
        (lambda m, z: m.geodesic(z, z, z), "give one of `end_point` and `initial_tangent_vec`"),
        (lambda m, z: m.parallel_transport(z, z), "give one of `direction` and `end_point`"),
        (lambda m, z: m.geodesic(z, z)(2.0), "a curve is defined on"),
    ],
)
def test_arguments_that_do_not_fit_are_named(sphere, call, message):
    with pytest.raises(ValueError, match=message):
        call(sphere.metric, 0.3 * randoms(3, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame": "othonormal"}, "`frame` is 'othonormal': want one of 'coordinate', 'orthonormal'"),
        ({"on_failure": "ignore"}, "`on_failure` is 'ignore': want one of 'raise', 'nan'"),
        ({"dim": 0}, "`dim` is 0: want an integer, 1 or more"),
        ({"dim": 2.0}, "`dim` is 2.0: want an integer"),
        ({"tol": 0.0}, "`tol` is 0.0"),
    ],
)
def test_settings_that_do_not_exist_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        to_geomstats(pb.Pullback(SPHERE), **{"dim": 2, **settings})


def test_a_decoder_in_place_of_a_metric_and_a_wrong_dimension_are_named(framed_sphere):
    with pytest.raises(TypeError, match="a decoder is wrapped as Pullback"):
        to_geomstats(SPHERE, 2)
    with pytest.raises(ValueError, match="latent dimension 3"):
        to_geomstats(pb.Pullback(mlp(2)), 3).metric.dist(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match=r"belong to coordinates.*to_geomstats\(metric, dim\)"):
        framed_sphere.metric.christoffels(np.zeros(2))
    with pytest.raises(ValueError, match="not positive definite"):
        to_geomstats(pb.Pullback(lambda z: z[:, :1]), 2, frame="orthonormal").metric.exp(np.ones(2), np.zeros(2))


def test_numpy_without_trapz_is_named_with_the_pin_that_helps_and_so_is_a_missing_geomstats():
    # what NumPy 2.4 does to geomstats 2.8, in a process of its own: half an import would stay behind
    code = """
        import sys
        import warnings
        import numpy
        warnings.simplefilter("ignore")
        import torch
        import pullback as pb
        metric = pb.Pullback(torch.nn.Identity())
        pb.interop
        assert "geomstats" not in sys.modules
        for break_it in (lambda: sys.modules.update(geomstats=None), lambda: delattr(numpy, "trapz")):
            break_it()
            try:
                pb.interop.to_geomstats(metric, 2)
            except ImportError as error:
                print(error)
            sys.modules.pop("geomstats", None)
    """
    done = run(code)
    missing, old = done.stdout.splitlines()
    assert "geomstats" in missing
    assert "trapz" not in missing
    assert old.endswith(f'with numpy {np.__version__}, which has no `trapz` any more: pip install "numpy<2.4".')
