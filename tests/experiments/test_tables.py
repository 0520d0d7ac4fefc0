"""Tables from records, and the scripts that show and write them."""

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from examples import TABLE, record, save
from hydra import compose, initialize_config_dir
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.stats import binomtest

from stn.experiments.command import ROOT
from stn.experiments.results import cards, cells, checks, pages, prose, records, tables, weights

KNOWN = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]


def text(*found):
    """Our cells as they are printed, row by row."""
    return [str(cell) for cell in tables.cells(TABLE, list(found), "short", 1000)]


# --- conf/


def write_conf(folder, rows, columns, **settings):
    """conf/ of a table `mine` and three experiments, and the table as it is loaded."""
    table = {"name": "mine", "title": "Mine", "metric": "test/error", "unit": "%", "notes": []}
    table |= {"column_key": "data.size_px", "columns": columns, "rows": rows, **settings}
    of_row = {
        "first": {"table": "mine", "label": "First", "paper": {64: 4.0, 128: 5}},
        "second": {"table": "mine", "label": "Second", "paper_of": "first"},
        "other": {"table": "theirs", "label": "Other", "paper": {64: 1.0}},
        "bare": {"table": "mine", "label": "Bare", "paper": {}},
    }
    for part in ("table", "experiment"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "table/mine.yaml").write_text(json.dumps({"table": table}))
    for name, row in of_row.items():
        (folder / "experiment" / f"{name}.yaml").write_text(json.dumps({"row": row}).replace('"64"', "64"))
    return tables.load(folder / "table/mine.yaml")


def test_labels_and_the_papers_figures_come_from_the_rows_files(tmp_path):
    table = write_conf(tmp_path, ["first", {"second": "Ours"}, "other"], {"64": "64px", "128": "128px"})
    assert table.rows == {"first": "First", "second": "Ours", "other": "Other"}
    both = {"64": 4.0, "128": 5.0}
    assert table.paper == {"first": both, "second": both, "other": {"64": 1.0}}
    assert table.borrowed == ["other"]


def test_a_column_may_show_the_papers_figures_of_another(tmp_path):
    table = write_conf(tmp_path, ["first"], {"96": "96px"}, paper_column={"96": "64"})
    assert table.paper == {"first": {"96": 4.0}}


def test_a_table_whose_own_rows_have_no_figures_shows_none(tmp_path):
    assert write_conf(tmp_path, ["bare", "other"], {"64": "64px"}).paper == {}


def test_a_table_of_another_tables_rows_alone_borrows_none(tmp_path):
    assert write_conf(tmp_path, ["other"], {"64": "64px"}).borrowed == []


@pytest.mark.parametrize("table", KNOWN, ids=lambda table: table.name)
def test_every_row_of_the_sweep_is_a_row_of_the_table(table):
    sweep = (ROOT / f"conf/table/{table.name}.yaml").read_text().split("experiment: ")[1].splitlines()[0]
    assert sweep.split(",") == list(table.rows)


def test_every_experiment_is_a_row_of_the_table_that_it_names():
    own = {name for table in KNOWN for name in table.rows if name not in table.borrowed}
    assert own == {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")}


def test_an_unknown_schedule_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"^unknown --schedule nope: choose .*fast, .*smoke"):
        tables.schedule(ROOT / "conf", "nope")
    assert tables.schedule(ROOT / "conf", "smoke")["smoke"]


# --- cells


def test_a_cell_is_mean_and_sample_standard_deviation_over_seeds():
    found = [record(seed=seed, error=error) for seed, error in enumerate((1.0, 2.0, 4.5))]
    cell = tables.cells(TABLE, found, "short", 1000)[0]
    assert (cell.row, cell.column, len(cell.values), cell.paper) == ("FCN", "R", 3, 2.1)
    assert cell.mean == pytest.approx(2.5)
    assert cell.std == pytest.approx(((1.5**2 + 0.5**2 + 2**2) / 2) ** 0.5)
    assert str(cell) == "2.50 ± 1.80 (3)"


