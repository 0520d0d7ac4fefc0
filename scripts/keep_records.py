"""Keep the records of finished and failed runs in git: add lines to results/, then remake tables, pages and model card.

An existing record does not change, unless it is of a failed run that has finished since.  Smoke runs are never kept.
The tables in results/, README and docs/, the README's chart of Table 1 and the model card results/weights/README.md
are made from the kept records alone.  Only files that change are written.
"""

from stn.experiments.command import ROOT, Options, a_path, end_with, run, runs_folder
from stn.experiments.results import against, cards, pages, prose, records, speed, tables, weights


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("--runs", type=a_path, help="folder of the runs (default: runs)")
    parser.add_argument("--weights", metavar="GLOB", help="also keep the weights of the runs whose ids match")
    options = parser.parse_args()
    results = ROOT / "results"
    runs = runs_folder(options.runs)
    if options.weights == "":
        raise ValueError("--weights is empty: give a pattern such as '*-seed0-*', or leave it out")
    # figures on validation digits belong to a study (scripts/studies.py), not to a table
    damaged: list[str] = []
    own = [r for r in records.read_runs(runs, damaged) if r["config"]["data"].get("test_split", "test") == "test"]
    new = records.keep(own, results)
    print(f"{len(new)} new record{'s' if len(new) != 1 else ''} in {results / 'records.jsonl'}")
    if options.weights is not None:
        chosen = [path for path in sorted(runs.rglob("weights.safetensors")) if path.parent.match(options.weights)]
        chosen = [path for path in chosen if path.parent.name in {record["id"] for record in own}]
        if not chosen:
            raise ValueError(f"--weights {options.weights}: no finished run in {runs} matches")
        for path in chosen:
            weights.keep(path, path.parent.name, results / "weights")
            print(f"kept: {path}")
    known = [tables.load(file) for file in sorted((ROOT / "conf/table").glob("*.yaml"))]
    found = records.read_kept(results)
    written = []
    for table in known:
        written += pages.write(results, table, found)
    by_name = {table.name: table for table in known}
    cost, validated = results / "speed.md", records.read_kept(results / "studies", curves=True)
    content = speed.page([by_name["table1"], by_name["table4"]], found, validated)
    written += [cost] if records.replace(cost, content) else []
    chart = ROOT / "docs/figures/results.svg"
    written += [chart] if records.replace(chart, against.by_column(by_name["table1"], found)) else []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        for table in known:
            text = pages.into_page(text, table, found)
        text = prose.fill(text, known, found)
        written += [page] if records.replace(page, text) else []
    listed = weights.index(results / "weights")
    card = results / "weights/README.md"
    if listed and records.replace(card, cards.page([r for r in found if r["id"] in listed], known)):
        written.append(card)
    for path in written:
        print(f"written: {path.relative_to(ROOT)}")
    end_with(damaged, "The other records are kept.")


if __name__ == "__main__":
    run(main)
