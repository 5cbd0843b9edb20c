import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from metric_contract import F64, MetricContract
from pullback.decoders import Stacked
from small import mlp, randn

MEMBERS = [mlp(seed=seed) for seed in range(4)]


class TestEnsemble(MetricContract):
    def metric(self):
        return pb.Pullback(pb.Ensemble([mlp(seed=seed) for seed in range(4)]))


class TestWeightedEnsemble(MetricContract):
    def metric(self):
        return pb.Pullback(pb.Ensemble([mlp(seed=seed) for seed in range(4)], weight=3.0))


def explicit(f, z):
    """J (n, D, d) row by row, the slow way."""
    return torch.stack([torch.autograd.functional.jacobian(lambda y: f(y[None])[0], point) for point in z])


def test_the_metric_of_an_ensemble_is_the_mean_of_its_members_metrics():
    z = randn(5, 2)
    j = torch.stack([explicit(f, z) for f in MEMBERS])
    assert torch.allclose(pb.Pullback(pb.Ensemble(MEMBERS)).matrix(z), (j.mT @ j).mean(0), rtol=1e-8)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 4.0])
def test_the_weight_multiplies_what_the_members_disagree_by(weight):
    z = randn(5, 2)
    j = torch.stack([explicit(f, z) for f in MEMBERS])
    mean = j.mean(0)
    expected = mean.mT @ mean + weight * ((j - mean).mT @ (j - mean)).mean(0)
    assert torch.allclose(pb.Pullback(pb.Ensemble(MEMBERS, weight=weight)).matrix(z), expected, rtol=1e-8)


def test_an_ensemble_of_one_is_its_member():
    z = randn(5, 2)
    for weight in (0.0, 1.0, 2.0):
        one = pb.Pullback(pb.Ensemble([MEMBERS[0]], weight=weight))
        assert torch.allclose(one.matrix(z), pb.Pullback(MEMBERS[0]).matrix(z), rtol=1e-12)


@given(st.permutations(range(4)), st.floats(0, 10))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_the_order_of_the_members_does_not_matter(order, weight):
    z = randn(3, 2)
    one = pb.Pullback(pb.Ensemble(MEMBERS, weight=weight)).matrix(z)
    other = pb.Pullback(pb.Ensemble([MEMBERS[i] for i in order], weight=weight)).matrix(z)
    assert torch.allclose(one, other, rtol=1e-10)


def test_an_ensemble_of_gaussians_has_the_mean_of_their_expected_metrics():
    members = [pb.Gaussian(f, nn.Sequential(mlp(seed=9 + i), nn.Softplus())) for i, f in enumerate(MEMBERS)]
    z = randn(4, 2)
    expected = torch.stack([pb.Pullback(member).matrix(z) for member in members]).mean(0)
    assert torch.allclose(pb.Pullback(pb.Ensemble(members)).matrix(z), expected, rtol=1e-10)


def test_geodesics_keep_to_where_the_members_agree():
    # both members are the plane, but for a hill that only one of them has
    def hill(z):
        return torch.cat((z, 2 * torch.exp(-4 * z.square().sum(-1, keepdim=True))), 1)

    def plain(z):
        return torch.cat((z, torch.zeros_like(z[:, :1])), 1)

    start, end = torch.tensor([-1.0, 0.05], dtype=F64), torch.tensor([1.0, 0.05], dtype=F64)
    detours = []
    for weight in (0.0, 1.0, 10.0):
        path = pb.geodesic(pb.Pullback(pb.Ensemble([hill, plain], weight=weight)), start, end, starts="bends")
        detours.append(float(path.curve.nodes[:, 1].abs().max()))
    assert detours[0] < detours[1] < detours[2]


def test_the_variance_is_that_between_the_members_summed_over_outputs():
    ensemble, z = pb.Ensemble(MEMBERS), randn(2, 3, 2)
    x = torch.stack([f(z) for f in MEMBERS])
    assert torch.allclose(ensemble.variance(z), x.var(0, correction=0).sum(-1))


def test_a_member_drawn_at_each_node_adds_twice_the_variance():
    # the energy of the cited paper, in closed form: pairs of independent members at neighboring nodes
    z = randn(5, 2)
    x = torch.stack([f(z) for f in MEMBERS])  # (S, n, D)
    drawn = (x[:, None, 1:] - x[None, :, :-1]).square().sum(-1).mean((0, 1)).sum()
    ensemble, mean = pb.Ensemble(MEMBERS), pb.Ensemble(MEMBERS, weight=0)(z)
    variance = ensemble.variance(z)
    assert torch.allclose(drawn, mean.diff(dim=0).square().sum() + (variance[1:] + variance[:-1]).sum())


def test_one_output_of_each_member_is_chosen():
    named = [lambda z, f=f: {"image": f(z), "code": z} for f in MEMBERS]
    z = randn(3, 2)
    chosen = pb.Pullback(pb.Ensemble(named, output="image"))
    assert torch.allclose(chosen.matrix(z), pb.Pullback(pb.Ensemble(MEMBERS)).matrix(z), rtol=1e-12)


def test_members_with_other_outputs_are_refused():
    ensemble = pb.Ensemble([mlp(), mlp(n_features=5)])
    with pytest.raises(ValueError, match=r"member 1 returns \[\(5,\)\] values a point but member 0 returns \[\(7,\)\]"):
        pb.Pullback(ensemble).matrix(randn(3, 2))


def test_members_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match="the points have dtype float64 but the decoder has float32"):
        pb.Pullback(pb.Ensemble([mlp().float(), mlp().float()])).matrix(randn(3, 2))
    with pytest.raises(ValueError, match="the points have dtype float64 but the decoder has float32"):
        pb.Pullback(pb.Ensemble([mlp(), mlp().float()])).matrix(randn(3, 2))


def test_members_on_another_device_are_refused():
    with pytest.raises(ValueError, match="the points are on cpu but the decoder is on meta"):
        pb.Pullback(pb.Ensemble([mlp(), mlp().to("meta")])).matrix(randn(3, 2))


def test_an_ensemble_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="training mode and holds Dropout"):
        pb.Ensemble([mlp(), nn.Sequential(mlp(), nn.Dropout(0.1))])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"members": []}, "`members` is empty"),
        ({"members": MEMBERS, "weight": -1.0}, "`weight` is -1.0"),
        ({"members": MEMBERS, "weight": float("nan")}, "`weight` is nan"),
    ],
)
def test_unfit_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        pb.Ensemble(**arguments)


def test_stacked_maps_have_the_weighted_sum_of_metrics():
    f, g, z = mlp(), mlp(n_features=3, seed=1), randn(4, 2)
    stacked = pb.Pullback(Stacked([f, g], [2.0, 0.5]))
    expected = 2 * pb.Pullback(f).matrix(z) + 0.5 * pb.Pullback(g).matrix(z)
    assert torch.allclose(stacked.matrix(z), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"`weights` is 0\.0"):
        Stacked([f, g], [1.0, 0.0])
