"""Checks every key of a record (version 2), since anybody may have written the file."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from stn.experiments.identity import GROUPS

VERSION = 2
DEEPEST = 10  # mappings within mappings of a config
LARGE = 1e18  # limit of every number in a record, except in its curve
LARGEST_FLOAT32 = 3.4029e38
Record = dict[str, Any]
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    """Whether a text is safe in a page, a table and a path."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w./-]*", value) is not None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGE < value < LARGE


def _whole(least: int = 0) -> Check:
    return lambda value: _number(value) and isinstance(value, int) and value >= least


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _every(check: Check) -> Check:
    """A list of values that pass the check."""
    return lambda value: isinstance(value, list) and all(check(one) for one in value)


def _each(check: Check) -> Check:
    """A mapping to values that pass the check."""
    return lambda value: isinstance(value, dict) and all(check(one) for one in value.values())


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _plain(value: Any, depth: int = DEEPEST) -> bool:
    """Whether a value may be in a config: texts, numbers, true, false, null, mappings and lists up to `depth`."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_plain(one, depth - 1) for one in inner)
    return value is None or _text(value) or _bool(value) or _number(value)


def _config(value: Any) -> bool:
    if not (_each(_mapping)(value) and set(GROUPS) <= set(value) and _plain(value)):
        return False
    data, schedule = value["data"], value["schedule"]
    distortion = data.get("distortion", {"name": "none"})
    named = _name(data.get("name")) and _mapping(distortion) and _name(distortion.get("name"))
    return named and all(_whole(1)(schedule[key]) for key in ("steps", "batch_size") if key in schedule)


def _in_curve(value: Any) -> bool:
    """Any float32: NaN and infinity of a failed run, the huge determinant of a lost window."""
    return _number(value) or (isinstance(value, float) and not LARGEST_FLOAT32 < abs(value) < math.inf)


def _entry(value: Any) -> bool:
    return _each(_in_curve)(value) and _number(value.get("step"))


REQUIRED: dict[str, Check] = {  # in the order of a record
    "version": _whole(),
    "id": lambda value: _text(value) and re.fullmatch(r"\w[\w.-]*", value) is not None,  # it names files
    "experiment": _name,
    "schedule": _name,
    "seed": _whole(),
    "status": lambda value: value in ("finished", "failed", "unfinished"),
    "metrics": lambda value: _each(_number)(value) and all(map(_name, value)),
    "params": _whole(),
    "steps": _whole(1),
    "seconds": lambda value: _number(value) and value >= 0,
    "precision": _name,
    "budget": _or_null(_whole()),
    "smoke": _bool,
    "synthetic": _bool,
    "in_shape": _every(_whole(1)),
    "classes": _whole(1),
    "config": _config,
    "revisions": _each(_whole()),
    "overrides": _every(_text),
    "versions": _each(_text),
    "device": _text,
    "threads": _whole(1),
    "commit": _or_null(_text),
    "dirty": _or_null(_bool),
    "data_sha256": _each(_text),
}
OPTIONAL: dict[str, Check] = {
    "redundant": _every(_text),
    "failure": _text,
    "failed_step": _whole(),
    "step": _whole(),
    "samples_per_s": _or_null(_number),
    "test_images": _whole(),
    "core_seconds": lambda value: _number(value) and value >= 0,
    "sessions": _every(_mapping),
    "weights_sha256": _text,
    "finished_at": _text,
    "old_id": _text,
    "curve": _every(_entry),
}


def checked(record: Any, what: str, remedy: str) -> Record:
    """The record itself.  Raises ValueError if it is not a valid record of this version."""
    found = record.get("version") if isinstance(record, dict) else type(record).__name__
    if found != VERSION:
        raise ValueError(f"{what} has version {found!r:.40}, this code reads version {VERSION}: {remedy}")
    failed = ["failure"] if record.get("status") == "failed" else []
    if missing := [key for key in [*REQUIRED, *failed] if key not in record]:
        raise ValueError(f"{what} lacks {', '.join(missing)}: {remedy}")
    for key, fits in (REQUIRED | OPTIONAL).items():
        if key in record and not fits(record[key]):
            raise ValueError(f"{what} has {key}={record[key]!r:.60}, which is not valid: {remedy}")
    return record


def parsed(text: bytes, what: str, remedy: str) -> Any:
    """The content of a JSON text.  Raises ValueError if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged ({error}): {remedy}") from None
