"""Which card a run takes, and deterministic=true: with stand-ins for the cards."""

import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from composing import compose

from stn.experiments.training import environment, job, run
from stn.experiments.training.check import check

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import campaign  # noqa: E402


@pytest.fixture
def cards(monkeypatch):
    """Two simulated cards; gives the list of those that were chosen."""
    chosen = [0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    return chosen


def test_the_jobs_of_a_sweep_take_the_cards_in_turns(cards):
    taken = []
    for number in range(5):
        environment.take_card(number)
        taken.append(environment.pick_device("auto"))
    assert taken == [torch.device("cuda", i) for i in (0, 1, 0, 1, 0)]
    assert environment.pick_device("cpu") == torch.device("cpu")


def test_where_a_launcher_shows_one_card_a_job_takes_that(cards, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    environment.take_card(7)
    assert cards == [0, 0]


def test_without_a_card_nothing_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: pytest.fail("there is none"))
    environment.take_card(3)
    assert environment.pick_device("auto") == torch.device("cpu")


def test_lightning_is_given_the_card_that_was_chosen(tmp_path):
    one = job.Job({"runs_dir": str(tmp_path)}, [], {}, {}, "one")
    with mock.patch.object(run.pl, "Trainer", return_value=mock.Mock(spec=run.pl.Trainer)) as trainer:
        run.trainer(one, torch.device("cuda", 1), [])
        assert trainer.call_args.kwargs["devices"] == [1]
        run.trainer(one, torch.device("cuda", 0), [], 2)
        assert trainer.call_args.kwargs["devices"] == 2  # all processes of one run
        run.trainer(one, torch.device("cpu"), [])
        assert trainer.call_args.kwargs["devices"] == 1


@pytest.mark.parametrize("gpu", [True, False])
def test_only_records_of_this_kind_of_machine_tell_how_long_a_step_takes(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    both = [{"device": "Intel(R) Xeon(R) Processor"}, {"device": "NVIDIA H200"}]
    assert environment.of_this_kind(both) == [both[gpu]]


def test_a_campaign_shows_each_of_its_runs_one_card(cards, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [campaign.visible(slot % campaign.cards()) for slot in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [campaign.visible(slot % campaign.cards()) for slot in range(4)] == ["5", "7", "5", "7"]


def test_ray_gives_a_job_a_card_or_a_part_of_one(cards):
    from composing import compose_raw

    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    assert compose_raw("hydra/launcher=ray_local").hydra.launcher.ray.remote.num_gpus == 1
    quarter = compose_raw("hydra/launcher=ray_local", "hydra.launcher.ray.remote.num_gpus=0.25")
    assert quarter.hydra.launcher.ray.remote.num_gpus == 0.25


# --- deterministic


@pytest.fixture
def config(tmp_path):
    def make(*overrides):
        words = ["experiment=mnist_st_cnn_tps", "schedule=smoke", "schedule.steps=2", "schedule.block_steps=1",
                 "logger=none", "progress=false", "device=cpu", "pictures=0", f"runs_dir={tmp_path}"]  # fmt: skip
        return compose(*words, *overrides)[0]

    yield make
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("random_digits")
def test_deterministic_is_honoured_and_is_no_part_of_the_identity(config, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert job.plan(config("deterministic=true"), []).id == job.plan(config(), []).id
    with mock.patch.object(
        run, "fit", side_effect=lambda *a: seen.append(torch.are_deterministic_algorithms_enabled())
    ):
        seen: list[bool] = []
        for word in ("true", "false"):
            with mock.patch.object(run, "test", return_value={}), mock.patch.object(run, "keep"):
                job.run(config(f"deterministic={word}"), [])
    assert seen == [True, False]
    assert run.environment.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("random_digits")
def test_what_has_no_deterministic_way_is_refused_in_one_line(config):
    said = (
        "grid_sampler_3d_backward_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation.\nMore."
    )
    with mock.patch.object(run, "fit", side_effect=RuntimeError(said)):
        with pytest.raises(
            ValueError, match=r"^deterministic=true is not possible here: grid_sampler_3d_\w+ does not"
        ) as error:
            job.run(config("deterministic=true"), [])
        assert str(error.value).endswith("deterministic implementation; leave it out, or choose device=cpu")
        with pytest.raises(RuntimeError, match="grid_sampler"):  # else it is a bug
            job.run(config(), [])


@pytest.mark.parametrize("value", ["1", "maybe", "null"])
def test_deterministic_is_true_or_false(config, value):
    with pytest.raises(ValueError, match=r"^deterministic=.* has to be true or false$"):
        check(config(f"deterministic={value}"))
