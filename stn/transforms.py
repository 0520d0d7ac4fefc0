"""The transforms T_theta of Sect. 3.2.  Each maps target points of the output to source points of the input.

`stn.protocol.Transform` is their interface: a call maps theta (B, P) and target (N, dims) to source (B, N, dims).
Each raises ValueError on a theta or a target of another shape.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stn.linear_form import LinearForm
from stn.matrices import affine_compose, affine_inverse, homogeneous, inverse_3x3, linear_map, perspective
from stn.protocol import Transform, check_shapes, check_size, check_theta, check_transform, refuse_other
from stn.sampler import without_autocast
from stn.spline import ThinPlateSpline

__all__ = [
    "Affine",
    "Affine3d",
    "Attention",
    "Constrained",
    "LinearForm",
    "Projective",
    "Rotation",
    "Similarity",
    "ThinPlateSpline",
    "Transform",
    "Translation",
    "aligned_corners_factors",
]


class Affine(nn.Module):
    """A_theta of eq. (1): source = A_theta (x_t, y_t, 1).  theta is A_theta row by row.

    x and y both go from -1 to 1, so on an image that is not square a rotation matrix also shears.  `Similarity` and
    `Rotation` take the image's aspect into account.

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
        check_theta(self, outer, inner)
        return affine_compose(outer.unflatten(1, (2, 3)), inner.unflatten(1, (2, 3))).flatten(1)

    def inverse(self, theta: Float[Tensor, "b 6"]) -> Float[Tensor, "b 6"]:
        """The theta of the map from source to target."""
        check_theta(self, theta)
        return affine_inverse(theta.unflatten(1, (2, 3))).flatten(1)


