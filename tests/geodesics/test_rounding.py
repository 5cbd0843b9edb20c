"""What is told where the features differ by little more than their rounding."""

import copy

import pytest
import torch
from torch import nn

import pullback as pb

F64 = torch.float64
USABLE = {pb.Status.CONVERGED, pb.Status.ROUNDING}


def mlp(dtype=F64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 10)).to(dtype)


def pairs(dtype=F64):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, 2, generator=generator, dtype=F64).to(dtype) for _ in range(2))


@pytest.mark.parametrize("offset", [10.0, 1e5])
def test_large_features_leave_an_error_above_tol_and_the_status_says_so(offset):
    start, end = pairs(torch.float32)
    true = pb.geodesic(pb.Pullback(mlp()), start.double(), end.double(), tol=1e-7).length
    f = mlp(torch.float32)
    path = pb.geodesic(pb.Pullback(lambda z: f(z) + offset), start, end)
    assert set(path.status.tolist()) <= USABLE
    assert ((path.length - true).abs() <= path.length_error).all()
    known = path.length_error <= 1.001e-4 * path.length
    assert [status is pb.Status.CONVERGED for status in path.status] == known.tolist()
    assert not known.all()


def test_near_codes_of_the_shipped_model_have_distances_in_float32():
    model = pb.models.pretrained("mnist012")
    decoder, z = copy.deepcopy(model.decoder).float(), model.codes[:3].float()
    path = pb.geodesic(pb.Pullback(decoder), z, z + 1e-3)
    true = pb.geodesic(pb.Pullback(model.decoder), z.double(), (z + 1e-3).double()).length
    assert set(path.status.tolist()) <= USABLE
    assert ((path.length - true).abs() <= path.length_error).all()


def test_a_constant_decoder_has_distances_zero_with_errors():
    start, end = pairs()
    with pytest.warns(pb.RankWarning):
        path = pb.geodesic(pb.Pullback(lambda z: 0 * z + 3.0), start, end)
    assert path.converged.all()
    assert (path.length == 0).all()
    assert torch.isfinite(path.length_error).all()
    assert (path.length_error < 1e-10).all()


def test_squares_that_overflow_are_not_finite_and_nothing_else():
    f = mlp()
    start, end = pairs()
    with pytest.warns(pb.GeodesicWarning, match="not finite"):
        path = pb.geodesic(pb.Pullback(lambda z: 1e160 * f(z)), start, end)
    assert {status.name for status in path.status} == {"NOT_FINITE"}


def test_a_budget_that_is_spent_is_no_wall():
    with pytest.warns(pb.GeodesicWarning, match="out of steps"):
        path = pb.geodesic(pb.Pullback(pb.surfaces.Sphere()), *pairs(), tol=1e-9, solver=pb.Relax(max_evaluations=1))
    assert {status.name for status in path.status} <= {"MAX_STEPS", "CONVERGED"}
    assert "MAX_STEPS" in {status.name for status in path.status}


def test_log_on_creases_is_the_velocity_of_the_curve():
    # the geodesic equation does not see creases: shooting would give straight lines
    torch.manual_seed(1)
    metric = pb.Pullback(nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 50)).double())
    start, end = (2 * x for x in pairs())
    velocity, path = pb.log(metric, start, end, full=True)
    rough = path.codes == pb.Status.NON_SMOOTH.code
    assert rough.any()
    assert torch.equal(velocity[rough], path.curve.velocity(torch.zeros(1, dtype=F64))[rough, 0])


def test_verify_leaves_pairs_that_raise_alone_and_knows_rest():
    f = mlp()

    def picky(z):
        if (z[:, 0] > 0.9).any():
            raise ValueError("too far right")
        return f(z)

    metric, start = pb.Pullback(picky), torch.zeros(3, 2, dtype=F64)
    end = torch.tensor([[0.5, 0.3], [1.0, 0.0], [0.0, 0.0]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match="1 raised"):
        path = pb.geodesic(metric, start, end)
    look = pb.verify(metric, path)
    assert look.within.tolist() == [True, False, True]
    assert not look.jumped.any()
