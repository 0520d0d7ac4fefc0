"""Keep the finished runs of the studies in results/studies, and fill the tables of docs/studies.md from them.

The runs are in runs/studies.  A record that is already kept does not change.
"""

from stn.experiments.command import ROOT, Options, a_path, run, runs_folder
from stn.experiments.results import records, speed, studies


def validations(record: records.Record) -> list[dict[str, float]]:
    """A run's curve, of which a study keeps the validation errors alone (for results/speed.md)."""
    return [{"step": step, "valid/error": error} for step, error in speed.valid_errors(record)]


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("--runs", type=a_path, help="default: runs/studies")
    options = parser.parse_args()
    runs = ROOT / "runs/studies" if options.runs is None else runs_folder(options.runs)
    kept, page = ROOT / "results/studies", ROOT / "docs/studies.md"
    kept.mkdir(exist_ok=True)
    new = records.keep((r | {"curve": validations(r)} for r in records.read_runs(runs)), kept)
    print(f"{len(new)} new record{'s' if len(new) != 1 else ''} in {kept / 'records.jsonl'}")
    if records.replace(page, studies.into_page(page.read_text(), records.read_kept(kept))):
        print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    run(main)
