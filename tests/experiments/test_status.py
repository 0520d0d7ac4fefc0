"""Where a table stands: scripts/status.py on run folders."""

import os
import re
import runpy
import subprocess
import sys
from datetime import timedelta

import pytest
from examples import record

from stn.experiments.command import ROOT
from stn.experiments.results import records, tables
from stn.experiments.training.lock import locked

TABLE = tables.load(ROOT / "conf/table/table1.yaml")
CELLS = len(TABLE.rows) * len(TABLE.columns)


def started(runs, experiment, distortion, seed, schedule="fast", **changes):
    """The folder of a run: it has ended, or it is unfinished at a step."""
    settings = {"budget": 150000, "steps": 6000, "seconds": 60.0} | changes
    example = record(experiment, distortion, seed, schedule=schedule, **settings)
    if example["status"] == "failed":
        example["failure"] = "the loss became nan"
    folder = runs / example["id"]
    folder.mkdir(parents=True)
    records.write(folder / ("unfinished.json" if example["status"] == "unfinished" else "result.json"), example)
    return folder


@pytest.fixture
def status(monkeypatch, capsys):
    """The cells of Table 1 by row, and the last line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["status.py", "table1", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        runpy.run_path(str(ROOT / "scripts/status.py"), run_name="__main__")
        *shown, last = capsys.readouterr().out.splitlines()
        rows = [line.split("│") for line in shown if "│" in line]
        return {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}, last

    return run


def test_the_status_counts_cells_by_what_became_of_them(tmp_path, status):
    started(tmp_path, "mnist_fcn", "r", 0)
    started(tmp_path, "mnist_fcn", "rts", 0, status="failed")
    started(tmp_path, "mnist_cnn", "r", 0, status="unfinished", step=1500, seconds=15.0)
    running = started(tmp_path, "mnist_cnn", "e", 0, status="unfinished", step=3000, seconds=300.0)
    with locked(running, 0):
        cells, last = status("--runs", tmp_path)
    assert cells["FCN"][:5] == ["done", "failed", "missing", "missing", "missing"]
    assert cells["CNN"][:5] == ["stopped 25 %", "missing", "missing", "running 50 %", "missing"]
    counts = f"{CELLS} cells: 1 done, 1 running, 1 stopped, 1 failed, {CELLS - 4} missing"
    assert re.match(rf"{counts}; about .* left, 1 at a time", last)
    cells, _ = status("--runs", tmp_path, "--seeds", "0,1,0")
    assert cells["FCN"][:2] == ["1 done, 1 missing", "1 failed, 1 missing"]
    assert cells["CNN"][3] == "1 stopped 50 %, 1 missing"


def test_a_damaged_record_costs_its_own_line(tmp_path, status, capsys):
    started(tmp_path, "mnist_fcn", "r", 0)
    damaged = started(tmp_path, "mnist_fcn", "e", 0) / "result.json"
    damaged.write_text("{")
    with pytest.raises(
        SystemExit, match=rf"^error: the record {damaged} is damaged [^\n]*\nThe status counts the other records"
    ):
        status("--runs", tmp_path)
    counts = f"{CELLS} cells: 1 done, 0 running, 0 stopped, 0 failed, {CELLS - 1} missing"
    assert counts in capsys.readouterr().out


def test_the_time_left_is_at_the_pace_of_the_same_cell_or_run(tmp_path, status, monkeypatch):
    for row in TABLE.rows:
        for column in TABLE.columns:
            if (row, column) not in (("mnist_fcn", "r"), ("mnist_cnn", "e")):
                started(tmp_path, row, column, 0, "fast_sgd", seconds=7.0)
    started(tmp_path, "mnist_fcn", "r", 1, "fast_sgd", seconds=600.0)  # another seed of the missing cell: 0.1 s a step
    running = started(
        tmp_path, "mnist_cnn", "e", 0, "fast_sgd", status="unfinished", step=3000, seconds=900.0  # 0.3 s a step
    )  # fmt: skip
    monkeypatch.setattr(records, "read_kept", lambda folder, **_: [])
    with locked(running, 0):
        _, last = status("--runs", tmp_path, "--schedule", "fast_sgd")
    left = timedelta(seconds=600 + 900)
    counts = f"{CELLS} cells: {CELLS - 2} done, 1 running, 0 stopped, 0 failed, 1 missing"
    assert last == f"{counts}; about {left} left, 1 at a time"


@pytest.mark.parametrize(("device", "seconds"), [("a processor", 600), ("NVIDIA H200", 6)])
def test_the_time_left_is_that_of_the_kind_of_device_that_runs_here_use(device, seconds, tmp_path, status, monkeypatch):
    for row in TABLE.rows:
        for column in TABLE.columns:
            if (row, column) != ("mnist_fcn", "r"):
                started(tmp_path, row, column, 0, "fast_sgd", device=device)
    kept = [record("mnist_fcn", "r", schedule="fast_sgd", steps=6000, seconds=s, device=name, budget=150000)
            for name, s in (("a processor", 600.0), ("NVIDIA H200", 6.0))]  # fmt: skip
    monkeypatch.setattr(records, "read_kept", lambda folder, **_: kept)
    _, last = status("--runs", tmp_path, "--schedule", "fast_sgd")
    assert last.endswith(f"1 missing; about {timedelta(seconds=seconds)} left, 1 at a time")


def test_the_status_touches_no_run(tmp_path, status):
    stopped = started(tmp_path, "mnist_cnn", "r", 0, status="unfinished", step=1500)
    running = started(tmp_path, "mnist_cnn", "e", 0, status="unfinished", step=1500)
    with locked(stopped, 0):
        pass

    def times():  # but of the lock that its own process touches
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != running / "lock"}

    with locked(running, 0):
        before = times()
        cells, _ = status("--runs", tmp_path)
        assert times() == before
    assert (cells["CNN"][0], cells["CNN"][3]) == ("stopped 25 %", "running 25 %")


def test_cells_of_whose_pace_no_record_tells_are_no_part_of_the_time_left(tmp_path, status, monkeypatch):
    monkeypatch.setattr(records, "read_kept", lambda folder, **_: [])
    assert status("--runs", tmp_path)[1].endswith(f"{CELLS} missing; time unknown for {CELLS} of them")


def test_smoke_runs_have_a_status_of_their_own(tmp_path, status):
    started(tmp_path, "mnist_fcn", "r", 0, schedule="smoke", smoke=True)
    assert status("--runs", tmp_path, "--schedule", "smoke")[0]["FCN"][0] == "done"
    assert status("--runs", tmp_path)[0]["FCN"][0] == "missing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--schedule", "nope"], "unknown --schedule nope: choose "),
        (["--seeds", "one"], "--seeds one: give them as 0,1,2 or range(3)"),
        (["--runs", "/nowhere"], "--runs /nowhere: there is no such folder"),
    ],
)
def test_what_the_status_cannot_use_is_said_in_one_line(status, words, message):
    with pytest.raises(SystemExit) as stop:
        status(*words)
    assert str(stop.value).startswith(f"error: {message}")
    assert len(str(stop.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("run.py", "--help"),
        ("scripts/status.py", "table1"),
        ("scripts/table.py", "--help"),
        ("scripts/report.py", "-h"),
    ],
)
def test_what_needs_no_network_loads_no_pytorch(script, word):
    code = f"import runpy, sys; sys.argv = {[script, word]!r}; sys.stdout = open({os.devnull!r}, 'w')\n" \
           f"try: runpy.run_path({script!r}, run_name='__main__')\n" \
           "except SystemExit: pass\n" \
           "sys.exit(' '.join({'torch', 'pytorch_lightning', 'wandb', 'ray'} & set(sys.modules)) or 0)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
