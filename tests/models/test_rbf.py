import math

import pytest
import torch
from torch.distributions import Normal

from pullback import autodiff
from pullback.models import RBFPrecision, pretrained
from pullback.models.rbf import bandwidths, kmeans

# torch loads parts of its forward mode by way of its own deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.fixture
def rbf():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    rbf = RBFPrecision(centers, torch.rand(7, generator=generator) + 0.5, 5)
    with torch.no_grad():
        rbf.weight.copy_(10 * torch.rand(5, 7, generator=generator))
        rbf.weight[0, :3] = 0
    return rbf.requires_grad_(False)


def points(n, d=2, seed=1):
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bandwidth_comes_from_the_mean_of_the_unsquared_distances():
    # distances 3 and 1 from the first center: the mean is 2, the root of the mean square would be sqrt(5)
    codes = torch.tensor([[3.0, 0.0], [0.0, 1.0], [10.0, 10.5], [10.0, 9.5]], dtype=torch.float64)
    members = torch.tensor([0, 0, 1, 1])
    centers = torch.tensor([[0.0, 0.0], [10.0, 10.0]], dtype=torch.float64)
    for a in (1.0, 2.0):
        expected = torch.tensor([0.5 / (a * 2.0) ** 2, 0.5 / (a * 0.5) ** 2], dtype=torch.float64)
        assert torch.allclose(bandwidths(codes, members, centers, a=a), expected, rtol=1e-14)


def test_clusters_of_one_code_keep_a_finite_bandwidth():
    codes = torch.tensor([[0.0, 0.0], [5.0, 1.0], [5.0, -1.0], [9.0, 0.0]], dtype=torch.float64)
    members = torch.tensor([0, 1, 1, 2])
    centers = torch.tensor([[0.0, 0.0], [5.0, 0.0], [9.0, 0.0]], dtype=torch.float64)
    widths = bandwidths(codes, members, centers, a=2.0)
    assert torch.allclose(widths, torch.tensor([0.5 / 0.04, 0.5 / 4, 0.5 / 0.04], dtype=torch.float64))


def test_most_clusters_may_have_one_code_but_not_all():
    codes = torch.tensor([[0.0], [1.0], [2.0], [3.0], [3.5]], dtype=torch.float64)
    centers = torch.tensor([[0.0], [1.0], [2.0], [3.25]], dtype=torch.float64)
    assert bool(bandwidths(codes, torch.tensor([0, 1, 2, 3, 3]), centers).isfinite().all())
    with pytest.raises(ValueError, match="none of the 3 clusters has two different codes: use fewer centers"):
        bandwidths(codes[:3], torch.tensor([0, 1, 2]), centers[:3])


@pytest.mark.parametrize("a", [0.0, -1.0, math.nan])
def test_a_bandwidth_scale_that_is_not_positive_is_refused(a):
    with pytest.raises(ValueError, match=r"`a` is .*: wanted a positive scale"):
        bandwidths(points(3), torch.zeros(3, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.float64), a=a)


def test_placed_centers_are_those_of_kmeans_with_the_bandwidths_of_its_clusters(rbf):
    codes = points(60)
    rbf.place(codes, a=1.5, random_state=3)
    centers, members = kmeans(codes, 7, random_state=3)
    assert torch.equal(rbf.centers, centers)
    assert torch.equal(rbf.bandwidths, bandwidths(codes, members, centers, a=1.5))


def test_centers_stay_where_they_are_if_they_cannot_be_placed(rbf):
    before = rbf.centers.clone(), rbf.bandwidths.clone()
    for codes, a in ((points(5), 2.0), (points(60), -1.0)):
        with pytest.raises(ValueError, match=r"`n_centers`|`a`"):
            rbf.place(codes, a=a)
    assert torch.equal(rbf.centers, before[0])
    assert torch.equal(rbf.bandwidths, before[1])


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_kernels_equal_those_from_plain_distances(rbf, offset):
    # the expanded square would lose its digits far from the origin, were it not taken around the middle
    moved = RBFPrecision(rbf.centers + offset, rbf.bandwidths, 5)
    z = points(50)
    distances = (z[:, None] - rbf.centers).square().sum(-1)
    expected = (-rbf.bandwidths * distances).exp()
    assert torch.allclose(moved.kernels(z + offset), expected, rtol=1e-9 if offset else 1e-12, atol=0)


