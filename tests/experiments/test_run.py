"""The whole program, `python run.py ...`: what a run leaves, how it goes on, and what it says when it cannot."""

import json
import os
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from stn.experiments import build

pytest.importorskip("wandb", reason="its sweep logs to W&B, which is not installed")
ROOT = Path(__file__).parents[2]
QUICK = ["schedule=smoke", "logger=none", "progress=false", "threads=1", "device=cpu"]
SMOKE = ["experiment=mnist_st_fcn_affine", *QUICK]
LONG = [*SMOKE, "schedule.steps=600", "schedule.block_steps=20", "schedule.batch_size=64", "checkpoint_every_s=0"]
NAME = r"mnist_st_fcn_affine-r-smoke-seed0-[0-9a-f]{10}"
RECORD_KEYS = [
    "version", "id", "experiment", "schedule", "seed", "status", "metrics", "params", "steps", "seconds",
    "core_seconds", "samples_per_s", "precision", "budget", "smoke", "synthetic", "in_shape", "classes", "config",
    "revisions", "overrides", "redundant", "versions", "device", "threads", "commit", "dirty", "data_sha256",
    "test_images", "sessions", "finished_at", "curve", "weights_sha256", "sha256",
]  # fmt: skip


def start(*overrides, **env):
    # what starts pytest in the background may ignore SIGINT, and a child would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "run.py", *map(str, overrides)], cwd=ROOT, env=os.environ | env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*overrides, **env):
    """Exit status, stdout and stderr of the program."""
    process = start(*overrides, **env)
    out, err = process.communicate(timeout=550)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def read(folder):
    return json.loads((folder / "result.json").read_text())


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- a table's sweep, here over two learning rates, the first of which fails


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The program twice over the same sweep: what it said, and the two runs."""
    folder = tmp_path_factory.mktemp("sweep")
    overrides = ["table=table1", "hydra.sweeper.params=null", "experiment=mnist_st_fcn_affine", "schedule=smoke",
                 "progress=false", "threads=1", "device=cpu", "schedule.bound=null", "optimizer.lr=1e15,0.01",
                 f"runs_dir={folder}/runs"]  # fmt: skip
    env = {"WANDB_MODE": "offline", "WANDB_API_KEY": "k" * 40, "HOME": str(folder / "home")}
    first = run(*overrides, **env)
    found = {read(path.parent)["config"]["optimizer"]["lr"]: path.parent for path in folder.rglob("result.json")}
    before = times(folder / "runs")
    again = run(*overrides, **env)
    return SimpleNamespace(
        first=first, again=again, failed=found[1e15], finished=found[0.01], before=before, after=times(folder / "runs"),
        home=env["HOME"], key=env["WANDB_API_KEY"],
    )  # fmt: skip


def test_a_finished_run_leaves_its_weights_and_a_record_with_every_key(sweep):
    record = read(sweep.finished)
    assert list(record) == RECORD_KEYS
    assert (record["version"], record["status"], record["experiment"]) == (2, "finished", "mnist_st_fcn_affine")
    assert record["id"] == sweep.finished.name
    assert (record["seed"], record["schedule"], record["budget"], record["steps"]) == (0, "smoke", None, 6)
    assert (record["threads"], record["synthetic"], record["smoke"]) == (1, False, True)
    assert "optimizer.lr=0.01" in record["overrides"]
    assert record["test_images"] == 10_000
    assert record["redundant"] == ["optimizer.lr=0.01"]  # as the schedule has it
    assert [entry["step"] for entry in record["curve"]] == [3, 6]
    assert record["seconds"] > 0
    assert record["samples_per_s"] > 0
    assert {"test/error"} == set(record["metrics"])
    assert {"checkpoint.ckpt", "weights.safetensors", "config.json"} <= {path.name for path in sweep.finished.iterdir()}


def test_the_weights_of_a_run_make_the_test_error_of_its_record(sweep):
    network = build.network(read(sweep.finished)["config"]["model"], (1, 28, 28), 10)
    network.load_state_dict(load_file(sweep.finished / "weights.safetensors"))
    images, labels = build.data_set(read(sweep.finished)["config"]["data"], ROOT / "data").test.tensors
    assert len(images) == 10_000
    with torch.no_grad():
        wrong = sum((network(u / 255).argmax(1) != label).sum().item()
                    for u, label in zip(images.split(500), labels.split(500), strict=True))  # fmt: skip
    record = read(sweep.finished)
    assert record["metrics"]["test/error"] == pytest.approx(wrong / 100, abs=0.02)  # two answers may hang on a last bit
    assert record["params"] == sum(p.numel() for p in network.parameters())


def test_a_run_s_folder_is_named_after_what_it_computes(sweep):
    assert re.fullmatch(NAME, sweep.finished.name)
    assert re.fullmatch(NAME, sweep.failed.name)
    assert sweep.finished.name != sweep.failed.name  # their learning rates differ


def test_a_failing_run_of_a_sweep_is_recorded_with_its_step_and_the_others_still_run(sweep):
    record = read(sweep.failed)
    assert (record["status"], record["metrics"]) == ("failed", {})
    assert 0 <= record["failed_step"] < 6
    assert f" at step {record['failed_step']}" in record["failure"]
    assert not (sweep.failed / "weights.safetensors").exists()
    assert sweep.first.code != 0
    assert "Traceback" not in sweep.first.err
    assert f"error: {record['failure']}" in sweep.first.err.splitlines()


def test_the_same_sweep_again_touches_nothing_and_says_so(sweep):
    runs = (sweep.finished, sweep.failed)
    assert {path: time for path, time in sweep.before.items() if path.parent in runs} == {
        path: time for path, time in sweep.after.items() if path.parent in runs
    }
    assert any(
        re.match(r"\[2 of 2\] optimizer.lr=0.01: test/error .* %, as before", line)
        for line in sweep.again.out.splitlines()
    )
    assert sweep.again.code != 0  # the failed one is still to be looked at
    assert f"error: {sweep.failed.name} failed before: " in sweep.again.err


def test_a_sweep_says_in_one_line_how_a_run_ended(sweep):
    _, first, second, *_ = sweep.first.out.splitlines()
    assert first == "[1 of 2] optimizer.lr=1000000000000000.0: failed"
    error = read(sweep.finished)["metrics"]["test/error"]
    assert re.fullmatch(rf"\[2 of 2\] optimizer.lr=0.01: test/error {error:.2f} % in 0:\d\d:\d\d", second)


def wandb_log(folder):
    """The records of a run's one W&B log, by type."""
    (log,) = folder.glob("wandb/offline-run-*")
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", log]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for one in map(json.loads, lines):
        found.setdefault(one["type"], []).append(one[one["type"]])
    return found, log


