"""Sweeps through every launcher, by really running them, and what a launcher that cannot be used says."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from stn.experiments import command, launchers
from stn.experiments.training.engine import Diverged
from stn.experiments.training.sweep import SweepProgress

ROOT = Path(__file__).parents[2]
TINY = ["schedule=smoke", "budget=20000", "logger=none", "progress=false", "threads=1", "device=cpu"]


def needs(module):
    return pytest.mark.skipif(not find_spec(module), reason=f"{module} is an extra that is not installed")


def start(*overrides, **env):
    return subprocess.Popen(
        [sys.executable, "run.py", *map(str, overrides)], cwd=ROOT, env=os.environ | env,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def sweep(*overrides, **env):
    """Exit status and everything that a multirun said."""
    process = start(overrides[0], "--multirun", *overrides[1:], **env)
    out, err = process.communicate(timeout=550)
    return process.returncode, out + err


def results(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


# --- launchers


def test_every_launcher_of_conf_is_known_with_its_extra():
    ours = {file.stem for file in (ROOT / "conf/hydra/launcher").glob("*.yaml")}
    assert ours | {*launchers.BASES, *launchers.LOCAL, *launchers.SLURM} == launchers.EXTRA.keys()


def check_sweep_with_a_failing_cell(folder, launcher, **env):
    """Two cells at once, one of which fails: both are recorded, and the command says so at its end."""
    code, said = sweep(
        "experiment=mnist_fcn", *TINY, "schedule.bound=null", "optimizer.lr=1e15,0.02", f"runs_dir={folder}",
        *launcher, **env,
    )  # fmt: skip
    found = {record["config"]["optimizer"]["lr"]: record for record in results(folder)}
    assert {lr: record["status"] for lr, record in found.items()} == {1e15: "failed", 0.02: "finished"}, said
    assert code == 1
    assert "Traceback" not in said
    assert f"error: {found[1e15]['failure']}" in said.splitlines()


@needs("hydra_plugins.hydra_joblib_launcher")
def test_joblib_runs_two_cells_at_once_and_one_that_fails_leaves_the_other(tmp_path):
    check_sweep_with_a_failing_cell(tmp_path, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])


@needs("hydra_plugins.hydra_submitit_launcher")
@pytest.mark.slow
def test_submitit_runs_a_sweep_s_jobs_as_processes_of_this_machine(tmp_path):
    check_sweep_with_a_failing_cell(tmp_path, ["hydra/launcher=submitit_local"])


@needs("hydra_plugins.hydra_ray_launcher")
@pytest.mark.slow
def test_ray_runs_a_job_per_core_of_this_machine(tmp_path):
    check_sweep_with_a_failing_cell(tmp_path, ["hydra/launcher=ray_local", "hydra.launcher.ray.init.num_cpus=2"],
                                    RAY_AUTH_MODE="disabled")  # fmt: skip


@needs("hydra_plugins.hydra_ray_launcher")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_runs_the_jobs_of_a_killed_node_again_on_another_where_they_stood(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = start(
            "--multirun", "experiment=mnist_st_fcn_affine", "seed=0,1,2", *TINY, "budget=40000", "schedule.steps=1500",
            "schedule.block_steps=20", "checkpoint_every_s=0", f"runs_dir={tmp_path}", "hydra/launcher=ray_cluster",
            f"hydra.launcher.ray.init.address='{cluster.address}'",
        )  # fmt: skip
        end = time.monotonic() + 550
        while len(list(tmp_path.glob("*/checkpoint.ckpt"))) < 2:  # one job on each node is under way
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        assert results(tmp_path) == []
        cluster.remove_node(node, allow_graceful=False)
        _, err = process.communicate(timeout=550)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, err
    found = results(tmp_path)
    assert sorted((record["seed"], record["status"]) for record in found) == [(seed, "finished") for seed in range(3)]
    assert all([entry["step"] for entry in record["curve"]] == list(range(20, 1501, 20)) for record in found)
    assert sum(len(record["sessions"]) for record in found) == 4  # one of the three went on elsewhere


def test_the_error_of_a_diverged_run_survives_the_way_back_from_a_worker():
    import pickle

    error = Diverged(3, float("nan"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == (
        "the loss became nan at step 3: lower optimizer.lr or schedule.localisation_lr"
    )  # fmt: skip


def test_a_job_that_was_killed_is_explained_in_one_line():
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    program, error = runpy.run_path(str(ROOT / "run.py")), TerminatedWorkerError("A worker was killed\nby the kernel")
    assert not program["is_bug"](error)
    assert program["what_is_wrong"](error) == (
        "a job has ended without a result: A worker was killed; the same command resumes"
    )
    assert program["is_bug"](RuntimeError("of our own"))


@pytest.fixture
def fake_ray(monkeypatch):
    """A module `ray` whose `init` does as the real one: it takes SIGTERM for itself."""

    def init(**settings):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        if not settings:
            raise Exception("The current node timed out during startup.\nMore.")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    yield
    signal.signal(signal.SIGTERM, before)


def test_ray_leaves_sigterm_to_the_sweep(fake_ray):
    before = signal.getsignal(signal.SIGTERM)
    launchers.start_ray({"num_cpus": 2})
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_ray_that_does_not_start_is_explained_in_one_line(fake_ray):
    with pytest.raises(OSError, match=r"^Ray did not start: The current node timed out during startup\.$"):
        launchers.start_ray({})


# --- SLURM, with fakes of its commands on the PATH that run the jobs here

SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
open("{folder}/submitted.sh", "w").write(script)
last = int(re.search(r"#SBATCH --array=0-(\\d+)", script)[1])
for task in range(last + 1):
    env = os.environ | {{"SLURM_JOB_ID": str(100 + task), "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "node", "SLURM_NODEID": "0",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}}
    subprocess.Popen(["bash", sys.argv[-1]], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 77")
"""
SRUN = """#!{python}
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    option = words.pop(0)
    if option in ("--output", "--error"):
        words.pop(0)
os.execvp(words[0], words)
"""
SACCT = """#!{python}
print("JobID|State|NodeList")
for task in range(9):
    print(f"77_{{task}}|RUNNING|node")
"""
SCONTROL = "#!{python}\nprint('node')\n"


