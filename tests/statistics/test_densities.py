import math

import pytest
import torch
from scipy.integrate import dblquad
from scipy.stats import chi2, kstest

import pullback as pb
from pullback.statistics.heat import HeatGrid
from small import F64, mlp

BOX = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]], dtype=F64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def p_value(index, shares):
    """Of the chi-square test that bins, by their index (n,), have these shares."""
    expected = torch.as_tensor(shares, dtype=F64) * len(index)
    found = torch.bincount(index, minlength=len(expected)).to(F64)
    return chi2.sf(float(((found - expected).square() / expected).sum()), len(expected) - 1)


def flat(z):
    return z


# uniform points


def test_uniform_points_on_a_sphere_have_uniform_heights():
    # Archimedes; the disk in the box is the lower half
    sphere = pb.surfaces.Sphere()
    found = pb.sample_uniform(pb.Pullback(sphere), BOX, 6000, generator=seeded(), full=True)
    assert found.points.shape == (6000, 2)
    inside = found.points[found.points.norm(dim=1) < 1]
    assert kstest(sphere(inside)[:, 2].numpy(), "uniform", (-1, 1)).pvalue > 1e-3
    volume = dblquad(lambda y, x: 4 / (1 + x * x + y * y) ** 2, -1, 1, -1, 1)[0]
    assert abs(found.volume - volume) < 4 * found.volume_error < 0.02 * volume
    assert abs(len(inside) / 6000 - 2 * math.pi / volume) < 4 * 0.3 / 6000**0.5
    assert 0.5 < found.acceptance < 1
    assert found.method == "rejection"


def test_uniform_points_on_a_torus_are_uniform_by_area():
    torus, turn = pb.surfaces.Torus(), 2 * math.pi
    box = torch.tensor([[0.0, turn], [0.0, turn]], dtype=F64)
    z = pb.sample_uniform(pb.Pullback(torus), box, 6000, generator=seeded(1))
    edges = torch.linspace(0, turn, 13, dtype=F64)
    share = (torus.major * edges + torus.minor * edges.sin()).diff() / (torus.major * turn)
    assert p_value((z[:, 1] / turn * 12).long(), share) > 1e-3
    assert p_value((z[:, 0] / turn * 12).long(), torch.full((12,), 1 / 12)) > 1e-3


@pytest.mark.parametrize("d", [1, 3])
def test_uniform_points_come_in_one_and_three_dimensions_too(d):
    # G = exp(2 a z_1) I: the volume grows like exp(a d z_1)
    metric = pb.Conformal(pb.Pullback(flat), lambda z: (2 * z[:, 0]).exp())
    box = torch.tensor([[0.0, 1.0]], dtype=F64).expand(d, 2)
    z = pb.sample_uniform(metric, box, 3000, generator=seeded(2))
    assert kstest(z[:, 0].numpy(), lambda x: (math.e ** (d * x) - 1) / (math.e**d - 1)).pvalue > 1e-3
    assert all(kstest(z[:, i].numpy(), "uniform").pvalue > 1e-3 for i in range(1, d))


def test_a_peak_that_falls_between_the_nodes_of_the_grid_is_found_and_counted_in():
    # the first bound knows nothing of it; the proposals that meet it raise it, and all begins anew
    step = 2 / 64
    middle = torch.tensor([10.3 * step - 1, 20.27 * step - 1], dtype=F64)

    def bump(z):
        return 1 + 400 * (-((z - middle) / (0.12 * step)).square().sum(1)).exp()

    found = pb.sample_uniform(pb.Conformal(pb.Pullback(flat), bump), BOX, 20_000, generator=seeded(3), full=True)
    mass = 400 * math.pi * (0.12 * step) ** 2  # sqrt(det G) is the factor itself
    near = int(((found.points - middle).norm(dim=1) < step / 2).sum()) - 20_000 * math.pi * step**2 / 16
    expected = 20_000 * mass / (4 + mass)
    assert abs(near - expected) < 4 * expected**0.5
    assert abs(found.volume - 4 - mass) < 4 * found.volume_error


