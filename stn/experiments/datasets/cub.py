"""CUB-200-2011 (Sect. 4.3): photographs of birds, and which images show which parts of them where."""

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
GROUPS = {  # of CUB's 15 parts; where a group is: the middle of those of its parts that are visible
    "head": ("beak", "crown", "forehead", "left eye", "right eye", "throat"),
    "body": ("back", "belly", "breast"),
}
VALID_SHARE, VALID_SEED = 0.2, 20150605  # of the training images, that choices are made on


class BirdPhotos(Photos):
    """The birds of `folder(root)`, in CUB's format, whose test targets hold where the `GROUPS` of their parts are.

    With `test_split` "valid" a frozen fifth of the training images, which are then not trained on, stands in for the
    test.  `excluded` is a file with one image a line, named as in images.txt (the test images that ImageNet has, too):
    the test target gives these a weight of 0.  With `parts` an image has four channels more, that hold x of the head,
    y of the head, x and y of the body, the same all over, in the crop's [-1, 1].
    """

    listing: BirdListing

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
        """The folder of the images and their text files, which are fetched or drawn on first use."""
        raise NotImplementedError

    @classmethod
    def ensure(cls, root: str | Path, **settings: Any) -> None:
        """Fetch or draw the files.  Raises OSError or ValueError if that fails."""
        cls.folder(Path(root))

    @staticmethod
    def shape(
        size_px: Any, shrink: Any = 1.0, test_split: Any = "test", parts: bool = False, **settings: Any
    ) -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on values that there are no crops for."""
        check_split(test_split)
        channels, side, _ = Photos.shape(size_px, shrink)
        return channels + parts * 2 * len(GROUPS), side, side

    def _excluded(self, path: str | Path | None) -> list[str]:
        if path is None:
            return []
        if not isinstance(path, str | Path) or not Path(path).is_file():
            raise ValueError(
                f"data.excluded={str(path)!r} has to be null or a file: one image a line, as in images.txt"
            )
        names = Path(path).read_text().split()
        if unknown := sorted(set(names) - {self.listing.names[i] for i in self.test}):
            raise ValueError(f"{path}: {unknown[0]!r} is not a test image; one image a line, named as in images.txt")
        return names

    def _places(self) -> tuple[Float[np.ndarray, "n g 2"], Bool[np.ndarray, "n g"]]:
        """Where each group is, in px, and whether a part of it is visible; if none is, the middle of the bird's box."""
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
        """The crops, and with `parts` the channels that say where these are."""
        if not self.parts:
            return u
        return torch.cat([u, points.flatten(1)[:, :, None, None].expand(-1, -1, *u.shape[2:])], dim=1)

    def checksums(self) -> dict[str, str]:
        """Those of `Photos`, and the sha256 of where the groups of parts are in every image."""
        return super().checksums() | {"places": hashlib.sha256(self.points.tobytes()).hexdigest()}

    def target(self, part: slice, points: Float[Tensor, "b p 2"]) -> dict[str, Tensor]:
        """Beside the label what `stn.experiments.training.birds` measures, each with its weight.

        `parts` (B, P, 2) is where the groups of parts are, in the crop's [-1, 1]; a weight is 0 where an image does not
        count and averages 1 over the test set, so that the mean of weight x value is the mean over those that do.
        """
        return {
            "label": super().target(part, points),
            "parts": points,
            **{name: weight[part] for name, weight in self.weights.items()},
        }


class Cub(BirdPhotos):
    """CUB-200-2011 itself, below root/cub; fetched on first use."""

    folder = staticmethod(fetch_cub)


def _weights(counts: np.ndarray) -> Tensor:
    """1 over the share of images that count, 0 for the others; along the first axis."""
    return torch.from_numpy(counts / np.maximum(counts.mean(0), 1e-9)).float()
