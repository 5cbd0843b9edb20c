import dataclasses
import json
import math
import warnings

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.diagnostics import Off, Spread, Verdict, sources
from pullback.diagnostics.growth import Cloud, judged
from pullback.diagnostics.lines import bootstrap, random_pairs, straight_lengths
from pullback.diagnostics.spectra import dead_and_weak, sampled
from small import F64, Bowl, mlp, randn

EYE = torch.eye(2, dtype=F64)


def check(metric, codes, **settings):
    """A small check-up."""
    return pb.check_geometry(metric, codes, **{"n_pairs": 20, "n_points": 256, **settings})


def scaled_by(factor):
    """The metric factor(|z|)^2 I: what a unit step gains is the factor."""
    return pb.MatrixField(lambda z: factor(z.norm(dim=-1)).square()[:, None, None] * torch.eye(2, dtype=z.dtype))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# closed forms


def test_a_plane_is_flat_and_one_constant_matrix():
    plane = nn.Linear(2, 5, bias=False).double()
    nn.init.orthogonal_(plane.weight, generator=generator()).data[:, 1] *= 3  # by no means a multiple of the identity
    report = check(pb.Pullback(plane), randn(300, 2))
    assert report.verdict is Verdict.FLAT
    assert report.sentence == "flat: straight lines are geodesics on these data (95% of the pairs: within 0.1%)"
    assert report.isometry.constant_defect < 1e-9
    assert report.growth.verdict is Off.FLAT
    singular = torch.linalg.svdvals(plane.weight.detach())
    for found, value in zip(report.on_data.stretch, singular, strict=True):
        assert found.low == pytest.approx(float(value))
        assert found.high == pytest.approx(float(value))
    assert report.on_data.condition.median == pytest.approx(float(singular[0] / singular[1]) ** 2)
    assert report.on_data.log_volume.median == pytest.approx(float(singular.log().sum()))
    assert max(report.lines.ratios) < 1 + 1e-6
    assert min(report.lines.ratios) > 1 - 1e-6
    assert "constant matrix" in report.advice[-1]


def test_a_scaled_isometry_is_known_by_its_scale():
    frame = torch.linalg.qr(randn(6, 3)).Q
    report = check(pb.Pullback(lambda z: 4 * z @ frame.mT), randn(200, 3))
    assert report.isometry.defect < 1e-9
    assert report.isometry.scale == pytest.approx(4)
    assert report.advice == (
        "Euclidean distance between codes times 4 does nearly as well, at no cost: the metric is that multiple of the "
        "identity to 0.0%.",
    )


def test_the_defects_are_the_relative_spreads_of_the_steps():
    # G = s^2 I with s = 1 or 3 at equally many codes: mean 2, standard deviation 1; the mean of G is 5
    codes = torch.cat((randn(100, 2) - 20, randn(100, 2) + 20))
    step = pb.MatrixField(lambda z: torch.where(z[:, 0] > 0, 9.0, 1.0)[:, None, None] * EYE)
    report = check(step, codes, n_pairs=1)
    assert report.isometry.scale == pytest.approx(2)
    assert report.isometry.defect == pytest.approx(0.5)
    assert report.isometry.constant_defect == pytest.approx(0.5)
    skew = torch.tensor([[2.0, 1.0], [0.0, 0.1]], dtype=F64)
    oblique = pb.MatrixField(lambda z: step.field(z) @ (skew.mT @ skew))
    turned = check(oblique, codes, n_pairs=1).isometry
    assert turned.constant_defect == pytest.approx(0.5)  # no matter the coordinates
    assert turned.defect > 0.9


def test_the_ratios_on_a_sphere_are_those_of_the_closed_form(monkeypatch):
    sphere, codes = pb.surfaces.Sphere(), 0.8 * randn(40, 2)
    pairs = torch.tensor([[i, i + 20] for i in range(20)])
    monkeypatch.setattr("pullback.diagnostics.lines.random_pairs", lambda *_: (pairs, True))
    report = check(pb.Pullback(sphere), codes, tol=1e-5)
    start, end = codes[pairs].unbind(1)
    t = torch.linspace(0, 1, 20001, dtype=F64)[:, None, None]
    line = sphere((1 - t) * start + t * end).diff(dim=0).norm(dim=-1).sum(0)
    exact = line / sphere.distance(start, end)
    assert torch.allclose(straight_lengths(pb.Pullback(sphere), start, end), line, rtol=1e-4)
    assert report.lines.ratios == pytest.approx(exact.tolist(), rel=1e-3)
    assert report.lines.ratio.median == pytest.approx(float(exact.quantile(0.5, interpolation="nearest")), rel=1e-3)
    assert report.lines.worst == pytest.approx(float(exact.max()), rel=1e-3)


