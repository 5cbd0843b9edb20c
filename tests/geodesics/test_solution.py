import pickle

import pytest
import torch

import pullback as pb


def solution(codes):
    n = len(codes)
    nodes = torch.zeros(n, 3, 2)
    values = torch.ones(n)
    codes = torch.tensor([pb.Status[name].code for name in codes])
    return pb.Solution(pb.Curve(nodes), values, values, values, codes, codes, codes)


def test_the_message_lists_the_failed_pairs_with_reason_and_cure():
    message = solution(["CONVERGED", "WALL", "CONVERGED", "WALL", "MAX_STEPS"]).message
    assert message.startswith("2 of 5 geodesics converged")
    assert "(pairs 1, 3)" in message
    assert "(pairs 4)" in message
    assert "max_segments" in message


def test_raise_for_status_raises_only_when_something_failed():
    solution(["CONVERGED"]).raise_for_status()
    with pytest.raises(pb.ConvergenceError, match="out of steps"):
        solution(["CONVERGED", "MAX_STEPS"]).raise_for_status()


def test_a_slice_is_a_solution_of_its_own():
    part = solution(["CONVERGED", "STALLED", "WALL"])[1]
    assert part.status is pb.Status.STALLED
    assert part.length.shape == ()
    assert part.message == pb.Status.STALLED.value


def test_statuses_come_as_an_array_of_the_batch_shape():
    assert solution(["CONVERGED", "WALL"]).status.tolist() == [pb.Status.CONVERGED, pb.Status.WALL]


def test_a_solution_survives_pickling():
    again = pickle.loads(pickle.dumps(solution(["CONVERGED", "WALL"])))
    assert again.message == solution(["CONVERGED", "WALL"]).message
