"""The transforms T_theta of Sect. 3.2.  Each maps target points of the output to source points of the input.

A transform has `num_params` (the length P of theta), `dims` (2 or 3), `identity` (the theta of the identity, P values)
and is called with theta (B, P) and target (N, dims), giving source (B, N, dims).
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stn.sampler import regular_grid


@runtime_checkable
class Transform(Protocol):
    """What every transform of this file, and any of your own, has to offer."""

    num_params: int
    dims: int

    @property
    def identity(self) -> tuple[float, ...]: ...
    def __call__(self, theta: Tensor, target: Tensor) -> Tensor: ...


def check_shapes(transform: Transform, theta: Tensor, target: Tensor) -> None:
    """Raise ValueError unless theta is (B, P) and target (N, dims)."""
    if theta.dim() != 2 or theta.shape[1] != transform.num_params:
        raise ValueError(
            f"{type(transform).__name__} takes theta (B, {transform.num_params}), got theta {tuple(theta.shape)}"
        )
    if target.dim() != 2 or target.shape[1] != transform.dims:
        raise ValueError(
            f"{type(transform).__name__} takes target (N, {transform.dims}), got target {tuple(target.shape)}"
        )


def homogeneous(target: Float[Tensor, "n d"]) -> Float[Tensor, "d+1 n"]:
    """The target points as columns (x_t, y_t, 1): the B of an affine M_theta B."""
    return torch.cat([target, torch.ones_like(target[:, :1])], dim=1).T


def linear_map(m_theta: Float[Tensor, "b d k"], basis: Float[Tensor, "k n"]) -> Float[Tensor, "b n d"]:
    """source = M_theta B, the general form of Sect. 3.2, as one matrix product over the whole batch.

    In float32 under autocast too: in half precision the points would be off by up to a pixel.
    """
    b, d, k = m_theta.shape
    with torch.autocast(m_theta.device.type, enabled=False):
        return (m_theta.reshape(b * d, k) @ basis).view(b, d, basis.shape[1]).mT


def perspective(h_theta: Float[Tensor, "b 3 3"], target: Float[Tensor, "n 2"], min_z: float) -> Float[Tensor, "b n 2"]:
    """(X, Y, Z) = H_theta (x_t, y_t, 1), source = (X / Z, Y / Z).

    A point with Z <= 0 lies behind the camera and is sent out of the image: its V is 0 and it has no gradient.  Z is
    clipped to at least `min_z`, so that no coordinate and no gradient is infinite.
    """
    xy, z = linear_map(h_theta, homogeneous(target)).mT.split([2, 1], dim=1)
    behind = z <= 0  # False for nan, which has to show
    inverse = torch.where(behind, 0, z.clamp(min=min_z).reciprocal())  # one division a point, not two
    return (xy * inverse + OUT_OF_IMAGE * behind).mT


OUT_OF_IMAGE = 4.0  # any coordinate whose sampling kernel touches no pixel


class Affine(nn.Module):
    """A_theta of eq. (1): source = A_theta (x_t, y_t, 1).  theta is A_theta row by row."""

    num_params, dims = 6, 2
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def forward(self, theta: Float[Tensor, "b 6"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return linear_map(theta.view(-1, 2, 3), homogeneous(target))

    def compose(self, outer: Float[Tensor, "b 6"], inner: Float[Tensor, "b 6"]) -> Float[Tensor, "b 6"]:
        """The theta of source = T_outer(T_inner(target)): A_outer [A_inner; 0 0 1]."""
        a, b = outer.view(-1, 2, 3), inner.view(-1, 2, 3)
        with torch.autocast(outer.device.type, enabled=False):
            return (a[:, :, :2] @ b + F.pad(a[:, :, 2:], (2, 0))).flatten(1)


class Attention(nn.Module):
    """A_theta of eq. (2): source = s (x_t, y_t) + (t_x, t_y).  theta is (s, t_x, t_y)."""

    num_params, dims = 3, 2
    identity = (1.0, 0.0, 0.0)

    def forward(self, theta: Float[Tensor, "b 3"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return theta[:, None, :1] * target + theta[:, None, 1:]


class Translation(nn.Module):
    """Eq. (2) at a fixed scale s: source = s (x_t, y_t) + (t_x, t_y).  theta is (t_x, t_y); A.6 uses s = 0.5.

    `identity` is the window in the middle of the image.
    """

    num_params, dims = 2, 2
    identity = (0.0, 0.0)

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, theta: Float[Tensor, "b 2"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return self.scale * target + theta[:, None]


class Projective(nn.Module):
    """A plane projective map (`perspective`); theta is H_theta row by row without its last element, which is 1."""

    num_params, dims = 8, 2
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)

    def __init__(self, min_z: float = 1e-2):
        super().__init__()
        self.min_z = min_z

    def forward(self, theta: Float[Tensor, "b 8"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        h_theta = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)
        return perspective(h_theta, target, self.min_z)


class ThinPlateSpline(nn.Module):
    """A thin plate spline through k x k control points (Bookstein 1989, the paper's [2]); 16 points by default.

    theta holds the source points (x, y) of the control points, which form a regular grid over the output with its
    corners at the corners of the image.  With U(r) = r^2 log r^2 the spline through them is
        source(p) = sum_i w_i U(|p - c_i|) + a_0 + a_1 x + a_2 y,
    and since w and a are linear in theta, source = theta B with one constant B (k^2, N) for a fixed target.
    """

    dims = 2

    def __init__(self, k: int = 4):
        super().__init__()
        if k < 2:
            raise ValueError(f"a thin plate spline needs k >= 2 control points per side, got k = {k}")
        line = torch.linspace(-1, 1, k, dtype=torch.float64, device="cpu")
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.control = torch.stack([x.flatten(), y.flatten()], dim=-1)
        self.num_params = 2 * k * k
        self.identity = tuple(self.control.flatten().tolist())
        # rows of L^-1 that act on the k^2 values: [w; a] = L^-1 [values; 0]
        system = torch.zeros(k * k + 3, k * k + 3, dtype=torch.float64, device="cpu")
        system[: k * k] = self._features(self.control)
        system[k * k :, : k * k] = system[: k * k, k * k :].T
        self.solve = torch.linalg.inv(system)[:, : k * k]
        self._target: Tensor | None = None
        self._basis = torch.empty(0)

    def _features(self, points: Tensor) -> Tensor:
        """U(|p - c_i|) for every control point, then 1, x, y: (N, k^2 + 3)."""
        r2 = (points[:, None] - self.control).square().sum(-1)
        return torch.cat([torch.xlogy(r2, r2), torch.ones_like(points[:, :1]), points], dim=1)

    def basis(self, target: Float[Tensor, "n 2"]) -> Float[Tensor, "k2 n"]:
        """B (k^2, N) for these target points, solved in float64; kept for as long as the target stays the same."""
        if self._target is not target:
            with torch.inference_mode(False):  # kept for training
                features = self._features(target.to("cpu", torch.float64))
                self._basis = (features @ self.solve).T.to(target).contiguous()
            self._target = target
        return self._basis

    def forward(self, theta: Float[Tensor, "b p"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return linear_map(theta.view(-1, self.num_params // 2, 2).mT, self.basis(target))


class Affine3d(nn.Module):
    """The 3D affine map of A.3: source = A_theta (x_t, y_t, z_t, 1).  theta is A_theta (3 x 4) row by row."""

    num_params, dims = 12, 3
    identity = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def forward(self, theta: Float[Tensor, "b 12"], target: Float[Tensor, "n 3"]) -> Float[Tensor, "b n 3"]:
        check_shapes(self, theta, target)
        return linear_map(theta.view(-1, 3, 4), homogeneous(target))


class LinearForm(nn.Module):
    """The general form of Sect. 3.2, source = M_theta B, where B (K, N) is learnt with the rest of the network.

    B starts as the homogeneous regular grid of an output of `size` (so K = 3 is an affine map at the start), plus
    `extra` rows N(0, 0.1) that M_theta starts out ignoring.  theta is M_theta (2, K) row by row.  B belongs to the
    points of one output grid: `target` has to be the regular grid of `size`.
    """

    dims = 2

    def __init__(self, size: tuple[int, int], extra: int = 0):
        super().__init__()
        grid = homogeneous(regular_grid(tuple(size)))
        self.basis = nn.Parameter(torch.cat([grid, 0.1 * torch.randn(extra, grid.shape[1])]))
        k = len(self.basis)
        self.num_params = 2 * k
        self.identity = tuple(torch.eye(2, k).flatten().tolist())

    def forward(self, theta: Float[Tensor, "b p"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        if len(target) != self.basis.shape[1]:
            raise ValueError(
                f"this LinearForm has learnt B for {self.basis.shape[1]} target points, "
                f"got target {tuple(target.shape)}"
            )
        return linear_map(theta.view(-1, 2, len(self.basis)), self.basis)
