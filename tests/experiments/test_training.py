"""Schedule, step engine, checkpoint, health and logs, in process; the engine against a plain loop."""

import errno
import hashlib
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from math import cos, pi
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from examples import record
from torch import nn
from torch.utils.data import TensorDataset

from stn import Affine, Affine3d, SpatialTransformer
from stn.experiments import identity
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.networks.mnist import build, fcn
from stn.experiments.results import records
from stn.experiments.training import checkpoint, run
from stn.experiments.training.checkpoint import BOUND, Checkpoint, InPlace
from stn.experiments.training.classification import Classification, cross_entropy, error
from stn.experiments.training.engine import Diverged, Training, block_seed
from stn.experiments.training.environment import fast_bf16, pick_precision
from stn.experiments.training.health import Health
from stn.experiments.training.job import Job, finished
from stn.experiments.training.progress import Progress
from stn.experiments.training.schedule import Schedule, parameters
from stn.localisation import Regression, fully_connected

CPU = torch.device("cpu")
SEED = 3
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
ONE_CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "pct_start": 0.3, "cycle_momentum": False}
VALUES = {
    "steps": 10,
    "batch_size": 8,
    "block_steps": 4,
    "optimizer": SGD,
    "lr_scheduler": ONE_CYCLE,
    "localisation_lr": 0.1,
    "bound": {"all": 0.5},
}


@pytest.fixture
def data(random_digits):
    return DistortedMnist("nowhere", {"name": "r", "max_angle_deg": 90.0, "scale": [1.0, 1.0], "canvas_px": 28})


def st_fcn(seed=0):
    torch.manual_seed(seed)
    network = build((1, 28, 28), 10, 40_000, fcn, partial(fully_connected, hidden=(16, 16)), Affine())
    # off the identity, where every point is on a pixel's centre and its sub-gradient hangs on the last bit
    nn.init.normal_(network.transformer.localisation[-1].weight, std=0.1)
    return network


def engine(data, precision="fp32", init=0, **changes):
    return Training(st_fcn(init), data, Classification(), Schedule(**VALUES | changes), SEED, precision)


def trainer(max_epochs=3, *callbacks):
    return pl.Trainer(
        max_epochs=max_epochs, accelerator="cpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, plugins=[InPlace()],
    )  # fmt: skip


def test_a_slurm_allocation_does_not_decide_how_many_processes_train(monkeypatch, tmp_path):
    allocation = {"NTASKS": "2", "JOB_ID": "5", "JOB_NAME": "x", "PROCID": "1", "LOCALID": "1", "NODEID": "0"}
    for key, value in allocation.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    one = run.trainer(Job({"runs_dir": str(tmp_path)}, [], {}, {}, "x"), torch.device("cpu"), [])
    assert (one.world_size, one.global_rank) == (1, 0)


def assert_same_bits(network, other):
    for (name, one), two in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


# --- schedule


def rates(steps, **changes):
    """The rates of the groups of an optimiser before each step."""
    schedule = Schedule(**VALUES | {"steps": steps} | changes)
    optimizers = schedule.optimizers(st_fcn())
    schedulers = schedule.schedulers(optimizers)
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for one in optimizers for group in one.param_groups])
        for one in (*optimizers, *schedulers):
            one.step()
    return seen


def one_cycle(step, steps):
    """Half a cosine from 4 % up to the peak over the first 30 %, and one down to nearly 0."""
    up = 0.3 * steps - 1
    if step <= up:
        return 0.04 + 0.96 * (1 - cos(pi * step / up)) / 2
    return (1 + cos(pi * (step - up) / (steps - 1 - up))) / 2


def test_one_cycle_rises_from_4_percent_to_the_peak_and_falls():
    assert [rate for rate, _ in rates(200)] == pytest.approx([0.1 * one_cycle(i, 200) for i in range(200)], abs=1e-6)


