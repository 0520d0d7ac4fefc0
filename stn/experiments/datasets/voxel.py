"""3D MNIST (A.3): a digit extruded into a slab, at a random position and pose in a volume that is mostly empty.

Coordinates are those of `stn.sampler`, in the order (x, y, z) over a volume (D, H, W): [-1, 1] along each axis for
every `size_px`.  Lengths in px are those of the 60^3 volume, in which the digit's square is 28 px wide.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from stn.experiments.datasets import DIGIT_PX
from stn.experiments.datasets.distortions import copied_once
from stn.experiments.datasets.mnist import TEST_SEED, DistortedMnist, check_split, checksum, split_digits
from stn.experiments.rules import number, or_null, require, whole
from stn.sampler import regular_grid, sample
from stn.transforms import Affine3d

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
VOLUME_PX = 60
LEAST_PX = 24  # smallest side of a volume that A.4's CNN can process
AT_ONCE = 8  # volumes rendered at once: their grid stays in the cache
TEST_VOXELS = 50 * VOLUME_PX**3  # of a test batch
BYTES_PER_VOXEL = 40  # of a training batch, forward and backward; measured, see docs/3d.md
Params = dict[str, Tensor]


@dataclass(frozen=True)
class Pose:
    """Rotate by U(-max_angle, max_angle) about x, then y, then z; then place uniformly at random.

    The rotated slab, DIGIT_PX x DIGIT_PX x thickness_px, stays inside the volume.
    """

    max_angle_deg: float
    thickness_px: int | float

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """angle_deg (n, 3) about x, y and z; shift_px (n, 3): the slab's centre minus the volume's, in x, y, z."""

        def uniform() -> Tensor:  # U(-1, 1)
            return 2 * torch.rand(n, 3, generator=generator, device=generator.device, dtype=dtype) - 1

        angle_deg = self.max_angle_deg * uniform()
        half = copied_once((DIGIT_PX / 2, DIGIT_PX / 2, self.thickness_px / 2), dtype, generator.device)
        room_px = VOLUME_PX / 2 - rotation(angle_deg).abs() @ half
        return {"angle_deg": angle_deg, "shift_px": room_px * uniform()}


def rotation(angle_deg: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """R = R_z R_y R_x, each right-handed in (x, y, z).  z points into the screen, so R_z is clockwise on it."""
    x, y, z = torch.deg2rad(angle_deg).unbind(1)
    cos, sin, zero, one = torch.cos, torch.sin, torch.zeros_like(x), torch.ones_like(x)
    r_x = torch.stack([one, zero, zero, zero, cos(x), -sin(x), zero, sin(x), cos(x)], 1).view(-1, 3, 3)
    r_y = torch.stack([cos(y), zero, sin(y), zero, one, zero, -sin(y), zero, cos(y)], 1).view(-1, 3, 3)
    r_z = torch.stack([cos(z), -sin(z), zero, sin(z), cos(z), zero, zero, zero, one], 1).view(-1, 3, 3)
    return r_z @ r_y @ r_x


def render(
    digits: UInt8[Tensor, "b 28 28"], params: Params, thickness_px: int | float, size_px: int
) -> Float[Tensor, "b 1 s s s"]:
    """The volumes of extruded digits in the poses of `Pose.draw`, in [0, 1] with 0 for the background.

    A slab is constant along its own z, so a voxel is the digit sampled bilinearly at the slab's (x, y), times the share
    of the voxel's width between the slab's faces.  That costs a third of trilinear sampling.  Only a cube that holds
    the slab in any pose is computed, at its own whole-voxel position.
    """
    voxel_px = VOLUME_PX / size_px
    back, shift = rotation(params["angle_deg"]).mT, params["shift_px"] / voxel_px
    diagonal_px = math.hypot(DIGIT_PX, DIGIT_PX, thickness_px)
    # one voxel on each side for soft faces and whole-voxel positions
    side = min(math.ceil(diagonal_px / voxel_px) + 2, size_px)
    corner = (shift + (size_px - side) / 2).round().clamp(0, size_px - side)
    centre = corner + (side - size_px) / 2
    # slab = R^T (cube - shift), in units of the digit's half side
    theta = torch.cat([back * side / 2, back @ (centre - shift)[:, :, None]], dim=2) * 2 * voxel_px / DIGIT_PX
    target = regular_grid((side,) * 3, theta.dtype, theta.device)
    u = theta.new_zeros(len(digits), 1, *(size_px,) * 3)
    line = torch.arange(side, device=theta.device)
    for first in range(0, len(digits), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        xy, depth = Affine3d()(theta[part].flatten(1), target).split([2, 1], dim=2)
        inside = ((thickness_px - depth.mT.abs() * DIGIT_PX) / (2 * voxel_px) + 0.5).clamp(0, 1)
        ink = sample(digits[part, None].to(theta.dtype) / 255, xy, (1, len(target)))
        x, y, z = (corner[part, :, None].long() + line).unbind(1)
        place = ((z[:, :, None, None] * size_px + y[:, None, :, None]) * size_px + x[:, None, None, :]).flatten(1)
        u[part].flatten(1).scatter_(1, place, (ink[:, 0] * inside).flatten(1))
    return u


def upright(u: Float[Tensor, "b 1 s s s"], params: Params, side_px: int) -> Float[Tensor, "b 1 v v v"]:
    """The output of a spatial transformer that undoes the poses of `render`'s volumes, half as wide as the volume."""
    theta = torch.cat([rotation(params["angle_deg"]) / 2, params["shift_px"][:, :, None] * 2 / VOLUME_PX], dim=2)
    size = (side_px,) * 3
    return sample(u, Affine3d()(theta.flatten(1), regular_grid(size, theta.dtype, theta.device)), size)


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None if the system does not tell (neither Linux nor CUDA)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def check_memory(n: int, size_px: int, device: torch.device) -> None:
    """Raise ValueError unless there is memory for training steps with n volumes of size_px^3 voxels."""
    need, free = n * size_px**3 * BYTES_PER_VOXEL, free_bytes(device)
    if free is not None and need > free:
        raise ValueError(
            f"{n} volumes of {size_px}^3 voxels need about {need / 1e9:.1f} GB, forward and backward, but "
            f"{free / 1e9:.1f} GB are free on {device.type}: lower schedule.batch_size={n} or data.size_px={size_px}"
            if n > 1
            else f"one volume of {size_px}^3 voxels needs about {need / 1e9:.1f} GB, forward and backward, but "
            f"{free / 1e9:.1f} GB are free on {device.type}: lower data.size_px={size_px}"
        )


