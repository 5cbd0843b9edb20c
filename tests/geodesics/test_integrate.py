import pytest
import torch

from pullback.geodesics.integrate import integrate
from pullback.geodesics.solution import Status

F64 = torch.float64


def circle(t, y, rows):
    """z'' = -z in states (z, v)."""
    return torch.cat((y[:, 1:], -y[:, :1]), 1)


def run(rhs, y, tol=1e-8, **options):
    options = {"d": 1, "max_steps": 1000, **options}
    return integrate(rhs, y, tol=torch.full((len(y),), tol, dtype=y.dtype), **options)


def state(*pairs):
    return torch.tensor(pairs, dtype=F64)


def test_an_oscillation_ends_where_it_should_and_passes_where_it_should():
    way = run(circle, state((1.0, 0.1), (0.0, 2.0)))
    t = torch.linspace(0, 1, 33, dtype=F64)
    exact = torch.stack((t.cos() + 0.1 * t.sin(), 2 * t.sin()))
    assert (way.codes == Status.CONVERGED.code).all()
    assert torch.allclose(way.state[:, 0], exact[:, -1], atol=1e-8)
    assert torch.allclose(way.sample(t.expand(2, -1))[..., 0], exact, atol=1e-8)


def test_the_error_falls_with_the_tolerance_and_the_steps_grow_with_its_fifth_root():
    y = state((1.0, 3.0))
    exact = torch.tensor(1.0, dtype=F64).cos() + 3 * torch.tensor(1.0, dtype=F64).sin()
    ways = [run(circle, y, tol) for tol in (1e-5, 1e-10)]
    errors = [float((way.state[0, 0] - exact).abs()) for way in ways]
    assert errors[0] < 1e-5
    assert errors[1] < 1e-10
    assert 5 < int(ways[1].steps) / int(ways[0].steps) < 15  # 1e5 ** (1 / 5) = 10


def test_the_sum_of_local_errors_bounds_the_error():
    way = run(circle, state((1.0, 3.0)), 1e-6)
    exact = torch.tensor(1.0, dtype=F64).cos() + 3 * torch.tensor(1.0, dtype=F64).sin()
    assert (way.state[0, 0] - exact).abs() < way.error[0, 0] < 1e-4


def test_a_row_takes_the_steps_that_it_takes_alone():
    y = state((1.0, 0.1), (1.0, 30.0), (0.0, 1e-3))

    def stiff(t, y, rows):
        return torch.cat((y[:, 1:], -y[:, :1] * (1 + 100 * rows[:, None] * t[:, None])), 1)

    together = run(stiff, y)
    for i in range(3):
        alone = integrate(
            lambda t, y, rows, i=i: stiff(t, y, rows + i), y[i : i + 1], d=1, tol=y.new_tensor([1e-8]), max_steps=1000
        )
        assert torch.equal(alone.steps[0], together.steps[i])
        assert torch.equal(alone.state[0], together.state[i])
    assert len(set(together.steps.tolist())) > 1


def test_steps_end_at_the_stops():
    seen = []

    def kinked(t, v, rows):
        seen.append(t.clone())
        return (t[:, None] - 0.25).clamp_min(0)  # smooth between the stops at 0, 1/4, ...

    way = run(kinked, torch.ones(1, 1, dtype=F64), n_stops=4)
    assert int(way.steps) == 4
    assert torch.allclose(way.state, torch.tensor(1 + 0.5 * 0.75**2, dtype=F64), rtol=1e-14)
    assert float(torch.cat(seen).max()) == 1.0


def test_a_row_that_leaves_the_domain_says_so_and_where_and_the_others_go_on():
    def walled(t, y, rows):
        slope = circle(t, y, rows)
        return torch.where(y[:, :1] > 1.5, torch.nan, slope)

    way = run(walled, state((1.0, 2.0), (0.0, 1.0)))
    assert way.codes.tolist() == [Status.LEFT_DOMAIN.code, Status.CONVERGED.code]
    assert abs(float(way.state[0, 0]) - 1.5) < 1e-6
    assert 0 < float(way.time[0]) < 1
    past = way.sample(way.time[:, None] * torch.linspace(0, 1, 9, dtype=F64))[0, :, 0]
    t = float(way.time[0]) * torch.linspace(0, 1, 9, dtype=F64)
    assert torch.allclose(past, t.cos() + 2 * t.sin(), atol=1e-7)


def test_a_row_that_is_nowhere_at_the_start_says_so():
    def nowhere(t, y, rows):
        return torch.where(rows[:, None] == 0, torch.nan, circle(t, y, rows))

    way = run(nowhere, state((1.0, 1.0), (1.0, 1.0)))
    assert way.codes.tolist() == [Status.NOT_FINITE.code, Status.CONVERGED.code]
    assert torch.equal(way.sample(torch.zeros(2, 3, dtype=F64))[0, :, 0], torch.ones(3, dtype=F64))


def test_a_row_that_runs_to_infinity_stops_before():
    way = run(lambda t, v, rows: v**2, torch.tensor([[2.0], [0.5]], dtype=F64))  # v = 1 / (1/v0 - t)
    assert way.codes.tolist() == [Status.STALLED.code, Status.CONVERGED.code]
    assert abs(float(way.time[0]) - 0.5) < 1e-5
    assert int(way.steps[0]) < 500


def test_a_row_out_of_steps_says_so():
    way = run(circle, state((1.0, 100.0), (0.0, 1e-3)), 1e-12, max_steps=3)
    assert way.codes[0] == Status.MAX_STEPS.code
    assert int(way.steps[0]) == 3


def test_a_right_hand_side_that_raises_for_a_row_spares_the_others():
    def moody(t, y, rows):
        if (y[:, 0] > 1.5).any():
            raise ValueError("no further")
        return circle(t, y, rows)

    way = run(moody, state((1.0, 2.0), (0.0, 1.0), (0.5, 0.5)))
    expected = [Status.LEFT_DOMAIN.code, Status.CONVERGED.code, Status.CONVERGED.code]
    assert way.codes.tolist() == expected


def test_a_right_hand_side_that_raises_for_all_is_heard():
    def broken(t, y, rows):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        run(broken, state((1.0, 2.0), (0.0, 1.0)))


def test_an_empty_batch_is_one():
    way = run(circle, torch.zeros(0, 2, dtype=F64))
    assert way.state.shape == (0, 2)
    assert way.codes.shape == (0,)
