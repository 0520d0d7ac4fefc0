"""W&B: what is sent and what is not, a server that refuses or goes away, resume, sync, dashboards, sweep files."""

import json
import os
import platform
import runpy
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from fake_wandb import serve

from stn.experiments.training import wandb_run

ROOT = Path(__file__).parents[2]
KEY = "k3y" * 14
RUN = ["experiment=mnist_st_fcn_affine", "schedule=smoke", "budget=40000", "progress=false", "threads=1", "device=cpu",
       "logger.wandb.settings.finish_timeout=5"]  # fmt: skip


def start(home, server, *overrides):
    """The program as a user with this home runs it, with data and runs below it."""
    home.mkdir(exist_ok=True)
    if not (home / "data").exists():
        (home / "data").symlink_to(ROOT / "data")
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | {
        "HOME": str(home), "WANDB_BASE_URL": server, "WANDB_API_KEY": KEY, "SECRET": "s3cret-s3cret",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "run.py", *RUN, f"runs_dir={home}/runs", f"data.root={home}/data", *overrides],
        cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def private(home):
    return [text.encode() for text in (KEY, str(home), "s3cret-s3cret", f'"{platform.node()}"', str(ROOT))]


def inspected(log):
    """What an offline run holds, record by record."""
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", log]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def told_artifact(told, kind):
    (artifact,) = (one["artifact"] for one in told if one["type"] == "artifact" and one["artifact"]["type"] == kind)
    return artifact


def run_folder(home):
    (folder,) = home.glob("runs/*/")
    return folder


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """A run whose server refuses its key."""
    home = tmp_path_factory.mktemp("refused") / "home"
    with serve() as fake:
        fake.refuses = True
        process = start(home, fake.url)
        _, err = process.communicate(timeout=550)
    return process.returncode, err, home


@pytest.fixture(scope="module")
def offline(refused):
    """What that run kept on disk: its folder, its record, the folder of W&B below it, and what that tells."""
    folder = run_folder(refused[2])
    (log,) = folder.glob("wandb/offline-run-*")
    return folder, json.loads((folder / "result.json").read_text()), log, inspected(log)


def test_where_the_server_refuses_one_line_says_so_and_the_run_ends_on_disk(refused):
    code, err, home = refused
    assert code == 0, err
    folder = run_folder(home)
    said = [line for line in err.splitlines() if line.startswith("W&B: ")]
    assert len(said) == 1
    later = f"WANDB_PROGRAM=wandb wandb sync {folder}/wandb/*run-*"
    assert said[0].endswith(f"the run is kept on disk: send it later with `{later}`")
    assert "401" in said[0]
    assert "Traceback" not in err
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


def test_an_offline_run_reads_back_as_its_record_and_names_no_key_host_path_or_variable(refused, offline):
    _, _, home = refused
    folder, record, log, told = offline
    rows = [one["history"]["item"] for one in told if one["type"] == "history"]
    assert [r["train/loss"] for r in rows if "train/loss" in r] == pytest.approx(
        [entry["train/loss"] for entry in record["curve"]], abs=1e-4
    )
    (config,) = (one["run"]["config"]["update"] for one in told if one["type"] == "run")
    assert (config["seed"], config["commit"]) == (0, record["commit"])
    for path in [*log.glob("*.wandb"), *log.glob("files/**/*"), folder / "result.json", folder / "config.json"]:
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".wandb":  # it tells `wandb sync` where the weights and the confusion matrix are
                assert content.count(str(folder).encode()) == 2
                content = content.replace(str(folder).encode(), b"")
            assert [word for word in private(home) if word in content] == [], path


@pytest.mark.slow
def test_an_offline_run_is_sent_later_by_wandb_sync(refused):
    _, _, home = refused
    folder = run_folder(home)
    with serve() as fake:
        env = os.environ | {
            "WANDB_BASE_URL": fake.url,
            "WANDB_API_KEY": KEY,
            "HOME": str(home),
            "WANDB_PROGRAM": "wandb",
        }
        command = [Path(sys.executable).parent / "wandb", "sync", *folder.glob("wandb/*run-*")]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(fake.runs) == {folder.name}
    assert len([row for row in fake.rows[folder.name].values() if "train/loss" in row]) == 2
    sent = json.dumps([fake.runs, fake.rows, fake.artifacts]).encode()
    assert [word for word in private(home) if word in sent] == []


@pytest.mark.slow
def test_a_killed_run_that_goes_on_continues_the_same_wandb_run(tmp_path):
    home = tmp_path / "home"
    long = ["schedule.steps=8000", "schedule.block_steps=50", "checkpoint_every_s=0"]
    with serve() as fake:
        first = start(home, fake.url, *long)
        end = time.monotonic() + 550
        while not list(home.glob("runs/*/checkpoint.ckpt")):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)  # wandb's own process sends, every 15 s, what it has of it
        while not any(fake.rows.values()):
            assert time.monotonic() < end
            time.sleep(0.05)
        first.kill()
        first.communicate()
        folder = run_folder(home)
        assert not (folder / "result.json").exists()
        second = start(home, fake.url, *long)
        _, err = second.communicate(timeout=550)
    assert second.returncode == 0, err
    assert "resumes from" in err
    assert set(fake.runs) == {folder.name}
    rows = fake.rows[folder.name]
    assert sorted(rows) == list(range(len(rows)))
    losses = {row["trainer/global_step"] for row in rows.values() if "train/loss" in row}
    record = json.loads((folder / "result.json").read_text())
    assert max(losses) == 8000
    assert [row["test/error"] for row in rows.values() if "test/error" in row] == [record["metrics"]["test/error"]]
    sent = json.dumps([fake.runs, fake.rows]).encode()
    assert [word for word in private(home) if word in sent] == []


