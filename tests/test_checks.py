import pytest
import torch

from pullback import _checks

nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (None, TypeError, "`z` is a NoneType: give a torch tensor of points"),
        ([[0.0]], TypeError, r"`z` is a list: .* torch.as_tensor\(z\)"),
        (torch.zeros(2, 2).numpy(), TypeError, "`z` is a ndarray"),
        (
            torch.zeros(2, 2, dtype=torch.long),
            ValueError,
            r"dtype int64: points are floating-point, .* use z.float\(\)",
        ),
        (torch.zeros(2, 2, dtype=torch.bool), ValueError, "dtype bool"),
        (torch.zeros(2, 2, dtype=torch.float16), ValueError, "dtype float16"),
        (torch.zeros(2, 2, dtype=torch.complex64), ValueError, "dtype complex64"),
        (torch.tensor(1.0), ValueError, r"shape \(\): points have shape \(..., d\)"),
        (torch.zeros(3, 0), ValueError, r"shape \(3, 0\): points have shape"),
        (torch.tensor([[0, 0], [nan, inf], [0, -inf]]), ValueError, r"NaN or infinity at 2 of 3 points \(first: 1\)"),
        (torch.tensor([[[0.0, 0.0], [nan, 0.0]]]), ValueError, "at 1 of 2 points"),
    ],
)
def test_what_is_no_point_is_refused_by_name(z, error, message):
    with pytest.raises(error, match=message):
        _checks.points(z)
    with pytest.raises(error, match="`start`"):
        _checks.points(z, "start")


def test_points_come_back_as_they_are():
    for z in (torch.zeros(2), torch.zeros(0, 2), torch.zeros(4, 3, 2, dtype=torch.float64, requires_grad=True)):
        assert _checks.points(z) is z
    not_finite = torch.tensor([nan, 0.0])
    assert _checks.points(not_finite, finite=False) is not_finite


def test_points_made_in_inference_mode_come_back_as_ordinary_ones():
    with torch.inference_mode():
        z = torch.ones(2)
        with pytest.raises(ValueError, match=r"`z` came in torch\.inference_mode"):
            _checks.points(z)
    checked = _checks.points(z)
    assert torch.equal(checked, z)
    assert checked.requires_grad_().exp().requires_grad


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.float64), r"`z` has dtype float32 but `y` has float64: use z.to\(y\)"),
        (torch.zeros(3, 2, device="meta"), "`z` has device cpu but `y` has meta"),
        (torch.zeros(3, 4), "`z` has latent dimension 2 but `y` has 4"),
    ],
)
def test_points_of_different_kinds_do_not_go_together(other, message):
    with pytest.raises(ValueError, match=message):
        _checks.same_kind(torch.zeros(3, 2), other, "z", "y")


@pytest.mark.parametrize(
    ("a", "b", "shape"), [((2,), (5, 2), (5, 2)), ((4, 1, 2), (3, 2), (4, 3, 2)), ((2,), (2,), (2,))]
)
def test_pairs_and_tangents_are_broadcast(a, b, shape):
    start, end = _checks.pairs(torch.zeros(a), torch.ones(b))
    assert start.shape == end.shape == shape
    z, u = _checks.tangents(torch.zeros(a), ("u", torch.ones(b)))
    assert z.shape == u.shape == shape
    assert (u == 1).all()


def test_pairs_that_do_not_fit_are_refused_with_both_shapes():
    message = r"`start` has shape \(5, 3\) but `end` has shape \(4, 3\): give the same .* point \(3,\)"
    with pytest.raises(ValueError, match=message):
        _checks.pairs(torch.zeros(5, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="`end` has dtype"):
        _checks.pairs(torch.zeros(5, 3), torch.zeros(5, 3, dtype=torch.int8))


def test_tangents_that_do_not_fit_are_refused_by_name():
    z = torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"`z` \(5, 3\), `u` \(4, 3\)"):
        _checks.tangents(z, ("u", torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="`v` has latent dimension 2 but `z` has 3"):
        _checks.tangents(z, ("u", z), ("v", torch.zeros(5, 2)))
    with pytest.raises(ValueError, match="`v` holds NaN"):
        _checks.tangents(z, ("u", z), ("v", z + nan))


@pytest.mark.parametrize("value", [0, -1, nan, -inf])
def test_a_number_that_is_not_positive_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"`tol` is .*: it must be positive"):
        _checks.positive(value, "tol")
    _checks.positive(1e-300, "tol")


def test_errors_say_what_came_what_is_wanted_and_what_to_do():
    z = torch.zeros(1, 3)
    texts = {
        _checks.rejected_points(z, TypeError("no")): ["(1, 3)", "latent dimension 3", "TypeError: no"],
        _checks.wrong_dimension(z, 2): ["latent dimension 3", "takes 2"],
        _checks.choose_output("dict", ["a", "b"]): ["a dict of 'a', 'b'", "output='a'"],
        _checks.choose_output("Normal", []): ["a Normal:", "output='mean'"],
        _checks.missing_output("c", "dict", ["a", "b"]): ["'c'", "a dict without it: it has 'a', 'b'"],
        _checks.not_a_batch((3, 5), 2): ["2 points", "(3, 5)", "first axis"],
        _checks.no_gradient(): ["detach", "argmax", "logits"],
        _checks.mixed_batch(0.125): ["1.2e-01", "decoder.eval()"],
        _checks.contradicting_derivatives(0.5): ["5.0e-01", "once_differentiable"],
        _checks.no_derivative(["one", "two", "one"]): ["cdist", "torch says: one; two"],
    }
    for error, parts in texts.items():
        assert isinstance(error, ValueError)
        assert all(part in str(error) for part in parts), error
    assert str(_checks.no_derivative(["one", "two", "one"])).endswith("torch says: one; two")


def test_named_warnings_can_be_caught_together():
    for warning in (_checks.DerivativeWarning, _checks.RankWarning, _checks.GeodesicWarning):
        assert issubclass(warning, _checks.PullbackWarning)
    assert issubclass(_checks.PullbackWarning, UserWarning)