def test_every_run_of_a_sweep_has_its_own_offline_wandb_run(sweep):
    for folder, exit_code in ((sweep.finished, 0), (sweep.failed, 1)):
        log, _ = wandb_log(folder)
        (header,) = log["run"]
        assert (header["run_id"], header["display_name"]) == (folder.name, folder.name)
        assert header["run_group"] == read(folder)["experiment"]  # a smoke run is in no table
        assert header["config"]["update"]["optimizer"]["lr"] == read(folder)["config"]["optimizer"]["lr"]
        assert log["exit"][0]["exit_code"] == exit_code


def test_wandb_mirrors_the_record_and_shows_the_warp(sweep):
    log, folder = wandb_log(sweep.finished)
    record = read(sweep.finished)
    rows = [row["item"] for row in log["history"]]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx(
        [entry["train/loss"] for entry in record["curve"]], abs=1e-4
    )
    (error,) = (row["test/error"] for row in rows if "test/error" in row)
    assert error == pytest.approx(record["metrics"]["test/error"], abs=1e-4)
    summary = {key: value for one in log["summary"] for key, value in one["update"].items()}
    assert (summary["params"], summary["status"]) == (record["params"], "finished")
    assert len(list(folder.glob("files/media/images/transformer/warp_*.png"))) == 2  # one after each block


def test_what_wandb_gets_as_config_names_no_key_host_or_home(sweep):
    log, folder = wandb_log(sweep.finished)
    config = json.dumps(log["run"][0]["config"])
    assert '"seed"' in config
    for private in (sweep.key, sweep.home, f'"{platform.node()}"'):
        assert private not in config
    assert sweep.key.encode() not in next(folder.glob("*.wandb")).read_bytes()


# --- a run that is killed, goes on, is interrupted and goes on


