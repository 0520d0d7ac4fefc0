"""Every experiment and table of conf/: composed as run.py composes it, built, and begun."""

import json
import re
import runpy
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from composing import compose, compose_raw
from omegaconf import OmegaConf
from ranges import DISTORTIONS

from stn.experiments import build, preflight
from stn.experiments.networks import TRANSFORMS
from stn.experiments.networks.sizing import num_params
from stn.experiments.results import tables
from stn.experiments.training.job import plan, schedule_of
from stn.experiments.training.sweep import jobs

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))
SCHEDULES = sorted(file.stem for file in (ROOT / "conf/schedule").glob("*.yaml"))
TABLES = sorted(file.stem for file in (ROOT / "conf/table").glob("*.yaml"))
ROWS = yaml.safe_load((ROOT / "conf/table/table1.yaml").read_text())["table"]["rows"]  # of Table 1: experiments
COLUMNS = ("R", "RTS", "P", "E", "TC")  # of the paper; others may follow, as may other rows
TABLE1 = {  # which transforms the 2.0 of an ST-FCN and the 1.7 of an ST-CNN on TC had is not said
    "FCN": (2.1, 5.2, 3.1, 3.2, 13.2),
    "CNN": (1.2, 0.8, 1.5, 1.4, 3.5),
    "ST-FCN Aff": (1.2, 0.8, 1.5, 2.7, None),
    "ST-FCN Proj": (1.3, 0.9, 1.4, 2.6, None),
    "ST-FCN TPS": (1.1, 0.8, 1.4, 2.4, None),
    "ST-CNN Aff": (0.7, 0.5, 0.8, 1.2, None),
    "ST-CNN Proj": (0.8, 0.6, 0.8, 1.3, None),
    "ST-CNN TPS": (0.7, 0.5, 0.8, 1.1, None),
}


@pytest.fixture(scope="module")
def check_keys():
    return runpy.run_path(str(ROOT / "run.py"))["check_keys"]


# every schedule under one experiment, every experiment under the default schedule
OF_SCHEDULE = {"cub_small": "cub_2st_448"}  # one that sets keys of its data
PAIRS = [(OF_SCHEDULE.get(s, "mnist_st_cnn_affine"), s) for s in SCHEDULES] + [(e, "fast") for e in EXPERIMENTS]


@pytest.mark.parametrize(("experiment", "schedule"), sorted(set(PAIRS)))
def test_every_experiment_and_schedule_composes_and_is_named(check_keys, experiment, schedule):
    words = [f"experiment={experiment}", f"schedule={schedule}"]
    config, choices = compose(*words)
    check_keys(OmegaConf.create(config), choices)
    assert (config["experiment_name"], config["schedule_name"]) == (experiment, re.sub("_(t|own)$", "", schedule))
    if "budget" in config["model"]:
        assert config["model"]["budget"] == config["budget"]
    assert schedule_of(config).steps == config["schedule"]["steps"]
    assert plan(config, words).id.startswith(f"{experiment}-")


@pytest.mark.parametrize("file", ["schedule/fast", "experiment/mnist_fcn", "table/table1"])
@pytest.mark.parametrize(("line", "says"), [
    ("budgett: 1", "unknown key budgett in {}: valid here: .*budget"),
    ("model: {unitss: 1}", "unknown key model.unitss in {}: valid here: name, classifier, "),
])  # fmt: skip
def test_a_file_that_invents_a_key_is_named_with_it(check_keys, file, line, says, tmp_path, monkeypatch):
    config, choices = compose("experiment=mnist_fcn", "schedule=fast", "table=table1")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / f"conf/{file}.yaml").write_text(f"# @package _global_\n{line}\n")
    monkeypatch.setitem(check_keys.__globals__, "CONF", tmp_path / "conf")
    with pytest.raises(ValueError, match=f"^{says.format(f'conf/{file}.yaml')}[^\n]*$"):
        check_keys(OmegaConf.create(config), choices)


def test_a_distortion_has_the_name_of_its_file():
    check = runpy.run_path(str(ROOT / "run.py"))["check_distortion"]
    check(*map(OmegaConf.create, compose("experiment=mnist_fcn", "data/distortion=p")))
    config, choices = compose("experiment=mnist_fcn", "data.distortion.name=rts")
    with pytest.raises(ValueError, match=r"^data.distortion.name='rts' of conf/.*/r.yaml: it has to be r,"):
        check(OmegaConf.create(config), choices)


