"""Every transform against a matrix product, scipy's warps or scipy's thin plate spline, and its gradients."""

from copy import deepcopy

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import torch
from jaxtyping import config

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

# Every transform, with the size of an output: a new one is one more line.
every_transform = pytest.mark.parametrize(
    ("transform", "size"),
    [
        pytest.param(Affine(), (5, 6), id="Affine"),
        pytest.param(Attention(), (5, 6), id="Attention"),
        pytest.param(Translation(), (5, 6), id="Translation"),
        pytest.param(Projective(), (5, 6), id="Projective"),
        pytest.param(ThinPlateSpline(), (5, 6), id="ThinPlateSpline"),
        pytest.param(ThinPlateSpline(k=2), (6, 5), id="ThinPlateSpline-2"),
        pytest.param(LinearForm((5, 6), extra=2), (5, 6), id="LinearForm"),
        pytest.param(Affine3d(), (3, 4, 5), id="Affine3d"),
    ],
)

A, B, C, D, E, F, G, H = 0.8, 0.3, 0.1, -0.2, 0.7, -0.15, 0.2, -0.25  # of a projective map, none of them special
# theta and the matrix that it stands for, as the paper writes it
MATRICES = [
    pytest.param(Affine(), [A, B, C, D, E, F], [[A, B, C], [D, E, F], [0, 0, 1]], id="Affine"),
    pytest.param(Attention(), [A, B, C], [[A, 0, B], [0, A, C], [0, 0, 1]], id="Attention"),
    pytest.param(Translation(), [B, C], [[1, 0, B], [0, 1, C], [0, 0, 1]], id="Translation"),
    pytest.param(Translation(scale=0.5), [B, C], [[0.5, 0, B], [0, 0.5, C], [0, 0, 1]], id="Translation-0.5"),
    pytest.param(Projective(), [A, B, C, D, E, F, G, H], [[A, B, C], [D, E, F], [G, H, 1]], id="Projective"),
    pytest.param(
        Affine3d(),
        [A, B, C, D, E, F, G, H, 0.6, 0.5, 0.4, 0.9],
        [[A, B, C, D], [E, F, G, H], [0.6, 0.5, 0.4, 0.9], [0, 0, 0, 1]],
        id="Affine3d",
    ),
]


def near_identity(transform, dtype=torch.float64):
    """Two thetas around the identity."""
    torch.manual_seed(0)
    return torch.tensor(transform.identity, dtype=dtype) + 0.1 * torch.randn(2, transform.num_params, dtype=dtype)


@every_transform
def test_the_identity_gives_the_regular_grid(transform, size):
    target = regular_grid(size)
    source = transform(torch.tensor([transform.identity]), target)
    tolerance = 1e-6 if isinstance(transform, ThinPlateSpline) else 0
    torch.testing.assert_close(source, target[None], atol=tolerance, rtol=0)


@every_transform
def test_sampling_at_the_identity_gives_u(transform, size):
    u = torch.rand(2, 3, *size)
    source = transform(torch.tensor([transform.identity]).expand(2, -1), regular_grid(size))
    torch.testing.assert_close(sample(u, source, size), u, atol=1e-5, rtol=0)


@every_transform
def test_gradients_in_theta_are_those_of_finite_differences(transform, size):
    theta, target = near_identity(transform).requires_grad_(), regular_grid(size, torch.float64)
    assert torch.autograd.gradcheck(lambda theta: deepcopy(transform).double()(theta, target), theta)


