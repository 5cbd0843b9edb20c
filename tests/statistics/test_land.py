import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

import pullback as pb
from pullback.statistics.normalizer import matched, normalizer, standard_draws
from pullback.statistics.volume import Frames, _bundle, cast
from small import F64, Bowl, mlp, randn

SPHERE = pb.surfaces.Sphere()
COV = torch.tensor([[0.30, 0.10], [0.10, 0.15]], dtype=F64)


class Flat(pb.Metric):
    """The Euclidean metric in any number of dimensions."""

    def inner(self, z, u, v):
        return (u * v).sum(-1)

    def matrix(self, z):
        return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand(*z.shape, -1)

    def christoffel(self, z, u, v):
        return torch.zeros_like(z)


class Stretched(nn.Module):
    """The plane in coordinates whose areas grow: flat, though no latent line shows it."""

    def forward(self, z):
        return torch.stack((z[:, 0].sinh(), z[:, 1] + 0.5 * z[:, 0] ** 2), 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(n=30, seed=0):
    """Two groups of points in the plane."""
    x = randn(2 * n, 2, seed=seed)
    x[n:] = x[n:] * torch.tensor([0.7, 1.3], dtype=F64) + torch.tensor([5.0, 1.0], dtype=F64)
    return x


def on_sphere(n, seed, cov=COV):
    """Points of the Riemannian normal around the pole z = 0, where E = I / 2, from its closed form by rejection."""
    u = randn(6 * n, len(cov), seed=seed) @ torch.linalg.cholesky(cov).mT
    r = u.norm(dim=-1)
    u = u[(torch.rand(6 * n, generator=seeded(seed + 1000), dtype=F64) < r.sin() / r) & (r < math.pi)][:n]
    r = u.norm(dim=-1, keepdim=True)
    return u / r * torch.tan(r / 2)


def on_sphere_log_normalizer(cov=COV):
    """log of int exp(-u'cov^-1 u / 2) sin r dr dphi."""
    r, phi = torch.linspace(0, math.pi, 2001, dtype=F64), torch.linspace(0, 2 * math.pi, 361, dtype=F64)[:-1]
    u = torch.stack((r[:, None] * phi.cos(), r[:, None] * phi.sin()), -1)
    square = torch.einsum("abi,ij,abj->ab", u, torch.linalg.inv(cov), u)
    return torch.trapezoid((-0.5 * square).exp().mean(1) * 2 * math.pi * r.sin(), r).log()


def quiet(land, x):
    """Fitted without warnings, such as that a few steps are too few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.StatisticsWarning)
        return land.fit(x)


# the volume that a geodesic finds


@pytest.mark.parametrize("d", [2, 3, 4])
def test_on_a_sphere_the_exact_factor_is_that_of_polar_coordinates_and_zero_past_the_antipode(d):
    # the reference code leaves the determinant of the exponential map out. Its sign does not change there in d = 3
    metric, radius = pb.Pullback(pb.surfaces.Sphere(1.5)), 1.5
    mean = torch.tensor([[0.3, -0.2, 0.1, 0.2][:d]], dtype=F64)
    u = 2.0 * randn(1, 8 if d > 2 else 40, d)
    u[:, 0] *= 6 / u[:, 0].norm()
    found = cast(metric, mean, Frames.at(metric, mean, "orthonormal"), u, volume="exact", tol=1e-4)
    r = u.norm(dim=-1) / radius
    assert torch.allclose(found.factor, torch.where(r < math.pi, (r.sin() / r) ** (d - 1), 0), atol=3e-3)
    assert torch.equal(found.beyond, r > math.pi)
    assert found.beyond.any()
    assert not found.failed.any()


def test_both_ways_to_the_factor_agree():
    # Jacobi's equation from the curvature, and differences of neighbors
    metric, mean = pb.Pullback(mlp(2, 7)), torch.tensor([[0.2, -0.1]], dtype=F64)
    frames, u = Frames.at(metric, mean, "orthonormal"), 0.5 * randn(1, 8, 2)
    v = frames.tangents(u)[0]
    other, past = _bundle(metric, mean.expand_as(v), v, u[0].norm(dim=-1), 1e-5)
    found = cast(metric, mean, frames, u, volume="exact", tol=1e-4)
    assert torch.allclose(found.factor[0], other, rtol=1e-3)
    assert (found.factor - 1).abs().max() > 0.01
    assert not past.any()


def test_the_factor_of_the_paper_is_the_magnification_of_the_end_over_that_of_the_mean():
    metric, mean = pb.Pullback(SPHERE), torch.zeros(1, 2, dtype=F64)
    u = 0.5 * randn(1, 20, 2)
    found = cast(metric, mean, Frames.at(metric, mean, "orthonormal"), u, volume="paper", tol=1e-6)
    assert torch.allclose(found.factor, (u.norm(dim=-1) / 2).cos() ** 4, rtol=1e-4)  # 4 / (1 + tan(r/2)^2)^2 over 4


def test_in_both_frames_a_tangent_has_its_length_and_comes_back():
    metric, mean = pb.metrics.MatrixField(Bowl()), torch.tensor([[0.7, -0.4]], dtype=F64)
    v = randn(1, 10, 2)
    for kind in ("orthonormal", "euclidean"):
        frames = Frames.at(metric, mean, kind)
        u = frames.components(v)
        assert torch.allclose(u.norm(dim=-1), metric.norm(mean.expand(10, 2), v[0])[None])
        assert torch.allclose(frames.tangents(u), v)


# normalizers and moments


def test_the_normalizer_on_a_sphere_is_within_its_standard_error_of_the_closed_form_and_the_papers_is_not():
    metric, mean = pb.Pullback(SPHERE), torch.zeros(1, 2, dtype=F64)
    frames, truth = Frames.at(metric, mean, "orthonormal"), on_sphere_log_normalizer()
    off = {"exact": [], "paper": []}
    for seed in range(5):
        draws = standard_draws(1, 200, 2, generator=seeded(seed), like=mean)
        for volume, values in off.items():
            thrown = cast(metric, mean, frames, draws @ torch.linalg.cholesky(COV).mT, volume=volume, tol=1e-2)
            found = normalizer(thrown, COV[None], COV[None])
            values.append(float((found.log_value - truth) / found.error))
    assert all(abs(value) < 3.5 for value in off["exact"])
    assert np.mean(off["paper"]) < -5


def test_a_covariance_is_found_from_the_second_moment_that_it_makes():
    # the likelihood equation; the moment on the sphere is smaller than the covariance
    metric, mean = pb.Pullback(SPHERE), torch.zeros(1, 2, dtype=F64)
    draws = standard_draws(1, 400, 2, generator=seeded(), like=mean) @ torch.linalg.cholesky(COV).mT
    thrown = cast(metric, mean, Frames.at(metric, mean, "orthonormal"), draws, volume="exact", tol=1e-2)
    moments = normalizer(thrown, COV[None], COV[None])
    assert (moments.second[0] < COV).all()
    assert torch.allclose(moments.first, torch.zeros_like(mean), atol=1e-3)  # pairs of opposites
    assert torch.allclose(matched(thrown, COV[None], 0.8 * COV[None], moments.second)[0], COV, rtol=1e-4)


@pytest.mark.parametrize("frame", ["orthonormal", "euclidean"])
def test_the_exact_density_integrates_to_one(frame):
    metric = pb.Pullback(pb.surfaces.Paraboloid(0.4))
    x = 0.5 * randn(40, 2) + torch.tensor([0.8, 0.3], dtype=F64)
    land = quiet(pb.LAND(metric, 1, frame=frame, max_iter=3, random_state=0, n_samples=400), x)
    axis = torch.linspace(-2.2, 3.4, 25, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    total = land.score_samples(grid, measure="latent").exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(total) - 1) < 4 * float(land.log_normalizer_errors_[0]) + 2e-3


# the fit


@pytest.mark.parametrize("decoder", [pb.surfaces.Plane(), Stretched()])
def test_in_flat_space_it_is_a_gaussian_mixture_in_whatever_coordinates(decoder):
    y = blobs()
    if isinstance(decoder, Stretched):
        z = torch.stack((y[:, 0].asinh(), y[:, 1] - 0.5 * y[:, 0].asinh() ** 2), 1)
    else:
        z, y = y, decoder(y) @ torch.linalg.svd(decoder.weight)[0][:, :2]  # coordinates of the plane in R^7
    first = [3, 50]
    settings = {"tol": 1e-9, "reg_covar": 0.0, "max_iter": 200}
    theirs = GaussianMixture(2, means_init=y[first].numpy(), **settings).fit(y.numpy())
    land = pb.LAND(
        pb.Pullback(decoder),
        2,
        init=z[first],
        random_state=0,
        n_samples=20,
        geodesic_tol=1e-4,
        exp_tol=1e-5,
        **settings,
    ).fit(z)
    assert land.converged_
    assert torch.allclose(land.weights_, torch.from_numpy(theirs.weights_), atol=1e-3)
    assert torch.allclose(land.score_samples(z), torch.from_numpy(theirs.score_samples(y.numpy())), atol=5e-3)
    assert land.bic(z) == pytest.approx(theirs.bic(y.numpy()), rel=1e-3)
    assert (land.predict(z).numpy() == theirs.predict(y.numpy())).all()


def estimates(seeds, volume="exact"):
    """Means, covariances and log C (seeds, 6) of fits to 150 points of the normal on the sphere."""
    found = []
    for seed in seeds:
        land = pb.LAND(pb.Pullback(SPHERE), 1, volume=volume, random_state=seed).fit(on_sphere(150, seed))
        (a, b), (_, c) = land.covariances_[0]
        found.append(torch.stack((*land.means_[0], a, b, c, land.log_normalizers_[0])))
    return torch.stack(found)


def standard_errors_off(found):
    truth = torch.tensor([0, 0, COV[0, 0], COV[0, 1], COV[1, 1], on_sphere_log_normalizer()], dtype=F64)
    return (found.mean(0) - truth) / (found.std(0) / len(found) ** 0.5)


def test_on_a_sphere_the_riemannian_normal_is_found_without_bias():
    assert (standard_errors_off(estimates(range(6))).abs() < 5).all()  # six seeds: Student's t


@pytest.mark.slow
def test_over_twenty_seeds_parameters_are_within_three_standard_errors_and_the_papers_are_not():
    assert (standard_errors_off(estimates(range(20))).abs() < 3).all()
    assert (standard_errors_off(estimates(range(20), "paper"))[2:5] > 3).all()


def test_a_linear_change_of_coordinates_changes_nothing():
    # upper triangular: the frames, and so the draws, are carried along
    change = torch.tensor([[2.0, 0.7], [0.0, 0.5]], dtype=F64)
    decoder, z = mlp(2, 7), 0.8 * randn(10, 2)
    settings = {"random_state": 0, "n_samples": 20, "max_iter": 1, "geodesic_tol": 1e-6, "exp_tol": 1e-4}
    one = quiet(pb.LAND(pb.Pullback(decoder), 1, init=z[:1], **settings), z)
    w = z @ change.mT
    other = quiet(pb.LAND(pb.Pullback(lambda w: decoder(w @ change.inverse().mT)), 1, init=w[:1], **settings), w)
    assert torch.allclose(one.means_ @ change.mT, other.means_, rtol=1e-4)
    assert torch.allclose(one.covariances_, other.covariances_, rtol=1e-3)
    assert torch.allclose(one.score_samples(z), other.score_samples(w), atol=1e-3)


def test_the_likelihood_does_not_fall_and_steps_share_logarithms(counting):
    counter = counting(pb.surfaces.Paraboloid(0.5))
    metric, z = pb.Pullback(counter), torch.cat((0.3 * randn(15, 2), 0.3 * randn(15, 2, seed=1) + 1.5))
    land = pb.LAND(metric, 2, random_state=0, n_samples=40)
    counter.reset()
    few = quiet(clone(land).set_params(max_iter=1, tol=0.0), z)
    first = counter.reset()
    many = quiet(land.set_params(max_iter=12, tol=0.0), z)
    assert counter.reset() < 2 * first  # for twelve times the steps: what hardly moved is not solved for again
    bounds = many.lower_bounds_
    assert bounds[-1] >= few.lower_bounds_[-1]
    assert min(b - a for a, b in itertools.pairwise(bounds)) > -1e-3
    assert many.log_likelihood(z).value == pytest.approx(bounds[-1], abs=0.1)


# what comes out


def test_samples_have_the_density():
    metric = pb.Pullback(SPHERE)
    land = quiet(pb.LAND(metric, 1, random_state=1, max_iter=2), on_sphere(150, 0, 2 * COV))
    points, labels = land.sample(2000)
    assert points.shape == (2000, 2)
    assert (labels == 0).all()
    cov, mean = land.covariances_[0], land.means_[0]
    # E exp(-u'cov^-1 u / 2) under the density is C(cov / 2) / C(cov)
    u = pb.log(metric, mean, points, polish=False) @ torch.linalg.inv(land.frames_[0]).mT
    values = (-0.5 * torch.einsum("ni,ij,nj->n", u, torch.linalg.inv(cov), u)).exp()
    truth = (on_sphere_log_normalizer(cov / 2) - on_sphere_log_normalizer(cov)).exp()
    assert abs(float((values.mean() - truth) / (values.std() / len(values) ** 0.5))) < 3


def test_held_out_likelihoods_have_error_bars_that_hold_the_spread_over_samples():
    metric = pb.Pullback(pb.surfaces.Plane())
    land = quiet(pb.LAND(metric, 1, random_state=0, n_samples=20), randn(200, 2))
    found = [land.log_likelihood(randn(50, 2, seed=seed)) for seed in range(1, 9)]
    values = torch.stack([one.value for one in found])
    assert 0.5 < float(values.std() / found[0].error) < 2


def test_a_table_serves_as_well():
    sphere = pb.Pullback(SPHERE)
    table = pb.Tabulated(sphere, torch.tensor([[-2.5, 2.5], [-2.5, 2.5]], dtype=F64), 65)
    x, settings = 0.5 * on_sphere(40, 0), {"random_state": 0, "max_iter": 3, "n_samples": 40}
    one, other = (quiet(pb.LAND(metric, 1, **settings), x) for metric in (sphere, table))
    assert torch.allclose(one.covariances_, other.covariances_, rtol=1e-2)
    assert torch.allclose(one.score_samples(x), other.score_samples(x), atol=2e-2)


def test_arrays_give_arrays_of_their_dtype_and_tensors_give_tensors():
    x = blobs(10)
    land = quiet(pb.LAND(pb.Pullback(pb.surfaces.Plane()), 2, random_state=0, n_samples=10, max_iter=2), x.numpy())
    for found in (land.score_samples(x.numpy()), land.predict(x.numpy()), land.means_, *land.sample(3)):
        assert isinstance(found, np.ndarray)
    assert isinstance(land.predict_proba(x), torch.Tensor)
    assert torch.allclose(land.predict_proba(x).sum(1), torch.ones(20, dtype=F64))
    assert land.score_samples(x.float()).dtype == torch.float32


def test_it_pickles_clones_and_gives_the_same_again_without_the_global_generator():
    x = on_sphere(20, 0)
    land = pb.LAND(pb.Pullback(SPHERE), 2, random_state=3, n_samples=20, max_iter=2)
    state = torch.get_rng_state()
    fitted = quiet(clone(land), x)
    again = quiet(clone(land), x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fitted.covariances_, again.covariances_)
    assert torch.equal(fitted.sample(3)[0], again.sample(3)[0])
    loaded = pickle.loads(pickle.dumps(fitted))
    assert torch.equal(loaded.score_samples(x), fitted.score_samples(x))
    assert clone(land).get_params() == land.get_params()


@pytest.mark.slow
def test_scikit_learn_finds_nothing_to_object():
    # none is left out; the metric takes points of any dimension, as these checks want it
    land = pb.LAND(Flat(), n_samples=10, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failed = [
            result for result in check_estimator(land, on_fail=None, on_skip=None) if result["status"] == "failed"
        ]
    assert failed == []


# what goes wrong


def test_points_that_no_geodesic_reaches_are_listed_and_have_no_density():
    table = pb.Tabulated(pb.Pullback(SPHERE), torch.tensor([[-2.0, 2.0], [-2.0, 2.0]], dtype=F64), 33)
    x = torch.cat((0.3 * on_sphere(20, 0), torch.tensor([[3.0, 0.0]], dtype=F64)))
    land = pb.LAND(table, 1, init=x[:1], random_state=0, n_samples=20, max_iter=2, tol=10.0)
    with pytest.warns(pb.StatisticsWarning, match=r"1 pairs of a component and a point \(\(0, 20\)\)"):
        land.fit(x)
    assert land.failures_.unseen == [20]
    assert land.failures_.logs == [(0, 20)]
    with pytest.warns(pb.StatisticsWarning, match=r"1 of 21 points \(20\)"):
        found = land.score_samples(x)
    assert found[:20].isfinite().all()
    assert found[20].isnan()
    with pytest.warns(pb.StatisticsWarning, match="1 of 1"):
        assert land.predict(x[20:]).tolist() == [-1]


def test_geodesics_of_a_normalizer_that_leave_the_domain_are_counted_and_have_no_volume():
    table = pb.Tabulated(pb.Pullback(SPHERE), torch.tensor([[-0.5, 0.5], [-0.5, 0.5]], dtype=F64), 33)
    x = 0.8 * (torch.rand(30, 2, generator=seeded(), dtype=F64) - 0.5)  # fills the table
    with pytest.warns(pb.StatisticsWarning, match="of the normalizers have no end"):
        land = pb.LAND(table, 1, random_state=0, n_samples=100, max_iter=1, tol=10.0).fit(x)
    assert land.failures_.casts > 5
    with pytest.warns(pb.StatisticsWarning, match=r"\d+ of the \d+ geodesics followed for samples have no end"):
        points, _ = land.sample(50)
    assert points.shape == (50, 2)  # others are drawn in their place
    assert points.abs().max() <= 0.5


def test_a_component_that_collapses_is_begun_anew_and_that_is_told():
    x = torch.cat((blobs(25), torch.tensor([[30.0, 30.0]], dtype=F64)))
    land = pb.LAND(pb.Pullback(pb.surfaces.Plane()), 2, init=x[[0, 50]], random_state=0, n_samples=20, max_iter=6)
    with pytest.warns(pb.StatisticsWarning, match="components collapsed"):
        land.fit(x)
    assert land.failures_.restarts > 0
    assert land.weights_.min() > 0.01


def test_a_component_of_identical_points_keeps_the_least_variance_that_is_allowed():
    x = torch.cat((torch.full((12, 2), 20.0, dtype=F64), blobs(12)))
    settings = {"init": x[[0, 12]], "random_state": 0, "n_samples": 20, "max_iter": 20, "reg_covar": 1e-4}
    land = pb.LAND(pb.Pullback(pb.surfaces.Plane()), 2, **settings).fit(x)
    assert torch.isfinite(land.covariances_).all()
    assert 0 < float(land.covariances_[0].trace()) < 1e-2 * float(land.covariances_[1].trace())
    assert land.predict(x).tolist() == [0] * 12 + [1] * (len(x) - 12)


@pytest.mark.parametrize(
    ("settings", "x", "message"),
    [
        ({"n_components": 5}, randn(4, 2), "there are 4 codes but `n_components` is 5"),
        ({}, torch.ones(9, 2, dtype=F64), "1 different codes but `n_components` is 2"),
        ({"n_components": 1}, torch.ones(9, 2, dtype=F64), "all `codes` lie at distance zero"),
        ({"n_components": 0}, randn(9, 2), "`n_components` is 0"),
        ({"volume": "full"}, randn(9, 2), "`volume` is 'full'"),
        ({"frame": "latent"}, randn(9, 2), "`frame` is 'latent'"),
        ({"init": "k"}, randn(9, 2), "`init` is 'k'"),
        ({"init": torch.zeros(3, 2)}, randn(9, 2), r"`init` has shape \(3, 2\): want \(2, 2\)"),
        ({"n_samples": 2}, randn(9, 2), "`n_samples` is 2"),
        ({"tol": -1.0}, randn(9, 2), "`tol` is -1.0"),
        ({"geodesic_tol": 2.0}, randn(9, 2), "`geodesic_tol` is 2.0"),
        ({}, torch.full((9, 2), torch.nan, dtype=F64), "contains NaN"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(settings, x, message):
    with pytest.raises(ValueError, match=message):
        pb.LAND(pb.Pullback(pb.surfaces.Plane()), **settings).fit(x)


def test_a_decoder_is_no_metric_and_a_dead_dimension_has_no_frame():
    with pytest.raises(TypeError, match="`metric` is a Linear"):
        pb.LAND(nn.Linear(2, 3)).fit(randn(9, 2))
    with pytest.raises(ValueError, match="singular, or not finite, at the mean"):
        pb.LAND(pb.Pullback(lambda z: z[:, :1])).fit(randn(9, 2))


def test_a_fit_that_has_not_converged_says_so():
    with pytest.warns(pb.StatisticsWarning, match="has not converged"):
        pb.LAND(pb.Pullback(pb.surfaces.Plane()), random_state=0, n_samples=10, max_iter=1, tol=0.0).fit(blobs(10))