def test_every_group_has_a_cycle_of_its_own_height():
    assert [own / rest for rest, own in rates(20)] == pytest.approx([0.1] * 20)


def test_a_rate_without_a_scheduler_stays():
    assert rates(3, lr_scheduler=None) == [pytest.approx([0.1, 0.01])] * 3


def test_the_steps_of_a4_divide_the_rate_by_10_twice():
    decay = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.1}
    assert [rate for rate, _ in rates(6, lr_scheduler=decay)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])


def test_a_total_that_the_config_names_is_not_filled_in():
    cosine = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR"}
    assert rates(4, lr_scheduler=cosine)[-1][0] == pytest.approx(0.1 * (1 + cos(3 * pi / 4)) / 2)
    assert rates(4, lr_scheduler=cosine | {"T_max": 3})[-1][0] == pytest.approx(0, abs=1e-9)


OPTIMIZERS = [
    {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01},
    {"_target_": "torch.optim.RMSprop", "lr": 1e-3},
    {"_target_": "torch.optim.Muon", "lr": 1e-2, "others": {"_target_": "torch.optim.AdamW", "lr": 1e-3}},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: one["_target_"].split(".")[-1])
def test_any_optimizer_of_pytorch_trains_and_resumes_to_the_bit(data, tmp_path, optimizer):
    whole = engine(data, optimizer=optimizer)
    before = [p.clone() for p in whole.network.parameters()]
    trainer().fit(whole)
    assert not any(torch.equal(a, b) for a, b in zip(before, whole.network.parameters(), strict=True))
    trainer(1, Checkpoint(tmp_path / "checkpoint.ckpt", every_s=0.0)).fit(engine(data, optimizer=optimizer))
    resumed = engine(data, init=1, optimizer=optimizer)
    trainer().fit(resumed, ckpt_path=tmp_path / "checkpoint.ckpt", weights_only=True)
    assert_same_bits(resumed.network, whole.network)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *[({key: 0}, rf"schedule\.{key}=0 has to be a whole number") for key in ("steps", "batch_size", "block_steps")],
        ({"steps": True}, r"schedule\.steps=True has to be a whole number"),
        ({"localisation_lr": -1.0}, r"schedule\.localisation_lr=-1\.0 has to be a number, 0 or more"),
        ({"localisation_lr": float("nan")}, r"schedule\.localisation_lr=nan has to be a number"),
        ({"bound": {"all": 0.0}}, r"schedule\.bound\.all=0\.0 has to be a number above 0"),
        ({"bound": {"al": 1.0}}, r"schedule\.bound=.* has to be null, "),
        ({"bound": {"all": 1.0, "rest": 1.0}}, r"schedule\.bound=.* has to be null, "),
        ({"optimizer": SGD | {"lr": -0.1}}, r"optimizer\.lr=-0\.1 has to be a number, 0 or more"),
        ({"optimizer": SGD | {"momentum": "much"}}, r"optimizer\.momentum='much' has to be a number"),
    ],
)
def test_a_schedule_refuses_what_cannot_be_trained_with(changes, said):
    with pytest.raises(ValueError, match=rf"^{said}[^\n]*$"):
        Schedule(**VALUES | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"_target_": "torch.optim.Sgd", "lr": 0.1}}, "optimizer._target_='torch.optim.Sgd' is not a "),
        ({"optimizer": {"_target_": "torch.load", "lr": 0.1}}, "optimizer._target_='torch.load' is not a "),
        ({"optimizer": {"_target_": "torch.nn.Linear", "lr": 0.1}}, "optimizer._target_='torch.nn.Linear' is not a "),
        ({"optimizer": SGD | {"momentun": 0.9}}, "unknown key optimizer.momentun of SGD"),
        ({"optimizer": {"_target_": "torch.optim.Muon", "lr": 0.1}}, "optimizer: Muon refuses its arguments: "),
        ({"lr_scheduler": {"_target_": "torch.optim.SGD"}}, "schedule.lr_scheduler._target_='torch.optim.SGD' is not "),
        (
            {"lr_scheduler": ONE_CYCLE | {"pct_start": 3.0}},
            "schedule.lr_scheduler: OneCycleLR refuses its arguments with schedule.steps=1: ",
        ),
    ],
)  # fmt: skip
def test_what_pytorch_cannot_train_with_is_named_in_one_line(changes, said):
    with pytest.raises(ValueError, match=rf"^{re.escape(said)}[^\n]*$"):
        rates(1, **changes)


