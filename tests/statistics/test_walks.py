import math

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import chi2

import pullback as pb
from pullback import Status
from pullback.statistics.domains import Everywhere
from pullback.statistics.steps import Geodesic
from small import F64, Bowl, mlp

TURN = 2 * math.pi


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def far_off(samples, truth):
    """By how many standard errors the mean of samples (n,) misses the truth."""
    return abs(float((samples.mean() - truth) / (samples.std() / len(samples) ** 0.5)))


def p_value(index, shares):
    """Of the chi-square test that bins, by their index (n,), have these shares."""
    expected = torch.as_tensor(shares, dtype=F64) * len(index)
    found = torch.bincount(index, minlength=len(expected)).to(F64)
    return chi2.sf(float(((found - expected).square() / expected).sum()), len(expected) - 1)


# the law of Brownian motion


@pytest.mark.parametrize(("d", "start"), [(2, (0.5, -0.3)), (3, (0.2, 0.1, -0.4))])
def test_on_a_sphere_the_mean_displacement_follows_the_heat_kernel(d, start):
    # E cos r = exp(-d t / 2), the first eigenfunction; generator half of Laplace-Beltrami
    sphere, start, time = pb.surfaces.Sphere(), torch.tensor(start, dtype=F64), 0.25
    walk = pb.brownian_motion(pb.Pullback(sphere), start.expand(8000, d), 25, time, generator=seeded(1))
    cosine = sphere.distance(start, walk[:, -1]).cos()
    assert far_off(cosine, math.exp(-d * time / 2)) < 4
    # and, at another scale, the second
    assert far_off(cosine.square() - 1 / (d + 1), d / (d + 1) * math.exp(-(d + 1) * time)) < 4


def test_in_the_hyperbolic_plane_it_follows_the_heat_kernel_too():
    # no immersion: the drift comes from Christoffel symbols. E cosh r = exp(t)
    plane, start = pb.surfaces.HyperbolicHalfPlane(), torch.tensor([0.3, 0.7], dtype=F64)
    walk = pb.brownian_motion(plane, start.expand(8000, 2), 25, 0.5, generator=seeded(2))
    assert far_off(plane.distance(start, walk[:, -1]).cosh(), math.exp(0.5)) < 4


@pytest.mark.parametrize("kind", [pb.Pullback, lambda plane: pb.metrics.MatrixField(plane.matrix)])
def test_in_curved_coordinates_of_a_plane_it_is_brownian_motion_of_the_plane(kind):
    plane, start, time = pb.surfaces.DisguisedPlane(), torch.tensor([0.4, -0.2], dtype=F64), 0.5
    walk = pb.brownian_motion(kind(plane), start.expand(8000, 2), 40, time, generator=seeded(3))
    x, y = (plane(walk[:, -1]) - plane(start)).unbind(-1)
    for samples, truth in ((x, 0), (y, 0), (x * x, time), (y * y, time), (x * y, 0)):
        assert far_off(samples, truth) < 4
    middle = plane(walk[:, 20]) - plane(start)
    assert far_off(middle.square().sum(1), time) < 4  # halfway: 2 (time / 2)


def test_its_law_does_not_depend_on_the_coordinates():
    torus, shear = pb.surfaces.Torus(), pb.surfaces.DisguisedPlane(0.5)
    start = torch.tensor([0.3, 1.0], dtype=F64)
    found = []
    for decoder, z in ((torus, start), (lambda z: torus(shear(z)), shear.inverse(start))):
        walk = pb.brownian_motion(pb.Pullback(decoder), z.expand(6000, 2), 30, 0.6, generator=seeded(len(found)))
        found.append(decoder(walk[:, -1]))
    means, errors = zip(*((x.mean(0), x.std(0) / 6000**0.5) for x in found), strict=True)
    assert ((means[0] - means[1]).abs() < 4 * (errors[0].square() + errors[1].square()).sqrt()).all()


