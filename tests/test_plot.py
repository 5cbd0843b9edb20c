import math

import matplotlib
import numpy as np
import pytest
import torch

from pullback import plot
from pullback.curves import Curve
from pullback.geodesics import Solution, Status
from pullback.metrics import Pullback

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    from matplotlib import pyplot

    yield
    pyplot.close("all")


def exponential(z):
    """Magnifies the plane by exp(z_1) in the first direction: log volume z_1."""
    return torch.stack([z[:, 0].exp(), z[:, 1]], -1)


def solution(nodes, converged):
    n = len(nodes)
    codes = torch.tensor([(Status.CONVERGED if yes else Status.STALLED).code for yes in converged])
    ones = torch.ones(n, dtype=torch.float64)
    return Solution(Curve(nodes), ones, ones, ones, codes, torch.ones(n), torch.ones(n))


# magnification


def test_the_map_shows_the_log_volume_at_the_centers_of_its_cells_bottom_row_first():
    # log volume of (exp(x), exp(2 y)) is x + 2 y + log 2
    metric = Pullback(lambda z: torch.stack([z[:, 0].exp(), (2 * z[:, 1]).exp()], -1))
    codes = torch.zeros(1, 2, dtype=torch.float64)
    ax = plot.magnification(metric, codes=codes, bounds=((0, 2), (0, 1)), resolution=4)
    values = ax.images[0].get_array()
    x, y = np.array([0.25, 0.75, 1.25, 1.75]), np.array([0.25, 0.75])
    np.testing.assert_allclose(values, x[None] + 2 * y[:, None] + math.log(2), rtol=1e-12)
    assert ax.images[0].get_extent() == [0, 2, 0, 1]
    assert ax.images[0].origin == "lower"


def test_the_map_covers_the_codes_and_15_percent_more_on_every_side():
    codes = np.array([[0.0, 10.0], [2.0, 11.0], [1.0, 10.5]])
    ax = plot.magnification(Pullback(exponential), codes=codes, resolution=4)
    np.testing.assert_allclose(ax.get_xlim(), (-0.3, 2.3))
    np.testing.assert_allclose(ax.get_ylim(), (9.85, 11.15))


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"codes": np.array([[0.0, 0.0], [1.0, 1.0]])}, torch.float64),
        ({"codes": np.array([[0, 0], [1, 1]], dtype=np.float32)}, torch.float32),
        ({"codes": torch.tensor([[0, 0], [1, 1]])}, torch.float32),
        ({"bounds": np.array([[0.0, 1.0], [0.0, 1.0]])}, torch.float64),
        ({"bounds": ((np.float64(0), np.float64(1)), (0, 1))}, torch.float64),
        ({"bounds": ((0.0, 1.0), (0.0, 1.0))}, torch.float32),
    ],
)
def test_a_function_without_parameters_is_evaluated_in_the_dtype_of_codes_or_bounds(settings, dtype):
    seen = set()

    def noted(z):
        seen.add(z.dtype)
        return exponential(z)

    plot.magnification(Pullback(noted), resolution=4, **settings)
    assert seen == {dtype}


def test_a_single_code_has_a_map_around_it():
    ax = plot.magnification(Pullback(exponential), codes=torch.ones(1, 2), resolution=4)
    assert ax.get_xlim()[0] < 1 < ax.get_xlim()[1]


def test_axes_are_labeled_with_equal_aspect_and_a_color_bar_with_unit():
    ax = plot.magnification(Pullback(exponential), bounds=((0, 1), (0, 1)), resolution=4)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_aspect()) == ("$z_1$", "$z_2$", 1.0)
    bar = ax.images[0].colorbar
    assert bar is not None
    assert "log volume" in bar.ax.get_ylabel()
    assert "[nats]" in bar.ax.get_ylabel()


def test_colors_run_over_the_values_among_the_codes_and_the_bar_says_that_there_are_others():
    # codes between 0 and 1, a map from -10 to 10: the rest must not flatten what happens among the codes
    codes = np.random.default_rng(0).uniform(0, 1, (500, 2))
    ax = plot.magnification(Pullback(exponential), codes=codes, bounds=((-10, 10), (-10, 10)), resolution=200)
    low, high = ax.images[0].get_clim()
    assert -0.1 < low < 0.2
    assert 1.0 < high < 1.6
    assert ax.images[0].colorbar.extend == "both"


