"""What an error costs: the page that reads it from the records."""

from examples import record

from stn.experiments.command import ROOT
from stn.experiments.results import records, speed, tables

TABLE = tables.load(ROOT / "conf/table/table1.yaml")


def lines(*some):
    return [line for line in speed.page([TABLE], list(some)).splitlines() if line.startswith("|")]


def test_a_cell_has_its_core_minutes_and_its_error():
    short = record(error=4.0, schedule="fast") | {"core_seconds": 90.0, "seconds": 500.0}
    long = record(error=2.0, schedule="paper") | {"seconds": 600.0, "threads": 2}
    head, _, line = lines(long, short)
    assert head == "| Model | Data | `fast` | `paper` | Paper |"
    assert line == "| FCN | R | 1.5 min: 4.00 % | 20.0 min: 2.00 % | 2.1 % |"


def test_of_several_seeds_the_first_counts_and_a_failed_run_has_no_cost():
    failed = record("mnist_cnn", error=90.0) | {"status": "failed"}
    *_, line = lines(record(seed=1, error=3.0), record(seed=0, error=5.0), failed)
    assert "5.00 %" in line
    assert "3.00 %" not in line


def test_the_kept_page_is_that_of_the_records():
    known = [tables.load(ROOT / f"conf/table/{name}.yaml") for name in ("table1", "table4")]
    assert (ROOT / "results/speed.md").read_text() == speed.page(known, records.read_kept(ROOT / "results"))
