"""Sampling against eq. (3)-(7) in NumPy and against scipy; pixel centres against F.affine_grid."""

from unittest import mock

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from jaxtyping import config
from torch._subclasses.fake_tensor import FakeTensorMode

from stn import regular_grid, sample
from stn.sampler import gathered


def keys(t, a=-0.75):
    """The cubic convolution kernel of Keys (1981)."""
    t = abs(t)
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


# k(x - m) of eq. (3): eq. (5), eq. (4) and Keys
KERNELS = {
    "bilinear": lambda t: np.maximum(0, 1 - abs(t)),
    "nearest": lambda t: np.floor(t + 0.5) == 0,
    "bicubic": keys,
}
SLOPE = {  # of the bilinear kernel in x, eq. (7)
    "bilinear": lambda t: np.where(abs(t) >= 1, 0, np.where(t <= 0, 1, -1)),
    "nearest": lambda t: 0 * t,
}


def pixels(source, size):
    """Source points (N, d) in pixels, (..., y, x) as an array is indexed: the border pixels end at -1 and 1."""
    return ((source.detach().flip(-1) + 1) * torch.tensor(size) / 2 - 0.5).numpy()


@pytest.fixture
def points():
    """U (2, 3, 5, 4) and 6 source points each, inside and up to 1.5 pixels outside of the image, in float64."""
    torch.manual_seed(0)
    u, source = torch.randn(2, 3, 5, 4, dtype=torch.float64), 3 * torch.rand(2, 6, 2, dtype=torch.float64) - 1.5
    return u.requires_grad_(), source.requires_grad_()


def test_the_regular_grid_lists_pixel_centres_row_by_row_as_x_then_y():
    third = 2 / 3
    expected = [[-third, -0.5], [0, -0.5], [third, -0.5], [-third, 0.5], [0, 0.5], [third, 0.5]]
    torch.testing.assert_close(regular_grid((2, 3)), torch.tensor(expected))


@pytest.mark.parametrize("size", [(5, 7), (4, 6), (1, 3), (3, 4, 5)], ids=str)
def test_the_regular_grid_is_that_of_pytorch(size):
    identity = torch.eye(len(size), len(size) + 1)[None]
    expected = F.affine_grid(identity, [1, 1, *size], align_corners=False).flatten(1, -2)[0]
    torch.testing.assert_close(regular_grid(size), expected, atol=1e-6, rtol=0)


def test_a_grid_of_another_dtype_is_no_rounded_float32_grid():
    assert regular_grid((3, 3), torch.float64)[0, 0].item() == pytest.approx(-2 / 3, abs=1e-15)


def test_a_grid_first_asked_for_in_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        regular_grid((3, 13))  # a size that no other test asks for
    scale = torch.ones(1, requires_grad=True)
    (scale * regular_grid((3, 13))).sum().backward()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(5, 7), (4, 6), (6, 1)], ids=str)
