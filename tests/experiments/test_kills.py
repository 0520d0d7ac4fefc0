"""Sweeps that are killed again and again end in the bits of uninterrupted ones; whoever is killed leaves no process."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from stn.experiments.results import records
from stn.experiments.training import checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KILLS = 20
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
STEPS, SEEDS = 12_000, 2
ONE_IN, PREPARATIONS_KILLED = 100, 5  # of SVHN and CUB-200-2011 one image in so many
RUN = ["experiment=mnist_st_fcn_affine", "schedule=smoke", "logger=none", "progress=false", "threads=1", "device=cpu",
       "schedule.block_steps=20", "schedule.batch_size=32", "checkpoint_every_s=0"]  # fmt: skip
SWEEP = ["run.py", "--multirun", *RUN, "seed=0,1", "budget=40000", f"schedule.steps={STEPS}"]
LAUNCHERS = {  # name: overrides
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray_local": ["hydra/launcher=ray_local", "hydra.launcher.ray.init.num_cpus=2"],
}


WORKERS = {"joblib": "LokyProcess", "submitit_local": "submitit.core._submit"}  # in their command lines


def need(launcher):
    extra = launcher.removesuffix("_local")
    if extra != "basic" and not find_spec(f"hydra_plugins.hydra_{extra}_launcher"):
        pytest.skip(f"{extra} is an extra that is not installed")


def start(*words):
    def heed() -> None:  # what starts pytest may ignore them, and a child would inherit that
        for number in SIGNALS[:3]:
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, start_new_session=True, text=True, preexec_fn=heed,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def steps(folder):
    """How many steps of the sweep are on the disk."""
    ended = STEPS * len(list(folder.glob("*/result.json")))
    return ended + sum(record["step"] for _, record in records.read_unfinished(folder))


def wait_until(fact, process=None):
    end = time.monotonic() + 900  # long enough for any machine: only a fact that never comes true takes as long
    while not fact():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def stop(process, number):
    """Send a signal as it comes, a Ctrl-C to all processes of a terminal; returns what was said until all have gone."""
    partial(os.killpg, process.pid)(number) if number == signal.SIGINT else process.send_signal(number)
    said, _ = process.communicate(timeout=900)
    wait_until(lambda: gone(process.pid))
    return said


def gone(session):
    """Whether no process of a session is left; Ray's jobs have groups of their own."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return subprocess.run(["pgrep", "-s", str(session)], stdout=subprocess.DEVNULL).returncode == 1
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs of a sweep that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(*SWEEP, f"runs_dir={folder}")
    said, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, said
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_killed_again_and_again_ends_in_the_bits_of_an_uninterrupted_one(launcher, whole, tmp_path):
    need(launcher)
    words = [*SWEEP, f"runs_dir={tmp_path}", *LAUNCHERS[launcher]]
    draw = random.Random(launcher)
    for _ in range(KILLS):
        process = start(*words)
        goal = steps(tmp_path) + 20 * draw.randint(1, 6)
        wait_until(lambda goal=goal: steps(tmp_path) >= goal, process)
        number = draw.choice(SIGNALS)
        said = stop(process, number)
        assert "Traceback" not in said
        if number == signal.SIGKILL:
            continue
        assert process.returncode == 128 + number
        first, *ended, last = said.splitlines()
        assert all(re.search(r"\[\d of 2\] seed=", line) for line in ended)  # Ray puts the process in front
        assert first == "2 runs; finished ones are skipped, unfinished ones resume"
        assert last.startswith(f"stopped by {number.name}: ")
        assert "; resume with: python run.py --multirun experiment=mnist_st_fcn_affine " in last
    process = start(*words)
    said, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, said
    runs = sorted(path.parent.name for path in whole.glob("*/result.json"))
    assert len(runs) == SEEDS
    for name in runs:
        one, parts = (json.loads((folder / name / "result.json").read_text()) for folder in (whole, tmp_path))
        assert (parts["curve"], parts["metrics"]) == (one["curve"], one["metrics"])
        assert parts["weights_sha256"] == one["weights_sha256"]
        spans = [(session["from"], session["to"]) for session in parts["sessions"]]
        assert [0, *(to for _, to in spans)] == [*(begun for begun, _ in spans), STEPS]
    assert sum(len(json.loads((tmp_path / name / "result.json").read_text())["sessions"]) for name in runs) > KILLS
    assert list(tmp_path.glob("*/*.tmp")) == []