def test_the_paper_s_schedule_is_that_of_a4():
    config, _ = compose("schedule=paper", "experiment=mnist_fcn")
    schedule, network = schedule_of(config), torch.nn.Linear(1, 1)
    assert (schedule.steps, schedule.batch_size, schedule.bound) == (150_000, 256, None)
    (optimizer,) = schedule.optimizers(network)
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults["weight_decay"] == 0
    (scheduler,) = schedule.schedulers([optimizer])
    rates = []
    for step in range(100_001):
        if step in (0, 49_999, 50_000, 100_000):
            rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


@pytest.mark.parametrize("experiment", ROWS)
def test_table_1_builds_on_every_distortion_within_the_budget(experiment):
    config, _ = compose(f"experiment={experiment}", "schedule=paper", "budget=400000")
    for name, distortion in DISTORTIONS.items():
        network = build.network(config["model"], (1, distortion.canvas_px, distortion.canvas_px), 10)
        assert 0.96 * 400_000 < num_params(network) <= 400_000, name


@pytest.mark.parametrize("experiment", ROWS)
def test_an_experiment_builds_what_its_name_says(experiment):
    words = experiment.split("_")
    config, _ = compose(f"experiment={experiment}", "budget=60000")
    kinds = {type(module).__name__ for module in build.network(config["model"], (1, 28, 28), 10).modules()}
    transforms = {name: transform.__name__ for name, transform in TRANSFORMS.items()}
    assert kinds & set(transforms.values()) == ({transforms[words[-1]]} if "st" in words else set())
    assert ("SlimConv2d" in kinds) == ("cnn" in words)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_stands_alone_and_says_how_to_run_it(experiment):
    text = (ROOT / f"conf/experiment/{experiment}.yaml").read_text()
    assert "experiment:" not in text
    assert f"# python run.py experiment={experiment} " in text
    row = yaml.safe_load(text)["row"]
    assert row["table"] in TABLES
    assert set(row) in ({"table", "label", "paper"}, {"table", "label", "paper_of"})
    assert experiment in [next(iter(r)) if isinstance(r, dict) else r for r in _rows(row["table"])]


def _rows(table):
    return yaml.safe_load((ROOT / f"conf/table/{table}.yaml").read_text())["table"]["rows"]


# --- tables


@pytest.mark.parametrize("name", TABLES)
def test_a_table_sweeps_over_its_rows_and_columns(name):
    file = yaml.safe_load((ROOT / f"conf/table/{name}.yaml").read_text())
    table, params = tables.load(ROOT / f"conf/table/{name}.yaml"), dict(file["hydra"]["sweeper"]["params"])
    assert params.pop("experiment") == ",".join(table.rows)
    assert params.pop("schedule", "fast") in SCHEDULES
    ((key, columns),) = params.items()
    assert columns == ",".join(table.columns)
    assert key.replace("/", ".") in (table.column_key, table.column_key.removesuffix(".name"))
    assert set(table.rows) <= set(EXPERIMENTS)
    assert set(table.paper) <= set(table.rows)
    assert table.name == name


def test_table_1_has_the_figures_of_the_paper():
    table = tables.load(ROOT / "conf/table/table1.yaml")
    found = {
        (row, table.columns[column]): figure
        for experiment, row in table.rows.items()
        for column, figure in table.paper.get(experiment, {}).items()
    }
    printed = {(row, column): TABLE1[row][i] for row in TABLE1 for i, column in enumerate(COLUMNS)}
    assert found == {cell: figure for cell, figure in printed.items() if figure is not None}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("table2", [(4.0, 5.6), (3.7, 3.9), (3.6, 3.9)]),
        ("table3", [(82.3, None), (83.1, None), (83.9, None), (84.1, None)]),
        ("table4", [(47.7,), (14.7,), (22.6,), (18.5,), (19.1,), (9.0,), (5.9,), (5.8,)]),
        ("table5", [(100.0,) * 10] * 3),
        ("pooled", [(5.2, 13.2), (5.2, 13.2), (0.8, None), (0.9, None), (0.8, None),
                    (0.8, 3.5), (0.8, 3.5), (0.5, None), (0.6, None), (0.5, None)]),
    ],
)  # fmt: skip
def test_the_other_tables_have_the_figures_of_the_paper(name, rows):
    table = tables.load(ROOT / f"conf/table/{name}.yaml")
    columns = list(table.columns)[: len(rows[0])]
    found = [tuple(table.paper[row].get(column) for column in columns) for row in table.rows if row in table.paper]
    assert found == rows
    assert all(set(figures) <= set(columns) for figures in table.paper.values())


