"""Every solver takes every kind of metric, and all find the same geodesic; what follows from it works, too."""

import pytest
import torch
from torch import nn
from torch.distributions import Gamma, Normal

import pullback as pb
from small import Bowl, Diagonal, mlp, randn, tilt

F, ABOVE, BELOW = mlp(), *(nn.Sequential(mlp(seed=seed), nn.Softplus()) for seed in (0, 1))

METRICS = {
    "ensemble": pb.Pullback(pb.Ensemble([F, mlp(seed=1)], weight=2.0)),
    "features": pb.Pullback(F, features=nn.Tanh()),
    "ambient": pb.Pullback(F, ambient=Diagonal()),
    "normal": pb.FisherRao(lambda z: Normal(F(z), 0.3 + BELOW(z))),
    "gamma": pb.FisherRao(lambda z: Gamma(1 + ABOVE(z), 1 + BELOW(z))),
    "divergence": pb.FisherRao(lambda z: Normal(F(z), 0.3 + BELOW(z)), chords="kl"),
    "conformal": pb.Conformal(pb.Pullback(F), tilt),
    "matrix": pb.MatrixField(Bowl()),
    "sum": pb.Pullback(F) + 0.5 * pb.MatrixField(Bowl()),
    "variance": pb.LocalVariance(randn(30, 2, seed=5), bandwidth=0.8, floor=0.3),
}
SOME = ("ambient", "gamma", "conformal", "matrix")  # each has a Christoffel vector of its own
SOLVERS = {
    "georce": pb.Georce(),
    "newton": pb.Newton(),
    "collocate": pb.Collocate(),
    "shoot": pb.Shoot(),
}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_all_solvers_find_the_same_geodesic(kind, solver):
    metric, start, end = METRICS[kind], 0.5 * randn(1, 2, seed=3), 0.5 * randn(1, 2, seed=4)
    best = pb.geodesic(metric, start, end, tol=1e-6)
    assert best.converged.all()
    found = pb.geodesic(metric, start, end, tol=1e-3, solver=SOLVERS[solver], init=best.curve)
    assert found.converged.all()
    assert torch.allclose(found.length, best.length, rtol=1e-3)
    assert ((found.length - best.length).abs() <= found.length_error + best.length_error).all()


@pytest.mark.parametrize("kind", SOME)
def test_exp_undoes_log_and_the_norm_of_log_is_the_distance(kind):
    metric, start, end = METRICS[kind], 0.5 * randn(2, 2, seed=3), 0.5 * randn(2, 2, seed=4)
    v = pb.log(metric, start, end, tol=1e-5)
    assert torch.allclose(pb.exp(metric, start, v).end, end, atol=1e-5)
    assert torch.allclose(metric.norm(start, v), pb.distance(metric, start, end), rtol=1e-4)


@pytest.mark.parametrize("kind", SOME)
def test_transport_keeps_inner_products(kind):
    metric, start, end = METRICS[kind], 0.5 * randn(2, seed=3), 0.5 * randn(2, seed=4)
    curve, u, v = pb.geodesic(metric, start, end).curve, randn(2, seed=5), randn(2, seed=6)
    moved = [pb.transport(metric, curve, w) for w in (u, v)]
    assert torch.allclose(metric.inner(end, *moved), metric.inner(start, u, v), rtol=1e-4)


@pytest.mark.parametrize("kind", METRICS)
def test_distances_carry_gradients(kind):
    metric, start, end = METRICS[kind], 0.5 * randn(2, seed=3), (0.5 * randn(2, seed=4)).requires_grad_()
    pb.distance(metric, start, end, tol=1e-5).backward()
    h, numeric = 1e-4, []
    for step in h * torch.eye(2, dtype=torch.float64):
        there, back = (pb.distance(metric, start, end.detach() + s, tol=1e-6) for s in (step, -step))
        numeric.append((there - back).item() / (2 * h))
    assert torch.allclose(end.grad, torch.tensor(numeric, dtype=torch.float64), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", METRICS)
def test_a_magnification_map_is_drawn(kind):
    from matplotlib.figure import Figure

    ax = pb.plot.magnification(METRICS[kind], codes=randn(9, 2), resolution=8, ax=Figure().subplots())
    assert ax.images[0].get_array().size >= 8
    assert torch.isfinite(torch.tensor(ax.images[0].get_array())).all()