def test_a_straight_line_over_a_rough_surface_is_sampled_finer():
    def wavy(z):
        return torch.cat((z, 0.1 * (60 * z).sin()), 1)

    start, end = randn(10, 2), randn(10, 2, seed=1)
    t = torch.linspace(0, 1, 20001, dtype=F64)[:, None, None]
    exact = wavy(((1 - t) * start + t * end).reshape(-1, 2)).reshape(-1, 10, 4).diff(dim=0).norm(dim=-1).sum(0)
    assert torch.allclose(straight_lengths(pb.Pullback(wavy), start, end), exact, rtol=5e-3)
    coarse = pb.length(pb.Pullback(wavy), pb.Curve.straight(start, end), n_segments=64)
    assert not torch.allclose(coarse, exact, rtol=2e-2)


def test_the_log_volume_and_the_stretches_are_those_of_the_metric():
    metric, z = pb.MatrixField(Bowl()), randn(50, 3)
    found = sampled(metric, z)
    assert torch.allclose(found.log_volume, metric.log_volume(z), rtol=1e-12)
    assert torch.allclose(found.log_stretch(3), metric.log_volume(z) / 3, rtol=1e-12)
    assert torch.allclose(found.eigenvalues, torch.linalg.eigvalsh(metric.matrix(z)), rtol=1e-12)


# dead and weak directions


def test_a_coordinate_that_the_decoder_ignores_is_named():
    report = check(
        pb.Pullback(lambda z: torch.stack((z[:, 0].sin(), z[:, 0], z[:, 2] ** 3 + z[:, 2]), 1)), randn(200, 3)
    )
    assert report.verdict is Verdict.NOT_BELIEVABLE
    assert not report.believable
    assert report.sentence == "cannot be believed: the decoder does not change along z_2: rank 2 of 3"
    assert [direction.vector for direction in report.dead] == [(0.0, 1.0, 0.0)]
    assert report.on_data.rank == 2
    assert report.on_data.n_deficient == 200
    assert report.on_data.condition.low == math.inf
    assert report.on_data.log_volume.high == -math.inf
    assert report.to_dict()["on_data"]["condition"]["low"] is None
    assert report.growth.verdict is Off.GROWS  # along the other two


def test_an_oblique_dead_direction_is_found_at_any_scale_of_the_axes():
    scale = torch.tensor([1.0, 1e-4], dtype=F64)
    codes = scale * randn(100, 2)

    def ridge(z):
        height = (z / scale).sum(1)
        return torch.stack((height.sin(), height), 1)

    dead, weak = dead_and_weak(sampled(pb.Pullback(ridge), codes), codes)
    assert weak == ()
    assert len(dead) == 1
    along = torch.tensor(dead[0].vector, dtype=F64) / scale
    assert abs(float(along.sum())) < 1e-9 * float(along.norm())
    assert dead[0].name == "(+1 z_1 -0.0001 z_2)"


def test_a_short_axis_is_not_a_dead_one():
    short = torch.tensor([1.0, 1e-9], dtype=F64)
    report = check(pb.Pullback(lambda z: torch.cat((short * z, z[:, :1].sin()), 1)), randn(200, 2))
    assert report.dead == ()
    assert report.on_data.rank == 2
    (weak,) = report.weak
    assert weak.name == "z_2"
    assert weak.share == pytest.approx(1e-9, rel=0.5)
    assert any("hardly follows z_2" in line for line in report.advice)


def test_a_weak_direction_is_one_that_the_codes_do_not_make_up_for():
    short = torch.tensor([1.0, 1e-3], dtype=F64)
    metric = pb.Pullback(lambda z: short * z)
    assert [direction.name for direction in check(metric, randn(200, 2)).weak] == ["z_2"]
    assert check(metric, randn(200, 2) / short).weak == ()


