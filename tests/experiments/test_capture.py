"""The captured step without a GPU: a stand-in for the graph records what the step dispatches and replays it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from composing import compose
from fake_graph import FakeGraph, fake_gpu, leaves
from test_step import NoSync
from torch._subclasses.fake_tensor import FakeTensorMode

from stn.experiments import build
from stn.experiments.training.capture import WARM_UP, Captured
from stn.experiments.training.checkpoint import Checkpoint
from stn.experiments.training.engine import Training, block_seed
from stn.experiments.training.job import schedule_of

pytestmark = pytest.mark.usefixtures("random_digits")
ROOT = Path(__file__).parents[2]
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 2e-3, "weight_decay": 0.01}
MUON = {"_target_": "torch.optim.Muon", "lr": 1e-2, "others": ADAMW}
STEPS = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 4, "gamma": 0.1}
ONE_CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "pct_start": 0.3, "cycle_momentum": False}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}


def training(experiment, *overrides, optimizer=SGD, rates=ONE_CYCLE, capture=True, precision="fp32", seed=0,
             accumulate=1):  # fmt: skip
    words = ["schedule=smoke", "budget=60000", "schedule.steps=12", "schedule.block_steps=5", "schedule.batch_size=8"]
    config = compose(f"experiment={experiment}", *words, *overrides)[0] | {"optimizer": optimizer}
    config["schedule"]["lr_scheduler"] = rates
    torch.manual_seed(seed)
    data = build.data_set(config["data"], ROOT / "data")
    network = build.network(config["model"], data.in_shape, data.classes)
    objective, schedule = build.objective(config["objective"]), schedule_of(config)
    return Training(network, data, objective, schedule, 3, precision, accumulate, capture)


def fit(module, blocks=3, *callbacks, **kwargs):
    pl.Trainer(
        max_epochs=blocks, accelerator="cpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, **kwargs)  # fmt: skip
    return module


def assert_same(one, two):
    assert one.curve == two.curve
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


CELLS = [
    ("mnist_st_fcn_affine", ()), ("mnist_st_cnn_tps", ("data/distortion=rts",)), ("mnist_fcn", ("data/distortion=tc",)),
    ("addition_2xst_fcn_projective", ("budget=300000",)), ("mnist_st_cnn_series", ()), ("mnist_st_fcn_recurrent_3", ()),
    ("mnist_st_fcn_tps", ("data/distortion=e",)), ("mnist_st_fcn_projective", ("data/distortion=p",)),
]  # fmt: skip


@pytest.mark.parametrize(("experiment", "overrides"), CELLS, ids=lambda one: one if isinstance(one, str) else "")
def test_replayed_steps_are_the_steps_to_the_last_bit(experiment, overrides):
    with fake_gpu() as graphs:
        plain = fit(training(experiment, *overrides, capture=False))
        assert graphs == []
        replayed = fit(training(experiment, *overrides))
    assert_same(plain, replayed)
    assert [graph.replays for graph in graphs] == [12 - WARM_UP]  # one graph serves all blocks


@pytest.mark.parametrize("optimizer", [ADAMW, SGD | {"nesterov": True}, SGD | {"momentum": 0.0}])
@pytest.mark.parametrize("rates", [STEPS, None])
def test_optimisers_and_rates_go_on_inside_of_a_graph(optimizer, rates):
    how = {"optimizer": optimizer, "rates": rates}
    with fake_gpu() as graphs:
        plain = fit(training("mnist_st_fcn_affine", "schedule.localisation_lr=0.3", capture=False, **how))
        replayed = fit(training("mnist_st_fcn_affine", "schedule.localisation_lr=0.3", **how))
    assert_same(plain, replayed)
    assert len(graphs) == 1


@pytest.mark.parametrize(("precision", "accumulate"), [("bf16", 1), ("fp32", 2)])
def test_autocast_and_accumulation_are_replayed(precision, accumulate):
    how = {"precision": precision, "accumulate": accumulate}
    with fake_gpu() as graphs:
        plain = fit(training("mnist_st_cnn_affine", capture=False, **how))
        assert_same(plain, fit(training("mnist_st_cnn_affine", **how)))
    assert len(graphs) == 1


def test_a_replay_resumes_in_mid_run_in_the_bits_of_a_whole_one(tmp_path):
    with fake_gpu() as graphs:
        whole = fit(training("mnist_st_fcn_affine"))
        fit(training("mnist_st_fcn_affine"), 1, Checkpoint(tmp_path / "c.ckpt", every_s=0.0))
        torch.rand(7)
        resumed = training("mnist_st_fcn_affine", seed=1)
        fit(resumed, 3, ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert_same(whole, resumed)
    assert [graph.replays for graph in graphs] == [12 - WARM_UP, 5 - WARM_UP, 7 - WARM_UP]


def test_a_checkpoint_of_a_gpu_goes_on_without_one_and_back(tmp_path):
    with fake_gpu():
        whole = fit(training("mnist_st_fcn_affine"))
        fit(training("mnist_st_fcn_affine"), 1, Checkpoint(tmp_path / "c.ckpt", every_s=0.0))
    resumed = training("mnist_st_fcn_affine", seed=1)
    fit(resumed, 3, ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    for ours, expected in zip(resumed.curve, whole.curve, strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)  # a rate is a float32 there


def test_what_python_keeps_to_itself_would_be_found_out():
    rate = [1.0]
    with fake_gpu():
        take = Captured(lambda: {"loss": torch.zeros(()) + rate[0]}, torch.Generator())
        seen = []
        for i in range(WARM_UP + 3):
            rate[0] = float(i)
            seen.append(take()["loss"].item())
    assert seen == [0, 1, 2, 3, 3, 3]  # a host's number stays what it was at the recording


# --- Captured


def test_it_warms_up_records_once_without_a_step_and_replays():
    calls, total = [], torch.zeros(())
    generator = torch.Generator().manual_seed(0)

    def take():
        calls.append(1)
        drawn = torch.rand((), generator=generator)
        total.add_(drawn)
        return {"loss": drawn}

    with fake_gpu() as graphs:
        captured = Captured(take, generator)
        seen = [captured()["loss"].clone() for _ in range(10)]
    assert len(calls) == WARM_UP + 1
    (graph,) = graphs
    assert graph.generator is generator
    assert graph.replays == 10 - WARM_UP
    expected = [torch.rand((), generator=generator.manual_seed(0)) for _ in range(1)]
    expected += [torch.rand((), generator=generator) for _ in range(9)]
    assert torch.equal(torch.stack(seen), torch.stack(expected))
    torch.testing.assert_close(total, torch.stack(expected).sum())


def test_every_block_draws_from_its_own_seed():
    with fake_gpu():
        one = training("mnist_fcn")
        one.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        one.trainer.strategy.optimizers = one.schedule.optimizers(one.network)
        for block in (0, 1, 7):
            captured = one.steps_of(block)
            assert captured is one.captured
            assert captured.generator.initial_seed() == block_seed(3, block)


# --- what is captured


def captures(module, world_size=1, **changes):
    """Whether a step is, on a GPU."""
    for name, value in changes.items():
        setattr(module, name, value)
    optimizers = module.schedule.optimizers(module.network)
    rates = [SimpleNamespace(scheduler=scheduler) for scheduler in module.schedule.schedulers(optimizers)]
    module.trainer = SimpleNamespace(world_size=world_size, optimizers=optimizers, lr_scheduler_configs=rates)
    with fake_gpu():
        return module.replays


def test_a_step_on_a_gpu_is_captured_unless_it_is_not_wanted():
    assert captures(training("mnist_fcn"))
    assert not captures(training("mnist_fcn"), capture=False)
    assert not captures(training("mnist_fcn"), world_size=2)
    one = training("mnist_fcn")
    assert captures(one)
    assert not one.replays  # on a CPU


def test_a_step_that_takes_images_from_the_host_is_not_captured():
    module = training("mnist_fcn")
    assert not captures(module, data=SimpleNamespace(on_device=False))


@pytest.mark.parametrize("optimizer", [MUON, SGD | {"fused": False}])
def test_an_optimiser_that_hands_its_rate_to_the_host_is_not_captured(optimizer):
    assert not captures(training("mnist_fcn", optimizer=optimizer))
    with fake_gpu() as graphs:
        fit(training("mnist_fcn", optimizer=optimizer))
    assert graphs == []


@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
def test_a_schedule_that_moves_the_momentum_too_is_not_captured(optimizer):
    rates = {key: value for key, value in ONE_CYCLE.items() if key != "cycle_momentum"}  # PyTorch's default is True
    assert not captures(training("mnist_fcn", optimizer=optimizer, rates=rates))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # no step is taken here
@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
def test_rates_become_tensors_on_a_gpu_and_schedulers_fill_them(optimizer):
    cuda = torch.device("cuda")
    one = training("mnist_st_fcn_affine", optimizer=optimizer)
    optimizers = one.schedule.optimizers(one.network)
    schedulers = one.schedule.schedulers(optimizers)
    one.trainer = SimpleNamespace(optimizers=optimizers)
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "device", cuda)
        one.on_train_start()
        rates = [group["lr"] for one_of in optimizers for group in one_of.param_groups]
        assert [rate.device.type for rate in rates] == ["cuda", "cuda"]
        for scheduler in schedulers:
            scheduler.step()
        assert [a is b["lr"] for a, b in zip(rates, optimizers[0].param_groups, strict=True)] == [True, True]


@pytest.mark.parametrize(("optimizer", "kernel"), [(ADAMW, "_fused_adamw_"), (SGD, "_fused_sgd_")])
def test_bound_and_update_stay_on_a_fake_gpu(optimizer, kernel, monkeypatch):
    handed_over = []  # the kernels have no fake form
    monkeypatch.setattr(torch, kernel, lambda *args, **kwargs: handed_over.extend(leaves((args, kwargs))))
    config = compose("experiment=mnist_st_fcn_affine", "schedule=smoke")[0]
    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"):
        network = build.network(config["model"], (1, 28, 28), 10)
        schedule = schedule_of(config | {"optimizer": optimizer})
        (one,) = schedule.optimizers(network)
        for group in one.param_groups:
            group["lr"] = torch.full((), group["lr"])
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(2):  # the first one makes the state
            with NoSync():
                for parameters, norm in schedule.bounds(network):
                    torch.nn.utils.clip_grad_norm_(parameters, norm)
                one.step()
    tensors = [value for value in handed_over if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in tensors} == {"cuda"}  # rates and AdamW's counts of steps, too
    assert any(value is one.param_groups[1]["lr"] for value in tensors)


def test_a_run_begun_on_a_cpu_goes_on_in_a_graph(tmp_path):
    fit(training("mnist_st_fcn_affine", optimizer=ADAMW), 1, Checkpoint(tmp_path / "c.ckpt", every_s=0.0))
    whole = fit(training("mnist_st_fcn_affine", optimizer=ADAMW))
    with fake_gpu() as graphs:
        resumed = training("mnist_st_fcn_affine", optimizer=ADAMW, seed=1)
        fit(resumed, 3, ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert [graph.replays for graph in graphs] == [7 - WARM_UP]
    for ours, expected in zip(resumed.curve, whole.curve, strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)


def test_the_stand_in_demands_a_registered_generator():
    with fake_gpu(), pytest.raises(AssertionError, match="registered"), torch.cuda.graph(FakeGraph(), stream=None):
        pass
