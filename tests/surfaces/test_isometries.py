"""Lengths belong to the geometry, not to the coordinates that it is written in nor to the space that it lies in."""

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.surfaces import Catenoid, DisguisedPlane, Helicoid, HyperbolicHalfPlane, Torus

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 30)).double()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            layer.bias.normal_(0, 0.3, generator=generator)
    return net.requires_grad_(False)


class Shears(nn.Module):
    """A diffeomorphism of the plane: a linear map, then what one coordinate adds to the other, twice."""

    def __init__(self, seed):
        super().__init__()
        self.linear = torch.eye(2, dtype=F64) + 0.3 * randn(2, 2, seed=seed)
        self.sizes = (0.5 * randn(2, seed=seed + 1)).tolist()

    def forward(self, y):
        u, v = (y @ self.linear.mT).unbind(-1)
        u = u + self.sizes[0] * v.tanh()
        v = v + self.sizes[1] * u.sin()
        return torch.stack((u, v), -1)

    def inverse(self, z):
        u, v = z.unbind(-1)
        v = v - self.sizes[1] * u.sin()
        u = u - self.sizes[0] * v.tanh()
        return torch.linalg.solve(self.linear, torch.stack((u, v), -1)[..., None])[..., 0]


class Pulled(pb.Metric):
    """A metric that is not immersed in other coordinates: by matrices."""

    def __init__(self, metric, chart):
        super().__init__()
        self.metric, self.chart = metric, chart

    def matrix(self, z):
        flat = z.reshape(-1, 2)
        j = torch.func.vmap(torch.func.jacfwd(self.chart))(flat)
        return (j.mT @ self.metric.matrix(self.chart(flat)) @ j).reshape(*z.shape, 2)

    def inner(self, z, u, v):
        return (u[..., None, :] @ self.matrix(z) @ v[..., None])[..., 0, 0]


def test_catenoid_and_helicoid_have_equal_distances():
    a, b = randn(6, 2), randn(6, 2, seed=1)
    catenoid, helicoid = (pb.geodesic(pb.Pullback(surface(1.3)), a, b, tol=1e-6) for surface in (Catenoid, Helicoid))
    assert torch.allclose(catenoid.length, helicoid.length, rtol=1e-6)
    assert not torch.allclose(Catenoid(1.3)(b) - Catenoid(1.3)(a), Helicoid(1.3)(b) - Helicoid(1.3)(a), rtol=0.1)


@pytest.mark.parametrize("shear", [0.3, 0.8])
def test_geodesics_of_the_disguised_plane_are_straight_in_its_image(shear):
    plane = DisguisedPlane(shear)
    a, b = randn(6, 2), randn(6, 2, seed=1)
    path = pb.geodesic(pb.Pullback(plane), a, b, tol=1e-6)
    assert torch.allclose(path.length, (plane(b) - plane(a)).norm(dim=-1), rtol=1e-6)
    t = torch.linspace(0, 1, path.curve.nodes.shape[-2], dtype=F64)[:, None]
    line = plane(a)[:, None] + t * (plane(b) - plane(a))[:, None]
    assert torch.allclose(plane(path.curve.nodes), line, atol=2e-3)
    assert (pb.length(pb.Pullback(plane), pb.Curve.straight(a, b)) > 1.0001 * path.length).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decoder", [network(), Torus()], ids=["network", "torus"])
def test_another_chart_of_the_latent_space_leaves_distances_as_they_are(decoder, seed):
    a, b, chart = 0.8 * randn(4, 2, seed=seed), 0.8 * randn(4, 2, seed=seed + 10), Shears(seed)
    assert torch.allclose(chart(chart.inverse(a)), a, atol=1e-12)
    one = pb.geodesic(pb.Pullback(decoder), a, b, tol=1e-6)
    other = pb.geodesic(pb.Pullback(nn.Sequential(chart, decoder)), chart.inverse(a), chart.inverse(b), tol=1e-6)
    assert one.converged.all()
    assert torch.allclose(other.length, one.length, rtol=1e-6)
    # at constant speed also the curves agree, point by point
    t = torch.linspace(0, 1, 9, dtype=F64)
    assert torch.allclose(chart(other.curve(t)), one.curve(t), atol=5e-3)


def test_another_chart_leaves_inner_products_volumes_and_geodesics_of_a_vector_as_they_are():
    metric, chart, y, v = pb.Pullback(network()), Shears(2), 0.7 * randn(3, 2), randn(3, 2, seed=1)
    there = pb.Pullback(nn.Sequential(chart, network()))
    z, pushed = torch.autograd.functional.jvp(chart, y, v)
    assert torch.allclose(there.norm(y, v), metric.norm(z, pushed), rtol=1e-12)
    j = torch.func.vmap(torch.func.jacfwd(chart))(y)
    assert torch.allclose(there.log_volume(y), metric.log_volume(z) + j.det().abs().log(), rtol=1e-9)
    ends = pb.exp(there, y, v, tol=1e-6).end, pb.exp(metric, z, pushed, tol=1e-6).end
    assert torch.allclose(chart(ends[0]), ends[1], atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_another_chart_of_a_metric_without_a_decoder_leaves_distances_as_they_are(seed):
    up = torch.tensor([0.0, 3.0], dtype=F64)
    a, b, chart = 0.4 * randn(4, 2, seed=seed) + up, 0.4 * randn(4, 2, seed=seed + 10) + up, Shears(seed)
    space = HyperbolicHalfPlane()
    path = pb.geodesic(Pulled(space, chart), chart.inverse(a), chart.inverse(b), tol=1e-6)
    assert torch.allclose(path.length, space.distance(a, b), rtol=1e-6)


def test_a_motion_of_the_data_space_changes_no_distance():
    net, turn, a, b = network(), torch.linalg.qr(randn(30, 30))[0], randn(4, 2), randn(4, 2, seed=1)
    moved = pb.Pullback(lambda z: net(z) @ turn.mT + 7)
    one, other = (pb.geodesic(metric, a, b, tol=1e-6).length for metric in (pb.Pullback(net), moved))
    assert torch.allclose(one, other, rtol=1e-6)