def test_codes_that_do_not_spread_are_told():
    flat = torch.tensor([1.0, 1e-5], dtype=F64)
    report = check(pb.Pullback(mlp()), flat * randn(200, 2))
    assert report.unused == (1,)
    assert any("hardly differ in z_2" in line for line in report.advice)


def test_more_latent_than_data_dimensions_are_dead_directions():
    report = check(pb.Pullback(mlp(4, 3)), randn(100, 4), n_pairs=2)
    assert report.on_data.rank == 3
    assert report.dead == ()  # another direction at each code
    assert report.sentence == "cannot be believed: the metric is singular at 100 of 100 codes (rank 3 of 4)"


# away from the data


@pytest.mark.parametrize(
    ("factor", "wanted"),
    [
        (lambda r: 1 + r**2, Off.GROWS),
        (lambda r: torch.ones_like(r), Off.FLAT),
        (lambda r: 1 + 5 * (2 * (r - 3)).sigmoid(), Off.SATURATES),
        (lambda r: 1 + 9 * (-2 * (r - 4.5) ** 2).exp(), Off.RING),
        (lambda r: 1 / (1 + r**2), Off.SHRINKS),
        (lambda r: (-(r**2)).exp() + 1e-3, Off.SHRINKS),
    ],
    ids=["grows", "flat", "saturates", "ring", "shrinks", "vanishes"],
)
def test_what_a_metric_does_off_the_data_is_told(factor, wanted):
    report = check(scaled_by(factor), randn(400, 2), n_pairs=1)
    assert report.growth.verdict is wanted
    assert str(report).count(wanted.value) == 1


@pytest.mark.parametrize(
    ("profile", "wanted"),
    [
        ([0, 1, 2, 3, 4], Off.GROWS),
        ([0, 0.1, -0.1, 0.2, 0.1], Off.FLAT),
        ([0, 3, 4, 4.1, 4.1], Off.SATURATES),
        ([0, 1, 4, 3.9, 3.8], Off.SATURATES),  # a fall within a tenth of the rise
        ([0, 1, 4, 3.5, 2.5], Off.RING),
        ([0, 4, 2, 0, -1], Off.RING),
        ([0, 2, 1, -1, -3], Off.RING),
        ([0, 0.3, 0, -1, -2], Off.SHRINKS),  # a bump is no wall
        ([0, -1, -2, -3, -math.inf], Off.SHRINKS),
        ([0, 1, 2], Off.UNKNOWN),
        ([math.nan, 1, 2, 3, 4], Off.UNKNOWN),
    ],
)
def test_a_profile_is_judged_by_its_rise_and_fall(profile, wanted):
    assert judged([0.0, 1.0, 2.0, 4.0, 8.0][: len(profile)], [float(x) for x in profile]) is wanted


def test_the_shells_have_the_closed_form_and_the_distance_that_they_say():
    # two codes that matter: the metric depends on the distance to the nearest of them alone
    codes = torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=F64)

    def nearest(z):
        return torch.cdist(z, codes).amin(1)

    metric = pb.MatrixField(lambda z: (2 * nearest(z)).exp()[:, None, None] * EYE)
    report = check(metric, codes)
    assert report.growth.spread == pytest.approx(3)
    assert [shell.distance for shell in report.growth.shells][-1] == pytest.approx(6)
    for shell in report.growth.shells:
        assert shell.log_stretch.median == pytest.approx(shell.distance, rel=0.02)
        assert shell.log_stretch.high <= shell.distance * 1.000001
        assert shell.n_points == 32
        assert shell.above == 1
    assert report.growth.rise == pytest.approx(math.exp(6), rel=0.15)
    assert report.growth.fall == 1


