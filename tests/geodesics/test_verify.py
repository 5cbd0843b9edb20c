import math
import warnings

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.geodesics.verify import verify
from pullback.metrics import Metric

F64 = torch.float64
A, B = torch.tensor([[-1.0, 0.0]], dtype=F64), torch.tensor([[1.0, 0.3]], dtype=F64)


def points(n, d=2, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture(scope="module")
def shipped():
    """The metric, and two pairs of the benchmark: from a straight line the second gets a curve 2.5% too long."""
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(1))[:400]
    rows = torch.tensor([113, 114])
    return pb.Pullback(model.decoder), model.codes[chosen[:200]][rows], model.codes[chosen[200:]][rows]


class Poincare(Metric):
    """The half-plane, a metric that no map into a Euclidean space is known to."""

    def inner(self, z, u, v):
        return (u * v).sum(-1) / z[..., 1].square()

    def matrix(self, z):
        return torch.eye(2, dtype=z.dtype) / z[..., 1, None, None].square()


def test_lengths_of_great_circles_are_confirmed_and_known_better():
    sphere = pb.surfaces.Sphere()
    a, b = points(6, seed=1, scale=0.5), points(6, seed=2, scale=0.5)
    path = pb.geodesic(pb.Pullback(sphere), a, b)
    found = verify(pb.Pullback(sphere), path)
    exact = sphere.distance(a, b)
    assert found.within.all()
    assert not found.shorter.any()
    assert not found.jumped.any()
    assert (found.length - exact).abs().max() < 0.05 * (path.length - exact).abs().max()
    assert (found.solution.length_error <= 0.04 * path.length_error + 1e-9).all()
    assert torch.allclose(found.change, path.length / found.length - 1, atol=1e-12)
    assert torch.allclose(found.measured, path.length, rtol=1e-4)
    assert repr(found) == "Verification(6 of 6 lengths confirmed within their errors)"


def test_a_claimed_length_that_is_wrong_is_not_confirmed():
    metric = pb.Pullback(pb.surfaces.Sphere())
    path = pb.geodesic(metric, points(2, seed=1, scale=0.5), points(2, seed=2, scale=0.5))
    path.length[1] *= 1.01
    found = verify(metric, path)
    assert found.within.tolist() == [True, False]
    assert math.isclose(float(found.change[1]), 0.01, rel_tol=1e-2)
    assert "(pairs 1)" in found.message


def test_another_minimum_of_the_shipped_model_is_found(shipped):
    metric, a, b = shipped
    path = pb.geodesic(metric, a, b)
    assert path.converged.all()
    found = verify(metric, path)
    assert found.shorter.tolist() == [False, True]
    assert found.within.tolist() == [True, False]
    assert 0.02 < found.change[1] < 0.03
    assert torch.allclose(pb.length(metric, found.solution.curve, n_segments=2000), found.length, rtol=1e-4)
    assert "1 shorter from another start" in found.message


def test_a_wall_between_the_samples_of_the_solver_is_seen():
    def wall(z):  # 1/500 of the curve wide
        return torch.cat((z, 5 * torch.exp(-(((z[:, :1] - 0.2037) / 0.002) ** 2))), 1)

    path = pb.geodesic(pb.Pullback(wall), A, B)
    assert path.length < 2.1  # blind: the true way leads over the wall
    found = verify(pb.Pullback(wall), path)
    assert found.jumped.all()
    assert not found.within.any()
    assert 11 < found.measured < 13
    assert "walls" in found.message


def test_creases_are_confirmed_within_the_error_that_was_reported():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 20)).double()
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=F64) / weight.shape[-1] ** 0.5
    metric = pb.Pullback(net.requires_grad_(False))
    path = pb.geodesic(metric, points(2, seed=1), points(2, seed=2))
    assert pb.Status.NON_SMOOTH in path.status
    found = verify(metric, path)
    assert not found.jumped.any()
    assert (found.within | found.shorter).all()


