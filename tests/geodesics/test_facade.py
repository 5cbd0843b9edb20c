import math
import warnings

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.geodesics.solution import Status

F64 = torch.float64
SPHERE = pb.surfaces.Sphere()


def points(n, d=2, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(d=2, seed=0, dtype=F64, width=16, gain=1.5):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, 10)).double()
    for weight in net.parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.data = gain * torch.randn(weight.shape, generator=generator, dtype=F64) / math.sqrt(fan)
    return net.to(dtype).requires_grad_(False)


class Broken(nn.Module):
    """Not defined right of 5."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z):
        if (z[:, 0] > 5).any():
            raise ValueError("too far right")
        return self.inner(z)


# solvers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("relax", pb.Relax),
        ("collocate", pb.Collocate),
        ("shoot", pb.Shoot),
        ("georce", pb.Georce),
        ("newton", pb.Newton),
    ],
)
def test_a_solver_by_name_is_the_one_with_its_defaults(name, kind):
    metric = pb.Pullback(SPHERE)
    a, b = points(2, seed=1, scale=0.3), points(2, seed=2, scale=0.3)
    named, given = pb.geodesic(metric, a, b, solver=name), pb.geodesic(metric, a, b, solver=kind())
    assert torch.equal(named.length, given.length)
    assert torch.equal(named.evaluations, given.evaluations)
    assert torch.allclose(named.length, SPHERE.distance(a, b), rtol=1e-3)
    assert len({int(pb.geodesic(metric, a[0], b[0], solver=s).evaluations) for s in (None, name)}) == 1 + (
        name != "relax"
    )


@pytest.mark.parametrize(
    ("solver", "kind", "message"),
    [
        ("lbfgs", ValueError, "`solver` is 'lbfgs': want one of 'relax', 'collocate', 'shoot', 'georce', 'newton'"),
        (pb.Relax, TypeError, r"`solver` is a \w+: give a solver such as Relax\(\), or its name"),
        (("relax", "shoot"), TypeError, "`solver` is a tuple"),
    ],
)
def test_what_is_no_solver_is_refused(solver, kind, message):
    for ask in (pb.geodesic, pb.distance, pb.log):
        with pytest.raises(kind, match=message):
            ask(pb.Pullback(SPHERE), torch.zeros(2), torch.ones(2), solver=solver)


# distance is differentiable


def test_a_gradient_of_the_distance_is_the_unit_velocity_at_the_ends():
    a, b = points(8, seed=1, scale=0.5).requires_grad_(), points(8, seed=2, scale=0.5).requires_grad_()
    ours = pb.distance(pb.Pullback(SPHERE), a, b, tol=1e-8)
    found = torch.autograd.grad(ours.sum(), (a, b))
    exact = torch.autograd.grad(SPHERE.distance(a, b).sum(), (a, b))
    assert torch.allclose(torch.stack(found), torch.stack(exact), rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder", [SPHERE, mlp(), mlp(3)], ids=["sphere", "mlp2", "mlp3"])
def test_the_gradient_by_both_ends_is_that_of_differences(decoder):
    d = 3 if decoder is not SPHERE and decoder[0].in_features == 3 else 2
    metric = pb.Pullback(decoder)
    a, b = points(2, d, 1, 0.5).requires_grad_(), points(2, d, 2, 0.5).requires_grad_()

    def distance(a, b):
        return pb.distance(metric, a, b, tol=1e-9)

    assert torch.autograd.gradcheck(distance, (a, b), eps=1e-4, atol=2e-6, rtol=0)


def test_the_gradient_by_the_weights_is_that_of_differences():
    net = mlp()
    a, b = points(2, seed=1, scale=0.5), points(2, seed=2, scale=0.5)

    class Module(nn.Module):
        def __init__(self, *weights):
            super().__init__()
            self.weights = nn.ParameterList(weights)

        def forward(self, z):
            first, bias, second = self.weights
            return torch.tanh(z @ first.mT + bias) @ second.mT

    weights = [w.detach().clone() for w in (net[0].weight, net[0].bias, net[2].weight)]
    module = Module(*weights)
    distance = pb.distance(pb.Pullback(module), a, b, tol=1e-9).sum()
    found = torch.autograd.grad(distance, list(module.parameters()))
    for k, gradient in enumerate(found):
        direction = points(gradient.numel(), 1, seed=k).reshape(gradient.shape)
        lengths = []
        for size in (1e-4, -1e-4):
            moved = [w + size * direction if i == k else w for i, w in enumerate(weights)]
            lengths.append(pb.distance(pb.Pullback(Module(*moved)), a, b, tol=1e-9).detach().sum())
        slope = float((lengths[0] - lengths[1]) / 2e-4)
        assert math.isclose(slope, float((gradient * direction).sum()), abs_tol=2e-6)


def test_the_gradient_is_good_at_the_default_tolerance():
    # by the end nodes alone it would be off by 1e-2 and more: they see only the last two segments
    model = pb.models.pretrained("mnist012")
    metric = pb.Pullback(model.decoder)
    a, b = model.codes[:6].clone().requires_grad_(), model.codes[100:106].clone().requires_grad_()
    rough, fine = (
        torch.cat(torch.autograd.grad(pb.distance(metric, a, b, tol=tol).sum(), (a, b))) for tol in (1e-4, 1e-6)
    )
    off = (rough - fine).norm(dim=1) / fine.norm(dim=1)
    assert off.median() < 1e-3
    assert off.max() < 1e-2


def test_the_norm_of_the_gradient_is_one_in_the_dual_metric():
    metric = pb.Pullback(mlp())
    a, b = points(5, seed=1), points(5, seed=2).requires_grad_()
    (gradient,) = torch.autograd.grad(pb.distance(metric, a, b, tol=1e-8).sum(), b)
    raised = torch.linalg.solve(metric.matrix(b.detach()), gradient)
    assert torch.allclose((gradient * raised).sum(-1), torch.ones(5, dtype=F64), atol=1e-4)


def test_training_weights_brings_two_points_to_a_wanted_distance():
    net = mlp().requires_grad_()
    metric = pb.Pullback(net)
    a, b = points(2, seed=3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    target = 0.5 * pb.distance(metric, a, b).detach()
    for _ in range(40):
        optimizer.zero_grad()
        loss = (pb.distance(metric, a, b) / target - 1).square()
        loss.backward()
        optimizer.step()
    assert loss < 1e-2
    assert abs(float(pb.geodesic(metric, a, b).length / target) - 1) < 0.1


def test_gradients_by_the_weights_reach_also_a_function_if_an_end_asks_for_them():
    net = mlp().requires_grad_()
    a, b = points(3, seed=1), points(3, seed=2)
    hidden = pb.Pullback(lambda z: net(z))
    assert not pb.distance(hidden, a, b).requires_grad
    expected = torch.autograd.grad(pb.distance(pb.Pullback(net), a, b).sum(), net.parameters(), allow_unused=True)
    found = torch.autograd.grad(
        pb.distance(hidden, a.clone().requires_grad_(), b).sum(), net.parameters(), allow_unused=True
    )
    assert expected[0].norm() > 0
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert torch.allclose(one, other, rtol=1e-8)


@pytest.mark.parametrize("weights", [False, True])
def test_a_gradient_costs_one_look_at_the_curve_however_many_steps_were_taken(counting, weights):
    counter = counting(mlp(gain=2.5).requires_grad_(weights))
    metric = pb.Pullback(counter)
    a, b = points(4, seed=1), points(4, seed=2)
    metric.points_at_once(a)
    steps = []
    for tol in (1e-3, 1e-6):
        path = pb.geodesic(metric, a, b, tol=tol)
        nodes, cost = 4 * path.curve.nodes.shape[-2], int(path.evaluations.sum())
        steps.append(int(path.iterations.sum()))
        counter.reset()
        distance = pb.distance(metric, a.clone().requires_grad_(not weights), b, tol=tol)
        assert counter.reset() == cost + nodes
        distance.sum().backward()
        assert counter.reset() == 2 * nodes
    assert steps[1] > steps[0]


def test_the_graph_does_not_grow_with_the_steps():
    def size(tensor):
        seen, todo = set(), [tensor.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        return len(seen)

    metric = pb.Pullback(mlp(gain=2.5))
    a, b = points(4, seed=1).requires_grad_(), points(4, seed=2)
    few, many = pb.geodesic(metric, a, b, tol=1e-2), pb.geodesic(metric, a, b, tol=1e-7)
    assert many.iterations.sum() > 1.5 * few.iterations.sum()
    assert size(pb.distance(metric, a, b, tol=1e-7)) == size(pb.distance(metric, a, b, tol=1e-2)) < 60


def test_nothing_is_looked_at_again_when_no_gradient_is_wanted(counting):
    counter = counting(mlp())
    metric = pb.Pullback(counter)
    a, b = points(4, seed=1), points(4, seed=2)
    metric.points_at_once(a)
    counter.reset()
    pb.geodesic(metric, a, b)
    expected = counter.reset()
    assert not pb.distance(metric, a, b).requires_grad
    assert counter.reset() == expected
    with torch.no_grad():
        assert not pb.distance(metric, a.clone().requires_grad_(), b).requires_grad
    assert counter.reset() == expected


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
def test_the_gradient_of_a_distance_zero_is_zero(shape):
    a = points(4, seed=1)[: math.prod(shape)].reshape(*shape, 2).requires_grad_()
    b = a.detach().clone().requires_grad_()
    distance = pb.distance(pb.Pullback(mlp()), a, b)
    assert (distance == 0).all()
    distance.sum().backward()
    assert (a.grad == 0).all()
    assert (b.grad == 0).all()
    metric = pb.Pullback(mlp().requires_grad_())
    pb.distance(metric, a.detach(), b.detach()).sum().backward()


def test_the_gradient_of_a_distance_zero_costs_no_look_at_a_curve(counting):
    counter = counting(mlp())
    metric = pb.Pullback(counter)
    a = points(4, seed=1).requires_grad_()
    metric.points_at_once(a)
    counter.reset()
    pb.distance(metric, a, a.detach())
    assert counter.evaluations <= 1


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_pairs_that_fail_have_no_gradient_and_spoil_no_other(kind):
    net = mlp().requires_grad_()

    class Undefined(Broken):
        def forward(self, z):
            return self.inner(z) * (5 - z[:, :1]).sqrt()  # the derivative is NaN as well

    metric = pb.Pullback((Broken if kind == "raises" else Undefined)(net))
    a = points(1, seed=1, scale=0.5)[0].requires_grad_()
    b = points(5, seed=2, scale=0.5)
    b[3, 0] = 7
    b.requires_grad_()
    with pytest.warns(pb.GeodesicWarning, match=r"pairs 3\)"):
        distance = pb.distance(metric, a, b)
    assert distance.isnan().tolist() == [False, False, False, True, False]
    distance.nansum().backward()
    good = [0, 1, 2, 4]
    again = [t.detach().clone().requires_grad_() for t in (a, b[good])]
    alone = pb.distance(metric, *again)
    weights = [w.grad.clone() for w in net.parameters() if w.grad is not None]
    net.zero_grad()
    alone.sum().backward()
    assert (b.grad[3] == 0).all()
    assert torch.allclose(a.grad, again[0].grad, rtol=1e-9)
    assert torch.allclose(b.grad[good], again[1].grad, rtol=1e-9)
    expected = [w.grad for w in net.parameters() if w.grad is not None]
    assert all(torch.allclose(w, v, rtol=1e-9, atol=1e-12) for w, v in zip(weights, expected, strict=True))


@pytest.mark.parametrize(("left", "right"), [((), (3,)), ((3,), ()), ((2, 1), (1, 3)), ((), ())])
def test_a_gradient_of_points_that_are_broadcast_is_the_sum(left, right):
    metric = pb.Pullback(mlp())
    a = points(math.prod(left), seed=1).reshape(*left, 2).requires_grad_()
    b = points(math.prod(right), seed=2).reshape(*right, 2).requires_grad_()
    shape = torch.broadcast_shapes(a.shape, b.shape)
    wide = [t.detach().expand(shape).clone().requires_grad_() for t in (a, b)]
    found = torch.autograd.grad(pb.distance(metric, a, b).sum(), (a, b))
    expected = torch.autograd.grad(pb.distance(metric, *wide).sum(), wide)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other.sum_to_size(one.shape), rtol=1e-9)


def test_gradients_have_the_precision_of_the_points():
    a, b = points(3, seed=1).float().requires_grad_(), points(3, seed=2).float()
    distance = pb.distance(pb.Pullback(mlp(dtype=torch.float32)), a, b)
    distance.sum().backward()
    double = a.detach().double().requires_grad_()
    pb.distance(pb.Pullback(mlp()), double, b.double()).sum().backward()
    assert distance.dtype == a.grad.dtype == torch.float32
    assert torch.allclose(a.grad.double(), double.grad, atol=1e-2)


def test_second_derivatives_of_a_distance_are_refused():
    # those of the fixed curve would look plausible and be wrong
    a, b = points(2, seed=1).requires_grad_(), points(2, seed=2)
    (gradient,) = torch.autograd.grad(pb.distance(pb.Pullback(mlp()), a, b).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad|not have been used"):
        torch.autograd.grad(gradient.sum(), a)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_metric_of_its_own_kind_carries_gradients_too():
    class Poincare(pb.Metric):
        def inner(self, z, u, v):
            return 4 * (u * v).sum(-1) / (1 - z.square().sum(-1)).square()

        def matrix(self, z):
            return 4 * torch.eye(2, dtype=z.dtype) / (1 - z.square().sum(-1)).square()[..., None, None]

    a, b = points(4, seed=1, scale=0.2).requires_grad_(), points(4, seed=2, scale=0.2)
    (found,) = torch.autograd.grad(pb.distance(Poincare(), a, b, tol=1e-7).sum(), a)
    square = (a - b).square().sum(-1) / ((1 - a.square().sum(-1)) * (1 - b.square().sum(-1)))
    (exact,) = torch.autograd.grad(torch.acosh(1 + 2 * square).sum(), a)
    assert torch.allclose(found, exact, atol=1e-4)


# log


@pytest.mark.parametrize(("decoder", "d"), [(SPHERE, 2), (SPHERE, 3), (mlp(), 2), (mlp(3), 3)])
def test_exp_undoes_log_and_the_norm_of_log_is_the_distance(decoder, d):
    metric = pb.Pullback(decoder)
    z, w = points(3, d, 1, 0.5), points(3, d, 2, 0.5)
    velocity = pb.log(metric, z, w)
    assert (pb.exp(metric, z, velocity).end - w).abs().max() < 1e-6
    assert torch.allclose(metric.norm(z, velocity), pb.distance(metric, z, w, tol=1e-7), rtol=1e-6)


def test_log_on_the_sphere_is_that_of_the_closed_form():
    z, w = points(6, 2, 1, 0.5), points(6, 2, 2, 0.5)
    x, y = SPHERE(z), SPHERE(w)
    tangent = y - (x * y).sum(-1, keepdim=True) * x
    tangent = tangent / tangent.norm(dim=-1, keepdim=True) * SPHERE.distance(z, w)[:, None]
    jacobian = torch.func.vmap(torch.func.jacfwd(SPHERE))(z)
    pushed = (jacobian @ pb.log(pb.Pullback(SPHERE), z, w)[..., None])[..., 0]
    assert torch.allclose(pushed, tangent, atol=1e-6)


def test_one_point_may_have_logs_of_many_and_they_are_those_of_a_loop():
    metric = pb.Pullback(mlp())
    z, w = points(1, seed=1, scale=0.5)[0], points(4, seed=2, scale=0.5).reshape(2, 2, 2)
    w[1, 0] = z
    velocity = pb.log(metric, z, w)
    assert velocity.shape == (2, 2, 2)
    assert (velocity[1, 0] == 0).all()
    loop = torch.stack([pb.log(metric, z, one) for one in w.reshape(-1, 2)]).reshape(2, 2, 2)
    assert torch.allclose(velocity, loop, rtol=0, atol=1e-8)
    assert pb.log(metric, z, z).tolist() == [0, 0]
    assert pb.log(metric, w[:0], w[:0]).shape == (0, 2, 2)


def test_log_returns_the_curves_on_request_and_counts_the_shots(counting):
    counter = counting(mlp())
    metric = pb.Pullback(counter)
    z, w = points(3, seed=1), points(3, seed=2)
    metric.points_at_once(z)
    counter.reset()
    velocity, path = pb.log(metric, z, w, full=True)
    assert counter.evaluations == path.evaluations.sum()
    assert isinstance(path, pb.Solution)
    assert path.converged.all()
    assert torch.allclose(path.length, metric.norm(z, velocity), rtol=1e-3)
    rough, cheap = pb.log(metric, z, w, polish=False, full=True)
    assert torch.equal(cheap.length, path.length)
    assert (cheap.evaluations < 0.5 * path.evaluations).all()
    assert torch.allclose(rough, velocity, rtol=0.05, atol=0.05)
    assert not torch.allclose(rough, velocity, rtol=0, atol=1e-6)


def test_log_in_float32_goes_as_close_as_its_rounding_allows():
    z, w = points(2, seed=1).float(), points(2, seed=2).float()
    velocity, path = pb.log(pb.Pullback(mlp(dtype=torch.float32)), z, w, full=True)
    closest = 32 * torch.finfo(torch.float32).eps
    assert velocity.dtype == torch.float32
    assert path.converged.all()
    assert torch.equal(velocity, pb.log(pb.Pullback(mlp(dtype=torch.float32)), z, w, tol=closest))
    assert torch.allclose(velocity.double(), pb.log(pb.Pullback(mlp()), z.double(), w.double()), rtol=0, atol=1e-3)


@pytest.mark.parametrize("polish", [False, True])
def test_log_carries_no_gradient(polish):
    z = points(2, seed=1, scale=0.5).requires_grad_()
    assert not pb.log(pb.Pullback(mlp()), z, points(2, seed=2, scale=0.5), polish=polish, tol=1e-3).requires_grad


def test_log_is_nan_where_no_curve_was_found():
    z, w = points(4, seed=1, scale=0.5), points(4, seed=2, scale=0.5)
    w[2, 0] = 7
    with pytest.warns(pb.GeodesicWarning, match=r"1 raised.*pairs 2\).*too far right"):
        velocity, path = pb.log(pb.Pullback(Broken(mlp())), z, w, full=True)
    assert velocity.isnan().all(1).tolist() == [False, False, True, False]
    assert path.status[2] is Status.RAISED
    good = [0, 1, 3]
    assert torch.allclose(velocity[good], pb.log(pb.Pullback(mlp()), z[good], w[good]), atol=1e-8)


@pytest.mark.parametrize("angle", [0.1, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_log_near_the_antipode_is_right_or_flagged(angle):
    # towards a conjugate point the derivative of exp is singular
    metric = pb.Pullback(SPHERE)
    z = torch.tensor([0.5, 0.0], dtype=F64)
    w = -2 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pb.GeodesicWarning)
        velocity, path = pb.log(metric, z, w, tol=1e-5, full=True)
    if not path.converged:
        assert angle < 0.1
        assert velocity.isnan().all()
        assert path.length.isnan()
    else:
        assert abs(float(metric.norm(z, velocity) - SPHERE.distance(z, w))) < 1e-4


def test_a_shot_that_misses_is_flagged_as_failed(monkeypatch):
    def missed(metric, start, end, velocity, *, tol):
        codes = torch.full((len(start),), Status.CONVERGED.code)
        codes[1] = Status.STALLED.code
        return torch.where((codes == 0)[:, None], velocity, torch.nan), codes, codes, 10 + 0 * codes

    monkeypatch.setattr(pb.geodesics, "aim", missed)
    z, w = points(3, seed=1), points(3, seed=2)
    with pytest.warns(pb.GeodesicWarning, match=r"1 stalled.*pairs 1\)\. Shooting did not hit .* try polish=False"):
        velocity, path = pb.log(pb.Pullback(mlp()), z, w, full=True)
    assert path.status.tolist() == [Status.CONVERGED, Status.STALLED, Status.CONVERGED]
    for values in (path.length, path.length_error, path.energy, velocity[:, 0]):
        assert values.isnan().tolist() == [False, True, False]


def test_a_trajectory_that_makes_the_decoder_raise_fails_alone(monkeypatch):
    def picky(metric, start, end, velocity, *, tol):
        if (start[:, 0] > 0).any():
            raise ValueError("too far right")
        codes = torch.zeros(len(start), dtype=torch.long)
        return velocity, codes, codes, codes

    monkeypatch.setattr(pb.geodesics, "aim", picky)
    z = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, 1.0]], dtype=F64)
    with pytest.warns(pb.GeodesicWarning, match=r"1 raised.*pairs 1\).*the decoder said: ValueError: too far right"):
        velocity, path = pb.log(pb.Pullback(mlp()), z, z + 0.5, full=True)
    assert velocity.isnan().all(1).tolist() == [False, True, False]
    assert path.status[1] is Status.RAISED
    with pytest.raises(ValueError, match="too far right"):
        pb.log(pb.Pullback(mlp()), z[1], z[0])


@pytest.mark.parametrize("tol", [0, -1e-3, 1.0, float("nan")])
def test_a_tolerance_is_a_relative_error(tol):
    for ask in (pb.geodesic, pb.distance, pb.log):
        with pytest.raises(ValueError, match="`tol` is"):
            ask(pb.Pullback(SPHERE), torch.zeros(2), torch.ones(2), tol=tol)