@pytest.mark.parametrize("d", [1, 2, 9])
def test_points_of_a_shell_lie_at_its_distance_and_those_of_the_box_in_it(d):
    codes = randn(200, d)
    cloud = Cloud(codes)
    for distance in (0.05, 1.0, 5.0):
        z = cloud.shell(distance, 100, generator())
        assert len(z) > 90
        assert torch.allclose(torch.cdist(z, codes).amin(1), torch.tensor(distance, dtype=F64), rtol=0.021)
        assert torch.allclose(cloud.distance(z), torch.cdist(z, codes).amin(1))
    z = cloud.box(2000, generator())
    low, high = codes.amin(0), codes.amax(0)
    share = (z - low) / (high - low)
    assert float(share.min()) > -0.25
    assert float(share.max()) < 1.25
    assert torch.allclose(share.mean(0), torch.tensor(0.5, dtype=F64), atol=0.05)
    gaps = torch.cdist(codes, codes).fill_diagonal_(math.inf).amin(1)
    assert torch.allclose(cloud.spacings, gaps)


@pytest.mark.parametrize(
    ("map_of", "cure"),
    [
        (lambda f: f, "Model a variance that grows"),
        (lambda f: pb.Ensemble([f, mlp(seed=1)]), "Ensemble(decoders, weight=...)"),
        (lambda f: pb.Gaussian(f, lambda z: 0.1 * torch.ones(len(z), 7, dtype=z.dtype)), "RBFPrecision"),
    ],
    ids=["plain", "ensemble", "constant variance"],
)
def test_the_cure_for_a_metric_that_shrinks_fits_the_decoder(map_of, cure):
    report = check(pb.Pullback(map_of(mlp())), randn(100, 2), n_pairs=2)
    assert report.growth.verdict is Off.SHRINKS
    assert any(line.startswith("Nothing keeps curves near the data") and cure in line for line in report.advice)


def test_a_wall_with_gaps_is_told():
    # grows upwards alone: below the data it stays as it is
    metric = pb.MatrixField(lambda z: z[:, 1].clamp_min(0).mul(2).exp()[:, None, None] * EYE)
    report = check(metric, randn(300, 2))
    assert any("has gaps" in line for line in report.advice)


# variance


def test_the_share_of_a_variance_is_that_of_the_closed_form():
    # mean 3 z, standard deviation 4 z: 16 of 25
    metric = pb.Pullback(pb.Gaussian(lambda z: 3 * z, lambda z: 4 * z))
    report = check(metric, randn(100, 2))
    assert report.variance.kind == "gaussian"
    assert report.variance.on_data == pytest.approx(0.64)
    assert report.variance.off_data == pytest.approx(0.64)
    assert check(2.0 * metric, randn(100, 2)).variance.on_data == pytest.approx(0.64)


def test_the_share_of_an_ensemble_is_that_of_its_disagreement():
    # members z and 3 z: mean 2 z, G = (1 + 9) / 2, the mean's is 4
    metric = pb.Pullback(pb.Ensemble([lambda z: z, lambda z: 3 * z]))
    report = check(metric, randn(100, 2))
    assert report.variance.kind == "ensemble"
    assert report.variance.on_data == pytest.approx(0.2)


def test_a_constant_variance_has_no_share():
    metric = pb.Pullback(pb.Gaussian(mlp(), lambda z: 0.1 * torch.ones(len(z), 7, dtype=z.dtype)))
    assert check(metric, randn(100, 2)).variance.on_data == 0


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        (pb.Pullback(mlp()), "none"),
        (pb.Pullback(mlp()) + pb.Pullback(mlp(seed=1)), "none"),
        (pb.FisherRao(lambda z: torch.distributions.Bernoulli(logits=3 * z)), "likelihood"),
        (pb.LocalVariance(randn(50, 2), bandwidth=0.5, floor=0.1), "data"),
        (pb.MatrixField(Bowl()), "unknown"),
        (pb.Conformal(pb.Pullback(mlp()), lambda z: z.square().sum(1).exp()), "unknown"),
        (pb.Conformal(pb.Pullback(pb.Gaussian(mlp(), mlp(seed=1))), lambda z: z.square().sum(1).exp()), "gaussian"),
        (pb.Pullback(mlp()) + pb.LocalVariance(randn(50, 2), bandwidth=0.5, floor=0.1), "data"),
        (pb.Pullback(mlp()) + pb.Pullback(pb.Gaussian(mlp(), mlp(seed=1))), "gaussian"),
        (pb.Pullback(lambda z: (z, z.exp()), output=(0, 1)), "unknown"),
    ],
)
def test_where_a_variance_comes_from_is_told(metric, kind):
    z = randn(40, 2)
    found = sampled(metric, z)
    assert sources.variance(metric, found, found).kind == kind