def test_a_cell_says_whether_runs_are_missing_or_failed():
    assert text() == ["-", "-", "-", "-"]
    found = [
        record(error=1.234),
        record(distortion="e", error=None),
        record("mnist_cnn", error=0.5, seed=0),
        record("mnist_cnn", error=None, seed=1),
    ]
    assert text(*found) == ["1.23 ± 0.22 (1)", "failed", "0.50 ± 0.14 (1), 1 failed", "-"]


@pytest.mark.parametrize(
    "override",
    ["optimizer.lr=0.1", "+schedule.bound.all=1", "model.kernel=nearest", "optimizer=adamw", "~schedule.bound",
     "data.distortion.canvas_px=30"],
)  # fmt: skip
def test_a_run_that_differs_from_its_row_is_in_no_table(override):
    assert text(record(extra=[override])) == ["-", "-", "-", "-"]
    assert tables.schedules(TABLE, [record(extra=[override])]) == []


def test_the_own_schedule_of_every_row_is_what_hydra_composes():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for file in sorted((ROOT / "conf/table").glob("*.yaml")):
            swept = compose("config", [f"table={file.stem}"], return_hydra_config=True).hydra.sweeper.params
            words = [f"schedule={swept.schedule}"] if "schedule" in swept else []
            for row, schedule in tables.own_schedules(file).items():
                composed = compose("config", [f"experiment={row}", *words], return_hydra_config=True)
                assert composed.hydra.runtime.choices.schedule == schedule, (file, row)


def test_an_override_that_changes_nothing_leaves_a_run_in_its_table():
    both = ["optimizer=adamw", "optimizer.lr=0.1"]
    assert text(record(extra=both, redundant=both[1:])) == ["-", "-", "-", "-"]
    assert text(record(extra=both, redundant=both)) == ["2.00 ± 0.27 (1)", "-", "-", "-"]


def test_a_run_on_another_data_set_is_in_no_table():
    table1 = next(table for table in KNOWN if table.name == "table1")
    run = record(distortion="rts", extra=["data=addition"])
    assert tables.belongs(table1, run)
    assert not tables.belongs(replace(table1, data=[]), run)
    run["config"]["data"]["name"] = "addition"
    assert not tables.belongs(table1, run)


@pytest.mark.parametrize(
    "change",
    [
        {"config": record(steps=200)["config"]},
        {"config": record()["config"] | {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.2}}},
        {"revisions": {"data": 2, "model": 1, "objective": 1, "step": 1}},
    ],
    ids=["steps", "rate", "revisions"],
)
def test_runs_that_were_computed_otherwise_share_no_mean(change):
    older = [record(seed=seed, error=9.0, finished_at=f"2026-01-0{seed + 1}") for seed in (0, 1)]
    newer = record(seed=0, error=2.0, finished_at="2026-02-01") | change
    first = record(seed=0, error=5.0, distortion="e", finished_at="2026-01-01")  # alone in its cell
    assert text(*older, first, newer) == ["2.00 ± 0.27 (1)", "5.00 ± 0.43 (1)", "-", "-"]
    told = pages.describe([*older, first, newer], TABLE, "short", 1000)
    assert told.endswith("  2 of other code or settings than the newest of their cells left out.")


@pytest.mark.parametrize(
    "override",
    ["seed=3", "budget=1000", "threads=1", "logger=none", "data.root=/x", "table=table1", "hydra.verbose=true",
     "precision=fp32", "devices=2", "accumulate=2", "hydra/launcher=joblib", "data=mnist"],
)  # fmt: skip
def test_a_run_of_the_row_on_another_machine_is_in_the_table(override):
    assert text(record(extra=[override])) == ["2.00 ± 0.27 (1)", "-", "-", "-"]


def test_other_experiments_and_other_columns_are_in_no_cell():
    assert text(record("mnist_other"), record(distortion="rts")) == ["-", "-", "-", "-"]


