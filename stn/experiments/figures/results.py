"""The plot of results in the README: Table 1, ours against the paper's, from the kept records."""

from pathlib import Path

from stn.experiments.command import ROOT
from stn.experiments.figures import Untrained
from stn.experiments.results import against, records, tables


def table1(runs: Path) -> str:
    """An SVG with a panel per column of the table and a line per model."""
    drawn = against.by_column(tables.load(ROOT / "conf/table/table1.yaml"), records.read_kept(ROOT / "results"))
    if not drawn:
        raise Untrained("Table 1 has no record: run `make reproduce-table1`, then `make records`")
    return drawn