def test_the_family_of_a_likelihood_is_told():
    metric = pb.FisherRao(lambda z: torch.distributions.Poisson((0.3 * z).exp()))
    report = check(metric, randn(100, 2))
    assert report.variance.family == "Poisson"
    assert "Poisson" in str(report)


# smoothness


@pytest.mark.parametrize(("activation", "rough"), [(nn.ReLU, True), (nn.Tanh, False), (nn.SiLU, False)])
def test_creases_are_found(activation, rough):
    report = check(pb.Pullback(mlp(activation=activation)), randn(100, 2))
    assert bool(report.creases) is rough
    assert any("has creases" in line for line in report.advice) is rough
    assert report.believable
    if rough:
        assert report.creases == "Relu is among its operators"


def test_a_matrix_without_gradient_may_or_may_not_be_smooth():
    hidden = pb.MatrixField(lambda z: (1 + z.detach().square().sum(1))[:, None, None] * EYE)
    assert sources.creases(hidden, randn(5, 2)) in ("", None)


# straight lines and geodesics


def test_pairs_are_of_different_codes_and_none_comes_twice():
    codes = randn(100, 2)
    pairs, disjoint = random_pairs(codes, 50, generator())
    assert disjoint
    assert len(pairs.unique()) == 100
    for n, n_pairs, wanted in ((100, 60, 60), (30, 100, 100), (12, 60, 60), (5, 60, 10), (2, 60, 1)):
        pairs, disjoint = random_pairs(codes[:n], n_pairs, generator())
        assert not disjoint
        assert len(pairs) == wanted
        assert len(pairs.sort(1).values.unique(dim=0)) == wanted
        assert bool((pairs[:, 0] != pairs[:, 1]).all())
    twice = torch.cat((codes[:3], codes[:3]))
    pairs, _ = random_pairs(twice, 60, generator())
    assert len(pairs) == 12  # of 15, without those of a code with its copy


def test_the_interval_of_the_median_covers_it_as_often_as_it_says():
    source, truth, hits = generator(3), math.log(2), 0
    for _ in range(150):
        x = -torch.rand(60, generator=source, dtype=F64).log()  # exponential
        low, high = bootstrap(x, source)
        hits += low <= truth <= high
    assert 0.90 <= hits / 150 <= 0.99


def test_failed_geodesics_are_counted_and_make_the_answer_unbelievable():
    # a hole between two clusters: no line and no geodesic between them is finite, inside of each all are
    codes = torch.cat((0.2 * randn(40, 2), 0.2 * randn(40, 2, seed=1) + torch.tensor([4.0, 0.0], dtype=F64)))
    metric = pb.Pullback(lambda z: torch.cat((z, ((z[:, :1] - 2).abs() - 1).sqrt()), 1))
    report = check(metric, codes, n_points=64)
    lines = report.lines
    assert lines.n_pairs == 20
    assert 3 < lines.n_failed < 17
    assert sum(lines.statuses.values()) == 20
    assert lines.n_used == len(lines.ratios) == 20 - lines.n_failed
    assert report.verdict is Verdict.NOT_BELIEVABLE
    assert f"{lines.n_failed} of 20 geodesics failed" in report.sentence
    assert any("left out" in line for line in report.advice)


def test_codes_without_a_metric_are_counted_and_the_first_is_named():
    codes = randn(100, 2)
    codes[[17, 60]] = torch.tensor([-9.0, 0.0], dtype=F64)
    report = check(pb.Pullback(lambda z: torch.cat((z, (z[:, :1] + 8).sqrt()), 1)), codes)
    assert report.on_data.n_undefined == 2
    assert report.sentence == "cannot be believed: there is no metric at 2 of 100 codes (first: code 17)"


