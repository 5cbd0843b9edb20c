import math

import pytest
import torch
from torch import nn

import pullback as pb
from pullback._checks import GeodesicWarning
from pullback.curves import Curve
from pullback.geodesics.exponential import exp
from pullback.geodesics.transport import transport

F64 = torch.float64


def points(*shape, seed=0, scale=0.7):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, width=32, n_features=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, n_features))
    for weight in net.parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.data = 1.5 * torch.randn(weight.shape, generator=generator, dtype=F64) / math.sqrt(fan)
    return net.requires_grad_(False)


def bent(*batch, d=2, n=4, seed=0):
    """Smooth curves that are no geodesics: (*batch, n + 1, d) nodes."""
    t = torch.linspace(0, 1, n + 1, dtype=F64)[:, None]
    a, b, c = (points(*batch, 1, d, seed=seed + i, scale=0.3) for i in range(3))
    return Curve(a + t * b + (3 * t).sin() * c)


def on_the_sphere(angle, height):
    """Stereographic coordinates of points at these angles around the axis and to the south pole."""
    ring = torch.tan(height / 2)
    return torch.stack((ring * angle.cos(), ring * angle.sin()), -1)


def velocity_to(sphere, z, w):
    """The initial velocity in coordinates of the great circle from z to w."""
    x, y = sphere(z), sphere(w)
    cosine = (x * y).sum()
    angle = torch.acos(cosine)
    tangent = (y - cosine * x) * angle / angle.sin()
    jacobian = torch.autograd.functional.jacobian(sphere, z)
    return torch.linalg.lstsq(jacobian, tangent[:, None]).solution[:, 0]


def test_around_a_triangle_on_the_sphere_a_vector_turns_by_the_area():
    sphere = pb.surfaces.Sphere()
    metric = pb.Pullback(sphere)
    # a triangle with a corner at the pole and two at the distance h from it, the angle a between them
    a, h = torch.tensor(1.0, dtype=F64), torch.tensor(0.6, dtype=F64)
    corners = torch.zeros(2, dtype=F64), on_the_sphere(0 * a, h), on_the_sphere(a, h)
    vector = start = torch.tensor([1.0, 0.0], dtype=F64)
    for here, there in zip(corners, (*corners[1:], corners[0]), strict=True):
        side = exp(metric, here, velocity_to(sphere, here, there), n_segments=24)
        assert torch.allclose(side.end, there, atol=1e-7)
        vector = transport(metric, side.curve, vector, tol=1e-7)
    turned = torch.atan2(vector[1], vector[0]) - torch.atan2(start[1], start[0])
    base = torch.atan(1 / (h.cos() * torch.tan(a / 2)))  # Napier's rule in each half: the angles at the base
    area = a + 2 * base - math.pi
    assert abs(float(turned.abs() - area)) < 1e-6
    assert torch.allclose(vector.norm(), start.norm(), rtol=1e-6)


@pytest.mark.parametrize("d", [2, 5])
def test_inner_products_are_kept_along_any_curve(d):
    metric, curve = pb.Pullback(mlp(d)), bent(4, d=d)
    u, v = points(4, d, seed=7), points(4, d, seed=8)
    starts, ends = curve.nodes[:, 0], curve.nodes[:, -1]
    carried = transport(metric, curve, u), transport(metric, curve, v)
    before, after = metric.inner(starts, u, v), metric.inner(ends, *carried)
    size = metric.norm(starts, u) * metric.norm(starts, v)
    assert ((after - before) / size).abs().max() < 1e-8


def test_inner_products_are_kept_on_the_shipped_model():
    model = pb.models.pretrained("mnist012")
    metric, u = pb.Pullback(model.decoder), points(2, seed=3)
    curve = Curve.straight(model.codes[0], 0.9 * model.codes[0] + 0.1 * model.codes[1], 4)
    carried = transport(metric, curve, u)
    before, after = metric.norm(curve.nodes[0], u), metric.norm(curve.nodes[-1], carried)
    assert abs(float(after / before) - 1) < 1e-8


def test_it_is_linear_in_the_vector():
    metric, curve, u, v = pb.Pullback(mlp()), bent(3), points(3, 2, seed=7), points(3, 2, seed=8)
    mixed, u, v = (transport(metric, curve, w, tol=1e-6) for w in (2 * u - 3 * v, u, v))
    assert torch.allclose(mixed, 2 * u - 3 * v, atol=1e-5)


def test_there_and_back_a_vector_is_what_it_was():
    metric, curve, v = pb.Pullback(mlp()), bent(3), points(3, 2, seed=7)
    there = transport(metric, curve, v, tol=1e-6)
    assert (there - v).abs().max() > 0.05
    assert torch.allclose(transport(metric, Curve(curve.nodes.flip(-2)), there, tol=1e-6), v, atol=1e-5)


def test_the_velocity_of_a_geodesic_is_carried_along_it():
    metric, z, v = pb.Pullback(mlp()), points(2), points(2, seed=1, scale=0.3)
    way = exp(metric, z, v, n_segments=24)
    assert torch.allclose(transport(metric, way.curve, v, tol=1e-5), way.velocity, rtol=1e-3, atol=1e-4)


def test_a_vector_is_carried_as_it_is_alone():
    metric, curve, v = pb.Pullback(mlp()), bent(4, n=2), points(4, 2, seed=7)
    together = transport(metric, curve, v)
    assert torch.allclose(transport(metric, curve[2], v[2]), together[2], atol=1e-10)


@pytest.mark.parametrize(
    ("curves", "vectors", "result"),
    [((), (), ()), ((), (3,), (3,)), ((3,), (), (3,)), ((2, 1), (3,), (2, 3)), ((0,), (0,), (0,)), ((0,), (), (0,))],
)
def test_batches_of_curves_and_vectors_broadcast(curves, vectors, result):
    carried = transport(pb.Pullback(mlp()), bent(*curves, n=2), points(*vectors, 2, seed=7), tol=1e-4)
    assert carried.shape == (*result, 2)


def test_a_zero_vector_stays_zero():
    v = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64)
    carried = transport(pb.Pullback(mlp()), bent(n=2), v)
    assert torch.equal(carried[0], v[0])
    assert (carried[1] != 0).all()


def test_where_the_curve_leaves_the_domain_the_result_is_nan_and_a_warning_says_so():
    metric = pb.Pullback(lambda z: torch.cat((z, torch.where(z[:, :1] > 1, torch.nan, z[:, :1].sin())), 1))
    ends = torch.tensor([[2.0, 0.0], [0.5, 0.0]], dtype=F64)
    curve = Curve.straight(torch.zeros(2, 2, dtype=F64), ends, 4)
    with pytest.warns(GeodesicWarning, match="1 of 2 vectors.*1 left the domain.*rows 0"):
        carried = transport(metric, curve, torch.ones(2, dtype=F64))
    assert carried[0].isnan().all()
    assert carried[1].isfinite().all()


def test_what_does_not_fit_is_refused():
    metric = pb.Pullback(mlp())
    with pytest.raises(ValueError, match="one vector for each curve"):
        transport(metric, bent(3), points(4, 2))
    with pytest.raises(ValueError, match="latent dimension"):
        transport(metric, bent(), points(3))
    with pytest.raises(TypeError, match="give a Curve"):
        transport(metric, bent().nodes, points(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="wrapped as Pullback"):
        transport(mlp(), bent(), points(2))  # pyright: ignore[reportArgumentType]