@pytest.mark.parametrize("images", [100, 1000, 10_000])
@pytest.mark.parametrize("percent", [0.0, 2.0, 16.0, 100.0])
def test_the_interval_of_one_run_is_wilsons(percent, images):
    of_scipy = binomtest(round(percent * images / 100), images).proportion_ci(0.95, method="wilson")
    assert cells.half_width(percent, images) == pytest.approx(50 * (of_scipy.high - of_scipy.low), rel=1e-4)


def cell(*values, paper=2.0, **changes):
    whole = {"failed": 0, "paper": paper, "synthetic": False, "images": 10_000} | changes
    return tables.Cell("a row", "a column", "short", 1000, 987, list(values), **whole)


@pytest.mark.parametrize(
    ("values", "paper", "relation"),
    [
        ((2.0,), 2.0, "≈"),
        ((2.44,), 2.0, "≈"),  # 0.275 and 0.303 in quadrature: 0.41, and 0.05 for the paper's rounding: 0.46
        ((2.48,), 2.0, ">"),
        ((1.59,), 2.0, "≈"),
        ((1.57,), 2.0, "<"),
        ((2.38, 2.48, 2.58), 2.0, ">"),  # the same spread as of 10,000 images, and 0.11 of the mean over seeds
        ((1.98, 2.48, 2.98), 2.0, "≈"),  # seeds that differ by more: 0.57
        ((50.0,), None, "/"),
        ((), 2.0, "/"),
    ],
)
def test_a_cell_differs_from_the_papers_beyond_both_errors(values, paper, relation):
    assert cell(*values, paper=paper).relation == relation


def test_synthetic_data_and_test_sets_of_unknown_size_compare_with_nothing():
    assert str(cell(9.0, images=None)) == "9.00"
    assert cell(9.0, images=None).relation == "/"
    assert cell(9.0, synthetic=True).beside() == "9.00 ± 0.56 (1) / 2.0"


def test_every_recorded_figure_is_a_count_of_its_test_images():
    """The sizes of the test sets, held against what was measured on them."""
    for table in KNOWN:
        for found in records.read_kept(ROOT / "results"):
            if tables.belongs(table, found):
                images = cells.TEST_IMAGES[found["config"]["data"]["name"]]
                count = found["metrics"][table.metric] * images / 100
                assert count == pytest.approx(round(count), abs=1e-3), found["id"]


def test_the_size_of_a_test_set_is_that_of_the_record():
    assert text(record(test_images=100)) == ["2.00 ± 3.23 (1)", "-", "-", "-"]


def test_seeds_of_co_localisation_add_up_their_images():
    found = [record(seed=seed, error=5.0) for seed in range(3)]
    assert tables.cells(TABLE, found, "short", 1000)[0].images == 10_000
    for each in found:
        each["config"]["data"]["name"] = "colocalisation"
    assert tables.cells(replace(TABLE, data=[]), found, "short", 1000)[0].images == 300


# --- blocks


def test_the_most_complete_schedule_comes_first_then_the_longest():
    found = [
        record(error=1.0),
        record("mnist_cnn", error=1.5),
        record(schedule="long", steps=900, error=2.0),
        record(schedule="longer", steps=1900, error=2.5),
        record(error=3.0, budget=2000),
    ]
    order = [("short", 1000), ("longer", 1000), ("long", 1000), ("short", 2000)]
    assert tables.schedules(TABLE, found) == order
    assert text(*found)[0] == "1.00 ± 0.20 (1)"
    page = pages.markdown(TABLE, found)
    assert page.count("| FCN |") == 4
    assert "| FCN | 2.00 ± 0.27 (1) ≈ 2.1 | - / 3.2 |" in page
    assert page.index("Schedule `short`: 100 steps of 10 images.  At most 1,000") < page.index("Schedule `long`: 900")
    assert "Seed 0.  1 run took 0.5 core-hours of training in all, on a processor, 1 thread, in fp32." in page
    assert page.endswith("- A note.")


