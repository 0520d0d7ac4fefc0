"""What a run logs: rows, pictures with classes, answers of the test, errors on validation digits; to any logger."""

import csv
from importlib.util import find_spec
from types import SimpleNamespace
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from composing import compose
from pytorch_lightning.loggers import WandbLogger
from safetensors.torch import load_file
from torch import nn

from stn import Affine, SpatialTransformer
from stn.experiments import draw
from stn.experiments.datasets.mnist import DistortedMnist
from stn.experiments.training import validation
from stn.experiments.training.answers import Answers, labels_of, names
from stn.experiments.training.classification import Classification
from stn.experiments.training.engine import Training
from stn.experiments.training.job import plan
from stn.experiments.training.logs import SIDE_PX, Log, finish, look, make_loggers
from stn.experiments.training.schedule import Schedule
from stn.experiments.training.validation import Validation
from stn.localisation import fully_connected

CPU = torch.device("cpu")
STEPS, BLOCK = 12, 4
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}
LOGGERS = ["csv", "tensorboard"] if find_spec("tensorboard") else ["csv"]


@pytest.fixture
def data(random_digits):
    return DistortedMnist("nowhere", {"name": "r", "max_angle_deg": 90.0, "scale": [1.0, 1.0], "canvas_px": 28})


def network():
    torch.manual_seed(0)
    transform = Affine()
    return nn.Sequential(
        SpatialTransformer(fully_connected((1, 28, 28), transform), transform),
        nn.Flatten(), nn.Dropout(), nn.Linear(784, 10),
    )  # fmt: skip


def fit(data, *callbacks, loggers=()):
    """A module that was trained for STEPS, in blocks."""
    schedule = Schedule(steps=STEPS, batch_size=8, block_steps=BLOCK, optimizer=SGD)
    module = Training(network(), data, Classification(), schedule, seed=3, precision="fp32")
    trainer = pl.Trainer(
        max_epochs=schedule.blocks, accelerator="cpu", devices=1, logger=list(loggers), log_every_n_steps=1,
        callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module)
    return module


# --- rows and pictures


@pytest.mark.parametrize(
    ("pictures", "blocks", "drawn"), [(0, 5, 0), (1, 5, 1), (2, 5, 2), (3, 7, 3), (5, 5, 5), (9, 2, 2)]
)
def test_a_run_logs_every_block_and_as_many_pictures_as_asked_the_last_at_its_end(pictures, blocks, drawn):
    rows, images = [], []
    logger = mock.Mock(spec=WandbLogger)
    logger.log_metrics = lambda row, step: rows.append((step, row))
    logger.log_image = lambda key, pictures, step: images.append((step, key, pictures))
    log = Log(torch.rand(2, 1, 28, 28), None, pictures)
    module = SimpleNamespace(network=network(), device=CPU, curve=[], schedule=SimpleNamespace(blocks=blocks))
    for block in range(blocks):
        module.current_epoch = block
        module.curve.append({"step": 10 * (block + 1), "train/loss": float(block)})
        log.on_train_batch_end(SimpleNamespace(loggers=[logger]), module, None, None, 0)
    assert rows == [(10 * (block + 1), {"train/loss": float(block)}) for block in range(blocks)]
    assert len(images) == drawn
    assert {key for _, key, _ in images} <= {"0/warp"}
    assert not drawn or images[-1][0] == 10 * blocks
    if drawn == 3:  # evenly: 7 blocks in thirds
        assert [step for step, _, _ in images] == [30, 50, 70]
    for _, _, (picture,) in images:
        assert picture.height > 3 * 28  # input, grid and output, one below the other