@every_transform
def test_autocast_leaves_the_source_points_as_they_are(transform, size):
    theta, target = near_identity(transform, torch.float32), regular_grid(size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        source = transform(theta, target)
    assert source.dtype == torch.float32
    torch.testing.assert_close(source, transform(theta, target), atol=0, rtol=0)


@every_transform
def test_float64_after_float32_agrees_with_it(transform, size):
    theta = near_identity(transform)
    single = transform(theta.float(), regular_grid(size))
    source = deepcopy(transform).double()(theta, regular_grid(size, torch.float64))
    torch.testing.assert_close(source, single.double(), atol=1e-6, rtol=0)


@every_transform
def test_a_theta_that_is_no_number_shows(transform, size):
    theta = torch.full((1, transform.num_params), torch.nan)
    assert transform(theta, regular_grid(size)).isnan().all()


@every_transform
def test_an_empty_batch_gives_an_empty_batch(transform, size):
    target = regular_grid(size)
    assert transform(torch.zeros(0, transform.num_params), target).shape == (0, *target.shape)


@every_transform
def test_shapes_that_do_not_fit_are_named_in_one_line(transform, size, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in production, where signatures are not checked
    name, p, d = type(transform).__name__, transform.num_params, transform.dims
    theta, target = torch.zeros(2, p), regular_grid(size)
    with pytest.raises(ValueError, match=rf"^{name} takes theta \(B, {p}\), got theta \(2, {p + 1}\)$"):
        transform(torch.zeros(2, p + 1), target)
    with pytest.raises(ValueError, match=rf"^{name} takes theta \(B, {p}\), got theta \({p},\)$"):
        transform(theta[0], target)
    with pytest.raises(ValueError, match=rf"^{name} takes target \(N, {d}\), got target \({len(target)}, 1\)$"):
        transform(theta, target[:, :1])


@pytest.mark.parametrize(("transform", "theta", "matrix"), MATRICES)
def test_the_source_point_is_the_matrix_times_the_target_point(transform, theta, matrix):
    target = regular_grid((3, 4, 5)[-transform.dims :], torch.float64)
    source = transform(torch.tensor([transform.identity, theta], dtype=torch.float64), target)[1]
    for got, point in zip(source, target, strict=True):
        *expected, z = np.array(matrix) @ [*point, 1]
        np.testing.assert_allclose(got, np.array(expected) / z, atol=1e-14)


def to_pixels(size):
    """The matrix from (x, y, ...) in [-1, 1] to pixels, of which the first and the last end at -1 and 1."""
    sides = np.array(size[::-1])
    return np.block([[np.diag(sides / 2), (sides[:, None] - 1) / 2], [np.zeros(len(size)), 1]])


@pytest.mark.parametrize(("transform", "theta", "matrix"), MATRICES)
def test_a_warp_is_that_of_scipy_with_the_matrix_in_pixels(transform, theta, matrix):
    in_size, out_size = (8, 16, 21)[-transform.dims :], (5, 11, 14)[-transform.dims :]
    u, theta = torch.rand(in_size, dtype=torch.float64), torch.tensor([theta], dtype=torch.float64)
    v = SpatialTransformer(torch.nn.Identity(), transform, out_size).warp(u[None, None], theta)[0, 0]
    in_pixels = to_pixels(in_size) @ matrix @ np.linalg.inv(to_pixels(out_size))

    def source(index):
        *point, z = in_pixels @ [*index[::-1], 1]
        return tuple(np.array(point[::-1]) / z)

    expected = scipy.ndimage.geometric_transform(u.numpy(), source, out_size, order=1, mode="grid-constant", cval=0)
    np.testing.assert_allclose(v, expected, atol=1e-12)


def test_positive_tx_shows_what_lies_to_the_right():
    u = torch.rand(1, 1, 5, 8)
    v = sample(u, Attention()(torch.tensor([[1, 2 / 8, 0]]), regular_grid((5, 8))), (5, 8))  # by one pixel of 8
    torch.testing.assert_close(v[..., :-1], u[..., 1:])
    torch.testing.assert_close(v[..., -1], torch.zeros(1, 1, 5))


def test_positive_ty_shows_what_lies_below():
    u = torch.rand(1, 1, 5, 8)
    v = sample(u, Attention()(torch.tensor([[1, 0, 2 / 5]]), regular_grid((5, 8))), (5, 8))  # by one pixel of 5
    torch.testing.assert_close(v[..., :-1, :], u[..., 1:, :])
    torch.testing.assert_close(v[..., -1, :], torch.zeros(1, 1, 8))


def test_a_scale_below_1_zooms_in():
    u = torch.zeros(1, 1, 8, 8)
    u[..., 2:6, 2:6] = 1
    v = sample(u, Attention()(torch.tensor([[0.5, 0, 0]]), regular_grid((8, 8))), (8, 8))
    assert v[..., 1:-1, 1:-1].min() == 1  # the square in the middle fills the image, but for the blur of its edge


def test_points_behind_the_camera_show_0_and_have_no_gradient():
    target = regular_grid((4, 8))  # x in -7/8, -5/8, ..., 7/8
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 2, 0]], requires_grad=True)  # Z = 1 + 2 x
    v = sample(torch.ones(1, 1, 4, 8), Projective()(theta, target), (4, 8))
    assert (v[..., :2] == 0).all()
    assert (v[..., 3:] > 0).all()
    behind = target[:, 0] < -0.5
    (gradient,) = torch.autograd.grad(Projective()(theta, target)[:, behind].sum(), theta)
    assert (gradient == 0).all()


