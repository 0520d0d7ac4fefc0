"""Records: the settings of a run and its results.  Tables, figures and reports are made from records alone.

A run leaves `result.json` (version 2; docs/records.md explains its keys).  Kept records are in three files in git:
records.jsonl, one run per line; curves.jsonl; and environments.json, which holds every machine and data set once.  A
record is data: reading one calls nothing that it names.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from stn.experiments.errors import writing
from stn.experiments.results.checks import REQUIRED, VERSION, Record, checked, parsed

__all__ = [
    "REQUIRED",
    "VERSION",
    "Record",
    "and_kept",
    "commit",
    "devices_of",
    "keep",
    "metrics_of",
    "on_gpu",
    "read",
    "read_all",
    "read_kept",
    "read_runs",
    "replace",
    "spent",
    "thin",
    "write",
]

POINTS = 100  # most points of a kept or drawn curve
RESTORE = "`git checkout` the file to restore it"
DIGITS = 4  # significant digits of a kept curve's values
ENVIRONMENT = ("versions", "device")  # keys of a record that are kept in environments.json
LINE = ("version", "id", "experiment", "schedule", "seed", "status", "metrics", "params", "steps", "seconds",
        "core_seconds", "samples_per_s", "precision", "budget", "smoke", "synthetic", "in_shape", "classes", "config",
        "revisions", "overrides", "redundant", "environment", "data", "threads", "commit", "dirty", "test_images",
        "sessions", "weights_sha256", "finished_at", "old_id", "failure", "failed_step")  # fmt: skip


def unit(metric: str) -> str:
    """The unit after a figure: all metrics are percentages except correlations."""
    return "" if "correlation" in metric else " %"


def metrics_of(record: Record) -> dict[str, int | float]:
    """The metrics, named after their split: test/... becomes valid/... if data.test_split is valid."""
    split = record["config"]["data"].get("test_split", "test")
    return {re.sub("^test/", f"{split}/", key): value for key, value in record["metrics"].items()}


def core_seconds(record: Record) -> float:
    """The CPU time of a run's training; for older records, which lack it, seconds times threads."""
    return float(record.get("core_seconds") or record["seconds"] * record["threads"])


def devices_of(record: Record) -> list[str]:
    """The devices that a run was trained on, in order; older records have the last one alone."""
    return [session["device"] for session in record.get("sessions", [])] or [record["device"]]


def on_gpu(record: Record) -> bool:
    """Whether a part of a run was trained on a GPU: NVIDIA names itself in those of its cards, in no processor's."""
    return any(device.startswith("NVIDIA") for device in devices_of(record))


def spent(records: Iterable[Record]) -> tuple[float, float]:
    """The CPU time of the runs on a CPU, and the time of those on a GPU, which may have shared it, in seconds."""
    both = [(core_seconds(record), record["seconds"], on_gpu(record)) for record in records]
    return sum(core for core, _, gpu in both if not gpu), sum(time for _, time, gpu in both if gpu)


def read(path: Path) -> Record:
    """The record in `path`.  Raises ValueError on anything but a valid record of this version."""
    what, remedy = f"the record {path}", "delete it to run again"
    content = parsed(path.read_bytes(), what, remedy)
    written = content.pop("sha256", None) if isinstance(content, dict) else None
    bound = isinstance(content, dict) and (
        written is not None or "weights_sha256" in content
    )  # older records have neither
    if bound and written != _digest(content):
        raise ValueError(f"{what} is damaged (it was changed after the run): {remedy}")
    return checked(content, what, remedy)


def write(path: Path, record: Record) -> None:
    """Write a record atomically; its last key is the checksum of the others."""
    replace(path, json.dumps(record | {"sha256": _digest(record)}, indent=1))


