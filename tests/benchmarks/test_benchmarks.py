"""The harness of the race: its problems are what they are called, its counts and flags are right, its cache is safe."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import pullback as pb
from benchmarks import bars, race
from benchmarks.counting import Counting
from benchmarks.peers import CONTESTANTS, Answer, Contestant, limit, solve_bvp
from benchmarks.problems import PROBLEMS
from benchmarks.reference import check, fine_lengths, graph_of, reference, sagged

F64 = torch.float64
QUICK = [name for name in PROBLEMS if name not in ("conv", "islands")]  # these two are trained first


@pytest.mark.parametrize("key", QUICK)
def test_fewer_pairs_are_the_first_of_more(key):
    problem = PROBLEMS[key]()
    start, end = problem.pairs(7)
    assert start.shape == end.shape == (7, problem.d)
    assert start.dtype == F64
    for few, many in zip(problem.pairs(3, first=2), (start, end), strict=True):
        assert torch.equal(few, many[2:5])
    assert not torch.equal(problem.pairs(7, seed=2)[0], start)


@pytest.mark.parametrize("key", QUICK)
def test_problems_are_the_same_when_they_are_made_again(key):
    one, other = PROBLEMS[key](), PROBLEMS[key]()
    z = one.pairs(3)[0]
    assert torch.equal(one.decoder(z), other.decoder(z))
    assert not any(p.requires_grad for p in one.decoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(PROBLEMS.keys() - set(QUICK)))
def test_decoders_that_are_trained_first_tell_codes_apart(key):
    problem = PROBLEMS[key]()
    lines = pb.Curve.straight(*problem.pairs(20))
    assert pb.length(pb.Pullback(problem.decoder), lines).min() > 0.05  # one that ignores its input has no distances


def test_the_reference_knows_great_circles_and_agrees_with_the_independent_solver():
    problem = PROBLEMS["sphere3"]()
    start, end = problem.pairs(4)
    found = reference(problem, start, end)
    assert torch.allclose(found.best, problem.decoder.distance(start, end), rtol=2e-7)
    assert (found.line >= found.best).all()
    above, below = check(problem, start[:1], end[:1], found.best[:1])
    assert abs(above) < 1e-6
    assert abs(below) < 1e-6


def test_the_reference_is_the_shortest_of_what_is_found(monkeypatch):
    problem = PROBLEMS["sphere2"]()
    start, end = problem.pairs(2)
    path = pb.geodesic(pb.Pullback(problem.decoder), start, end).curve.nodes
    detour = path.clone()
    detour[:, 4] += 0.2
    monkeypatch.setattr("benchmarks.reference._candidates", lambda *_: [detour, path])
    found = reference(problem, start, end)
    assert torch.allclose(found.best, fine_lengths(problem, path), rtol=1e-12)
    assert (found.gap > 1e-3).all()


def test_a_bent_curve_sags_to_a_great_circle():
    problem = PROBLEMS["sphere2"]()
    start, end = problem.pairs(2)
    nodes = pb.Curve.straight(start, end, 8).nodes
    nodes[:, 2:7] += 0.1
    lengths = fine_lengths(problem, sagged(problem, nodes, n=16, finer=4))
    assert torch.allclose(lengths, problem.decoder.distance(start, end), rtol=1e-6)


def test_a_curve_that_is_not_finite_has_no_length():
    problem = PROBLEMS["sphere2"]()
    nodes = torch.zeros(2, 3, 2, dtype=F64)
    nodes[0, :, 0] = torch.tensor([0.0, 0.5, 1.0])  # from the pole to the equator
    nodes[1, 1] = torch.nan
    lengths = fine_lengths(problem, nodes)
    assert abs(float(lengths[0]) - torch.pi / 2) < 1e-6
    assert float(lengths[1]) == torch.inf


@pytest.mark.parametrize("name", ["pullback", "pullback-starts", "lbfgs-best", "bvp", "georce-24"])
def test_contestants_find_great_circles(name):
    problem, contestant = PROBLEMS["sphere2"](), CONTESTANTS[name]
    start, end = problem.pairs(2)
    answer = contestant.solve(problem, start, end)
    assert answer.converged.all()
    assert torch.equal(answer.nodes[:, 0], start)
    assert torch.equal(answer.nodes[:, -1], end)
    excess = fine_lengths(problem, answer.nodes) / problem.decoder.distance(start, end) - 1
    assert excess.abs().max() < 1e-4


def test_what_the_package_reports_is_what_a_counter_counts():
    problem = PROBLEMS["tanh8-1.5"]()
    counter = Counting(problem.decoder)
    answer = CONTESTANTS["pullback"].solve(replace(problem, decoder=counter), *problem.pairs(5))
    probe = 15  # the first look at a decoder
    assert abs(counter.evaluations - int(answer.evaluations.sum())) <= 2 * probe


def test_scipy_solves_the_geodesic_equation_of_the_package():
    problem = PROBLEMS["tanh2-1.5"]()
    start, end = problem.pairs(1)
    near = start + 0.3 * (end - start)
    answer = solve_bvp(1e-6, 5000, 33)(problem, start, near)
    ours = pb.geodesic(pb.Pullback(problem.decoder), start, near, tol=1e-7)
    assert answer.converged.all()
    assert torch.allclose(fine_lengths(problem, answer.nodes), ours.length, rtol=1e-6)


def test_only_a_convergence_that_was_claimed_can_be_wrong():
    record = {
        "length": [1.0, 1.5, 1.5, 1.5, None], "converged": [True, True, False, True, False],
        "error": [0.0, 0.1, 0.0, 0.4, 0.0], "evaluations": [1.0] * 5,
    }  # fmt: skip
    result = race.measured(record, torch.ones(5, dtype=F64), 1e-4)
    assert result["wrong"].tolist() == [False, True, False, False, False]
    assert result["shown"].tolist() == [0.0, 0.5, 0.5]


def test_a_race_goes_on_where_it_stopped(tmp_path, monkeypatch):
    problem, asked = PROBLEMS["sphere2"](), []

    def line(problem, start, end):
        asked.append(len(start))
        return Answer(torch.stack((start, end), 1), torch.ones(len(start), dtype=torch.bool))

    monkeypatch.setitem(CONTESTANTS, "line", Contestant("line", line, at_once=2))
    store = race.Store(tmp_path)
    race.contest("sphere2", problem, "line", 4, store, 100.0)
    assert asked == [2, 2]
    asked.clear()
    record = race.contest("sphere2", problem, "line", 5, store, 100.0)
    assert asked == [1]
    assert len(record["length"]) == 5
    assert len(race.timed("sphere2", problem, "line", store, 100.0)["length"]) == 5
    asked.clear()
    race.timed("sphere2", problem, "line", store, 100.0)
    assert not asked


def test_results_of_other_sources_are_void(tmp_path):
    store = race.Store(tmp_path)
    store.save({"code": "old", "length": [1.0]}, "sphere2", "pullback")
    assert store.load("sphere2", "pullback", code="new") == {"code": "new"}
    assert store.load("sphere2", "pullback", code="old")["length"] == [1.0]


def test_what_raises_or_takes_too_long_has_failed(tmp_path, monkeypatch):
    def broken(problem, start, end):
        raise ArithmeticError("no")

    def endless(problem, start, end):
        while True:
            pass

    for name, solve in (("broken", broken), ("endless", endless)):
        monkeypatch.setitem(CONTESTANTS, name, Contestant(name, solve, most=1))
        record = race.contest("sphere2", PROBLEMS["sphere2"](), name, 3, race.Store(tmp_path), 0.05)
        assert record["converged"] == [False]
        assert record["length"] == [None]
    with pytest.raises(TimeoutError), limit(0.05):
        endless(None, None, None)


def test_georce_is_compared_where_it_is_as_good():
    ours = {"excess": torch.tensor([1e-5, 1e-5], dtype=F64), "evaluations": torch.tensor([100.0, 100.0])}
    coarse = {"excess": torch.tensor([1e-3, 1e-3], dtype=F64), "evaluations": torch.tensor([500.0, 500.0])}
    fine = {"excess": torch.tensor([9e-6, 1e-4], dtype=F64), "evaluations": torch.tensor([2000.0, 3000.0])}
    ratio, missed = bars.georce_ratio(ours, [coarse, fine])
    assert ratio.tolist() == [20.0, 30.0]
    assert missed == 1


@pytest.mark.bench
def test_a_triangle_turns_by_its_area():
    assert bars.triangle() <= 1e-6


def test_tables_are_written_newest_first_and_nothing_is_lost(tmp_path, monkeypatch):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# Benchmarks\n\n{race.MARK}\n\n## old\n")
    monkeypatch.setattr(race, "PAGE", page)
    race.write("## new\n")
    text = page.read_text()
    assert text.startswith("# Benchmarks\n")
    assert 0 < text.index(race.MARK) < text.index("## new") < text.index("## old")
    page.write_text("# no mark\n")
    with pytest.raises(ValueError, match="no line"):
        race.write("## new\n")
    assert page.read_text() == "# no mark\n"


@pytest.mark.bench
def test_straight_lines_across_the_islands_are_about_three_times_too_long():
    problem = PROBLEMS["islands"]()
    start, end = problem.pairs(40)
    metric = pb.Pullback(problem.decoder)
    around = fine_lengths(problem, graph_of(problem).curves(metric, start, end, n_segments=128)[0].nodes)
    across = fine_lengths(problem, torch.stack((start, end), 1))
    assert 1.5 < float((across / around).median()) < 4
    assert 2 < float(across.mean() / around.mean()) < 4


@pytest.mark.bench
def test_the_race_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# Benchmarks\n\n{race.MARK}\n")
    monkeypatch.setattr(race, "PAGE", page)
    command = ["race.py", "--problems", "sphere2", "--peers", "pullback,georce-24", "--pairs", "3", "--cache"]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "cache")])
    race.main()
    assert "### sphere d=2" in page.read_text()
    assert json.loads((tmp_path / "cache" / "sphere2.pullback.json").read_text())["converged"] == [True] * 3
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--wide", "3"])
    race.main()
    assert "3 of 3 converged, 0 wrongly" in capsys.readouterr().out