def checkpoint_of(process, folder, than=0):
    """The checkpoint below a running program's folder, as soon as it is there and newer than a time in ns."""
    end = time.monotonic() + 550
    while not (found := [path for path in folder.rglob("*.ckpt") if path.stat().st_mtime_ns > than]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no new checkpoint below {folder}"
        time.sleep(0.005)
    return found[0]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """One run in one go, and the same run killed, resumed and then stopped, to be interrupted."""
    folder = tmp_path_factory.mktemp("story")
    whole = start(*LONG, f"runs_dir={folder}/whole")
    killed = start(*LONG, f"runs_dir={folder}/parts")
    saved = checkpoint_of(killed, folder / "parts")
    killed.kill()
    killed.communicate()
    # a mark that only a run that goes on from here can carry into its record
    state = torch.load(saved, weights_only=True)
    torch.save(state | {"seconds": state["seconds"] + 1000}, saved)

    interrupted = start(*LONG, f"runs_dir={folder}/parts")
    checkpoint_of(interrupted, folder / "parts", than=saved.stat().st_mtime_ns)
    interrupted.send_signal(signal.SIGSTOP)  # it is at its run for as long as the tests below look
    _, err = whole.communicate(timeout=550)
    assert whole.returncode == 0, err
    yield SimpleNamespace(one=folder / "whole" / saved.parent.name, parts=saved.parent, interrupted=interrupted)
    if interrupted.poll() is None:
        interrupted.kill()
        interrupted.communicate()


def test_a_run_that_another_process_is_at_is_refused_in_one_line(story):
    second = run(*LONG, f"runs_dir={story.parts.parent}")
    assert second.code == 1
    loading, said = second.err.splitlines()
    assert loading == "mnist_st_fcn_affine, seed 0: loading PyTorch"
    assert re.fullmatch(rf"error: another process is working on this run: {story.parts}\b.*", said)


def test_a_run_killed_and_interrupted_ends_in_the_bits_of_an_uninterrupted_one(story):
    story.interrupted.send_signal(signal.SIGINT)
    story.interrupted.send_signal(signal.SIGCONT)
    _, err = story.interrupted.communicate(timeout=550)
    assert story.interrupted.returncode == 128 + signal.SIGINT
    *_, said = err.splitlines()
    safe = torch.load(story.parts / "checkpoint.ckpt", weights_only=True)["curve"][-1]["step"]
    claimed = re.match(r"stopped by SIGINT: (\d+) of 600 steps of \S+ are safe; resume with: python run.py ", said)
    assert claimed, said
    assert 0 <= safe - int(claimed[1]) <= 20  # a block, where the signal came between the checkpoint and its note
    assert "Traceback" not in err
    assert f"{story.parts.name}: resumes from {story.parts / 'checkpoint.ckpt'}" in err
    assert not (story.parts / "result.json").exists()
    assert not (story.parts / "weights.safetensors").exists()

    last = run(*LONG, f"runs_dir={story.parts.parent}")
    assert last.code == 0
    assert "resumes from" in last.err
    one, parts = read(story.one), read(story.parts)
    assert parts["seconds"] > 1000  # the mark: it did not begin anew
    assert parts["curve"] == one["curve"]
    assert [entry["step"] for entry in one["curve"]] == list(range(20, 601, 20))
    assert parts["metrics"] == one["metrics"]
    assert (story.parts / "weights.safetensors").read_bytes() == (story.one / "weights.safetensors").read_bytes()
    assert [path.name for path in story.parts.glob("*.tmp")] == []


# --- what cannot be run: one line that names the value and what is valid


REFUSED = {
    "experiment=mnist_fnc": ["experiment=mnist_fnc", "mnist_fcn", "mnist_st_cnn_tps"],
    "table=table9": ["table=table9", "table1"],
    "model.transform=afine": ["model.transform='afine'", "affine", "projective", "tps"],
    "schedule=quickest": ["schedule=quickest", "fast", "onecycle", "paper", "smoke"],
    "logger=mlflow": ["logger=mlflow", "csv, none, tensorboard, wandb"],
    "logger=[csv,mlflow]": ["logger=mlflow", "csv, none, tensorboard, wandb"],
    "+logger.csv.nam=x": ["logger.csv"],
    "schedule.ema=1": ["schedule.ema=1", "above 0 and below 1"],
    "validations=-1": ["validations=-1"],
    "compile=maybe": ["compile='maybe'"],
    "data/distortion=rst": ["data/distortion=rst", "e, p, r, rts, tc"],
    "data.distortion=rts": ["data.distortion=rts", "data/distortion=rts"],
    "data.distortion.name=rst": ["data.distortion.name='rst'", "e, p, r, rts, tc"],
    "+data.distortion.patches=3": ["data.distortion.patches"],
    "model.name=mnistt": ["model.name='mnistt'", "mnist, "],
    "+model.out_px=3": ["model.out_px"],
    "optimizer._target_=torch.load": ["optimizer._target_='torch.load'"],
    "optimizer.lr=-1": ["optimizer.lr=-1"],
    "smoke=perhaps": ["smoke='perhaps'", "true or false"],
    "model.kernel=lanczos": ["'lanczos'", "bilinear, nearest, bicubic"],
    "seed.all=3": ["seed is null or a plain value", "seed=VALUE"],
    "sed=3": ["sed", "seed", "budget", "schedule"],
    "schedule.stepps=3": ["schedule.stepps", "steps", "batch_size", "block_steps"],
    "+schedule.stepps=3": ["schedule.stepps", "steps", "batch_size", "block_steps"],
    "schedule.steps=-1": ["schedule.steps=-1", "1 or more"],
    "schedule.steps=1.5": ["schedule.steps=1.5"],
    "schedule.steps=abc": ["schedule.steps", "abc"],
    "budget=100": ["budget=100", "too small"],
    "budget=abc": ["budget", "abc"],
    "seed=abc": ["seed", "abc"],
    "seed=-1": ["seed=-1"],
    "seed=1.5": ["seed=1.5"],
    "precision=fp16": ["precision='fp16'", "fp32", "bf16"],
    "data.root=null": ["data.root=None", "a folder's path"],
    "device=tpu": ["device='tpu'", "auto", "cpu", "cuda"],
    "threads=0": ["threads=0"],
    "optimizer=5": ["optimizer=5", "adamw, muon, sgd"],
    "data/distortion=null": ["data/distortion=None", "e, p, r, rts, tc"],
    "experiment=../config": ["experiment=../config", "mnist_fcn"],
    "table=[1]": ["table=1", "table1"],
    "model.classifier=null": ["model.classifier=None", "fcn, cnn"],
    "=5": ["=5 has no key"],
    "row={table:nosuch}": ["row={'table': 'nosuch'", "the name of a file of conf/table"],
    "objective=colocalisation": ["objective=colocalisation cannot be used with data.name=mnist, only with "],
    "hydra.callbacks=null": ["hydra.callbacks cannot have this value"],
    "-x": ["unknown option -x", "--multirun"],
}
DAMAGED = {
    "half a checkpoint": ("checkpoint.ckpt", lambda whole: whole[: len(whole) // 2]),
    "a checkpoint without its end": ("checkpoint.ckpt", lambda whole: whole[:-1000]),
    "no checkpoint": ("checkpoint.ckpt", lambda whole: b"something else"),
    "a checkpoint that runs code": ("checkpoint.ckpt", lambda whole: b"cbuiltins\nprint\n(S'executed'\ntR."),
    "half a record": ("result.json", lambda whole: whole[: len(whole) // 2]),
}
DRIVER = """
import json, runpy, sys, traceback

said = {}
for name, overrides in json.load(sys.stdin).items():
    sys.argv = ["run.py", *overrides]
    try:
        runpy.run_path("run.py", run_name="__main__")
        said[name] = "it ran"
    except SystemExit as stop:
        said[name] = stop.code  # a string, which Python prints for an exit status of 1
    except BaseException:
        said[name] = traceback.format_exc()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def refusals(sweep, tmp_path_factory):
    """What the program says to commands that it refuses, all in one process without git to save seconds of imports."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "conf/experiment").mkdir(parents=True)
    (folder / "conf/experiment/mine.yaml").write_text("# @package _global_\nschedule: {stepps: 3}\n")
    (folder / "file").touch()
    commands = {override: [*SMOKE, override, f"runs_dir='{folder}/{override}'"] for override in REFUSED} | {
        "no experiment": [*QUICK, f"runs_dir='{folder}/no experiment'"],
        "mine": ["experiment=mine", f"hydra.searchpath=[file://{folder}/conf]", *QUICK, f"runs_dir={folder}/mine"],
        "below a file": [*SMOKE, f"runs_dir={folder}/file/runs"],
        "without git": [*SMOKE, f"runs_dir='{folder}/without git'"],
    }
    contents = {}
    for name, (file, damage) in DAMAGED.items():
        shutil.copytree(sweep.finished, folder / name / sweep.finished.name, ignore=shutil.ignore_patterns("wandb"))
        path = folder / name / sweep.finished.name / file
        contents[name] = damage(path.read_bytes())
        (path.parent / "result.json").unlink()
        (path.parent / "weights.safetensors").unlink()
        path.write_bytes(contents[name])
        commands[name] = [*SMOKE, "schedule.bound=null", "optimizer.lr=0.01", f"runs_dir='{folder}/{name}'"]
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(commands), cwd=ROOT, env=os.environ | {"PATH": str(folder)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *out, last = driver.stdout.splitlines()
    return SimpleNamespace(said=json.loads(last), out=out, folder=folder, run=sweep.finished.name, contents=contents)


@pytest.mark.parametrize("override", REFUSED)
def test_a_setting_that_cannot_be_run_is_refused_in_one_line_and_leaves_nothing(refusals, override):
    said = refusals.said[override]
    assert re.fullmatch("error: .*", said)
    for word in REFUSED[override]:
        assert word in said
    assert not (refusals.folder / override).exists()


def test_without_an_experiment_the_line_names_them(refusals):
    assert re.fullmatch(
        "error: no experiment chosen: .*mnist_cnn, .*mnist_fcn, .*mnist_st_fcn_tps, .*", refusals.said["no experiment"]
    )


def test_a_mistyped_key_in_an_experiment_file_is_refused(refusals):
    said = refusals.said["mine"]
    assert re.fullmatch(
        "error: unknown key schedule.stepps in experiment=mine: valid here: .*steps, batch_size.*", said
    )


def test_a_runs_dir_that_cannot_be_written_is_named(refusals):
    assert re.fullmatch(f"error: .*{refusals.folder}/file/runs.*", refusals.said["below a file"])


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_in_one_line_and_left_as_it_is(refusals, name):
    path = refusals.folder / name / refusals.run / DAMAGED[name][0]
    kind = {"checkpoint.ckpt": "checkpoint", "result.json": "record"}[path.name]
    assert re.fullmatch(f"error: the {kind} {path} is damaged .*: delete it .*", refusals.said[name])
    assert path.read_bytes() == refusals.contents[name]
    assert not (path.parent / "weights.safetensors").exists()
    assert path.name == "result.json" or not (path.parent / "result.json").exists()


def test_no_code_in_a_checkpoint_is_run(refusals, capsys):
    pickle.loads(refusals.contents["a checkpoint that runs code"])
    assert capsys.readouterr().out == "executed\n"  # so it does run code, where one lets it
    assert "executed" not in refusals.out


def test_where_git_is_not_installed_a_run_is_recorded_without_a_commit(refusals):
    assert refusals.said["without git"] == "it ran"
    (result,) = (refusals.folder / "without git").glob("*/result.json")
    assert (read(result.parent)["commit"], read(result.parent)["dirty"]) == (None, None)


def test_a_mistyped_experiment_ends_the_command_with_one_line(tmp_path):
    done = run("experiment=mnist_fnc", f"runs_dir={tmp_path}/runs")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: unknown experiment=mnist_fnc: choose .*mnist_fcn, .*\n", done.err)
    assert list(tmp_path.iterdir()) == []


def test_without_data_and_network_the_last_line_says_what_to_do(tmp_path):
    manifest = (ROOT / "data/manifest.yaml").read_text()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.yaml").write_text(re.sub(r"https://\S+", "http://127.0.0.1:9/", manifest))
    done = run(*SMOKE, f"data.root={tmp_path}/data", f"runs_dir={tmp_path}/runs", PATH=str(tmp_path), no_proxy="*")
    assert done.code == 1
    assert "Traceback" not in done.err
    *_, last = done.err.splitlines()
    assert last.startswith(f"error: {tmp_path}/data/mnist/train-images-idx3-ubyte is missing")
    assert "http://127.0.0.1:9/" in last
    assert "connect to a network and run the same command again, or put the files there yourself" in last
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"manifest.yaml"}
