"""What every metric has to satisfy: a base class of tests. Inherit it, say which metric, and get them all.

class TestSphere(MetricContract):
    def metric(self):
        return Pullback(Sphere())
"""

import copy
import pickle
from abc import ABC, abstractmethod

import pytest
import torch

from pullback.metrics import Metric

F64 = torch.float64


class MetricContract(ABC):
    """Give :meth:`metric`, in float64; override `d`, or :meth:`points` where the metric lives on a part of R^d."""

    d = 2

    @abstractmethod
    def metric(self) -> Metric:
        """A new metric."""

    def points(self, *batch: int, seed: int = 0) -> torch.Tensor:
        """Points (*batch, d) at which the metric is defined and regular."""
        generator = torch.Generator().manual_seed(seed)
        return 0.7 * torch.randn(*batch, self.d, generator=generator, dtype=F64)

    def vectors(self, *batch: int, seed: int = 1) -> torch.Tensor:
        """Tangent vectors (*batch, d)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*batch, self.d, generator=generator, dtype=F64)

    def curve(self, n: int, size: float = 1.0) -> torch.Tensor:
        """n + 1 nodes (n + 1, d) at unequal steps along a bent curve through a point, `size` long."""
        t = torch.linspace(0, 1, n + 1, dtype=F64)[:, None]
        start, across, bend = self.points(), *self.vectors(2, seed=5)
        return start + 0.3 * size * ((t + 0.1 * t**2) * across + t.sin() * t * bend)

    def test_the_matrix_is_symmetric_and_positive_definite(self):
        g = self.metric().matrix(self.points(7))
        assert torch.equal(g, g.mT) or torch.allclose(g, g.mT, rtol=1e-13, atol=1e-15)
        assert (torch.linalg.eigvalsh(g) > 0).all()

    def test_the_inner_product_is_that_of_the_matrix(self):
        metric, z, u, v = self.metric(), self.points(7), self.vectors(7), self.vectors(7, seed=2)
        expected = torch.einsum("ni,nij,nj->n", u, metric.matrix(z), v)
        assert torch.allclose(metric.inner(z, u, v), expected, rtol=1e-10, atol=1e-12)

    def test_the_inner_product_is_bilinear_and_symmetric(self):
        metric, z = self.metric(), self.points(5)
        u, v, w = (self.vectors(5, seed=seed) for seed in (1, 2, 3))
        sums = metric.inner(z, 2 * u - 3 * w, v), 2 * metric.inner(z, u, v) - 3 * metric.inner(z, w, v)
        assert torch.allclose(*sums, rtol=1e-10, atol=1e-10)
        assert torch.allclose(metric.inner(z, u, v), metric.inner(z, v, u), rtol=1e-10, atol=1e-12)

    def test_the_norm_is_the_root_of_the_inner_product_of_a_vector_with_itself(self):
        metric, z, v = self.metric(), self.points(5), self.vectors(5)
        assert torch.allclose(metric.norm(z, v).square(), metric.inner(z, v, v), rtol=1e-10)
        assert torch.allclose(metric.norm(z, -2 * v), 2 * metric.norm(z, v), rtol=1e-10)

    def test_the_log_volume_is_half_the_log_determinant(self):
        metric, z = self.metric(), self.points(5)
        assert torch.allclose(metric.log_volume(z), 0.5 * torch.logdet(metric.matrix(z)), rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("batch", [(), (3,), (2, 3), (1, 1, 1), (0,), (0, 3), (3, 0)])
    def test_a_batch_of_any_shape_comes_back_in_that_shape(self, batch):
        metric, z, v = self.metric(), self.points(*batch), self.vectors(*batch)
        assert metric.inner(z, v, v).shape == batch
        assert metric.norm(z, v).shape == batch
        assert metric.matrix(z).shape == (*batch, self.d, self.d)
        assert metric.log_volume(z).shape == batch
        assert metric.features(z).shape[:-1] == batch

    def test_a_point_gives_what_it_gives_in_a_batch(self):
        metric, z, u, v = self.metric(), self.points(4, 3), self.vectors(4, 3), self.vectors(4, 3, seed=2)
        alone = metric.matrix(z[2, 1]), metric.inner(z[2, 1], u[2, 1], v[2, 1]), metric.log_volume(z[2, 1])
        together = metric.matrix(z)[2, 1], metric.inner(z, u, v)[2, 1], metric.log_volume(z)[2, 1]
        for one, many in zip(alone, together, strict=True):
            assert torch.allclose(one, many, rtol=1e-10, atol=1e-12)

    def test_one_tangent_goes_with_many_points_and_one_point_with_many_tangents(self):
        metric, z, v = self.metric(), self.points(4), self.vectors(4)
        pairs = [(metric.norm(z, v[0]), metric.norm(z, v[:1].expand(4, -1)))]
        pairs += [(metric.inner(z[0], v, v[1]), metric.inner(z[:1].expand(4, -1), v, v[1:2].expand(4, -1)))]
        for short, long in pairs:
            assert torch.allclose(short, long, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_results_have_the_dtype_of_the_points(self, dtype):
        metric, z, v = self.metric().to(dtype), self.points(3).to(dtype), self.vectors(3).to(dtype)
        results = metric.inner(z, v, v), metric.norm(z, v), metric.matrix(z), metric.log_volume(z), metric.features(z)
        assert {result.dtype for result in results} == {dtype}
        assert {result.device for result in results} == {z.device}
        assert torch.allclose(results[2].to(F64), self.metric().matrix(self.points(3)), rtol=1e-3, atol=1e-4)

    def test_results_carry_gradients_when_the_points_ask_for_them_and_never_otherwise(self):
        metric, z, v = self.metric(), self.points(3), self.vectors(3)
        asking = z.clone().requires_grad_()
        for result in (metric.inner, metric.norm, lambda z, *_: metric.matrix(z), lambda z, *_: metric.log_volume(z)):
            arguments = (v, v) if result == metric.inner else (v,)
            assert not result(z, *arguments).requires_grad
            assert result(asking, *arguments).requires_grad
            with torch.no_grad():
                assert not result(asking, *arguments).requires_grad

    def test_the_gradient_of_the_log_volume_is_that_of_finite_differences(self):
        metric, z = self.metric(), self.points(2).requires_grad_()
        assert torch.autograd.gradcheck(metric.log_volume, z, eps=1e-5, atol=1e-5, rtol=1e-4)

    def test_nothing_that_is_given_is_changed(self):
        metric, z, v = self.metric(), self.points(3), self.vectors(3)
        state = {name: tensor.clone() for name, tensor in metric.state_dict().items()}
        modes, random = [module.training for module in metric.modules()], torch.get_rng_state()
        before = z.clone(), v.clone()
        metric.norm(z, v), metric.matrix(z), metric.log_volume(z), metric.features(z)
        metric.squared_chords(metric.features(z)), metric.grams(z)
        assert torch.equal(z, before[0])
        assert torch.equal(v, before[1])
        assert not z.requires_grad
        assert all(torch.equal(tensor, state[name]) for name, tensor in metric.state_dict().items())
        assert modes == [module.training for module in metric.modules()]
        assert torch.equal(random, torch.get_rng_state())

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
    def test_a_curve_of_n_segments_has_n_chords_and_half_as_many_double_chords(self, n):
        metric = self.metric()
        single, double = metric.squared_chords(metric.features(self.curve(n).expand(2, n + 1, self.d)))
        assert single.shape == (2, n)
        assert double.shape == (2, n // 2)

    def test_chords_of_near_nodes_are_lengths_of_their_differences(self):
        # the ratio goes to one with the size of the curve: ten times smaller, ten times nearer
        metric, errors = self.metric(), []
        for size in (0.3, 0.03):
            nodes = self.curve(4, size)
            single, double = metric.squared_chords(metric.features(nodes))
            middle, steps = 0.5 * (nodes[1:] + nodes[:-1]), nodes.diff(dim=0)
            over_two = metric.inner(nodes[1::2], nodes[2::2] - nodes[:-1:2], nodes[2::2] - nodes[:-1:2])
            off = (single / metric.inner(middle, steps, steps) - 1).abs().max(), (double / over_two - 1).abs().max()
            errors.append(torch.stack(off))
        assert (errors[0] < 0.2).all()
        assert (errors[1] < 0.15 * errors[0] + 1e-9).all()

    def test_products_of_jacobians_at_near_nodes_are_the_matrix(self):
        metric, nodes = self.metric(), self.curve(4, 1e-4).expand(3, 5, self.d)
        same, next_one, next_two = metric.grams(nodes)
        assert torch.allclose(same, metric.matrix(nodes), rtol=1e-10, atol=1e-12)
        for k, product in ((1, next_one), (2, next_two)):
            assert product.shape == (3, 5 - k, self.d, self.d)
            scale = same.abs().max()
            assert torch.allclose(product / scale, same[:, : 5 - k] / scale, atol=1e-3)

    def test_a_solver_can_ask_what_products_cost_and_how_many_points_fit(self):
        metric = self.metric()
        metric.matrix(self.points(1))
        assert metric.gram_cost(self.d) >= 1
        assert metric.points_at_once(self.points(5)) >= 1

    def test_copies_and_pickles_give_the_same_numbers(self):
        metric, z = self.metric(), self.points(3)
        expected = metric.matrix(z)
        for copied in (
            copy.deepcopy(metric),
            pickle.loads(pickle.dumps(metric)),
            pickle.loads(pickle.dumps(self.metric())),
        ):
            assert torch.equal(copied.matrix(z), expected)

    def test_the_christoffel_vector_is_symmetric_and_bilinear(self):
        metric, z = self.metric(), self.points(4)
        u, v, w = (self.vectors(4, seed=seed) for seed in (1, 2, 3))
        gamma = metric.christoffel(z, u, v)
        size = 1e-9 * (1 + gamma.abs().max().item())
        assert torch.allclose(gamma, metric.christoffel(z, v, u), rtol=1e-8, atol=size)
        sums = metric.christoffel(z, 2 * u - 3 * w, v), 2 * gamma - 3 * metric.christoffel(z, w, v)
        assert torch.allclose(*sums, rtol=1e-8, atol=10 * size)

    def test_the_christoffel_vector_is_that_of_differences_of_the_matrix(self):
        metric, z, u, v = self.metric(), self.points(4), self.vectors(4), self.vectors(4, seed=2)
        h = 1e-4
        steps = h * torch.eye(self.d, dtype=F64)
        slopes = (metric.matrix(z[:, None] + steps) - metric.matrix(z[:, None] - steps)) / (2 * h)  # (n, k, i, j)
        lowered = torch.einsum("nkij,nk,nj->ni", slopes, v, u) + torch.einsum("nkij,nk,nj->ni", slopes, u, v)
        lowered = 0.5 * (lowered - torch.einsum("nkij,ni,nj->nk", slopes, u, v))
        expected = torch.linalg.solve(metric.matrix(z), lowered)
        size = 1e-5 * (1 + expected.abs().max().item())
        assert torch.allclose(metric.christoffel(z, u, v), expected, rtol=1e-5, atol=size)

    @pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (0, 3)])
    def test_the_christoffel_vectors_of_a_batch_have_its_shape(self, batch):
        metric, z, v = self.metric(), self.points(*batch), self.vectors(*batch)
        assert metric.christoffel(z, v, v).shape == z.shape

    def test_the_christoffel_vector_of_a_point_is_what_it_is_in_a_batch(self):
        metric, z, u, v = self.metric(), self.points(4), self.vectors(4), self.vectors(4, seed=2)
        together = metric.christoffel(z, u, v)
        assert torch.allclose(metric.christoffel(z[1], u[1], v[1]), together[1], rtol=1e-9, atol=1e-10)
        assert torch.allclose(metric.christoffel(z[0], u, v)[0], together[0], rtol=1e-9, atol=1e-10)

    def test_an_integrator_can_ask_what_a_christoffel_vector_costs(self):
        metric = self.metric()
        metric.matrix(self.points(1))
        assert metric.christoffel_cost(self.d) >= 1
