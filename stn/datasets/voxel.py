"""3D MNIST (A.3): a digit extruded into a slab, at a random place and pose in a volume that is mostly empty.

Coordinates are those of `stn.sampler`, in the order (x, y, z) over a volume (D, H, W): [-1, 1] each way, whatever
`size_px`.  Lengths in px are those of the 60^3 volume; the digit's square is 28 px wide in it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from stn.datasets.distortions import DIGIT_PX
from stn.datasets.mnist import TEST_SEED, load_digits
from stn.sampler import regular_grid, sample
from stn.transforms import Affine3d

VOLUME_PX = 60
AT_ONCE = 4 * VOLUME_PX**3  # voxels rendered at once: their grid stays in the cache, three times as fast as a batch's
TEST_VOXELS = 50 * VOLUME_PX**3  # of a test batch
BYTES_PER_VOXEL = 40  # of a training batch, forward and backward together; measured, see docs/voxel.md
Params = dict[str, Tensor]


@dataclass(frozen=True)
class Pose:
    """Turn by U(-max_angle, max_angle) about x, then y, then z; then a uniformly random place.

    The turned slab, DIGIT_PX x DIGIT_PX x thickness_px, stays inside the volume.
    """

    max_angle_deg: float = 60.0
    thickness_px: float = 8.0

    def draw(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Params:
        """angle_deg (n, 3) about x, y and z; shift_px (n, 3): the slab's centre off the volume's, in x, y, z."""

        def uniform() -> Tensor:  # U(-1, 1)
            return 2 * torch.rand(n, 3, generator=generator, device=generator.device, dtype=dtype) - 1

        angle_deg = self.max_angle_deg * uniform()
        half = torch.tensor([DIGIT_PX, DIGIT_PX, self.thickness_px]).to(angle_deg) / 2
        room_px = VOLUME_PX / 2 - rotation(angle_deg).abs() @ half
        return {"angle_deg": angle_deg, "shift_px": room_px * uniform()}

    def theta(self, params: Params) -> Float[Tensor, "b 12"]:
        """slab = R^T (volume - shift), both in units of the digit's half side, as a theta of `Affine3d`."""
        back = rotation(params["angle_deg"]).mT
        shift = params["shift_px"][:, :, None]
        return torch.cat([back * VOLUME_PX / DIGIT_PX, -2 / DIGIT_PX * back @ shift], dim=2).flatten(1)


def rotation(angle_deg: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """R = R_z R_y R_x, each right-handed in (x, y, z): z points into the screen, so about z clockwise on it."""
    x, y, z = torch.deg2rad(angle_deg).unbind(1)
    cos, sin, zero, one = torch.cos, torch.sin, torch.zeros_like(x), torch.ones_like(x)
    r_x = torch.stack([one, zero, zero, zero, cos(x), -sin(x), zero, sin(x), cos(x)], 1).view(-1, 3, 3)
    r_y = torch.stack([cos(y), zero, sin(y), zero, one, zero, -sin(y), zero, cos(y)], 1).view(-1, 3, 3)
    r_z = torch.stack([cos(z), -sin(z), zero, sin(z), cos(z), zero, zero, zero, one], 1).view(-1, 3, 3)
    return r_z @ r_y @ r_x


def render(
    digits: UInt8[Tensor, "b 28 28"], theta: Float[Tensor, "b 12"], thickness_px: float, size_px: int
) -> Float[Tensor, "b 1 s s s"]:
    """The volumes of extruded digits, in [0, 1] with 0 for the background.

    A slab is constant along its own z, so a volume is the digit read bilinearly at the slab's (x, y), once a voxel,
    times the part of the voxel's width that lies between the slab's two faces: a third of what trilinear reading costs.
    """
    size = (size_px,) * 3
    target = regular_grid(size, theta.dtype, theta.device)
    u = torch.empty(len(digits), 1, *size, dtype=theta.dtype, device=theta.device)
    voxel_px = VOLUME_PX / size_px
    chunk = max(1, AT_ONCE // size_px**3)
    for part, digit, a in zip(u.split(chunk), digits.split(chunk), theta.split(chunk), strict=True):
        xy, z = Affine3d()(a, target).split([2, 1], dim=2)
        inside = (thickness_px / 2 - z.mT.abs() * (DIGIT_PX / 2)) / voxel_px + 0.5
        ink = sample(digit[:, None].to(a.dtype) / 255, xy, (1, target.shape[0]))
        part.copy_((ink.flatten(1) * inside.flatten(1).clamp(0, 1)).view_as(part))
    return u


class VoxelMnist:
    """3D MNIST: `batch` draws fresh training volumes; the frozen test set is 10,000 digits and their poses.

    The digits live on one device (`to`) as uint8 and the volumes are rendered there, batch by batch.
    `in_shape` is (1, S, S, S), `classes` 10.
    """

    classes = 10
    made = False

    def __init__(self, root: str | Path, size_px: int, max_angle_deg: float, thickness_px: float):
        if not isinstance(size_px, int) or size_px < 1:
            raise ValueError(f"data.size_px={size_px} has to be a whole number of voxels, 1 or more; the paper's is 60")
        self.in_shape = (1, size_px, size_px, size_px)
        self.pose = Pose(max_angle_deg, thickness_px)
        self.digits, self.labels = load_digits(root, "train")
        self.test_digits, self.test_labels = load_digits(root, "t10k")
        generator = Generator().manual_seed(TEST_SEED)
        self.test_params = self.pose.draw(len(self.test_digits), generator, torch.float64)

    def to(self, device: torch.device) -> None:
        """Move the training digits to `device`."""
        self.digits, self.labels = self.digits.to(device), self.labels.to(device)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 1 s s s"], Int[Tensor, " b"]]:
        """n training volumes, drawn with replacement in fresh poses, on the generator's device."""
        index = torch.randint(len(self.digits), (n,), generator=generator, device=generator.device)
        theta = self.pose.theta(self.pose.draw(n, generator))
        return render(self.digits[index], theta, self.pose.thickness_px, self.in_shape[1]), self.labels[index]

    def test_volumes(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 1 s s s"]:
        """These volumes of the frozen test set."""
        theta = self.pose.theta({key: value[index] for key, value in self.test_params.items()}).float()
        return render(self.test_digits[index], theta, self.pose.thickness_px, self.in_shape[1])

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 1 s s s"], Int[Tensor, " b"]]]:
        """The frozen test set, rendered batch by batch: as 8-bit voxels it would take 2 GB."""
        n = max(1, TEST_VOXELS // self.in_shape[1] ** 3)
        for index in torch.arange(len(self.test_labels)).split(n):
            yield self.test_volumes(index), self.test_labels[index]

    def checksums(self) -> dict[str, str]:
        """sha256 of the training digits, and of the test digits with the poses that make their volumes."""
        frozen = hashlib.sha256(self.test_digits.numpy().tobytes())
        for value in self.test_params.values():
            frozen.update(value.numpy().tobytes())
        return {"train": hashlib.sha256(self.digits.cpu().numpy().tobytes()).hexdigest(), "test": frozen.hexdigest()}