def test_the_first_code_without_a_metric_is_named_by_its_row_when_some_codes_are_looked_at():
    codes = randn(3000, 2).clamp(-4, 4)
    codes[2000:] = torch.tensor([-9.0, 0.0], dtype=F64)
    metric = pb.Pullback(lambda z: torch.cat((z, (z[:, :1] + 8).sqrt()), 1))
    report = check(metric, codes, n_points=100, n_pairs=2)
    first = report.on_data.first_undefined
    assert first is not None
    assert 2000 <= first < 2300


def test_geodesics_that_take_shortcuts_off_the_data_are_told():
    # codes fill a disk, and lengths fall to a twentieth outside of it: straight lines stay inside, geodesics go around
    radius, turn = torch.rand(2, 600, generator=generator(), dtype=F64)
    codes = 1.9 * radius.sqrt()[:, None] * torch.stack(((2 * math.pi * turn).cos(), (2 * math.pi * turn).sin()), 1)
    report = check(scaled_by(lambda r: 0.05 + 0.95 * (-((r / 1.5) ** 2)).exp()), codes, n_points=64)
    assert report.believable
    assert report.growth.verdict is Off.SHRINKS
    assert report.lines.line_off < 0.02
    assert report.lines.geodesic_off > 0.12
    assert any("take shortcuts" in line for line in report.advice)


def test_a_curve_with_one_latent_dimension_is_flat():
    report = check(pb.Pullback(mlp(1)), randn(100, 1))
    assert report.verdict is Verdict.FLAT
    assert report.sentence == "flat: with one latent dimension every straight line is a geodesic"
    assert report.on_data.condition.high == 1


def test_few_pairs_settle_nothing():
    report = check(pb.Pullback(mlp()), randn(2, 2))
    assert report.lines.n_pairs == 1
    assert report.lines.interval is None
    assert report.sentence.endswith(", but 1 pair settles nothing")
    assert any(line.startswith("Only 1 pair") for line in report.advice)


# every metric


@pytest.mark.parametrize(
    "metric",
    [
        pb.Pullback(mlp()),
        pb.Pullback(mlp(), ambient=pb.MatrixField(lambda x: torch.eye(7, dtype=x.dtype).expand(len(x), 7, 7))),
        pb.FisherRao(lambda z: torch.distributions.Bernoulli(logits=mlp()(z))),
        pb.FisherRao(lambda z: torch.distributions.Normal(z, (0.1 * z).exp())),
        pb.MatrixField(Bowl()),
        pb.LocalVariance(randn(50, 2), bandwidth=1.0, floor=0.1),
        pb.Conformal(pb.Pullback(mlp()), lambda z: 1 + z.square().sum(1)),
        pb.Tabulated(pb.Pullback(mlp()), torch.tensor([[-4.0, 4.0], [-4.0, 4.0]], dtype=F64), 17),
        2.0 * pb.Pullback(mlp()) + pb.LocalVariance(randn(50, 2), bandwidth=1.0, floor=0.1),
    ],
    ids=lambda metric: sources.kind_of(metric),
)
def test_every_kind_of_metric_can_be_checked(metric):
    report = check(metric, randn(100, 2).clamp(-3, 3))
    assert report.believable
    assert report.lines.n_used == 20
    assert math.isfinite(report.growth.on_data.median)


def test_a_table_is_looked_at_where_it_is_defined():
    table = pb.Tabulated(pb.Pullback(mlp()), torch.tensor([[-3.0, 3.0], [-3.0, 3.0]], dtype=F64), 17)
    report = check(table, randn(200, 2).clamp(-3, 3))
    assert report.in_box.n_undefined > 10
    assert report.growth.shells[0].n_points > 16
    assert report.growth.shells[-1].n_points == 0
    assert "no metric" in str(report)
    narrow = pb.Tabulated(pb.Pullback(mlp()), torch.tensor([[-0.1, 0.1], [-3.0, 3.0]], dtype=F64), 9)
    line = torch.tensor([0.02, 1.0], dtype=F64) * randn(200, 2).clamp(-3, 3)
    assert check(narrow, line, reach=5.0, n_pairs=2).growth.verdict is Off.UNKNOWN


def test_single_precision_is_enough_and_the_report_says_it():
    report = check(pb.Pullback(mlp(3).float()), randn(100, 3).float())
    assert report.dtype == "float32"
    assert report.believable
    assert report.on_data.rank == 3