@pytest.mark.parametrize("kind", [pb.Pullback, lambda surface: pb.metrics.MatrixField(surface.matrix)])
def test_the_weak_error_of_a_step_is_of_second_order(kind):
    # expectations by quadrature over the noise, no chance: E x = x exp(-h) for a coordinate of the unit sphere
    sphere, z = pb.surfaces.Sphere(), torch.tensor([[0.5, -0.3]], dtype=F64)
    nodes, weights = hermegauss(9)
    noise = torch.tensor(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    weights = torch.tensor(np.outer(weights, weights).reshape(-1) / TURN)
    scheme = Geodesic(kind(sphere), Everywhere(), math.inf)
    errors = []
    for h in (0.02, 0.01):
        carry = {name: t.expand(81) for name, t in scheme.begin(z, h).items()}
        new, _ = scheme.step(z.expand(81, 2), z.new_full((81,), h), noise, carry, noise[:, 0])
        errors.append(weights @ sphere(new) - sphere(z)[0] * math.exp(-h))
    assert errors[1].abs().max() < 1e-4
    assert torch.allclose(errors[0] / errors[1], torch.full((3,), 4.0, dtype=F64), rtol=0.1)


@pytest.mark.parametrize("scheme", ["geodesic", "metropolis"])
def test_on_the_torus_it_keeps_the_uniform_law(scheme):
    torus = pb.surfaces.Torus()
    start, shares = _on_the_torus(torus)
    walk = pb.brownian_motion(pb.Pullback(torus), start, 40, 2.0, scheme=scheme, generator=seeded(4))
    assert p_value(_angle(walk[:, -1]), shares) > 1e-3
    assert p_value((walk[:, -1, 0] % TURN / TURN * 12).long(), torch.full((12,), 1 / 12)) > 1e-3


def test_the_walk_without_drift_tends_to_another_law():
    # that of the angles, for G^ij does not depend on the i-th and the j-th of them
    torus = pb.surfaces.Torus()
    start, shares = _on_the_torus(torus)
    end = _angle(pb.random_walk(pb.Pullback(torus), start, 100, 0.25, generator=seeded(5))[:, -1])
    assert p_value(end, shares) < 1e-6
    assert p_value(end, torch.full((12,), 1 / 12)) > 1e-3


def _on_the_torus(torus):
    """Starts (4000, 2) that are uniform by area, and the shares of 12 equal parts of the angle v."""
    v = torch.linspace(0, TURN, 12 * 200 + 1, dtype=F64)
    weight = torus.major + torus.minor * ((v[:-1] + v[1:]) / 2).cos()
    weight = weight / weight.sum()
    generator = seeded(6)
    chosen = torch.multinomial(weight, 4000, replacement=True, generator=generator)
    u, jitter = torch.rand(2, 4000, generator=generator, dtype=F64)
    return torch.stack((u * TURN, (chosen + jitter) * TURN / len(weight)), 1), weight.reshape(12, 200).sum(1)


def _angle(z):
    return (z[:, 1] % TURN / TURN * 12).long().clamp_max(11)


# boundaries


def _cells(z, bounds, n=4):
    share = ((z - bounds[:, 0]) / (bounds[:, 1] - bounds[:, 0]) * n).long().clamp(0, n - 1)
    return share[:, 0] * n + share[:, 1]


@pytest.mark.parametrize("scheme", ["geodesic", "metropolis"])
def test_reflection_makes_the_law_uniform_by_volume(scheme):
    # the magnification of the disguised plane is 1 everywhere, but its metric is not diagonal: a mirror along the
    # normal of the picture fails here
    plane = pb.Pullback(pb.surfaces.DisguisedPlane())
    bounds = torch.tensor([[-1.0, 1.0], [-0.8, 1.2]], dtype=F64)
    start = bounds[:, 0] + 2 * torch.rand(4000, 2, generator=seeded(), dtype=F64)
    walk = pb.brownian_motion(plane, start, 60, 1.5, scheme=scheme, domain=bounds, generator=seeded(7), full=True)
    assert walk.finished.all()
    assert (walk.points >= bounds[:, 0]).all()
    assert (walk.points <= bounds[:, 1]).all()
    assert p_value(_cells(walk.points[:, -1], bounds), torch.full((16,), 1 / 16)) > 1e-3


def test_a_function_for_a_domain_refuses_steps_and_makes_the_law_uniform():
    plane = pb.Pullback(pb.surfaces.DisguisedPlane())
    start = 2 * torch.rand(4000, 2, generator=seeded(), dtype=F64) - 1
    start = start[start.norm(dim=1) < 1]
    walk = pb.brownian_motion(plane, start, 80, 0.8, domain=lambda z: z.norm(dim=1) < 1, generator=seeded(8), full=True)
    assert (walk.points.norm(dim=-1) < 1).all()
    assert 0.5 < float(walk.acceptance.mean()) < 1
    ring = (walk.points[:, -1].square().sum(1) * 6).long()  # of equal area
    assert p_value(ring, torch.full((6,), 1 / 6)) > 1e-3


def test_a_random_walk_is_reflected_too():
    bounds = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]], dtype=F64)
    metric = pb.Pullback(pb.surfaces.DisguisedPlane())
    walk = pb.random_walk(metric, torch.zeros(200, 2, dtype=F64), 60, 0.3, domain=bounds, generator=seeded(9))
    assert (walk.abs() <= 1).all()
    assert walk.abs().amax() > 0.99
    assert (walk[:, 1:] != walk[:, :-1]).any(-1).all()  # nobody stays