class VoxelMnist:
    """3D MNIST: `batch` draws new training volumes; the frozen test set is 10,000 digits and their poses.

    `test_split` is that of `split_digits`.  With `upright_px` the images are not the volumes but samples of them under
    the true pose, on a grid with that side: the control of a transformer that undoes every pose.  Digits and poses are
    on one device (`to`), where the volumes are rendered batch by batch.  `in_shape` is (1, S, S, S), `classes` 10.
    """

    classes = 10
    labelled = True
    synthetic = False
    on_device = True

    def __init__(
        self,
        root: str | Path,
        size_px: int,
        max_angle_deg: float,
        thickness_px: int | float,
        upright_px: int | None = None,
        test_split: str = "test",
    ):
        self.in_shape = self.shape(size_px, max_angle_deg, thickness_px, upright_px, test_split)
        self.fits = 0  # largest batch that is known to fit
        self.pose = Pose(max_angle_deg, thickness_px)
        self.size_px, self.upright_px = size_px, upright_px
        (self.digits, self.labels), (self.test_digits, self.test_labels) = split_digits(root, test_split)
        generator = Generator().manual_seed(TEST_SEED)
        self.test_params = self.pose.draw(len(self.test_digits), generator, torch.float64)

    @staticmethod
    def shape(
        size_px: Any, max_angle_deg: Any, thickness_px: Any, upright_px: Any = None, test_split: Any = "test"
    ) -> tuple[int, int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on invalid values."""
        check_split(test_split)
        require(whole(LEAST_PX, 10**6), "data.size_px", size_px, "; the paper's is 60")
        require(number(0, 360), "data.max_angle_deg", max_angle_deg)
        require(number(0, VOLUME_PX), "data.thickness_px", thickness_px)
        require(or_null(whole(LEAST_PX, 10**6)), "data.upright_px", upright_px)
        check_memory(1, size_px, torch.device("cpu"))  # test volumes are rendered there
        side_px = size_px if upright_px is None else upright_px
        return 1, side_px, side_px, side_px

    ensure = staticmethod(DistortedMnist.ensure)

    def to(self, device: torch.device) -> None:
        """Move the digits and the poses of the test set to `device`."""
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)
        self.test_digits, self.test_labels = self.test_digits.to(device), self.test_labels.to(device)
        self.test_params = {key: value.to(device) for key, value in self.test_params.items()}

    def images(self, digits: UInt8[Tensor, "b 28 28"], params: Params) -> Float[Tensor, "b 1 s s s"]:
        """The network's input for digits in these poses: their volumes, or with `upright_px` the upright samples."""
        volumes = render(digits, params, self.pose.thickness_px, self.size_px)
        return volumes if self.upright_px is None else upright(volumes, params, self.upright_px)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 1 s s s"], Int[Tensor, " b"]]:
        """n training examples, drawn with replacement in new poses, on the generator's device.

        Raises ValueError, before anything is allocated, if memory does not suffice.
        """
        if n > self.fits:
            check_memory(n, self.size_px, generator.device)
            self.fits = n
        index = torch.randint(len(self.digits), (n,), generator=generator, device=generator.device)
        return self.images(self.digits[index], self.pose.draw(n, generator)), self.labels[index]

    def test_images(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 1 s s s"]:
        """These examples of the frozen test set."""
        params = {key: value[index].float() for key, value in self.test_params.items()}
        return self.images(self.test_digits[index], params)

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 1 s s s"], Int[Tensor, " b"]]]:
        """The frozen test set, rendered batch by batch: stored as 8-bit voxels it would take 2 GB."""
        n = max(1, TEST_VOXELS // self.size_px**3)
        for index in torch.arange(len(self.test_labels), device=self.test_labels.device).split(n):
            yield self.test_images(index), self.test_labels[index]

    def checksums(self) -> dict[str, str]:
        """sha256 of the training digits, and of the test digits with their poses as `test_images` reads them.

        In float32: the last bit in float64 depends on the processor.
        """
        poses = (value.float() for value in self.test_params.values())
        return {"train": checksum(self.digits), "test": checksum(self.test_digits, *poses)}
