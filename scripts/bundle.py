"""For a machine without a network: take this project there in one folder, bring its results back in one file.

    python scripts/bundle.py make                  here: write build/bundle, at most 60 MB (`make bundle`)
    python3 scripts/bundle.py unpack               there, in that folder: make the environment .venv on top of that
                                                   machine's Python, uncompress MNIST, merge earlier results if included
    .venv/bin/python scripts/bundle.py home        there: pack records, curves and checkpoints into stn-home.tar.gz
    python scripts/bundle.py merge FILE            here: add the new results in FILE to runs/; then `make records`

That machine needs Python 3.12, PyTorch, torchvision, Lightning, jaxtyping, h5py, OpenCV and pytest; the bundle has the
wheels of the rest.  W&B, SciPy and albumentations are not included: train with logger=none.  Tests that need them are
skipped.
"""

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NoReturn

# Standard library only: `unpack` runs before anything else is installed.
ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 60_000_000
WHEELS = (  # with their dependencies, except those that PyTorch, Lightning and pytest bring
    "hydra-core", "omegaconf", "antlr4-python3-runtime", "safetensors", "rich", "markdown-it-py", "mdurl", "pygments",
    "beartype", "joblib", "hydra-joblib-launcher", "pytest-xdist", "execnet",
)  # fmt: skip
FROM_SOURCE = ("antlr4-python3-runtime",)  # pure Python, but the version that OmegaConf needs has no wheel
GLIBC = ("2_28", "2_27", "2_17", "2_5")
KEPT = ("result.json", "config.json")  # of every run; of an unfinished run also these
GOES_ON = ("unfinished.json", "checkpoint.ckpt")
NAME = r"\w[\w.-]*"
MEMBER = re.compile(rf"runs/({NAME})/({'|'.join(map(re.escape, (*KEPT, *GOES_ON, 'weights.safetensors')))})")
LOG = re.compile(rf"campaign/({NAME}\.(txt|json))")
LARGEST = 1 << 30  # bytes, of one member of an archive


# --- here


def make(options: argparse.Namespace) -> None:
    """Write the bundle from scratch, except for the wheels that it already has."""
    out = options.out
    if out.exists() and not (out / ".commit").is_file():
        raise ValueError(f"{out} exists and is not a bundle: remove it, or choose another --out")
    wheels = out.with_name(out.name + "-wheels") / options.python
    fetch_wheels(wheels, options.python)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / ".commit").write_text(project(out, options.worktree))
    shutil.copytree(wheels, out / "wheels")
    for source in sorted((ROOT / "data/mnist").glob("*-ubyte")):
        target = out / "data/mnist" / f"{source.name}.gz"
        target.parent.mkdir(exist_ok=True)
        with open(source, "rb") as plain, gzip.GzipFile(target, "wb", mtime=0) as packed:
            shutil.copyfileobj(plain, packed)
    if not list((out / "data").rglob("*.gz")):
        raise ValueError(f"no MNIST in {ROOT / 'data/mnist'}: run `make data`")
    if options.resume:
        shutil.copy(options.resume, out / "earlier.tar.gz")
    sizes = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) or path.stat().st_size
             for path in out.iterdir()}  # fmt: skip
    total = sum(sizes.values())
    largest = ", ".join(f"{p.name} {n / 1e6:.1f}" for p, n in sorted(sizes.items(), key=lambda one: -one[1])[:4])
    if total > MOST_BYTES:
        raise ValueError(f"{out} has {total / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f} MB: {largest} MB")
    print(f"{out}: {total / 1e6:.1f} MB ({largest} MB).  On the other machine: python3 scripts/bundle.py unpack")


def project(out: Path, worktree: bool) -> str:
    """Copy the files of HEAD, or of the working tree; return the commit, with " changed" if they differ from it."""

    def git(*words: str) -> bytes:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True)
        if done.returncode:
            raise ValueError(f"git {words[0]}: {done.stderr.decode().strip()}; make the bundle in a git checkout")
        return done.stdout

    commit = git("rev-parse", "HEAD").decode().strip()
    changed = bool(git("status", "--porcelain").strip())
    if not worktree:
        if changed:
            print("the bundle has the last commit; --worktree includes the changes since")
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", out], input=archive, check=True)
        return commit
    for name in sorted(set(os.fsdecode(git("ls-files", "-z", "-c", "-o", "--exclude-standard")).split("\0")) - {""}):
        if (ROOT / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, out / name)
    return commit + (" changed" if changed else "")