def test_below_a_picture_stand_the_classes_and_what_is_wrong_stands_out():
    u, one = torch.rand(2, 1, 28, 28), network()
    said = one.eval()(u).argmax(1)
    bare = look(one, u, None)["0/warp"]
    for labels, wrong in ((said, False), ((said + 1) % 10, True)):
        picture = look(one, u, labels)["0/warp"]
        assert picture.size == (bare.width, bare.height + draw.TEXT_PX)
        strip = picture.crop((0, bare.height, *picture.size))
        assert (draw.WRONG in {colour for _, colour in strip.getcolors(10**6)}) == wrong
    assert bare.width == 2 * SIDE_PX + draw.GAP_PX


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_of_lightning_s_gets_the_rows_and_the_result(data, tmp_path, name):
    config, _ = compose("experiment=mnist_st_fcn_affine", f"logger=[{name}]")
    plan(config, [])
    loggers = make_loggers(config["logger"], tmp_path, {"seed": 3}, {})
    module = fit(data, Log(next(iter(data.test_batches()))[0][:2], None, 1), loggers=loggers)
    record = {"config": {"data": {}}, "metrics": {"test/error": 12.5}, "steps": STEPS, "status": "finished"}
    finish(loggers, record, None, Answers(), tmp_path)
    losses = [entry["train/loss"] for entry in module.curve]
    if name == "csv":
        with (tmp_path / "csv/version_0/metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["train/loss"]) for row in rows[:-1]] == pytest.approx(losses)
        assert [int(row["step"]) for row in rows] == [4, 8, 12, 12]
        assert float(rows[-1]["test/error"]) == 12.5
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [
            (entry["step"], pytest.approx(entry["train/loss"])) for entry in module.curve
        ]
        assert [one.value for one in events.Scalars("test/error")] == [12.5]
        assert len(events.Images("0/warp")) == 1


def test_several_loggers_are_chosen_as_a_list_and_one_by_its_name():
    assert set(compose("experiment=mnist_fcn", "logger=[wandb,csv]")[0]["logger"]) == {"wandb", "csv"}
    assert set(compose("experiment=mnist_fcn", "logger=csv")[0]["logger"]) == {"csv"}
    assert not compose("experiment=mnist_fcn", "logger=none")[0]["logger"]


# --- answers


def test_the_answers_are_every_class_and_the_images_with_the_highest_loss(data):
    module, answers = fit(data), Answers()
    tester = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=[answers], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    tester.test(module, verbose=False)
    u, truth = (torch.cat(parts) for parts in zip(*data.test_batches(), strict=True))
    with torch.no_grad():
        logits = module.network.eval()(u)
    assert answers.classes() == (truth.tolist(), logits.argmax(1).tolist())
    losses = F.cross_entropy(logits, truth, reduction="none")
    assert [one.loss for one in answers.worst] == pytest.approx(losses.sort(descending=True).values[:16].tolist())
    for one in answers.worst:
        i = int((losses - one.loss).abs().argmin())
        p, t = int(logits[i].argmax()), int(truth[i])
        assert one.text == f"{p} ({100 * logits[i].softmax(0)[p]:.0f} %)" + ("" if p == t else f", not {t}")
        assert torch.equal(one.image, u[i])
        assert one.picture().size == (SIDE_PX, SIDE_PX)
    assert not module._forward_hooks


def test_a_house_number_is_a_text_and_a_box_has_no_class():
    assert names(torch.tensor([[1, 0, 10, 10, 10], [7, 10, 10, 10, 10]])) == ["10", "7"]
    assert names(torch.tensor([3, 10])) == ["3", "10"]
    assert labels_of(torch.rand(2, 4)) is None
    assert labels_of({"label": torch.tensor([1])}).tolist() == [1]


# --- validation


def test_validation_leaves_training_the_same_bits_and_is_the_test_s_error(data, tmp_path):
    plain, validated = fit(data), fit(data, Validation(2, tmp_path / "best.safetensors"))
    for (name, one), two in zip(
        plain.network.state_dict().items(), validated.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    assert ["valid/error" in entry for entry in validated.curve] == [False, True, True]
    wrong = [(validated.network.eval()(u).argmax(1) != label).float() for u, label in data.test_batches()]
    assert validated.curve[-1]["valid/error"] == pytest.approx(100 * torch.cat(wrong).mean().item())
    assert validated.training


def test_the_weights_with_the_lowest_validation_error_are_kept(data, tmp_path, monkeypatch):
    errors, states = iter([30.0, 10.0, 20.0]), []
    monkeypatch.setattr(validation, "measure", lambda module: {"error": next(errors)})

    class States(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            states.append({name: value.clone() for name, value in module.network.state_dict().items()})

    fit(data, States(), Validation(3, tmp_path / "best.safetensors"))
    best = load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(best[name], value) for name, value in states[1].items())
    assert not all(torch.equal(best[name], value) for name, value in states[2].items())
