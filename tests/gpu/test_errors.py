"""Three cells of Table 1, trained on the GPU and on the CPU of the same machine: their errors agree within noise."""

import math

import pytest
from cells import ROOT
from composing import compose

from stn.experiments.training.job import run

CELLS = {"mnist_fcn": "r", "mnist_st_fcn_affine": "rts", "mnist_cnn": "e"}
STEPS, IMAGES, SIGMAS = 1500, 10_000, 5
SPREAD = 0.15  # of an error, over seeds and devices, as a part of it: what so short a schedule leaves


@pytest.mark.parametrize("experiment", CELLS)
def test_errors_are_the_cpu_s_within_noise(device, experiment, tmp_path):
    if not (ROOT / "data/mnist").is_dir():
        pytest.skip("MNIST is not there: make data")
    if device.type == "cpu" and experiment != "mnist_fcn":
        pytest.skip("on a CPU one cell tries this test")
    steps = STEPS if device.type == "cuda" else 60
    errors = []
    for where in (device.type, "cpu"):
        config, _ = compose(
            f"experiment={experiment}", f"data/distortion={CELLS[experiment]}", "schedule=fast",
            f"schedule.steps={steps}", "schedule.block_steps=20", f"device={where}", "logger=none", "progress=false",
            "pictures=0", f"runs_dir={tmp_path / str(len(errors))}", f"data.root={ROOT / 'data'}",
        )  # fmt: skip
        errors.append(run(config, [])["metrics"]["test/error"])
    mean = sum(errors) / 200
    noise = 100 * math.sqrt(2 * mean * (1 - mean) / IMAGES) + SPREAD * 100 * mean
    assert abs(errors[0] - errors[1]) < SIGMAS * noise, errors