def test_steps_that_differ_by_classifier_are_told_apart():
    found = [record(steps=30_000), record("mnist_cnn", steps=10_000)]
    for each, batch in zip(found, (128, 64), strict=True):
        each["config"]["schedule"]["batch_size"] = batch
    page = pages.markdown(TABLE, found)
    assert "Schedule `short`: 30,000 steps of 128 images (FCN), 10,000 steps of 64 images (CNN).  At most" in page


def test_rows_without_a_classifier_in_their_name_stand_for_themselves():
    own = replace(TABLE, rows={"mnist_fcn": "T", "mnist_cnn": "TC"})
    page = pages.markdown(own, [record(), record("mnist_cnn", steps=150)])
    assert "100 steps of 10 images (T), 150 steps of 10 images (TC).  " in page


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "mnist", "budget": None}, "The widths that the paper states (256 units, 64 filters): 300 to 987 "),
        ({"name": "svhn", "width": 0.25}, "0.25 x the paper's widths: 300 to 987 "),
        ({"name": "cub"}, "steps of 10 images.  300 to 987 "),
    ],
    ids=["stated", "scaled", "as it is"],
)
def test_without_a_budget_the_widths_and_parameters_are_stated(model, words):
    found = [record(budget=None), record("mnist_cnn", budget=None, params=300)]
    for each in found:
        each["config"]["model"] = model
    assert f"{words}trainable parameters.  Seed 0." in pages.markdown(TABLE, found)
    without = pages.markdown(replace(TABLE, paper={}), found)
    assert "images.  300 to 987 trainable parameters.  Seed 0." in without


def test_the_cells_beside_the_papers_are_counted():
    found = [record(error=9.0), record("mnist_cnn", error=0.5), record(distortion="e", error=3.3)]
    assert "in fp32.  Ours against the paper's 3 figures: 1 lower, 1 level, 1 higher." in pages.markdown(TABLE, found)
    assert "Ours against" not in pages.markdown(replace(TABLE, paper={}), found)


def test_a_page_shows_the_best_block_alone():
    page = "Before.\n<!-- example -->\nold\n<!-- /example -->\nAfter.\n"
    filled = pages.into_page(page, TABLE, [record(), record("mnist_cnn"), record(schedule="long", steps=900)])
    assert (filled.count("Schedule `"), filled.count("Schedule `short`")) == (1, 1)
    assert filled.startswith("Before.\n<!-- example -->\n\nSchedule")
    assert filled.endswith("<!-- /example -->\nAfter.\n")
    assert pages.into_page(filled, TABLE, []).count("No records yet.") == 1
    assert pages.into_page("No mark.", TABLE, [record()]) == "No mark."


def test_the_footnote_names_every_precision():
    found = [record(), record(seed=1, precision="bf16")]
    assert "Seeds 0, 1.  2 runs took 1.0 core-hours of training in all, on a processor, 1 thread, in bf16 or fp32." in (
        pages.markdown(TABLE, found)
    )


def test_hours_of_a_gpu_are_not_counted_as_hours_of_cores():
    on_gpu = [record(seed=seed) | {"device": "NVIDIA H200", "seconds": 7200.0} for seed in (1, 2)]
    took = (
        "took 0.5 core-hours of training in all, on a processor, 1 thread; 2 runs took 4.0 hours of training in all on "
    )
    assert f"Seeds 0, 1, 2.  1 run {took}NVIDIA H200, in fp32." in pages.markdown(TABLE, [record(), *on_gpu])
    assert "Seeds 1, 2.  2 runs took 4.0 hours of training in all on NVIDIA H200, in" in pages.markdown(TABLE, on_gpu)
    assert prose.figure("example/mnist_fcn/r/short hours", [TABLE], [record(), *on_gpu]) == "0.5"
    assert prose.figure("example/mnist_fcn/r/short minutes", [TABLE], [record(), *on_gpu]) == "30"
    assert prose.figure("example/mnist_fcn/r/short gpu_minutes", [TABLE], [record(), *on_gpu]) == "120"
    assert prose.figure("example/mnist_fcn/r/short hours", [TABLE], on_gpu) == "not recorded"