def contents(root):
    """The bytes of every file below root but the locks."""
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix}


def names(root):
    """Of all files below root, some of which may go meanwhile."""
    return {os.path.join(folder, name) for folder, _, files in os.walk(root) for name in files}


@pytest.mark.parametrize("name", ["svhn", "cub"])
def test_data_prepared_in_spite_of_kills_are_those_of_an_uninterrupted_preparation(name, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    shutil.copy(ROOT / "data/manifest.yaml", whole)
    words = {root: ["scripts/prepare.py", name, "--root", root] for root in (whole, parts)}
    for command in (["scripts/rehearse.py", name, "--root", whole, "--one-in", ONE_IN], words[whole]):
        if command == words[whole]:
            shutil.copytree(whole, parts)
        process = start(*command)
        said, _ = process.communicate(timeout=1800)
        assert process.returncode == 0, said
    draw = random.Random(name)
    for _ in range(PREPARATIONS_KILLED):
        process = start(*words[parts])
        for _ in range(draw.randint(1, 5)):  # until so many files have come or gone
            before = names(parts)
            wait_until(lambda p=process, before=before: names(parts) != before or p.poll() is not None)
        number = draw.choice([signal.SIGINT, signal.SIGKILL])
        ended = process.poll() is not None
        said = stop(process, number) if not ended else process.communicate()[0]
        assert "Traceback" not in said
        if number == signal.SIGINT and not ended:
            assert said.splitlines()[-1].startswith("stopped by SIGINT; go on with: python scripts/prepare.py")
    process = start(*words[parts])
    said, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, said
    assert contents(parts) == contents(whole)


COMMANDS = {
    "a run of two processes": ["run.py", "devices=2", "runs_dir={}"],
    "a search": ["scripts/search.py", "--runs", "{}"],
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_a_command_that_is_stopped_says_one_line_and_takes_its_processes_along(command, number, tmp_path):
    process = start(*(word.format(tmp_path) for word in command), *RUN, "schedule.steps=1000000")
    wait_until(lambda: list(tmp_path.rglob("checkpoint.ckpt")), process)
    said = stop(process, number)
    assert "Traceback" not in said
    *_, last = said.splitlines()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert said.count("stopped by") == 1
        assert last.startswith(f"stopped by {number.name}: ")
        assert f"; resume with: python {command[0]} " in last
    elif "devices=2" in command:
        assert last.startswith("stopped: the first process of this run has ended; the same command resumes from ")
    checkpoint.check(next(tmp_path.rglob("checkpoint.ckpt")))


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_a_worker_of_which_is_killed_says_one_line_and_leaves_no_process(launcher, tmp_path):
    need(launcher)
    process = start(*SWEEP, f"runs_dir={tmp_path}", *LAUNCHERS[launcher])
    wait_until(lambda: len(list(tmp_path.glob("*/unfinished.json"))) == SEEDS, process)
    found = subprocess.run(["pgrep", "-s", str(process.pid), "-f", WORKERS[launcher]], capture_output=True, text=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    said, _ = process.communicate(timeout=900)
    wait_until(lambda: gone(process.pid))
    assert process.returncode == 1
    assert "Traceback" not in said
    assert re.match(r"error: a job has ended without a result: .*; the same command resumes$", said.splitlines()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_of_two_processes_ends_in_one_line_with_the_second_one_and_goes_on(number, tmp_path):
    words = ["run.py", "devices=2", f"runs_dir={tmp_path}", *RUN, "schedule.steps=2000"]
    process = start(*words)
    wait_until(lambda: list(tmp_path.rglob("checkpoint.ckpt")), process)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid=,args="], capture_output=True, text=True)
    (second,) = [int(line.split()[0]) for line in children.stdout.splitlines() if "run.py" in line]
    os.kill(second, number)
    said, _ = process.communicate(timeout=900)
    wait_until(lambda: gone(process.pid))
    assert process.returncode == 1
    _, _, last = said.splitlines()
    status = -number if number == signal.SIGKILL else 128 + number
    assert re.match(rf"stopped: another process of this run has ended with status {status}: \d+ of 2,000 steps ", last)
    again = start(*words)
    said, _ = again.communicate(timeout=900)
    assert again.returncode == 0, said
    assert "resumes from" in said