@pytest.mark.parametrize(("steps", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (10, 3)])
def test_a_last_shorter_block_is_a_block(steps, blocks):
    assert Schedule(**VALUES | {"steps": steps}).blocks == blocks


def test_localisation_lr_scales_the_localisation_network_alone():
    network = st_fcn()
    (optimizer,) = Schedule(**VALUES).optimizers(network)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, network.parameters()))  # each once
    localisation = set(network.transformer.localisation.parameters())
    for group, expected in zip(optimizer.param_groups, (False, True), strict=True):
        assert {p in localisation for p in group["params"]} == {expected}


def test_a_localisation_network_is_one_by_its_transformer_not_by_name():
    shared = nn.Linear(3, 6)
    network = nn.Sequential(
        OrderedDict(localisation=nn.Linear(3, 3), st=SpatialTransformer(shared, Affine()), plain=nn.Linear(3, 3))
    )
    own, rest = parameters(network)
    assert set(own) == set(shared.parameters())
    assert set(rest) == {*network.localisation.parameters(), *network.plain.parameters()}


def test_frozen_parameters_are_trained_by_nobody():
    network = st_fcn()
    network.transformer.localisation.requires_grad_(False)
    own, rest = parameters(network)
    assert own == []
    assert rest == list(network.classifier.parameters())


# --- step engine