def test_a_box_of_other_precision_is_taken_along():
    metric = pb.Pullback(mlp())
    box = torch.tensor([[-1, 1], [-1, 1]])  # integers
    walk = pb.random_walk(metric, torch.zeros(5, 2, dtype=F64), 20, 0.2, domain=box, generator=seeded())
    assert walk.dtype == F64
    assert walk.abs().max() <= 1


def test_metropolis_keeps_the_uniform_law_with_steps_of_any_size():
    torus = pb.surfaces.Torus()
    start, shares = _on_the_torus(torus)
    walk = pb.brownian_motion(pb.Pullback(torus), start, 20, 40.0, scheme="metropolis", generator=seeded(10))
    assert p_value(_angle(walk[:, -1]), shares) > 1e-3


# the random walk of the paper


def test_a_step_has_the_inverse_metric_for_a_covariance():
    metric, z = pb.metrics.MatrixField(Bowl()), torch.tensor([0.7, -0.4, 0.2], dtype=F64)
    walk = pb.random_walk(metric, z.expand(40_000, 3), 1, 1e-3, generator=seeded())
    moved = (walk[:, 1] - z) / 1e-3
    g = metric.matrix(z)
    assert torch.allclose(moved.T @ moved / len(moved) @ g, torch.eye(3, dtype=F64), atol=0.03)
    assert (moved.mean(0).abs() < 4 * moved.std(0) / 200).all()


def test_on_the_shipped_model_excursions_are_bounded():
    # measured for the paper's own model: 0.14 to 0.50 of those of a Euclidean walk with the same steps on the data
    model = pb.models.pretrained("mnist012")
    metric, codes = pb.Pullback(model.decoder), model.codes
    start = codes[(codes - codes.median(0).values).norm(dim=1).argmin()].expand(8, 2)
    step = 0.12 / float((torch.linalg.inv(metric.matrix(codes[::40])).diagonal(dim1=1, dim2=2).mean(1).median()) ** 0.5)
    riemannian = pb.random_walk(metric, start, 250, step, generator=seeded(11))
    plain = pb.random_walk(pb.Pullback(lambda z: z), start, 250, 0.12, generator=seeded(11))
    far = [torch.cdist(walk.flatten(0, 1), codes[::5]).amin(1).reshape(8, -1).amax(1) for walk in (riemannian, plain)]
    assert far[0].mean() <= 0.6 * far[1].mean()
    # where the variance of the decoder has not saturated: the wall is not left behind
    assert (model.rbf.precision(riemannian) > 10 * model.rbf.zeta).all()


# what is known about walks


def test_walks_have_the_shape_dtype_and_start_that_were_given():
    metric = pb.Pullback(mlp().float())
    start = torch.zeros(3, 4, 2, requires_grad=True)
    for walk in (
        pb.random_walk(metric, start, 5, 0.1, generator=seeded()),
        pb.brownian_motion(metric, start, 5, 0.1, generator=seeded()),
        pb.brownian_motion(metric, start, 5, 0.1, scheme="metropolis", generator=seeded()),
    ):
        assert walk.shape == (3, 4, 6, 2)
        assert walk.dtype == torch.float32
        assert not walk.requires_grad
        assert (walk[..., 0, :] == 0).all()
        assert walk[..., 1:, :].abs().amax(-1).min() > 0
    assert pb.random_walk(metric, torch.zeros(2), 3, 0.1).shape == (4, 2)
    assert pb.random_walk(metric, torch.zeros(0, 2), 3, 0.1).shape == (0, 4, 2)


def test_a_seed_makes_the_same_walks_again():
    metric, start = pb.Pullback(mlp()), torch.zeros(6, 2, dtype=F64)
    for walk in (
        lambda generator: pb.random_walk(metric, start, 20, 0.05, generator=generator),
        lambda generator: pb.brownian_motion(metric, start, 20, 0.05, generator=generator),
        lambda generator: pb.brownian_motion(metric, start, 20, 0.05, scheme="metropolis", generator=generator),
    ):
        first = walk(seeded(3))
        assert torch.equal(first, walk(seeded(3)))
        assert not torch.equal(first, walk(seeded(4)))
        with torch.random.fork_rng():
            torch.manual_seed(5)
            mine = walk(None)
            torch.manual_seed(5)
            assert torch.equal(mine, walk(None))


