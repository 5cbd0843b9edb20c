import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from small import F64, mlp, randn

SPHERE = pb.surfaces.Sphere()
ROUND = pb.Pullback(SPHERE)
PLANE = pb.Pullback(nn.Linear(2, 5, dtype=F64))


def karcher(metric, codes, weights, start, steps=60):
    """Karcher's flow: the oracle."""
    point = start
    for _ in range(steps):
        step = weights @ pb.log(metric, point, codes, tol=1e-9)
        point = point + step
        if metric.norm(point, step) < 1e-9:
            return point
    raise RuntimeError("the flow did not converge")


def bumps(seed=0):
    return pb.Pullback(mlp(2, 5, seed=seed))


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=6, deadline=None)
def test_the_mean_on_a_plane_is_the_weighted_arithmetic_mean(seed, n):
    codes, weights = randn(n, 2, seed=seed), randn(n, seed=seed + 1).abs() + 0.01
    mean = pb.frechet_mean(PLANE, codes, weights=weights)
    torch.testing.assert_close(mean, weights @ codes / weights.sum(), rtol=0, atol=1e-6)


def test_the_mean_of_points_around_the_pole_of_a_sphere_is_the_pole():
    angle = torch.arange(5, dtype=F64) * 2 * math.pi / 5
    codes = 0.7 * torch.stack((angle.cos(), angle.sin()), 1)
    mean = pb.frechet_mean(ROUND, codes, full=True)
    assert mean.point.norm() < 1e-4
    assert mean.status is pb.Status.CONVERGED
    assert mean.value == pytest.approx(float(SPHERE.distance(torch.zeros(2, dtype=F64), codes[0])) ** 2, rel=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_weighted_mean_of_two_points_lies_on_their_geodesic(share):
    a, b = torch.tensor([[0.4, 0.1], [-0.5, 0.6]], dtype=F64)
    weights = torch.tensor([1 - share, share], dtype=F64)
    mean = pb.frechet_mean(ROUND, torch.stack((a, b)), weights=weights, tol=1e-5)
    far = SPHERE.distance(a, b)
    torch.testing.assert_close(SPHERE.distance(a, mean), share * far, rtol=1e-4, atol=0)
    torch.testing.assert_close(SPHERE.distance(mean, b), (1 - share) * far, rtol=1e-4, atol=0)


def test_the_mean_in_the_hyperbolic_plane_is_that_of_the_closed_form_distance():
    surface = pb.surfaces.PoincareBall()
    codes = torch.tensor([[0.1, 0.2], [-0.4, 0.3], [0.5, -0.5], [0.0, -0.3]], dtype=F64)
    mean = pb.frechet_mean(surface, codes, tol=1e-5)
    best = mean.clone().requires_grad_()
    (slope,) = torch.autograd.grad(surface.distance(best, codes).square().mean(), best)
    metric = float(surface.norm(mean, torch.tensor([1.0, 0.0], dtype=F64)))
    assert slope.norm() / (2 * metric) < 1e-4  # in units of the metric: the last step that is left


def test_karchers_flow_stands_still_at_the_mean():
    metric, codes = bumps(), randn(6, 2)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.2, 1.0], dtype=F64)
    mean = pb.frechet_mean(metric, codes, weights=weights, tol=1e-6)
    step = weights @ pb.log(metric, mean, codes, tol=1e-7) / weights.sum()
    assert metric.norm(mean, step) < 2e-5


@pytest.mark.slow
def test_the_mean_is_where_karchers_flow_ends():
    metric, codes = bumps(1), randn(12, 2, seed=1)
    weights = torch.full((12,), 1 / 12, dtype=F64)
    mean = pb.frechet_mean(metric, codes, tol=1e-6)
    assert metric.norm(mean, mean - karcher(metric, codes, weights, mean + 0.05)) < 2e-5


def test_the_mean_does_not_depend_on_coordinates():
    decoder = mlp(2, 5)
    codes = randn(15, 2)
    turn = torch.tensor([[2.0, 0.7], [-0.3, 0.5]], dtype=F64)

    def bent(y):
        return decoder(y @ turn.mT + 0.1 * y[:, :1] ** 3 * turn[:, 0])

    def there(y):
        return y @ turn.mT + 0.1 * y[:, :1] ** 3 * turn[:, 0]

    y = randn(15, 2, seed=3) * 0.6
    codes = there(y)
    one = pb.frechet_mean(pb.Pullback(bent), y, tol=1e-5)
    other = pb.frechet_mean(pb.Pullback(decoder), codes, tol=1e-5)
    assert pb.Pullback(decoder).norm(other, other - there(one[None])[0]) < 1e-4