def test_a_run_that_was_moved_to_a_gpu_counts_as_one_of_a_gpu():
    sessions = [{"device": "AMD EPYC", "from": 0, "to": 50}, {"device": "NVIDIA H200", "from": 50, "to": 100}]
    moved = record() | {"sessions": sessions}
    assert (records.on_gpu(record()), records.on_gpu(moved)) == (False, True)
    assert records.spent([record(), moved]) == (1800.0, moved["seconds"])


def test_a_page_leaves_out_rows_that_a_schedule_was_not_run_with():
    found = [record(), record("mnist_cnn"), record("mnist_cnn", "e", schedule="long", steps=900)]
    short, long = pages.markdown(TABLE, found).split("Schedule `long`")
    rows = [line for line in long.splitlines() if line.startswith(("| FCN", "| CNN"))]
    assert rows == ["| CNN | - / 1.2 | 2.00 ± 0.27 (1) |"]
    assert ["| FCN |" in short, "| CNN |" in short] == [True, True]
    assert "| CNN | failed / 1.2 | - |" in pages.markdown(TABLE, [record(), record("mnist_cnn", error=None)])


def test_a_table_without_figures_of_the_paper_shows_ours_alone():
    own = replace(TABLE, paper={})
    found = tables.cells(own, [record(error=1.0)], "short", 1000)
    assert pages.grid(own, found) == [["% error", "R", "E"], ["FCN", "1.00 ± 0.20 (1)", "-"]]


def test_a_borrowed_row_is_shown_but_makes_no_table_alone():
    own = replace(TABLE, borrowed=["mnist_fcn"])
    found = [record(), record("mnist_cnn"), record(schedule="long", steps=900)]
    assert tables.schedules(own, found) == [("short", 1000)]
    assert [cell.values for cell in tables.cells(own, found, "short", 1000)] == [[2.0], [], [2.0], []]


def test_synthetic_data_have_a_block_of_their_own_that_says_so():
    real, drawn = record(error=1.0), record(error=7.0, synthetic=True, extra=["data=rendered"], budget=None)
    drawn["config"]["data"]["name"] = "rendered"
    page = pages.markdown(TABLE, [drawn, real])
    first, second = page.index("| FCN | 1.00 ± 0.20 (1) < 2.1"), page.index("| FCN | 7.00 / 2.1")
    assert first < page.index("**Synthetic data: rendered.**  Schedule `short`: 100 steps") < second


def test_a_table_without_records_says_so():
    assert pages.markdown(TABLE, []) == "No records yet."


