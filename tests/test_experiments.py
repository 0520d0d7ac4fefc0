"""Every experiment and table of conf/: composed as run.py composes it, built, and begun."""

import re
import runpy
from pathlib import Path

import hydra
import pytest
import torch
import torch.nn.functional as F
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from stn.networks.mnist import num_params

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf/experiment").glob("*.yaml"))
SCHEDULES = sorted(file.stem for file in (ROOT / "conf/schedule").glob("*.yaml"))
ROWS = yaml.safe_load((ROOT / "conf/table/table1.yaml").read_text())["table"]["rows"]  # of Table 1, by experiment
TABLES = sorted(file.stem for file in (ROOT / "conf/table").glob("*.yaml"))
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
def program():
    """The names of run.py, whose import registers the resolver that conf/ uses."""
    OmegaConf.clear_resolver("bf16_where_fast")
    return runpy.run_path(str(ROOT / "run.py"))


@pytest.fixture
def compose(program):
    """The resolved config and Hydra's own part of it, as run.py gets them."""

    def composed(*overrides):
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        own = cfg.hydra
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, own

    return composed


def build(cfg, side_px):
    return instantiate(cfg.model, _partial_=True, _convert_="all")(in_shape=(1, side_px, side_px), classes=10)


# every schedule under one experiment; every experiment under a schedule that has its own budget and one that has none
PAIRS = [("mnist_st_cnn_affine", s) for s in SCHEDULES] + [(e, s) for e in EXPERIMENTS for s in ("fast", "paper")]


@pytest.mark.parametrize(("experiment", "schedule"), sorted(set(PAIRS)))
def test_every_experiment_and_every_schedule_composes_and_invents_no_keys(program, compose, experiment, schedule):
    cfg, own = compose(f"experiment={experiment}", f"schedule={schedule}")
    program["check_keys"](cfg, own.runtime.choices)
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert (config["experiment_name"], config["schedule_name"]) == (experiment, schedule)
    if "budget" in config["model"]:  # of which fast and smoke have their own
        assert config["model"]["budget"] == config["budget"]
    assert instantiate(cfg.schedule).steps == config["schedule"]["steps"]


def test_the_paper_s_schedule_is_that_of_a4(compose):
    schedule = instantiate(compose("schedule=paper")[0].schedule)
    assert (schedule.steps, schedule.batch_size, schedule.weight_decay) == (150_000, 256, 0)
    rates = [schedule.lr * schedule.lr_factor(step, schedule.steps) for step in (0, 49_999, 50_000, 100_000, 149_999)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(("experiment", "distortion"), [(name, list(CANVAS_PX)[i % 5]) for i, name in enumerate(ROWS)])
def test_every_experiment_of_table_1_takes_two_steps(compose, random_digits, experiment, distortion):
    cfg, _ = compose(f"experiment={experiment}", "schedule=smoke", f"data.distortion={distortion}")
    torch.manual_seed(0)
    data, schedule = instantiate(cfg.data), instantiate(cfg.schedule)
    assert data.in_shape == (1, *[CANVAS_PX[distortion]] * 2)
    network = build(cfg, CANVAS_PX[distortion])
    before = {name: p.clone() for name, p in network.named_parameters()}
    optimizer, generator = schedule.optimizer(network), torch.Generator().manual_seed(0)
    for _ in range(2):
        u, label = data.batch(16, generator)
        loss = F.cross_entropy(network(u), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert {name for name, p in network.named_parameters() if torch.equal(p, before[name])} == set()


@pytest.mark.parametrize("experiment", ROWS)
def test_every_experiment_of_table_1_builds_on_every_distortion_within_the_budget(compose, experiment):
    cfg, _ = compose(f"experiment={experiment}", "schedule=paper")
    for distortion, side_px in CANVAS_PX.items():
        assert 0.96 * 400_000 < num_params(build(cfg, side_px)) <= 400_000, distortion


@pytest.mark.parametrize("experiment", ROWS)
def test_an_experiment_builds_the_transform_and_the_localisation_that_its_name_says(compose, experiment):
    words = experiment.split("_")
    network = build(compose(f"experiment={experiment}", "budget=60000")[0], 28)
    kinds = {type(module).__name__ for module in network.modules()}
    transforms = {"affine": "Affine", "projective": "Projective", "tps": "ThinPlateSpline"}
    assert kinds & set(transforms.values()) == ({transforms[words[-1]]} if "st" in words else set())
    assert ("Conv2d" in kinds) == ("cnn" in words)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_builds_on_no_other_one_and_says_how_to_run_it(experiment):
    text = (ROOT / f"conf/experiment/{experiment}.yaml").read_text()
    assert "experiment:" not in text
    assert f"#   python run.py experiment={experiment} " in text


@pytest.mark.parametrize(("experiment", "row"), ROWS.items())
def test_an_experiment_of_table_1_names_its_row_and_the_figures_of_the_paper(experiment, row):
    text = (ROOT / f"conf/experiment/{experiment}.yaml").read_text()
    figures = {f"{column} {figure}" for column, figure in zip(COLUMNS, TABLE1[row], strict=True) if figure}
    assert f'Table 1, "{row}"' in text
    assert set(re.findall(r"\b[A-Z]+ \d+\.\d", text)) >= figures


# --- tables


@pytest.mark.parametrize("name", TABLES)
def test_a_table_sweeps_over_its_rows_and_columns_and_every_row_is_an_experiment(name):
    file = yaml.safe_load((ROOT / f"conf/table/{name}.yaml").read_text())
    table, params = file["table"], file["hydra"]["sweeper"]["params"]
    columns = ",".join(map(str, table["columns"]))
    assert params == {"experiment": ",".join(table["rows"]), table["column_key"]: columns}
    assert set(table["rows"]) <= set(EXPERIMENTS)
    assert set(table["paper"]) <= set(table["rows"])
    assert table["name"] == name


def test_table_1_has_the_figures_of_the_paper():
    table = yaml.safe_load((ROOT / "conf/table/table1.yaml").read_text())["table"]
    assert list(table["columns"].values()) == list(COLUMNS)
    found = {
        row: tuple(table["paper"].get(experiment, {}).get(column) for column in table["columns"])
        for experiment, row in table["rows"].items()
    }
    assert found == TABLE1


def test_the_paper_s_figures_of_ps_are_those_of_its_p():
    p, ps = (
        yaml.safe_load((ROOT / f"conf/table/{name}.yaml").read_text())["table"] for name in ("table1", "projection")
    )
    assert ps["rows"] == p["rows"]
    assert {row: paper["ps"] for row, paper in ps["paper"].items()} == {row: q["p"] for row, q in p["paper"].items()}


def test_table_1_is_a_sweep_of_40_jobs_that_differ_and_120_with_three_seeds(compose):
    for extra, expected in (((), 40), (("seed=0,1,2",), 120)):
        _, own = compose("table=table1", "schedule=fast")
        assert own.mode.name == "MULTIRUN"
        given = [*(f"{key}={value}" for key, value in own.sweeper.params.items()), "schedule=fast", *extra]
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), max_batch_size=None)
        assert len({tuple(sorted(job)) for job in jobs}) == len(jobs) == expected
        for job in jobs[:: len(jobs) // 4]:  # what a job's overrides are is what composes
            cfg, own_job = compose("table=table1", *job)
            assert cfg.table.name == "table1"
            assert f"experiment={own_job.runtime.choices.experiment}" in job
