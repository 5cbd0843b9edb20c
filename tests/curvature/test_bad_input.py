"""What cannot be answered is said: by an error, or by NaN and a warning that names the point and the reason."""

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import curvature
from small import F64, Bowl, mlp, randn, tilt

PINCHED = pb.Pullback(lambda z: torch.stack((z[:, 0] ** 3, z[:, 1], z[:, 1] ** 2 + z[:, 0]), -1) * z[:, :1])
SOME = torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 0.5]], dtype=F64)  # f is zero on the line z_1 = 0


def test_a_point_where_the_metric_is_degenerate_gets_nan_and_is_named_with_the_rank():
    # a peer catches what fails at a point and prints it (T45)
    u, v = torch.eye(2, dtype=F64)
    for work in (
        curvature.gaussian,
        curvature.scalar,
        curvature.riemann,
        curvature.ricci,
        curvature.christoffel,
        curvature.mean_curvature,
        lambda metric, z: curvature.scalar(metric, z, n_probes=3).value,
        lambda metric, z: curvature.sectional(metric, z, u, v),
        lambda metric, z: curvature.second_fundamental_form(metric, z, u, v),
    ):
        with pytest.warns(
            pb.CurvatureWarning, match=r"1 of 3 points .* point 1, \[0.0, 1.0\]: .* singular .* rank 1 of 2"
        ):
            found = work(PINCHED, SOME).reshape(3, -1)
        assert found.isnan().all(1).tolist() == [False, True, False]
        assert found[[0, 2]].isfinite().all()
        assert torch.allclose(found[[0, 2]], work(PINCHED, SOME[[0, 2]]).reshape(2, -1))


def test_degenerate_points_of_metrics_without_an_immersion_are_named_too():
    with pytest.warns(pb.CurvatureWarning, match="point 1.*rank 1 of 2"):
        found = curvature.gaussian(pb.Conformal(PINCHED, tilt), SOME)
    assert found.isnan().tolist() == [False, True, False]
    with pytest.warns(pb.CurvatureWarning, match="point 1.*rank 1 of 2"):
        found = curvature.scalar(pb.Conformal(PINCHED, tilt), SOME, n_probes=3)
    assert found.value.isnan().tolist() == found.error.isnan().tolist() == [False, True, False]


def test_a_dead_latent_direction_leaves_no_curvature_anywhere():
    with pytest.warns(pb.CurvatureWarning, match="4 of 4 points .*rank 2 of 3"):
        assert curvature.scalar(pb.Pullback(lambda z: mlp()(z[:, :2])), randn(4, 3)).isnan().all()


def test_a_point_where_the_decoder_is_not_finite_gets_nan_and_is_named():
    f = pb.Pullback(lambda z: torch.stack((z[:, 0].sqrt(), z[:, 1], z[:, 1] ** 2), -1))
    with pytest.warns(pb.CurvatureWarning, match=r"1 of 2 points .* point 1, \[-1.0, 1.0\]: .* not finite"):
        found = curvature.gaussian(f, torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=F64))
    assert found.isnan().tolist() == [False, True]


def test_a_point_of_many_coordinates_is_named_by_its_number_alone():
    with pytest.warns(pb.CurvatureWarning, match="the first is point 0: the metric is singular") as caught:
        curvature.scalar(pb.Pullback(mlp(12, 5)), randn(2, 12))
    assert len(str(caught[0].message)) < 200


def test_short_axes_are_not_singular_ones():
    f = mlp()
    stretched = pb.Pullback(lambda z: f(z * z.new_tensor((1e-9, 1.0))))
    found = curvature.gaussian(stretched, randn(3, 2))
    near = randn(3, 2) * torch.tensor((1e-9, 1.0), dtype=F64)
    assert torch.allclose(found, curvature.gaussian(pb.Pullback(f), near), rtol=1e-6)


def test_nearly_flat_charts_lose_no_digits_to_tangents():
    # f'' is nearly all tangential: what is normal is 1e-6 of it
    bent = pb.surfaces.DisguisedPlane(0.8)

    def f(z):
        x = bent(z)
        return torch.cat((x, 1e-6 * x[:, :1].square() + 1e-6 * x[:, 1:].square()), -1)

    z = randn(10, 2)
    x = bent(z)
    exact = 4e-12 / (1 + 4e-12 * x.square().sum(-1)) ** 2
    assert torch.allclose(curvature.gaussian(pb.Pullback(f), z), exact, rtol=1e-6)


