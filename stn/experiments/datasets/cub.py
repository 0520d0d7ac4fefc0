"""CUB-200-2011 (Sect. 4.3): photographs of birds, with the positions of their visible parts."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stn.experiments.datasets.cub_files import BirdListing, fetch_cub, read
from stn.experiments.datasets.mnist import check_split
from stn.experiments.datasets.photos import Photos

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
GROUPS = {  # of CUB's 15 parts; a group's position is the mean of its visible parts
    "head": ("beak", "crown", "forehead", "left eye", "right eye", "throat"),
    "body": ("back", "belly", "breast"),
}
VALID_SHARE, VALID_SEED = 0.2, 20150605  # of the training images, for choosing settings


class BirdPhotos(Photos):
    """The birds in `folder(root)`, in CUB's format; the test targets hold the positions of the `GROUPS` of parts.

    With `test_split` "valid" a fixed fifth of the training images replaces the test set and is not trained on.
    `excluded` is a file with one image per line, named as in images.txt (the test images that are also in ImageNet);
    their weight in the test target is 0.  With `parts` an image has four more channels, each constant: x and y of the
    head, x and y of the body, in the crop's [-1, 1].
    """

    listing: BirdListing
    labelled = False

    def __init__(
        self,
        root: str | Path,
        size_px: int,
        shrink: int | float = 1.0,
        excluded: str | Path | None = None,
        test_split: str = "test",
        parts: bool = False,
    ):
        super().__init__(read(self.folder(Path(root))), size_px, shrink)
        self.in_shape = self.shape(size_px, shrink, test_split, parts)
        self.parts = parts
        excluded_names = self._excluded(excluded)
        if test_split == "valid":
            order = np.random.default_rng(VALID_SEED).permutation(self.train)
            self.test, self.train = np.split(order, [round(VALID_SHARE * len(order))])
        self.points, seen = self._places()
        kept = ~np.isin(self.listing.names, excluded_names)
        self.weights = {"kept": _weights(kept[self.test]), "seen": _weights(seen[self.test])}

    @staticmethod
    def folder(root: Path) -> Path:
        """The folder of the images and their text files; the files are fetched or drawn on first use."""
        raise NotImplementedError

    @staticmethod
    def shape(
        size_px: Any, shrink: Any = 1.0, test_split: Any = "test", parts: bool = False, **settings: Any
    ) -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on invalid values."""
        check_split(test_split)
        channels, side, _ = Photos.shape(size_px, shrink)
        return channels + parts * 2 * len(GROUPS), side, side

    def _excluded(self, path: str | Path | None) -> list[str]:
        if path is None:
            return []
        if not isinstance(path, str | Path) or not Path(path).is_file():
            raise ValueError(
                f"data.excluded={str(path)!r} has to be null or a file with one image per line, as in images.txt"
            )
        names = Path(path).read_text().split()
        if unknown := sorted(set(names) - {self.listing.names[i] for i in self.test}):
            raise ValueError(f"{path}: {unknown[0]!r} is not a test image: one image per line, named as in images.txt")
        return names

    def _places(self) -> tuple[Float[np.ndarray, "n g 2"], Bool[np.ndarray, "n g"]]:
        """The position of each group in px (the centre of the bird's box if no part is visible), and whether one is."""
        parts, boxes = self.listing.parts, self.listing.boxes
        places, seen = [], []
        for group in GROUPS.values():
            members = [i for i, name in enumerate(self.listing.part_names) if name in group]
            xy, visible = parts[:, members, :2], parts[:, members, 2:]
            count = visible.sum(1)
            middle = (xy * visible).sum(1) / count.clip(1)
            places.append(np.where(count > 0, middle, boxes[:, :2] + boxes[:, 2:] / 2))
            seen.append(count[:, 0] > 0)
        return np.stack(places, axis=1), np.stack(seen, axis=1)

    def input(self, u: Float[Tensor, "b 3 s s"], points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b c s s"]:
        """The crops, and with `parts` the channels with their positions."""
        if not self.parts:
            return u
        return torch.cat([u, points.flatten(1)[:, :, None, None].expand(-1, -1, *u.shape[2:])], dim=1)

    def checksums(self) -> dict[str, str]:
        """Those of `Photos`, and the sha256 of the positions of the groups of parts in all images."""
        return super().checksums() | {"places": hashlib.sha256(self.points.tobytes()).hexdigest()}

    def target(self, part: slice, points: Float[Tensor, "b p 2"]) -> dict[str, Tensor]:
        """The label and the values that `stn.experiments.training.birds` measures, each with its weight.

        `parts` (B, P, 2) are the positions of the groups of parts, in the crop's [-1, 1].  A weight is 0 if an image
        does not count.  Its mean over the test set is 1, so the mean of weight x value is the mean over those that do.
        """
        return {
            "label": super().target(part, points),
            "parts": points,
            **{name: weight[part] for name, weight in self.weights.items()},
        }


class Cub(BirdPhotos):
    """CUB-200-2011 itself, in root/cub; fetched on first use."""

    folder = staticmethod(fetch_cub)


def _weights(counts: np.ndarray) -> Tensor:
    """1 / (the share of images that count) for those images, 0 for the others; along the first axis."""
    return torch.from_numpy(counts / np.maximum(counts.mean(0), 1e-9)).float()
