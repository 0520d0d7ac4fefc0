"""Show the state of a table: which cells are done, running, stopped, failed or missing, and about how long is left.

A stopped run has a checkpoint but no process: the command that started it resumes it.  The time left is the remaining
steps times the seconds per step in records of the same cell, or else of the table, divided by the number of running
runs.  Records of a GPU count if the unfinished runs, or without any the others here, used one, else those of a CPU.
Cells without such a record are not counted.  This command does not touch the runs.
"""

import re
import statistics
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table as RichTable

from stn.experiments import resolvers
from stn.experiments.command import ROOT, Options, a_number, a_path, end_with, run, runs_folder
from stn.experiments.results import records, tables
from stn.experiments.training.lock import held

STATES = ("done", "running", "stopped", "failed", "missing")


def unfinished(runs: Path) -> list[records.Record]:
    """The runs without a result; their `status` is running if a process gives signs of life, else stopped."""
    return [
        record | {"status": "running" if held(folder) else "stopped"}
        for folder, record in records.read_unfinished(runs)
    ]


def seeds(text: str) -> list[int]:
    """The seeds of 0,2 or range(3), as in run.py, each once."""
    if span := re.fullmatch(r"range\((?:(\d+),)?(\d+)\)", text):
        found = range(int(span[1] or 0), int(span[2]))
        if not 0 < len(found) <= 10_000:
            raise ValueError(f"--seeds {text} is {len(found):,} seeds: give 1 to 10,000 of them")
        return list(found)
    if re.fullmatch(r"\d+(,\d+)*", text):
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    raise ValueError(f"--seeds {text}: give them as 0,1,2 or range(3)")


def main() -> None:
    names = sorted(path.stem for path in (ROOT / "conf/table").glob("*.yaml"))
    parser = Options(__doc__)
    parser.add_argument("table", choices=names)
    parser.add_argument("--schedule", help="default: the table's own")
    parser.add_argument("--budget", type=a_number(1, 10**12), help="count only runs with this budget")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 or range(3); default: 0")
    parser.add_argument("--runs", type=a_path, help="folder of your own runs (default: runs)")
    options = parser.parse_args()
    resolvers.register()

    file = ROOT / "conf/table" / f"{options.table}.yaml"
    table, wanted = tables.load(file), tables.own_schedules(file)
    if options.schedule is not None:
        wanted = dict.fromkeys(wanted, options.schedule)
    smoke = any(tables.schedule(ROOT / "conf", name).get("smoke", False) for name in wanted.values())
    runs = runs_folder(options.runs)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):  # the steps may depend on a row's classifier
        steps = {row: compose("config", [f"experiment={row}", f"schedule={schedule}"]).schedule.steps
                 for row, schedule in wanted.items()}  # fmt: skip
    damaged: list[str] = []
    begun = unfinished(runs)
    own = [*records.read_runs(runs, damaged, smoke), *begun]
    known = [r for r in [*own, *records.read_kept(ROOT / "results", damaged=damaged)]
             if tables.belongs(table, r) and r["status"] == "finished"]  # fmt: skip
    here = any(map(records.on_gpu, begun or own))
    known = [r for r in known if records.on_gpu(r) is here]
    known = [r for r in known if r["schedule"] == wanted[r["experiment"]]] or known
    cells: dict[tuple[str, Any, int], records.Record] = {}
    for record in own:
        if not tables.belongs(table, record) or options.budget not in (None, record["budget"]):
            continue
        if record["schedule"] == wanted[record["experiment"]]:
            cells.setdefault((*tables.cell_of(table, record), record["seed"]), record)

    counts: Counter[str] = Counter()
    left: list[float | None] = []
    paces = [r["seconds"] / r["steps"] for r in known]
    schedules = " or ".join(dict.fromkeys(wanted.values()))
    title = f"{table.title.split(':')[0]}, schedule {schedules}: the runs in {runs}"
    shown = RichTable(table.unit, *table.columns.values(), title=title)
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
                    cell = (experiment, column)
                    same = [r["seconds"] / r["steps"] for r in known if tables.cell_of(table, r) == cell]
                    if record.get("step"):
                        same = [record["seconds"] / record["step"]]
                    to_go = record.get("steps", steps[experiment]) - record.get("step", 0)
                    left.append(statistics.fmean(same or paces) * to_go if same or paces else None)
            line.append(", ".join(f"{n} {state}" if len(states) > 1 else state for state, n in Counter(states).items()))
        shown.add_row(row, *line)
    Console().print(shown)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES)
    at_once = max(1, counts["running"])
    known_s = [one for one in left if one is not None]
    about = f"about {timedelta(seconds=round(sum(known_s) / at_once))} left, {at_once} at a time" if known_s else ""
    unknown = f"time unknown for {len(left) - len(known_s)} of them" if len(known_s) < len(left) else ""
    print("; ".join(filter(None, [f"{sum(counts.values())} cells: {summary}", about, unknown])))
    end_with(damaged, "The status counts the other records.")


if __name__ == "__main__":
    run(main)
