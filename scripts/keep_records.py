"""Copy the records of finished runs from runs/ to results/records/, where git keeps them; renew tables and model cards.

A record that is there already stays.  The tables in results/ and in the pages that show them (README and docs/), and
the cards of results/weights/, are made from results/records/ alone.
"""

import argparse
import shutil
import sys
from pathlib import Path

from stn.results import cards, records, tables

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs are (default: runs)")
    parser.add_argument("--weights", metavar="GLOB", help="keep the weights of the runs whose names match, too")
    options = parser.parse_args()
    kept, weights = ROOT / "results/records", ROOT / "results/weights"
    kept.mkdir(parents=True, exist_ok=True)
    weights.mkdir(exist_ok=True)
    new = 0
    for result in sorted(options.runs.rglob("result.json")):
        target = kept / f"{result.parent.name}.json"
        record = records.read(result)
        if record["status"] == "finished" and not target.exists():
            records.write(target, record)
            new += 1
        if options.weights and result.parent.match(options.weights) and record["status"] == "finished":
            shutil.copyfile(result.parent / "weights.pt", weights / f"{result.parent.name}.pt")
    print(f"{new} new records in {kept}")
    known = [tables.load(file) for file in sorted((ROOT / "conf/table").glob("*.yaml"))]
    for file in sorted(weights.glob("*.pt")):
        record = records.read(kept / f"{file.stem}.json")
        file.with_suffix(".md").write_text(cards.card(record, file, known))
        print(f"written: results/weights/{file.stem}.md")
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for file in sorted((ROOT / "conf/table").glob("*.yaml")):
        table, found = tables.load(file), records.read_all(kept)
        tables.write(ROOT / "results", table, found)
        for page in pages:
            page.write_text(tables.into_page(page.read_text(), table, found))
        print(f"written: results/{table.name}.md, results/{table.name}.csv, and into the pages that show it")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