class Similarity(nn.Module):
    """Scale s, rotation by an angle (radians) and translation: source = s R (x_t, y_t) + (t_x, t_y).

    theta is (s, angle, t_x, t_y).  With x to the right and y down, a positive angle turns the window clockwise.
    `aspect` is W / H of the image: with it R is a rotation in pixels, although not in [-1, 1].  Raises ValueError on an
    aspect that is not positive.

    >>> quarter = torch.tensor([[1.0, torch.pi / 2, 0.0, 0.0]])
    >>> Similarity()(quarter, torch.tensor([[1.0, 0.0]])).round()
    tensor([[[-0., 1.]]])
    """

    num_params, dims = 4, 2
    identity = (1.0, 0.0, 0.0, 0.0)

    def __init__(self, aspect: float = 1.0):
        super().__init__()
        if not 0 < aspect < math.inf:
            raise ValueError(f"the aspect is W / H of the image, a positive number, got {aspect}")
        self.aspect = float(aspect)
        note = "the aspect of the image belongs to the state"
        refuse_other(self, "fixed", (self.aspect,), note)

    def extra_repr(self) -> str:
        return f"aspect={self.aspect:g}"

    def rotation(self, cos: Float[Tensor, "b 1"], sin: Float[Tensor, "b 1"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The entries of R row by row, (B, 1) each: a rotation in pixels, in coordinates of [-1, 1]."""
        if self.aspect == 1:
            return cos, -sin, sin, cos
        return cos, -sin / self.aspect, sin * self.aspect, cos

    def linear(self, s: Float[Tensor, "b 1"], angle: Float[Tensor, "b 1"]) -> Float[Tensor, "b 2 2"]:
        """s R."""
        return torch.cat(self.rotation(s * angle.cos(), s * angle.sin()), dim=1).view(-1, 2, 2)

    def forward(self, theta: Float[Tensor, "b 4"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        s, angle, x, y = theta.split(1, dim=1)
        xx, xy, yx, yy = self.rotation(s * angle.cos(), s * angle.sin())
        return linear_map(torch.cat([xx, xy, x, yx, yy, y], dim=1).view(-1, 2, 3), homogeneous(target))

    def compose(self, outer: Float[Tensor, "b 4"], inner: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
        """The theta of source = T_outer(T_inner(target))."""
        check_theta(self, outer, inner)
        moved = (self.linear(outer[:, :1], outer[:, 1:2]) * inner[:, None, 2:]).sum(2) + outer[:, 2:]
        return torch.cat([outer[:, :1] * inner[:, :1], outer[:, 1:2] + inner[:, 1:2], moved], dim=1)

    def inverse(self, theta: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
        """The theta of the map from source to target."""
        check_theta(self, theta)
        s, angle = 1 / theta[:, :1], -theta[:, 1:2]
        return torch.cat([s, angle, -(self.linear(s, angle) * theta[:, None, 2:]).sum(2)], dim=1)


class Rotation(Similarity):
    """A `Similarity` with s = 1 and no translation: theta is (angle,) in radians, about the centre of the image.

    >>> Rotation()(torch.tensor([[torch.pi]]), torch.tensor([[0.5, 0.25]]))
    tensor([[[-0.5000, -0.2500]]])
    """

    num_params = 1
    identity = (0.0,)  # type: ignore[assignment]

    def forward(self, theta: Float[Tensor, "b 1"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return linear_map(torch.cat(self.rotation(theta.cos(), theta.sin()), dim=1).view(-1, 2, 2), target.T)

    def compose(self, outer: Float[Tensor, "b 1"], inner: Float[Tensor, "b 1"]) -> Float[Tensor, "b 1"]:
        """The theta of source = T_outer(T_inner(target))."""
        check_theta(self, outer, inner)
        return outer + inner

    def inverse(self, theta: Float[Tensor, "b 1"]) -> Float[Tensor, "b 1"]:
        """The theta of the map from source to target."""
        check_theta(self, theta)
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
        check_theta(self, outer, inner)
        s = outer[:, :1]
        return torch.cat([s * inner[:, :1], s * inner[:, 1:] + outer[:, 1:]], dim=1)

    def inverse(self, theta: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3"]:
        """The theta of the map from source to target."""
        check_theta(self, theta)
        s = 1 / theta[:, :1]
        return torch.cat([s, -s * theta[:, 1:]], dim=1)


class Translation(nn.Module):
    """Eq. (2) at a fixed scale s: source = s (x_t, y_t) + (t_x, t_y).  theta is (t_x, t_y); A.6 uses s = 0.5.

    `identity` is the window at the centre of the image.  The scale is part of the state dict.  Raises ValueError on a
    scale of 0 and on one that is not finite.

    >>> Translation(scale=0.5)(torch.tensor([[0.25, 0.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.7500, 0.5000]]])
    """

    num_params, dims = 2, 2
    identity = (0.0, 0.0)

    def __init__(self, scale: float = 1.0):
        super().__init__()
        if not math.isfinite(scale) or scale == 0:
            raise ValueError(f"the scale of a Translation is a number other than 0, got {scale}")
        self.scale = float(scale)
        note = "stn.complete_state completes an older state of the same scale"
        refuse_other(self, "fixed", (self.scale,), note)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"

    def forward(self, theta: Float[Tensor, "b 2"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return self.scale * target + theta[:, None]

    def compose(self, outer: Float[Tensor, "b 2"], inner: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
        """The theta of source = T_outer(T_inner(target)).  Raises ValueError if the scale is not 1."""
        check_theta(self, outer, inner)
        self._check_scale()
        return outer + inner

    def inverse(self, theta: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
        """The theta of the map from source to target.  Raises ValueError if the scale is not 1."""
        check_theta(self, theta)
        self._check_scale()
        return -theta

    def _check_scale(self) -> None:
        if self.scale != 1:
            raise ValueError(
                f"the result is not a Translation({self.scale:g}), since its scale differs: use Attention instead"
            )


class Projective(nn.Module):
    """A plane projective map: (X, Y, Z) = H_theta (x_t, y_t, 1), source = (X / Z, Y / Z).

    theta is H_theta row by row without its last element, which is 1.  A point with Z <= 0 lies behind the camera and is
    sampled outside the image: V is 0 there, or what `padding_mode` puts there.  Z is clipped to at least `min_z`.
    Raises ValueError on a `min_z` that is not positive.

    >>> Projective()(torch.tensor([[1.0, 0, 0, 0, 1, 0, 1, 0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.5000, 0.5000]]])
    """

    num_params, dims = 8, 2
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)

    def __init__(self, min_z: float = 1e-2):
        super().__init__()
        if not 0 < min_z < math.inf:
            raise ValueError(f"min_z, the least depth of a point in front of the camera, must be positive, got {min_z}")
        self.min_z = min_z

    def extra_repr(self) -> str:
        return f"min_z={self.min_z:g}"

    def forward(self, theta: Float[Tensor, "b 8"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return perspective(self.matrix(theta), target, self.min_z)

    def matrix(self, theta: Float[Tensor, "b 8"]) -> Float[Tensor, "b 3 3"]:
        """H_theta."""
        return F.pad(theta, (0, 1), value=1.0).view(-1, 3, 3)

    def compose(self, outer: Float[Tensor, "b 8"], inner: Float[Tensor, "b 8"]) -> Float[Tensor, "b 8"]:
        """The theta of source = T_outer(T_inner(target)).

        nan where the centre of the output would lie behind the camera: every theta has it in front, at Z = 1.
        """
        check_theta(self, outer, inner)
        with without_autocast(outer.device.type):
            return self._theta(self.matrix(outer) @ self.matrix(inner))

    def inverse(self, theta: Float[Tensor, "b 8"]) -> Float[Tensor, "b 8"]:
        """The theta of the map from source to target.  nan where `compose` has it."""
        check_theta(self, theta)
        return self._theta(inverse_3x3(self.matrix(theta)))

    def _theta(self, h: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 8"]:
        """H over its last element, which a theta does not hold.  A negative one would swap before and behind."""
        entries, last = h.flatten(1).split([8, 1], dim=1)
        return entries / last.where(last > 0, torch.nan)


class Affine3d(nn.Module):
    """The 3D affine map of A.3: source = A_theta (x_t, y_t, z_t, 1).  theta is A_theta (3 x 4) row by row.

    As with `Affine`, a rotation matrix also shears unless the volume is a cube.

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
        check_theta(self, outer, inner)
        return affine_compose(outer.unflatten(1, (3, 4)), inner.unflatten(1, (3, 4))).flatten(1)

    def inverse(self, theta: Float[Tensor, "b 12"]) -> Float[Tensor, "b 12"]:
        """The theta of the map from source to target."""
        check_theta(self, theta)
        return affine_inverse(theta.unflatten(1, (3, 4))).flatten(1)


class Constrained(nn.Module):
    """A transform with some entries of its theta fixed: theta holds the others, in their order.

    `fixed` maps the index of an entry to its value, like Sonnet's AffineWarpConstraints.  Raises ValueError on an index
    that does not exist, and where no entry is left free.

    >>> upright = Constrained(Affine(), {1: 0.0, 3: 0.0})  # scale and translation along each axis
    >>> upright.num_params, upright.identity
    (4, (1.0, 0.0, 1.0, 0.0))
    >>> upright(torch.tensor([[0.5, 0.1, 0.5, 0.2]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0.6000, 0.7000]]])
    """

    def __init__(self, transform: Transform, fixed: Mapping[int, float]):
        super().__init__()
        check_transform(transform)
        if not isinstance(fixed, Mapping) or not set(fixed) < set(range(transform.num_params)):
            raise ValueError(
                f"{type(transform).__name__} has the entries 0 to {transform.num_params - 1}, and at least one must be "
                f"free: cannot fix {fixed}, a dict from entries to values is needed"
            )
        self.transform = transform
        self.values = tuple(float(fixed[i]) if i in fixed else None for i in range(transform.num_params))
        free = [i for i, value in enumerate(self.values) if value is None]
        self.num_params, self.dims = len(free), transform.dims
        self.identity = tuple(transform.identity[i] for i in free)
        pairs = tuple(float(number) for i in sorted(fixed) for number in (i, fixed[i]))
        refuse_other(self, "fixed", pairs, "the fixed entries belong to the state")

    def extra_repr(self) -> str:
        return f"fixed={ {i: value for i, value in enumerate(self.values) if value is not None} }"

    def whole(self, theta: Float[Tensor, "b f"]) -> Float[Tensor, "b p"]:
        """The theta of the transform, with its fixed entries."""
        free = theta.split(1, dim=1)
        given = iter(free)
        columns = [next(given) if value is None else torch.full_like(free[0], value) for value in self.values]
        return torch.cat(columns, dim=1)

    def forward(self, theta: Float[Tensor, "b f"], target: Float[Tensor, "n d"]) -> Float[Tensor, "b n d"]:
        check_shapes(self, theta, target)
        return self.transform(self.whole(theta), target)


def aligned_corners_factors(
    transform: Transform, in_size: tuple[int, ...], out_size: tuple[int, ...]
) -> tuple[float, ...]:
    """The factors that convert a theta learnt with `align_corners=True`, from `in_size` (H, W) to `out_size`.

    With aligned corners, -1 and 1 are the centres of the border pixels; here they are their outer edges.  So
    x_here = (W - 1) / W x_there, in U and in V, and the same points are sampled with
        a_ij -> (n_i - 1) / n_i a_ij m_j / (m_j - 1),   t_i -> (n_i - 1) / n_i t_i
    where n are the sides of U and m those of V.  Raises ValueError on a transform that has no such theta (a spline's
    control points lie on the corners), and on sides of one pixel.

    >>> aligned_corners_factors(Affine(), (5, 5), (5, 5))
    (1.0, 1.0, 0.8, 1.0, 1.0, 0.8)
    """
    check_transform(transform)
    check_size("an in_size", in_size, transform.dims, "aligned_corners_factors")
    check_size("an out_size", out_size, transform.dims, "aligned_corners_factors")
    if min(*in_size, *out_size) < 2:
        raise ValueError(f"aligned corners need sides of at least two pixels, got {in_size} to {out_size}")
    rows = [(n - 1) / n for n in reversed(in_size)]  # in the order x, y, z
    columns = [m / (m - 1) for m in reversed(out_size)] + [1.0]
    if isinstance(transform, Affine | Affine3d):
        return tuple(row * column for row in rows for column in columns)
    if isinstance(transform, Projective):
        return (*(row * column for row in rows for column in columns), *columns[:2])
    sides = zip(reversed(in_size), reversed(out_size), strict=True)
    scales = {Fraction((n - 1) * m, n * (m - 1)) for n, m in sides}  # exact: whether two are equal decides
    square = len({*in_size}) == len({*out_size}) == 1  # a rotation mixes the axes
    if isinstance(transform, Rotation):
        if square and scales == {1}:
            return (1.0,)
    elif isinstance(transform, Similarity) and square:
        return (float(*scales), 1.0, *rows)
    if isinstance(transform, Attention) and len(scales) == 1:
        return (float(*scales), *rows)
    if isinstance(transform, Translation) and scales == {1}:
        return tuple(rows)
    raise ValueError(
        f"{type(transform).__name__} from {in_size} to {out_size} px has no theta that samples the points of "
        "align_corners=True: use Affine, or train again"
    )