def test_the_same_call_gives_the_same_report_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    codes = randn(300, 2)
    first, second = (check(pb.Pullback(mlp()), codes, n_points=100) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)
    other = check(pb.Pullback(mlp()), codes, n_points=100, generator=generator(1))
    assert other.lines.ratios != first.lines.ratios


def test_nothing_of_the_caller_changes():
    decoder, codes = mlp(), randn(100, 2).requires_grad_()
    before = codes.detach().clone()
    check(pb.Pullback(decoder), codes)
    assert torch.equal(codes.detach(), before)
    assert codes.requires_grad
    assert codes.grad is None
    assert all(p.requires_grad and p.grad is None for p in decoder.parameters())


def test_many_latent_dimensions_are_no_trouble():
    report = check(pb.Pullback(mlp(20, 60, width=40)), randn(300, 20), n_pairs=12)
    assert report.believable
    assert len(report.on_data.stretch) == 20
    assert str(report).count("stretch") == 2 * 9  # the first eight and the last


# bad input


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(5, 2, dtype=torch.int64), "has dtype int64: points are floating-point"),
        (torch.zeros(5, 2, dtype=torch.float16), "has dtype float16"),
        (torch.zeros(5), "want one or more points"),
        (torch.zeros(0, 2), "want one or more points"),
        (torch.zeros(1, 2), "holds 1 point: a check compares points"),
        (torch.ones(7, 2), "are 7 times the same point"),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0], [math.nan, 0.0]]), r"NaN or infinity at 1 of 3 points \(first: 2\)"),
        (randn(9, 3), "latent dimension"),
    ],
)
def test_codes_that_cannot_be_checked_are_refused(codes, message):
    metric = pb.Pullback(mlp())
    with pytest.raises(ValueError, match=message):
        pb.check_geometry(metric, codes)


