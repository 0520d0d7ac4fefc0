"""Where a table stands: which cells are done, running, stopped, failed or missing, and about how long the rest takes.

A stopped run has a checkpoint but no process: the command that started it goes on with it.  The time left is what the
steps to go took in records of the same cell, of any schedule, divided by the runs that are under way now.
"""

import argparse
import re
import statistics
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table as RichTable

from stn.results import records, tables

ROOT = Path(__file__).parent.parent
STATES = ("done", "running", "stopped", "failed", "missing")


def unfinished(runs: Path) -> list[records.Record]:
    """The runs without a result, with `status` running where a process holds their lock, else stopped."""
    found = []
    for path in sorted(runs.rglob("unfinished.json")):
        if (path.parent / "result.json").exists():
            continue
        try:
            with FileLock(path.parent / "lock", timeout=0):
                status = "stopped"
        except Timeout:
            status = "running"
        found.append(records.read(path) | {"status": status})
    return found


def seeds(text: str) -> list[int]:
    """0,2 or range(3): as run.py takes them."""
    if span := re.fullmatch(r"range\((?:(\d+),)?(\d+)\)", text):
        return list(range(int(span[1] or 0), int(span[2])))
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(seed) for seed in text.split(",")]
    raise ValueError(f"--seeds {text}: give them as 0,1,2 or range(3)")


def schedule_of(name: str) -> dict[str, Any]:
    """`steps` and `budget` of a file of conf/schedule; the budget is that of conf/config.yaml where it sets none."""
    file = ROOT / "conf/schedule" / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise ValueError(f"unknown --schedule {name}: choose {known}")
    content = yaml.safe_load(file.read_text())
    default = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["budget"]
    return {"steps": content.get("schedule", content)["steps"], "budget": content.get("budget", default)}


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "conf/table").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=known)
    parser.add_argument("--schedule", default="fast", help="default: fast")
    parser.add_argument("--budget", type=int, help="default: the schedule's")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 or range(3); default: 0")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    options = parser.parse_args()

    table = tables.load(ROOT / "conf/table" / f"{options.table}.yaml")
    chosen = schedule_of(options.schedule)
    budget = options.budget or chosen["budget"]
    own = [*records.read_all(options.runs), *unfinished(options.runs)]
    committed = records.read_all(ROOT / "results/records")
    cells: dict[tuple[str, Any, int], records.Record] = {}
    for record in own:
        if tables.belongs(table, record) and (record["schedule"], record["budget"]) == (options.schedule, budget):
            cells.setdefault((*tables.place(table, record), record["seed"]), record)

    counts: Counter[str] = Counter()
    left: list[float | None] = []
    steps_taken = [r["seconds"] / r["steps"] for r in committed if tables.belongs(table, r)]
    shown = RichTable(
        table.unit, *table.columns.values(), title=f"{table.title}: {options.schedule}, budget {budget:,}"
    )
    for experiment, row in table.rows.items():
        line = []
        for column in table.columns:
            states = []
            for seed in seeds(options.seeds):
                record = cells.get((experiment, column, seed), {"status": "missing"})
                state = {"finished": "done"}.get(record["status"], record["status"])
                states.append(f"{state} {100 * record['step'] // record['steps']} %" if "step" in record else state)
                counts[state] += 1
                if state in ("missing", "stopped", "running"):
                    pace = _pace(table, record, [*own, *committed], experiment, column)
                    to_go = record.get("steps", chosen["steps"]) - record.get("step", 0)
                    pace = pace or (statistics.fmean(steps_taken) if steps_taken else None)
                    left.append(None if pace is None else pace * to_go)
            line.append(", ".join(f"{n} {state}" if len(states) > 1 else state for state, n in Counter(states).items()))
        shown.add_row(row, *line)
    Console().print(shown)
    said = ", ".join(f"{counts[state]} {state}" for state in STATES)
    at_once = max(1, counts["running"])
    seconds = sum(one or 0 for one in left) / at_once
    unknown = " at least, with no record to tell the pace of some" if None in left else ""
    clock = timedelta(seconds=round(seconds))
    print(f"{sum(counts.values())} cells: {said}; about {clock} left, {at_once} at a time{unknown}")


def _pace(table: tables.Table, record: records.Record, known: list[records.Record], *place: Any) -> float | None:
    """Seconds a step: of this run so far, else of the same cell's records, else None."""
    if record.get("step"):
        return record["seconds"] / record["step"]
    same = [r for r in known if r["status"] == "finished" and tables.belongs(table, r)
            and tables.place(table, r) == place]  # fmt: skip
    return statistics.fmean(r["seconds"] / r["steps"] for r in same) if same else None


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