def test_sigma_is_the_inverse_root_of_weighted_kernels_plus_zeta(rbf):
    z = points(20)
    beta = rbf.kernels(z) @ rbf.weight.T + 1e-10
    assert torch.allclose(rbf.precision(z), beta, rtol=1e-14)
    assert torch.allclose(rbf(z), beta**-0.5, rtol=1e-14)
    far = torch.full((1, 2), 1e3, dtype=torch.float64)
    assert torch.allclose(rbf(far), torch.full((1, 5), 1e5, dtype=torch.float64))


def test_the_jacobian_equals_finite_differences_and_the_closed_form(rbf):
    z = points(30)
    forward = autodiff.jacobian(rbf, z)
    reverse = torch.stack([autodiff.vjp(rbf, z, w.expand(30, 5)) for w in torch.eye(5, dtype=torch.float64)], 1)
    h = 1e-5
    steps = h * torch.eye(2, dtype=torch.float64)
    differences = torch.stack([(rbf(z + step) - rbf(z - step)) / (2 * h) for step in steps], -1)
    scale = forward.abs().amax((1, 2), keepdim=True)
    assert float(((forward - differences) / scale).abs().max()) < 1e-6
    kernels = rbf.kernels(z)
    slope = -2 * torch.einsum("jk,nk,nki->nji", rbf.weight, rbf.bandwidths * kernels, z[:, None] - rbf.centers)
    closed = -0.5 * rbf.precision(z)[..., None] ** -1.5 * slope
    assert torch.allclose(forward, closed, rtol=1e-9)
    assert torch.allclose(reverse, closed, rtol=1e-9)


def test_second_derivatives_are_right_even_at_the_centers():
    # rounding puts some exponents there above 0: a clamp would make the kernel flat
    centers = points(50)
    rbf = RBFPrecision(centers, torch.linspace(0.5, 500, 50, dtype=torch.float64), 1).requires_grad_(False)
    u, v = (torch.tensor([t], dtype=torch.float64).expand(50, 2) for t in ([1.0, 2.0], [0.5, -1.0]))
    second = autodiff.second_derivative(rbf.kernels, centers, u, v).diagonal()
    assert torch.allclose(second, -2 * rbf.bandwidths * -1.5, rtol=1e-9)


