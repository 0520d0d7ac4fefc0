"""Health of a transformer: how areas and volumes change, what lies outside of the image, when it has collapsed."""

from math import cos, sin

import pytest
import torch
from torch import nn

from stn import (
    Affine,
    Regression,
    SpatialTransformer,
    ThinPlateSpline,
    Warp,
    collapsed,
    determinant,
    health,
    regular_grid,
    trace,
)

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
LINE = ((1.0, 1.0, 0.0), (1.0, 1.0, 0.0))
FAR_RIGHT = ((1.0, 0.0, 5.0), (0.0, 1.0, 0.0))
FAR_UP = ((1.0, 0.0, 0.0), (0.0, 1.0, -5.0))


def warp(matrix, size=(5, 7)):
    """One image of zeros under an affine map, given as ((a, b, t_x), (c, d, t_y)) or its 3D counterpart."""
    m_theta = torch.tensor(matrix)
    source = (regular_grid(size) @ m_theta[:, :-1].T + m_theta[:, -1])[None]
    u = torch.zeros(1, 1, *size)
    return Warp("st", u, m_theta.flatten()[None], source, u, tuple(torch.eye(*m_theta.shape).flatten().tolist()))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (IDENTITY, 1),
        (((0.5, 0.0, 0.3), (0.0, 0.5, -0.2)), 0.25),
        (((cos(0.4), -sin(0.4), 0.0), (sin(0.4), cos(0.4), 0.0)), 1),
        (((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), -1),
        (((2.0, 0.0, 0.0), (0.0, 3.0, 0.0)), 6),
        (LINE, 0),
    ],
    ids=["identity", "half", "rotation", "mirror", "stretch", "line"],
)
def test_the_determinant_is_how_areas_change(matrix, expected):
    assert determinant(warp(matrix).source, (5, 7)).tolist() == pytest.approx([expected], abs=1e-5)


def test_the_determinant_in_3d_is_that_of_the_matrix():
    torch.manual_seed(0)
    size, matrices = (4, 5, 6), torch.randn(3, 3, 3)
    source = torch.einsum("nd,bed->bne", regular_grid(size), matrices)
    torch.testing.assert_close(determinant(source, size), torch.linalg.det(matrices), atol=1e-5, rtol=1e-5)


def test_the_determinant_of_a_spline_is_the_mean_over_its_window():
    spline, size = ThinPlateSpline(), (200, 200)
    theta = torch.tensor([spline.identity]) * torch.tensor([0.5, 0.8]).repeat(16)  # x halved, y shrunk to 0.8
    assert determinant(spline(theta, regular_grid(size)), size).item() == pytest.approx(0.4, abs=1e-4)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (IDENTITY, 0),
        (FAR_RIGHT, 1),
        (FAR_UP, 1),
        (((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)), 3 / 7),  # of 7 columns the 3 right ones are beyond 1, the 4th just on it
    ],
    ids=["identity", "far to the right", "far up", "half to the right"],
)
def test_health_counts_points_out_of_the_image_and_measures_theta(matrix, expected):
    measured = health(warp(matrix))
    assert measured["out_of_image"] == pytest.approx(expected)
    assert measured["theta_distance"] == pytest.approx(sum(t * t for _, _, t in matrix) ** 0.5)


def test_health_of_a_volume_counts_all_three_axes():
    for axis in range(3):
        matrix = torch.eye(3, 4)
        matrix[axis, 3] = 5.0
        measured = health(warp(matrix.tolist(), (4, 5, 6)))
        assert measured == pytest.approx({"det": 1, "out_of_image": 1, "theta_distance": 5}, abs=1e-5)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (IDENTITY, False),
        (((-0.5, 0.0, 0.3), (0.0, 0.5, 0.0)), False),
        (FAR_RIGHT, True),
        (((0.01, 0.0, 0.0), (0.0, 0.01, 0.0)), True),
        (LINE, True),
        (((4.0, 0.0, 0.0), (0.0, 4.0, 0.0)), True),
        (((float("nan"), 0.0, 0.0), (0.0, 1.0, 0.0)), True),
    ],
    ids=["identity", "mirrored in the image", "out of the image", "a point", "a line", "zoomed out", "nan"],
)
def test_a_window_that_shows_nothing_has_collapsed(matrix, expected):
    assert collapsed(warp(matrix)) is expected


def test_a_mirrored_window_beside_an_upright_one_is_no_collapse():
    upright, mirrored = warp(IDENTITY), warp(((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    pairs = (torch.cat([getattr(upright, key), getattr(mirrored, key)]) for key in ("u", "theta", "source", "v"))
    assert not collapsed(Warp("st", *pairs, upright.identity))


def test_one_plane_of_a_volume_is_no_collapse_outside_of_it_is():
    plane, outside = torch.eye(3, 4), torch.eye(3, 4)
    plane[2, 2], outside[0, 3] = 0.0, 9.0
    assert not collapsed(warp(plane.tolist(), (4, 5, 6)))
    assert collapsed(warp(outside.tolist(), (4, 5, 6)))


def test_a_network_s_transformers_are_diagnosed_with_trace():
    def looking_at(start):
        return SpatialTransformer(nn.Sequential(nn.Flatten(), Regression(64, Affine(), start)), Affine())

    network = nn.Sequential(looking_at((0.5, 0.0, 0.0, 0.0, 0.5, 0.0)), looking_at((1.0, 0.0, 3.0, 0.0, 1.0, 0.0)))
    warps = trace(network, torch.rand(2, 1, 8, 8))
    assert [health(warp)["det"] for warp in warps] == pytest.approx([0.25, 1])
    assert [collapsed(warp) for warp in warps] == [False, True]


def test_a_theta_that_is_no_number_shows_in_health_and_is_a_collapse():
    broken = warp(((float("nan"), 0.0, 0.0), (0.0, 1.0, 0.0)))
    measured = health(broken)
    assert [name for name, value in measured.items() if value != value] == ["det", "theta_distance"]
    assert measured["out_of_image"] == 1
    assert collapsed(broken)
