"""The general form of Sect. 3.2, with a learnt B."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stn.constants import constant
from stn.matrices import homogeneous, linear_map
from stn.protocol import check_shapes, check_size, is_whole, refuse_other
from stn.sampler import grid_key, regular_grid


class LinearForm(nn.Module):
    """The general form of Sect. 3.2, source = M_theta B, where B (K, N) is learnt with the rest of the network.

    theta is M_theta (2, K) row by row, K = 3 + `extra`.  The first three rows of B start as the homogeneous regular
    grid of an output of `size` (H', W'), so the map starts affine.  The `extra` rows start as N(0, 0.1), with weight 0
    in the identity.  B belongs to the points of one output grid.  Raises ValueError if `target` is another grid.

    Weight decay pulls B, and so the window, towards the centre of the image: give `basis` a parameter group without it.

    >>> form = LinearForm((4, 6), extra=1)
    >>> form(torch.tensor([form.identity]), regular_grid((4, 6))).shape
    torch.Size([1, 24, 2])
    """

    dims = 2

    def __init__(self, size: tuple[int, int], extra: int = 0):
        super().__init__()
        check_size("a size", size, 2, "LinearForm")
        if not is_whole(extra) or extra < 0:
            raise ValueError(f"LinearForm needs a whole number of extra rows, 0 or more, got {extra}")
        self.size = tuple(map(int, size))
        self.extra = int(extra)
        k = 3 + self.extra
        self.basis = nn.Parameter(torch.empty(k, math.prod(self.size)))
        self.reset_parameters()
        self.num_params = 2 * k
        self.identity = tuple(float(i == j) for i in range(2) for j in range(k))
        note = "stn.complete_state completes an older state of the same size"
        refuse_other(self, "fixed", tuple(map(float, self.size)), note)

    def extra_repr(self) -> str:
        return f"size={self.size}, extra={self.extra}"

    def reset_parameters(self) -> None:
        """Set B to its start."""
        with torch.no_grad():
            self.basis[:3] = homogeneous(regular_grid(self.size)).to(self.basis)
            self.basis[3:] = 0.1 * torch.randn_like(self.basis[3:])

    def forward(self, theta: Float[Tensor, "b p"], target: Float[Tensor, "n 2"]) -> Float[Tensor, "b n 2"]:
        check_shapes(self, theta, target)
        if len(target) != self.basis.shape[1]:
            raise ValueError(
                f"this LinearForm has learnt B for {self.basis.shape[1]} target points, "
                f"got target {tuple(target.shape)}"
            )
        self._check_grid(target)
        basis = self.basis.to(torch.promote_types(self.basis.dtype, target.dtype))
        return linear_map(theta.view(-1, 2, len(self.basis)), basis)

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise ValueError on another output size."""
        if tuple(size) != self.size:
            raise ValueError(f"this LinearForm has learnt B for an output of {self.size}, got {tuple(size)}")

    def _check_grid(self, target: Float[Tensor, "n 2"]) -> None:
        """Raise ValueError on another grid.  On a GPU or in a traced graph the values are not checked."""
        key = grid_key(target)
        if key is None and target.device.type == "cpu" and constant(target):
            same = torch.allclose(target, regular_grid(self.size, target.dtype), atol=1e-2 / max(self.size))
        else:
            same = key is None or key[0] == self.size
        if not same:
            raise ValueError(f"this LinearForm has learnt B for an output of {self.size}, got another target")