def test_evaluations_are_those_that_are_counted(counting):
    start = torch.zeros(7, 2, dtype=F64)
    for walk in (
        lambda metric: pb.random_walk(metric, start, 9, 0.1, generator=seeded(), full=True),
        lambda metric: pb.brownian_motion(metric, start, 9, 0.1, generator=seeded(), full=True),
        lambda metric: pb.brownian_motion(metric, start, 9, 0.1, scheme="metropolis", generator=seeded(), full=True),
    ):
        counter = counting(mlp())
        metric = pb.Pullback(counter)
        metric.matrix(start)
        counter.reset()
        found = walk(metric)
        assert abs(counter.reset() - int(found.evaluations.sum())) <= 1  # one for the number of features
        assert (found.evaluations / found.substeps <= (2 + 5) + (3 * 7 + 5) / 9).all()


def test_steps_are_subdivided_where_the_coordinates_bend():
    # far out in stereographic coordinates a step bends more than it moves
    sphere, start = pb.Pullback(pb.surfaces.Sphere()), torch.tensor([8.0, 0.0, 0.0], dtype=F64).expand(200, 3)
    coarse, fine = (
        pb.brownian_motion(sphere, start, 1, 0.05, max_bend=bend, max_substeps=5000, full=True, generator=seeded(12))
        for bend in (math.inf, 0.25)
    )
    assert (coarse.substeps == 1).all()
    assert fine.substeps.double().mean() > 4
    height = 63 / 65 * math.exp(-1.5 * 0.05)
    errors = [abs(float(sphere.features(walk.points[:, 1])[:, 3].mean()) - height) for walk in (coarse, fine)]
    assert errors[0] > 0.05
    assert errors[1] < 0.025  # four standard errors


def test_a_walk_that_would_need_too_many_substeps_ends_and_says_so():
    sphere, start = pb.Pullback(pb.surfaces.Sphere()), torch.tensor([[0.0, 0.0], [200.0, 0.0]], dtype=F64)
    with pytest.warns(pb.StatisticsWarning, match=r"1 of 2 walks took all.*more than max_substeps \(walks 1\)"):
        walk = pb.brownian_motion(sphere, start, 3, 0.3, max_substeps=20, generator=seeded(), full=True)
    assert walk.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]
    assert torch.isfinite(walk.points[0]).all()
    assert torch.isnan(walk.points[1, 1:]).all()
    assert walk.steps.tolist() == [3, 0]


@pytest.mark.parametrize("walk", [pb.random_walk, pb.brownian_motion])
def test_walks_that_leave_the_region_of_the_metric_are_lost_alone_counted_and_told(walk):
    table = pb.Tabulated(pb.Pullback(pb.surfaces.Sphere()), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).double(), 17)
    start = torch.tensor([[0.0, 0.0], [0.97, 0.0], [0.0, 0.1]], dtype=F64)
    with pytest.warns(pb.StatisticsWarning, match=r"1 left the region .*\(walks 1\); their points are NaN"):
        found = walk(table, start, 40, 0.03, generator=seeded(1), full=True)
    assert found.status.tolist() == [Status.CONVERGED, Status.LEFT_DOMAIN, Status.CONVERGED]
    known = torch.isfinite(found.points).all(-1)
    assert known.sum(1).tolist() == (found.steps + 1).tolist()
    assert known[[0, 2]].all()
    assert table.spline.inside(found.points[1, : found.steps[1] + 1]).all()
    assert "Walk((3, 41, 2): 2 of 3" in repr(found)


@pytest.mark.parametrize("scheme", ["geodesic", "metropolis"])
def test_a_decoder_that_raises_or_is_infinite_somewhere_takes_no_other_walk_with_it(scheme):
    def fragile(z):
        if (z[:, 0] > 2).any():
            raise ValueError("out of range")
        return torch.where(z[:, :1] < -2, torch.inf, z)

    start = torch.tensor([[0.0, 0.0], [1.99, 0.0], [-1.99, 0.0]], dtype=F64)
    context = pytest.warns(pb.StatisticsWarning, match="left the region") if scheme == "geodesic" else _nothing()
    with context:
        walk = pb.brownian_motion(pb.Pullback(fragile), start, 50, 0.5, scheme=scheme, generator=seeded(2), full=True)
    assert torch.isfinite(walk.points[0]).all()
    if scheme == "geodesic":
        assert walk.finished.tolist() == [True, False, False]
    else:  # outside there is no volume: the region is its own domain
        assert walk.finished.all()
        assert walk.points[..., 0].abs().max() <= 2


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_steps_that_do_not_resolve_the_metric_are_told_with_a_better_size():
    steep = pb.Conformal(pb.Pullback(lambda z: z), lambda z: (4 * z[:, 0]).exp())
    start = torch.zeros(300, 2, dtype=F64)
    with pytest.warns(pb.StatisticsWarning, match=r"`step` is 0\.4.*Try step=") as caught:
        pb.random_walk(steep, start, 2, 0.4, generator=seeded())
    advised = float(str(caught[0].message).split("Try step=")[1].rstrip("."))
    assert 0.01 < advised < 0.4
    pb.random_walk(steep, start, 2, advised, generator=seeded())  # warnings are errors here


