"""Make the report: one HTML page from the records, which opens in any browser, on a phone and in print.

A run of your own (below runs/) stands before the committed record (below results/records/) of the same run.
"""

import argparse
import sys
from pathlib import Path

from stn.results import records, report, tables

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where your own runs are (default: runs)")
    parser.add_argument("--out", type=Path, default=ROOT / "results/report.html", help="default: results/report.html")
    options = parser.parse_args()
    damaged: list[str] = []
    found = records.read_all(options.runs, ROOT / "results/records", damaged=damaged)
    known = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]
    page = report.page(found, known, ROOT / "docs/figures", ROOT / "results/not_run.yaml", damaged)
    scratch = options.out.with_suffix(".tmp")
    scratch.write_text(page)
    scratch.replace(options.out)
    print(f"written: {options.out}, {len(found)} records, {len(page) / 2**20:.1f} MB: open it in a browser")
    if damaged:
        sys.exit("\n".join(f"error: {line}" for line in damaged) + "\nThe report stands on the other records.")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
