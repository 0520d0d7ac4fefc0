"""Make a table of the paper from the records: into the terminal, results/<table>.md and results/<table>.csv.

A run of your own (below runs/) stands before the committed record (below results/records/) of the same run.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from stn.results import records, tables

ROOT = Path(__file__).parent.parent


def main() -> None:
    known = sorted(path.stem for path in (ROOT / "conf/table").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=known)
    parser.add_argument("--schedule", help="show this schedule's table only (all go into the files)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="where the files go (default: results)")
    options = parser.parse_args()

    table = tables.load(ROOT / "conf/table" / f"{options.table}.yaml")
    own = records.read_all(options.runs)
    both = records.read_all(options.runs, ROOT / "results/records")
    console = Console()
    for block, schedule, budget in tables.blocks(table, both):
        if options.schedule in (None, schedule):
            header, *body = tables.grid(table, tables.cells(table, block, schedule, budget))
            shown = RichTable(*header, title=table.title, caption=tables.describe(block, table, schedule, budget))
            for line in body:
                shown.add_row(*line)
            console.print(shown)
            made = block[0]["made_data"]
            mine = sum(tables.belongs(table, r) and r["schedule"] == schedule and r["made_data"] is made for r in own)
            console.print(f"{mine} runs of this machine ({options.runs}); where there is none, the committed record.")
    tables.write(options.out, table, both)
    console.print(f"written: {options.out / table.name}.md and .csv")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
