"""Street View House Numbers (Sect. 4.2, A.5) from format 1: cropped once into a store that training reads.

The store `<folder>/<size>px/` is complete or does not exist.  It holds `train.npy`, `valid.npy` and `test.npy`
(N, S, S, 3) uint8, their labels (N, 5) uint8 (the digits 0 to 9, then NULL), and `index.json` with counts and the
sha256 of each file.
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Generator, Tensor
from tqdm import tqdm

from stn.experiments.datasets import digitstruct
from stn.experiments.datasets.digitstruct import Number
from stn.experiments.datasets.fetch import sha256
from stn.experiments.datasets.mnist import check_split
from stn.experiments.datasets.photos import decode
from stn.experiments.errors import writing
from stn.experiments.results.checks import parsed
from stn.experiments.rules import require, whole

REVISION = 1  # raise it when a change alters an image, a label or how they are drawn
PLACES = 5  # most digits of a number; longer numbers are dropped
NULL = 10  # the class of the places after the last digit
GROWN = 1.3  # factor for width and height of the union of the digits' boxes (C)
BASE_PX = 64  # a crop of 64 px shows the grown box, one of 128 px twice its width and height
VALID, VALID_SEED = 5000, 20150605
STORED = {"train": "train", "extra": "train", "test": "test"}  # archive -> split; valid is taken from train
SAVE_EVERY = 2000  # images between two saves of a preparation's progress


def text(label: Tensor) -> str:
    """The number of a label (5,)."""
    return "".join(str(digit) for digit in label.tolist() if digit != NULL)


def label(number: Number) -> np.ndarray:
    """(5,) uint8: the digits, then NULL.  Raises ValueError on a label outside 1 to 10."""
    digits = number.digits[:, 4]
    if bad := sorted(set(digits.tolist()) - set(range(1, 11))):
        raise ValueError(f"digitStruct.mat gives {number.name} the label {bad[0]:g}: SVHN's are 1 to 9, and 10 for 0")
    return np.concatenate([digits % 10, np.full(PLACES - len(digits), NULL)]).astype(np.uint8)


def window(number: Number, size_px: int) -> tuple[float, float, float, float]:
    """left, top, right, bottom of a crop of size_px, in px: the union of the boxes, grown about its centre."""
    left, top, width, height = number.digits[:, :4].T
    x0, y0, x1, y1 = left.min(), top.min(), (left + width).max(), (top + height).max()
    half_w, half_h = (x1 - x0) / 2 * GROWN * size_px / BASE_PX, (y1 - y0) / 2 * GROWN * size_px / BASE_PX
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - half_w, y - half_h, x + half_w, y + half_h


def number_side(size_px: int) -> float:
    """The side of the number's box, a square at the centre of every crop, over the crop's side; up to rounding."""
    return BASE_PX / (GROWN * size_px)


def crop(png: bytes, number: Number, size_px: int) -> UInt8[np.ndarray, "s s 3"]:
    """The crop of a number from its picture, black beyond the edges.

    Raises ValueError on a picture that cannot be read and on a number outside it.
    """
    try:
        picture = decode(png).convert("RGB")
    except ValueError as error:
        raise ValueError(f"{number.name} is not a complete picture ({error}): fetch its archive again") from None
    box = window(number, size_px)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"digitStruct.mat gives {number.name} a box without an area")
    inside = window(number, BASE_PX)
    if inside[2] <= 0 or inside[3] <= 0 or inside[0] >= picture.width or inside[1] >= picture.height:
        raise ValueError(f"digitStruct.mat puts the number of {number.name} outside its picture {picture.size}")
    x0, y0, x1, y1 = (round(edge) for edge in box)  # whole pixels; PIL fills with black beyond the picture
    cut = picture.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    return np.asarray(cut.resize((size_px, size_px), Image.Resampling.BILINEAR, reducing_gap=None))


def read_numbers(folder: Path, split: str) -> tuple[list[Number], int]:
    """The numbers of 1 to 5 digits in folder/<split>.tar.gz, and how many were dropped; parsed once, then cached."""
    archive, kept = folder / f"{split}.tar.gz", folder / f"{split}.npz"
    if kept.exists():
        with np.load(kept) as file:
            if file["bytes"] == archive.stat().st_size:
                digits = np.split(file["digits"], file["ends"][:-1])
                return [Number(*pair) for pair in zip(file["names"].tolist(), digits, strict=True)], int(
                    file["dropped"]
                )
    scratch = folder / f".{split}.mat"
    try:
        for name, tar, member in digitstruct.members(archive):
            if name == "digitStruct.mat":
                mat: Any = tar.extractfile(member)
                with writing(scratch), open(scratch, "wb") as file:
                    shutil.copyfileobj(mat, file)
                break
        else:
            raise ValueError(f"{archive} has no digitStruct.mat: delete it to fetch it again")
        found = digitstruct.read(scratch)
    finally:
        scratch.unlink(missing_ok=True)
    numbers = [number for number in found if 1 <= len(number.digits) <= PLACES]
    for number in numbers:
        label(number)
    scratch = folder / f".{split}.npz"
    try:
        with writing(kept):
            np.savez(
                scratch, names=[n.name for n in numbers], digits=np.concatenate([n.digits for n in numbers]),
                ends=np.cumsum([len(n.digits) for n in numbers]), dropped=len(found) - len(numbers),
                bytes=archive.stat().st_size,
            )  # fmt: skip
        os.replace(scratch, kept)
    finally:
        scratch.unlink(missing_ok=True)
    return numbers, len(found) - len(numbers)


def rows(numbers: dict[str, list[Number]]) -> dict[str, list[tuple[str, int]]]:
    """The split of every number of every archive, and its row there; a fixed 5k of train are valid (C)."""
    n = len(numbers["train"])
    valid = set(np.random.default_rng(VALID_SEED).permutation(n)[: min(VALID, n // 4)].tolist())
    filled = dict.fromkeys(("train", "valid", "test"), 0)
    result: dict[str, list[tuple[str, int]]] = {}
    for archive, found in numbers.items():
        result[archive] = []
        for i in range(len(found)):
            split = "valid" if archive == "train" and i in valid else STORED[archive]
            result[archive].append((split, filled[split]))
            filled[split] += 1
    return result


def prepare(folder: Path, size_px: int, counts: dict[str, int | None]) -> Path:
    """Make the store of crops of size_px from folder/<archive>.tar.gz for each archive in `counts`; return its folder.

    `counts` holds the number of images of each archive, None if unknown.  Raises ValueError or OSError if that fails.
    The unfinished store is called <size>px.partial, and the next call continues it.
    """
    store, partial = folder / f"{size_px}px", folder / f"{size_px}px.partial"
    if store.exists():
        return store
    numbers, dropped = {}, {}
    for archive, count in counts.items():
        numbers[archive], dropped[archive] = read_numbers(folder, archive)
        if count is not None and len(numbers[archive]) + dropped[archive] != count:
            raise ValueError(
                f"{folder / archive}.tar.gz has {len(numbers[archive]) + dropped[archive]} numbers, SVHN has {count}: "
                "delete it to fetch it again"
            )
    place = rows(numbers)
    sizes = {split: sum(s == split for at in place.values() for s, _ in at) for split in ("train", "valid", "test")}
    _make_room(partial, sizes, size_px)
    files = {split: np.load(partial / f"{split}.npy", mmap_mode="r+") for split in sizes}
    labels = {split: np.load(partial / f"{split}-labels.npy", mmap_mode="r+") for split in sizes}
    progress_file = partial / "progress.json"
    done: dict[str, int] = parsed(progress_file.read_bytes(), str(progress_file), f"delete {partial}")

    def save(archive: str, count: int) -> None:
        for array in (*files.values(), *labels.values()):
            array.flush()
        done[archive] = count
        _write_json(progress_file, done)

    def write(pictures: list[tuple[bytes, Number, str, int]]) -> None:
        cuts = pool.map(lambda picture: crop(picture[0], picture[1], size_px), pictures)
        for cut, (_, number, split, row) in zip(cuts, pictures, strict=True):
            files[split][row], labels[split][row] = cut, label(number)

    for archive in counts:
        where = {n.name: (n, *at) for n, at in zip(numbers[archive], place[archive], strict=True)}
        seen, waiting = 0, []
        with (
            tqdm(total=len(where), desc=f"{archive}, {size_px} px", unit="crop") as bar,
            ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool,
        ):
            for name, tar, member in digitstruct.members(folder / f"{archive}.tar.gz"):
                if name not in where:
                    continue
                seen += 1
                bar.update()
                if seen <= done.get(archive, 0):
                    continue
                picture: Any = tar.extractfile(member)
                waiting.append((picture.read(), *where[name]))
                if seen % SAVE_EVERY == 0:
                    write(waiting)
                    save(archive, seen)
                    waiting = []
            write(waiting)
        if seen != len(where):
            raise ValueError(
                f"{folder / archive}.tar.gz lacks {len(where) - seen} of the {len(where)} pictures that its "
                "digitStruct.mat names: delete it to fetch it again"
            )
        save(archive, seen)
    index = {
        "size_px": size_px, "numbers": sizes, "dropped": dropped,
        "sha256": {name: sha256(partial / f"{name}.npy") for split in sizes for name in (split, f"{split}-labels")},
    }  # fmt: skip
    _write_json(partial / "index.json", index)
    progress_file.unlink()
    os.rename(partial, store)
    return store


def _make_room(partial: Path, sizes: dict[str, int], size_px: int) -> None:
    """Empty arrays with their disk space reserved, so that a full disk cannot interrupt the writing later."""
    arrays: dict[str, tuple[int, ...]] = {}
    for split, n in sizes.items():
        arrays |= {f"{split}.npy": (n, size_px, size_px, 3), f"{split}-labels.npy": (n, PLACES)}
    if all((partial / name).exists() for name in arrays) and (partial / "progress.json").exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    needed, free = sum(int(np.prod(shape)) for shape in arrays.values()), shutil.disk_usage(partial).free
    try:
        if needed > free:
            raise OSError("disk full")
        for name, shape in arrays.items():
            array = np.lib.format.open_memmap(partial / name, mode="w+", dtype=np.uint8, shape=shape)
            array.flush()
            with open(partial / name, "r+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(partial / name))
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"the store of {size_px} px crops needs {needed / 1e9:.1f} GB, but {partial.parent} has "
            f"{free / 1e9:.1f} GB free: make room, or set --root to a larger disk"
        ) from None
    _write_json(partial / "progress.json", {})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    scratch = path.with_suffix(".tmp")
    with writing(path):
        scratch.write_text(json.dumps(content))
    os.replace(scratch, path)


class Svhn:
    """Crops of size_px with labels (B, 5), read from the store; `in_shape` is (3, S, S), `classes` the digits and NULL.

    `test_split` is the split that the metrics are measured on: test, or valid for choosing settings.
    """

    classes = NULL + 1
    labelled = True
    synthetic = False
    on_device = False
    folder = "svhn"
    how = (
        "run `make data-svhn` (2.6 GB to download, 3 GB of 64 px crops, 12 GB of 128 px ones), or run on rendered "
        "numbers: `make data-svhn-rendered`, then the same command with data=svhn_rendered"
    )

    def __init__(self, root: str | Path, size_px: int, test_split: str = "test"):
        self.in_shape = self.shape(size_px, test_split)
        self.test_split = test_split
        store = self._store(root, size_px)
        self.sha256 = self._checksums(store)
        self.images, self.labels = self._load(store, "train")
        self.test = self._load(store, test_split)

    @staticmethod
    def shape(size_px: Any, test_split: Any = "test") -> tuple[int, int, int]:
        """`in_shape`, without reading a file.  Raises ValueError on invalid values."""
        check_split(test_split)
        require(whole(16, 1024), "data.size_px", size_px, "; the paper's are 64 and 128")
        return 3, size_px, size_px

    @classmethod
    def ensure(cls, root: str | Path, size_px: int, **settings: Any) -> None:
        """Raise FileNotFoundError if the store does not exist: a separate command prepares it."""
        cls._store(root, size_px)

    @classmethod
    def _store(cls, root: str | Path, size_px: int) -> Path:
        store = Path(root) / cls.folder / f"{size_px}px"
        if not (store / "index.json").exists():
            raise FileNotFoundError(f"there are no {size_px} px crops in {store}: {cls.how}")
        return store

    def _checksums(self, store: Path) -> dict[str, str]:
        """The sha256 of each file of the store, from its index."""
        remedy = f"delete {store} and {self.how}"
        index = parsed((store / "index.json").read_bytes(), f"{store / 'index.json'}", remedy)
        sums = index.get("sha256") if isinstance(index, dict) else None
        if not isinstance(sums, dict) or not {"train", "train-labels", "test", "test-labels"} <= set(sums):
            raise ValueError(f"{store / 'index.json'} lacks the sha256 of images or labels: {remedy}")
        return sums

    def _load(self, store: Path, split: str) -> tuple[np.ndarray, Int[Tensor, "n 5"]]:
        """A split's crops and labels, every byte checked against the index, in about 1.5 s per gigabyte."""
        for name in (split, f"{split}-labels"):
            path = store / f"{name}.npy"
            if not path.is_file() or sha256(path) != self.sha256.get(name):
                raise ValueError(f"{path} is damaged: delete {store} and {self.how}")
        images = np.load(store / f"{split}.npy", mmap_mode="r")
        return images, torch.from_numpy(np.load(store / f"{split}-labels.npy")).long()

    def to(self, device: torch.device) -> None:
        """Move the labels to `device`; the crops stay in the store, and a batch goes to the generator's device."""
        self.labels = self.labels.to(device)

    def batch(self, n: int, generator: Generator) -> tuple[Float[Tensor, "b 3 s s"], Int[Tensor, "b 5"]]:
        """n training examples, drawn with replacement, on the generator's device."""
        index = torch.randint(len(self.images), (n,), generator=generator, device=generator.device)
        return _picture(self.images[index.cpu().numpy()]).to(generator.device).float() / 255, self.labels[index]

    def test_batches(self) -> Iterator[tuple[Float[Tensor, "b 3 s s"], Int[Tensor, "b 5"]]]:
        """The test split, 250 at a time."""
        images, labels = self.test
        for start in range(0, len(images), 250):
            yield _picture(images[start : start + 250]).float() / 255, labels[start : start + 250]

    def checksums(self) -> dict[str, str]:
        """sha256 of the crops and the labels of the training and the test split, for the record."""
        files = {half + end: split + end for half, split in (("train", "train"), ("test", self.test_split))
                 for end in ("", "-labels")}  # fmt: skip
        return {name: self.sha256[file] for name, file in files.items()}


def _picture(rows: np.ndarray) -> UInt8[Tensor, "b 3 s s"]:
    return torch.from_numpy(np.array(rows)).permute(0, 3, 1, 2)


class RenderedNumbers(Svhn):
    """Rendered house numbers (stn.experiments.datasets.rendered) instead of SVHN: synthetic data."""

    synthetic = True
    folder = "svhn_rendered"
    how = "run `make data-svhn-rendered` (30,000 rendered numbers, a few minutes, 2.5 GB)"
