"""Make a table of the paper from the records: in the terminal, results/<table>.md and results/<table>.csv.

The terminal shows the table's own schedule, if it has runs under it, else all; the files have all schedules.
Your own run (in runs/) replaces the kept record (in results/records.jsonl) of the same run.  Smoke runs, whose figures
mean nothing, are shown with that warning, and no file is written.
"""

from rich.console import Console
from rich.table import Table as RichTable

from stn.experiments.command import ROOT, Options, a_path, end_with, run, runs_folder
from stn.experiments.results import pages, records, tables


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "conf/table").glob("*.yaml"))
    parser = Options(__doc__)
    parser.add_argument("table", choices=known)
    parser.add_argument("--schedule", help="show this schedule's table instead")
    parser.add_argument("--runs", type=a_path, help="folder of your own runs (default: runs)")
    parser.add_argument("--out", type=a_path, default=ROOT / "results", help="folder for the files (default: results)")
    options = parser.parse_args()
    runs = runs_folder(options.runs)
    smoke = options.schedule is not None and tables.schedule(ROOT / "conf", options.schedule).get("smoke", False)
    file = ROOT / "conf/table" / f"{options.table}.yaml"
    table = tables.load(file)
    damaged: list[str] = []
    own = records.read_runs(runs, damaged, smoke)
    ids = {record["id"] for record in own}
    found = own if smoke else records.and_kept(own, ROOT / "results", damaged)
    console, shown, blocks = Console(), 0, tables.blocks(table, found)
    wanted = set(tables.own_schedules(file).values()) if options.schedule is None else {options.schedule}
    if options.schedule is None and not any(schedule in wanted for _, schedule, _ in blocks):
        wanted = {schedule for _, schedule, _ in blocks}
    for block, schedule, budget in blocks:
        if schedule in wanted:
            header, *body = pages.grid(table, tables.cells(table, block, schedule, budget))
            title = f"{table.title} (smoke: these figures mean nothing)" if smoke else table.title
            lines = RichTable(*header, title=title)
            for line in body:
                lines.add_row(*line)
            console.print(lines)
            console.print(pages.describe(block, table, schedule, budget), highlight=False, markup=False)
            mine = [r for r in block if tables.belongs(table, r) and (r["schedule"], r["budget"]) == (schedule, budget)]
            kept = sum(r["id"] not in ids for r in mine)
            rest = "" if smoke else f"; kept records, in results/records.jsonl: {kept}"
            console.print(f"your own runs, in {runs}: {len(mine) - kept}{rest}")
            shown += 1
    if shown:
        console.print(pages.legend(table), highlight=False)
    else:
        console.print(
            f"{table.title}: no run yet" + (f" under schedule {options.schedule}" if options.schedule else "")
        )
    if odd := [r["id"] for r in own if tables.has_cell(table, r) and not tables.belongs(table, r)]:
        console.print(f"left out, since an override changes their experiment: {len(odd)} of your runs, as {odd[0]}")
    if not smoke:
        changed = pages.write(options.out, table, found)
        console.print(f"{'written' if changed else 'unchanged'}: {options.out / table.name}.md and .csv")
    end_with(damaged, "The table uses the other records.")


if __name__ == "__main__":
    run(main)
