"""Schedule, step engine, checkpoint, health and logs, in process; the engine against a plain loop."""

import logging
import os
from collections import OrderedDict
from functools import partial
from itertools import pairwise
from math import cos, sin
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stn import Affine, Affine3d, SpatialTransformer, regular_grid
from stn.datasets.mnist import DistortedMnist
from stn.localisation import Regression, fully_connected
from stn.networks.mnist import build, fcn
from stn.training import checkpoint
from stn.training.checkpoint import Checkpoint
from stn.training.classification import Classification, cross_entropy, error
from stn.training.engine import Diverged, Training, block_generator
from stn.training.health import Health, determinant, measure
from stn.training.logs import Log
from stn.training.schedule import OneCycle, Schedule, StepDecay
from stn.transformer import Warp

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SEED = 3
VALUES = {
    "steps": 10,
    "batch_size": 8,
    "lr": 0.1,
    "lr_factor": OneCycle(warmup=0.3),
    "momentum": 0.9,
    "weight_decay": 0.01,
    "localisation_lr": 0.1,
    "clip_norm": 0.5,
    "block_steps": 4,
}


@pytest.fixture
def data(random_digits):
    return DistortedMnist("nowhere", "r")


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
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def assert_same_bits(network, other):
    for (name, one), two in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


# --- schedule


def test_one_cycle_rises_from_4_percent_to_the_peak_and_falls_to_nearly_0():
    factors = [OneCycle(warmup=0.3)(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.04)
    assert factors[150] == pytest.approx(0.52)  # half of the way up
    assert factors[300] == pytest.approx(1)
    assert factors[650] == pytest.approx(0.5)  # half of the way down
    assert 0 < factors[999] < 1e-5
    assert all(a < b for a, b in pairwise(factors[:301]))
    assert all(a > b for a, b in pairwise(factors[300:]))


def test_the_steps_of_a4_divide_the_rate_by_10_at_50k_and_at_100k():
    decay = StepDecay(every=50_000, factor=0.1)
    steps = (0, 49_999, 50_000, 99_999, 100_000, 149_999)
    assert [decay(step, 150_000) for step in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0), ("batch_size", 0), ("block_steps", -1), ("lr", -0.1), ("momentum", -0.9), ("weight_decay", -1.0),
        ("localisation_lr", -1.0), ("clip_norm", 0.0), ("clip_norm", -1.0),
        ("localisation_clip_norm", 0.0),
    ],
)  # fmt: skip
def test_a_schedule_refuses_what_cannot_be_trained_with(key, value):
    with pytest.raises(ValueError, match=rf"^schedule\.{key}={value} has to be [^\n]*$"):
        Schedule(**VALUES | {key: value})


@pytest.mark.parametrize(("steps", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (10, 3)])
def test_a_last_shorter_block_is_a_block(steps, blocks):
    assert Schedule(**VALUES | {"steps": steps}).blocks == blocks


def test_localisation_lr_scales_the_localisation_network_alone_at_every_step():
    network = st_fcn()
    schedule = Schedule(**VALUES)
    optimizer = schedule.optimizer(network)
    scheduler = schedule.scheduler(optimizer)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, network.parameters()))  # each once
    localisation = set(network.transformer.localisation.parameters())
    for step in range(10):
        for group in optimizer.param_groups:
            of_localisation = {p in localisation for p in group["params"]}
            (expected,) = {0.01 if own else 0.1 for own in of_localisation}
            assert group["lr"] == pytest.approx(expected * OneCycle(0.3)(step, 10))
        optimizer.step()
        scheduler.step()


# --- step engine