def test_in_many_dimensions_walks_keep_the_law_of_the_volume():
    metric = pb.Pullback(pb.surfaces.Sphere())
    found = pb.sample_uniform(metric, BOX[:1].expand(4, 2), 1000, generator=seeded(4), full=True)
    z = 2 * torch.rand(200_000, 4, generator=seeded(5), dtype=F64) - 1
    square, weight = z.square().sum(1), (2 / (1 + z.square().sum(1))) ** 4
    mean = (square * weight).sum() / weight.sum()
    samples = found.points.square().sum(1)
    assert (samples.mean() - mean).abs() < 4.5 * samples.std() / 1000**0.5
    assert abs(found.volume - 16 * weight.mean()) < 4 * found.volume_error
    assert found.method == "walk"
    assert found.points.abs().max() <= 1
    assert 0.3 < found.acceptance < 1
    assert len(torch.unique(found.points, dim=0)) == 1000  # nobody stayed


def test_where_the_metric_is_not_finite_there_are_no_points_and_a_warning():
    metric = pb.Pullback(lambda z: torch.where(z[:, :1] > 0, torch.nan, z))
    with pytest.warns(pb.StatisticsWarning, match=r"not finite at \d+ of \d+ points of the box"):
        z = pb.sample_uniform(metric, BOX, 500, generator=seeded())
    assert (z[:, 0] <= 0).all()


def test_uniform_points_are_those_of_their_seed():
    metric = pb.Pullback(mlp())
    assert torch.equal(*(pb.sample_uniform(metric, BOX, 50, generator=seeded(7)) for _ in range(2)))
    assert not torch.equal(*(pb.sample_uniform(metric, BOX, 50, generator=seeded(s)) for s in (7, 8)))


# kernel densities


def heat_kernel(time, r):
    """Of the unit sphere, by its spherical harmonics."""
    return sum(
        (2 * k + 1) / (4 * math.pi) * math.exp(-k * (k + 1) * time / 2)
        * torch.special.legendre_polynomial_p(r.cos(), k)
        for k in range(60)
    )  # fmt: skip


AT = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.5, 0.3], [-0.8, 0.2]], dtype=F64)


def test_the_heat_kernel_of_a_sphere_is_that_of_its_harmonics():
    sphere = pb.surfaces.Sphere()
    metric, code = pb.Pullback(sphere), torch.zeros(1, 2, dtype=F64)
    exact = heat_kernel(0.25, sphere.distance(code[0], AT))
    errors = []
    for n in (80, 160):
        found = pb.kernel_density(metric, code, 0.5, AT, kernel="heat", bounds=4.0 * BOX, resolution=n)
        errors.append((found / exact - 1).abs().max())
    assert errors[1] < 0.02
    assert 3 < errors[0] / errors[1] < 5  # of second order in the cells


def test_the_heat_that_flows_in_a_box_is_kept_and_becomes_uniform():
    metric = pb.Pullback(mlp())
    grid = HeatGrid.of(metric, BOX, 24)
    heat = torch.rand(25 * 25, generator=seeded(), dtype=F64).numpy()
    for time, spread in ((0.01, None), (1e4, 1e-6)):
        after = grid.flow(heat, time, 8)
        assert abs(grid.volumes @ after - grid.volumes @ heat) < 1e-9 * (grid.volumes @ heat)
        if spread:
            assert after.max() / after.min() - 1 < spread
    volume = pb.sample_uniform(metric, BOX, 4000, generator=seeded(), full=True)
    assert abs(grid.volumes.sum() - volume.volume) < 5 * volume.volume_error


@pytest.mark.parametrize("kernel", ["distance", "heat"])
def test_the_density_does_not_depend_on_the_coordinates(kernel):
    plane = pb.surfaces.DisguisedPlane()
    codes = plane(0.4 * torch.randn(150, 2, generator=seeded(1), dtype=F64))
    settings = {} if kernel == "distance" else {"resolution": 120, "bounds": 2.5 * BOX}
    straight, curved = (
        pb.kernel_density(metric, z(codes), 0.4, z(AT), kernel=kernel, **settings)
        for metric, z in ((pb.Pullback(flat), flat), (pb.Pullback(plane), plane.inverse))
    )
    exact = (-0.5 * torch.cdist(AT, codes).square() / 0.4**2).exp().mean(1) / (2 * math.pi * 0.4**2)
    tolerance = 0.12 if kernel == "distance" else 0.06  # paths over a graph are too long; walls of the box are near
    assert ((curved / straight - 1).abs() < tolerance).all()
    assert ((straight / exact - 1).abs() < tolerance).all()