def test_a_large_set_has_the_same_mean_whichever_subset_is_first():
    metric, codes = bumps(), randn(280, 2) * 0.8
    first = pb.frechet_mean(metric, codes, full=True)
    second = pb.frechet_mean(metric, codes, generator=torch.Generator().manual_seed(5))
    spread = math.sqrt(first.value)
    assert metric.norm(second, first.point - second) < 3e-4 * spread
    assert first.error < 1e-4 * spread
    assert len(first.failed) == 0


def test_the_median_of_four_corners_is_where_their_diagonals_cross():
    flat = pb.Pullback(nn.Identity())
    for far in (9.0, 90.0):  # how far an outlier is does not matter
        codes = torch.tensor([[0.0, 0.0], [2.0, 0.2], [far, far], [0.3, 2.0]], dtype=F64)
        median = pb.frechet_mean(flat, codes, power=1, tol=1e-5)
        torch.testing.assert_close(median, torch.full((2,), 2 - 1.7 * 1.8 / 3.5, dtype=F64), rtol=0, atol=1e-3)


def test_a_code_that_holds_the_median_is_the_median():
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.2, 1.0], [9.0, 9.0], [0.4, 0.3]], dtype=F64)
    mean = pb.frechet_mean(pb.Pullback(nn.Identity()), codes, power=1, full=True)
    assert torch.equal(mean.point, codes[4])
    assert mean.status is pb.Status.CONVERGED


def test_several_starts_find_the_lower_of_two_minima():
    # on a circle the mean of two groups is in one of the two gaps between them
    circle = pb.Pullback(lambda z: torch.cat((z.cos(), z.sin()), -1))
    angles = torch.cat((torch.linspace(-0.2, 0.2, 30), torch.linspace(1.8, 2.2, 20))).double()[:, None]
    mean = pb.frechet_mean(circle, angles, init=torch.tensor([[1.0], [-2.0]], dtype=F64), full=True)
    assert len(mean.candidates) == 2
    assert mean.value == min(mean.candidates)


def test_gradients_of_the_mean_agree_with_differences():
    codes, weights = randn(5, 2) * 0.5, torch.tensor([1.0, 2.0, 0.5, 1.0, 1.5], dtype=F64)
    codes, weights = codes.requires_grad_(), weights.requires_grad_()
    along = torch.tensor([1.0, -0.5], dtype=F64)
    (pb.frechet_mean(ROUND, codes, weights=weights, tol=1e-5) @ along).backward()
    step = 0.02

    def value(z, w):
        return float(pb.frechet_mean(ROUND, z.detach(), weights=w.detach(), tol=1e-5) @ along)

    for i, k in ((3, 1),):
        shift = torch.zeros_like(codes)
        shift[i, k] = step
        wanted = (value(codes + shift, weights) - value(codes - shift, weights)) / (2 * step)
        assert codes.grad[i, k] == pytest.approx(wanted, abs=3e-3)
    shift = torch.zeros_like(weights)
    shift[1] = 0.1
    wanted = (value(codes, weights + shift) - value(codes, weights - shift)) / 0.2
    assert weights.grad[1] == pytest.approx(wanted, abs=1e-3)


def test_the_variance_is_the_mean_square_and_has_gradients():
    codes = randn(6, 2).requires_grad_()
    matrix = PLANE.matrix(torch.zeros(2, dtype=F64)).detach()
    variance = pb.frechet_variance(PLANE, codes)
    away = codes - codes.mean(0)
    torch.testing.assert_close(variance, ((away @ matrix) * away).sum(1).mean(), rtol=1e-4, atol=0)
    variance.backward()
    torch.testing.assert_close(codes.grad, (2 / 6 * away @ matrix).detach(), rtol=1e-3, atol=1e-4)
    at = torch.zeros(2, dtype=F64)
    assert pb.frechet_variance(PLANE, codes.detach(), at=at) > variance.detach()


@pytest.mark.parametrize("method", ["graph", "geodesic"])
def test_the_medoid_is_the_point_with_the_smallest_mean_square(method):
    codes = randn(12, 2) * 0.4
    far = SPHERE.distance(codes[:, None], codes[None])
    assert pb.medoid(ROUND, codes, method=method) == int(far.square().sum(1).argmin())
    heavy = torch.full((12,), 1e-3, dtype=F64)
    heavy[7] = 1.0
    assert pb.medoid(ROUND, codes, weights=heavy, method=method) == 7