@pytest.mark.parametrize("z", [0, 1e-15, -1e-15, 1e-6, -1e-6, 1e-2])
def test_points_and_gradients_are_finite_where_z_is_nearly_0(z):
    target = torch.tensor([[-1, 0.5], [0.25, -1]], dtype=torch.float64)
    theta = torch.tensor([[1, 0, 0, 0, 1, 0, 1 - z, 0]], dtype=torch.float64, requires_grad=True)  # Z = z where x = -1
    source = Projective()(theta, target)
    v = sample(torch.rand(1, 1, 8, 8, dtype=torch.float64), source, (1, 2))
    (gradient,) = torch.autograd.grad(source.sum() + v.sum(), theta)
    assert source.isfinite().all()
    assert v.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_control_points_are_a_regular_grid_from_corner_to_corner(k):
    line = np.linspace(-1, 1, k)
    expected = [(x, y) for y in line for x in line]
    assert ThinPlateSpline(k).num_params == 2 * k * k
    np.testing.assert_allclose(np.reshape(ThinPlateSpline(k).identity, (-1, 2)), expected)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_thin_plate_spline_is_that_of_scipy(k):
    transform, target = ThinPlateSpline(k), regular_grid((6, 7), torch.float64)
    theta = near_identity(transform)
    control = np.reshape(transform.identity, (-1, 2))
    for source, values in zip(transform(theta, target), theta.view(2, -1, 2), strict=True):
        spline = scipy.interpolate.RBFInterpolator(control, values.numpy(), kernel="thin_plate_spline")
        np.testing.assert_allclose(source, spline(target.numpy()), atol=1e-12)


def test_a_thin_plate_spline_goes_through_its_control_points():
    transform = ThinPlateSpline()
    theta = near_identity(transform)
    source = transform(theta, torch.tensor(transform.identity, dtype=torch.float64).view(-1, 2))
    torch.testing.assert_close(source, theta.view(2, 16, 2), atol=1e-12, rtol=0)


def test_a_thin_plate_spline_reproduces_affine_maps():
    affine, target = torch.tensor([[A, B, C, D, E, F]], dtype=torch.float64), regular_grid((6, 7), torch.float64)
    control = torch.tensor(ThinPlateSpline().identity, dtype=torch.float64).view(-1, 2)
    theta = Affine()(affine, control).reshape(1, -1)
    torch.testing.assert_close(ThinPlateSpline()(theta, target), Affine()(affine, target), atol=1e-12, rtol=0)


def test_one_thin_plate_spline_serves_outputs_of_several_sizes():
    transform = ThinPlateSpline()
    theta = near_identity(transform)
    for size in [(6, 7), (7, 6), (3, 3), (6, 7)]:
        target = regular_grid(size, torch.float64)
        torch.testing.assert_close(transform(theta, target), ThinPlateSpline()(theta, target), atol=0, rtol=0)


def test_a_spline_first_used_in_inference_mode_can_be_trained():
    transform, target = ThinPlateSpline(), regular_grid((6, 7))
    theta = near_identity(transform, torch.float32).requires_grad_()
    with torch.inference_mode():
        transform(theta, target)
    transform(theta, target).sum().backward()


def test_a_thin_plate_spline_through_one_point_is_refused():
    with pytest.raises(ValueError, match=r"k >= 2 control points per side, got k = 1$"):
        ThinPlateSpline(k=1)


def test_a_linear_form_starts_as_the_affine_map_of_3_columns():
    form, target = LinearForm((5, 6), extra=2), regular_grid((5, 6))
    m_theta = torch.tensor([[[A, B, C, 0, 0], [D, E, F, 0, 0]]])
    expected = Affine()(m_theta[..., :3].reshape(1, 6), target)
    torch.testing.assert_close(form(m_theta.view(1, 10), target), expected)


def test_a_linear_form_learns_its_basis():
    form, target = LinearForm((5, 6), extra=2).double(), regular_grid((5, 6), torch.float64)
    theta = near_identity(form).requires_grad_()
    assert [name for name, _ in form.named_parameters()] == ["basis"]
    form(theta, target)[:, 7, 1].sum().backward()
    torch.testing.assert_close(form.basis.grad[:, 7], theta.detach().view(2, 2, 5)[:, 1].sum(0))
    assert form.basis.grad.count_nonzero() == 5  # all of the other points' columns are untouched


def test_a_linear_form_refuses_another_number_of_target_points():
    with pytest.raises(ValueError, match=r"has learnt B for 30 target points, got target \(20, 2\)$"):
        LinearForm((5, 6))(torch.zeros(1, 6), regular_grid((4, 5)))