def test_with_exact_distances_the_density_is_a_sum_of_normal_laws():
    codes = torch.randn(60, 3, generator=seeded(2), dtype=F64)
    at = torch.randn(7, 3, generator=seeded(3), dtype=F64)
    found = pb.kernel_density(pb.Pullback(flat), codes, 0.7, at, distances=torch.cdist(at, codes))
    normal = torch.distributions.MultivariateNormal(codes, 0.49 * torch.eye(3, dtype=F64))
    assert torch.allclose(found, normal.log_prob(at[:, None]).exp().mean(1), rtol=1e-10)


def test_on_a_sphere_the_density_integrates_to_one():
    # without the curvature it would be 1 - h^2 / 3
    sphere, codes = pb.surfaces.Sphere(), torch.tensor([[0.2, 0.1], [-0.4, 0.3]], dtype=F64)
    r = torch.linspace(0, math.pi, 4000, dtype=F64)
    found = pb.kernel_density(pb.Pullback(sphere), codes[:1], 0.5, r[:, None].expand(-1, 2), distances=r[:, None])
    mass = torch.trapezoid(found * 2 * math.pi * r.sin(), r)
    assert abs(mass - 1) < 0.003
    assert abs(mass * math.exp(-0.25 / 3) - 1) > 0.07


def test_both_kernels_agree_where_they_are_small():
    sphere = pb.surfaces.Sphere()
    codes = pb.sample_uniform(pb.Pullback(sphere), 0.5 * BOX, 300, generator=seeded(4))
    metric, distances = pb.Pullback(sphere), sphere.distance(AT[:3, None], codes)
    near = pb.kernel_density(metric, codes, 0.25, AT[:3], distances=distances)
    flow = pb.kernel_density(metric, codes, 0.25, AT[:3], kernel="heat", bounds=1.5 * BOX, resolution=128)
    assert torch.allclose(near, flow, rtol=0.04)


def test_at_the_codes_each_counts_itself_and_few_points_are_done_like_many():
    codes = torch.randn(80, 2, generator=seeded(5), dtype=F64)
    metric = pb.Pullback(flat)
    whole = pb.kernel_density(metric, codes, 0.3)
    assert whole.shape == (80,)
    assert (whole >= 1 / (80 * 2 * math.pi * 0.09)).all()
    more = torch.cat((codes, codes + 0.01))  # as many points as codes: Dijkstra from the codes
    few, many = (pb.kernel_density(metric, codes, 0.3, at) for at in (codes[:10] + 0.01, more))
    assert torch.allclose(few, many[80:90], rtol=0.1)  # more points, shorter paths


@pytest.mark.parametrize("kernel", ["distance", "heat"])
def test_the_chosen_bandwidth_is_near_the_best_for_normal_codes(kernel):
    # for a normal law in the plane the one of least squared error is n^(-1/6); and it is a length
    codes = torch.randn(300, 2, generator=seeded(6), dtype=F64)
    settings = {"kernel": kernel} if kernel == "distance" else {"kernel": kernel, "resolution": 48}
    found = [pb.kernel_bandwidth(pb.Pullback(lambda z, s=s: s * z), codes, **settings) for s in (1.0, 10.0)]
    assert found[1] == pytest.approx(10 * found[0], rel=1e-2)
    assert 0.5 < found[0] / 300 ** (-1 / 6) < 2


def test_without_a_bandwidth_the_chosen_one_is_taken_and_logged(caplog):
    codes, metric = torch.randn(120, 2, generator=seeded(7), dtype=F64), pb.Pullback(flat)
    with caplog.at_level("INFO", "pullback"):
        found = pb.kernel_density(metric, codes, at=AT)
    chosen = pb.kernel_bandwidth(metric, codes)
    assert f"bandwidth={chosen:.4g}" in caplog.text
    assert torch.equal(found, pb.kernel_density(metric, codes, chosen, AT))


