"""Records on disk, the tables made from them, and the scripts that do it."""

import csv
import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stn.results import records, tables

ROOT = Path(__file__).parent.parent
TABLE = tables.Table(
    name="made",
    title="Made up",
    metric="test/error",
    unit="% error",
    column_key="data.distortion",
    columns={"r": "R", "e": "E"},
    rows={"mnist_fcn": "FCN", "mnist_cnn": "CNN"},
    paper={"mnist_fcn": {"r": 2.1, "e": 3.2}, "mnist_cnn": {"r": 1.2}},
    notes=["A note."],
)


def record(experiment="mnist_fcn", distortion="r", seed=0, error=2.0, schedule="made", steps=100, extra=(), **changes):
    """A record of a run that never was; without an error it failed."""
    failed = {"failure": "the loss became nan at step 3: lower schedule.lr", "failed_step": 3}
    return {
        "version": 1,
        "experiment": experiment,
        "schedule": schedule,
        "seed": seed,
        "budget": 1000,
        "overrides": [f"experiment={experiment}", f"data.distortion={distortion}", f"schedule={schedule}", *extra],
        "config": {
            "experiment_name": experiment,
            "schedule_name": schedule,
            "data": {"_target_": "stn.datasets.mnist.DistortedMnist", "distortion": distortion},
            "model": {"_target_": "stn.networks.mnist.build", "budget": 1000},
            "schedule": {"steps": steps, "lr": 0.1},
            "seed": seed,
            "budget": 1000,
            "precision": "fp32",
        },
        "metrics": {} if error is None else {"test/error": error},
        "params": 987,
        "steps": steps,
        "seconds": 1800.0,
        "device": "a processor",
        "threads": 1,
        "made_data": False,
        **({"status": "failed"} | failed if error is None else {"status": "finished"}),
        **changes,
    }


def save(folder, *made):
    for i, one in enumerate(made):
        (folder / f"run{i}").mkdir(parents=True)
        records.write(folder / f"run{i}/result.json", one)


def text(*made):
    """Our cells as they are printed, row by row."""
    return [str(cell) for cell in tables.cells(TABLE, list(made), "made", 1000)]


# --- records


def test_a_record_is_read_as_it_was_written(tmp_path):
    records.write(tmp_path / "result.json", record())
    assert records.read(tmp_path / "result.json") == record()
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_write_that_fails_half_way_leaves_no_record_and_an_old_one_whole(tmp_path):
    path = tmp_path / "result.json"
    for before in (None, record()):
        if before:
            records.write(path, before)
        with pytest.raises(TypeError):
            records.write(path, record() | {"last": object()})  # no JSON, which shows only once the rest is written
        assert (records.read(path) if before else path.exists()) == (before or False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(record())[:200].encode(), "is damaged"),
        (b"", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"[]", "has version 'list'"),
        (json.dumps(record() | {"version": 2}).encode(), "has version 2, this code reads version 1"),
        (json.dumps({key: value for key, value in record().items() if key != "version"}).encode(), "has version None"),
        (json.dumps({key: value for key, value in record().items() if key != "metrics"}).encode(), "lacks metrics"),
    ],
    ids=["truncated", "empty", "no text", "no record", "of tomorrow", "without version", "without metrics"],
)
def test_what_is_no_whole_record_of_this_version_is_named_in_one_line(tmp_path, content, said):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^the record {path} {said}[^\n]*: delete it [^\n]*$"):
        records.read(path)


def config(**changes):
    """A resolved config; __ stands for the dot of a key."""
    made = record()["config"] | {"device": "auto", "threads": None, "runs_dir": "runs", "progress": True}
    made = json.loads(json.dumps(made | {"data": made["data"] | {"root": "data"}}))
    for key, value in changes.items():
        *path, last = key.split("__")
        node = made
        for part in path:
            node = node[part]
        node[last] = value
    return made


def identity(**changes):
    return records.identity(records.identity_config(config(**changes)))


def test_no_path_of_this_machine_is_in_what_is_recorded():
    paths = {"root": "/home/me/data", "data_root": "/home/me/data", "digit": 3}
    kept = {"data": {"digit": 3}, "objective": {"digit": 3}, "seed": 1}
    assert records.without_paths({"data": paths, "objective": paths, "seed": 1}) == kept
    assert records.without_paths({"data": paths, "seed": 1}) == {"data": {"digit": 3}, "seed": 1}
    assert records.identity_config({"data": paths, "objective": paths, "seed": 1, "runs_dir": "/home/me"}) == kept


