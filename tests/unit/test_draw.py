"""The picture of a warp: U with the outline of its window on it, and V."""

import pytest
import torch
from torch import nn

from stn import Affine3d, Attention, SpatialTransformer, draw_window, trace


class Looking(nn.Module):
    """One theta for every input."""

    def __init__(self, theta):
        super().__init__()
        self.theta = theta

    def forward(self, u):
        return torch.tensor([self.theta]).expand(len(u), -1)


def warp_of(theta, u, transform=None):
    (warp,) = trace(SpatialTransformer(Looking(theta), transform or Attention()), u)
    return warp


def test_the_outline_is_where_the_window_lies():
    u = torch.zeros(2, 1, 28, 28)
    u[:, :, 12:16, 12:16] = 1
    picture = draw_window(warp_of((0.5, 0.25, 0.0), u), 112)
    assert picture.shape == (2, 3, 112, 224)
    red = (picture[0, 0] == 1) & (picture[0, 1:] == 0).all(0)
    y, x = red.nonzero().unbind(1)
    centre, half = (56 + 14, 56), 28 - 2  # the border of the grid are pixel centres, half a pixel of 4 px inside
    assert (x.min() - (centre[0] - half), x.max() - (centre[0] + half)) == (pytest.approx(0, abs=2),) * 2
    assert (y.min() - (centre[1] - half), y.max() - (centre[1] + half)) == (pytest.approx(0, abs=2),) * 2
    assert all(len(red[:, column].nonzero()) >= 2 for column in range(x.min(), x.max() + 1))  # a line without gaps
    assert not red[:, 112:].any()


def test_v_stands_beside_u():
    u = torch.rand(1, 3, 14, 14)
    warp = warp_of((0.5, 0.0, 0.0), u)
    picture = draw_window(warp, 28)
    torch.testing.assert_close(picture[..., 28:], warp.v.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_a_window_out_of_the_image_or_of_nan_leaves_u_as_it_is():
    u = torch.rand(1, 1, 14, 14)
    for theta in ((0.5, 3.0, 0.0), (torch.nan, 0.0, 0.0)):
        picture = draw_window(warp_of(theta, u), 14)
        torch.testing.assert_close(picture[..., :14], u.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("u", [torch.rand(1, 1, 8, 8) - 0.5, 255 * torch.rand(1, 3, 8, 8)], ids=["normalised", "255"])
def test_values_that_would_be_clipped_are_refused(u):
    with pytest.raises(ValueError, match=r"^draw_window takes images in \[0, 1\], got u from [^\n]*: undo a normalis"):
        draw_window(warp_of((0.5, 0.0, 0.0), u))


def test_a_volume_is_refused_in_one_line():
    warp = warp_of(Affine3d.identity, torch.rand(1, 1, 4, 4, 4), Affine3d())
    with pytest.raises(ValueError, match=r"^draw_window takes images \(B, 1 or 3, H, W\), got u \(1, 1, 4, 4, 4\)$"):
        draw_window(warp)
