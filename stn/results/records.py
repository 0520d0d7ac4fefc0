"""Records: one `result.json` a run, and the only thing that tables, figures and reports are made of.

Keys of a record (version 1):
`version`, `experiment`, `schedule`, `seed`, `budget`, `overrides`, `config` (resolved) say what was run;
`status` is "finished" or "failed", with `failure` and `failed_step` in the second case;
`metrics` (`test/error` in percent), `params` (trainable), `steps`, `seconds` (of training), `samples_per_s` and `curve`
(one entry per block) are what was measured; `made_data` is true where the data were generated, not collected;
`versions`, `device`, `threads`, `commit`, `dirty`, `data_sha256`, `finished_at` say on what.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

VERSION = 1
REQUIRED = {"version", "experiment", "schedule", "seed", "budget", "overrides", "config", "status", "metrics", "params",
            "made_data", "steps", "seconds", "device", "threads"}  # fmt: skip
IDENTITY = ("experiment_name", "schedule_name", "data", "model", "schedule", "seed", "budget", "precision",
            "objective")  # fmt: skip
PATHS = ("root", "data_root")  # keys of `data` and `objective` that are paths of this machine
Record = dict[str, Any]


def identity_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's resolved config that decides what is computed: not where the data lie, nor the device."""
    return without_paths({key: config[key] for key in IDENTITY if key in config})


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose `data` and `objective` say nothing of where files lie on this machine."""
    groups = {"data", "objective"} & set(config)
    return config | {
        group: {key: value for key, value in config[group].items() if key not in PATHS} for group in groups
    }


def identity(config: dict[str, Any]) -> str:
    """Ten hexadecimal digits that stand for an `identity_config`."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def write(path: Path, record: Record) -> None:
    """Write a record in one step: the file is whole or not there."""
    scratch = path.with_suffix(".tmp")
    with open(scratch, "w") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def read(path: Path) -> Record:
    """The record in `path`.  Raises ValueError, in one line, on anything that is not a whole record of this version."""
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the record {path} is damaged ({error}): delete it to run again") from None
    if not isinstance(record, dict) or record.get("version") != VERSION:
        found = record.get("version") if isinstance(record, dict) else type(record).__name__
        raise ValueError(
            f"the record {path} has version {found!r}, this code reads version {VERSION}: delete it to run again"
        )
    if missing := REQUIRED - set(record):
        raise ValueError(f"the record {path} lacks {', '.join(sorted(missing))}: delete it to run again")
    return record


def read_all(*folders: Path, damaged: list[str] | None = None) -> list[Record]:
    """Every record below the folders: `result.json` of a run, or any .json below a folder called records.

    Where two have the same identity, the one of the earlier folder counts.  What `read` says of a record that it cannot
    read goes into `damaged`, where there is such a list; else it raises.
    """
    found: dict[str, Record] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.json" if folder.name == "records" else "result.json")):
            try:
                record = read(path)
            except ValueError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
                continue
            found.setdefault(identity(record["config"]), record)
    return list(found.values())