def test_a_run_s_identity_is_what_is_computed_not_where_nor_on_what():
    assert {identity(), identity(data__root="/elsewhere"), identity(device="cuda", threads=4)} == {identity()}
    assert {identity(runs_dir="x", progress=False), identity()} == {identity()}
    assert len(identity()) == 10
    int(identity(), 16)
    changes = [
        {"schedule__lr": 0.2}, {"schedule__steps": 101}, {"schedule_name": "other"}, {"seed": 1}, {"budget": 1001},
        {"data__distortion": "rts"}, {"model__kernel": "nearest"}, {"precision": "bf16"}, {"experiment_name": "other"},
    ]  # fmt: skip
    assert len({identity(), *(identity(**change) for change in changes)}) == len(changes) + 1


def test_the_order_of_the_keys_is_no_part_of_the_identity():
    def backwards(node):
        return {key: backwards(node[key]) for key in reversed(node)} if isinstance(node, dict) else node

    assert records.identity(records.identity_config(backwards(config()))) == identity()


def test_every_record_below_the_folders_is_read_and_the_earlier_folder_s_counts(tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "results/records"
    kept.mkdir(parents=True)
    save(runs, record(error=1.0), record(seed=1, error=2.0))
    (runs / "run0/config.json").write_text("{}")
    records.write(kept / "first.json", record(error=3.0))
    records.write(kept / "second.json", record(seed=2, error=4.0))

    def errors(*folders):
        return sorted(found["metrics"]["test/error"] for found in records.read_all(*folders))

    assert errors(runs, kept) == [1.0, 2.0, 4.0]
    assert errors(kept, runs) == [2.0, 3.0, 4.0]
    assert errors(tmp_path / "nothing") == []


# --- tables


def test_a_cell_is_the_mean_and_sample_standard_deviation_over_the_seeds():
    made = [record(seed=seed, error=error) for seed, error in enumerate((1.0, 2.0, 4.5))]
    cell = tables.cells(TABLE, made, "made", 1000)[0]
    assert (cell.row, cell.column, len(cell.values), cell.paper) == ("FCN", "R", 3, 2.1)
    assert cell.mean == pytest.approx(2.5)
    assert cell.std == pytest.approx(((1.5**2 + 0.5**2 + 2**2) / 2) ** 0.5)
    assert str(cell) == "2.50 ± 1.80 (3)"


def test_a_missing_cell_is_a_dash_a_failed_one_says_so_and_one_seed_has_no_spread():
    assert text() == ["-", "-", "-", "-"]
    made = [
        record(error=1.234),
        record(distortion="e", error=None),
        record("mnist_cnn", error=0.5, seed=0),
        record("mnist_cnn", error=None, seed=1),
    ]
    assert text(*made) == ["1.23", "failed", "0.50, 1 failed", "-"]


@pytest.mark.parametrize("override", ["schedule.lr=0.1", "+schedule.lr=0.1", "model.kernel=nearest", "transform=tps"])
def test_a_run_that_differs_from_its_row_is_in_no_table(override):
    assert text(record(extra=[override])) == ["-", "-", "-", "-"]
    assert tables.schedules(TABLE, [record(extra=[override])]) == []


@pytest.mark.parametrize(
    "override",
    ["seed=3", "budget=1000", "threads=1", "logger=none", "data.root=/x", "table=table1", "hydra.verbose=true"],
)
def test_a_run_that_is_its_row_elsewhere_or_otherwise_watched_is_in_the_table(override):
    assert text(record(extra=[override])) == ["2.00", "-", "-", "-"]


def test_other_experiments_and_other_columns_are_in_no_cell():
    assert text(record("mnist_other"), record(distortion="rts")) == ["-", "-", "-", "-"]


def test_every_schedule_and_budget_has_its_own_table_the_longest_schedule_first():
    made = [
        record(error=1.0),
        record(schedule="long", steps=900, error=2.0),
        record(schedule="made", error=3.0, budget=2000),
    ]
    assert tables.schedules(TABLE, made) == [("long", 1000), ("made", 1000), ("made", 2000)]
    assert text(*made)[0] == "1.00"
    page = tables.markdown(TABLE, made)
    assert page.count("| FCN |") == 3
    assert "| FCN | 2.00 / 2.1 | - / 3.2 |" in page
    assert page.index("Schedule `long`: 900 steps, at most 1,000 trainable") < page.index("Schedule `made`: 100 steps")
    assert "seed 0; 1 run, 0.5 hours of training in all on a processor, 1 thread" in page
    assert page.endswith("- A note.")


def test_the_page_leaves_a_row_out_under_the_schedules_that_it_was_not_run_with_and_keeps_a_failed_one():
    page = tables.markdown(TABLE, [record(), record("mnist_cnn"), record("mnist_cnn", "e", schedule="long", steps=900)])
    long, short = page.split("Schedule `made`")
    assert [line for line in long.splitlines() if line.startswith(("| FCN", "| CNN"))] == [
        "| CNN | - / 1.2 | 2.00 / - |"
    ]
    assert ["| FCN |" in short, "| CNN |" in short] == [True, True]
    assert "| CNN | failed / 1.2 | - / - |" in tables.markdown(TABLE, [record(), record("mnist_cnn", error=None)])


def test_a_table_of_which_the_paper_has_no_figures_shows_ours_alone():
    own = replace(TABLE, paper={})
    found = tables.cells(own, [record(error=1.0)], "made", 1000)
    assert tables.grid(own, found) == [["% error", "R", "E"], ["FCN", "1.00", "-"], ["CNN", "-", "-"]]


def test_a_row_borrowed_from_another_table_is_shown_beside_the_table_s_own_but_makes_no_table_alone():
    own = replace(TABLE, borrowed=["mnist_fcn"])
    found = [record(), record("mnist_cnn"), record(schedule="long", steps=900)]
    assert tables.schedules(own, found) == [("made", 1000)]
    assert [cell.values for cell in tables.cells(own, found, "made", 1000)] == [[2.0], [], [2.0], []]


def test_made_data_stand_in_a_block_of_their_own_that_says_so_first():
    real, made = record(error=1.0), record(error=7.0, made_data=True, extra=["data=rendered"], budget=None)
    page = tables.markdown(TABLE, [made, real])
    first, second = page.index("| FCN | 1.00 / 2.1"), page.index("| FCN | 7.00 / 2.1")
    assert first < page.index("**Made data: rendered.**  Schedule `made`: 100 steps") < second


def test_a_table_without_records_says_so():
    assert tables.markdown(TABLE, []) == "No records yet."


def test_the_csv_has_one_line_for_every_row_column_and_schedule(tmp_path):
    made = [
        record(error=1.0),
        record(seed=1, error=2.0),
        record("mnist_cnn", "e", error=None),
        record(schedule="long", steps=900, error=0.25, made_data=True),
    ]
    tables.write(tmp_path, TABLE, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.csv", "made.md"]
    assert (tmp_path / "made.csv").read_text() == (
        "row,column,schedule,budget,params,n,mean,std,paper,made_data\n"
        "FCN,R,made,1000,987,2,1.5,0.7071,2.1,false\n"
        "FCN,E,made,1000,,0,,,3.2,false\n"
        "CNN,R,made,1000,,0,,,1.2,false\n"
        "CNN,E,made,1000,987,0,,,,false\n"
        "FCN,R,long,1000,987,1,0.25,,2.1,true\n"
        "FCN,E,long,1000,,0,,,3.2,false\n"
        "CNN,R,long,1000,,0,,,1.2,false\n"
        "CNN,E,long,1000,,0,,,,false\n"
    )


# --- scripts


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """A script of this project in a project of its own, whose committed records are none or the test's."""
    (tmp_path / "results/records").mkdir(parents=True)
    shutil.copytree(ROOT / "conf/table", tmp_path / "conf/table")
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        runpy.run_path(str(tmp_path / "scripts" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_table_script_shows_and_writes_the_table_of_own_and_committed_records(script, tmp_path):
    save(tmp_path / "runs", record(error=1.0), record("mnist_st_cnn_tps", "tc", error=0.5))
    records.write(tmp_path / "results/records/old.json", record(error=9.0))  # the same run as the first: it stands back
    records.write(tmp_path / "results/records/other.json", record(seed=1, error=2.0))
    shown = script("table.py", "table1", "--schedule", "made")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    assert ["FCN", "1.50 ± 0.71 (2) / 2.1", "- / 5.2", "- / 3.1", "- / 3.2", "- / 13.2"] in rows
    page = (tmp_path / "results/table1.md").read_text()
    assert "| FCN | 1.50 ± 0.71 (2) / 2.1 | - / 5.2 | - / 3.1 | - / 3.2 | - / 13.2 |" in page
    assert "| ST-CNN TPS | - / 0.7 | - / 0.5 | - / 0.8 | - / 1.1 | 0.50 / - |" in page
    lines = list(csv.DictReader((tmp_path / "results/table1.csv").read_text().splitlines()))
    assert len(lines) == 40
    assert lines[0] == {
        "row": "FCN", "column": "R", "schedule": "made", "budget": "1000", "params": "987", "n": "2", "mean": "1.5",
        "std": "0.7071", "paper": "2.1", "made_data": "false",
    }  # fmt: skip


def test_the_table_script_shows_the_asked_schedule_alone_and_writes_all(script, tmp_path):
    save(tmp_path / "runs", record(error=1.0), record(schedule="long", steps=900, error=2.0))
    shown = script("table.py", "table1", "--schedule", "long", "--out", tmp_path / "out")
    assert "Schedule `long`" in shown
    assert "Schedule `made`" not in shown
    written = csv.DictReader((tmp_path / "out/table1.csv").read_text().splitlines())
    assert {line["schedule"] for line in written} == {"long", "made"}


def test_the_table_script_names_a_damaged_record_in_one_line(script, tmp_path):
    save(tmp_path / "runs", record())
    (tmp_path / "runs/run0/result.json").write_text('{"version": 1')
    with pytest.raises(SystemExit, match=r"^error: the record \S*run0/result.json is damaged [^\n]*$"):
        script("table.py", "table1")


def test_records_of_finished_runs_are_kept_under_the_run_s_name_and_never_overwritten(script, tmp_path):
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/more.md"):
        (tmp_path / page).write_text("Before.\n<!-- table1 -->\nold\n<!-- /table1 -->\nAfter.\n")
    save(tmp_path / "runs", record(error=1.0), record(seed=1, error=None), record(seed=2, error=2.0))
    kept = tmp_path / "results/records"
    records.write(kept / "run0.json", record(error=9.0))
    assert "1 new records" in script("keep_records.py")
    assert {path.name: records.read(path)["metrics"] for path in kept.iterdir()} == {
        "run0.json": {"test/error": 9.0},
        "run2.json": {"test/error": 2.0},
    }
    assert "0 new records" in script("keep_records.py")
    # tables are of what is kept alone: 9.0 and 2.0, not the 1.0 that was run again
    row = "| FCN | 5.50 ± 4.95 (2) / 2.1 | - / 5.2 | - / 3.1 | - / 3.2 | - / 13.2 |"
    page = (tmp_path / "README.md").read_text()
    assert page.count(row) == 1
    assert row in (tmp_path / "results/table1.md").read_text()
    assert page.startswith("Before.\n<!-- table1 -->\n")
    assert page.endswith("<!-- /table1 -->\nAfter.\n")
    assert "old" not in page
    assert (tmp_path / "docs/more.md").read_text() == page


def test_the_weights_of_the_named_runs_are_kept_with_their_records(script, tmp_path):
    (tmp_path / "README.md").touch()
    save(tmp_path / "runs", record(), record(seed=1))
    for name in ("run0", "run1"):
        (tmp_path / "runs" / name / "weights.pt").write_text(name)
    script("keep_records.py", "--weights", "*1")
    kept = {path.name: path.read_text() for path in (tmp_path / "results/weights").iterdir()}
    assert kept.keys() == {"run1.pt", "run1.md"}
    assert kept["run1.pt"] == "run1"
    assert kept["run1.md"].startswith("# run1\n")


# --- imports


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("stn", ("pytorch_lightning", "wandb", "albumentations", "hydra", "torchvision")),
        ("stn.results.report", ("torch", "pytorch_lightning", "wandb", "hydra")),
        ("stn.results.cards", ("torch", "pytorch_lightning", "wandb", "hydra")),
        ("stn.results.tables", ("torch", "pytorch_lightning", "wandb", "hydra")),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(module, absent):
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