@pytest.mark.slow
def test_where_the_server_goes_away_in_mid_run_training_goes_on_and_one_line_says_so(tmp_path):
    home = tmp_path / "home"
    with serve() as fake:
        process = start(home, fake.url, "schedule.steps=600", "schedule.block_steps=20", "checkpoint_every_s=0")
        end = time.monotonic() + 550
        while not list(home.glob("runs/*/checkpoint.ckpt")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        assert fake.runs
        fake.down = True
        _, err = process.communicate(timeout=550)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("W&B: ")]) == 1, err
    folder = run_folder(home)
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    assert list(folder.glob("wandb/run-*/*.wandb"))


def test_a_finished_run_sends_its_answers_and_its_weights_under_an_alias(offline):
    _, record, log, told = offline
    (run,) = (one["run"] for one in told if one["type"] == "run")
    assert (run["job_type"], run["run_group"], run["tags"]) == ("train", "mnist_st_fcn_affine", ["smoke"])
    weights = told_artifact(told, "model")
    assert [entry["path"] for entry in weights["manifest"]["contents"]] == ["weights.safetensors"]
    assert weights["name"] == "mnist_st_fcn_affine-r-smoke"
    assert {"seed0", record["id"][-10:]} <= {*weights["aliases"]}
    (table,) = log.glob("files/media/table/test/confusion*.json")
    counts = json.loads(table.read_text())["data"]
    assert len(counts) == 100
    right = sum(n for truth, predicted, n in counts if truth == predicted)
    assert 100 - right / 100 == pytest.approx(record["metrics"]["test/error"], abs=1e-3)
    (worst,) = (one["history"]["item"] for one in told
                if one["type"] == "history" and "test/worst.captions" in one["history"]["item"])  # fmt: skip
    assert len(list(log.glob("files/media/images/test/worst*"))) == len(worst["test/worst.captions"]) == 16
    assert all(", not " in text for text in worst["test/worst.captions"])


ROW = {"table": "table1"}
CELL = {"experiment": "mnist_st_cnn_tps", "schedule": "fast", "smoke": False, "synthetic": False, "overrides": [],
        "config": {"data": {"name": "mnist", "distortion": {"name": "rts"}}},
        "metrics": {"test/error": 0.9}}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (["experiment=mnist_st_cnn_tps", "data/distortion=rts", "schedule=fast"], "table1"),  # alone
        (["table=table1", "experiment=mnist_st_cnn_tps", "data/distortion=rts"], "table1"),  # in a sweep
        (["experiment=mnist_st_cnn_tps", "model.kernel=nearest"], None),  # another experiment
        (["experiment=mnist_st_cnn_tps", "data.test_split=valid"], None),  # not of the test set
    ],
)
def test_a_cell_stands_in_its_table_whether_it_is_run_alone_or_in_a_sweep(words, table):
    found = wandb_run.table_of(CELL | {"overrides": words}, ROW)
    assert (found and found.name) == table


def test_a_cell_has_the_paper_s_figure_and_the_difference_beside_its_own():
    assert wandb_run.figures(CELL, ROW) == {"figure/RTS": 0.9, "paper": 0.5, "ours - paper": 0.4}
    assert wandb_run.figures(CELL | {"synthetic": True}, ROW) == {"figure/RTS": 0.9}
    assert wandb_run.figures(CELL | {"smoke": True}, ROW) == {}
    assert wandb_run.figures(CELL | {"metrics": {}}, ROW) == {}
    assert wandb_run.figures(CELL, None) == {}


# --- dashboards, sweeps