def plain_loop(network, data, precision, steps, block_steps, batch_size, localisation_lr, bound, **_):
    """The same training as a loop over steps; returns every step's loss and number of wrong answers."""
    localisation = set(network.transformer.localisation.parameters())
    velocity = {p: torch.zeros_like(p) for p in network.parameters()}
    losses, wrong = [], []
    for step in range(steps):
        if step % block_steps == 0:
            generator = torch.Generator().manual_seed(block_seed(SEED, step // block_steps))
        u, label = data.batch(batch_size, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(u)
        loss = F.cross_entropy(logits.float(), label)
        gradients = torch.autograd.grad(loss, list(velocity))
        whole = torch.stack([g.norm() for g in gradients]).norm()
        norms = [
            torch.stack(
                [g.norm() for p, g in zip(velocity, gradients, strict=True) if (p in localisation) == inside]
            ).norm()
            for inside in (False, True)
        ]
        for p, g in zip(velocity, gradients, strict=True):
            own = ("rest", "localisation")[p in localisation]
            norm, largest = (whole, bound["all"]) if "all" in bound else (norms[p in localisation], bound.get(own))
            if largest is not None and norm > largest:
                g = g * largest / norm
            velocity[p] = 0.9 * velocity[p] + g + 0.01 * p.detach()
            p.data -= 0.1 * one_cycle(step, steps) * (localisation_lr if p in localisation else 1) * velocity[p]
        losses.append(loss.item())
        wrong.append((logits.argmax(1) != label).sum().item())
    return losses, wrong


@pytest.mark.parametrize(
    ("precision", "bound"),
    [("fp32", {"all": 0.5}), ("fp32", {}), ("bf16", {"all": 0.5}), ("fp32", {"localisation": 0.05, "rest": 0.5}),
     ("fp32", {"localisation": 0.05})],
)  # fmt: skip
def test_the_engine_takes_the_steps_of_a_plain_loop(data, precision, bound):
    # bf16: each step has to see the weights of the last one, though autocast keeps its copies of them while it lasts
    module, plain = engine(data, precision, bound=bound), st_fcn()
    trainer().fit(module)
    losses, wrong = plain_loop(plain, data, precision, **VALUES | {"bound": bound})
    atol = 1e-6 if precision == "fp32" else 1e-4  # half precision turns the last digit of a weight into 0.4 % of it
    for (name, ours), expected in zip(module.network.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert max((a - b).abs().max() for a, b in zip(plain.parameters(), st_fcn().parameters(), strict=True)) > 100 * atol
    blocks = [slice(0, 4), slice(4, 8), slice(8, 10)]  # the last is shorter
    assert [entry["step"] for entry in module.curve] == [4, 8, 10]
    means = [sum(losses[block]) / len(losses[block]) for block in blocks]
    assert [entry["train/loss"] for entry in module.curve] == pytest.approx(means, abs=atol)
    percents = [100 * sum(wrong[block]) / (8 * len(wrong[block])) for block in blocks]
    assert [entry["train/error"] for entry in module.curve] == pytest.approx(percents)
    expected = [0.1 * one_cycle(step, 10) for step in (0, 4, 8)]
    assert [entry["lr"] for entry in module.curve] == pytest.approx(expected, abs=1e-6)


def test_every_seed_and_block_draws_its_own_numbers_and_the_same_again():
    pairs = [(seed, block) for seed in range(12) for block in range(12)]  # (1, 11) and (11, 1) among them
    assert len({block_seed(*pair) for pair in pairs}) == len(pairs)
    assert block_seed(1, 11) == block_seed(1, 11)


def test_the_test_error_is_the_percentage_of_wrong_answers_though_the_last_batch_is_smaller(data):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1003, 1, 28, 28), generator=generator, dtype=torch.uint8)
    module = engine(data)
    answers = module.network(images / 255).argmax(1)
    labels = answers.clone()
    labels[:100] = (labels[:100] + 1) % 10  # 100 wrong ones among the first 1000, and one of the last 3
    labels[-1] = (labels[-1] + 1) % 10
    data.test = TensorDataset(images, labels)
    tester = trainer()
    tester.test(module, verbose=False)
    assert tester.callback_metrics == {"test/error": pytest.approx(100 * 101 / 1003)}


def test_a_sequence_is_right_if_all_of_its_labels_are_and_its_loss_is_the_sum_of_theirs():
    label = torch.tensor([[0, 1, 2], [2, 2, 2], [1, 0, 1], [0, 0, 0]])
    logits = 3.0 * F.one_hot(label, 3)
    logits[1, 2] = torch.tensor([0.0, 3.0, 0.0])  # one of three labels wrong
    logits[3] = torch.tensor([0.0, 0.0, 3.0])  # all of them
    of_right, of_wrong, _ = (-torch.log_softmax(torch.tensor([3.0, 0.0, 0.0]), 0)).tolist()
    rights, wrongs = 3 + 2 + 3 + 0, 0 + 1 + 0 + 3
    assert cross_entropy(logits, label).item() == pytest.approx((rights * of_right + wrongs * of_wrong) / 4)
    assert error(logits, label).item() == 50


def test_a_loss_that_is_no_number_stops_training_and_names_its_step(data):
    calls = []

    def batch(n, generator):
        u, label = DistortedMnist.batch(data, n, generator)
        calls.append(n)
        return u * (float("nan") if len(calls) > 5 else 1), label

    data.batch = batch
    module = engine(data)
    with pytest.raises(Diverged, match="the loss became nan at step 5: ") as caught:
        trainer().fit(module)
    assert caught.value.step == 5
    assert [entry["step"] for entry in module.curve] == [4]


def test_weights_that_the_last_step_makes_no_numbers_are_no_finished_run(data):
    module = engine(data, steps=1, bound={}, lr_scheduler=None)
    *_, last = module.network.parameters()
    last.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
    with pytest.raises(Diverged, match=r"^the weights classifier\S*bias became nan at step 0: lower "):
        trainer(1).fit(module)


def test_finite_weights_whose_answers_are_no_numbers_are_no_finished_run(data):
    generator = torch.Generator().manual_seed(0)
    data.test = TensorDataset(torch.randint(0, 256, (8, 1, 28, 28), generator=generator, dtype=torch.uint8),
                              torch.zeros(8, dtype=torch.int64))  # fmt: skip
    module = engine(data)
    for p in module.network.classifier.parameters():
        p.data.fill_(1e30)
    with pytest.raises(Diverged, match=r"^the output in the test became (nan|inf) at step 9: lower "):
        trainer().test(module, verbose=False)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown precision='fp16': choose auto, fp32 or bf16"):
        pick_precision("fp16", nn.Linear(1, 1), CPU)


def test_convolutions_are_in_bf16_where_it_is_fast(monkeypatch):
    for fast, network, expected in (
        (True, nn.Conv2d(1, 1, 1), "bf16"), (True, nn.Linear(1, 1), "fp32"), (False, nn.Conv2d(1, 1, 1), "fp32"),
    ):  # fmt: skip
        monkeypatch.setattr("stn.experiments.training.environment.fast_bf16", lambda device, fast=fast: fast)
        assert pick_precision("auto", network, CPU) == expected
        assert pick_precision("fp32", network, CPU) == "fp32"


@pytest.mark.parametrize(
    ("vendor_id", "flags", "fast"),
    [
        ("AuthenticAMD", "avx2 avx512_bf16", True), ("AuthenticAMD", "avx2", False), ("", "", False),
        ("GenuineIntel", "avx2 avx512_bf16 amx_bf16", True), ("GenuineIntel", "avx2 avx512_bf16", False),
    ],
)  # fmt: skip
def test_bf16_is_fast_with_amx_and_with_the_avx512_of_amd_but_not_of_intel(monkeypatch, vendor_id, flags, fast):
    cpu = {"vendor_id": vendor_id, "flags": flags}
    monkeypatch.setattr("stn.experiments.training.environment._cpuinfo", cpu.__getitem__)
    assert fast_bf16(CPU) == fast


# --- averaged weights, compilation


class Ends(pl.Callback):
    """The weights at the end of each block."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.states.append({name: value.clone() for name, value in module.network.state_dict().items()})


def trained(data):
    module = engine(data)
    trainer().fit(module)
    return module


def test_averaged_weights_are_an_exponential_mean_over_blocks_and_are_what_is_tested(data):
    ends, module = Ends(), engine(data, ema=0.8)
    trainer(3, ends).fit(module)
    mean = ends.states[0]
    for state in ends.states[1:]:
        mean = {name: 0.8 * mean[name] + 0.2 * state[name] for name in mean}
    for name, value in module.tested.state_dict().items():
        torch.testing.assert_close(value, mean[name])
    u = next(iter(data.test_batches()))[0]
    module.eval()
    assert torch.equal(module(u), module.averaged.module(u))
    assert not torch.equal(module(u), module.network(u))
    assert_same_bits(module.network, trained(data).network)  # the average is beside the training


def test_averaged_weights_of_a_resumed_run_are_those_of_an_uninterrupted_one(data, tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    trainer(2, Checkpoint(path, 0)).fit(engine(data, ema=0.8))
    whole, resumed = engine(data, ema=0.8), engine(data, ema=0.8, init=1)
    trainer(3).fit(whole)
    trainer(3).fit(resumed, ckpt_path=path, weights_only=True)
    assert_same_bits(whole.tested, resumed.tested)


COMPILED = """
import pytorch_lightning as pl, torch
from stn.experiments.datasets import mnist
from test_training import *

digits = torch.randint(0, 256, (200, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (200,))
mnist.load_digits = lambda root, split: digits
data = DistortedMnist("nowhere", {"name": "r", "max_angle_deg": 90.0, "scale": [1.0, 1.0], "canvas_px": 28})
compiled = []
backend = lambda graph, inputs: compiled.append(graph) or graph.forward  # PyTorch's takes minutes
torch.compile = partial(torch.compile, backend=backend)
expected = trained(data).network.state_dict()
module = Training(st_fcn(), data, Classification(), Schedule(**VALUES), SEED, "fp32", compile=True)
trainer(3, Health(torch.rand(2, 1, 28, 28))).fit(module)
assert compiled
assert set(module.state_dict()) == {f"network.{name}" for name in expected}
for name, value in expected.items():
    torch.testing.assert_close(module.network.state_dict()[name], value)
assert all("transformer/det" in entry for entry in module.curve)
"""


def test_a_compiled_network_trains_the_same_and_its_transformer_is_still_seen():
    """In a process of its own: the checks of shapes in the tests are nothing that can be compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# --- checkpoint


def test_a_run_resumed_after_any_block_ends_in_the_bits_of_an_uninterrupted_one(data, tmp_path):
    whole = engine(data)
    trainer().fit(whole)
    for blocks in (1, 2):
        trainer(blocks, Checkpoint(tmp_path / "checkpoint.ckpt", every_s=0.0)).fit(engine(data))
        checkpoint.check(tmp_path / "checkpoint.ckpt")
        resumed = engine(data, init=1)  # other weights, which the checkpoint has to replace
        trainer().fit(resumed, ckpt_path=tmp_path / "checkpoint.ckpt", weights_only=True)
        assert_same_bits(resumed.network, whole.network)
        assert resumed.curve == whole.curve


def test_a_record_names_every_process_that_trained_and_counts_their_core_seconds(data, tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    first, second = engine(data), engine(data)
    first.where, second.where = {"threads": 1}, {"threads": 2}
    trainer(1, Checkpoint(path, every_s=0.0)).fit(first)
    trainer().fit(second, ckpt_path=path, weights_only=True)
    assert second.sessions == [{"threads": 1, "from": 0, "to": 4}, {"threads": 2, "from": 4, "to": 10}]
    assert second.clock.core_seconds > first.clock.core_seconds > 0
    assert second.clock.seconds > first.clock.seconds > 0


def test_a_checkpoint_of_before_sessions_and_ids_goes_on(data, tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    trainer(1, Checkpoint(path, every_s=0.0)).fit(engine(data))
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in state.items() if key not in ("sessions", "core_seconds", *BOUND)}, path)
    checkpoint.check(path, record())
    whole, resumed = engine(data), engine(data, init=1)
    trainer().fit(whole)
    trainer().fit(resumed, ckpt_path=path, weights_only=True)
    assert_same_bits(resumed.network, whole.network)
    assert [(one["from"], one["to"]) for one in resumed.sessions] == [(4, 10)]


STOPPED = """
import os, runpy, signal, sys, time
clock = runpy.run_path(sys.argv[1])["Clock"]()
begin = time.perf_counter()
with clock:
    os.kill(os.getpid(), signal.SIGSTOP)
print(time.perf_counter() - begin - clock.seconds, clock.core_seconds)
"""


def test_the_time_for_which_a_process_is_suspended_is_no_training():
    from stn.experiments.training import clock

    process = subprocess.Popen([sys.executable, "-c", STOPPED, clock.__file__], stdout=subprocess.PIPE, text=True)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    begin = time.perf_counter()
    time.sleep(1)
    suspended = time.perf_counter() - begin
    process.send_signal(signal.SIGCONT)
    left_out, core_seconds = map(float, process.communicate()[0].split())
    assert left_out >= suspended
    assert core_seconds < suspended


def test_checkpoints_are_as_far_apart_as_asked_and_the_last_block_needs_none(data, tmp_path):
    trainer(3, Checkpoint(tmp_path / "checkpoint.ckpt", every_s=1e6)).fit(engine(data))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stopped_in", ["save_checkpoint", "replace"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_one_whole(data, tmp_path, monkeypatch, stopped_in):
    path = tmp_path / "checkpoint.ckpt"
    run, saver = trainer(1), Checkpoint(path, every_s=1e6)
    run.fit(engine(data))
    saver.save(run)
    before = path.read_bytes()

    def stop(scratch, *_):
        with open(scratch, "ab") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(run if stopped_in == "save_checkpoint" else os, stopped_in, stop)
    with pytest.raises(KeyboardInterrupt):
        saver.save(run)
    assert path.read_bytes() == before


def test_a_full_temporary_folder_stops_no_checkpoint(data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkstemp", full)
    trainer(1, Checkpoint(tmp_path / "checkpoint.ckpt", every_s=0.0)).fit(engine(data))
    checkpoint.check(tmp_path / "checkpoint.ckpt")


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(data, tmp_path):
    run, saver = trainer(1), Checkpoint(tmp_path / "checkpoint.ckpt", every_s=1e6)
    run.fit(engine(data))
    saver.save(run)
    before = saver.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # no file may be larger
    try:
        with pytest.raises(OSError, match=rf"^cannot write {tmp_path}/checkpoint.tmp: {os.strerror(errno.EFBIG)}$"):
            saver.save(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b"something else",
        lambda whole: whole[: len(whole) // 2] + bytes([255 - whole[len(whole) // 2]]) + whole[len(whole) // 2 + 1 :],
    ],
    ids=["truncated", "empty", "foreign", "one byte"],
)
def test_a_damaged_checkpoint_is_named_in_one_line(data, tmp_path, damage):
    path = tmp_path / "checkpoint.ckpt"
    run = trainer(1, Checkpoint(path, every_s=0.0))
    run.fit(engine(data))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^the checkpoint {path} is damaged [^\n]*: delete it [^\n]*$"):
        checkpoint.check(path)


def test_a_checkpoint_of_something_else_is_named_with_what_it_lacks(tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    torch.save({"state_dict": {}, "loops": {}}, path)
    with pytest.raises(ValueError, match=r"lacks curve, optimizer_states, seconds: delete it"):
        checkpoint.check(path)


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    trainer(1, Checkpoint(path, 0.0, record())).fit(engine(data))
    checkpoint.check(path, record())
    with pytest.raises(ValueError, match=rf"belongs to another run, {record()['id']}: delete it"):
        checkpoint.check(path, record(seed=1))
    with pytest.raises(ValueError, match=r"was trained on other data than are here now: delete it to start "):
        checkpoint.check(path, record(data_sha256={"train": "another"}))
    assert records.read(tmp_path / "unfinished.json")["step"] == 4


def test_a_checkpoint_of_weights_that_are_no_numbers_is_refused(data, tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    trainer(1, Checkpoint(path, 0.0)).fit(engine(data))
    state = torch.load(path, weights_only=True)
    name, weights = next(iter(state["state_dict"].items()))
    weights.view(-1)[0] = float("nan")
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"holds weights that are not finite, {name}: delete it"):
        checkpoint.check(path)


# --- a run that is there already


@pytest.fixture
def done(tmp_path):
    """A finished run of which only the weights are needed, and its job."""
    example = record(weights_sha256=hashlib.sha256(b"weights").hexdigest())
    job = Job({"runs_dir": str(tmp_path)}, [], example["config"], example["revisions"], example["id"])
    job.folder.mkdir()
    (job.folder / "weights.safetensors").write_bytes(b"weights")
    records.write(job.folder / "result.json", example)
    return job


def test_a_finished_run_is_its_record(done, caplog):
    assert finished(done)["metrics"] == {"test/error": 2.0}
    assert caplog.messages == []


def test_weights_that_are_missing_are_told_of_and_altered_ones_refused(done, caplog):
    again = f"delete {done.folder / 'result.json'} and run it again"
    (done.folder / "weights.safetensors").write_bytes(b"weightz")
    with pytest.raises(ValueError, match=f"^the weights .* are not those of the record: {again}$"):
        finished(done)
    (done.folder / "weights.safetensors").unlink()
    assert finished(done)["status"] == "finished"
    assert caplog.messages == [f"{done.id}: its weights are missing; to make them, {again}"]


def test_a_run_from_before_a_later_key_came_is_finished(done, monkeypatch):
    monkeypatch.setitem(identity.LATER, "schedule.later", None)
    schedule = done.groups["schedule"] | {"later": None}
    job = replace(done, groups=done.groups | {"schedule": schedule})
    assert finished(job)["status"] == "finished"
    other = replace(done, groups=done.groups | {"schedule": schedule | {"later": 0.9}})
    with pytest.raises(ValueError, match="is the record of another run"):
        finished(other)


def test_the_record_of_another_seed_is_refused(done):
    records.write(done.folder / "result.json", record(seed=1))
    with pytest.raises(ValueError, match=rf"is the record of another run, {record(seed=1)['id']}: move it away"):
        finished(done)


# --- the bar


def test_the_bar_shows_steps_within_a_block(capsys):
    bar = Progress("a run")
    bar.open(lambda: 7, total=10, desc="a run", unit="step")
    bar.close()
    assert "a run:  70%" in capsys.readouterr().err


# --- health


@pytest.mark.parametrize(
    ("start", "collapsed"),
    [
        ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), False),
        ((-0.5, 0.0, 0.3, 0.0, 0.5, 0.0), False),  # mirrored, but in the image
        ((1.0, 0.0, 5.0, 0.0, 1.0, 0.0), True),
        ((0.01, 0.0, 0.0, 0.0, 0.01, 0.0), True),
    ],
    ids=["identity", "mirrored", "out of the image", "a single point"],
)
def test_a_collapse_is_warned_of_once_and_a_healthy_transformer_never(caplog, start, collapsed):
    localisation = nn.Sequential(nn.Flatten(), Regression(28 * 28, Affine(), start))
    network = nn.Sequential(OrderedDict(first=SpatialTransformer(localisation, Affine())))
    module = SimpleNamespace(network=network, device=CPU, curve=[])
    health = Health(torch.rand(2, 1, 28, 28))
    for step in (100, 200):
        module.curve.append({"step": step})
        with caplog.at_level(logging.WARNING):
            health.on_train_batch_end(None, module, None, None, 0)
    assert [message.startswith("first has collapsed at step 100: ") for message in caplog.messages] == [
        True
    ] * collapsed
    det = start[0] * start[4] - start[1] * start[3]
    assert [entry["first/det"] for entry in module.curve] == pytest.approx([det, det], abs=1e-5)


def test_a_volume_read_at_one_plane_is_no_collapse_and_a_window_outside_of_it_is(caplog):
    plane = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    outside = (1.0, 0.0, 0.0, 9.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    for start, collapsed in ((plane, 0), (outside, 1)):
        transformer = SpatialTransformer(nn.Sequential(nn.Flatten(), Regression(512, Affine3d(), start)), Affine3d())
        module = SimpleNamespace(network=nn.Sequential(transformer), device=CPU, curve=[{"step": 100}])
        Health(torch.rand(2, 1, 8, 8, 8)).on_train_batch_end(None, module, None, None, 0)
        assert len(caplog.messages) == collapsed


def test_a_network_without_a_transformer_has_no_health():
    module = SimpleNamespace(network=nn.Flatten(), device=CPU, curve=[{"step": 1}])
    Health(torch.rand(2, 1, 28, 28)).on_train_batch_end(None, module, None, None, 0)
    assert module.curve == [{"step": 1}]
