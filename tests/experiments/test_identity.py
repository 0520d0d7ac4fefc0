"""The identity of a run: what changes it, and what must not."""

import copy
from unittest import mock

import pytest
from composing import CONF, compose
from hydra import initialize_config_dir

from stn.experiments import build, identity
from stn.experiments.training import job

ROW = ("experiment=mnist_st_cnn_tps", "data/distortion=p", "schedule=fast")


def name_of(*overrides: str, revisions: dict | None = None) -> str:
    config, _ = compose(*ROW, *overrides)
    found = build.revisions(config) | (revisions or {})
    with mock.patch("stn.experiments.build.revisions", return_value=found):
        return job.plan(config, []).id


def test_a_run_is_named_after_what_it_computes():
    assert name_of().startswith("mnist_st_cnn_tps-p-fast-seed0-")


@pytest.mark.parametrize(
    "override",
    ["data.root=elsewhere", "runs_dir=elsewhere", "device=cpu", "devices=2", "threads=3", "accumulate=2",
     "checkpoint_every_s=7", "pictures=0", "validations=3",
     "compile=true", "logger=[csv]", "progress=false", "logger=none"],
)  # fmt: skip
def test_where_and_how_a_run_is_computed_changes_nothing(override):
    assert name_of(override) == name_of()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "budget=100000", "schedule.steps=7", "schedule.block_steps=50", "optimizer.lr=0.04", "optimizer=sgd",
     "schedule.lr_scheduler.pct_start=0.2", "schedule.bound={all: 1.0}", "data.distortion.corner_std_px=3.5",
     "data/distortion=e", "schedule.ema=0.9",
     "model.kernel=nearest", "model.transform=affine", "precision=fp32", "smoke=true"],
)  # fmt: skip
def test_what_is_computed_changes_the_identity(override):
    assert name_of(override) != name_of()


@pytest.mark.parametrize(
    ("redundant", "needed"),
    [
        (["optimizer.lr=0.002"], ["schedule.steps=7", "threads=1"]),
        (["data=mnist", "optimizer=adamw", "optimizer.weight_decay=1e-2"], []),
        (["data.test_split=test", "deterministic=true"], ["model.kernel=nearest"]),
        ([], ["optimizer=sgd", "optimizer.momentum=0.5"]),
    ],
)
def test_an_override_is_redundant_if_the_run_is_the_same_without(redundant, needed):
    words = [*ROW, *redundant, *needed]
    planned = job.plan(compose(*words)[0], words)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert job.redundant(planned) == redundant


@pytest.mark.parametrize("part", ["data", "model", "objective", "step"])
def test_another_revision_of_the_code_is_another_run(part):
    assert name_of(revisions={part: 99}) != name_of()


def test_every_group_of_a_config_has_a_revision():
    config, _ = compose(*ROW)
    assert set(build.revisions(config)) == {"data", "model", "objective", "step"}


def test_a_module_without_a_revision_is_named_with_what_to_add(monkeypatch):
    config, _ = compose(*ROW)
    monkeypatch.delattr("stn.experiments.networks.mnist.REVISION")
    with pytest.raises(ValueError, match=r"^\S+networks/mnist\.py has no revision: add `REVISION = 1`, [^\n]*$"):
        build.revisions(config)


def test_no_import_path_of_ours_is_in_a_config():
    config, _ = compose(*ROW)
    assert "stn." not in str(identity.asked(config))


def test_a_later_key_at_its_old_value_changes_nothing(monkeypatch):
    config, _ = compose(*ROW)
    groups = identity.asked(config)
    words = ("mnist_st_cnn_tps", "fast", 0)
    before = identity.of(*words, groups, {})
    later = copy.deepcopy(groups)
    later["schedule"]["later"] = None
    assert identity.of(*words, later, {}) != before
    monkeypatch.setitem(identity.LATER, "schedule.later", None)
    assert identity.of(*words, later, {}) == before
    later["schedule"]["later"] = 0.999
    assert identity.of(*words, later, {}) != before


def test_a_whole_number_is_the_same_with_and_without_a_point():
    assert name_of("data.distortion.corner_std_px=5") == name_of("data.distortion.corner_std_px=5.0") != name_of()


@pytest.mark.parametrize("distortion", ["e", "tc"])
def test_the_options_of_the_studies_leave_older_runs_their_names(distortion):
    corners = ["data.distortion.control=corners"] if distortion == "e" else []
    config, _ = compose(*ROW, f"data/distortion={distortion}", *corners)
    groups = identity.asked(config)
    older = copy.deepcopy(groups)
    del older["model"]["width"]
    for key in {"control", "overlap", "blank"} & set(older["data"]["distortion"]):
        del older["data"]["distortion"][key]
    words = ("mnist_st_cnn_tps", "fast", 0)
    assert identity.of(*words, groups, {}) == identity.of(*words, older, {})


@pytest.mark.parametrize(
    ("distortion", "override"),
    [("e", "data.distortion.control=corners"), ("tc", "data.distortion.overlap=sum"),
     ("tc", "data.distortion.blank=false"), ("r", "model.width=64")],
)  # fmt: skip
def test_an_option_of_the_studies_is_another_run(distortion, override):
    assert name_of(f"data/distortion={distortion}", override) != name_of(f"data/distortion={distortion}")


def test_the_order_of_keys_is_no_part_of_it():
    config, _ = compose(*ROW)
    groups = identity.asked(config)
    turned = {group: dict(reversed(list(groups[group].items()))) for group in reversed(list(groups))}
    assert identity.of("e", "s", 0, groups, {}) == identity.of("e", "s", 0, turned, {})