def test_parallel_tangents_span_no_plane_and_the_point_is_named():
    z, u = randn(3, 2), torch.tensor([[1.0, 0.0]] * 3, dtype=F64)
    for metric in (pb.Pullback(mlp()), pb.MatrixField(Bowl())):
        for v in (3.0 * u, -u, 0 * u, u + 1e-16):
            other = torch.tensor([[0.0, 1.0]], dtype=F64).expand(3, 2).clone()
            other[2] = v[2]
            with pytest.raises(ValueError, match="`u` and `v` are parallel, or one is zero, at point 2 of 3"):
                curvature.sectional(metric, z, u, other)


def test_lengths_and_angle_of_tangents_do_not_matter():
    metric, z, u, v = pb.Pullback(mlp(3)), randn(4, 3), randn(4, 3, seed=1), randn(4, 3, seed=2)
    plain = curvature.sectional(metric, z, u, v)
    assert torch.allclose(curvature.sectional(metric, z, 1e-8 * u, 1e5 * (v + 7 * u)), plain, rtol=1e-6)
    assert torch.allclose(curvature.sectional(metric, z, u, u + 1e-5 * v), plain, rtol=1e-5)


def test_a_curve_has_no_curvature_inside_and_no_planes():
    line, z = pb.Pullback(mlp(1)), randn(4, 1)
    assert torch.equal(curvature.scalar(line, z), torch.zeros(4, dtype=F64))
    assert torch.equal(curvature.riemann(line, z), torch.zeros(4, 1, 1, 1, 1, dtype=F64))
    with pytest.raises(ValueError, match="latent dimension 1: a curve has no planes, and so no sectional curvature"):
        curvature.sectional(line, z, z, z)
    with pytest.raises(ValueError, match="latent dimension 1: a curve has no planes"):
        curvature.scalar(line, z, n_probes=4)
    with pytest.raises(ValueError, match=r"latent dimension 1, but Gaussian curvature .* a curve has no curvature"):
        curvature.gaussian(line, z)


def test_gaussian_curvature_is_that_of_surfaces():
    with pytest.raises(ValueError, match=r"latent dimension 3, but Gaussian curvature .* d = 2; .* sectional, ricci"):
        curvature.gaussian(pb.Pullback(mlp(3)), randn(3))


def test_many_dimensions_need_probes_or_a_request():
    metric, z = pb.Pullback(mlp(18, 40, width=40)), randn(18)
    with pytest.raises(
        ValueError, match=r"dimension 18 but `max_dim` is 16: .* 171 second .* n_probes=128 .* max_dim=18"
    ):
        curvature.scalar(metric, z)
    for work in (curvature.ricci, curvature.riemann, curvature.christoffel):
        with pytest.raises(ValueError, match="If you want that, set max_dim=18"):
            work(metric, z)
    value, error = curvature.scalar(metric, z, n_probes=400)
    assert (value - curvature.scalar(metric, z, max_dim=18)).abs() < 4 * error


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
def test_codes_are_single_or_double_precision(dtype):
    with pytest.raises(ValueError, match=r"`z` has dtype .*: points are floating-point, float32 or float64"):
        curvature.scalar(pb.Pullback(mlp()), randn(3, 2).to(dtype))


def test_points_and_tangents_fit_each_other():
    with pytest.raises(ValueError, match="tangents do not fit the points"):
        curvature.sectional(pb.Pullback(mlp()), randn(3, 2), randn(2, 2), randn(2, 2))


def test_a_decoder_is_no_metric():
    with pytest.raises(TypeError, match=r"`metric` is a Sequential: .* Pullback\(decoder\)"):
        curvature.scalar(nn.Sequential(), randn(2))


def test_a_matrix_that_hides_its_argument_is_refused():
    hidden = pb.MatrixField(lambda z: Bowl()(z.detach()))
    for work in (curvature.gaussian, curvature.christoffel):
        with pytest.raises(ValueError, match="carries no gradient to z, but changes with it"):
            work(hidden, randn(3, 2))
    with pytest.raises(ValueError, match="carries no gradient to z, but changes with it"):
        curvature.sectional(hidden, randn(3, 2), *torch.eye(2, dtype=F64))


def test_a_decoder_without_second_derivatives_is_refused():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, w):
            return w * ctx.saved_tensors[0].cos()

    with pytest.raises(ValueError, match="derivative"):
        curvature.gaussian(pb.Pullback(lambda z: Once.apply(z @ randn(2, 5))), randn(3, 2))