def test_the_csv_has_a_line_for_every_row_column_and_schedule(tmp_path):
    found = [
        record(error=1.0),
        record(seed=1, error=2.0),
        record("mnist_cnn", "e", error=None),
        record(schedule="long", steps=900, error=0.25, synthetic=True),
    ]
    written = pages.write(tmp_path, TABLE, found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example.csv", "example.md"]
    assert sorted(path.name for path in written) == ["example.csv", "example.md"]
    assert pages.write(tmp_path, TABLE, found) == []
    assert (tmp_path / "example.csv").read_text() == (
        "row,column,schedule,budget,params,n,mean,std,paper,synthetic\n"
        "FCN,R,short,1000,987,2,1.5,0.7071,2.1,false\n"
        "FCN,E,short,1000,,0,,,3.2,false\n"
        "CNN,R,short,1000,,0,,,1.2,false\n"
        "CNN,E,short,1000,987,0,,,,false\n"
        "FCN,R,long,1000,987,1,0.25,,2.1,true\n"
        "FCN,E,long,1000,,0,,,3.2,false\n"
        "CNN,R,long,1000,,0,,,1.2,false\n"
        "CNN,E,long,1000,,0,,,,false\n"
    )


@pytest.mark.parametrize("table", KNOWN, ids=lambda table: table.name)
def test_the_tables_in_git_are_those_of_the_kept_records(table, tmp_path):
    pages.write(tmp_path, table, records.read_kept(ROOT / "results"))
    for name in (f"{table.name}.csv", f"{table.name}.md"):
        assert (tmp_path / name).read_text() == (ROOT / "results" / name).read_text()


# --- scripts


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """A script in a project of its own: its exit status or message, and its output."""
    for part in ("table", "experiment", "schedule"):
        shutil.copytree(ROOT / "conf" / part, tmp_path / "conf" / part)
    shutil.copy(ROOT / "conf/config.yaml", tmp_path / "conf")
    for part in ("results/weights", "docs/figures", "runs"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "README.md").touch()
    monkeypatch.setattr("stn.experiments.command.ROOT", tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as stop:
            return stop.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def test_without_a_schedule_the_table_script_shows_the_tables_own(script, tmp_path):
    longer = record(error=1.0, schedule="paper", steps=900)
    save(tmp_path / "runs", longer)
    assert "Schedule paper" in script("table.py", "table1")[1].replace("`", "")  # all, while there is none of its own
    save(tmp_path / "runs", record(error=2.0, schedule="fast"))
    shown = script("table.py", "table1")[1].replace("`", "")
    assert "Schedule fast" in shown
    assert "Schedule paper" not in shown


def test_the_table_script_shows_own_and_kept_records(script, tmp_path):
    save(tmp_path / "runs", record(error=1.0, schedule="fast"), record("mnist_st_cnn_tps", "tc", 0, 0.5, "fast"))
    old = record(error=9.0, schedule="fast")  # of the same run as the first, which stands before it
    records.keep([old, record(seed=1, error=2.0, schedule="fast")], tmp_path / "results")
    code, shown = script("table.py", "table1", "--schedule", "fast")
    rows = [[cell.strip() for cell in line.split("│")[1:7]] for line in shown.splitlines()]  # the paper's columns
    assert code == 0
    assert ["FCN", "1.50 ± 0.71 (2) ≈ 2.1", "- / 5.2", "- / 3.1", "- / 3.2", "- / 13.2"] in rows
    assert "own runs, in " in shown
    page = (tmp_path / "results/table1.md").read_text()
    assert "| FCN | 1.50 ± 0.71 (2) ≈ 2.1 | - / 5.2 | - / 3.1 | - / 3.2 | - / 13.2 |" in page
    assert "| ST-CNN TPS | - / 0.7 | - / 0.5 | - / 0.8 | - / 1.1 | 0.50 ± 0.14 (1) |" in page
    lines = list(csv.DictReader((tmp_path / "results/table1.csv").read_text().splitlines()))
    table = tables.load(ROOT / "conf/table/table1.yaml")
    assert len(lines) == len(table.rows) * len(table.columns)
    assert lines[0] == {
        "row": "FCN", "column": "R", "schedule": "fast", "budget": "1000", "params": "987", "n": "2", "mean": "1.5",
        "std": "0.7071", "paper": "2.1", "synthetic": "false",
    }  # fmt: skip


def test_the_table_script_shows_the_rows_of_a_part(script, tmp_path):
    save(tmp_path / "runs", record("mnist_cnn", error=1.0, schedule="fast"))
    code, shown = script("table.py", "table1", "--schedule", "fast")
    rows = [[cell.strip() for cell in line.split("│")[1:7]] for line in shown.splitlines() if line.startswith("│")]
    assert (code, rows) == (0, [["CNN", "1.00 ± 0.20 (1) ≈ 1.2", "- / 0.8", "- / 1.5", "- / 1.4", "- / 3.5"]])
    assert "≈ that they differ by no more than that" in " ".join(shown.split())


def test_the_table_script_shows_one_schedule_and_writes_all(script, tmp_path):
    save(tmp_path / "runs", record(error=1.0, schedule="fast"), record(schedule="paper", steps=900, error=2.0))
    _, shown = script("table.py", "table1", "--schedule", "paper", "--out", tmp_path / "out")
    assert "Schedule `paper`" in shown
    assert "Schedule `fast`" not in shown
    written = csv.DictReader((tmp_path / "out/table1.csv").read_text().splitlines())
    assert {line["schedule"] for line in written} == {"paper", "fast"}


def test_the_table_script_tells_of_runs_that_it_leaves_out(script, tmp_path):
    longer = record(error=1.0, schedule="fast", steps=500, extra=["schedule.steps=500"])
    save(tmp_path / "runs", record(seed=1, schedule="fast"), longer)
    _, shown = script("table.py", "table1")
    assert "2.00 ± 0.27 (1) ≈ 2.1" in shown
    assert f"an override changes their experiment: 1 of your runs, as {longer['id']}\n" in shown


def test_a_smoke_run_is_shown_as_one_and_reaches_no_file(script, tmp_path):
    save(tmp_path / "runs", record(error=89.5, schedule="smoke", smoke=True))
    before = sorted(path for path in tmp_path.rglob("*"))
    code, shown = script("table.py", "table1", "--schedule", "smoke")
    assert code == 0
    assert "smoke: these figures mean nothing" in shown
    assert "89.50 ± 0.60 (1) > 2.1" in shown
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert "89.50" not in script("table.py", "table1")[1]
    script("keep_records.py")
    assert not (tmp_path / "results/records.jsonl").exists()
    assert not any("89.5" in path.read_text() for path in (tmp_path / "results").glob("*.*"))


def test_what_the_table_script_cannot_use_is_said_in_one_line(script, tmp_path):
    code, _ = script("table.py", "table1", "--schedule", "nope")
    assert code.startswith("error: unknown --schedule nope: choose ")
    missing = tmp_path / "missing"
    for name in ("table.py", "status.py", "report.py", "keep_records.py"):
        words = ["table1"] if name in ("table.py", "status.py") else []
        assert script(name, *words, "--runs", missing)[0] == f"error: --runs {missing}: there is no such folder"


@pytest.mark.parametrize("command", ["table.py table1", "keep_records.py"])
def test_a_damaged_record_costs_its_own_line(command, script, tmp_path):
    save(tmp_path / "runs", record(error=7.25), record(seed=1))
    result = tmp_path / "runs" / record(seed=1)["id"] / "result.json"
    result.write_text('{"version": 2')
    code, said = script(*command.split())
    wrong, rest = code.splitlines()
    assert wrong.startswith(f"error: the record {result} is damaged ")
    assert "other records" in rest
    assert {"table.py table1": "7.25", "keep_records.py": "1 new record in "}[command] in said


def test_ended_runs_are_kept_and_the_pages_made_from_them(script, tmp_path):
    for page in ("README.md", "docs/more.md"):
        (tmp_path / page).write_text("Before.\n<!-- table1 -->\nold\n<!-- /table1 -->\nAfter.\n")
    save(tmp_path / "runs", record(error=1.0), record(seed=1, error=None), record(seed=2, error=2.0))
    records.keep([record(error=9.0)], tmp_path / "results")
    _, said = script("keep_records.py")
    assert said.startswith("2 new records in ")
    assert {"written: README.md", "written: docs/more.md", "written: results/table1.csv"} <= set(said.splitlines())
    kept = [r["metrics"].get("test/error") for r in records.read_kept(tmp_path / "results")]
    assert kept == [9.0, None, 2.0]
    _, said = script("keep_records.py")
    assert said.splitlines() == [f"0 new records in {tmp_path / 'results/records.jsonl'}"]
    # the tables are of what is kept alone: 9.0 and 2.0, not the 1.0 that was run again
    row = "| FCN | 5.50 ± 4.95 (2), 1 failed ≈ 2.1 | - / 5.2 | - / 3.1 | - / 3.2 | - / 13.2 |"
    page = (tmp_path / "README.md").read_text()
    assert page.count(row) == 1
    assert row in (tmp_path / "results/table1.md").read_text()
    assert page.startswith("Before.\n<!-- table1 -->\n")
    assert page.endswith("<!-- /table1 -->\nAfter.\n")
    assert "old" not in page
    assert (tmp_path / "docs/more.md").read_text() == page


# --- weights


def test_weights_are_kept_in_half_precision_and_listed(script, tmp_path):
    examples = [record(), record(seed=1)]
    save(tmp_path / "runs", *examples)
    tensors = {"a": np.linspace(-1, 1, 7, dtype=np.float32), "steps": np.array([3], dtype=np.int64)}
    for example in examples:
        save_file(tensors, tmp_path / "runs" / example["id"] / "weights.safetensors", {"id": example["id"]})
    script("keep_records.py", "--weights", "*seed1*")
    name, folder = examples[1]["id"], tmp_path / "results/weights"
    path = folder / f"{name}.safetensors"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "index.json", path.name]
    kept = load_file(path)
    assert (kept["a"].dtype, kept["steps"].dtype) == (np.float16, np.int64)
    np.testing.assert_allclose(kept["a"], tensors["a"], atol=5e-4)
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"id": name}
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert weights.index(folder) == {name: {"sha256": digest, "bytes": path.stat().st_size}}
    card = (folder / "README.md").read_text()
    assert f"## {name}\n" in card
    assert "Table 1, FCN, R; the paper's figure is 2.1." in card
    assert examples[0]["id"] not in card


