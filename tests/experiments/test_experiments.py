"""Every experiment and table of conf/: composed as run.py composes it, built, and begun."""

import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from composing import compose, compose_raw
from omegaconf import OmegaConf

from stn.experiments import build
from stn.experiments.networks.sizing import num_params
from stn.experiments.results import tables
from stn.experiments.training.run import plan, schedule_of
from stn.experiments.training.sweep import jobs

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))
SCHEDULES = sorted(file.stem for file in (ROOT / "conf/schedule").glob("*.yaml"))
TABLES = sorted(file.stem for file in (ROOT / "conf/table").glob("*.yaml"))
ROWS = yaml.safe_load((ROOT / "conf/table/table1.yaml").read_text())["table"]["rows"]  # of Table 1: experiments
CANVAS_PX = {"r": 28, "rts": 42, "p": 28, "e": 28, "tc": 60}
COLUMNS = ("R", "RTS", "P", "E", "TC")
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


# every schedule under one experiment; every experiment under a schedule that has its own budget and one that has none
PAIRS = [("mnist_st_cnn_affine", s) for s in SCHEDULES] + [(e, s) for e in EXPERIMENTS for s in ("fast", "paper")]


@pytest.mark.parametrize(("experiment", "schedule"), sorted(set(PAIRS)))
def test_every_experiment_and_schedule_composes_and_is_named(check_keys, experiment, schedule):
    words = [f"experiment={experiment}", f"schedule={schedule}"]
    config, choices = compose(*words)
    check_keys(OmegaConf.create(config), choices)
    assert (config["experiment_name"], config["schedule_name"]) == (experiment, schedule.removesuffix("_t"))
    if "budget" in config["model"]:
        assert config["model"]["budget"] == config["budget"]
    assert schedule_of(config).steps == config["schedule"]["steps"]
    assert plan(config, words).id.startswith(f"{experiment}-")


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
    for distortion, side_px in CANVAS_PX.items():
        network = build.network(config["model"], (1, side_px, side_px), 10)
        assert 0.96 * 400_000 < num_params(network) <= 400_000, distortion


@pytest.mark.parametrize("experiment", ROWS)
def test_an_experiment_builds_what_its_name_says(experiment):
    words = experiment.split("_")
    config, _ = compose(f"experiment={experiment}", "budget=60000")
    kinds = {type(module).__name__ for module in build.network(config["model"], (1, 28, 28), 10).modules()}
    transforms = {"affine": "Affine", "projective": "Projective", "tps": "ThinPlateSpline"}
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
    ((key, columns),) = params.items()
    assert columns == ",".join(table.columns)
    assert key.replace("/", ".") in (table.column_key, table.column_key.removesuffix(".name"))
    assert set(table.rows) <= set(EXPERIMENTS)
    assert set(table.paper) <= set(table.rows)
    assert table.name == name


def test_table_1_has_the_figures_of_the_paper():
    table = tables.load(ROOT / "conf/table/table1.yaml")
    assert tuple(table.columns.values()) == COLUMNS
    found = {
        row: tuple(table.paper.get(experiment, {}).get(column) for column in table.columns)
        for experiment, row in table.rows.items()
    }
    assert found == TABLE1


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("table2", [(4.0, 5.6), (3.7, 3.9), (3.6, 3.9)]),
        ("table3", [(82.3, None), (83.1, None), (83.9, None), (84.1, None)]),
        ("table4", [(47.7,), (14.7,), (22.6,), (18.5,), (19.1,), (9.0,), (5.9,), (5.8,), *[(None,)] * 4]),
        ("table5", [(100.0,) * 10, (None,) * 10]),
        ("projection", [(figures[2],) for figures in TABLE1.values()]),
        ("pooled", [(5.2, 13.2), (5.2, 13.2), (0.8, None), (0.9, None), (0.8, None),
                    (0.8, 3.5), (0.8, 3.5), (0.5, None), (0.6, None), (0.5, None)]),
    ],
)  # fmt: skip
def test_the_other_tables_have_the_figures_of_the_paper(name, rows):
    table = tables.load(ROOT / f"conf/table/{name}.yaml")
    found = [tuple(table.paper.get(row, {}).get(column) for column in table.columns) for row in table.rows]
    assert found == rows


def test_table_1_is_a_sweep_of_40_jobs_and_120_with_three_seeds():
    for extra, expected in (((), 40), (("seed=0,1,2",), 120)):
        cfg = compose_raw("table=table1", "schedule=fast")
        assert cfg.hydra.mode.name == "MULTIRUN"
        found = jobs([*(f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()), "schedule=fast", *extra])
        assert len({tuple(sorted(job)) for job in found}) == len(found) == expected
        assert all(sum(a != b for a, b in zip(one, two, strict=True)) >= 1 for one, two in pairwise(found))
        for job in found[:: len(found) // 4]:  # what a job's overrides are is what composes
            own = compose_raw("table=table1", *job)
            assert own.table.name == "table1"
            assert f"experiment={own.hydra.runtime.choices.experiment}" in job
