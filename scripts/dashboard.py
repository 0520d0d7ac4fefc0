"""Make a W&B workspace and a report of one table under one schedule: our figures and the paper's, curves, pictures.

Both are made from conf/table and the records, in the project that conf/logger/wandb.yaml names.  Needs a W&B account
(`wandb login`); --show prints what would be sent, and sends nothing.
"""

import json
import os
from typing import Any

from stn.experiments.command import ROOT, Options, a_path, run, runs_folder
from stn.experiments.errors import one_line
from stn.experiments.results import pages, records, tables
from stn.experiments.yaml_files import read_yaml

CURVES = {"Loss": "train/loss", "Error on training batches, %": "train/error", "Learning rate": "lr"}
HEALTH = {"Determinant": "det", "Share outside the image": "out_of_image", "|theta - identity|": "theta_distance"}
OF_SEVERAL = ["windows", "composed/box"]  # pictures of parallel transformers, and of those in series


def panels(table: tables.Table, found: list[records.Record], wr: Any, columns: list[str]) -> dict[str, list[Any]]:
    """The panels by section: the figures of these columns, then what the records log of every transformer."""
    cells = len(table.rows) * len(columns)
    logged = {key for r in found for entry in r.get("curve", [])[-1:] for key in entry}

    def lines(names: dict[str, str]) -> list[Any]:
        return [wr.LinePlot(title=title, x="trainer/global_step", y=[key], max_runs_to_show=cells)
                for title, key in names.items() if key in logged]  # fmt: skip

    transformers = sorted(key.removesuffix("/det") for key in logged if key.endswith("/det"))
    health = {f"{title}, {name}": f"{name}/{key}" for name in transformers for title, key in HEALTH.items()}
    pictures = [f"{name}/warp" for name in transformers]
    by = wr.Config("experiment_name")
    bars = [wr.BarPlot(title=f"{column}, {table.unit}", metrics=[f"figure/{column}"], groupby=by,
                       max_runs_to_show=cells, max_bars_to_show=len(table.rows)) for column in columns]  # fmt: skip
    return {
        "Figures": bars,
        "Training": lines(CURVES),
        "Is the localisation network alive?": lines(health),
        "Input, grid, output": [wr.MediaBrowser(media_keys=pictures + OF_SEVERAL)],
        "Test": [wr.MediaBrowser(media_keys=["test/worst"])],
    }


def groups(table: tables.Table) -> list[str]:
    """The W&B groups of the table's runs: the runs of a borrowed row are in the group of its own table."""
    return sorted({read_yaml(ROOT / "conf/experiment" / f"{name}.yaml")["row"]["table"] for name in table.rows})


def workspace(
    table: tables.Table, schedule: str, found: list[records.Record], entity: str, project: str, ws: Any, wr: Any
) -> Any:
    """The runs of one table and schedule, one group per cell."""
    columns = list(table.columns.values())
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{table.title}, {schedule}",
        sections=[ws.Section(name=name, panels=some, is_open=True)
                  for name, some in panels(table, found, wr, columns).items()],
        runset_settings=ws.RunsetSettings(
            filters=[
                ws.Metric("Group").isin(groups(table)),
                ws.Config("experiment_name").isin(list(table.rows)),
                ws.Config("column").isin(columns),
                ws.Config("schedule_name") == schedule,
            ],
            groupby=[ws.Config("experiment_name"), ws.Config("column")],
            order=[ws.Ordering(ws.Summary(table.metric), ascending=True)],
        ),
    )  # fmt: skip


def report(table: tables.Table, schedule: str, found: list[records.Record], entity: str, project: str, wr: Any) -> Any:
    """Our table beside the paper's, in Markdown, then the panels of its runs, column by column."""
    grids = []
    for column in table.columns.values():
        runs = wr.Runset(
            name=f"{column}, {schedule}",
            filters=f"Group in {groups(table)} and Config('experiment_name') in {list(table.rows)} "
            f"and Config('column') == '{column}' and Config('schedule_name') == '{schedule}'",
            groupby=["config.experiment_name"],
        )
        some = [panel for section in panels(table, found, wr, [column]).values() for panel in section]
        grids += [wr.H2(column), wr.PanelGrid(runsets=[runs], panels=some)]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"{table.title}, {schedule}",
        description="Ours beside the paper's, made from the records by scripts/dashboard.py.",
        blocks=[wr.MarkdownBlock(text=pages.markdown(table, found, best=True)), *grids],
    )


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("table", choices=sorted(path.stem for path in (ROOT / "conf/table").glob("*.yaml")))
    parser.add_argument("--schedule", help="default: the schedule with most of the table's cells")
    parser.add_argument("--entity", help="team or user (default: that of your account)")
    parser.add_argument("--runs", type=a_path, help="folder of your own runs (default: runs)")
    parser.add_argument("--show", action="store_true", help="print what would be sent, as JSON, and send nothing")
    options = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError:
        raise ValueError("wandb-workspaces is not installed: pip install '.[dashboard]'") from None
    import wandb
    from pydantic import TypeAdapter  # installed with wandb-workspaces

    table = tables.load(ROOT / "conf/table" / f"{options.table}.yaml")
    found = records.read_all(runs_folder(options.runs), ROOT / "results", curves=True)
    if options.schedule is not None:
        tables.schedule(ROOT / "conf", options.schedule)
    elif not (known := tables.schedules(table, found)):
        raise ValueError(f"no run of {table.name} is recorded: give --schedule")
    schedule = options.schedule or known[0][0]
    found = [record for record in found if tables.belongs(table, record) and record["schedule"] == schedule]
    project = read_yaml(ROOT / "conf/logger/wandb.yaml")["wandb"]["project"]

    def made(entity: str) -> list[Any]:
        words = table, schedule, found, entity, project
        return [workspace(*words, ws, wr), report(*words, wr)]

    if options.show:
        entity = options.entity or "your-entity"
        views = [TypeAdapter(type(one)).dump_python(one, mode="json", exclude_none=True) for one in made(entity)]
        print(json.dumps(dict(zip(("workspace", "report"), views, strict=True)), indent=1))
        return
    try:
        if not wandb.login(prompt=False):
            raise ValueError("no W&B account is set up: run `wandb login`, or use --show to see what would be sent")
        entity = options.entity or str(wandb.Api().default_entity)
        for one in made(entity):
            one.save()
            print(one.url)
    except wandb.Error as error:
        raise ValueError(f"W&B: {one_line(error)}") from None


if __name__ == "__main__":
    run(main)
