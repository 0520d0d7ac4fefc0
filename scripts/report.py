"""Make the report: one HTML page from the records, for any browser, for phones and for print.

Your own run (in runs/) replaces the kept record (in results/records.jsonl) of the same run.
"""

from stn.experiments.command import ROOT, Options, a_file, a_path, end_with, run, runs_folder
from stn.experiments.results import records, report, tables


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("--runs", type=a_path, help="folder of your own runs (default: runs)")
    parser.add_argument("--out", type=a_file, default=ROOT / "results/report.html", help="default: results/report.html")
    options = parser.parse_args()
    damaged: list[str] = []
    found = records.read_all(runs_folder(options.runs), ROOT / "results", damaged, curves=True)
    known = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]
    page = report.page(found, known, ROOT / "docs/figures", ROOT / "results/not_run.yaml", damaged)
    records.replace(options.out, page)
    print(f"written: {options.out}, {len(found)} records, {len(page) / 2**20:.1f} MB: open it in a browser")
    end_with(damaged, "The report uses the other records.")


if __name__ == "__main__":
    run(main)