@pytest.mark.skipif(not find_spec("wandb_workspaces"), reason="wandb-workspaces is an extra that is not installed")
@pytest.mark.filterwarnings("ignore")  # wandb-workspaces' own
@pytest.mark.parametrize(
    ("table", "logged"),
    [
        ("table1", ["test/error", "train/loss", "train/error", "transformer/det", "transformer/warp"]),
        ("table2", ["st1/det", "st4/out_of_image", "st4/warp", "composed/box"]),
        ("table3", ["test/accuracy", "transformer.3/theta_distance", "windows"]),
        ("table4", ["transformer.1/det"]),
        ("table5", ["test/accuracy", "/det", "/warp"]),
        ("3d", ["transformer/warp"]),
        ("uses", ["transformer_maps/det"]),
        ("pooled", ["test/error"]),
    ],
)
def test_the_dashboard_of_a_table_shows_its_runs_and_our_figures_against_the_paper_s(
    table, logged, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["dashboard.py", table, "--show", "--entity", "someone"])
    runpy.run_path(str(ROOT / "scripts/dashboard.py"), run_name="__main__")
    shown = json.loads(capsys.readouterr().out)
    text = json.dumps(shown)
    assert shown["workspace"]["entity"] == shown["report"]["entity"] == "someone"
    known = yaml.safe_load((ROOT / f"conf/table/{table}.yaml").read_text())["table"]
    columns = list(known["columns"].values())
    filters = shown["workspace"]["runset_settings"]["filters"]
    assert f"'{table}'" in filters
    assert f'Config("column") in {columns}' in filters
    assert 'Config("schedule_name") == ' in filters
    figures, curves = (section["panels"] for section in shown["workspace"]["sections"][:2])
    assert [panel["metrics"] for panel in figures] == [[f"figure/{column}"] for column in columns]  # one a column
    cells = len(known["rows"]) * len(columns)
    assert {panel["max_runs_to_show"] for panel in curves} == {cells}  # each cell is one group, and none is left out
    grids = [block for block in shown["report"]["blocks"] if "runsets" in block]
    assert len(grids) == len(columns)
    for grid, column in zip(grids, columns, strict=True):
        assert f"Config('column') == '{column}'" in grid["runsets"][0]["filters"]
    assert (", ours / paper" in text) == (table not in ("3d", "uses"))  # of which the paper has no figures
    for key in logged:
        assert f'"{key}"' in text
    assert ('"train/error"' in text) == (table != "table5")  # which trains without labels


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_file_is_one_that_wandb_takes_and_its_command_composes(file):
    import gc
    import warnings

    from hydra import compose, initialize_config_dir
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # wandb leaves the file open
        sweep = load_sweep_config(str(file))
        gc.collect()
    assert sweep["metric"] == {"name": "valid/error", "goal": "minimize"}
    chosen = {
        name: {"value": space.get("values", [space.get("min")])[0]} for name, space in sweep["parameters"].items()
    }
    command = create_sweep_command(sweep["command"])
    assert command[:3] == ["${env}", "python", "${program}"]
    assert command[-1] == "${args_no_hyphens}"
    overrides = command[3:-1] + create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides)
    assert cfg.schedule.localisation_lr == 0.03
    assert cfg.budget == 150_000
    assert yaml.safe_load((ROOT / "conf/logger/wandb.yaml").read_text())["wandb"]["project"] == sweep["project"]


@pytest.mark.skipif(not find_spec("optuna"), reason="optuna is an extra that is not installed")
@pytest.mark.filterwarnings("ignore")  # Optuna's own
def test_the_search_draws_what_the_sweep_file_names_minimises_it_and_goes_on(tmp_path, monkeypatch, capsys):
    search = runpy.run_path(str(ROOT / "scripts/search.py"))
    trained = []

    def train(overrides, folder, metric):
        trained.append(dict(word.split("=") for word in overrides))
        rate = float(trained[-1]["schedule.localisation_lr"])
        assert metric == "valid/error"
        assert 0.03 <= rate <= 3
        return None if len(trained) == 2 else rate

    monkeypatch.setitem(search["main"].__globals__, "train", train)
    for trials in (3, 2):
        arguments = ["search.py", "--trials", str(trials), "--runs", str(tmp_path), "schedule=smoke"]
        monkeypatch.setattr(sys, "argv", arguments)
        search["main"]()
    assert [one["schedule"] for one in trained] == ["smoke"] * 5
    assert {one["budget"] for one in trained} <= {"150000", "200000", "300000", "400000"}
    *_, last = capsys.readouterr().out.splitlines()
    best = min(float(one["schedule.localisation_lr"]) for i, one in enumerate(trained) if i != 1)
    assert last.startswith(f"best of 4: schedule.localisation_lr={best} ")
    changed = tmp_path / "localisation_lr.yaml"
    changed.write_text((ROOT / "sweeps/localisation_lr.yaml").read_text().replace("150000", "160000"))
    monkeypatch.setattr(sys, "argv", [*arguments, "--sweep", str(changed)])
    with pytest.raises(ValueError, match=rf"^{changed} has other values than the trials in {tmp_path}/.*: rename the"):
        search["main"]()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"min": 0, "max": float("inf")}, "needs a list of values, or numbers min < max"),
        ({"min": False, "max": True}, "needs a list of values, or numbers min < max"),
        ({"values": [1, None]}, "has values that are neither texts nor numbers"),
        ({"values": [[1, 2]]}, "has values that are neither texts nor numbers"),
    ],
)
def test_a_parameter_that_cannot_be_drawn_is_refused_before_the_search(space, message, tmp_path):
    search = runpy.run_path(str(ROOT / "scripts/search.py"))
    path, metric = tmp_path / "sweep.yaml", {"name": "test/error", "goal": "minimize"}
    path.write_text(yaml.safe_dump({"command": [], "parameters": {"seed": space}, "metric": metric}))
    with pytest.raises(ValueError, match=rf"^{path}: parameter seed {message}$"):
        search["read_sweep"](path)
