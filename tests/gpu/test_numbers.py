"""Every transform, kernel and distortion on the GPU against the CPU in float64."""

import pytest
import torch
from composing import compose

from stn import (
    Affine,
    Affine3d,
    Attention,
    LinearForm,
    Projective,
    SpatialTransformer,
    ThinPlateSpline,
    Translation,
    regular_grid,
    sample,
)
from stn.experiments.datasets import distortions
from stn.experiments.datasets.voxel import Pose, render
from stn.sampler import gathered

TRANSFORMS = [Affine(), Attention(), Translation(0.5), Projective(), ThinPlateSpline(), ThinPlateSpline(2), Affine3d()]
KERNELS = ["bilinear", "nearest", "bicubic"]
SIZE = {2: (13, 17), 3: (5, 6, 7)}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}  # times the largest value
NAMES = ["r", "rts", "p", "e", "tc"]


def assert_near(ours, expected, dtype):
    ours, expected = ours.detach().cpu().double(), expected.detach().double()
    worst = (ours - expected).abs().max().item()
    assert worst <= TOLERANCE[dtype] * max(1.0, expected.abs().max().item()), f"off by {worst}"


def warp(transform, kernel, device, dtype, size):
    """V, and the gradients in u and theta, of a warp near the identity."""
    torch.manual_seed(0)
    u, weights = torch.rand(3, 2, *size, dtype=torch.float64), torch.rand(3, 2, *size, dtype=torch.float64)
    theta = torch.tensor(transform.identity, dtype=torch.float64) + 0.1 * torch.randn(
        3, transform.num_params, dtype=torch.float64
    )
    u, theta = (t.to(device, dtype).requires_grad_() for t in (u, theta))
    v = SpatialTransformer(torch.nn.Identity(), transform, None, kernel).warp(u, theta)
    return v, *torch.autograd.grad((v * weights.to(device, dtype)).sum(), (u, theta))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_warp_and_its_gradients_are_the_cpu_s(device, transform, kernel, dtype):
    if transform.dims == 3 and kernel == "bicubic":
        pytest.skip("bicubic is for images")
    if kernel == "nearest" and dtype == torch.float32:
        pytest.skip("a point between two pixels goes to either in float32")
    size = SIZE[transform.dims]
    ours = warp(transform, kernel, device, dtype, size)
    expected = warp(transform, kernel, "cpu", torch.float64, size)
    for one, other in zip(ours, expected, strict=True):
        assert_near(one, other, dtype)


def test_a_linear_form_is_the_cpu_s(device):
    torch.manual_seed(0)
    form, theta = LinearForm((5, 6), extra=2).double(), torch.rand(3, 10, dtype=torch.float64)
    target = regular_grid((5, 6), torch.float64)
    expected = form(theta, target)
    ours = form.to(device)(theta.to(device), regular_grid((5, 6), torch.float64, device))
    assert_near(ours, expected, torch.float64)


def test_the_gathers_of_a_deterministic_gpu_are_the_kernel(device):
    torch.manual_seed(0)
    u = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    source = 2.4 * torch.rand(2, 30, 2, dtype=torch.float64) - 1.2
    given = [t.to(device).requires_grad_() for t in (u, source)]
    expected = [t.clone().requires_grad_() for t in (u, source)]
    ours = gathered(given[0], given[1].unflatten(1, (5, 6)))
    theirs = sample(*expected, (5, 6))
    assert_near(ours, theirs, torch.float64)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), given), torch.autograd.grad(theirs.sum(), expected), strict=True
    ):
        assert_near(one, other, torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_distortion_is_the_cpu_s(device, name, dtype):
    config = compose("experiment=mnist_fcn", f"data/distortion={name}")[0]["data"]["distortion"]
    distortion, generator = distortions.build(config), torch.Generator().manual_seed(0)
    digits, index = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8, generator=generator), torch.arange(30)
    on_device = digits.to(device), index.to(device)
    if name == "tc":
        params = distortion.draw(30, generator, len(digits))
        ours = distortion.compose(*on_device, {key: value.to(device) for key, value in params.items()})
        assert torch.equal(ours.cpu(), distortion.compose(digits, index, params))
        return
    params = distortion.draw(30, generator, torch.float64)
    size = (distortion.canvas_px,) * 2
    expected = distortion.source(params)
    ours = distortion.source({key: value.to(device, dtype) for key, value in params.items()})
    near = expected.abs().amax(-1) < 2  # a projection's points far outside of the image lie anywhere
    assert_near(ours.cpu()[near], expected[near], dtype)
    if dtype == torch.float64:
        images = sample(on_device[0][on_device[1]][:, None].to(dtype) / 255, ours, size)
        assert_near(images, sample(digits[index][:, None].double() / 255, expected, size), dtype)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_device_draws_has_the_cpu_s_mean_and_spread(device, name):
    config = compose("experiment=mnist_fcn", f"data/distortion={name}")[0]["data"]["distortion"]
    distortion, n = distortions.build(config), 4000
    more = (60_000,) if name == "tc" else ()
    drawn = distortion.draw(n, torch.Generator(device).manual_seed(1), *more)
    expected = distortion.draw(n, torch.Generator().manual_seed(2), *more)
    for key, value in expected.items():
        value, ours = value.double().flatten(), drawn[key].cpu().double().flatten()
        error = value.std() / n**0.5 + 1e-12  # of a mean of n, at least; several values an image are more
        assert abs(ours.mean() - value.mean()) < 7 * error, key
        assert abs(ours.std() - value.std()) < 7 * error, key


def test_volumes_are_the_cpu_s(device):
    generator = torch.Generator().manual_seed(0)
    digits = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8, generator=generator)
    params = Pose(45.0, 28.0).draw(3, generator, torch.float64)
    ours = render(digits.to(device), {key: value.to(device) for key, value in params.items()}, 28.0, 20)
    assert_near(ours, render(digits, params, 28.0, 20), torch.float64)
