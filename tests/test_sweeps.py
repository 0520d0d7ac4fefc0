"""Sweeps through every launcher, by really running them, and what a launcher that cannot be used says."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from stn.training.engine import Diverged

ROOT = Path(__file__).parent.parent
TINY = ["schedule=smoke", "budget=20000", "logger=none", "progress=false", "threads=1", "device=cpu"]


def needs(module):
    return pytest.mark.skipif(not find_spec(module), reason=f"{module} is an extra that is not installed")


def start(*overrides, **env):
    return subprocess.Popen(
        [sys.executable, "run.py", *map(str, overrides)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def sweep(*overrides, **env):
    """Exit status and everything that a multirun said."""
    process = start("--multirun", *overrides, **env)
    out, err = process.communicate(timeout=550)
    return process.returncode, out + err


def results(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


# --- launchers


def check_sweep_with_a_failing_cell(folder, launcher, **env):
    """Two cells at once, one of which fails: both are recorded, and the command says so at its end."""
    code, said = sweep(
        "experiment=mnist_fcn", *TINY, "schedule.clip_norm=null", "schedule.lr=1e30,0.02", f"runs_dir={folder}",
        *launcher, **env,
    )  # fmt: skip
    found = {record["config"]["schedule"]["lr"]: record for record in results(folder)}
    assert {lr: record["status"] for lr, record in found.items()} == {1e30: "failed", 0.02: "finished"}, said
    assert code == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"error: {found[1e30]['failure']}"


@needs("hydra_plugins.hydra_joblib_launcher")
def test_joblib_runs_two_cells_at_once_and_one_that_fails_leaves_the_other(tmp_path):
    check_sweep_with_a_failing_cell(tmp_path, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])


@needs("hydra_plugins.hydra_submitit_launcher")
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
        end = time.monotonic() + 300
        while len(list(tmp_path.glob("*/checkpoint.ckpt"))) < 2:  # one job on each node is under way
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        assert results(tmp_path) == []
        cluster.remove_node(node, allow_graceful=False)
        out, err = process.communicate(timeout=550)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, err
    found = results(tmp_path)
    assert sorted((record["seed"], record["status"]) for record in found) == [(seed, "finished") for seed in range(3)]
    assert all([entry["step"] for entry in record["curve"]] == list(range(20, 1501, 20)) for record in found)
    assert len(re.findall(r"goes on from \S+checkpoint.ckpt", out + err)) == 1


def test_the_error_of_a_diverged_run_survives_the_way_back_from_a_worker():
    import pickle

    error = Diverged(3, float("nan"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == (
        "the loss became nan at step 3: lower schedule.lr or schedule.localisation_lr"
    )  # fmt: skip