def test_codes_that_no_geodesic_leads_to_are_counted_and_do_not_count():
    class Hole(nn.Module):
        def forward(self, z):
            return torch.where((z[:, :1] > 2).expand(-1, 2), torch.nan, z)

    codes = torch.cat((randn(20, 2) * 0.3, torch.tensor([[2.5, 0.0]], dtype=F64)))
    with pytest.warns(pb.PullbackWarning):
        mean = pb.frechet_mean(pb.Pullback(Hole()), codes, full=True)
    assert mean.failed.tolist() == [20]
    torch.testing.assert_close(mean.point, codes[:20].mean(0), rtol=0, atol=1e-6)
    assert mean.value == pytest.approx(float(codes[:20].var(0, correction=0).sum()), rel=1e-4)
    assert mean.distances.isnan().tolist() == [False] * 20 + [True]


def test_a_step_off_a_table_is_made_shorter():
    # in this chart of a line the logarithm at a point on the left leads far beyond the right end of the table
    line = pb.Pullback(lambda z: (3 * z).exp())
    table = pb.Tabulated(line, torch.tensor([[-0.6, 0.6]], dtype=F64), 65)
    codes = torch.tensor([[0.2], [0.3], [0.5]], dtype=F64)
    mean = pb.frechet_mean(table, codes, init=torch.tensor([-0.5], dtype=F64), tol=1e-5)
    torch.testing.assert_close(mean, (3 * codes).exp().mean(0).log() / 3, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::pullback.GeodesicWarning", "ignore::pullback.GraphWarning")
def test_a_table_that_cannot_resolve_a_wall_is_named_where_its_metric_is_singular():
    class Wall(pb.Metric):
        def matrix(self, z):
            jump = (24 * torch.sigmoid(400 * (z[..., 0] - 0.52))).exp()
            return torch.diag_embed(torch.stack((1 / jump, jump), -1))

        def inner(self, z, u, v):
            return torch.einsum("...i,...ij,...j->...", u, self.matrix(z), v)

    table = pb.Tabulated(Wall(), torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=F64), 9)
    codes = torch.tensor([[0.1, 0.1], [0.95, 0.9], [0.6, 0.5]], dtype=F64)
    with pytest.warns(pb.RankWarning, match="the table is singular .* more `resolution` or smaller `bounds`"):
        pb.frechet_mean(table, codes)


def test_one_point_and_identical_points_are_their_own_mean():
    for n in (1, 4):
        codes = torch.full((n, 2), 0.3, dtype=F64)
        mean = pb.frechet_mean(ROUND, codes, full=True)
        assert torch.equal(mean.point, codes[0])
        assert mean.value == 0
        assert mean.status is pb.Status.CONVERGED


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_mean_is_like_the_codes(kind):
    codes = randn(20, 2).to(kind)
    before = codes.clone()
    mean = pb.frechet_mean(pb.Pullback(nn.Identity()), codes)
    assert mean.dtype is kind
    assert torch.equal(codes, before)
    torch.testing.assert_close(mean, codes.mean(0), rtol=0, atol=1e-4)


def test_points_of_weight_zero_do_not_count():
    codes = randn(8, 2)
    weights = torch.ones(8, dtype=F64)
    weights[3:] = 0
    torch.testing.assert_close(pb.frechet_mean(PLANE, codes, weights=weights), codes[:3].mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, "-1 at code 1"),
        ({"weights": torch.zeros(3)}, "all zero"),
        ({"weights": torch.ones(4)}, r"shape \(4,\)"),
        ({"weights": [1, 2, 3]}, "a list"),
        ({"power": 3}, "`power` is 3"),
        ({"tol": 2.0}, "`tol` is 2.0"),
        ({"n_starts": 0}, "`n_starts` is 0"),
        ({"init": torch.zeros(3, dtype=F64)}, "latent dimension 3"),
        ({"graph": pb.knn_graph(PLANE, randn(5, 2, seed=4), 2)}, "`graph` has other points"),
    ],
)
def test_bad_input_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        pb.frechet_mean(PLANE, randn(3, 2), **change)


def test_a_mean_that_is_not_found_is_said_to_be_so():
    codes = randn(12, 2)
    with pytest.warns(pb.GeodesicWarning, match="was not found to tol"):
        mean = pb.frechet_mean(bumps(), codes, max_steps=1, tol=1e-6, full=True)
    assert mean.status is pb.Status.MAX_STEPS
    assert mean.error > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pb.frechet_mean(bumps(), codes)
