import pytest
import torch

import pullback as pb

F64 = torch.float64


def solution(codes, length=None, candidates=None):
    n = len(codes)
    codes = torch.tensor([pb.Status[name].code for name in codes])
    length = torch.arange(1.0, n + 1, dtype=F64) if length is None else torch.tensor(length, dtype=F64)
    failed = ~((codes == pb.Status.CONVERGED.code) | (codes == pb.Status.NON_SMOOTH.code))
    length = length.masked_fill(failed, torch.nan)
    counts = torch.arange(n)
    lengths = None if candidates is None else torch.tensor(candidates, dtype=F64)
    curve = pb.Curve(torch.zeros(n, 65, 2, dtype=F64))
    return pb.Solution(curve, length, 1e-5 * length, length, codes, counts, 1000 * counts, lengths)


def test_a_report_tells_lengths_errors_and_cost():
    lines = solution(["CONVERGED"] * 3).report().splitlines()
    assert lines[0] == "3 geodesics, d = 2: 3 converged"
    assert lines[1] == "length: median 2, 95% below 2.9, from 1 to 3"
    assert lines[2] == "length error, relative: median 1.0e-05, 95% below 1.0e-05, from 1.0e-05 to 1.0e-05"
    assert lines[3].startswith("segments: 64")
    assert lines[4:] == ["iterations: 1 in the mean, 2 at most", "evaluations: 1,000 in the mean, 2,000 at most"]


def test_failures_are_listed_by_status_with_pairs_and_cure_and_do_not_enter_the_lengths():
    text = solution(["CONVERGED", "WALL", "NON_SMOOTH", "WALL", "RAISED"]).report()
    assert "5 geodesics, d = 2: 2 converged" in text
    assert "length: median 2, 95% below 2.9, from 1 to 3" in text
    for status, pairs in (("WALL", "1, 3"), ("NON_SMOOTH", "2"), ("RAISED", "4")):
        line = next(line for line in text.splitlines() if pb.Status[status].value in line)
        assert line.endswith(f"(pairs {pairs})")
    assert "max_segments" in text
    assert "nan" not in text


def test_a_long_list_of_pairs_is_cut():
    assert "(pairs 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)" in solution(["STALLED"] * 12).report()


def test_only_failures_have_no_lengths():
    text = solution(["WALL"] * 2).report()
    assert "0 converged" in text
    assert "length:" not in text


def test_a_single_pair_is_told_without_quantiles_and_numbers():
    text = solution(["CONVERGED", "NON_SMOOTH"], [1.0, 2.5], [[1.0, 1.0], [2.5, 2.6]])[1].report()
    assert text.splitlines()[:4] == [
        "1 geodesic, d = 2: 1 converged", "length: 2.5", "length error, relative: 1.0e-05", "segments: 64"
    ]  # fmt: skip
    assert "evaluations: 1,000\n" in text
    assert "pairs" not in text
    assert text.endswith("starts: 2; the minimum is not unique: another is up to 4% longer")


@pytest.mark.parametrize("shape", [(2, 2), (4, 1)])
def test_a_batch_of_any_shape_counts_its_pairs_through(shape):
    text = solution(["CONVERGED", "CONVERGED", "CONVERGED", "WALL"]).reshape(torch.Size(shape)).report()
    assert "4 geodesics, d = 2: 3 converged" in text
    assert "(pairs 3)" in text


def test_no_pairs_at_all_and_a_pair_at_rest_are_no_error():
    assert solution(["CONVERGED"])[:0].report() == "0 geodesics, d = 2: 0 converged"
    rest = solution(["CONVERGED"], [0.0], [[0.0, 0.0]]).report()
    assert "nan" not in rest
    assert rest.endswith("starts: 2, all of the same length within the errors")


def test_starts_that_ended_in_different_lengths_are_told_with_pairs_and_the_largest_gap():
    candidates = [[1.0, 1.00005, torch.nan], [2.2, 2.0, 2.4], [3.03, 3.0, torch.nan], [torch.nan] * 3]
    text = solution(["CONVERGED", "CONVERGED", "CONVERGED", "WALL"], candidates=candidates).report()
    assert text.splitlines()[-1] == (
        "starts: 3; for 2 of 4 pairs the minimum is not unique, others are up to 20% longer (pairs 1, 2)"
    )


def test_a_large_error_hides_differences_below_it():
    path = solution(["NON_SMOOTH"], [1.0], [[1.0, 1.003]])
    assert "not unique" in path.report()
    path.length_error[:] = 0.01
    assert "not unique" not in path.report()


def test_the_shipped_model_has_more_than_one_minimum_between_some_codes():
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(1))[:400]
    a, b = model.codes[chosen[114]], model.codes[chosen[314]]
    text = pb.geodesic(pb.Pullback(model.decoder), a, b, starts=("straight", "bends")).report()
    assert "starts: 3; the minimum is not unique: another is up to 2.5% longer" in text
