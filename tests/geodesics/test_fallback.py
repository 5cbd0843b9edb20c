import pickle
from dataclasses import dataclass

import pytest
import torch

import pullback as pb
from pullback.curves import Curve
from pullback.geodesics.collocate import Collocate
from pullback.geodesics.fallback import Fallback
from pullback.geodesics.relax import Relax
from pullback.geodesics.solution import Solution, Status
from pullback.geodesics.solver import GeodesicSolver

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::pullback._checks.GeodesicWarning")


@dataclass(frozen=True)
class Scripted(GeodesicSolver):
    """Succeeds for pairs whose start is left of a limit, with the length it is told."""

    limit: float
    length: float
    n_segments: int = 4
    status: Status = Status.STALLED

    def solve(self, metric, start, end, *, tol, nodes, progress=False):
        good = start[:, 0] < self.limit
        value = torch.where(good, start.new_tensor(self.length), torch.nan)
        codes = torch.where(good, 0, self.status.code)
        count = torch.ones_like(codes)
        curve = Curve.straight(start, end, self.n_segments)
        return Solution(curve, value, value / 100, value**2, codes, count, 10 * count)


def ends(*x):
    start = torch.tensor([[value, 0.0] for value in x], dtype=F64)
    return start, start + 1


def metric():
    return pb.Pullback(torch.nn.Identity())


def test_the_next_solver_gets_the_pairs_that_failed_and_only_these():
    a, b = ends(0, 1, 2, 3)
    chain = Fallback(Scripted(1, 5.0), Scripted(3, 7.0, status=Status.MAX_STEPS))
    path = pb.geodesic(metric(), a, b, solver=chain)
    assert path.length.tolist()[:3] == [5.0, 7.0, 7.0]
    assert path.length[3].isnan()
    assert [s.name for s in path.status] == ["CONVERGED", "CONVERGED", "CONVERGED", "MAX_STEPS"]
    assert path.iterations.tolist() == [1, 2, 2, 2]
    assert path.evaluations.tolist() == [10, 20, 20, 20]
    assert torch.allclose(path.length_error[:3], path.length[:3] / 100)


def test_the_next_solver_starts_from_the_curves_that_the_failed_pairs_were_given():
    seen = []

    class Watching(Scripted):
        def solve(self, metric, start, end, *, tol, nodes, progress=False):
            seen.append(nodes)
            return super().solve(metric, start, end, tol=tol, nodes=nodes, progress=progress)

    a, b = ends(0, 1, 2)
    nodes = Curve.straight(a, b, 2).nodes
    Fallback(Scripted(1, 5.0), Watching(3, 7.0)).solve(metric(), a, b, tol=1e-4, nodes=nodes)
    assert torch.equal(seen[0], nodes[1:])


def test_curves_get_segments_at_which_all_are_the_same_splines_still():
    a, b = ends(0, 1)
    for first, second in ((4, 6), (6, 4)):
        path = pb.geodesic(metric(), a, b, solver=Fallback(Scripted(1, 5.0, first), Scripted(2, 7.0, second)))
        assert path.curve.n_segments == 12
        assert torch.allclose(path.curve.nodes, Curve.straight(a, b, 12).nodes)


def test_nobody_else_is_asked_when_the_first_succeeds():
    class Never(GeodesicSolver):
        def solve(self, *_, **__):
            raise AssertionError

    a, b = ends(0, 1)
    chain = Fallback(Scripted(9, 5.0), Never())
    assert chain.solve(metric(), a, b, tol=1e-4, nodes=Curve.straight(a, b).nodes).converged.all()


def test_a_chain_of_three_stops_where_all_are_done():
    a, b = ends(0, 1, 2)
    path = pb.geodesic(metric(), a, b, solver=Fallback(*(Scripted(k + 1, 1.0 + k) for k in range(3))))
    assert path.length.tolist() == [1.0, 2.0, 3.0]
    assert path.iterations.tolist() == [1, 2, 3]


def test_t28_a_pair_that_all_fail_on_is_never_a_straight_line_with_a_length():
    path = pb.geodesic(metric(), *ends(5), solver=Fallback(Scripted(0, 1.0), Scripted(0, 1.0)))
    assert not path.converged.any()
    assert path.length.isnan().all()
    assert path.length_error.isnan().all()
    assert path.energy.isnan().all()


def test_t34_collocation_catches_what_relaxation_with_one_step_leaves():
    sphere = pb.surfaces.Sphere()
    a = 0.4 * torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    b = a + torch.tensor([1e-4, 1.0, 1e-4, 1.0], dtype=F64)[:, None]
    first = Relax(max_segments=8, max_steps=1)
    alone = pb.geodesic(pb.Pullback(sphere), a, b, solver=first)
    path = pb.geodesic(pb.Pullback(sphere), a, b, solver=Fallback(first, Collocate(max_nodes=200)), progress=True)
    assert not alone.converged.all()
    assert path.converged.all()
    assert ((path.length - sphere.distance(a, b)).abs() <= path.length_error).all()
    assert torch.equal(path.length[alone.converged], alone.length[alone.converged])


def test_it_is_a_record_of_its_solvers():
    chain = Fallback(Relax(max_steps=3), Collocate())
    assert chain == Fallback(Relax(max_steps=3), Collocate())
    assert chain != Fallback(Collocate(), Relax(max_steps=3))
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert "Collocate(max_nodes=1000" in repr(chain)
    assert len({chain, Fallback(Relax(max_steps=3), Collocate())}) == 1


@pytest.mark.parametrize(("solvers", "message"), [((), "given nothing"), ((Relax(), "collocate"), "given a str")])
def test_what_is_no_solver_is_refused(solvers, message):
    with pytest.raises(TypeError, match=message):
        Fallback(*solvers)
