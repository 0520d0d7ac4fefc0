"""A W&B workspace and a report of one table: our figures beside the paper's, with their curves and pictures.

Makes both anew from conf/table and the records, in the project that conf/logger/wandb.yaml names.  Needs an account
(`wandb login`); --show prints what would be sent, and sends nothing.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import yaml

from stn.experiments.command import ROOT, run, runs_folder
from stn.experiments.results import records, tables

CURVES = {"Loss": "train/loss", "Error on training batches, %": "train/error", "Learning rate": "lr"}
HEALTH = {"Determinant": "det", "Share outside of the image": "out_of_image", "|theta - identity|": "theta_distance"}
OF_SEVERAL = ["windows", "composed/box"]  # pictures of transformers side by side, and in series


def panels(table: tables.Table, found: list[records.Record], wr: Any) -> dict[str, list[Any]]:
    """The panels of a workspace and of a report, by section: what the table's records log, of every transformer."""

    def lines(names: dict[str, str]) -> list[Any]:
        return [wr.LinePlot(title=title, x="trainer/global_step", y=[key], groupby="experiment_name")
                for title, key in names.items() if key in logged]  # fmt: skip

    logged = {key for r in found if tables.belongs(table, r) for entry in r.get("curve", [])[-1:] for key in entry}
    transformers = sorted(key.removesuffix("/det") for key in logged if key.endswith("/det"))
    health = {f"{title}, {name}": f"{name}/{key}" for name in transformers for title, key in HEALTH.items()}
    pictures = [f"{name}/warp" for name in transformers]
    return {
        "Figures": [wr.BarPlot(title=table.unit, metrics=[table.metric], groupby="experiment_name")],
        "Training": lines(CURVES),
        "Is the localisation network alive?": lines(health),
        "Input, grid, output": [wr.MediaBrowser(media_keys=pictures + OF_SEVERAL)],
    }


def workspace(table: tables.Table, found: list[records.Record], entity: str, project: str, ws: Any, wr: Any) -> Any:
    """The runs of one table, grouped by experiment, best first."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=table.title,
        sections=[ws.Section(name=name, panels=some, is_open=True) for name, some in panels(table, found, wr).items()],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == table.name],
            groupby=[ws.Config("experiment_name"), ws.Config(table.column_key)],
            order=[ws.Ordering(ws.Summary(table.metric), ascending=True)],
        ),
    )


def report(table: tables.Table, found: list[records.Record], entity: str, project: str, wr: Any) -> Any:
    """The table against the paper's, as Markdown from the records, above the panels of its runs."""
    grids = []
    for name, some in panels(table, found, wr).items():
        runs = wr.Runset(name=table.title, filters=f"Group == '{table.name}'")
        grids += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=some)]
    return wr.Report(
        entity=entity,
        project=project,
        title=table.title,
        description="Ours / the paper's, made from the records by scripts/dashboard.py.",
        blocks=[wr.MarkdownBlock(text=tables.markdown(table, found)), *grids],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(path.stem for path in (ROOT / "conf/table").glob("*.yaml")))
    parser.add_argument("--entity", help="team or user (default: that of your account)")
    parser.add_argument("--runs", type=Path, help="where your own runs are (default: runs)")
    parser.add_argument("--show", action="store_true", help="print what would be sent, as JSON, and send nothing")
    options = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError:
        raise ValueError("wandb-workspaces is not installed: pip install '.[dashboard]'") from None
    import wandb
    from pydantic import TypeAdapter  # what wandb-workspaces is made of

    table = tables.load(ROOT / "conf/table" / f"{options.table}.yaml")
    found = records.read_all(runs_folder(options.runs), ROOT / "results", curves=True)
    project = yaml.safe_load((ROOT / "conf/logger/wandb.yaml").read_text())["project"]
    if options.show:
        entity = options.entity or "your-entity"
        made = [workspace(table, found, entity, project, ws, wr), report(table, found, entity, project, wr)]
        views = [TypeAdapter(type(one)).dump_python(one, mode="json", exclude_none=True) for one in made]
        print(json.dumps(dict(zip(("workspace", "report"), views, strict=True)), indent=1))
        return
    try:
        if not wandb.login(prompt=False):
            raise ValueError("no W&B account is set up: `wandb login`, or --show to see what would be sent")
        entity = options.entity or str(wandb.Api().default_entity)
        for one in (workspace(table, found, entity, project, ws, wr), report(table, found, entity, project, wr)):
            one.save()
            print(one.url)
    except wandb.Error as error:
        raise ValueError(f"W&B: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    run(main)
