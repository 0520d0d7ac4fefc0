"""What an error costs: the page that reads it from the records."""

from examples import record

from stn.experiments.command import ROOT
from stn.experiments.results import records, speed, tables

TABLE = tables.load(ROOT / "conf/table/table1.yaml")


def lines(*some):
    return [line for line in speed.page([TABLE], list(some), []).splitlines() if line.startswith("|")]


def validated(**more):
    """An FCN on R, tested on validation data after a third, two thirds and all of its steps."""
    curve = [{"step": 1000 * i, "valid/error": error} for i, error in ((1, 4.0), (2, 2.14), (3, 1.98))]
    asked = ["experiment=mnist_fcn", "data.test_split=valid", "validations=3"]
    own = {"curve": curve, "overrides": asked, "steps": 3000, "core_seconds": 90.0, "device": "A CPU"}
    return record(schedule="fast") | own | more


def reached(*some):
    page = speed.page([TABLE], [], list(some))
    return [line for line in page.splitlines() if line.startswith("| FCN")]


def test_the_first_validation_that_rounds_to_the_papers_error_counts():
    (line,) = reached(validated())
    batch = validated()["config"]["schedule"]["batch_size"]
    assert line == f"| FCN | R | `fast` | 2,000 of 3,000 | {2000 * batch:,} | 1.0 min | 1.98 % | 2.1 % | A CPU |"


def test_an_error_that_is_not_reached_is_said():
    (line,) = reached(validated(curve=[{"step": 3000, "valid/error": 2.16}]))
    assert line == "| FCN | R | `fast` | not in 3,000 |  |  | 2.16 % | 2.1 % | A CPU |"


def test_a_run_of_another_recipe_and_one_without_validations_do_not_count():
    changed = validated()["overrides"] + ["optimizer.lr=0.1"]
    assert reached(validated(overrides=changed), validated(curve=[])) == []


def test_a_cell_has_its_core_minutes_and_its_error():
    short = record(error=4.0, schedule="fast") | {"core_seconds": 90.0, "seconds": 500.0}
    long = record(error=2.0, schedule="paper", steps=900) | {"seconds": 600.0, "threads": 2}
    head, _, line = lines(long, short)
    assert head == "| Model | Data | `fast` | `paper` | Paper |"
    assert line == "| FCN | R | 1.5 min: 4.00 % | 20.0 min: 2.00 % | 2.1 % |"


def test_minutes_of_a_gpu_are_named_as_such_and_stand_by_their_images():
    on_gpu = record(error=2.0, schedule="paper", steps=900) | {"seconds": 120.0, "device": "NVIDIA H200"}
    head, _, line = lines(record(error=4.0, schedule="fast"), on_gpu)
    assert head == "| Model | Data | `fast` | `paper` | Paper |"
    assert line == "| FCN | R | 30.0 min: 4.00 % | 2.0 min of a GPU: 2.00 % | 2.1 % |"
    (line,) = reached(validated(device="NVIDIA H200", seconds=300.0))
    assert " 3.3 min of a GPU |" in line


def test_of_several_seeds_the_first_counts_and_a_failed_run_has_no_cost():
    failed = record("mnist_cnn", error=90.0) | {"status": "failed"}
    *_, line = lines(record(seed=1, error=3.0), record(seed=0, error=5.0), failed)
    assert "5.00 %" in line
    assert "3.00 %" not in line


def test_the_kept_page_is_that_of_the_records():
    known = [tables.load(ROOT / f"conf/table/{name}.yaml") for name in ("table1", "table4")]
    assert (ROOT / "results/speed.md").read_text() == speed.page(
        known, records.read_kept(ROOT / "results"), records.read_kept(ROOT / "results/studies", curves=True)
    )