def test_a_part_of_a_table_is_a_sweep_of_its_cells():
    cfg = compose_raw("table=table1")
    words = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    assert len(jobs([*words, "experiment=mnist_fcn,mnist_st_fcn_tps", "data/distortion=r,tc"])) == 4


def test_table_1_is_a_sweep_of_a_job_per_cell_and_seed():
    table = tables.load(ROOT / "conf/table/table1.yaml")
    cells = len(table.rows) * len(table.columns)
    for extra, expected in (((), cells), (("seed=0,1,2",), 3 * cells)):
        cfg = compose_raw("table=table1", "schedule=fast")
        assert cfg.hydra.mode.name == "MULTIRUN"
        found = jobs([*(f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()), "schedule=fast", *extra])
        assert len({tuple(sorted(job)) for job in found}) == len(found) == expected
        assert all(sum(a != b for a, b in zip(one, two, strict=True)) >= 1 for one, two in pairwise(found))
        for job in found[:: len(found) // 4]:  # what a job's overrides are is what composes
            own = compose_raw("table=table1", *job)
            assert own.table.name == "table1"
            assert f"experiment={own.hydra.runtime.choices.experiment}" in job


# --- what cannot be run is refused before anything is made

REFUSED = {  # of mnist_st_cnn_affine's config: key, value, what is said
    "schedule.batch_size": ("abc", "has to be a whole number, 1 or more"),
    "schedule.steps": (True, "has to be a whole number, 1 or more"),
    "schedule.block_steps": (0, "has to be a whole number, 1 or more"),
    "schedule.bound": (5, r"has to be null, \{all: norm\}"),
    "schedule.bound.all": ("x", "has to be a number above 0"),
    "schedule.lr_scheduler": ("abc", "has to be a mapping with _target_"),
    "schedule.lr_scheduler._target_": ("StepLR", "is not a torch.optim.lr_scheduler.LRScheduler: give the full path"),
    "schedule.lr_scheduler.step_size": (0, "StepLR cannot take a step with its arguments"),
    "schedule.lr_scheduler.gamma": (float("nan"), "a learning rate that is not finite"),
    "optimizer._target_": ("torch.optim.LBFGS", "optimizer: LBFGS cannot take a step with its arguments"),
    "optimizer.lr": (float("nan"), "has to be a number, 0 or more"),
    "optimizer.momentum": (5, "has to be a number, 0 or more and below 1"),
    "seed": (True, "has to be a whole number, 0 or more"),
    "budget": (10**15, "has to be a whole number, 1 or more, up to 1,000,000,000,000, or null"),
    "threads": (10**9, "has to be a whole number, 1 or more, up to 1,024, or null"),
    "progress": ("maybe", "has to be true or false"),
    "experiment_name": ("../../../x", "has to be a name of up to 100 letters"),
    "schedule_name": ("a/b", "has to be a name of up to 100 letters"),
    "runs_dir": ("", "has to be a folder's path"),
    "data": (None, "has to be a mapping"),
    "data.distortion": (5, "choose a file of conf/data/distortion"),
    "data.distortion.max_angle_deg": (float("nan"), "has to be a number, 0 or more"),
    "data.distortion.canvas_px": (10**6, "has to be a whole number, 28 or more, up to 1,024"),
    "data.test_split": ([1], "choose test or valid"),
    "model.transform": ("afine", "choose one of affine"),
    "model.pooled": (3, "has to be true or false"),
    "logger.csv": ({"_target_": "CSVLogger"}, "is not a pytorch_lightning.loggers.logger.Logger: give the full path"),
}


def changed(config, key, value):
    """The config with another value of a dotted key."""
    *path, last = key.split(".")
    for part in path:
        config[part] = dict(config[part] or {})
        config = config[part]
    config[last] = value


@pytest.fixture(scope="module")
def config():
    words = ("experiment=mnist_st_cnn_affine", "schedule=paper", "optimizer=sgd", "device=cpu")
    return json.dumps(compose(*words)[0])


@pytest.mark.parametrize("key", REFUSED)
def test_a_value_that_cannot_be_run_is_refused_before_anything_is_made(config, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, says = REFUSED[key]
    settings = json.loads(config)
    if key == "optimizer._target_":
        settings["optimizer"] = {"lr": 0.1}
    changed(settings, key, value)
    with pytest.raises(ValueError, match=rf"^[^\n]*{says}[^\n]*$") as refused:
        plan(settings, [])
    assert key.removesuffix("._target_").removesuffix(".step_size").removesuffix(".gamma") in str(refused.value)
    assert list(tmp_path.iterdir()) == []


DELETED = ("seed", "logger", "data", "objective", "schedule.lr_scheduler", "data.root", "data.distortion",
           "data.distortion.scale", "optimizer.lr", "model.classifier")  # fmt: skip


@pytest.mark.parametrize("key", DELETED)
def test_a_key_that_was_deleted_is_named(config, key):
    settings = json.loads(config)
    *path, last = key.split(".")
    node = settings
    for part in path:
        node = node[part]
    del node[last]
    with pytest.raises(ValueError, match=rf"^{key}\b[^\n]*$"):
        plan(settings, [])


@pytest.mark.parametrize(("key", "value", "says"), [
    ("schedule.batch_size", 10**8, r"cpu has [\d,]+ GB free, too little for the 941 GB of a batch: lower schedule"),
    ("budget", 10**11, r"cpu has [\d,]+ GB free, too little for the 1,200 GB of [\d,]+ weights: lower budget=10"),
])  # fmt: skip
def test_what_does_not_fit_into_memory_is_refused_before_it_is_allocated(key, value, says):
    words = ("experiment=mnist_fcn", "schedule=paper", "device=cpu", f"{key}={value}")
    with pytest.raises(ValueError, match=rf"^{says}[^\n]*$"):
        plan(compose(*words)[0], [])


@pytest.mark.parametrize(("experiment", "objective", "says"), [
    ("mnist_fcn data=colocalisation", "classification", "data.name=colocalisation, which has an objective of its own"),
    ("cub_cnn_224", "classification", "data.name=cub, which has an objective of its own"),
    ("mnist_fcn", "birds", "data.name=mnist, only with cub, synthetic_birds"),
])  # fmt: skip
def test_an_objective_that_does_not_fit_the_data_is_refused(experiment, objective, says):
    config, _ = compose(*f"experiment={experiment}".split(), f"objective={objective}", "device=cpu")
    with pytest.raises(ValueError, match=f"^objective={objective} cannot be used with {says}$"):
        plan(config, [])


# --- what a command line asks for is looked at before Hydra runs it


@pytest.mark.parametrize(("words", "says"), [
    (["--experiment=mnist_fcn"], "unknown option --experiment=mnist_fcn: settings have no dashes, such as experiment="),
    (["experiment=glob(zz*)"], r"experiment=glob\(zz\*\) asks for no run"),
    (["experiment=mnist_fcn", "seed=range(5,0)"], r"seed=range\(5,0\) asks for no run"),
    (["-m", "seed=range(100000000)"], r"seed=range\(100000000\) asks for more than 10,000 runs"),
    (["seed=range(1000)", "budget=range(1000)"], r"budget=range\(1000\) asks for more than 10,000 runs"),
    (["seed=interval(0,1)"], r"seed=interval\(0,1\): an interval has infinitely many values"),
])  # fmt: skip
def test_a_command_that_asks_for_nothing_or_too_much_is_refused(words, says):
    with pytest.raises(ValueError, match=rf"^{says}[^\n]*$"):
        preflight.check(words)


def test_the_data_of_a_sweep_are_looked_for_once_before_its_first_run(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "ensure", lambda data, root: asked.append((data["name"], data.get("size_px"), root)))
    preflight.check(["table=table2", f"data.root={tmp_path}", "seed=0,1,2"])
    assert asked == [("svhn", 64, str(tmp_path)), ("svhn", 128, str(tmp_path))]
    asked.clear()
    preflight.check(["experiment=mnist_fcn"])  # no sweep: the run says what it misses
    preflight.check(["table=table2", "hydra/launcher=slurm"])  # another machine's disk
    assert asked == []


def test_a_sweep_without_its_data_ends_in_one_line_that_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^there are no 64 px crops in [^\n]*: run `make data-svhn`[^\n]*$"):
        preflight.check(["table=table2", f"data.root={tmp_path}"])


def test_data_are_found_in_the_repository_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preflight.data_folder("data") == str(ROOT / "data")
    assert preflight.data_folder("/elsewhere") == "/elsewhere"
    (tmp_path / "data").mkdir()
    assert preflight.data_folder("data") == "data"
