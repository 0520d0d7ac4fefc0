"""The distortions against albumentations, OpenCV and scipy with the same parameters; their ranges as measured."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from ranges import DISTORTIONS, RANGES
from scipy import stats
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from stn import sample
from stn.experiments.datasets.distortions import KINDS, build

GEOMETRIC = ["r", "rts", "p", "e"]
N = 20_000
# White noise up to the border: every wrong half pixel, sign or margin shows.
NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8))
# OpenCV 5 interpolates at the point itself, in float32; OpenCV 4 rounds it to 1/32 px, so by up to 1/64 px in x and
# in y, where neighbours in noise differ by up to 1.
CV2_ATOL = 1e-4 if int(cv2.__version__.split(".")[0]) >= 5 else 1 / 32
# The digit's square in OpenCV's pixels, where 0 is the centre of the first one; clockwise from the top left.
SQUARE = np.array([[-0.5, -0.5], [27.5, -0.5], [27.5, 27.5], [-0.5, 27.5]], np.float32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(name, n=N, dtype=torch.float64, **kwargs):
    kwargs |= {"num_digits": 10} if name == "tc" else {"dtype": dtype}
    return DISTORTIONS[name].draw(n, seeded(), **kwargs)


def warp(distortion, params, digits=NOISE):
    """digits, one under each draw, in [0, 1]; of a distortion or of its name."""
    distortion = DISTORTIONS.get(distortion, distortion)
    size = (distortion.canvas_px,) * 2
    source = distortion.source(params)
    return sample(digits[:, None].to(source.dtype) / 255, source, size)[:, 0].numpy()


def numbers(params):
    """Draws as plain numbers, one dict per image."""
    return [dict(zip(params, map(np.asarray, row), strict=True)) for row in zip(*params.values(), strict=True)]


def quad_of(scale, corners_px):
    return ((SQUARE - 13.5) * scale + 13.5 + corners_px).astype(np.float32)


def cv2_perspective(image, quad):
    return cv2.warpPerspective(image, cv2.getPerspectiveTransform(SQUARE, quad), (28, 28))


@pytest.fixture
def albumentations(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def test_importing_albumentations_asks_for_no_newer_one(albumentations):
    from albumentations import check_version

    assert check_version.opener is None  # what it would have asked with


# --- the same images as other libraries make from the same parameters


@pytest.mark.parametrize("name", ["r", "rts"])
def test_r_and_rts_are_the_affine_of_albumentations(name, albumentations):
    params = draw(name, len(NOISE))
    params["shift_px"] = params["shift_px"].round()  # albumentations moves by whole pixels
    margin = (DISTORTIONS[name].canvas_px - 28) // 2
    for image, v, p in zip(NOISE.numpy(), warp(name, params), numbers(params), strict=True):
        angle, scale, (x, y) = -p["angle_deg"], float(p["scale"]), p["shift_px"].astype(int)  # counter-clockwise there
        affine = albumentations.Affine(
            rotate=(angle, angle), scale=(scale, scale), translate_px={"x": (x, x), "y": (y, y)}, fit_output=False,
            interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT, fill=0, p=1,
        )  # fmt: skip
        expected = affine(image=np.pad(image / np.float32(255), margin))["image"]
        np.testing.assert_allclose(v, expected, atol=CV2_ATOL)


def test_rts_is_the_affine_of_opencv_at_fractions_of_a_pixel():
    params = draw("rts", len(NOISE))
    for image, v, p in zip(NOISE.numpy(), warp("rts", params), numbers(params), strict=True):
        matrix = cv2.getRotationMatrix2D((13.5, 13.5), -float(p["angle_deg"]), float(p["scale"]))
        matrix[:, 2] += 7 + p["shift_px"]  # the 28 px digit in the middle of 42 px
        np.testing.assert_allclose(v, cv2.warpAffine(image / np.float32(255), matrix, (42, 42)), atol=CV2_ATOL)


def test_p_is_opencv_s_perspective_of_the_moved_corners():
    params = draw("p", len(NOISE))
    for image, v, p in zip(NOISE.numpy(), warp("p", params), numbers(params), strict=True):
        quad = quad_of(**p)
        assert cv2.isContourConvex(quad)
        np.testing.assert_allclose(v, cv2_perspective(image / np.float32(255), quad), atol=CV2_ATOL)


def test_p_shows_all_of_a_quad_whose_horizon_crosses_the_canvas():
    corners_px = np.array([[5.7, 0.5], [3.3, -1.7], [-11.4, -11.1], [-3.1, -1.0]])
    quad = quad_of(0.78, corners_px)
    assert cv2.isContourConvex(quad)
    params = {"scale": torch.tensor([0.78]).double(), "corners_px": torch.tensor(corners_px)[None]}
    expected = cv2_perspective(NOISE[0].numpy() / np.float32(255), quad)
    # Far outside, beyond the horizon, OpenCV shows the square a second time: compare where it belongs.
    inside = cv2.fillConvexPoly(np.zeros((28, 28), np.uint8), np.round(quad).astype(int), 1).astype(bool)
    np.testing.assert_allclose(warp("p", params, NOISE[:1])[0][inside], expected[inside], atol=CV2_ATOL)


@pytest.mark.parametrize(("where", "line"), [("corners", [-0.5, 8.8333333333333333, 18.166666666666667, 27.5]),
                                             ("cells", [3.0, 10.0, 17.0, 24.0])])  # fmt: skip
def test_e_is_scipy_s_thin_plate_spline_over_16_points(where, line):
    def points(line):
        return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)  # x, y, row by row

    control, pixels = points(line), points(np.arange(28.0))
    params = draw("e", len(NOISE))
    distortion = replace(DISTORTIONS["e"], control=where)
    for image, v, p in zip(NOISE.numpy(), warp(distortion, params), numbers(params), strict=True):
        spline = RBFInterpolator(control, control + p["control_px"], kernel="thin_plate_spline")
        source = (spline(pixels) - 13.5) / p["scale"] + 13.5
        expected = map_coordinates(image / 255, source.T[::-1], order=1, mode="grid-constant")
        np.testing.assert_allclose(v.ravel(), expected, atol=1e-10)


PASTES = {
    "maximum": np.maximum,
    "sum": lambda under, crop: np.minimum(under.astype(int) + crop, 255).astype(np.uint8),
    "overwrite": lambda under, crop: crop,
}


@pytest.mark.parametrize("overlap", PASTES)
def test_tc_is_a_loop_of_pastes(overlap):
    rng, n = np.random.default_rng(1), 40
    digits = rng.integers(0, 256, (10, 28, 28), dtype=np.uint8)
    index = rng.integers(0, 10, n)
    params = draw("tc", n)
    tc = replace(DISTORTIONS["tc"], overlap=overlap)
    canvases = tc.compose(torch.from_numpy(digits), torch.from_numpy(index), params)
    for canvas, own, p in zip(canvases.numpy(), index, numbers(params), strict=True):
        expected = np.zeros((60, 60), np.uint8)
        x, y = p["place"]
        expected[y : y + 28, x : x + 28] = digits[own]
        others = np.roll(digits, -own - 1, axis=0)[:-1]
        assert len(p["patch_digit"]) == 6
        for other, (cx, cy), (x, y) in zip(p["patch_digit"], p["patch_crop"], p["patch_place"], strict=True):
            onto = expected[y : y + 6, x : x + 6]
            onto[:] = PASTES[overlap](onto, others[other, cy : cy + 6, cx : cx + 6])
        np.testing.assert_array_equal(canvas, expected)


# --- directions and places


def test_no_distortion_is_the_digit_itself():
    one = torch.ones(len(NOISE), dtype=torch.float64)
    params = {
        "r": {"angle_deg": 0 * one, "scale": one, "shift_px": torch.zeros(len(NOISE), 2).double()},
        "p": {"scale": one, "corners_px": torch.zeros(len(NOISE), 4, 2).double()},
        "e": {"scale": one, "control_px": torch.zeros(len(NOISE), 16, 2).double()},
    }
    for name in params:
        np.testing.assert_allclose(warp(name, params[name]), NOISE / 255, atol=1e-12, err_msg=name)


def test_a_positive_angle_turns_clockwise_on_the_screen():
    params = draw("r", len(NOISE)) | {"angle_deg": torch.full((len(NOISE),), 90.0).double()}
    np.testing.assert_allclose(warp("r", params), np.rot90(NOISE / 255, k=-1, axes=(1, 2)), atol=1e-12)


def test_a_positive_shift_moves_to_the_right_and_down():
    one = torch.ones(1, dtype=torch.float64)
    params = {"angle_deg": 0 * one, "scale": one, "shift_px": torch.tensor([[3.0, 5.0]]).double()}
    expected = np.zeros((42, 42))
    expected[12:40, 10:38] = (NOISE[0] / 255).numpy()
    np.testing.assert_allclose(warp("rts", params, NOISE[:1])[0], expected, atol=1e-12)


def test_the_square_of_rts_reaches_the_canvas_edges_and_never_leaves():
    params = draw("rts", 2000)
    params["angle_deg"] *= 0  # so that its extent can be read off rows and columns
    white = warp("rts", params, torch.full((2000, 28, 28), 255, dtype=torch.uint8)) >= 0.5  # 0.5 is the square's edge
    first = []
    for axis in (1, 2):
        line = white.any(axis)
        # as many pixel centres as the square's side holds, give or take one: none of it is cut off
        assert np.abs(line.sum(1) - 28 * params["scale"].numpy()).max() <= 1
        first.append(line.argmax(1))
        assert line[:, 0].any()
        assert line[:, -1].any()
    assert len(set(zip(*first, strict=True))) > 300  # x and y apart


def test_the_digit_of_tc_moves_by_whole_pixels_and_everywhere():
    digits = torch.cat([NOISE[:1].clamp(min=1), torch.zeros(9, 28, 28, dtype=torch.uint8)])  # black clutter
    canvases = DISTORTIONS["tc"].compose(digits, torch.zeros(2000, dtype=torch.int64), draw("tc", 2000)).numpy()
    x, y = ((canvases > 0).any(axis).argmax(1) for axis in (1, 2))
    for canvas, left, top in zip(canvases, x, y, strict=True):
        np.testing.assert_array_equal(canvas[top : top + 28, left : left + 28], digits[0])
        assert np.count_nonzero(canvas) == 28 * 28
    assert set(x) == set(y) == set(range(33))


def test_the_clutter_of_tc_is_of_any_other_digit_never_its_own():
    digits = torch.tensor([50, 100, 150, 200], dtype=torch.uint8)[:, None, None].expand(4, 28, 28).contiguous()
    params = DISTORTIONS["tc"].draw(4000, seeded(), num_digits=4)
    index = torch.arange(4000) % 4
    canvases = DISTORTIONS["tc"].compose(digits, index, params)
    for canvas, (x, y) in zip(canvases, params["place"], strict=True):
        canvas[y : y + 28, x : x + 28] = 0
    for own in range(4):
        others = {50, 100, 150, 200} - {50 + 50 * own}
        assert set(canvases[index == own].unique().tolist()) == {0, *others}


def dots(n=5):
    """Digits of one point of ink each, in the middle, and a TC of one crop with ink on them."""
    digits = torch.zeros(n, 28, 28, dtype=torch.uint8)
    digits[:, 14, 13] = 100 + torch.arange(n, dtype=torch.uint8)
    return digits, replace(DISTORTIONS["tc"], patches=1, blank=False)


def test_without_blank_every_crop_has_ink():
    digits, tc = dots()
    canvases = tc.apply(digits, torch.zeros(500, dtype=torch.int64), seeded())
    points = (canvases > 0).flatten(1).sum(1)
    assert points.max() == 2
    assert (points == 2).float().mean() > 0.99  # a crop may land on its digit's own point
    shown = (canvases * 255).round().unique().tolist()
    assert shown == [0.0, 100.0, 101.0, 102.0, 103.0, 104.0]


def test_without_blank_every_window_with_ink_is_as_likely():
    digits, tc = dots()
    others = digits[1:2].expand(18_000, 1, 28, 28)
    x, y = tc._inked_crop(others, seeded())[:, 0].unbind(1)
    counts = torch.bincount((y - 9) * 6 + x - 8, minlength=36)  # the windows that hold the point at (13, 14)
    assert (x.min(), x.max(), y.min(), y.max()) == (8, 13, 9, 14)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_blank_crops_are_allowed_unless_forbidden():
    digits, tc = dots()
    canvases = replace(tc, blank=True).apply(digits, torch.zeros(500, dtype=torch.int64), seeded())
    assert ((canvases > 0).flatten(1).sum(1) == 1).float().mean() > 0.8


# --- ranges


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("r", "angle_deg", stats.uniform(-90, 180)),
        ("rts", "angle_deg", stats.uniform(-45, 90)),
        ("rts", "scale", stats.uniform(0.7, 0.5)),
        ("p", "scale", stats.uniform(0.75, 0.25)),
        ("p", "corners_px", stats.norm(0, 3.54)),
        ("e", "scale", stats.uniform(0.75, 0.25)),
        ("e", "control_px", stats.norm(0, 1.5)),
    ],
)
def test_draws_follow_the_distribution_of_the_paper(name, key, expected):
    values = draw(name)[key].flatten().numpy()
    assert stats.kstest(values, expected.cdf).pvalue > 0.01
    assert values.std() == pytest.approx(expected.std(), rel=0.01)
    low, high = expected.support()
    assert low <= values.min()
    assert values.max() <= high


def test_the_place_of_rts_is_uniform_over_what_the_scale_leaves():
    params = draw("rts")
    room_px = (42 - 28 * params["scale"][:, None]) / 2
    assert stats.kstest((params["shift_px"] / room_px).flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01


def test_r_neither_scales_nor_moves():
    params = draw("r")
    assert (params["scale"] == 1).all()
    assert (params["shift_px"] == 0).all()


@pytest.mark.parametrize(
    ("key", "shape", "places"),
    [("place", (2,), 33), ("patch_digit", (6,), 9), ("patch_crop", (6, 2), 23), ("patch_place", (6, 2), 55)],
)
def test_every_place_of_tc_is_equally_likely(key, shape, places):
    values = draw("tc")[key]
    assert values.shape == (N, *shape)
    for column in values.flatten(1).T:
        counts = torch.bincount(column, minlength=places)
        assert len(counts) == places
        assert stats.chisquare(counts).pvalue > 1e-3  # 32 columns in all


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_numbers_of_a_draw_are_independent(name):
    columns = torch.cat([v.reshape(N, -1).double() for v in draw(name).values()], dim=1)
    columns = columns[:, columns.std(0) > 0].T.reshape(-1, N)  # R draws one number
    apart = np.atleast_2d(np.corrcoef(columns)) - np.eye(len(columns))
    assert np.abs(apart).max() < 5 / N**0.5


@pytest.mark.parametrize(("control", "low", "high"), [("corners", 0.0, 0.01), ("cells", 0.09, 0.15)])
def test_some_warps_of_e_fold_with_control_points_in_the_cells(control, low, high):
    distortion = replace(DISTORTIONS["e"], control=control)
    source = distortion.source(distortion.draw(2000, seeded(), torch.float64)).view(-1, 28, 28, 2)
    right, down = (source.diff(dim=axis)[:, :27, :27] for axis in (2, 1))
    determinant = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    assert low <= (determinant <= 0).flatten(1).any(1).double().mean() <= high


# --- `apply`, which is what training sees


@pytest.mark.parametrize("name", GEOMETRIC)
def test_apply_reads_the_digits_of_the_index_under_its_own_draws(name):
    index = torch.tensor([4, 0, 4, 1])
    images = DISTORTIONS[name].apply(NOISE, index, seeded(), torch.float64)
    np.testing.assert_array_equal(images[:, 0], warp(name, draw(name, 4), NOISE[index]))


@pytest.mark.parametrize("name", GEOMETRIC)
def test_float32_gives_the_image_of_float64(name):
    params = {key: value.float() for key, value in draw(name, 1000).items()}
    exact = {key: value.double() for key, value in params.items()}
    digits = NOISE[torch.arange(1000) % len(NOISE)]
    # A quadrilateral of P that is nearly a triangle is ill-conditioned: 2e-3 is the worst of 200,000.
    np.testing.assert_allclose(
        warp(name, params, digits), warp(name, exact, digits), atol=1e-2 if name == "p" else 2e-5
    )


@pytest.mark.parametrize("name", DISTORTIONS)
def test_pixels_stay_within_0_and_1_and_use_all_of_it(name):
    white = torch.full((4, 28, 28), 255, dtype=torch.uint8)
    images = DISTORTIONS[name].apply(white, torch.arange(1000) % 4, seeded())
    assert images.shape == (1000, 1, *(DISTORTIONS[name].canvas_px,) * 2)
    assert (images.min(), images.max()) == (0, 1)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_the_background_is_exactly_0(name):
    params = draw(name, 1000, dtype=torch.float32)
    images = warp(name, params, torch.full((1000, 28, 28), 255, dtype=torch.uint8))
    beyond = (DISTORTIONS[name].source(params).abs() > 1 + 1 / 28).any(-1).numpy()  # half a pixel off the digit's edge
    assert beyond.mean() > 0.05
    assert (images.reshape(1000, -1)[beyond] == 0).all()
    assert (images.reshape(1000, -1)[~beyond] > 0).mean() > 0.99


@pytest.mark.parametrize("name", DISTORTIONS)
def test_draws_are_fresh_and_follow_from_the_generator(name):
    index, generator = torch.zeros(8, dtype=torch.int64), seeded()
    first, second = (DISTORTIONS[name].apply(NOISE, index, generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first, DISTORTIONS[name].apply(NOISE, index, seeded()))


# --- ranges are configuration


def test_every_kind_of_distortion_has_a_file_of_ranges():
    assert set(RANGES) == set(KINDS)


@pytest.mark.parametrize(
    ("name", "key", "value", "drawn"),
    [
        ("r", "max_angle_deg", 10.0, lambda p: p["angle_deg"].abs().max()),
        ("p", "corner_std_px", 2.0, lambda p: p["corners_px"].std()),
        ("e", "control_std_px", 0.5, lambda p: p["control_px"].std()),
    ],
)
def test_a_range_of_the_config_is_the_range_of_the_draws(name, key, value, drawn):
    distortion = build(RANGES[name] | {key: value})
    assert distortion == replace(DISTORTIONS[name], **{key: value})
    assert drawn(distortion.draw(N, seeded())).item() == pytest.approx(value, rel=0.02)


def test_what_came_later_is_as_it_was_where_a_record_lacks_it():
    for name in ("e", "tc"):
        older = {key: value for key, value in RANGES[name].items() if key not in LATER}
        assert build(older) == build(RANGES[name] | ({"control": "corners"} if name == "e" else {}))


def test_more_and_larger_clutter_is_one_override():
    many = build(RANGES["tc"] | {"patches": 16, "patch_px": 9, "canvas_px": 84})
    assert many.apply(NOISE, torch.zeros(3, dtype=torch.int64), seeded()).shape == (3, 1, 84, 84)
    assert many.draw(2, seeded(), 10)["patch_digit"].shape == (2, 16)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("r", {"name": "rst"}, r"unknown data\.distortion\.name='rst': choose one of r, rts, p, e, tc"),
        ("r", {"name": ["r"]}, r"unknown data\.distortion\.name=\['r'\]"),
        ("p", {"corner_px": 5.0}, r"unknown key data\.distortion\.corner_px of p: it takes scale, corner_std_px, c"),
        ("p", {"corner_std_px": None}, r"data\.distortion\.corner_std_px=None has to be a number, 0 or more"),
        ("p", {"corner_std_px": -1.0}, r"data\.distortion\.corner_std_px=-1\.0 has"),
        ("r", {"max_angle_deg": math.nan}, r"data\.distortion\.max_angle_deg=nan has to be a number, 0 or more"),
        ("r", {"max_angle_deg": "90"}, r"data\.distortion\.max_angle_deg='90' has"),
        ("rts", {"scale": [1.2, 0.7]}, r"data\.distortion\.scale=\[1\.2, 0\.7\] has to be two numbers above 0"),
        ("rts", {"scale": 0.7}, r"data\.distortion\.scale=0\.7 has to be two numbers"),
        ("rts", {"scale": [0.7, math.nan]}, r"data\.distortion\.scale=\[0\.7, nan\] has"),
        ("rts", {"scale": [0.0, 1.0]}, r"data\.distortion\.scale=\[0\.0, 1\.0\] has"),
        ("tc", {"canvas_px": 27}, r"data\.distortion\.canvas_px=27 has to be a whole number, 28 or more"),
        ("tc", {"patches": 6.5}, r"data\.distortion\.patches=6\.5 has to be a whole number, 0 or more"),
        ("tc", {"patches": True}, r"data\.distortion\.patches=True has to be a whole number"),
        ("e", {"control": "edges"}, r"unknown data\.distortion\.control='edges': choose one of corners, cells"),
        ("tc", {"overlap": None}, r"unknown data\.distortion\.overlap=None: choose one of maximum, sum, overwrite"),
        ("tc", {"blank": 1}, r"data\.distortion\.blank=1 has to be true or false"),
        ("tc", {"patch_px": 29}, r"data\.distortion\.patch_px=29 has to be a whole number, 1 or more, up to 28"),
    ],
)  # fmt: skip
def test_ranges_that_cannot_be_drawn_from_are_one_clear_line(name, change, message):
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        build(RANGES[name] | change)


LATER = {"control", "overlap", "blank"}  # which the first records do not have


@pytest.mark.parametrize("name", RANGES)
def test_a_missing_range_is_named(name):
    for key in set(RANGES[name]) - {"name"} - LATER:
        with pytest.raises(ValueError, match=rf"^data\.distortion\.{key} is missing: {name} takes [^\n]*{key}[^\n]*$"):
            build({k: v for k, v in RANGES[name].items() if k != key})


def test_a_name_alone_is_told_how_to_choose_a_distortion():
    with pytest.raises(ValueError, match=r"^data\.distortion=rts is a name without ranges: write data/distortion=rts$"):
        build("rts")
