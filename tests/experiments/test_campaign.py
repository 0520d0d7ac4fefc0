"""The campaign: its order, and that a slice goes on where the one before stood, killed or not."""

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from examples import record, save

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import campaign  # noqa: E402


def options(**changes):
    return argparse.Namespace(**{"seeds": 3, "tables": None, "schedule": None, "words": [], "missing": False} | changes)


def test_a_whole_seed_of_tables_1_and_4_comes_before_the_next():
    cells, _ = campaign.plan(options(tables=["table1", "table4"]))
    seeds = [word for cell in cells for word in cell.words if word.startswith("seed=")]
    assert seeds == sorted(seeds)
    assert all("schedule=paper" in cell.words for cell in cells)
    assert len(cells) % 3 == 0
    assert sum("data/distortion" in cell.name and "mnist" in cell.name for cell in cells) >= 3 * 40
    assert len(set(cells)) == len(cells)


def test_the_cheapest_cell_comes_first():
    cells, _ = campaign.plan(options(tables=["table1"], seeds=1))
    assert "experiment=mnist_fcn" in cells[0].words
    assert "cnn" in cells[-1].name


def test_tables_whose_data_are_not_there_are_named(monkeypatch, tmp_path):
    for folder in ("conf", "results"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "data/mnist").mkdir(parents=True)
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    cells, left_out = campaign.plan(options())
    assert left_out == [f"table2 is skipped: there is no data/{name}" for name in ("svhn_rendered",)] + [
        "table3 is skipped: there is no data/synthetic_birds_2"
    ]
    assert any("experiment=voxel_st_cnn" in cell.words and "schedule=fast_3d" in cell.words for cell in cells)
    assert any("experiment=coloc_t" in cell.words for cell in cells)


def test_every_cell_s_command_composes():
    from composing import compose

    cells, _ = campaign.plan(options(seeds=1))
    experiments = {next(w for w in cell.words if w.startswith("experiment=")): cell for cell in cells}
    for cell in experiments.values():
        config, choices = compose(*cell.words, *campaign.QUIET)
        own = choices["experiment"].startswith("coloc")
        assert own or f"schedule={choices['schedule']}" in cell.words
        assert config["seed"] == 0


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="unknown table 'table9'"):
        campaign.plan(options(tables=["table9"]))


def test_a_record_is_that_of_its_cell_alone():
    cell = campaign.Cell(("experiment=mnist_fcn", "data/distortion=r", "schedule=short", "seed=0"), 100)
    assert cell.is_that_of(record(extra=("seed=0", "threads=1")))
    assert not cell.is_that_of(record(extra=("seed=1",)))
    assert not cell.is_that_of(record(distortion="e", extra=("seed=0",)))
    assert not cell.is_that_of(record(extra=("seed=0", "budget=400000")))
    assert not cell.is_that_of(record(extra=("seed=0", "optimizer.lr=1")))


def test_runs_with_a_kept_record_can_be_left_out():
    everything, missing = (set(campaign.plan(options(seeds=1, missing=m))[0]) for m in (False, True))
    kept = campaign.records.read_kept(ROOT / "results")
    assert {cell for cell in everything if any(map(cell.is_that_of, kept))} == everything - missing
    assert any("experiment=addition_2xst_fcn_tps schedule=paper" in cell.name for cell in everything - missing)
    assert any("experiment=mnist_cnn schedule=paper" in cell.name for cell in missing)


def names(file):
    with tarfile.open(file) as tar:
        return tar.getnames()


SHORT = ["--tables", "uses", "--seeds", "1", "--schedule", "smoke", "--jobs", "2"]
WORDS = ["device=cpu", "budget=300000", "schedule.steps=3"]


def start(tmp_path, minutes):
    return subprocess.Popen(
        [sys.executable, "scripts/campaign.py", "--minutes", str(minutes), *SHORT, "--runs", tmp_path / "runs",
         "--home", tmp_path / "home.tar.gz", *WORDS], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_slices_that_end_or_are_killed_go_on_to_the_end(tmp_path):
    def done():
        return len(list((tmp_path / "runs").glob("*/result.json")))

    cells = len(campaign.plan(options(tables=["uses"], seeds=1))[0])
    first = start(tmp_path, 9)
    while done() < 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)  # as a machine's time limit does
    first.communicate(timeout=550)
    assert first.returncode == 128 + signal.SIGTERM
    assert 2 <= done() < cells
    out, err = start(tmp_path, 9).communicate(timeout=550)
    assert done() == cells, err
    assert f"{cells} of {cells} runs are done, 0 given up" in out
    packed = names(tmp_path / "home.tar.gz")
    assert sum(name.endswith("result.json") for name in packed) == cells
    again, _ = start(tmp_path, 9).communicate(timeout=550)
    assert f"{cells} of {cells} runs are done" in again.splitlines()[1]


def test_a_run_that_fails_is_tried_no_more_than_three_times(tmp_path, monkeypatch):
    cell = campaign.Cell(("experiment=mnist_fcn", "seed=0"), 1)
    monkeypatch.setattr(campaign, "QUIET", ["no_such_key=1"])
    monkeypatch.setattr(campaign, "cards", lambda: 0)
    for _ in range(campaign.TRIES + 1):
        one = campaign.Slice(options(minutes=9, runs=tmp_path, jobs=1, home=tmp_path / "home.tar.gz"))
        one.runs([cell])
    assert json.loads((tmp_path / "campaign/state.json").read_text()) == {cell.name: campaign.TRIES}


def test_tests_and_bench_run_once_and_their_output_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(campaign.STEPS, "bench", ["-c", "print(6 + 6, 'steps/s')"])
    monkeypatch.setitem(campaign.STEPS, "tests", ["-c", "import time; time.sleep(60)"])
    how = options(minutes=9, runs=tmp_path, jobs=1, home=tmp_path / "home.tar.gz")
    save(tmp_path, record())
    for _ in range(2):
        campaign.Slice(how).once("bench")
    assert capsys.readouterr().out.count("12 steps/s") == 1
    assert (tmp_path / "campaign/bench.txt").read_text() == "12 steps/s\n"
    monkeypatch.setattr(campaign, "START_S", 0)
    for _ in range(2):
        one = campaign.Slice(how)
        one.end = time.monotonic() + 1
        one.once("tests")
    assert json.loads((tmp_path / "campaign/state.json").read_text())["tests"] == "ran out of time"
    assert "campaign/bench.txt" in names(tmp_path / "home.tar.gz")
