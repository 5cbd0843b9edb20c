import math
import re
import warnings

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.curves import Curve
from pullback.geodesics import batch
from pullback.geodesics.solution import Solution, Status

F64 = torch.float64


def points(n, d=2, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    for weight in net.parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.data = 1.5 * torch.randn(weight.shape, generator=generator, dtype=F64) / math.sqrt(fan)
    return net.requires_grad_(False)


class Limited(nn.Module):
    """A decoder that is not content with points right of 5."""

    def __init__(self, error, message="it is too far right"):
        super().__init__()
        self.inner, self.error, self.message = mlp(), error, message

    def forward(self, z):
        if (z[:, 0] > 5).any():
            raise self.error(self.message)
        return self.inner(z)


class Interrupted(nn.Module):
    """A decoder during whose n-th call someone presses Ctrl-C."""

    def __init__(self, n):
        super().__init__()
        self.inner, self.left = mlp(), n

    def forward(self, z):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner(z)


def some_far(n=9, far=(2, 3, 7)):
    a, b = points(n, seed=1, scale=0.5), points(n, seed=2, scale=0.5)
    b[list(far), 0] += 10
    return a, b


# one path for any number


def test_a_pair_has_the_same_length_alone_and_among_600(monkeypatch):
    metric = pb.Pullback(mlp())
    a, b = points(600, seed=1), points(600, seed=2)
    b[5] = a[5]
    together = pb.geodesic(metric, a, b, tol=1e-2)
    assert together.converged.all()
    monkeypatch.setattr(batch, "_BLOCK", {"cpu": 7})
    few = [0, 5, 255, 256, 599]
    alone = pb.geodesic(metric, a[few[0]], b[few[0]], tol=1e-2)
    some = pb.geodesic(metric, a[few], b[few], tol=1e-2)
    blocks = pb.geodesic(metric, a[250:280], b[250:280], tol=1e-2)
    t = torch.linspace(0, 1, 20, dtype=F64)
    for one, same in ((alone, together[0]), (some, together[few]), (blocks, together[250:280])):
        assert torch.allclose(one.length, same.length, rtol=1e-10, atol=0)
        assert torch.allclose(one.length_error, same.length_error, rtol=1e-6)
        assert torch.equal(one.codes, same.codes)
        assert torch.equal(one.evaluations, same.evaluations)
        assert torch.allclose(one.curve(t), same.curve(t), atol=1e-10)


def test_points_that_coincide_cost_nothing_and_disturb_no_block(monkeypatch):
    monkeypatch.setattr(batch, "_BLOCK", {"cpu": 2})
    metric = pb.Pullback(mlp())
    a, b = points(6, seed=1).reshape(2, 3, 2), points(6, seed=2).reshape(2, 3, 2)
    whole = pb.geodesic(metric, a, b)
    b = b.clone()
    b[0, 1], b[1, 2] = a[0, 1], a[1, 2]
    path = pb.geodesic(metric, a, b)
    rest = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    assert path.converged.all()
    for values in (path.length, path.length_error, path.energy, path.evaluations, path.iterations):
        assert (values[rest] == 0).all()
        assert (values[~rest] > 0).sum() >= 3  # iterations may be none
    assert torch.allclose(path.length[~rest], whole.length[~rest], rtol=1e-10)
    assert (path.curve.velocity(torch.linspace(0, 1, 5, dtype=F64))[rest].abs() < 1e-12).all()


@pytest.mark.parametrize("solver", ["relax", "shoot", "newton", "georce"])
@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_no_pairs_and_pairs_at_rest_are_solved_by_any_solver(solver, shape):
    a = torch.zeros(*shape, 2, dtype=F64)
    path = pb.geodesic(pb.Pullback(mlp()), a, a, solver=solver)
    assert path.length.shape == shape
    assert path.curve.nodes.shape == (*shape, 2, 2)
    assert (path.length == 0).all()
    assert path.raise_for_status() is None


class Fixed(pb.GeodesicSolver):
    """Returns the curves that it was given, with more or fewer segments for each call."""

    def __init__(self, *counts):
        object.__setattr__(self, "counts", list(counts))

    def solve(self, metric, start, end, *, tol, nodes, progress=False):
        curve = Curve(nodes).resample(self.counts.pop(0))
        curve = Curve(
            curve.nodes + 0.1 * torch.sin(torch.pi * torch.linspace(0, 1, len(curve.nodes[0])).double())[:, None]
        )
        counts = torch.zeros(len(start), dtype=torch.long)
        length = torch.ones(len(start), dtype=F64)
        return Solution(curve, length, length, length, counts, counts, counts)


def test_curves_of_blocks_with_other_numbers_of_segments_stay_the_same_splines(monkeypatch):
    monkeypatch.setattr(batch, "_BLOCK", {"cpu": 1})
    a, b = points(2, seed=1), points(2, seed=2)
    flat = pb.Pullback(nn.Identity())
    path = pb.geodesic(flat, a, b, solver=Fixed(6, 8))
    t = torch.linspace(0, 1, 50, dtype=F64)
    for k, n in enumerate((6, 8)):
        alone = pb.geodesic(flat, a[k], b[k], solver=Fixed(n))
        assert torch.allclose(path.curve(t)[k], alone.curve(t), atol=1e-13)


# decoders that break


@pytest.mark.parametrize("error", [ValueError, RuntimeError, AssertionError, ZeroDivisionError, KeyError])
@pytest.mark.parametrize("first", [False, True])
def test_pairs_on_which_the_decoder_raises_fail_alone_and_the_others_are_what_they_are(error, first):
    far = (0, 1, 7) if first else (2, 3, 7)
    a, b = some_far(far=far)
    if first:  # also the first point that is looked at
        a[0, 0] = 10.0
    with pytest.warns(pb.GeodesicWarning, match="3 raised: the decoder raised an error on this curve") as told:
        path = pb.geodesic(pb.Pullback(Limited(error)), a, b)
    assert len(told) == 1
    assert re.search(rf"the decoder said: {error.__name__}: '?it is too far right", str(told[0].message))
    lost = torch.zeros(9, dtype=torch.bool)
    lost[list(far)] = True
    assert (path.codes[lost] == Status.RAISED.code).all()
    for values in (path.length, path.length_error, path.energy):
        assert torch.equal(values.isnan(), lost)
    alone = pb.geodesic(pb.Pullback(mlp()), a[~lost], b[~lost])
    assert torch.allclose(path.length[~lost], alone.length, rtol=1e-10)
    assert torch.equal(path.evaluations[~lost], alone.evaluations)


def test_pairs_that_raise_stay_alone_across_blocks_and_starts(monkeypatch):
    monkeypatch.setattr(batch, "_BLOCK", {"cpu": 2})
    a, b = some_far()
    with pytest.warns(pb.GeodesicWarning, match=r"3 raised.*pairs 2, 3, 7\).*too far right"):
        path = pb.geodesic(pb.Pullback(Limited(ValueError)), a, b, starts=("straight", "bends"))
    assert path.candidates.isnan().all(1).nonzero().reshape(-1).tolist() == [2, 3, 7]


def test_what_the_decoder_raises_on_all_pairs_is_the_users():
    a, b = some_far(3, (0, 1, 2))
    with pytest.raises(RuntimeError, match="too far right"):
        pb.geodesic(pb.Pullback(Limited(RuntimeError)), a, b)
    with pytest.raises(RuntimeError, match="too far right"):
        pb.geodesic(pb.Pullback(Limited(RuntimeError)), a[0], b[0])
    with pytest.raises(ValueError, match=r"the decoder failed on a point of shape .*too far right"):
        pb.geodesic(pb.Pullback(Limited(RuntimeError)), b + 10, a + 20)
    with pytest.raises(ValueError, match="too far right"):  # no curve needs the decoder here
        pb.geodesic(pb.Pullback(Limited(RuntimeError)), b + 10, b + 10)


@pytest.mark.parametrize("error", [TypeError, AttributeError, NameError, IndexError, MemoryError, UserWarning])
def test_bugs_lack_of_memory_and_warnings_made_errors_are_not_worked_around(error):
    a, b = some_far()
    with pytest.raises(error, match="too far right"):
        pb.geodesic(pb.Pullback(Limited(error)), a, b)


def test_pairs_on_which_the_decoder_is_nan_fail_alone():
    inner = mlp()
    metric = pb.Pullback(lambda z: inner(z) * torch.where(z[:, :1] > 5, torch.nan, 1.0))
    a, b = some_far()
    with pytest.warns(pb.GeodesicWarning, match=r"3 not finite.*pairs 2, 3, 7\)$"):
        path = pb.geodesic(metric, a, b)
    good = path.converged
    assert (path.codes[~good] == Status.NOT_FINITE.code).all()
    assert torch.allclose(path.length[good], pb.geodesic(pb.Pullback(inner), a[good], b[good]).length, rtol=1e-10)


def test_few_pairs_that_raise_cost_few_calls():
    calls = 0
    inner = Limited(ValueError)

    def counted(z):
        nonlocal calls
        calls += 1
        return inner(z)

    a, b = points(64, seed=1, scale=0.1), points(64, seed=2, scale=0.1)
    metric = pb.Pullback(counted)
    pb.geodesic(metric, a, b)
    before, calls = calls, 0
    b[40, 0] = 6.0
    with pytest.warns(pb.GeodesicWarning, match="raised"):
        pb.geodesic(metric, a, b)
    assert calls < 8 * before  # log2 64 = 6 halves are solved, one after the other


# interruptions


@pytest.mark.parametrize("progress", [False, True])
def test_ctrl_c_keeps_the_finished_pairs_if_asked(monkeypatch, capsys, progress):
    monkeypatch.setattr(batch, "_BLOCK", {"cpu": 4})
    a, b = points(14, seed=1), points(14, seed=2)
    b[13] = a[13]
    whole = pb.geodesic(pb.Pullback(mlp()), a, b)
    counted = Interrupted(10**9)
    metric = pb.Pullback(counted)
    pb.geodesic(metric, a[:8], b[:8])
    calls = 10**9 - counted.left
    with pytest.warns(pb.GeodesicWarning, match=r"5 interrupted: .*pairs 8, 9, 10, 11, 12\)"):
        path = pb.geodesic(pb.Pullback(Interrupted(calls + 3)), a, b, on_interrupt="keep", progress=progress)
    lost = torch.arange(14)[:, None].eq(torch.arange(8, 13)).any(1)
    assert (path.codes[lost] == Status.INTERRUPTED.code).all()
    for values in (path.length, path.length_error, path.energy):
        assert torch.equal(values.isnan(), lost)
    assert torch.allclose(path.length[~lost], whole.length[~lost], rtol=1e-10)
    assert torch.equal(path.curve.nodes[lost][:, [0, -1]], torch.stack((a[lost], b[lost]), 1))
    shown = capsys.readouterr().err
    assert ("8/13" in shown) == progress  # the bar ends where the work did
    assert shown.endswith("\n") == progress


def test_ctrl_c_is_raised_if_nothing_is_asked():
    a, b = points(3, seed=1), points(3, seed=2)
    with pytest.raises(KeyboardInterrupt):
        pb.geodesic(pb.Pullback(Interrupted(20)), a, b)
    with pytest.raises(ValueError, match='`on_interrupt` is \'stop\': want "raise" or "keep"'):
        pb.geodesic(pb.Pullback(mlp()), a, b, on_interrupt="stop")


def test_ctrl_c_during_several_starts_loses_the_block_but_no_more(monkeypatch):
    monkeypatch.setattr(batch, "_BLOCK", {"cpu": 2})
    a, b = points(4, seed=1), points(4, seed=2)
    counted = Interrupted(10**9)
    pb.geodesic(pb.Pullback(counted), a[:2], b[:2], starts=("straight", "bends"))
    with pytest.warns(pb.GeodesicWarning, match="2 interrupted"):
        path = pb.geodesic(
            pb.Pullback(Interrupted(10**9 - counted.left + 10)), a, b, starts=("straight", "bends"),
            on_interrupt="keep",
        )  # fmt: skip
    assert path.candidates.isnan().any(1).tolist() == [False, False, True, True]


@pytest.mark.parametrize("n", [1, 9])
def test_a_bar_counts_the_pairs_once(monkeypatch, capsys, n):
    monkeypatch.setattr(batch, "_BLOCK", {"cpu": 4})
    a, b = points(n, seed=1), points(n, seed=2)
    pb.geodesic(pb.Pullback(mlp()), a, b, progress=True)
    shown = capsys.readouterr().err
    assert f"{n}/{n}" in shown
    assert shown.count("\n") == 1
    pb.geodesic(pb.Pullback(mlp()), a, b)
    assert capsys.readouterr().err == ""


def test_a_bar_is_not_shown_for_every_half_of_a_block_that_raises(capsys):
    a, b = some_far()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        pb.geodesic(pb.Pullback(Limited(ValueError)), a, b, progress=True)
    assert capsys.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize("starts", ["straight", ("straight", "bends")])
def test_progress_is_shown_from_one_start_and_from_several(starts, capsys):
    a, b = torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    pb.geodesic(pb.Pullback(mlp()), a, b, starts=starts, progress=True)
    assert "3/3" in capsys.readouterr().err
