"""The transforms T_theta of Sect. 3.2.  Each maps target points of the output to source points of the input.

A transform has `num_params` (the length P of theta), `dims` (2 or 3), `identity` (the theta of the identity, P values)
and is called with theta (B, P) and target (N, dims), giving source (B, N, dims).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stn.constants import Constants, constant, made_of, real
from stn.sampler import GRIDS, axis, regular_grid

BASES = Constants(256 * 2**20)  # a spline through 8 x 8 points at 1024 px takes all of it


@runtime_checkable
class Transform(Protocol):
    """What every transform of this file, and any of your own, has to offer.

    >>> class Mirror:
    ...     num_params, dims, identity = 1, 2, (0.0,)
    ...
    ...     def __call__(self, theta, target):
    ...         return target * torch.tensor([-1, 1]) + theta[:, :, None] * torch.tensor([1, 0])
    >>> isinstance(Mirror(), Transform)
    True
    """

    num_params: int
    dims: int

    @property
    def identity(self) -> tuple[float, ...]: ...
    def __call__(self, theta: Tensor, target: Tensor) -> Tensor: ...


def check_transform(transform: Transform) -> None:
    """Raise ValueError on what is no transform, such as `Affine` in the place of `Affine()`."""
    if isinstance(transform, type):
        raise ValueError(f"the transform has to be an object, got the class: write {transform.__name__}()")
    if not isinstance(transform, Transform):
        raise ValueError(f"{transform!r} is no transform: it needs num_params, dims, identity and a call")


def check_size(name: str, size: tuple[int, ...], dims: int, of: str) -> None:
    """Raise ValueError unless `size` is a tuple of `dims` positive whole numbers."""
    fits = isinstance(size, Sequence) and len(size) == dims and all(isinstance(n, int) and n > 0 for n in size)
    if not fits:
        got = tuple(size) if isinstance(size, Sequence) else size
        raise ValueError(f"{of} needs {name} of {dims} positive numbers, got {got}")


def refuse_other(module: nn.Module, name: str, values: tuple[float, ...], note: str) -> None:
    """Register a buffer of what was fixed at construction, so that a state dict with other values, or none, is refused.

    The values that are kept are the module's own: a state in half precision does not round them.
    """
    if name not in dict(module.named_buffers(recurse=False)):
        module.register_buffer(name, torch.tensor(values))
    module.register_load_state_dict_pre_hook(partial(_refuse_other, name, values, note))


def _refuse_other(
    name: str, values: tuple[float, ...], note: str, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
) -> None:
    errors: list[str] = rest[-1]
    key, own = prefix + name, torch.tensor(values, device="cpu")
    given = state.get(key)
    if given is None:
        if any(other.startswith(prefix) for other in state):
            errors.append(f"{key} is missing from the state: {note}.")
    elif given.shape == own.shape and type(given) is Tensor and not given.is_meta:
        if not torch.allclose(given.detach().to("cpu", own.dtype), own, rtol=1e-3, atol=1e-3):
            errors.append(f"{key} is {tuple(given.tolist())} in the state, but {values} here: build it with the same.")
        state[key] = own.to(given.device, module.get_buffer(name).dtype)


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
    """The target points as columns (x_t, y_t, 1): the B of an affine M_theta B; kept for regular grids."""
    return made_of(BASES, "homogeneous", target, _with_ones)


def _with_ones(target: Float[Tensor, "n d"]) -> Float[Tensor, "d+1 n"]:
    return torch.cat([target, torch.ones_like(target[:, :1])], dim=1).T


def grid_key(target: Tensor) -> Any:
    """(size, dtype, device) of a target that is `regular_grid(size, dtype, device)` itself, None for another one."""
    return None if torch.compiler.is_compiling() else GRIDS.key_of(target)


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


def inverse_2x2(m: Float[Tensor, "b 2 2"]) -> Float[Tensor, "b 2 2"]:
    """The adjugate over the determinant: no solver, nothing that waits for a GPU.  Infinite where m is singular."""
    (a, b), (c, d) = (row.unbind(-1) for row in m.unbind(-2))
    return torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2)) / (a * d - b * c)[..., None, None]


def inverse_3x3(m: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 3"]:
    """The adjugate over the determinant, as `inverse_2x2`."""
    a, b, c = m.unbind(2)
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1)
    return rows / (rows[:, 0] * a).sum(1)[:, None, None]


def _affine_inverse(m: Float[Tensor, "b d k"]) -> Float[Tensor, "b d k"]:
    """[R, t]: the map y = R x + t the other way round, x = R^-1 y - R^-1 t."""
    linear, t = m[..., :-1], m[..., -1:]
    inverse = inverse_2x2(linear) if m.shape[1] == 2 else inverse_3x3(linear)
    with torch.autocast(m.device.type, enabled=False):
        return torch.cat([inverse, -(inverse @ t)], dim=-1)


def _affine_compose(outer: Float[Tensor, "b d k"], inner: Float[Tensor, "b d k"]) -> Float[Tensor, "b d k"]:
    """A_outer [A_inner; 0 0 1]."""
    d = outer.shape[1]
    with torch.autocast(outer.device.type, enabled=False):
        return outer[:, :, :d] @ inner + F.pad(outer[:, :, d:], (d, 0))


class Affine(nn.Module):
    """A_theta of eq. (1): source = A_theta (x_t, y_t, 1).  theta is A_theta row by row.

    x and y both go from -1 to 1, so that on an image that is not square the matrix of a rotation shears: `Similarity`
    and `Rotation` take the image's aspect into account.

    >>> Affine()(torch.tensor([[0.5, 0.0, 0.1, 0.0, 0.5, 0.2]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.6000, 0.7000]]])
    """

    num_params, dims = 6, 2
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def forward(self, theta: Float[Tensor, "b 6"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return linear_map(theta.view(-1, 2, 3), homogeneous(target))

    def compose(self, outer: Float[Tensor, "b 6"], inner: Float[Tensor, "b 6"]) -> Float[Tensor, "b 6"]:
        """The theta of source = T_outer(T_inner(target)): A_outer [A_inner; 0 0 1]."""
        return _affine_compose(outer.view(-1, 2, 3), inner.view(-1, 2, 3)).flatten(1)

    def inverse(self, theta: Float[Tensor, "b 6"]) -> Float[Tensor, "b 6"]:
        """The theta of the map from source to target."""
        return _affine_inverse(theta.view(-1, 2, 3)).flatten(1)


class Similarity(nn.Module):
    """Scale s, rotation by an angle (radians) and translation: source = s R (x_t, y_t) + (t_x, t_y).

    theta is (s, angle, t_x, t_y).  With x to the right and y down, a positive angle turns the window clockwise.
    `aspect` = W / H of images that are not square: R then is a rotation in pixels, which in [-1, 1] it is not.

    >>> quarter = torch.tensor([[1.0, torch.pi / 2, 0.0, 0.0]])
    >>> Similarity()(quarter, torch.tensor([[1.0, 0.0]])).round()
    tensor([[[-0., 1.]]])
    """

    num_params, dims = 4, 2
    identity = (1.0, 0.0, 0.0, 0.0)

    def __init__(self, aspect: float = 1.0):
        super().__init__()
        if not aspect > 0:
            raise ValueError(f"the aspect is W / H of the image, a positive number, got {aspect}")
        self.aspect = float(aspect)
        note = "the aspect of the image is part of it"
        refuse_other(self, "fixed", (self.aspect,), note)

    def linear(self, s: Float[Tensor, "b 1"], angle: Float[Tensor, "b 1"]) -> Float[Tensor, "b 2 2"]:
        """s R."""
        cos, sin = s * angle.cos(), s * angle.sin()
        return torch.cat([cos, -sin / self.aspect, sin * self.aspect, cos], dim=1).unflatten(1, (2, 2))

    def forward(self, theta: Float[Tensor, "b 4"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        m_theta = torch.cat([self.linear(theta[:, :1], theta[:, 1:2]), theta[:, 2:, None]], dim=2)
        return linear_map(m_theta, homogeneous(target))

    def compose(self, outer: Float[Tensor, "b 4"], inner: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
        """The theta of source = T_outer(T_inner(target))."""
        moved = (self.linear(outer[:, :1], outer[:, 1:2]) * inner[:, None, 2:]).sum(2) + outer[:, 2:]
        return torch.cat([outer[:, :1] * inner[:, :1], outer[:, 1:2] + inner[:, 1:2], moved], dim=1)

    def inverse(self, theta: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
        """The theta of the map from source to target."""
        s, angle = 1 / theta[:, :1], -theta[:, 1:2]
        return torch.cat([s, angle, -(self.linear(s, angle) * theta[:, None, 2:]).sum(2)], dim=1)


class Rotation(Similarity):
    """A `Similarity` with s = 1 and no translation: theta is (angle,) in radians, about the middle of the image.

    >>> Rotation()(torch.tensor([[torch.pi]]), torch.tensor([[0.5, 0.25]]))
    tensor([[[-0.5000, -0.2500]]])
    """

    num_params = 1
    identity = (0.0,)  # type: ignore[assignment]

    def forward(self, theta: Float[Tensor, "b 1"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return linear_map(self.linear(torch.ones_like(theta), theta), target.T)

    def compose(self, outer: Float[Tensor, "b 1"], inner: Float[Tensor, "b 1"]) -> Float[Tensor, "b 1"]:
        """The theta of source = T_outer(T_inner(target))."""
        return outer + inner

    def inverse(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 1"]:
        """The theta of the map from source to target."""
        return -theta


class Attention(nn.Module):
    """A_theta of eq. (2): source = s (x_t, y_t) + (t_x, t_y).  theta is (s, t_x, t_y).

    One s for both axes of [-1, 1]: the window has the aspect of the image.

    >>> Attention()(torch.tensor([[0.5, 0.25, 0.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.7500, 0.5000]]])
    """

    num_params, dims = 3, 2
    identity = (1.0, 0.0, 0.0)

    def forward(self, theta: Float[Tensor, "b 3"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return theta[:, None, :1] * target + theta[:, None, 1:]

    def compose(self, outer: Float[Tensor, "b 3"], inner: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
        """The theta of source = T_outer(T_inner(target))."""
        s = outer[:, :1]
        return torch.cat([s * inner[:, :1], s * inner[:, 1:] + outer[:, 1:]], dim=1)

    def inverse(self, theta: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
        """The theta of the map from source to target."""
        s = 1 / theta[:, :1]
        return torch.cat([s, -s * theta[:, 1:]], dim=1)


class Translation(nn.Module):
    """Eq. (2) at a fixed scale s: source = s (x_t, y_t) + (t_x, t_y).  theta is (t_x, t_y); A.6 uses s = 0.5.

    `identity` is the window in the middle of the image.  The scale is part of the state dict.

    >>> Translation(scale=0.5)(torch.tensor([[0.25, 0.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.7500, 0.5000]]])
    """

    num_params, dims = 2, 2
    identity = (0.0, 0.0)

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = float(scale)
        note = "an older one, of the same scale, is completed by stn.complete_state"
        refuse_other(self, "fixed", (self.scale,), note)

    def forward(self, theta: Float[Tensor, "b 2"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return self.scale * target + theta[:, None]

    def compose(self, outer: Float[Tensor, "b 2"], inner: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
        """The theta of source = T_outer(T_inner(target)).  Raises ValueError where the scale is not 1."""
        self._check_scale()
        return outer + inner

    def inverse(self, theta: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
        """The theta of the map from source to target.  Raises ValueError where the scale is not 1."""
        self._check_scale()
        return -theta

    def _check_scale(self) -> None:
        if self.scale != 1:
            raise ValueError(f"at scale {self.scale:g} it has another scale than Translation({self.scale:g}): "
                             "take Attention")  # fmt: skip


class Projective(nn.Module):
    """A plane projective map (`perspective`); theta is H_theta row by row without its last element, which is 1.

    With a `padding_mode` other than zeros, points behind the camera show the padding in the place of 0.

    >>> Projective()(torch.tensor([[1.0, 0, 0, 0, 1, 0, 1, 0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.5000, 0.5000]]])
    """

    num_params, dims = 8, 2
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)

    def __init__(self, min_z: float = 1e-2):
        super().__init__()
        self.min_z = min_z

    def forward(self, theta: Float[Tensor, "b 8"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return perspective(self.matrix(theta), target, self.min_z)

    def matrix(self, theta: Float[Tensor, "b 8"]) -> Float[Tensor, "b 3 3"]:
        """H_theta."""
        return torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)

    def compose(self, outer: Float[Tensor, "b 8"], inner: Float[Tensor, "b 8"]) -> Float[Tensor, "b 8"]:
        """The theta of source = T_outer(T_inner(target)), where its H has a last element to divide by."""
        with torch.autocast(outer.device.type, enabled=False):
            h = (self.matrix(outer) @ self.matrix(inner)).flatten(1)
        return h[:, :8] / h[:, 8:]

    def inverse(self, theta: Float[Tensor, "b 8"]) -> Float[Tensor, "b 8"]:
        """The theta of the map from source to target, where its H has a last element to divide by."""
        h = inverse_3x3(self.matrix(theta)).flatten(1)
        return h[:, :8] / h[:, 8:]


class ThinPlateSpline(nn.Module):
    """A thin plate spline through k x k control points (Bookstein 1989, the paper's [2]); 16 points by default.

    theta holds the source points (x, y) of the control points, which form a regular grid over the output with its
    corners at the corners of the image.  With U(r) = r^2 log r^2 the spline through them is
        source(p) = sum_i w_i U(|p - c_i|) + a_0 + a_1 x + a_2 y,
    and since w and a are linear in theta, source = theta B with one constant B (k^2, N) for a fixed target.  B is
    solved in float64, and kept for regular grids (256 MB of them in all).  Distances are those of [-1, 1]: on an image
    that is not square the bending is measured in sides, not in pixels.

    >>> spline = ThinPlateSpline(k=2)
    >>> spline(torch.tensor([spline.identity]), torch.tensor([[0.5, 0.25]]))
    tensor([[[0.5000, 0.2500]]])
    """

    dims = 2

    def __init__(self, k: int = 4):
        super().__init__()
        if not isinstance(k, int) or k < 2:
            raise ValueError(f"a thin plate spline needs k >= 2 control points per side, got k = {k}")
        self.k = k
        self.num_params = 2 * k * k
        line = [-1 + i * (2 / (k - 1)) if i < k / 2 else 1 - (k - 1 - i) * (2 / (k - 1)) for i in range(k)]
        self.identity = tuple(value for y in line for x in line for value in (x, y))

    def basis(self, target: Float[Tensor, "n 2"]) -> Float[Tensor, "k2 n"]:
        """B (k^2, N) for these target points."""
        return made_of(BASES, self.k, target, lambda points: _basis(self.k, grid_key(target), points))

    def forward(self, theta: Float[Tensor, "b p"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return linear_map(theta.view(-1, self.num_params // 2, 2).mT, self.basis(target))


def _line(k: int, device: torch.device) -> Float[Tensor, " k"]:
    return torch.linspace(-1, 1, k, dtype=torch.float64, device=device)


def _radial(r2: Tensor) -> Tensor:
    """U(r) of r^2."""
    r2 = r2.clamp(min=1e-300)  # its logarithm is finite
    return r2.log() * r2


@lru_cache(maxsize=32)
def _inverse_system(k: int) -> tuple[tuple[float, ...], ...]:
    """The rows of L^-1 that act on the k^2 values, [w; a] = L^-1 [values; 0], as numbers: real ones in every mode."""

    def solve() -> Tensor:
        cpu = torch.device("cpu")
        y, x = torch.meshgrid(_line(k, cpu), _line(k, cpu), indexing="ij")
        control = torch.stack([x.flatten(), y.flatten()], dim=-1)
        system = torch.zeros(k * k + 3, k * k + 3, dtype=torch.float64, device=cpu)
        r2 = (control[:, None] - control).square().sum(-1)
        system[: k * k] = torch.cat([torch.xlogy(r2, r2), torch.ones_like(r2[:, :1]), control], dim=1)
        system[k * k :, : k * k] = system[: k * k, k * k :].T
        return torch.linalg.inv(system)[:, : k * k]

    with ThreadPoolExecutor(1) as thread:
        return tuple(tuple(row) for row in thread.submit(lambda: solve().tolist()).result())


@torch.compiler.assume_constant_result
def _solve(k: int, device: torch.device) -> Float[Tensor, "m k2"]:
    where = real(device)
    if where is None:
        return torch.tensor(_inverse_system(k), dtype=torch.float64, device=device)
    found = BASES.find((k, where))
    if found is None:
        found = BASES.make(
            (k, where), lambda: torch.tensor(_inverse_system(k), dtype=torch.float64, device="cpu"), where
        )
    return found


def _basis(k: int, key: Any, target: Float[Tensor, "n 2"]) -> Float[Tensor, "k2 n"]:
    """B for these points; `key` is that of their grid, if they are one."""
    if key is not None:
        return _spline_of_grid(k, *key[:2])
    if not constant(target):
        return _spline(k, target)
    return torch.cat([_spline(k, points) for points in target.split(2**16)], dim=1)


def _spline(k: int, target: Float[Tensor, "n 2"]) -> Float[Tensor, "k2 n"]:
    """B for any points: U(|p - c_i|) for every control point, then 1, x, y, times the solution."""
    device = torch.device("cpu") if target.device.type == "mps" else target.device
    x, y = target.to(device, torch.float64).T
    line = _line(k, device)
    r2 = (y - line[:, None]).square()[:, None] + (x - line[:, None]).square()
    features = torch.cat([_radial(r2).flatten(0, 1), torch.stack([torch.ones_like(x), x, y])])
    with torch.autocast(device.type, enabled=False):
        return (_solve(k, device).T @ features).to(target)


def _spline_of_grid(k: int, size: tuple[int, int], dtype: torch.dtype) -> Float[Tensor, "k2 n"]:
    """B for a regular grid, from a quarter of it: mirrored points have the values of mirrored control points."""
    (h, w), cpu = size, torch.device("cpu")
    x, y = (axis(n, dtype, cpu).double()[: (n + 1) // 2] for n in (w, h))
    line, solve = _line(k, cpu)[:, None], torch.tensor(_inverse_system(k), dtype=torch.float64, device=cpu).T
    dx2, dy2 = (x - line).square(), (y - line).square()
    basis = torch.empty(k, k, h, w, dtype=dtype, device=cpu)
    rows = max(1, 2**20 // (k * k * w))
    for first in range(0, len(y), rows):
        part = slice(first, first + rows)
        r2 = dy2[:, None, part, None] + dx2[:, None]
        ones = torch.ones_like(r2[0, 0])
        features = torch.cat([_radial(r2).flatten(0, 1), torch.stack([ones, ones * x, ones * y[part, None]])])
        basis[:, :, first : first + len(ones), : len(x)] = (solve @ features.flatten(1)).to(dtype).view_as(r2)
    basis[:, :, : len(y), w - w // 2 :] = basis[:, :, : len(y), : w // 2].flip(1, 3)
    basis[:, :, h - h // 2 :] = basis[:, :, : h // 2].flip(0, 2)
    return basis.view(k * k, h * w)


class Affine3d(nn.Module):
    """The 3D affine map of A.3: source = A_theta (x_t, y_t, z_t, 1).  theta is A_theta (3 x 4) row by row.

    As with `Affine`, a rotation is one in pixels on cubes alone.

    >>> Affine3d()(torch.tensor([Affine3d.identity]), torch.tensor([[0.5, 0.25, 0.75]]))
    tensor([[[0.5000, 0.2500, 0.7500]]])
    """

    num_params, dims = 12, 3
    identity = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def forward(self, theta: Float[Tensor, "b 12"], target: Float[Tensor, "n 3"]) -> Float[Tensor, "b n 3"]:
        check_shapes(self, theta, target)
        return linear_map(theta.view(-1, 3, 4), homogeneous(target))

    def compose(self, outer: Float[Tensor, "b 12"], inner: Float[Tensor, "b 12"]) -> Float[Tensor, "b 12"]:
        """The theta of source = T_outer(T_inner(target))."""
        return _affine_compose(outer.view(-1, 3, 4), inner.view(-1, 3, 4)).flatten(1)

    def inverse(self, theta: Float[Tensor, "b 12"]) -> Float[Tensor, "b 12"]:
        """The theta of the map from source to target."""
        return _affine_inverse(theta.view(-1, 3, 4)).flatten(1)


class LinearForm(nn.Module):
    """The general form of Sect. 3.2, source = M_theta B, where B (K, N) is learnt with the rest of the network.

    B starts as the homogeneous regular grid of an output of `size` (so K = 3 is an affine map at the start), plus
    `extra` rows N(0, 0.1) that M_theta starts out ignoring.  theta is M_theta (2, K) row by row.  B belongs to the
    points of one output grid: `target` has to be the regular grid of `size`, and all else is refused.

    >>> form = LinearForm((4, 6), extra=1)
    >>> form(torch.tensor([form.identity]), regular_grid((4, 6))).shape
    torch.Size([1, 24, 2])
    """

    dims = 2

    def __init__(self, size: tuple[int, int], extra: int = 0):
        super().__init__()
        check_size("a size", size, 2, "LinearForm")
        self.size = tuple(size)
        grid = homogeneous(regular_grid(self.size))
        self.basis = nn.Parameter(torch.cat([grid, 0.1 * torch.randn(extra, grid.shape[1])]))
        k = len(self.basis)
        self.num_params = 2 * k
        self.identity = tuple(float(i == j) for i in range(2) for j in range(k))
        note = "an older one, of the same size, is completed by stn.complete_state"
        refuse_other(self, "fixed", tuple(map(float, self.size)), note)

    def forward(self, theta: Float[Tensor, "b p"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        if len(target) != self.basis.shape[1]:
            raise ValueError(
                f"this LinearForm has learnt B for {self.basis.shape[1]} target points, "
                f"got target {tuple(target.shape)}"
            )
        self._check_grid(target)
        return linear_map(theta.view(-1, 2, len(self.basis)), self.basis.to(theta.dtype))

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise ValueError on the size of another output."""
        if tuple(size) != self.size:
            raise ValueError(f"this LinearForm has learnt B for an output of {self.size}, got {tuple(size)}")

    def _check_grid(self, target: Float[Tensor, "n 2"]) -> None:
        """Raise ValueError on another grid; what a GPU or a traced graph holds is taken at its word."""
        key = grid_key(target)
        if key is None and target.device.type == "cpu" and constant(target):
            same = torch.allclose(target, regular_grid(self.size, target.dtype), atol=1e-2 / max(self.size))
        else:
            same = key is None or key[0] == self.size
        if not same:
            raise ValueError(f"this LinearForm has learnt B for an output of {self.size}, got another target")


class Constrained(nn.Module):
    """A transform with some entries of its theta fixed: theta holds the others, in their order.

    `fixed` maps the place of an entry to its value, as the constraints of Sonnet's AffineWarpConstraints do.

    >>> upright = Constrained(Affine(), {1: 0.0, 3: 0.0})  # scale and translation along each axis
    >>> upright.num_params, upright.identity
    (4, (1.0, 0.0, 1.0, 0.0))
    >>> upright(torch.tensor([[0.5, 0.1, 0.5, 0.2]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.6000, 0.7000]]])
    """

    def __init__(self, transform: Transform, fixed: Mapping[int, float]):
        super().__init__()
        check_transform(transform)
        if not set(fixed) < set(range(transform.num_params)):
            raise ValueError(
                f"{type(transform).__name__} has the entries 0 to {transform.num_params - 1}, of which one at least is "
                f"free: cannot fix {sorted(fixed)}"
            )
        self.transform = transform
        self.values = tuple(float(fixed[i]) if i in fixed else None for i in range(transform.num_params))
        free = [i for i, value in enumerate(self.values) if value is None]
        self.num_params, self.dims = len(free), transform.dims
        self.identity = tuple(transform.identity[i] for i in free)
        pairs = tuple(float(number) for i in sorted(fixed) for number in (i, fixed[i]))
        refuse_other(self, "fixed", pairs, "its fixed entries are part of it")

    def whole(self, theta: Float[Tensor, "b f"]) -> Float[Tensor, "b p"]:
        """The theta of the transform, with its fixed entries."""
        free = iter(theta.split(1, dim=1))
        columns = [next(free) if value is None else torch.full_like(theta[:, :1], value) for value in self.values]
        return torch.cat(columns, dim=1)

    def forward(self, theta: Float[Tensor, "b f"], target: Float[Tensor, "n d"]) -> Float[Tensor, "b n d"]:
        check_shapes(self, theta, target)
        return self.transform(self.whole(theta), target)


def aligned_corners_factors(
    transform: Transform, in_size: tuple[int, ...], out_size: tuple[int, ...]
) -> tuple[float, ...]:
    """What to multiply a theta by that was learnt with `align_corners=True` from `in_size` (H, W) to `out_size`.

    There -1 and 1 are the centres of the border pixels, here their outer edges: W - 1 pixels in the place of W.  So
    x_here = (W - 1) / W x_there, in U and in V, and the same points come of
        a_ij -> (n_i - 1) / n_i a_ij m_j / (m_j - 1),   t_i -> (n_i - 1) / n_i t_i
    with n of U, m of V.  Raises ValueError on a transform that has no such theta (a spline's control points lie on the
    corners), and on sides of one pixel.

    >>> aligned_corners_factors(Affine(), (5, 5), (5, 5))
    (1.0, 1.0, 0.8, 1.0, 1.0, 0.8)
    """
    check_size("an in_size", in_size, transform.dims, "aligned_corners_factors")
    check_size("an out_size", out_size, transform.dims, "aligned_corners_factors")
    if min(*in_size, *out_size) < 2:
        raise ValueError(f"aligned corners need two pixels or more a side, got {in_size} to {out_size}")
    rows = [(n - 1) / n for n in reversed(in_size)]  # in the order x, y, z
    columns = [m / (m - 1) for m in reversed(out_size)] + [1.0]
    if isinstance(transform, Affine | Affine3d):
        return tuple(row * column for row in rows for column in columns)
    if isinstance(transform, Projective):
        return (*(row * column for row in rows for column in columns), *columns[:2])
    scales = {row * column for row, column in zip(rows, columns, strict=False)}
    if isinstance(transform, Attention) and len(scales) == 1:
        return (*scales, *rows)
    if isinstance(transform, Translation) and scales == {1.0}:
        return tuple(rows)
    raise ValueError(
        f"{type(transform).__name__} from {in_size} to {out_size} px has no theta that gives the points of "
        "align_corners=True: take Affine, or train on"
    )
