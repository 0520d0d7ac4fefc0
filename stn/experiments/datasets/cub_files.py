"""CUB-200-2011 on disk: fetch, check and unpack its archive, and read the text files that describe its images.

Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
"""

import logging
import os
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from stn.experiments.datasets.fetch import alone, download, manifest, sha256
from stn.experiments.datasets.photos import Listing
from stn.experiments.errors import Unwritable, writing

log = logging.getLogger(__name__)
FOLDER = "CUB_200_2011"  # in the archive and in data/cub


@dataclass(frozen=True)
class BirdListing(Listing):
    """A listing with boxes (x, y, width, height) and parts (x, y, visible), in px."""

    boxes: Float[np.ndarray, "n 4"]
    parts: Float[np.ndarray, "n p 3"]
    part_names: list[str]


def read(folder: Path) -> BirdListing:
    """The listing of a folder in CUB's format.

    Raises FileNotFoundError or ValueError if a file is missing or the files contradict each other.
    """
    names = _table(folder / "images.txt")
    numbers = list(names)
    classes = _table(folder / "classes.txt")
    part_names = _table(folder / "parts/parts.txt")
    n, k, p = len(names), len(classes), len(part_names)
    labels = _numbers(folder / "image_class_labels.txt", numbers, 1)[:, 0].astype(np.int64)
    if n and not (labels.min() >= 1 and labels.max() <= k):
        bad = int(np.flatnonzero((labels < 1) | (labels > k))[0])
        raise ValueError(
            f"{folder / 'image_class_labels.txt'}: image {numbers[bad]} has class {labels[bad]}, "
            f"but classes.txt has 1 to {k}: unpack the archive again"
        )
    train = _numbers(folder / "train_test_split.txt", numbers, 1)[:, 0].astype(bool)
    boxes = _numbers(folder / "bounding_boxes.txt", numbers, 4)
    pairs = [f"{i} {part}" for i in numbers for part in part_names]
    parts = _numbers(folder / "parts/part_locs.txt", pairs, 3).reshape(n, p, 3)
    paths = []
    for name in names.values():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"{folder / 'images.txt'} names {name!r}, which is outside the folder: not CUB's file")
        paths.append(folder / "images" / place)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {n} images in {folder / 'images.txt'} are missing, the first is {missing[0]}: "
            f"delete {folder} and run `make data-cub`"
        )
    return BirdListing(
        paths, list(names.values()), labels - 1, train, list(classes.values()), boxes, parts, list(part_names.values())
    )


def _table(path: Path) -> dict[str, str]:
    """Lines "number text", by number."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the folder needs the files of {FOLDER} under their own names; run `make data-cub`"
        )
    table = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if len(line.split()) > 1)
    if not table:
        raise ValueError(f"{path} is empty: delete {path.parent} and run `make data-cub`")
    return {number: text.strip() for number, text in table.items()}


def _numbers(path: Path, keys: list[str], values: int) -> np.ndarray:
    """Lines "key v1 .. v_values" for exactly these keys, in any order: (len(keys), values)."""
    if not path.is_file():
        _table(path)
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        words = line.split()
        found[" ".join(words[:-values])] = words[-values:]
    try:
        return np.array([found[key] for key in keys], dtype=np.float64)
    except KeyError as error:
        raise ValueError(f"{path} has no line for {error.args[0]!r}: unpack the archive again") from None
    except ValueError as error:
        raise ValueError(f"{path} holds a value that is not a number ({error}): unpack the archive again") from None


def fetch_cub(root: Path) -> Path:
    """The folder CUB_200_2011 in root/cub; its archive is downloaded, checked by sha256 and unpacked if needed.

    An existing archive (root/cub/CUB_200_2011.tgz) is used.  Raises OSError or ValueError if that fails.
    """
    folder = root / "cub" / FOLDER
    if folder.is_dir():
        return folder
    entry = manifest("cub", root)
    ((name, file),) = entry["files"].items()
    archive = root / "cub" / name
    with alone(archive.parent):
        if folder.is_dir():  # the process that this one has waited for was at it
            return folder
        if not archive.is_file():
            _download(archive, file, entry["mirrors"])
        elif sha256(archive) != file["sha256"]:
            raise ValueError(f"{archive} is damaged (its sha256 is wrong): delete it and run `make data-cub`")
        unpack(archive, folder)
    return folder


def _download(archive: Path, file: dict[str, Any], mirrors: list[str]) -> None:
    for mirror in mirrors:
        try:
            return download(f"{mirror}{archive.name}", archive, file["bytes"], file["sha256"])
        except Unwritable:
            raise
        except OSError as error:
            log.info("%s", error)
    raise FileNotFoundError(
        f"{archive} is missing, and {' and '.join(mirrors)} did not provide it: put the archive there yourself and run "
        f"`make data-cub`, or train on synthetic birds with data=synthetic_birds"
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the folder `folder.name` of the archive to `folder`, which appears only once it is complete and readable.

    Raises ValueError, and keeps nothing, on a member outside the folder, on links and devices, and on a damaged
    archive.
    """
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # what a process that was killed has left
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
                    raise ValueError(f"{archive} holds {member.name!r}, which is not a plain file inside it: refused")
                if place.parts[:1] == (folder.name,) and member.isfile():
                    target = scratch / place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    data: Any = tar.extractfile(member)
                    with writing(folder), open(target, "wb") as file:
                        shutil.copyfileobj(data, file)
        read(scratch / folder.name)
        os.replace(scratch / folder.name, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged ({error}): delete it and run `make data-cub`") from None
    except FileNotFoundError as error:
        raise ValueError(f"{archive} is not CUB's: {str(error).replace(str(scratch), str(archive))}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