def fetch_wheels(folder: Path, python: str) -> None:
    """The wheels of WHEELS for Linux on x86-64, in the versions of constraints.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    have = {wheel.name.split("-")[0].lower() for wheel in folder.glob("*.whl")}
    missing = [name for name in WHEELS if name.replace("-", "_") not in have]
    platforms = [word for glibc in GLIBC for word in ("--platform", f"manylinux_{glibc}_x86_64")]
    how: dict[str, list[str]] = {
        "wheel": [name for name in missing if name in FROM_SOURCE],
        "download": [name for name in missing if name not in FROM_SOURCE],
    }
    words: dict[str, list[str]] = {
        "wheel": ["--wheel-dir", str(folder)],
        "download": ["--dest", str(folder), "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
                     *platforms, "--platform", "manylinux2014_x86_64"],
    }  # fmt: skip
    for command, names in how.items():
        if names:
            pip = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-deps"]
            pins = ["-c", str(ROOT / "constraints.txt")]
            done = subprocess.run([*pip, *pins, *words[command], *names], capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"pip {command} {' '.join(names)}: {done.stderr.strip().splitlines()[-1]}")


# --- there


def unpack(options: argparse.Namespace) -> None:
    """Make .venv on top of the Python that runs this, add the wheels that it lacks, uncompress MNIST."""
    environment = ROOT / ".venv"
    venv.create(environment, with_pip=False, symlinks=True, clear=True)
    site = environment / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    here = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    folders = dict.fromkeys(p for p in here if p and Path(p).name in ("site-packages", "dist-packages"))
    lines = [str(ROOT), *(f"import site; site.addsitedir({folder!r})" for folder in folders)]
    (site / "machine.pth").write_text("\n".join(lines) + "\n")
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (site / "stn.dist-info").mkdir()  # tells importlib.metadata that stn is installed, and its version
    (site / "stn.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: stn\nVersion: {version and version[1]}\n"
    )
    added, there = [], []
    for wheel in sorted((ROOT / "wheels").glob("*.whl")):
        name = wheel.name.split("-")[0]
        if _installed(name):
            there.append(name)
        elif not _fits(wheel):
            raise ValueError(f"{wheel.name} does not fit Python {sys.version.split()[0]}: make the bundle with "
                             f"--python {sys.version_info.major}.{sys.version_info.minor}")  # fmt: skip
        else:
            with zipfile.ZipFile(wheel) as file:  # from our own bundle; zipfile writes nothing outside `site`
                file.extractall(site)
            added.append(name)
    for source in sorted((ROOT / "data/mnist").glob("*.gz")):
        with gzip.open(source) as packed, open(source.with_suffix(""), "wb") as plain:
            shutil.copyfileobj(packed, plain)
    (environment / ".ready").touch()  # for make
    print(f"{environment}: added {', '.join(added) or 'nothing'}; already there: {', '.join(there) or 'none of these'}")
    if (ROOT / "earlier.tar.gz").is_file():
        subprocess.run([environment / "bin/python", __file__, "merge", ROOT / "earlier.tar.gz"], check=True)
    print("next, as often as needed: .venv/bin/python scripts/campaign.py --minutes 9")


def _installed(name: str) -> bool:
    try:
        return distribution(name) is not None
    except PackageNotFoundError:
        return False


def _fits(wheel: Path) -> bool:
    python, abi, _ = wheel.stem.split("-")[-3:]
    return (
        "py3" in python.split(".") or abi == "abi3" or python == f"cp{sys.version_info.major}{sys.version_info.minor}"
    )


def home(options: argparse.Namespace) -> None:
    """Pack the results and print their size."""
    count = pack(options.runs, options.out, options.weights)
    print(f"{options.out}: {count} files, {options.out.stat().st_size / 1e6:.1f} MB")


def pack(runs: Path, out: Path, weights: str | None = None) -> int:
    """Pack the records, curves and checkpoints in `runs` into one file, atomically; return how many files it holds.

    Of finished runs, it holds the weights only if the run's name matches `weights`.
    """
    if not runs.is_dir():
        raise ValueError(f"--runs {runs}: there is no such folder")
    if out.exists() and not out.is_file():
        raise ValueError(f"--out {out} is a folder or a device: name a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch, count = out.with_name(out.name + ".tmp"), 0
    with tarfile.open(scratch, "w:gz", compresslevel=4) as tar:
        for file in _packed(runs, weights):
            try:
                tar.add(
                    file, f"{'campaign' if file.parent.name == 'campaign' else f'runs/{file.parent.name}'}/{file.name}"
                )
            except FileNotFoundError:  # replaced or removed by a running process
                continue
            count += 1
    os.replace(scratch, out)
    return count


def _packed(runs: Path, weights: str | None) -> Iterator[Path]:
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        done = (folder / "result.json").is_file()
        if folder.name == "campaign":
            yield from (file for file in sorted(folder.iterdir()) if LOG.fullmatch(f"campaign/{file.name}"))
        elif done or (folder / "checkpoint.ckpt").is_file():
            names = [*KEPT, *(() if done else GOES_ON)]
            if done and weights and folder.match(weights):
                names.append("weights.safetensors")
            yield from (folder / name for name in names if (folder / name).is_file())


# --- here again


def merge(options: argparse.Namespace) -> None:
    """Add the new results of a file written by `home` to `runs`; finished runs there do not change.

    An archive is data: only regular files with the names above are read, and all are checked before any is written.
    """
    from stn.experiments.results import records
    from stn.experiments.training import checkpoint

    scratch = options.runs / ".merge"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        counts = {"new records": 0, "unfinished runs": 0, "unchanged": 0}
        for name, files in sorted(_checked(options.file, scratch, records.read, checkpoint.check).items()):
            target = options.runs / name
            if name == "campaign":
                pass
            elif (target / "result.json").exists() or _ahead(target, files, records.read):
                counts["unchanged"] += 1
                continue
            else:
                counts["new records" if "result.json" in files else "unfinished runs"] += 1
            target.mkdir(exist_ok=True)
            for file in sorted(files.values(), key=lambda path: path.name == "result.json"):  # the record comes last
                os.replace(file, target / file.name)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{options.file} is damaged ({error}): nothing was merged") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{options.runs}: " + ", ".join(f"{n} {what}" for what, n in counts.items()) + "; `make records` keeps them")


def _checked(
    archive: Path, scratch: Path, read: Callable[[Path], Any], check: Callable[[Path], None]
) -> dict[str, dict[str, Path]]:
    """The files of an archive by run and name, copied into `scratch`.  Raises ValueError on any other file."""
    found: dict[str, dict[str, Path]] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            match = MEMBER.fullmatch(member.name) or LOG.fullmatch(member.name)
            if match is None or not member.isfile() or member.size > LARGEST:
                raise ValueError(f"{archive} holds {member.name!r:.80}, which is not a run's file: nothing was merged")
            run = "campaign" if member.name.startswith("campaign/") else match[1]
            path = scratch / run / Path(member.name).name
            path.parent.mkdir(exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, open(path, "wb") as file:
                shutil.copyfileobj(source, file)
            found.setdefault(run, {})[path.name] = path
    for run, files in found.items():
        for name in {"result.json", "unfinished.json"} & set(files):
            if (record := read(files[name]))["id"] != run:
                raise ValueError(f"{archive} holds the record of {record['id']} under {run}: nothing was merged")
        if "checkpoint.ckpt" in files:
            check(files["checkpoint.ckpt"])
    return found


def _ahead(folder: Path, files: dict[str, Path], read: Callable[[Path], Any]) -> bool:
    """Whether an unfinished run has more steps here than in the archive."""
    if "result.json" in files or not (folder / "checkpoint.ckpt").exists():
        return False
    steps = [read(path).get("step", 0) if path.is_file() else 0
             for path in (folder / "unfinished.json", files.get("unfinished.json", folder / "none"))]  # fmt: skip
    return steps[0] >= steps[1]


class Options(argparse.ArgumentParser):
    """As stn.experiments.command.Options, which cannot be imported before `unpack`."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message}; {self.prog} --help lists the options")


def main() -> None:
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    one = commands.add_parser("make", help="write the bundle")
    one.add_argument("--out", type=Path, default=ROOT / "build/bundle", help="default: build/bundle")
    one.add_argument("--python", default="3.12", help="version on that machine (default: 3.12)")
    one.add_argument("--worktree", action="store_true", help="the working tree instead of the last commit")
    one.add_argument("--resume", type=Path, metavar="FILE", help="include what `home` packed before")
    one.set_defaults(do=make)
    commands.add_parser("unpack", help="make the environment on that machine").set_defaults(do=unpack)
    one = commands.add_parser("home", help="pack the results")
    one.add_argument("--out", type=Path, default=ROOT / "stn-home.tar.gz", help="default: stn-home.tar.gz")
    one.add_argument("--runs", type=Path, default=ROOT / "runs", help="default: runs")
    one.add_argument(
        "--weights", metavar="GLOB", help="include the weights of these finished runs, such as '*-seed0-*'"
    )
    one.set_defaults(do=home)
    one = commands.add_parser("merge", help="add packed results to runs/")
    one.add_argument("file", type=Path)
    one.add_argument("--runs", type=Path, default=ROOT / "runs", help="default: runs")
    one.set_defaults(do=merge)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