def test_a_flat_metric_has_one_color_in_the_middle_of_its_bar():
    ax = plot.magnification(Pullback(torch.nn.Linear(2, 3)), bounds=((0, 1), (0, 1)), resolution=5)
    low, high = ax.images[0].get_clim()
    value = ax.images[0].get_array()[0, 0]
    assert high - low > 0.9  # rounding errors are not magnified
    assert abs(value - (low + high) / 2) < 1e-3
    assert ax.images[0].colorbar.extend == "neither"


def test_singular_points_take_the_lowest_color_and_stay_minus_infinity_in_the_numbers():
    metric = Pullback(lambda z: z.relu())
    ax = plot.magnification(metric, bounds=((-1, 1), (-1, 1)), resolution=4)
    image = ax.images[0]
    assert np.isneginf(np.asarray(image.get_array())[0, 0])
    np.testing.assert_allclose(image.to_rgba(image.get_array())[0, 0], image.get_cmap()(0.0))


def test_a_metric_that_is_singular_everywhere_is_refused():
    with pytest.raises(ValueError, match="constant in a direction"):
        plot.magnification(Pullback(lambda z: z[:, :1]), bounds=((0, 1), (0, 1)), resolution=4)


def test_each_class_has_its_color_and_its_name_in_the_legend():
    codes = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    ax = plot.magnification(Pullback(exponential), codes=codes, labels=[7, 3, 7, 3], resolution=4)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["3", "7"]
    three, seven = ax.collections
    np.testing.assert_allclose(three.get_offsets(), codes[[1, 3]])
    np.testing.assert_allclose(seven.get_offsets(), codes[[0, 2]])
    assert three.get_facecolor().tolist() != seven.get_facecolor().tolist()


def test_the_map_works_in_the_dtype_of_the_decoder_whatever_the_codes_have():
    for dtype in (torch.float32, torch.float64):  # a layer rejects points of the other
        decoder = torch.nn.Linear(2, 3, dtype=dtype)
        for codes in (np.zeros((2, 2)), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.float64)):
            assert plot.magnification(Pullback(decoder), codes=codes, resolution=3).images


