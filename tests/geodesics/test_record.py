import torch

from pullback.curves import Curve
from pullback.geodesics.certificate import Certificate
from pullback.geodesics.record import Record
from pullback.geodesics.solution import Status

F64 = torch.float64


def test_curves_are_entered_in_any_order_and_at_any_resolution():
    start = torch.tensor([[0.0, 0], [1, 0], [2, 0]], dtype=F64)
    whole = Curve.straight(start, start + 1, 4).nodes
    record = Record(start, evaluations=2)
    rows = torch.tensor([2, 0])
    record.spend(rows, torch.tensor([5, 6]), torch.tensor([50, 60]))
    record.fail(torch.tensor([1]), torch.tensor([Status.MAX_STEPS.code]), whole[1:2, ::2])
    values = torch.tensor([7.0, 8.0], dtype=F64)
    codes = torch.tensor([Status.CONVERGED.code, Status.WALL.code])
    certificate = Certificate(whole[rows], values, values / 100, values**2, codes)
    record.enter(rows, certificate, torch.tensor([True, True]))
    solution = record.solution()
    assert torch.allclose(solution.curve.nodes, whole)
    assert [s.name for s in solution.status] == ["WALL", "MAX_STEPS", "CONVERGED"]
    assert solution.length.isnan().tolist() == [True, True, False]
    assert solution.length[2] == 7
    assert solution.iterations.tolist() == [6, 0, 5]
    assert solution.evaluations.tolist() == [62, 2, 52]