def _digest(record: Record) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def replace(path: Path, content: str | bytes) -> bool:
    """Write a file atomically.  Returns False, and writes nothing, if it already has the content.

    A symbolic link is replaced, not followed.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and not path.is_symlink() and path.read_bytes() == data:
        return False
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.unlink(missing_ok=True)
    try:
        with writing(path), open(scratch, "xb") as file:
            file.write(data)
        commit(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return True


def commit(scratch: Path, path: Path) -> None:
    """Move a file that was written beside `path` to `path`, once its bytes are on the disk."""
    with writing(path):
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)


def read_all(runs: Path, results: Path, damaged: list[str] | None = None, curves: bool = False) -> list[Record]:
    """The records in `runs`, then the kept ones in `results` with other ids."""
    return and_kept(read_runs(runs, damaged), results, damaged, curves)


def and_kept(own: list[Record], results: Path, damaged: list[str] | None = None, curves: bool = False) -> list[Record]:
    """These records, then the kept ones in `results` with other ids."""
    mine = {record["id"] for record in own}
    return own + [record for record in read_kept(results, curves, damaged) if record["id"] not in mine]


def read_unfinished(runs: Path) -> list[tuple[Path, Record]]:
    """The folders of the runs in `runs` that have a checkpoint and no result, with their records so far."""
    found = []
    for path in sorted(runs.rglob("unfinished.json")):
        try:
            found.append((path.parent, read(path)))
        except FileNotFoundError:  # the run has just ended
            continue
        except (OSError, ValueError) as error:  # another run's file must not end this command
            logging.getLogger(__name__).warning("%s", error)
    return [(folder, record) for folder, record in found if not (folder / "result.json").exists()]


def read_runs(runs: Path, damaged: list[str] | None = None, smoke: bool = False) -> list[Record]:
    """The records of the finished and failed runs in a folder: only smoke runs, or all others.

    The error of an unreadable record is appended to `damaged`; if that is None, it is raised.
    """
    found: dict[str, Record] = {}
    for path in sorted(runs.rglob("result.json")):
        try:
            record = read(path)
        except (OSError, ValueError) as error:
            _blame(error, damaged)
            continue
        if record["smoke"] == smoke:
            found.setdefault(record["id"], record)
    return list(found.values())


def read_kept(results: Path, curves: bool = False, damaged: list[str] | None = None) -> list[Record]:
    """The records in results/records.jsonl as from `read`, but with a `curve` only if `curves` is true.

    The error of an unreadable line is appended to `damaged`; if that is None, it is raised.
    """
    shared = _environments(results)
    drawn = {}
    for what, line in _lines(results / "curves.jsonl", damaged) if curves else ():
        drawn[line["id"]] = (what, line)
    found: dict[str, Record] = {}
    for what, line in _lines(results / "records.jsonl", damaged):
        try:
            record = _expanded(line, shared, what)
            found.setdefault(record["id"], record)
            if record["id"] in drawn:
                found[record["id"]] = _with_curve(record, *drawn[record["id"]])
        except ValueError as error:
            _blame(error, damaged)
    return list(found.values())


def keep(records: Iterable[Record], results: Path) -> list[str]:
    """Add lines for finished and failed runs that have none yet, except smoke runs.  Returns their ids.

    Existing lines do not change, except that of a failed run that has finished since.  Raises ValueError on a damaged
    line.
    """
    there = {record["id"]: record["status"] for record in read_kept(results, curves=True)}
    better = {"finished": (None, "failed"), "failed": (None,)}  # than the kept status
    new = {r["id"]: r for r in records
           if not r["smoke"] and there.get(r["id"]) in better.get(r["status"], ())}  # fmt: skip
    shared = _environments(results)
    lines, curves = {}, {}
    for name, record in new.items():
        line = record | {
            "environment": _named(shared["environments"], {key: record[key] for key in ENVIRONMENT}),
            "data": _named(shared["data"], record["data_sha256"]),
        }
        lines[name] = json.dumps({key: line[key] for key in LINE if key in line})
        if record.get("curve"):
            curves[name] = json.dumps({"id": name} | _columns(record["curve"]))
    if new:
        replace(results / "environments.json", json.dumps(shared, indent=1, sort_keys=True) + "\n")
        _add(results / "curves.jsonl", curves)
        _add(results / "records.jsonl", lines)  # last, so that everything its lines name exists
    return sorted(new)


def thin(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most POINTS entries: each has the last step and the mean numbers of a group of neighbours."""
    size = -(-len(curve) // POINTS)
    entries = []
    for i in range(0, len(curve), size or 1):
        part = curve[i : i + size]
        values: dict[str, list[float]] = {}
        for key, value in (pair for entry in part for pair in entry.items() if math.isfinite(pair[1])):
            values.setdefault(key, []).append(value)
        entries.append({key: fmean(some) for key, some in values.items()} | {"step": part[-1]["step"]})
    return entries


def _blame(error: OSError | ValueError, damaged: list[str] | None) -> None:
    if damaged is None:
        raise error
    damaged.append(str(error).encode(errors="backslashreplace").decode())  # a folder's name may not be UTF-8


def _lines(path: Path, damaged: list[str] | None) -> Iterator[tuple[str, Record]]:
    """The name of every line, for messages, and its content, which has an id."""
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        what = f"line {number} of {path}"
        try:
            content = parsed(text, what, RESTORE)
            if not (isinstance(content, dict) and isinstance(content.get("id"), str)):
                raise ValueError(f"{what} is damaged (it has no id): {RESTORE}")
        except ValueError as error:
            _blame(error, damaged)
            continue
        yield what, content


def _environments(results: Path) -> dict[str, dict[str, Any]]:
    path = results / "environments.json"
    if not path.exists():
        return {"environments": {}, "data": {}}
    shared = parsed(path.read_bytes(), str(path), RESTORE)
    if not (isinstance(shared, dict) and all(isinstance(shared.get(key), dict) for key in ("environments", "data"))):
        raise ValueError(f"{path} is damaged (it lacks environments or data): {RESTORE}")
    return shared


def _named(known: dict[str, Any], content: dict[str, Any]) -> str:
    """The key of `content`, which is added to the known ones."""
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    known[key] = content
    return key


def _expanded(line: Record, shared: dict[str, dict[str, Any]], what: str) -> Record:
    """The record of a line, with its machine and data from environments.json."""
    environment = shared["environments"].get(str(line.get("environment")))
    data = shared["data"].get(str(line.get("data")))
    if not (isinstance(environment, dict) and isinstance(data, dict)):
        raise ValueError(f"{what} names an environment or data that environments.json lacks: {RESTORE}")
    rest = {key: value for key, value in line.items() if key not in ("environment", "data")}
    return checked(rest | environment | {"data_sha256": data}, what, RESTORE)


def _columns(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of every key of a curve, null if an entry has none."""
    entries = thin(curve)
    columns = {
        key: [_rounded(entry.get(key)) for entry in entries] for key in dict.fromkeys(k for e in entries for k in e)
    }
    return {"step": [int(entry["step"]) for entry in entries]} | {k: v for k, v in columns.items() if k != "step"}


def _rounded(value: int | float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _with_curve(record: Record, what: str, line: Record) -> Record:
    """A kept record with its curve as a run has it, one entry per block."""
    columns = {key: values for key, values in line.items() if key != "id"}
    lists = [values for values in columns.values() if isinstance(values, list)]
    if len(lists) < len(columns) or len({len(values) for values in lists}) > 1:
        raise ValueError(f"{what} is damaged (its lists differ in length): {RESTORE}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    curve = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return checked(record | {"curve": curve}, what, RESTORE)


def _add(path: Path, lines: dict[str, str]) -> None:
    """Insert lines by id into a file that is sorted by it; all others stay byte for byte."""
    there = {json.loads(line)["id"]: line for line in (path.read_text().splitlines() if path.exists() else ())}
    both = there | lines
    replace(path, "".join(f"{both[name]}\n" for name in sorted(both)))