def test_it_works_on_a_table_and_in_single_precision():
    table = pb.Tabulated(pb.Pullback(pb.surfaces.Sphere()), 1.5 * BOX, 33)
    codes = 0.25 * torch.randn(60, 2, generator=seeded(8), dtype=F64)
    for kernel in ("distance", "heat"):
        assert (pb.kernel_density(table, codes, 0.4, kernel=kernel) > 0).all()
    single = pb.kernel_density(pb.Pullback(flat), codes.float(), 0.4, AT.float(), kernel="heat")
    assert single.dtype == torch.float32


def test_what_a_kernel_cannot_resolve_is_told():
    sphere, codes = pb.Pullback(pb.surfaces.Sphere()), 0.3 * torch.randn(40, 2, generator=seeded(9), dtype=F64)
    with pytest.warns(pb.StatisticsWarning, match="at 40 of 40 codes the curvature changes.*a bandwidth below 1.2"):
        pb.kernel_density(sphere, codes, 2.0)
    with pytest.warns(pb.StatisticsWarning, match="a cell of the grid is .* Take a resolution"):
        pb.kernel_density(sphere, codes, 0.01, kernel="heat", resolution=16)
    holed = pb.Pullback(lambda z: torch.where(z.norm(dim=1, keepdim=True) > 1.2, torch.nan, z))
    with pytest.warns(pb.StatisticsWarning, match=r"not finite in \d+ cells of the grid"):
        found = pb.kernel_density(holed, codes, 0.5, AT[:2], kernel="heat", bounds=2 * BOX)
    assert torch.isfinite(found).all()


def test_outside_of_the_bounds_there_is_no_density():
    at = torch.tensor([[0.0, 0.0], [5.0, 0.0]], dtype=F64)
    found = pb.kernel_density(pb.Pullback(flat), at[:1], 0.5, at, kernel="heat", bounds=2 * BOX)
    assert torch.isfinite(found).tolist() == [True, False]


# bad input

METRIC, CODES = pb.Pullback(flat), torch.randn(20, 2, generator=seeded(), dtype=F64)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pb.sample_uniform(flat, BOX, 5), "wrapped as Pullback"),
        (lambda: pb.sample_uniform(METRIC, BOX[0], 5), r"`bounds` has shape \(2,\)"),
        (lambda: pb.sample_uniform(METRIC, BOX.flip(1), 5), "axis 0 are 1 and -1: want"),
        (lambda: pb.sample_uniform(METRIC, BOX, 0), "`n` is 0"),
        (lambda: pb.sample_uniform(pb.Pullback(lambda z: z[:, :1] + 0 * z), BOX, 5), "no volume to draw from"),
        (lambda: pb.kernel_density(flat, CODES, 0.5), "wrapped as Pullback"),
        (lambda: pb.kernel_density(METRIC, CODES[0], 0.5), r"`codes` has shape \(2,\)"),
        (lambda: pb.kernel_density(METRIC, CODES, 0.0), "`bandwidth` is 0.0"),
        (lambda: pb.kernel_density(METRIC, CODES, 0.5, CODES.float()), "`at` has dtype float32"),
        (lambda: pb.kernel_density(METRIC, CODES, 0.5, kernel="box"), "`kernel` is 'box': want"),
        (lambda: pb.kernel_density(METRIC, CODES, 0.5, AT, distances=torch.zeros(20, 4)), r"want \(4, 20\)"),
        (lambda: pb.kernel_density(METRIC, CODES[:1], 0.5), "`codes` holds 1 points: want 2 or more"),
        (lambda: pb.kernel_density(METRIC, CODES, 0.5, kernel="heat", bounds=0.1 * BOX), "outside of `bounds`"),
        (lambda: pb.kernel_density(METRIC, torch.randn(9, 4), 0.5, kernel="heat"), "use kernel='distance'"),
        (lambda: pb.kernel_bandwidth(METRIC, CODES[:2]), "want 3 or more"),
        (lambda: pb.kernel_bandwidth(METRIC, CODES[:1].expand(9, 2)), "all `codes` lie at distance zero"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_fix(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