def test_sampling_the_regular_grid_gives_u(kernel, size):
    u = torch.rand(2, 3, *size)
    v = sample(u, regular_grid(size).expand(2, -1, -1), size, kernel)
    torch.testing.assert_close(v, u, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_v_is_eq_3(kernel, points):
    u, source = points
    v, k = sample(u, source, (2, 3), kernel), KERNELS[kernel]
    for b, c, i in np.ndindex(2, 3, 6):
        y, x = pixels(source[b, i], (5, 4))
        expected = sum(u[b, c, n, m].item() * k(x - m) * k(y - n) for n, m in np.ndindex(5, 4))
        assert v[b, c].flatten()[i].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel", SLOPE)
def test_gradients_are_eq_6_and_eq_7(kernel, points):
    u, source = points
    dv, k, slope = np.random.default_rng(0).normal(size=(2, 3, 6)), KERNELS[kernel], SLOPE[kernel]
    du, dsource = torch.autograd.grad(sample(u, source, (2, 3), kernel).flatten(2), points, torch.tensor(dv))
    expected_du, expected_dsource = np.zeros(u.shape), np.zeros(source.shape)
    for b, c, i, n, m in np.ndindex(2, 3, 6, 5, 4):
        y, x = pixels(source[b, i], (5, 4))
        expected_du[b, c, n, m] += dv[b, c, i] * k(x - m) * k(y - n)
        slopes = np.array([slope(x - m) * k(y - n) * 4 / 2, k(x - m) * slope(y - n) * 5 / 2])  # 1 is W / 2, H / 2 px
        expected_dsource[b, i] += dv[b, c, i] * u[b, c, n, m].item() * slopes
    np.testing.assert_allclose(du, expected_du, atol=1e-12)
    np.testing.assert_allclose(dsource, expected_dsource, atol=1e-12)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_gradients_are_those_of_finite_differences(kernel, points):
    assert torch.autograd.gradcheck(lambda u, source: sample(u, source, (2, 3), kernel), points)


def test_gradients_in_3d_are_those_of_finite_differences():
    torch.manual_seed(0)
    u = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    source = (2.6 * torch.rand(1, 8, 3, dtype=torch.float64) - 1.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, source: sample(u, source, (2, 2, 2)), (u, source))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize("side", [2, 8, 256])  # with edges that float32 holds exactly
def test_nearest_rounds_a_half_up_as_eq_4_does(side, dtype):
    u = torch.arange(1, side + 1).to(dtype).expand(1, 1, side, side)
    edges = torch.arange(side + 1, dtype=torch.float64) * 2 / side - 1  # every edge between two pixels
    v = sample(u, torch.stack([edges, torch.zeros_like(edges)], dim=1)[None].float(), (1, side + 1), "nearest")
    x = ((edges.numpy() + 1) * side - 1) / 2
    expected = [KERNELS["nearest"](at - np.arange(side)) @ u[0, 0, 0].numpy() for at in x]
    assert v.flatten().tolist() == expected


@pytest.mark.parametrize(("kernel", "order"), [("bilinear", 1), ("nearest", 0)])
def test_volumes_are_sampled_as_scipy_does(kernel, order):
    torch.manual_seed(0)
    u = torch.rand(2, 1, 4, 5, 6, dtype=torch.float64)
    source = 2.6 * torch.rand(2, 24, 3, dtype=torch.float64) - 1.3
    v = sample(u, source, (2, 3, 4), kernel)
    for b in range(2):
        at = pixels(source[b], (4, 5, 6)).T
        expected = scipy.ndimage.map_coordinates(u[b, 0].numpy(), at, order=order, mode="grid-constant", cval=0)
        np.testing.assert_allclose(v[b, 0].flatten(), expected, atol=1e-12)


@pytest.mark.parametrize("side", [8, 16])
def test_a_window_of_scale_one_half_is_the_middle_half(side):
    u, half = torch.rand(1, 1, side, side), (side // 2, side // 2)
    v = sample(u, 0.5 * regular_grid(half)[None], half)
    torch.testing.assert_close(v, u[..., side // 4 : -side // 4, side // 4 : -side // 4])


def test_an_image_averaged_by_2_keeps_its_coordinates():
    ramp = regular_grid((16, 16)).T.view(1, 2, 16, 16)  # its value is its coordinate
    source = 1.7 * torch.rand(1, 12, 2) - 0.85
    torch.testing.assert_close(sample(F.avg_pool2d(ramp, 2), source, (3, 4)), sample(ramp, source, (3, 4)))
    torch.testing.assert_close(sample(ramp, source, (3, 4)).flatten(2).mT, source)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_v_has_the_dtype_of_u_and_is_computed_in_float32_at_least(dtype):
    u, source = torch.rand(1, 1, 40, 40).to(dtype), torch.rand(1, 6, 2, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = sample(u, source, (2, 3))
    assert v.dtype == dtype
    torch.testing.assert_close(v, sample(u.double(), source, (2, 3)).to(dtype))


U, SOURCE = torch.zeros(2, 1, 4, 5), torch.zeros(2, 6, 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((U, SOURCE, (2, 3), "cubic"), r"unknown kernel 'cubic': choose one of bilinear, nearest, bicubic$"),
        ((U[0], SOURCE, (2, 3)), r"got u \(1, 4, 5\), source \(2, 6, 2\), size \(2, 3\)$"),
        ((U, SOURCE[0], (2, 3)), r"got u \(2, 1, 4, 5\), source \(6, 2\), size \(2, 3\)$"),
        ((U, torch.zeros(2, 6, 3), (2, 3)), r"got u \(2, 1, 4, 5\), source \(2, 6, 3\), size \(2, 3\)$"),
        ((U, SOURCE, (1, 2, 3)), r"got u \(2, 1, 4, 5\), source \(2, 6, 2\), size \(1, 2, 3\)$"),
        ((U, SOURCE, (2, 2)), r"u \(2, 1, 4, 5\) and size \(2, 2\) need source points \(2, 4, 2\), got \(2, 6, 2\)$"),
        ((U, SOURCE[:1], (2, 3)), r"need source points \(2, 6, 2\), got \(1, 6, 2\)$"),
        ((U[:, :, None], torch.zeros(2, 6, 3), (1, 2, 3), "bicubic"), r"'bicubic' is for images, .*\(2, 1, 1, 4, 5\)"),
    ],
)
def test_input_that_does_not_fit_is_named_in_one_line(args, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in production, where signatures are not checked
    with pytest.raises(ValueError, match=message) as error:
        sample(*args)
    assert "\n" not in str(error.value)


def test_four_gathers_are_the_bilinear_kernel_and_its_gradients():
    torch.manual_seed(0)
    u = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    grid = (3 * torch.rand(2, 6, 7, 2, dtype=torch.float64) - 1.5).requires_grad_()
    weights = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    theirs = F.grid_sample(u, grid, align_corners=False)
    ours = gathered(u, grid)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad((v * weights).sum(), (u, grid)) for v in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_gather_at_no_number_shows_no_number():
    v = gathered(torch.rand(1, 1, 5, 4), torch.full((1, 2, 2, 2), torch.nan))
    assert v.isnan().all()


def test_only_a_deterministic_gpu_gathers():
    with FakeTensorMode():
        u, source = torch.rand(1, 1, 5, 4, device="cuda"), torch.zeros(1, 20, 2, device="cuda")
        for on in (True, False):
            torch.use_deterministic_algorithms(on)
            try:
                with mock.patch("stn.sampler.gathered", side_effect=gathered) as used:
                    assert sample(u, source, (5, 4)).shape == (1, 1, 5, 4)
            finally:
                torch.use_deterministic_algorithms(False)
            assert used.called == on
