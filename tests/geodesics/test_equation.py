import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import pullback as pb
from pullback.geodesics.equation import geodesic_ode

F64 = torch.float64


def test_scipy_integrates_it_to_a_great_circle():
    sphere = pb.surfaces.Sphere()
    metric, start, v = pb.Pullback(sphere), torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.5, 0.7], dtype=F64)
    y = torch.cat((start, v)).numpy()
    found = solve_ivp(geodesic_ode(metric), (0, 1), y, rtol=1e-10, atol=1e-12).y[:, -1]
    x, push = sphere(start), torch.autograd.functional.jvp(sphere, start, v)[1]
    angle = push.norm()
    expected = angle.cos() * x + angle.sin() * push / angle
    assert torch.allclose(sphere(torch.from_numpy(found[:2])), expected, atol=1e-9)


def test_states_come_in_batches_of_tensors():
    metric = pb.Pullback(pb.surfaces.Sphere())
    y = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    slope = geodesic_ode(metric)(0.0, y)
    assert slope.shape == y.shape
    assert torch.equal(slope[..., :3], y[..., 3:])
    assert torch.allclose(slope[..., 3:], -metric.christoffel(y[..., :3], y[..., 3:], y[..., 3:]))


def test_arrays_come_back_as_arrays_and_are_not_changed():
    y = np.array([0.1, 0.2, 0.3, 0.4])
    y.setflags(write=False)
    slope = geodesic_ode(pb.Pullback(pb.surfaces.Sphere()))(0.0, y)
    assert isinstance(slope, np.ndarray)
    assert slope.dtype == y.dtype


def test_what_cannot_be_a_state_or_a_metric_is_refused():
    with pytest.raises(ValueError, match="the point and then the velocity"):
        geodesic_ode(pb.Pullback(pb.surfaces.Sphere()))(0.0, torch.zeros(3))
    with pytest.raises(TypeError, match="wrapped as Pullback"):
        geodesic_ode(torch.nn.Linear(2, 3))  # pyright: ignore[reportArgumentType]