def test_sigma_is_differentiated_twice_forward_and_backward(rbf):
    # its root is taken in place, which both must survive
    z, v = points(6), points(6, seed=2)
    step = 1e-5 * v
    ahead, behind = (autodiff.jvp(rbf, z + h, (v,))[0] for h in (step, -step))
    expected = (ahead - behind) / 2e-5
    y = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(rbf(y)[:, 1].sum(), y, create_graph=True)
    (curvature,) = torch.autograd.grad((slope * v).sum(), y)
    assert torch.allclose(autodiff.second_derivative(rbf, z, v, v), expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose((curvature * v).sum(-1), expected[:, 1], rtol=1e-6, atol=1e-6)


def test_points_with_more_axes_give_what_their_slices_give(rbf):
    z = points(24).reshape(2, 3, 4, 2)
    together = rbf(z)
    assert together.shape == (2, 3, 4, 5)
    assert torch.equal(rbf(z[1, 2]), together[1, 2])
    assert torch.allclose(rbf(z[0, 0, 0]), together[0, 0, 0], rtol=1e-14)


def test_sigma_is_computed_in_float64_whatever_comes(rbf):
    z = points(5)
    assert rbf(z.float()).dtype == torch.float64
    assert torch.allclose(rbf(z.float()), rbf(z), rtol=1e-4)


def test_the_loss_is_the_negative_log_likelihood_of_a_gaussian(rbf):
    z, residual = points(12), points(12, 5, seed=3)
    expected = -Normal(0.0, rbf(z)).log_prob(residual).sum(-1).mean() - 5 * 0.5 * math.log(2 * math.pi)
    assert torch.allclose(rbf.loss(z, residual), expected)


def test_the_projection_zeroes_negative_weights_and_leaves_the_others(rbf):
    before = rbf.weight.detach().clone()
    with torch.no_grad():
        rbf.weight[1] = -1
    rbf.project()
    assert bool((rbf.weight[1] == 0).all())
    assert torch.equal(rbf.weight[2:], before[2:])


def test_the_weights_are_the_only_parameters(rbf):
    assert [name for name, _ in rbf.named_parameters()] == ["weight"]


def fit(residual_std, *, epochs=200):
    """A precision fitted to residuals of a known spread at unit Gaussian codes."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    residual = residual_std * torch.randn(400, 3, generator=generator, dtype=torch.float64)
    centers, members = kmeans(z, 8)
    rbf = RBFPrecision(centers, bandwidths(z, members, centers), 3)
    optimizer = torch.optim.Adam(rbf.parameters(), lr=0.02 / residual_std**2)
    for _ in range(epochs):
        optimizer.zero_grad()
        rbf.loss(z, residual).backward()
        optimizer.step()
        rbf.project()
    return rbf.requires_grad_(False), z


@pytest.mark.parametrize("std", [0.05, 0.3, 2.0])
def test_a_fit_finds_the_spread_of_the_data_down_to_a_twentieth(std):
    # a softplus on the log variance would leave sigma above 1
    rbf, z = fit(std)
    assert float(rbf(z).median()) == pytest.approx(std, rel=0.15)


def rays(radii, n=72):
    angle = torch.linspace(0, 2 * math.pi, n + 1, dtype=torch.float64)[:-1]
    return radii[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)


def test_sigma_rises_along_every_ray_out_to_radius_6_with_the_default_zeta():
    # an early zeta of 1e-3 in public code lets the wall collapse at radius 6
    radii = torch.arange(2.5, 6.01, 0.25, dtype=torch.float64)
    toy, _ = fit(0.1)
    for rbf, rise in ((toy, 2), (pretrained("mnist012").rbf, 10)):
        assert float(rbf.zeta) == 1e-10
        total = rbf(rays(radii)).sum(-1).log()
        assert bool((total.diff(dim=0) > 0).all())
        assert float(total[-1].median() - total[0].median()) > rise


@pytest.mark.parametrize(
    ("centers", "widths", "zeta", "message"),
    [
        (torch.zeros(3), torch.ones(3), 1e-10, r"`centers` has shape \(3,\)"),
        (torch.zeros(3, 2), torch.ones(4), 1e-10, r"`bandwidths` \(4,\): wanted \(K, d\) and \(K,\)"),
        (torch.zeros(3, 2), torch.tensor([1.0, 0.0, 1.0]), 1e-10, "must be positive and finite"),
        (torch.zeros(3, 2), torch.tensor([1.0, math.inf, 1.0]), 1e-10, "must be positive and finite"),
        (torch.zeros(3, 2), torch.ones(3), 0.0, "must be positive and finite"),
    ],
)
def test_impossible_centers_and_bandwidths_are_refused(centers, widths, zeta, message):
    with pytest.raises(ValueError, match=message):
        RBFPrecision(centers, widths, 5, zeta=zeta)


def test_kmeans_finds_separate_clusters_and_repeats_itself():
    z = torch.cat([points(20, seed=i) * 0.01 + 10 * i for i in range(3)])
    before = torch.get_rng_state()
    centers, members = kmeans(z, 3, random_state=4)
    assert torch.equal(torch.get_rng_state(), before)
    for i in range(3):
        own = members[20 * i : 20 * (i + 1)]
        assert len(own.unique()) == 1
        assert torch.allclose(centers[own[0]], z[20 * i : 20 * (i + 1)].mean(0))
    assert torch.equal(kmeans(z, 3, random_state=4)[0], centers)


@pytest.mark.parametrize("n_centers", [0, 3])
def test_kmeans_wants_as_many_different_codes_as_centers(n_centers):
    codes = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(10, 1)
    with pytest.raises(ValueError, match=f"`n_centers` is {n_centers}, but there are 2 different codes: use 1 to 2"):
        kmeans(codes, n_centers)