def test_a_map_on_given_axes_returns_these():
    from matplotlib.figure import Figure

    given = Figure().subplots()
    assert plot.magnification(Pullback(exponential), bounds=((0, 1), (0, 1)), resolution=3, ax=given) is given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give `codes`, or `bounds="),
        ({"codes": np.zeros((4, 3))}, r"`codes` has shape \(4, 3\)"),
        ({"codes": np.zeros((0, 2))}, r"`codes` has shape \(0, 2\)"),
        ({"codes": np.array([[0.0, np.nan]])}, "not finite"),
        ({"codes": np.zeros((4, 2)), "labels": [1, 2]}, "one label a code"),
        ({"labels": [1, 2], "bounds": ((0, 1), (0, 1))}, "one label a code"),
        ({"bounds": ((1, 0), (0, 1))}, "left < right"),
        ({"bounds": (0, 1)}, "left < right"),
        ({"bounds": ((0, 1), (0, 1)), "resolution": 0}, "at least 1"),
    ],
)
def test_input_that_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.magnification(Pullback(exponential), **{"resolution": 4, **arguments})


# geodesics


def test_curves_and_straight_lines_are_drawn_between_the_same_ends():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    nodes = torch.stack([torch.stack([t, k * t * (1 - t)], -1) for k in (1, 2)])  # parabolas: splines are exact
    ax = plot.geodesics(solution(nodes, [True, True]))
    lines, curves = (next(c for c in ax.collections if c.get_label() == name) for name in ("straight line", "geodesic"))
    np.testing.assert_allclose(lines.get_segments(), [[[0, 0], [1, 0]]] * 2, atol=1e-12)
    for k, segment in enumerate(curves.get_segments(), 1):
        np.testing.assert_allclose(segment[:, 1], k * segment[:, 0] * (1 - segment[:, 0]), atol=1e-12)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["straight line", "geodesic"]


def test_a_curve_that_did_not_converge_is_not_called_a_geodesic():
    nodes = torch.rand(3, 5, 2, dtype=torch.float64)
    ax = plot.geodesics(solution(nodes, [True, False, True]), straight=False)
    n_curves = {c.get_label(): len(c.get_segments()) for c in ax.collections if hasattr(c, "get_segments")}
    assert n_curves == {"geodesic": 2, "not converged": 1}


def test_geodesics_over_a_map_keep_its_limits_and_join_its_legend():
    metric = Pullback(exponential)
    ax = plot.magnification(metric, codes=np.zeros((1, 2)), labels=["a"], bounds=((0, 2), (0, 1)), resolution=4)
    nodes = torch.tensor([[[0.5, 0.5], [2.5, 0.5]]], dtype=torch.float64)  # leaves the map
    assert plot.geodesics(solution(nodes, [True]), ax=ax) is ax
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 2), (0, 1))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "straight line", "geodesic"]


def test_no_curves_at_all_are_an_empty_picture():
    ax = plot.geodesics(solution(torch.rand(0, 4, 2), []))
    assert ax.get_legend() is None


def test_curves_in_three_dimensions_are_refused():
    with pytest.raises(ValueError, match="3 dimensions"):
        plot.geodesics(solution(torch.rand(1, 4, 3), [True]))


# interpolation


def frames(z):
    """A frame (2, 3) whose first pixel is z_1 and whose others are z_2."""
    return torch.cat([z[:, :1], z[:, 1:].expand(-1, 5)], -1).reshape(-1, 2, 3)


def test_each_curve_is_a_row_of_frames_at_equal_steps_of_its_parameter():
    start, end = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ax = plot.interpolation(frames, Curve.straight(start, end), n=5)
    mosaic = np.asarray(ax.images[0].get_array())
    assert mosaic.shape == (2 * 3 - 1, 5 * 4 - 1)  # one pixel between frames
    np.testing.assert_allclose(mosaic[0, ::4], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    np.testing.assert_allclose(mosaic[4, 1::4], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    assert np.isnan(mosaic[2]).all()
    assert np.isnan(mosaic[:, 3]).all()


def test_rows_carry_the_names_of_their_curves():
    line = Curve.straight(torch.zeros(2), torch.ones(2))
    ax = plot.interpolation(frames, {"one": line, "two": line}, n=3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "two"]


@pytest.mark.parametrize(
    ("decode", "shape"),
    [
        (lambda z: frames(z).flatten(1), (2, 3)),
        (lambda z: frames(z)[:, None], None),
        (lambda z: frames(z)[..., None], (2, 3)),
    ],
    ids=["flat", "one channel first", "one channel last"],
)
def test_gray_frames_come_in_any_layout(decode, shape):
    line = Curve.straight(torch.zeros(2), torch.ones(2))
    expected = plot.interpolation(frames, line, n=3).images[0].get_array()
    np.testing.assert_allclose(plot.interpolation(decode, line, n=3, shape=shape).images[0].get_array(), expected)


@pytest.mark.parametrize("axis", [1, -1])
def test_colored_frames_have_their_channels_first_or_last(axis, caplog):
    line = Curve.straight(torch.zeros(2), torch.ones(2))
    ax = plot.interpolation(lambda z: torch.stack([frames(z), 0 * frames(z), 1 + frames(z)], axis), line, n=3)
    mosaic = np.asarray(ax.images[0].get_array())
    assert mosaic.shape == (2, 11, 3)
    np.testing.assert_allclose(mosaic[0, ::4], [[0, 0, 1], [0.5, 0, 1], [1, 0, 1]], atol=1e-6)  # clipped to [0, 1]
    np.testing.assert_allclose(mosaic[:, 3], 1)
    assert caplog.messages == []


def test_frames_that_are_no_images_are_refused():
    line = Curve.straight(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"give `shape=\(h, w\)`"):
        plot.interpolation(lambda z: frames(z).flatten(1), line)
    with pytest.raises(ValueError, match="6 entries"):
        plot.interpolation(frames, line, shape=(4, 4))


def test_drawing_leaves_the_state_of_the_caller_alone():
    decoder = torch.nn.Linear(2, 6)
    line = Curve.straight(torch.zeros(2), torch.ones(2))
    before = torch.get_rng_state()
    plot.interpolation(decoder, line, n=3, shape=(2, 3))
    plot.magnification(Pullback(decoder), bounds=((0, 1), (0, 1)), resolution=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in decoder.parameters())