def test_a_decoder_is_not_a_metric_and_an_array_no_tensor():
    with pytest.raises(TypeError, match="wrapped as Pullback"):
        pb.check_geometry(mlp(), randn(5, 2))
    with pytest.raises(TypeError, match="give a torch tensor"):
        pb.check_geometry(pb.Pullback(mlp()), randn(5, 2).numpy())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_pairs": 0}, "`n_pairs` is 0"),
        ({"n_pairs": 2.5}, "`n_pairs` is 2.5"),
        ({"n_points": 0}, "`n_points` is 0"),
        ({"reach": 0.0}, "`reach` is 0"),
        ({"reach": math.inf}, "`reach` is inf"),
        ({"tol": 2.0}, "`tol` is 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        pb.check_geometry(pb.Pullback(mlp()), randn(5, 2), **setting)


def test_a_decoder_in_training_mode_is_refused_with_its_own_message():
    with pytest.raises(ValueError, match=r"decoder\.eval"):
        pb.check_geometry(pb.Pullback(nn.Sequential(nn.Linear(2, 3), nn.Dropout()).double()), randn(50, 2))


def test_a_decoder_that_is_nan_everywhere_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        pb.check_geometry(pb.Pullback(lambda z: z * math.nan), randn(50, 2))


# the report


def test_the_report_is_frozen_and_plain_for_json():
    report = check(pb.Pullback(mlp(activation=nn.ReLU)), randn(100, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.dim = 3  # pyright: ignore[reportAttributeAccessIssue]
    read = json.loads(report.to_json())
    assert read == report.to_dict()
    assert read["verdict"] == report.verdict.value
    assert read["growth"]["verdict"] == report.growth.verdict.name.lower()
    assert read["lines"]["ratio"]["median"] == report.lines.ratio.median
    assert set(read) == {field.name for field in dataclasses.fields(report)}


def test_the_text_has_the_verdict_first_and_every_advice():
    report = check(pb.Pullback(mlp(activation=nn.ReLU)), randn(100, 2))
    text = " ".join(str(report).split())
    assert text.lower().startswith(report.sentence.lower())
    for number, line in enumerate(report.advice, 1):
        assert f"{number}. {line}" in text
    assert max(map(len, str(report).splitlines())) <= 100


def test_quantiles_are_of_the_values_themselves():
    assert Spread.of(torch.tensor([math.inf, 1.0, 2.0])) == Spread(1.0, 2.0, math.inf)
    assert str(Spread(1.0, 2.0, 3.0)) == "2 (1 to 3)"
    assert math.isnan(Spread.of(torch.zeros(0)).median)


# trained models


def test_the_shipped_model_is_nearly_flat_and_grows_by_its_variance():
    model = pb.models.pretrained("mnist012")
    report = check(pb.Pullback(model.decoder), model.codes[::20], n_pairs=60)
    assert report.verdict is Verdict.NEARLY_FLAT
    assert 0.01 < report.lines.ratio.median - 1 < 0.03
    assert report.lines.interval is not None
    assert report.lines.interval[0] - 1 < 0.0235 < report.lines.interval[1] - 1  # of 200 pairs of all codes: 2.4%
    assert report.growth.verdict is Off.GROWS
    assert report.growth.rise > 100
    assert report.variance.kind == "gaussian"
    assert report.variance.on_data is not None
    assert report.variance.off_data is not None
    assert report.variance.on_data < 0.3
    assert report.variance.off_data > 0.95
    assert report.creases == ""
    assert report.dead == report.weak == ()


def test_a_large_zeta_turns_the_wall_of_the_shipped_model_into_a_ring():
    # pitfall 1: the metric falls back where the precision has reached its floor
    model = pb.models.pretrained("mnist012")
    low = pb.models.RBFPrecision(model.rbf.centers, model.rbf.bandwidths, 784, zeta=1e-3)
    low.load_state_dict({**model.rbf.state_dict(), "zeta": torch.tensor(1e-3, dtype=F64)})
    metric = pb.Pullback(pb.Gaussian(model.vae.decoder, low.requires_grad_(False)))
    report = check(metric, model.codes[::20], n_pairs=2, reach=2.5)
    assert report.growth.verdict is Off.RING
    assert report.growth.fall > 3
    assert any("smaller zeta" in line for line in report.advice)


@pytest.fixture(scope="module")
def trained():
    """Small models of digits, each with the metric of its kind and its codes."""
    data, models = pb.datasets.digits(), pb.models
    settings = {"learning_rate": 5e-3}
    autoencoder = models.Autoencoder(64, hidden=(32, 16)).fit(data, epochs=40, **settings)
    codes = autoencoder.encode(data.samples).detach()
    vae = models.VAE(64, hidden=(32, 16), output_std=0.2).fit(data, epochs=40, **settings)
    ensemble = models.DecoderEnsemble(64, hidden=(32, 16), members=4).fit(data, codes, epochs=25, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", models.ModeCollapseWarning)  # a geometry it has all the same
        gan = models.GAN((8, 8), hidden=(64, 32)).fit(data, epochs=30)
    drawn, _ = gan.sample(1000, generator=generator())
    return {
        "autoencoder": (pb.Pullback(autoencoder.double().decoder), codes.double()),
        "vae": (pb.Pullback(vae.double().decoder), vae.encode(data.samples.double())[0].detach()),
        "ensemble": (pb.Pullback(pb.Ensemble(list(ensemble.double().decoders))), codes.double()),
        "gan": (pb.Pullback(gan.double().generator), drawn.double()),
    }


@pytest.mark.slow
def test_small_trained_models_get_different_verdicts(trained):
    reports = {name: pb.check_geometry(metric, codes) for name, (metric, codes) in trained.items()}
    assert all(report.believable for report in reports.values())
    assert {name: report.variance.kind for name, report in reports.items()} == {
        "autoencoder": "none", "vae": "none", "ensemble": "ensemble", "gan": "none",
    }  # fmt: skip
    median = {name: report.lines.ratio.median for name, report in reports.items()}
    assert reports["autoencoder"].verdict in (Verdict.CURVED, Verdict.STRONGLY_CURVED)  # nothing shapes its codes
    assert reports["vae"].verdict is Verdict.NEARLY_FLAT
    assert median["autoencoder"] > median["ensemble"]  # one decoder of these codes folds more than the mean of four
    assert reports["ensemble"].variance.off_data > 2 * reports["ensemble"].variance.on_data
    for name in ("autoencoder", "vae", "gan"):  # no variance, nothing to hold curves back
        assert reports[name].growth.verdict is Off.SHRINKS