def test_more_weights_than_git_should_hold_are_refused(tmp_path, monkeypatch):
    save_file({"a": np.zeros(1000, dtype=np.float32)}, tmp_path / "weights.safetensors")
    monkeypatch.setattr(weights, "MOST_BYTES", 1500)
    (tmp_path / "kept").mkdir()
    with pytest.raises(ValueError, match=r"^with a-run, [^\n]* would have [^\n]* bytes, more than 1,500"):
        weights.keep(tmp_path / "weights.safetensors", "a-run", tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_the_kept_weights_are_those_that_the_index_lists():
    folder = ROOT / "results/weights"
    listed = weights.index(folder)
    files = {path.stem: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert {name: entry["bytes"] for name, entry in listed.items()} == files
    assert sum(files.values()) <= weights.MOST_BYTES
    assert set(files) <= {r["id"] for r in records.read_kept(ROOT / "results")}
    card = (folder / "README.md").read_text()
    assert all(f"## {name}\n" in card for name in files)


# --- imports


@pytest.mark.parametrize("module", ["report", "cards", "tables", "records", "weights", "curves", "prose"])
def test_what_is_made_from_records_imports_no_pytorch(module):
    absent = {"torch", "pytorch_lightning", "wandb", "hydra"}
    code = f"import sys, stn.experiments.results.{module}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_a_record_says_is_text_never_markup_in_markdown_either():
    evil = "a | b\n# <script>`x`</script> [link](javascript:1) *"
    config = record()["config"]
    config = config | {"model": config["model"] | {evil: [evil]}}
    one, cited = record(device=evil, config=config), "example/mnist_fcn/r/best device"
    for text in (pages.markdown(TABLE, [one]), cards.page([one], [TABLE]), prose.figure(cited, [TABLE], [one])):
        assert r"a \| b # &lt;script&gt;\`x\`&lt;/script&gt; \[link\](javascript:1) \*" in text
        assert not re.search(r"<script|(?<!\\)\[link|(?<!\\)`x|\n# &", text)
    with pytest.raises(ValueError, match=r"has schedule=.*, which is not valid"):
        checks.checked(one | {"schedule": "fast|<b>"}, "it", "delete it")
    with pytest.raises(ValueError, match=r"has metrics=.*, which is not valid"):
        checks.checked(one | {"metrics": {evil: 1.0}}, "it", "delete it")
