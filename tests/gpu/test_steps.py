"""The captured step on a GPU: its bits, how it goes on after a kill, and the memory it takes."""

import json
import math
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch
from cells import BITS, EXPERIMENTS, GPU, ROOT, assert_same, fit, steps_on, training

from stn.experiments.training import engine, environment
from stn.experiments.training.capture import WARM_UP, Captured
from stn.experiments.training.checkpoint import Checkpoint

sys.path.insert(0, str(ROOT / "scripts"))
import bench_cuda


@pytest.fixture
def fixed():
    """cuDNN chooses among convolutions whose bits are always the same; all else of these networks is so anyway."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.usefixtures("random_digits", "fixed")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("experiment", BITS)
def test_captured_steps_are_the_uncaptured_ones_to_the_last_bit(device, experiment, precision):
    how = {"precision": precision}
    captured = fit(training(experiment, device, *BITS[experiment], **how), device)
    assert captured.captured is not None
    assert captured.captured.graph is not None
    plain = fit(training(experiment, device, *BITS[experiment], capture=False, **how), device)
    assert plain.captured is None
    assert_same(captured, plain)


@pytest.mark.usefixtures("random_digits", "fixed")
@pytest.mark.parametrize("experiment", BITS)
def test_the_same_run_again_has_the_same_bits(device, experiment):
    assert_same(*(fit(training(experiment, device, *BITS[experiment]), device) for _ in range(2)))


@pytest.mark.usefixtures("random_digits", "fixed")
@pytest.mark.parametrize("experiment", BITS)
def test_a_stopped_run_goes_on_to_the_bits_of_a_whole_one(device, experiment, tmp_path):
    whole = fit(training(experiment, device, *BITS[experiment]), device)
    file = tmp_path / "checkpoint.ckpt"
    fit(training(experiment, device, *BITS[experiment]), device, 2, Checkpoint(file, every_s=0.0))
    resumed = training(experiment, device, *BITS[experiment])
    torch.rand(7, device=device)
    assert_same(whole, fit(resumed, device, ckpt_path=file, weights_only=True))


@pytest.mark.usefixtures("random_digits", "fixed")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_every_optimiser_of_conf_takes_its_steps(device, optimizer):
    words = [f"optimizer={optimizer}", "schedule.lr_scheduler=null", "optimizer.lr=0.002"]
    captured, plain = (
        fit(training("mnist_st_fcn_affine", device, *words, capture=capture), device) for capture in (True, False)
    )
    assert (captured.captured is not None) == (optimizer != "muon")  # whose step makes its rate a number
    assert_same(captured, plain)


def words(device, folder):
    """A command that takes a few seconds; with MNIST itself."""
    long = (
        ["schedule=fast", "schedule.steps=3000"] if device.type == "cuda" else ["schedule=smoke", "schedule.steps=400"]
    )
    return [
        sys.executable, "run.py", "experiment=mnist_st_fcn_tps", *long, "schedule.block_steps=20", "logger=none",
        "progress=false", "threads=1", "checkpoint_every_s=0", f"device={device.type}", f"runs_dir={folder}",
    ]  # fmt: skip


@pytest.mark.parametrize("device", [GPU, pytest.param("cpu", marks=pytest.mark.slow)], indirect=True)
def test_a_killed_process_goes_on_to_the_bits_of_a_whole_one(device, tmp_path):
    if not (ROOT / "data/mnist").is_dir():
        pytest.skip("MNIST is not there: make data")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(words(device, whole), cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(words(device, killed), cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 550
    while not list(killed.glob("*/checkpoint.ckpt")) and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not list(killed.glob("*/result.json")), "it was over before it was killed"
    subprocess.run(words(device, killed), cwd=ROOT, check=True, capture_output=True)
    first, second = (json.loads(next(folder.glob("*/result.json")).read_text()) for folder in (whole, killed))
    assert first["curve"] == second["curve"]
    assert first["metrics"] == second["metrics"]


@pytest.mark.usefixtures("random_digits")
def test_a_run_begun_on_the_cpu_goes_on_on_the_gpu(device, tmp_path):
    file, cpu = tmp_path / "checkpoint.ckpt", torch.device("cpu")
    with mock.patch.object(engine, "on_gpu", return_value=False):
        fit(training("mnist_st_fcn_affine", device), cpu, 1, Checkpoint(file, every_s=0.0))
    resumed = fit(training("mnist_st_fcn_affine", device), device, ckpt_path=file, weights_only=True)
    assert resumed.captured is not None
    assert resumed.captured.graph is not None
    assert len(resumed.curve) == resumed.schedule.blocks


# --- where the bits may differ, or other steps come before


@pytest.mark.usefixtures("random_digits")
def test_captured_steps_with_volumes_have_the_losses_of_uncaptured_ones(device):
    words = ["schedule.steps=15", "schedule.block_steps=5", "schedule.batch_size=8", "data.size_px=24"]
    captured, plain = (fit(training("voxel_st_cnn", device, *words, capture=how), device) for how in (True, False))
    assert captured.captured is not None
    for ours, expected in zip(captured.curve, plain.curve, strict=True):
        assert ours["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-2)


@pytest.mark.usefixtures("random_digits")
def test_a_row_of_the_bench_is_captured_after_steps_that_were_not(device):
    row = bench_cuda.Row("mnist_st_cnn_affine", "smoke", device)
    bench_cuda.work_of(row.take)  # on PyTorch's own stream, not on that of the recording
    take = Captured(row.take, row.generator, row.optimizers)
    losses = [take()["loss"].item() for _ in range(WARM_UP + 3)]
    assert take.graph is not None
    assert all(map(math.isfinite, losses))


# --- deterministic=true


@pytest.mark.usefixtures("random_digits")
@pytest.mark.parametrize("experiment", BITS)
def test_deterministic_is_honoured_for_images_and_bilinear(device, experiment):
    environment.set_deterministic(True)
    try:
        assert_same(*(fit(training(experiment, device, *BITS[experiment]), device) for _ in range(2)))
    finally:
        environment.set_deterministic(False)


@pytest.mark.gpu
@pytest.mark.parametrize("override", ["model.kernel=bicubic", "model.kernel=nearest"])
def test_deterministic_is_refused_in_one_line_where_cuda_has_no_way(override, tmp_path):
    done = subprocess.run(
        [*words(torch.device("cuda"), tmp_path), "deterministic=true", override],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: deterministic=true is not possible here: grid_sampler_2d")
    assert "Traceback" not in done.stderr


# --- memory

SMALL = {  # of what does not fit here, or whose files are not there
    "svhn": ["data=svhn_rendered"],
    "cub": ["model.backbone=efficientnet_lite0", "model.weights=random", "data=synthetic_birds"],
}


def peak(experiment, device):
    """GiB that the step of the experiment's own schedule takes at most, with noise for data; on a CPU nothing."""
    from composing import compose

    from stn.experiments import build
    from stn.experiments.training.job import schedule_of
    from stn.experiments.training.step import step

    first = experiment.split("_")[0]
    schedule = {"svhn": "svhn", "cub": "cub", "voxel": "fast_3d", "coloc": "colocalisation"}.get(first, "paper")
    if device.type == "cpu":
        schedule = "smoke"
    config = compose(f"experiment={experiment}", f"schedule={schedule}", *SMALL.get(first, []))[0]
    n = config["schedule"]["batch_size"] if device.type == "cuda" else 2
    generator = torch.Generator(device).manual_seed(0)
    if first in ("svhn", "cub"):
        shape, classes = build.shape(config["data"])[0], 11 if first == "svhn" else 200
        u = torch.rand(n, *shape, device=device, generator=generator)
        label = torch.zeros((n, 5) if first == "svhn" else (n,), dtype=torch.long, device=device)
        draw = lambda g: (u, label)  # noqa: E731
        objective = build.objective({"name": "classification"})
    else:
        data = build.data_set(config["data"], ROOT / "data")
        shape, classes = data.in_shape, data.classes
        objective = build.objective(config["objective"], precision="fp32", runs=ROOT / "runs", data_root=ROOT / "data")
        data.to(device)
        objective.prepare(data)
        draw = lambda g: data.batch(n if first != "coloc" else len(data.images), g)  # noqa: E731
    network = build.network(config["model"], shape, classes).to(device)
    optimizers = schedule_of(config).optimizers(network)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        values = step(network, objective, draw, generator, optimizers, schedule_of(config).bounds(network))
    assert values["loss"].isfinite()
    return n, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


@pytest.mark.usefixtures("random_digits")
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_memory_of_a_step_is_stated(device, experiment, capsys, monkeypatch):
    digits = torch.randint(0, 256, (1200, 28, 28), dtype=torch.uint8), torch.arange(1200) % 10
    for module in ("mnist", "colocalisation"):
        monkeypatch.setattr(f"stn.experiments.datasets.{module}.load_digits", lambda root, split: digits)
    monkeypatch.setattr("stn.experiments.training.colocalisation.load_digits", lambda root, split: digits)
    if device.type == "cpu" and experiment not in (
        "mnist_st_fcn_tps",
        "svhn_single",
        "cub_2st_224",
        "cub_2st_448_parts",
        "coloc_t",
    ):
        pytest.skip("on a CPU five experiments try this test")
    n, gib = peak(experiment, device)
    if gib is not None:
        with capsys.disabled():
            print(f"\n{experiment:32s} batch {n:4d}  peak {gib:7.2f} GiB", end="")


def test_the_short_form_of_a_test_is_for_the_cpu():
    assert steps_on(torch.device("cpu")) != steps_on(torch.device("cuda"))
