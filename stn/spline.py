"""The thin plate spline of Sect. 3.2: its constant matrix B is solved once for a grid, and cached."""

from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.constants import constant, in_new_thread, real
from stn.matrices import BASES, linear_map, of_grid
from stn.protocol import check_shapes, is_whole
from stn.sampler import axis, without_autocast


class ThinPlateSpline(nn.Module):
    """A thin plate spline through k x k control points (Bookstein 1989, the paper's [2]); 16 points by default.

    theta holds the source points (x, y) of the control points, which form a regular grid over the output with its
    corners at the corners of the image.  With U(r) = r^2 log r^2 the spline through them is
        source(p) = sum_i w_i U(|p - c_i|) + a_0 + a_1 x + a_2 y,
    and since w and a are linear in theta, source = theta B with one constant B (k^2, N) for a fixed target.  B is
    solved in float64.  For a `regular_grid` it is cached (up to 256 MiB), for other points it is solved at each call.
    Distances are measured in [-1, 1], so on an image that is not square in units of its sides, not in pixels.  Raises
    ValueError unless k is a whole number of at least 2.

    >>> spline = ThinPlateSpline(k=2)
    >>> spline(torch.tensor([spline.identity]), torch.tensor([[0.5, 0.25]]))
    tensor([[[0.5000, 0.2500]]])
    """

    dims = 2

    def __init__(self, k: int = 4):
        super().__init__()
        if not is_whole(k) or k < 2:
            raise ValueError(f"a thin plate spline needs k >= 2 control points per side, got k = {k}")
        self.k = k = int(k)
        self.num_params = 2 * k * k
        line = [-1 + i * (2 / (k - 1)) if i < k / 2 else 1 - (k - 1 - i) * (2 / (k - 1)) for i in range(k)]
        self.identity = tuple(value for y in line for x in line for value in (x, y))

    def extra_repr(self) -> str:
        return f"k={self.k}"

    def basis(self, target: Float[Tensor, "n 2"]) -> Float[Tensor, "k2 n"]:
        """B (k^2, N) for these target points."""
        cached = of_grid(self.k, target, partial(_spline_of_grid, self.k))
        return _spline(self.k, target) if cached is None else cached

    def forward(self, theta: Float[Tensor, "b p"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        return linear_map(theta.view(-1, self.num_params // 2, 2).transpose(1, 2), self.basis(target))


def _line(k: int, device: torch.device) -> Float[Tensor, " k"]:
    return torch.linspace(-1, 1, k, dtype=torch.float64, device=device)


def _radial(r2: Tensor) -> Tensor:
    """U(r) of r^2."""
    r2 = r2.clamp(min=1e-300)  # its logarithm is finite
    return r2.log() * r2


@lru_cache(maxsize=32)
def _inverse_system(k: int) -> tuple[tuple[float, ...], ...]:
    """The columns of L^-1 that act on the k^2 values, [w; a] = L^-1 [values; 0].  Plain numbers, real in every mode."""

    def solve() -> Tensor:
        cpu = torch.device("cpu")
        y, x = torch.meshgrid(_line(k, cpu), _line(k, cpu), indexing="ij")
        control = torch.stack([x.flatten(), y.flatten()], dim=-1)
        system = torch.zeros(k * k + 3, k * k + 3, dtype=torch.float64, device=cpu)
        r2 = (control[:, None] - control).square().sum(-1)
        system[: k * k] = torch.cat([torch.xlogy(r2, r2), torch.ones_like(r2[:, :1]), control], dim=1)
        system[k * k :, : k * k] = system[: k * k, k * k :].T
        return torch.linalg.inv(system)[:, : k * k]

    return tuple(tuple(row) for row in in_new_thread(lambda: solve().tolist()))


def solution(k: int, device: torch.device) -> Float[Tensor, "m k2"]:
    """L^-1 of `_inverse_system` on a device, in float64."""
    where = real(device)
    if where is None:
        return torch.tensor(_inverse_system(k), dtype=torch.float64, device=device)
    return BASES.get((k, where), lambda: torch.tensor(_inverse_system(k), dtype=torch.float64, device="cpu"), where)


def _spline(k: int, target: Float[Tensor, "n 2"]) -> Float[Tensor, "k2 n"]:
    """B for any points: U(|p - c_i|) for every control point, then 1, x, y, times the solution."""
    if constant(target) and len(target) > 2**16:  # in parts, since the features take k^2 times the memory of the points
        return torch.cat([_spline(k, points) for points in target.split(2**16)], dim=1)
    device = torch.device("cpu") if target.device.type == "mps" else target.device
    x, y = target.to(device, torch.float64).T
    line = _line(k, device)
    r2 = (y - line[:, None]).square()[:, None] + (x - line[:, None]).square()
    features = torch.cat([_radial(r2).flatten(0, 1), torch.stack([torch.ones_like(x), x, y])])
    if torch.compiler.is_compiling():
        from stn.compiled import solve  # it loads torch._dynamo, which takes as long as importing PyTorch
    else:
        solve = solution
    with without_autocast(device.type):
        return (solve(k, device).T @ features).to(target)


def _spline_of_grid(k: int, size: tuple[int, int], dtype: torch.dtype) -> Float[Tensor, "k2 n"]:
    """B for a regular grid, from a quarter of it: B is symmetric under mirroring both points and control points."""
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
