"""Reads and writes SVHN's format 1: `<split>.tar.gz` with `<split>/1.png ...` and `<split>/digitStruct.mat`.

digitStruct.mat is a MATLAB 7.3 file, that is HDF5.  `digitStruct/name` and `digitStruct/bbox` (N, 1) hold one reference
per image: to its file name as uint16 characters, and to a group of `height`, `left`, `top`, `width`, `label`.  Each of
these is (1, 1) with the value if the image shows one digit, else (n, 1) with references to n such values.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from stn.experiments.command import end_with_parent, starting_workers
from stn.experiments.errors import one_line, writing

DOUBLE = np.dtype(np.float64)
REFERENCE = h5py.h5t.py_create(h5py.ref_dtype)
FIELDS = ("left", "top", "width", "height", "label")
CACHE = 2**27  # bytes, HDF5's most: its 32 MB do not hold the names in SVHN's extra file, which each new one would read
PART = 1000  # records that one process reads at a time: about a second, for which a signal has to wait


class Number(NamedTuple):
    """A house number: its file, and one row per digit (left, top, width, height, label), in px; label 10 is a 0."""

    name: str
    digits: np.ndarray


def read(path: Path, progress: bool = True) -> list[Number]:
    """Every record of a digitStruct.mat, in the file's order, read on all cores.

    Raises ValueError if the file is something else or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            n = len(file["digitStruct"]["name"])
        parts = [(path, start, min(start + PART, n)) for start in range(0, n, PART)]
        found: list[Number] = []
        with tqdm(total=n, desc=str(path.name), unit="number", disable=not progress) as bar:
            if len(parts) == 1:
                return _part(parts[0])
            with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
                with starting_workers():
                    results = pool.map(_part, parts)
                for numbers in results:
                    found += numbers
                    bar.update(len(numbers))
        return found
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        # not the file's fault: the processes import the script that was started, which calls this function again
        if isinstance(error, BrokenProcessPool) or "bootstrapping phase" in str(error):
            raise ValueError(
                f"{path} has more than {PART} records, which are read by several processes: call this under "
                '`if __name__ == "__main__":` in your script, with memory for all cores'
            ) from None
        raise ValueError(
            f"{path} is not a digitStruct.mat or is damaged ({one_line(error)}): fetch its archive again"
        ) from None


def _part(part: tuple[Path, int, int]) -> list[Number]:
    """Records start to stop, with h5py's low-level API: the high-level one takes five times as long."""
    path, start, stop = part
    with h5py.File(path, "r") as file:
        names, boxes = (np.asarray(file["digitStruct"][key][start:stop]).ravel() for key in ("name", "bbox"))
        return [Number(_name(name, file.id), _digits(box, file.id)) for name, box in zip(names, boxes, strict=True)]


def _values(dataset: h5py.h5d.DatasetID, dtype: np.dtype, kind: h5py.h5t.TypeID) -> np.ndarray:
    out = np.empty(dataset.get_space().get_simple_extent_npoints(), dtype)
    space = h5py.h5s.create_simple((len(out),))
    dataset.read(space, h5py.h5s.ALL, out, kind)
    return out


def _name(reference: h5py.Reference, file: h5py.h5f.FileID) -> str:
    text = _values(h5py.h5r.dereference(reference, file), np.dtype(np.uint16), h5py.h5t.NATIVE_UINT16)
    return text.astype(np.uint8).tobytes().decode("ascii")


def _digits(reference: h5py.Reference, file: h5py.h5f.FileID) -> np.ndarray:
    group = h5py.h5r.dereference(reference, file)
    columns = []
    for field in FIELDS:
        dataset = h5py.h5d.open(group, field.encode())
        if dataset.get_space().get_simple_extent_npoints() == 1:
            columns.append(_values(dataset, DOUBLE, h5py.h5t.NATIVE_DOUBLE))
            continue
        scalars = _values(dataset, h5py.ref_dtype, REFERENCE)
        columns.append(np.concatenate([
            _values(h5py.h5r.dereference(scalar, file), DOUBLE, h5py.h5t.NATIVE_DOUBLE) for scalar in scalars
        ]))  # fmt: skip
    return np.stack(columns, axis=1)