def test_a_metric_without_a_map_is_verified():
    a, b = torch.tensor([-1.0, 1.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64)
    found = verify(Poincare(), pb.geodesic(Poincare(), a, b))
    assert found.within
    assert math.isclose(float(found.length), math.acosh(3), rel_tol=1e-6)
    assert found.message == "1 of 1 lengths confirmed within their errors"


def test_failed_pairs_have_no_change_and_are_tried_from_other_starts():
    metric = pb.Pullback(lambda z: torch.stack((z[:, 0].log(), z[:, 1]), 1))
    ends = torch.tensor([[2.0, 1.0], [-1.0, 1.0]], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        path = pb.geodesic(metric, torch.tensor([1.0, 0.0], dtype=F64), ends)
    found = verify(metric, path)  # no warning: the message says it
    assert found.change.isnan().tolist() == [False, True]
    assert found.within.tolist() == [True, False]
    assert found.length.isnan().tolist() == [False, True]
    assert "1 found neither finer nor from other starts (pairs 1)" in found.message


def test_a_pair_that_failed_for_want_of_steps_is_found():
    metric = pb.Pullback(pb.surfaces.Sphere())
    with pytest.warns(pb.GeodesicWarning):
        path = pb.geodesic(metric, A, B, solver=pb.Relax(max_steps=1, max_segments=8), init=pb.Curve.straight(A, B, 8))
    found = verify(metric, path)
    assert torch.allclose(found.length, pb.surfaces.Sphere().distance(A, B), rtol=1e-4)
    assert not found.within.any()
    assert "failed before and found now" in found.message


def test_a_pair_whose_curve_is_beyond_repair_is_found_from_another_start():
    def hill_with_a_hole(z):
        square = z.square().sum(1, keepdim=True)
        return torch.cat((z, (3 * torch.exp(-square / 0.1)).where(square > 0.01, torch.nan)), 1)

    metric = pb.Pullback(hill_with_a_hole)
    with pytest.warns(pb.GeodesicWarning):
        path = pb.geodesic(metric, -B, B, init=pb.Curve.straight(-B, B, 32))
    found = verify(metric, path)
    assert 2 < found.length < 3
    assert found.solution.converged.all()
    assert "1 failed before and found now (pairs 0)" in found.message


def test_batches_of_any_shape_equal_points_and_single_pairs_keep_their_shape():
    metric = pb.Pullback(pb.surfaces.Sphere())
    a, b = points(4, seed=1, scale=0.5).reshape(2, 2, 2), points(4, seed=2, scale=0.5).reshape(2, 2, 2)
    b[1, 0] = a[1, 0]
    found = verify(metric, pb.geodesic(metric, a, b))
    for value in (found.length, found.change, found.within, found.shorter, found.jumped, found.measured):
        assert value.shape == (2, 2)
    assert found.within.all()
    assert found.change[1, 0] == 0
    assert found.solution.curve(torch.zeros(1, dtype=F64)).shape == (2, 2, 1, 2)
    assert verify(metric, pb.geodesic(metric, a[0, 0], b[0, 0])).length.shape == ()
    assert verify(metric, pb.geodesic(metric, a[:0], b[:0])).length.shape == (0, 2)


def test_float32_is_confirmed_to_its_precision():
    metric = pb.Pullback(pb.surfaces.Sphere())
    path = pb.geodesic(metric, points(4, seed=1, scale=0.5).float(), points(4, seed=2, scale=0.5).float())
    found = verify(metric, path)
    assert found.length.dtype == torch.float32
    assert found.within.all()


def test_the_evaluations_are_those_that_the_decoder_saw(counting):
    counter = counting(pb.surfaces.Sphere())
    metric = pb.Pullback(counter)
    path = pb.geodesic(metric, points(3, seed=1, scale=0.5), points(3, seed=2, scale=0.5))
    counter.reset()
    found = verify(metric, path)
    assert counter.evaluations == found.solution.evaluations.sum()


def test_what_is_no_metric_or_no_solution_is_refused():
    metric = pb.Pullback(pb.surfaces.Sphere())
    with pytest.raises(TypeError, match=r"wrapped as Pullback\(decoder\)"):
        verify(pb.surfaces.Sphere(), pb.geodesic(metric, A, B))
    with pytest.raises(TypeError, match="`path` is a Curve"):
        verify(metric, pb.Curve.straight(A, B))
