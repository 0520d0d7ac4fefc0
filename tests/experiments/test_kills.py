"""Sweeps that are killed again and again: every run ends in the bits of an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KILLS = 6
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
STEPS, SEEDS = 1500, 2
SWEEP = ["--multirun", "experiment=mnist_st_fcn_affine", "seed=0,1", "schedule=smoke", "budget=40000", "logger=none",
         "progress=false", "threads=1", "device=cpu", f"schedule.steps={STEPS}", "schedule.block_steps=20",
         "schedule.batch_size=32", "checkpoint_every_s=0"]  # fmt: skip
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}


def start(folder, *words):
    def heed() -> None:  # what starts pytest may ignore them, and a child would inherit that
        for number in SIGNALS[:3]:
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "run.py", *SWEEP, f"runs_dir={folder}", *words], cwd=ROOT, start_new_session=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heed,
    )  # fmt: skip


def steps(folder):
    """How many steps of the sweep are on the disk."""
    ended = {path.parent for path in folder.glob("*/result.json")}
    begun = [path for path in folder.glob("*/unfinished.json") if path.parent not in ended]
    return STEPS * len(ended) + sum(json.loads(path.read_text())["step"] for path in begun)


def wait_until(fact, process=None):
    end = time.monotonic() + 300
    while not fact():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs of a sweep that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_killed_again_and_again_ends_in_the_bits_of_an_uninterrupted_one(launcher, whole, tmp_path):
    if launcher == "joblib" and not find_spec("hydra_plugins.hydra_joblib_launcher"):
        pytest.skip("joblib is an extra that is not installed")
    draw = random.Random(launcher)
    for _ in range(KILLS):
        process = start(tmp_path, *LAUNCHERS[launcher])
        goal = steps(tmp_path) + 20 * draw.randint(1, 12)
        wait_until(lambda goal=goal: steps(tmp_path) >= goal, process)
        number = draw.choice(SIGNALS)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        wait_until(lambda group=process.pid: gone(group))  # its workers end with it
        assert "Traceback" not in said
        if number == signal.SIGKILL:
            continue
        assert process.returncode == 128 + number
        *_, last = said.splitlines()
        assert last.startswith(f"stopped by {number.name}: ")
        assert "; go on with: python run.py --multirun experiment=mnist_st_fcn_affine " in last
        assert said.count("stopped by") == 1
    process = start(tmp_path, *LAUNCHERS[launcher])
    said, _ = process.communicate(timeout=600)
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
