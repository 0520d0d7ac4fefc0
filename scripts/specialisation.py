"""Measure which of Table 4's parallel spatial transformers carries which channel (stn/experiments/specialisation.py).

Writes spreads and shares over the whole test set for every 2xST-FCN among your own runs in runs/ and results/weights.
Those of other networks, measured before, stay in the file.
"""

import json

from stn.experiments import build, zoo
from stn.experiments.command import ROOT, Options, a_file, a_path, run, runs_folder
from stn.experiments.results import records
from stn.experiments.specialisation import measure

KEPT = ("id", "experiment", "schedule", "seed", "steps", "metrics", "commit", "dirty", "data_sha256")


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("--runs", type=a_path, help="folder of your own runs (default: runs)")
    file = ROOT / "results/table4_specialisation.json"
    parser.add_argument("--out", type=a_file, default=file, help="default: results/table4_specialisation.json")
    options = parser.parse_args()
    runs = runs_folder(options.runs)
    before = json.loads(options.out.read_text()) if options.out.exists() else []
    measured = {each["id"]: each for each in before}
    names = [name for name, entry in zoo.find(ROOT, runs).items()
             if entry.record["experiment"].startswith("addition_2xst_fcn") and zoo.tested(entry.record)]  # fmt: skip
    if not names:
        raise ValueError("no trained network of Table 4 has two transformers: run `make reproduce-table4`")
    for name in names:
        recorded = zoo.load(name, ROOT, runs)
        data = build.data_set(recorded.record["config"]["data"], ROOT / "data")
        try:
            found = measure(recorded.network, data)
        except ValueError as error:
            print(f"skipped: {name}: {error}")
            continue
        measured[name] = {key: recorded.record.get(key) for key in KEPT} | found
        print(f"measured: {name}", flush=True)
    listed = [measured[name] for name in sorted(measured)]
    records.replace(options.out, json.dumps(listed, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    run(main)
