"""Measure which of Table 4's parallel spatial transformers carries which channel (stn/experiments/specialisation.py).

Writes, for every 2xST network, spreads and shares over the whole test set: of the longest-trained network of each
experiment among your own runs below runs/ and results/weights.
"""

import json

from stn.experiments import build, zoo
from stn.experiments.command import ROOT, Options, a_file, a_path, run, runs_folder
from stn.experiments.results import records
from stn.experiments.specialisation import measure

KEPT = ("id", "experiment", "schedule", "seed", "steps", "metrics", "commit", "dirty", "data_sha256")


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("--runs", type=a_path, help="where your own runs are (default: runs)")
    file = ROOT / "results/table4_specialisation.json"
    parser.add_argument("--out", type=a_file, default=file, help="default: results/table4_specialisation.json")
    options = parser.parse_args()
    runs = runs_folder(options.runs)
    measured = []
    for experiment in sorted(path.stem for path in (ROOT / "conf/experiment").glob("addition_2xst_*.yaml")):
        name = zoo.longest(experiment, ROOT, runs)
        if name is None:
            print(f"left out: no trained {experiment}: run it, or `make reproduce-table4`")
            continue
        recorded = zoo.load(name, ROOT, runs)
        data = build.data_set(recorded.record["config"]["data"], ROOT / "data")
        measured.append({key: recorded.record.get(key) for key in KEPT} | measure(recorded.network, data))
        print(f"measured: {name}", flush=True)
    if not measured:
        raise ValueError("no network of Table 4 with two transformers: `make reproduce-table4` trains them")
    records.replace(options.out, json.dumps(measured, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    run(main)