def plain_loop(network, data, precision, steps, block_steps, batch_size, lr, lr_factor, momentum, weight_decay,
               localisation_lr, clip_norm, localisation_clip_norm=None):  # fmt: skip
    """The same training as a loop over steps; returns every step's loss and number of wrong answers."""
    localisation = set(network.transformer.localisation.parameters())
    velocity = {p: torch.zeros_like(p) for p in network.parameters()}
    losses, wrong = [], []
    for step in range(steps):
        if step % block_steps == 0:
            generator = block_generator(SEED, step // block_steps, CPU)
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
            norm, bound = whole, clip_norm
            if localisation_clip_norm is not None:
                norm, bound = norms[p in localisation], localisation_clip_norm if p in localisation else clip_norm
            if bound is not None and norm > bound:
                g = g * bound / norm
            velocity[p] = momentum * velocity[p] + g + weight_decay * p.detach()
            p.data -= lr * lr_factor(step, steps) * (localisation_lr if p in localisation else 1) * velocity[p]
        losses.append(loss.item())
        wrong.append((logits.argmax(1) != label).sum().item())
    return losses, wrong


@pytest.mark.parametrize(
    ("precision", "clip_norm", "localisation_clip_norm"),
    [("fp32", 0.5, None), ("fp32", None, None), ("bf16", 0.5, None), ("fp32", 0.5, 0.05), ("fp32", None, 0.05)],
)
def test_the_engine_takes_the_steps_of_a_plain_loop(data, precision, clip_norm, localisation_clip_norm):
    # bf16: each step has to see the weights of the last one, though autocast keeps its copies of them while it lasts
    norms = {"clip_norm": clip_norm, "localisation_clip_norm": localisation_clip_norm}
    module, plain = engine(data, precision, **norms), st_fcn()
    trainer().fit(module)
    losses, wrong = plain_loop(plain, data, precision, **VALUES | norms)
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
    rates = [0.1 * VALUES["lr_factor"](step, 10) for step in (0, 4, 8)]
    assert [entry["lr"] for entry in module.curve] == pytest.approx(rates)


def test_every_seed_and_block_draws_its_own_numbers_and_the_same_again():
    def draw(seed, block):
        return tuple(torch.rand(4, generator=block_generator(seed, block, CPU)).tolist())

    pairs = [(seed, block) for seed in range(12) for block in range(12)]  # (1, 11) and (11, 1) among them
    assert len({draw(*pair) for pair in pairs}) == len(pairs)
    assert draw(1, 11) == draw(1, 11)


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


def test_an_unknown_precision_is_refused(data):
    with pytest.raises(ValueError, match="unknown precision='fp16': choose fp32 or bf16"):
        engine(data, "fp16")


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


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"something else"],
    ids=["truncated", "empty", "foreign"],
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


# --- health


def source(matrix, size=(5, 7)):
    """The grid of one image under an affine map, given as ((a, b, t_x), (c, d, t_y))."""
    matrix = torch.tensor(matrix)
    return (regular_grid(size) @ matrix[:, :2].T + matrix[:, 2])[None]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), 1),
        (((0.5, 0.0, 0.3), (0.0, 0.5, -0.2)), 0.25),
        (((cos(0.4), -sin(0.4), 0.0), (sin(0.4), cos(0.4), 0.0)), 1),
        (((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), -1),
        (((2.0, 0.0, 0.0), (0.0, 3.0, 0.0)), 6),
        (((1.0, 1.0, 0.0), (1.0, 1.0, 0.0)), 0),
    ],
    ids=["identity", "half", "rotation", "mirror", "stretch", "line"],
)
def test_the_determinant_is_how_areas_change(matrix, expected):
    assert determinant(source(matrix), (5, 7)).tolist() == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), 0),
        (((1.0, 0.0, 5.0), (0.0, 1.0, 0.0)), 1),
        (((1.0, 0.0, 0.0), (0.0, 1.0, -5.0)), 1),
        (((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)), 3 / 7),  # of 7 columns the 3 right ones are beyond 1, the 4th just on it
    ],
    ids=["identity", "far to the right", "far up", "half to the right"],
)
def test_out_of_image_is_the_share_of_the_window_that_shows_nothing(matrix, expected):
    u = torch.zeros(1, 1, 5, 7)
    theta = torch.tensor(matrix).flatten()[None]
    health = measure(Warp("st", u, theta, source(matrix), u), Affine.identity)
    assert health["out_of_image"] == pytest.approx(expected)
    assert health["theta_distance"] == pytest.approx(sum(t * t for _, _, t in matrix) ** 0.5)


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


# --- logs


@pytest.mark.parametrize(
    ("pictures", "blocks", "drawn"), [(0, 5, 0), (1, 5, 1), (2, 5, 2), (3, 7, 3), (5, 5, 5), (9, 2, 2)]
)
def test_a_run_logs_every_block_and_as_many_pictures_as_asked_the_last_at_its_end(pictures, blocks, drawn):
    rows, images = [], []
    logger = SimpleNamespace(
        log_metrics=lambda row, step: rows.append((step, row)),
        log_image=lambda key, pictures, step: images.append((step, key, pictures)),
    )
    log = Log(torch.rand(2, 1, 28, 28), pictures)
    module = SimpleNamespace(network=st_fcn(), device=CPU, curve=[], schedule=SimpleNamespace(blocks=blocks))
    for block in range(blocks):
        module.current_epoch = block
        module.curve.append({"step": 10 * (block + 1), "train/loss": float(block)})
        log.on_train_batch_end(SimpleNamespace(loggers=[logger]), module, None, None, 0)
    assert rows == [(10 * (block + 1), {"train/loss": float(block)}) for block in range(blocks)]
    assert len(images) == drawn
    assert {key for _, key, _ in images} <= {"transformer/warp"}
    assert not drawn or images[-1][0] == 10 * blocks
    if drawn == 3:  # evenly: 7 blocks in thirds
        assert [step for step, _, _ in images] == [30, 50, 70]
    for _, _, (picture,) in images:
        assert picture.height > 3 * 28  # input, grid and output, one below the other
