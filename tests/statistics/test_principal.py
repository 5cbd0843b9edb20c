import math
import pickle

import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

import pullback as pb
from small import F64, mlp, randn

SPREAD = torch.tensor([1.0, 0.4], dtype=F64)


def test_in_flat_space_these_are_the_principal_components_of_the_decoded_points():
    plane, z = pb.surfaces.Plane(), randn(40, 2)
    found = pb.principal_geodesics(pb.Pullback(plane), z)
    theirs = PCA(2).fit(plane(z).numpy())
    assert torch.allclose(found.explained_variance, torch.from_numpy(theirs.explained_variance_), rtol=1e-4)
    ratio = torch.from_numpy(theirs.explained_variance_ratio_)
    assert torch.allclose(found.explained_variance_ratio, ratio, rtol=1e-4)
    scores = torch.from_numpy(theirs.transform(plane(z).numpy()))
    assert torch.allclose(found.scores.abs(), scores.abs(), atol=1e-3)
    cosines = (plane(found.directions) * torch.from_numpy(theirs.components_)).sum(1)
    assert torch.allclose(cosines.abs(), torch.ones(2, dtype=F64), atol=1e-4)


def test_points_along_a_great_circle_have_one_direction_and_their_angles_for_scores():
    angles = torch.tensor([-0.9, -0.4, 0.1, 0.5, 0.7], dtype=F64)
    toward = torch.tensor([0.6, 0.8], dtype=F64)
    z = torch.tan(angles / 2)[:, None] * toward  # through the pole z = 0
    found = pb.principal_geodesics(pb.Pullback(pb.surfaces.Sphere()), z)
    assert found.explained_variance_ratio[0] > 1 - 1e-6
    assert torch.allclose(found.mean, math.tan(float(angles.mean()) / 2) * toward, atol=1e-4)
    assert torch.allclose(found.scores[:, 0], angles - angles.mean(), atol=1e-3)
    assert torch.allclose(found.explained_variance[0], angles.var(), rtol=1e-3)


def test_directions_are_orthonormal_in_the_metric_and_scores_uncorrelated_around_zero():
    metric, z = pb.Pullback(mlp(3, 9)), 0.5 * randn(30, 3)
    found = pb.principal_geodesics(metric, z, 3)
    products = found.directions @ metric.matrix(found.mean) @ found.directions.mT
    assert torch.allclose(products, torch.eye(3, dtype=F64), atol=1e-8)
    size = found.explained_variance[0]
    assert torch.allclose(found.scores.T.cov(), found.explained_variance.diag(), atol=1e-3 * float(size))
    assert (found.scores.mean(0).abs() < 1e-3 * size.sqrt()).all()
    assert (found.explained_variance.diff() < 0).all()
    assert found.explained_variance_ratio.sum() == pytest.approx(1)


def test_scores_and_points_are_each_others_and_fewer_directions_lose_something():
    metric, z = pb.Pullback(pb.surfaces.Paraboloid(0.5)), randn(12, 2) * SPREAD
    found = pb.principal_geodesics(metric, z)
    assert torch.allclose(found.inverse_transform(found.scores), z, atol=2e-3)
    assert torch.allclose(found.transform(z), found.scores, atol=1e-9)
    one = pb.principal_geodesics(metric, z, 1)
    assert torch.allclose(one.scores, found.scores[:, :1])
    assert torch.allclose(one.explained_variance_ratio, found.explained_variance_ratio[:1])
    assert pb.distance(metric, one.inverse_transform(one.scores), z).max() > 0.1


def test_coordinates_do_not_matter():
    # a flat metric in disguise, and the plane that it is
    plane = pb.surfaces.DisguisedPlane()
    z = 0.6 * randn(12, 2) * SPREAD
    found = pb.principal_geodesics(pb.Pullback(plane), z)
    other = pb.principal_geodesics(pb.Pullback(nn.Identity()), plane(z))
    assert torch.allclose(plane(found.mean), other.mean, atol=1e-3)
    assert torch.allclose(found.explained_variance, other.explained_variance, rtol=1e-3)
    assert torch.allclose(found.scores.abs(), other.scores.abs(), atol=2e-3)


def test_principal_geodesics_are_geodesics_through_the_mean_as_far_as_they_say():
    metric = pb.Pullback(pb.surfaces.Sphere())
    found = pb.principal_geodesics(metric, 0.3 * randn(15, 2) * SPREAD)
    curves = found.geodesics(extent=1.5, n_segments=20)
    assert curves.nodes.shape == (2, 21, 2)
    assert torch.allclose(curves.nodes[:, 10], found.mean.expand(2, 2))
    assert torch.allclose(pb.length(metric, curves), 3 * found.explained_variance.sqrt(), rtol=1e-4)
    across = pb.surfaces.Sphere().distance(curves.nodes[:, 0], curves.nodes[:, -1])  # no way is shorter
    assert torch.allclose(across, 3 * found.explained_variance.sqrt(), rtol=1e-4)


def test_a_table_serves_as_well_and_the_record_pickles():
    sphere, z = pb.Pullback(pb.surfaces.Sphere()), 0.3 * randn(15, 2) * SPREAD
    table = pb.Tabulated(sphere, torch.tensor([[-1.5, 1.5], [-1.5, 1.5]], dtype=F64), 65)
    one, other = (pb.principal_geodesics(metric, z) for metric in (sphere, table))
    assert torch.allclose(one.scores, other.scores, atol=1e-3)
    assert torch.equal(pickle.loads(pickle.dumps(one)).transform(z), one.transform(z))


def test_codes_that_no_geodesic_reaches_are_listed_and_have_no_scores():
    sphere = pb.Pullback(pb.surfaces.Sphere())
    table = pb.Tabulated(sphere, torch.tensor([[-1.5, 1.5], [-1.5, 1.5]], dtype=F64), 33)
    z = torch.cat((0.3 * randn(8, 2), torch.tensor([[2.0, 0.0]], dtype=F64)))
    with pytest.warns(pb.StatisticsWarning, match=r"1 of 9 points \(8\)"):
        found = pb.principal_geodesics(table, z, mean=z[:1].mean(0))
    assert found.failed.tolist() == [8]
    assert found.scores[8].isnan().all()
    assert found.scores[:8].isfinite().all()


@pytest.mark.parametrize(
    ("z", "settings", "message"),
    [
        (randn(1, 2), {}, "`codes` holds 1 points: want 2 or more"),
        (torch.ones(5, 2, dtype=F64), {}, "all `codes` lie at distance zero"),
        (randn(5, 2), {"n_components": 3}, "`n_components` is 3 but the codes have 2 dimensions"),
        (randn(5, 2), {"n_components": 0}, "`n_components` is 0"),
        (randn(5, 2), {"mean": torch.zeros(3, dtype=F64)}, r"`mean` has shape \(3,\): want one point \(2,\)"),
        (randn(5), {}, r"want one or more points \(n, d\)"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(z, settings, message):
    with pytest.raises(ValueError, match=message):
        pb.principal_geodesics(pb.Pullback(pb.surfaces.Plane()), z, **settings)


def test_scores_that_do_not_fit_and_a_decoder_are_refused():
    found = pb.principal_geodesics(pb.Pullback(pb.surfaces.Plane()), randn(6, 2), 1)
    with pytest.raises(ValueError, match=r"`scores` has shape \(4, 2\): want a tensor \(\.\.\., 1\)"):
        found.inverse_transform(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="`metric` is a Linear"):
        pb.principal_geodesics(nn.Linear(2, 3), randn(6, 2))