def write(path: Path, numbers: Iterable[Number]) -> None:
    """Write a digitStruct.mat as MATLAB would; h5py's high-level objects would take three times as long.

    HDF5 writes to memory (2.6 GB for the 202,353 numbers of SVHN's extra file), since it crashes where a disk is full.
    """
    one = h5py.h5s.create_simple((1, 1))
    with h5py.File(path, "w", driver="core", backing_store=False, userblock_size=512) as file:
        cache = file.id.get_mdc_config()
        cache.max_size = CACHE
        file.id.set_mdc_config(cache)
        heap, struct = file.create_group("#refs#").id, file.create_group("digitStruct")
        struct.attrs["MATLAB_class"] = np.bytes_("struct")

        def dataset(place: h5py.h5g.GroupID, name: bytes, values: np.ndarray, stored: h5py.h5t.TypeID) -> None:
            space = one if len(values) == 1 else h5py.h5s.create_simple((len(values), 1))
            kind = REFERENCE if stored is h5py.h5t.STD_REF_OBJ else stored
            h5py.h5d.create(place, name, stored, space).write(h5py.h5s.ALL, h5py.h5s.ALL, values, kind)

        def reference(name: bytes) -> h5py.Reference:
            return h5py.h5r.create(heap, name, h5py.h5r.OBJECT)

        names, boxes = [], []
        for i, number in enumerate(numbers):
            name, box = b"n%d" % i, b"b%d" % i
            text = np.frombuffer(number.name.encode("ascii"), np.uint8).astype(np.uint16)
            dataset(heap, name, text, h5py.h5t.STD_U16LE)
            group = h5py.h5g.create(heap, box)
            for field, values in zip(FIELDS, number.digits.T, strict=True):
                if len(values) == 1:
                    dataset(group, field.encode(), values, h5py.h5t.IEEE_F64LE)
                    continue
                scalars = [b"%s%d_%d" % (field.encode(), i, k) for k in range(len(values))]
                for scalar, value in zip(scalars, values, strict=True):
                    dataset(heap, scalar, value[None], h5py.h5t.IEEE_F64LE)
                references = np.array([reference(scalar) for scalar in scalars], dtype=h5py.ref_dtype)
                dataset(group, field.encode(), references, h5py.h5t.STD_REF_OBJ)
            names.append(reference(name))
            boxes.append(reference(box))
        for key, found in (("name", names), ("bbox", boxes)):
            struct.create_dataset(key, data=np.array(found, dtype=object)[:, None], dtype=h5py.ref_dtype)
        file.flush()
        image = file.id.get_file_image()  # without the user block, which names the format
    block = b"MATLAB 7.3 MAT-file, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"
    with open(path, "wb") as raw:
        raw.write(block.ljust(512, b"\0"))
        raw.write(image)


def pack(folder: Path, split: str, pictures: Iterator[tuple[bytes, np.ndarray]], n: int) -> Path:
    """Write n PNGs and their digits, as in `Number`, as folder/<split>.tar.gz, which appears only when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.tar.gz"
    # two processes at a time each write their own
    scratch, mat = (folder / f".{split}.{os.getpid()}.{kind}" for kind in ("tar.gz", "mat"))
    numbers = []
    try:
        with writing(path), tarfile.open(scratch, "w:gz", compresslevel=1) as tar:

            def add(name: str, data: Any, size: int) -> None:
                info = tarfile.TarInfo(f"{split}/{name}")
                info.size = size
                tar.addfile(info, data)

            for i, (png, digits) in enumerate(tqdm(pictures, path.name, n), start=1):
                numbers.append(Number(f"{i}.png", digits))
                add(f"{i}.png", io.BytesIO(png), len(png))
            write(mat, numbers)
            with open(mat, "rb") as file:
                add("digitStruct.mat", file, mat.stat().st_size)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
        mat.unlink(missing_ok=True)
    return path


def members(archive: Path) -> Iterator[tuple[str, tarfile.TarFile, tarfile.TarInfo]]:
    """The files of `<split>.tar.gz` as (name without folder, archive, member), in order, in one pass.

    No file is extracted by path.  Raises ValueError on a name outside the folder <split> and on a damaged archive.
    """
    split = archive.name.removesuffix(".tar.gz")
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                parts = Path(member.name).parts
                if not (member.isdir() or member.isfile()) or ".." in parts or parts[:1] != (split,) or len(parts) > 2:
                    raise ValueError(
                        f"{archive} holds {member.name!r}, which is not a file of {split}/: it is not SVHN's"
                    )
                if member.isfile():
                    yield parts[1], tar, member
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{archive} is damaged ({error}): delete it to fetch it again") from None
