import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import pullback as pb
from pullback.statistics.estimators import generator_from, kind_of
from small import F64, mlp, randn


class Flat(pb.Metric):
    """The Euclidean metric of any dimension; a Pullback stays with that of its first points."""

    def inner(self, z, u, v):
        return (u * v).sum(-1)

    def matrix(self, z):
        return torch.eye(z.shape[-1], dtype=z.dtype).expand(*z.shape, -1)


def estimators():
    """One of each kind."""
    flat = Flat()
    return [
        pb.KMeans(flat, 2, n_init=2, random_state=0),
        pb.KMedoids(flat, 2, n_init=2, random_state=0),
    ]


# Checks of scikit-learn's that ask for what is not wanted here, and why: so far none. Its checks of LAND are in
# test_land.py; means, walks and principal geodesics are functions.
EXCEPTIONS: dict[str, str] = {}


@pytest.mark.filterwarnings("ignore::pullback.PullbackWarning", "ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(estimators(), expected_failed_checks=lambda estimator: EXCEPTIONS)
def test_checks_of_scikit_learn_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", estimators())
def test_clones_share_the_metric_and_copy_the_rest(estimator):
    twin = clone(estimator)
    assert twin is not estimator
    assert twin.metric is estimator.metric
    assert twin.get_params(deep=False) == estimator.get_params(deep=False)
    assert not hasattr(clone(estimator.fit(randn(10, 2))), "labels_")


@pytest.mark.parametrize("estimator", estimators())
def test_pickles_predict_the_same(estimator):
    codes = randn(20, 2)
    estimator = clone(estimator).set_params(metric=pb.Pullback(mlp())).fit(codes)
    twin = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(twin.predict(codes), estimator.predict(codes))


@pytest.mark.parametrize("estimator", estimators())
@pytest.mark.parametrize("kind", ["float64", "float32", "int64"])
def test_results_are_what_the_data_are(estimator, kind):
    codes = (randn(20, 2) * 10).numpy().astype(kind)
    estimator = clone(estimator).set_params(metric=pb.Pullback(mlp()))
    arrays = estimator.fit(codes)
    assert isinstance(arrays.labels_, np.ndarray)
    assert arrays.transform(codes).dtype == (np.float32 if kind == "float32" else np.float64)
    tensors = clone(estimator).fit(torch.from_numpy(codes))
    assert isinstance(tensors.labels_, torch.Tensor)
    assert tensors.labels_.numpy().tolist() == arrays.labels_.tolist()
    assert tensors.transform(torch.from_numpy(codes)).dtype == (torch.float32 if kind == "float32" else F64)
    np.testing.assert_array_equal(tensors.transform(codes), arrays.transform(codes))


@pytest.mark.parametrize("estimator", estimators())
def test_a_tabulated_metric_does_as_well(estimator):
    codes = randn(40, 2).clamp(-1.9, 1.9)
    metric = pb.Pullback(mlp())
    table = pb.Tabulated(metric, torch.tensor([[-2.0, 2.0], [-2.0, 2.0]], dtype=F64), 33)
    ours, theirs = (clone(estimator).set_params(metric=m).fit(codes) for m in (metric, table))
    assert torch.equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-3)


@pytest.mark.parametrize("estimator", estimators())
def test_the_same_state_gives_the_same_result_and_the_data_stay(estimator):
    codes = randn(30, 2)
    before = codes.clone()
    one, other = (clone(estimator).set_params(random_state=np.random.RandomState(3)).fit(codes) for _ in range(2))
    assert torch.equal(one.labels_, other.labels_)
    assert torch.equal(codes, before)


@pytest.mark.parametrize("estimator", estimators())
def test_an_estimator_that_is_not_fitted_says_so(estimator):
    with pytest.raises(NotFittedError):
        clone(estimator).predict(randn(3, 2))


def test_bars_are_shown_where_they_are_asked_for_and_only_there(capfd):
    flat, codes = pb.Pullback(pb.surfaces.Plane()), torch.cat((randn(12, 2), randn(12, 2, seed=1) + 9))
    land = {"n_samples": 10, "max_iter": 3, "tol": 1e3, "random_state": 0}
    for quiet in (True, False):
        shown = {"progress": not quiet}
        for estimator in estimators():
            clone(estimator).set_params(**shown).fit(codes)
        pb.LAND(flat, 1, **land, **shown).fit(codes)
        pb.frechet_mean(flat, codes, **shown)
        pb.random_walk(flat, codes, 3, 0.1, **shown)
        told = capfd.readouterr().err
        assert (told == "") is quiet
        if not quiet:
            assert all(word in told for word in ("restarts", "LAND", "mean of 24 codes", "walks"))


def test_generators_come_from_what_scikit_learn_takes():
    def draw(state):
        return torch.randn(3, generator=generator_from(state))

    assert torch.equal(draw(5), draw(5))
    assert torch.equal(draw(np.random.RandomState(5)), draw(5))
    assert not torch.equal(draw(5), draw(6))
    given = torch.Generator()
    assert generator_from(given) is given
    generator_from(None)
    with pytest.raises(ValueError, match="RandomState"):
        generator_from("five")


def test_points_have_the_dtype_of_the_metrics_weights():
    assert kind_of(pb.Pullback(mlp()))[0] is F64
    assert kind_of(pb.Pullback(mlp().float()))[0] is torch.float32
    assert kind_of(pb.Pullback(nn.Identity())) == (None, None)
    kmeans = pb.KMeans(pb.Pullback(mlp().float()), 2, random_state=0).fit(randn(10, 2).numpy())
    assert kmeans.cluster_centers_.dtype == np.float64
