"""CUB-200-2011 (Sect. 4.3): photographs of birds, and which images show which parts of them where."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stn.experiments.datasets.cub_files import BirdListing, fetch_cub, read
from stn.experiments.datasets.photos import RESIZED, Photos

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
GROUPS = {  # of CUB's 15 parts; where a group is: the middle of those of its parts that are visible
    "head": ("beak", "crown", "forehead", "left eye", "right eye", "throat"),
    "body": ("back", "belly", "breast"),
}


class BirdPhotos(Photos):
    """The birds of a folder in CUB's format, whose test targets hold their parts.

    `excluded` is a file with one image a line, named as in images.txt (the test images that ImageNet has, too): the
    test target gives these a weight of 0.
    """

    listing: BirdListing

    def __init__(self, folder: Path, size_px: int, shrink: int | float, excluded: str | Path | None):
        super().__init__(read(folder), size_px, shrink)
        kept = ~np.isin(self.listing.names, self._excluded(excluded))[self.test]
        seen = np.stack([self.listing.parts[:, members, 2].any(1) for members in self._members()], axis=1)
        self.weights = {"kept": _weights(kept), "seen": _weights(seen[self.test])}

    def _excluded(self, path: str | Path | None) -> list[str]:
        if path is None:
            return []
        if not isinstance(path, str | Path) or not Path(path).is_file():
            raise ValueError(
                f"data.excluded={str(path)!r} has to be null or a file: one image a line, as in images.txt"
            )
        names = Path(path).read_text().split()
        if unknown := sorted(set(names) - {self.listing.names[i] for i in self.test}):
            raise ValueError(f"{path}: {unknown[0]!r} is no test image; one image a line, named as in images.txt")
        return names

    def _members(self) -> list[list[int]]:
        return [[i for i, name in enumerate(self.listing.part_names) if name in group] for group in GROUPS.values()]

    def target(self, part: slice, sizes: Int[np.ndarray, "b 2"]) -> dict[str, Tensor]:
        """Beside the label what `stn.experiments.training.birds` measures, each with its weight.

        `parts` (B, P, 2) is where the groups of parts are, in the crop's [-1, 1]; a weight is 0 where an image does not
        count and averages 1 over the test set, so that the mean of weight x value is the mean over those that do.
        """
        index = self.test[part]
        return {
            "label": torch.from_numpy(self.listing.labels[index]),
            "parts": torch.from_numpy(self.places(index, sizes)).float(),
            **{name: weight[part] for name, weight in self.weights.items()},
        }

    def places(self, index: Int[np.ndarray, " b"], sizes: Int[np.ndarray, "b 2"]) -> Float[np.ndarray, "b g 2"]:
        """Where the groups of parts are in the middle crop of these images, given their (width, height)."""
        side = self.in_shape[-1]
        resized = np.round(sizes * (round(side * RESIZED) / sizes.min(1, keepdims=True)))
        corner = (resized - side) // 2
        groups = []
        for members in self._members():
            xy, seen = self.listing.parts[index][:, members, :2], self.listing.parts[index][:, members, 2:]
            middle = (xy * seen).sum(1) / seen.sum(1).clip(1)
            groups.append(2 * (middle * resized / sizes - corner) / side - 1)
        return np.stack(groups, axis=1)


class Cub(BirdPhotos):
    """CUB-200-2011 itself, below root/cub; fetched on first use."""

    def __init__(self, root: str | Path, size_px: int, shrink: int | float = 1.0, excluded: str | Path | None = None):
        super().__init__(fetch_cub(Path(root)), size_px, shrink, excluded)

    @staticmethod
    def ensure(root: str | Path, **settings: Any) -> None:
        """Fetch, check and unpack the images.  Raises OSError or ValueError, in one line, where that fails."""
        fetch_cub(Path(root))


def _weights(counts: np.ndarray) -> Tensor:
    """1 over the share of images that count, 0 for the others; along the first axis."""
    return torch.from_numpy(counts / np.maximum(counts.mean(0), 1e-9)).float()
