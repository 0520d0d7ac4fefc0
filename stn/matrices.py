"""The matrices of Sect. 3.2: source = M_theta B, the plane projective map, products and inverses of small matrices."""

import math
from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stn.constants import Constants
from stn.sampler import grid_key, make_grid, without_autocast

BASES = Constants(256 * 2**20)  # as much as one spline with 8 x 8 control points at 1024 px


def of_grid(name: Hashable, target: Tensor, make: Callable[[tuple[int, ...], torch.dtype], Tensor]) -> Tensor | None:
    """make(size, dtype), cached under this name, if `target` is the `regular_grid` of them; else None.

    Any other points may be changed unseen (through numpy or `Tensor.data`), so nothing computed from them is kept.
    """
    key = grid_key(target)
    return None if key is None else BASES.get((name, *key), lambda: make(*key[:2]), key[2])


def homogeneous(target: Float[Tensor, "n d"]) -> Float[Tensor, "d+1 n"]:
    """The target points as columns (x_t, y_t, 1): the B of an affine M_theta B.  Cached for a `regular_grid`."""
    cached = of_grid("homogeneous", target, lambda size, dtype: _with_ones(make_grid(size, dtype, torch.device("cpu"))))
    return _with_ones(target) if cached is None else cached


def _with_ones(target: Float[Tensor, "n d"]) -> Float[Tensor, "d+1 n"]:
    return torch.cat([target, torch.ones_like(target[:, :1])], dim=1).T


def linear_map(m_theta: Float[Tensor, "b d k"], basis: Float[Tensor, "k n"]) -> Float[Tensor, "b n d"]:
    """source = M_theta B, the general form of Sect. 3.2."""
    return _product(m_theta, basis).transpose(1, 2)


def _product(m_theta: Float[Tensor, "b d k"], basis: Float[Tensor, "k n"]) -> Float[Tensor, "b d n"]:
    """M_theta B as one matrix product over the whole batch.

    In float32 under autocast too: half precision would move the points by up to a pixel.
    """
    b, d, k = m_theta.shape
    dtype = torch.promote_types(m_theta.dtype, basis.dtype)
    with without_autocast(m_theta.device.type):
        return (m_theta.reshape(b * d, k).to(dtype) @ basis.to(dtype)).view(b, d, basis.shape[1])


def perspective(h_theta: Float[Tensor, "b 3 3"], target: Float[Tensor, "n 2"], min_z: float) -> Float[Tensor, "b n 2"]:
    """(X, Y, Z) = H_theta (x_t, y_t, 1), source = (X / Z, Y / Z).

    A point with Z <= 0 lies behind the camera and is placed outside the image: its V is 0 and it has no gradient.  Z is
    clipped to at least `min_z`, so that coordinates and gradients stay finite.
    """
    xy, z = _product(h_theta, homogeneous(target)).split([2, 1], dim=1)
    inverse = F.hardtanh(z, min_z, math.inf).reciprocal()  # a clamp with one operation in its backward, not three
    return (xy * inverse).masked_fill_(z <= 0, OUT_OF_IMAGE).transpose(1, 2)  # nan is not <= 0, so it stays visible


OUT_OF_IMAGE = 4.0  # any coordinate whose sampling kernel touches no pixel would do


def inverse_2x2(m: Float[Tensor, "b 2 2"]) -> Float[Tensor, "b 2 2"]:
    """The adjugate over the determinant, without a solver that waits for the GPU.  Infinite where m is singular."""
    (a, b), (c, d) = (row.unbind(-1) for row in m.unbind(-2))
    return torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2)) / (a * d - b * c)[..., None, None]


def inverse_3x3(m: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
    """The adjugate over the determinant, as `inverse_2x2`."""
    a, b, c = m.unbind(2)
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1)
    return rows / (rows[:, 0] * a).sum(1)[:, None, None]


def affine_inverse(m: Float[Tensor, "b d k"]) -> Float[Tensor, "b d k"]:
    """The inverse of y = R x + t, with m = [R, t]: x = R^-1 y - R^-1 t."""
    linear, t = m[..., :-1], m[..., -1:]
    inverse = inverse_2x2(linear) if m.shape[1] == 2 else inverse_3x3(linear)
    with without_autocast(m.device.type):
        return torch.cat([inverse, -(inverse @ t)], dim=-1)


def affine_compose(outer: Float[Tensor, "b d k"], inner: Float[Tensor, "b d k"]) -> Float[Tensor, "b d k"]:
    """A_outer [A_inner; 0 0 1]."""
    d = outer.shape[1]
    with without_autocast(outer.device.type):
        return outer[:, :, :d] @ inner + F.pad(outer[:, :, d:], (d, 0))
