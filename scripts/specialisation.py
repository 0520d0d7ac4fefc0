"""Measure which of Table 4's parallel spatial transformers carries which channel (stn/experiments/specialisation.py).

Writes spreads and shares over the whole test set for every 2xST experiment.  Its network is the one trained longest
among your own runs in runs/ and results/weights.
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
    measured = []
    for experiment in sorted(path.stem for path in (ROOT / "conf/experiment").glob("addition_2xst_*.yaml")):
        name = zoo.longest(experiment, ROOT, runs)
        if name is None:
            print(f"skipped: no trained {experiment}: train it with `make reproduce-table4`")
            continue
        recorded = zoo.load(name, ROOT, runs)
        data = build.data_set(recorded.record["config"]["data"], ROOT / "data")
        measured.append({key: recorded.record.get(key) for key in KEPT} | measure(recorded.network, data))
        print(f"measured: {name}", flush=True)
    if not measured:
        raise ValueError("no trained network of Table 4 has two transformers: run `make reproduce-table4`")
    records.replace(options.out, json.dumps(measured, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    run(main)