def test_metropolis_says_when_it_refuses_most_steps():
    torus, start = pb.Pullback(pb.surfaces.DisguisedPlane()), torch.zeros(50, 2, dtype=F64)
    box = torch.tensor([[-0.1, 0.1], [-0.1, 0.1]], dtype=F64)
    with pytest.warns(pb.StatisticsWarning, match="of the steps were refused.*Try n_steps="):
        pb.brownian_motion(torus, start, 10, 5.0, scheme="metropolis", domain=box, generator=seeded())


def test_nothing_that_was_given_is_changed():
    metric, start = pb.Pullback(mlp()), torch.zeros(3, 2, dtype=F64)
    domain = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]], dtype=F64)
    pb.brownian_motion(metric, start, 5, 1.0, domain=domain, generator=seeded())
    assert (start == 0).all()
    assert domain.tolist() == [[-1, 1], [-1, 1]]


# bad input

PLANE = pb.Pullback(pb.surfaces.DisguisedPlane())
ZERO = torch.zeros(4, 2, dtype=F64)


@pytest.mark.parametrize("walk", [pb.random_walk, pb.brownian_motion])
@pytest.mark.parametrize(
    ("metric", "start", "n_steps", "size", "settings", "match"),
    [
        (mlp(), ZERO, 3, 0.1, {}, "wrapped as Pullback"),
        (PLANE, [[0.0, 0.0]], 3, 0.1, {}, "`start` is a list"),
        (PLANE, ZERO * math.nan, 3, 0.1, {}, "`start` holds NaN"),
        (PLANE, ZERO, 0, 0.1, {}, "`n_steps` is 0"),
        (PLANE, ZERO, 2.5, 0.1, {}, "`n_steps` is 2.5"),
        (PLANE, ZERO, 3, -0.1, {}, "is -0.1: want a positive"),
        (PLANE, ZERO, 3, math.inf, {}, "is inf: want a positive"),
        (PLANE, ZERO, 3, 0.1, {"domain": "box"}, "`domain` is a str"),
        (PLANE, ZERO, 3, 0.1, {"domain": torch.zeros(3, 2)}, r"`domain` has shape \(3, 2\): want a tensor \(2, 2\)"),
        (PLANE, ZERO, 3, 0.1, {"domain": torch.tensor([[0, 1], [1, 0]])}, "axis 1 are 1 and 0"),
        (PLANE, ZERO, 3, 0.1, {"domain": torch.tensor([[1, 2], [1, 2]])}, "outside of `domain` for 4 of 4 walks"),
        (PLANE, ZERO, 3, 0.1, {"domain": lambda z: z[:, 0]}, r"`domain` gave float64 \(4,\)"),
        (PLANE, ZERO, 3, 0.1, {"domain": lambda z: z[:, 0] > 1}, r"first: 0, at \(0, 0\)\): start inside"),
        (pb.Pullback(lambda z: z[:, :1] + 0 * z), ZERO, 3, 0.1, {}, "singular, or not finite, at `start` for 4 of 4"),
    ],
)
def test_what_cannot_be_walked_is_refused(walk, metric, start, n_steps, size, settings, match):
    with pytest.raises((ValueError, TypeError), match=match):
        walk(metric, start, n_steps, size, **settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"scheme": "euler"}, "`scheme` is 'euler': want 'geodesic' or 'metropolis'"),
        ({"max_bend": 0}, "`max_bend` is 0"),
        ({"max_substeps": 0}, "`max_substeps` is 0"),
    ],
)
def test_settings_of_brownian_motion_are_checked(settings, match):
    with pytest.raises(ValueError, match=match):
        pb.brownian_motion(PLANE, ZERO, 3, 0.1, **settings)
