"""The Weights & Biases run: its name, group and tags, and the figures and files sent at its end."""

import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from stn.experiments.command import ROOT
from stn.experiments.errors import one_line
from stn.experiments.results import records, tables
from stn.experiments.training.answers import Answers

SUMMARY = (
    "status",
    "params",
    "seconds",
    "samples_per_s",
    "failed_step",
)  # keys of the record that are sent beside its metrics
log = logging.getLogger(__name__)


def table_of(record: records.Record, row: dict[str, Any] | None) -> tables.Table | None:
    """The table of a run, whether it is run alone or in a sweep; None if it is not one of the table's cells."""
    path = ROOT / "conf/table" / f"{(row or {}).get('table')}.yaml"
    if record["smoke"] or not path.is_file():
        return None
    table = tables.load(path)
    return table if tables.belongs(table, record) else None


def begin(
    project: str, settings: dict[str, Any], folder: Path, config: dict[str, Any], record: records.Record
) -> WandbLogger:
    """The W&B run of this folder.  Its id is the folder's name, so a resumed run continues the same W&B run.

    Its group is its table; its tags are table, row, column and schedule.  It is offline if no account is set up, and,
    after one line that says so, if the server refuses or does not answer.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ["WANDB_DATA_DIR"] = str(
        folder / "wandb"
    )  # for files that wait to be sent, instead of the home directory
    import wandb

    tags = [record["schedule"]]
    if table := table_of(record, config["row"]):
        config = config | {"column": table.columns[tables.column_of(table, record)]}
        tags = [table.name, table.rows[record["experiment"]], config["column"], *tags]
    if record["synthetic"]:
        tags.append("synthetic data")
    # the agent of a W&B sweep sets the ids of its runs
    name = {} if "WANDB_SWEEP_ID" in os.environ else {"id": folder.name, "name": folder.name}
    run: dict[str, Any] = {
        "project": project, "settings": settings, "dir": folder, "config": config, "job_type": "train", "tags": tags,
        "group": table.name if table else record["experiment"], "resume": "allow", **name,
    }  # fmt: skip
    try:
        if "WANDB_MODE" not in os.environ:
            run["mode"] = "online" if wandb.login(prompt=False) else "offline"
        experiment = wandb.init(**run)
    except (wandb.Error, ValueError) as error:
        log.warning("%s", _unsent(one_line(error), folder))
        wandb.teardown()
        experiment = wandb.init(**run | {"mode": "offline"})
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=experiment)


def end(
    logger: WandbLogger, record: records.Record, row: dict[str, Any] | None, answers: Answers, folder: Path
) -> None:
    """Send the record's figures, the paper's, confusion matrix, worst examples and weights, and end the run."""
    try:
        run = logger.experiment
        run.summary.update({key: record[key] for key in SUMMARY if key in record} | figures(record, row))
        if record["status"] == "finished":
            send(logger, record, answers, folder)
        run.finish(exit_code=0 if record["status"] == "finished" else 1)
    except Exception as error:  # server or wandb's process lost; the record is safe
        log.warning("%s", _unsent(one_line(error), folder))


def figures(record: records.Record, row: dict[str, Any] | None) -> dict[str, float]:
    """For a cell of a table: our figure under its column's name, the paper's, and the difference ours - paper.

    On synthetic data there is only our figure.
    """
    table = table_of(record, row)
    if table is None or table.metric not in record["metrics"]:
        return {}
    column = tables.column_of(table, record)
    ours, paper = record["metrics"][table.metric], table.paper.get(record["experiment"], {}).get(column)
    found = {f"figure/{table.columns[column]}": ours}
    if paper is not None and not record["synthetic"]:
        found |= {"paper": paper, "ours - paper": round(ours - paper, 4)}
    return found


def send(logger: WandbLogger, record: records.Record, answers: Answers, folder: Path) -> None:
    """Send confusion matrix, worst examples and weights."""
    import wandb

    step = {"trainer/global_step": record["steps"]}
    if classes := answers.classes():
        truth, predicted = classes
        names = [str(name) for name in range(record["classes"])]
        logger.experiment.log({"test/confusion": wandb.plot.confusion_matrix(None, truth, predicted, names)} | step)
    if answers.worst:
        images, texts = [one.picture() for one in answers.worst], [one.text for one in answers.worst]
        logger.log_image("test/worst", images, step=record["steps"], caption=texts)
    cell, _, last = record["id"].rpartition("-seed")
    artifact = wandb.Artifact(cell, "model", metadata={"id": record["id"], **records.metrics_of(record)})
    for path in sorted(folder.glob("*.safetensors")):
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
    logger.experiment.log_artifact(artifact, aliases=[f"seed{record['seed']}", last.rpartition("-")[2]])


def _unsent(why: str, folder: Path) -> str:
    later = f"WANDB_PROGRAM=wandb wandb sync {folder}/wandb/*run-*"  # otherwise the command sends its own path, too
    return f"W&B: {why}; the run is kept on disk: send it later with `{later}`"
