"""Copy the records of finished runs from runs/ to results/records/, where git keeps them; none is overwritten."""

import argparse
import sys
from pathlib import Path

from stn.results import records

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs are (default: runs)")
    options = parser.parse_args()
    kept = ROOT / "results/records"
    kept.mkdir(parents=True, exist_ok=True)
    new = 0
    for result in sorted(options.runs.rglob("result.json")):
        target = kept / f"{result.parent.name}.json"
        record = records.read(result)
        if record["status"] == "finished" and not target.exists():
            records.write(target, record)
            new += 1
    print(f"{new} new records in {kept}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