@pytest.fixture
def slurm(tmp_path):
    """A folder of commands for the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text.format(python=sys.executable, folder=folder))
        (folder / name).chmod(0o755)
    return folder


@needs("hydra_plugins.hydra_submitit_launcher")
@pytest.mark.slow
def test_slurm_is_given_one_array_whose_jobs_ask_for_a_gpu_and_hand_themselves_back_in_time(tmp_path, slurm):
    check_sweep_with_a_failing_cell(
        tmp_path / "runs", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.account=us"],
        PATH=f"{slurm}:{os.environ['PATH']}",
    )  # fmt: skip
    asked = set(re.findall(r"^#SBATCH --(.*)$", (slurm / "submitted.sh").read_text(), flags=re.MULTILINE))
    assert asked >= {
        "array=0-1%2", "partition=gpu", "account=us", "gpus-per-node=1", "cpus-per-task=4", "mem=16GB", "time=240",
        "signal=USR2@120", "job-name=stn", "nodes=1", "ntasks-per-node=1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("launcher", "end"), [("slurm", "; the jobs of SLURM go on, and scancel ends them"), ("basic", "")]
)
def test_a_stopped_sweep_says_that_slurm_s_jobs_go_on(launcher, end, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_safe", [])
    config = {"runs_dir": str(tmp_path), "hydra": {"sweeper": {"params": None}, "overrides": {"task": ["seed=0,1"]},
                                                   "runtime": {"choices": {"hydra/launcher": launcher}}}}  # fmt: skip
    sweep = SweepProgress()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sweep.on_multirun_start(OmegaConf.create(config))
    assert sweep.safe() == f"0 of 2 runs have ended; safe: no others{end}"


# --- what cannot be swept: one line


def test_a_sweep_none_of_whose_runs_can_be_run_is_refused_once(tmp_path):
    code, said = sweep("experiment=mnist_fcn", *TINY, "seed=abc,1.5", f"runs_dir={tmp_path}/runs")
    _, error = said.splitlines()  # after how many runs there are
    assert (code, error) == (1, "error: seed='abc' has to be a whole number, 0 or more, up to 4,294,967,295")
    assert list(tmp_path.iterdir()) == []


REFUSED = """
import pkgutil, re, runpy, sys
real, (hidden, *overrides) = pkgutil.walk_packages, sys.argv[1:]
pkgutil.walk_packages = lambda *a, **k: (m for m in real(*a, **k) if not re.match(hidden, m.name))
sys.argv = ["run.py", "--multirun", "experiment=mnist_fcn", *overrides]
runpy.run_path("run.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("hidden", "override", "said"),
    [
        (r"hydra_plugins.hydra_joblib", "hydra/launcher=joblib", "hydra/launcher=joblib is not installed: make setup EXTRAS=joblib, .*"),  # noqa: E501
        (r"hydra_plugins.hydra_ray", "hydra/launcher=ray_cluster", r"hydra/launcher=ray is not installed: make setup EXTRAS=ray, or pip install '.\[ray\]'"),  # noqa: E501
        (r"hydra_plugins.hydra_submitit", "hydra/launcher=slurm", "hydra/launcher=submitit_slurm is not installed: make setup EXTRAS=submitit, .*"),  # noqa: E501
        ("none", "hydra/launcher=condor", "unknown hydra/launcher=condor: choose one of basic, joblib, ray_local, ray_cluster, .*"),  # noqa: E501
        ("none", "++devices=2", "devices=2 in a sweep: each of its processes would start the sweep again; .*"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_run_is_refused_in_one_line(hidden, override, said, tmp_path):
    done = subprocess.run([sys.executable, "-c", REFUSED, hidden, override, f"runs_dir={tmp_path}"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(f"error: {said}", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert results(tmp_path) == []
