"""Model cards: what one recorded checkpoint is, made from its record."""

import hashlib
from pathlib import Path

import yaml

from stn.results import tables
from stn.results.records import Record
from stn.results.report import duration
from stn.results.tables import Table


def standing(record: Record, known: list[Table]) -> str:
    """Where the record stands in the paper's tables, with the paper's figure."""
    for table in known:
        if tables.belongs(table, record) and record["experiment"] not in table.borrowed:
            column = tables.column_of(table, record)
            figure = table.paper.get(record["experiment"], {}).get(column)
            paper = "the paper gives no figure for it" if figure is None else f"the paper's figure is {figure}"
            if record["made_data"]:
                paper = "trained and tested on **made data**, so the paper's figure is no comparison"
            return f"{table.title.split(':')[0]}, {table.rows[record['experiment']]}, {table.columns[column]}; {paper}."
    return "It is in no table of the paper."


def card(record: Record, weights: Path, known: list[Table]) -> str:
    """The card, in Markdown, of the weights file that this record belongs to."""
    config, schedule = record["config"], record["config"]["schedule"]
    metrics = ", ".join(f"{name} {value:.2f} %" for name, value in record["metrics"].items())
    commands = []
    if config["data"].get("_target_", "").endswith("DistortedMnist"):  # the images that these two know how to make
        commands = [f"python scripts/export_onnx.py {weights.stem}"]
        if config["model"].get("transform"):
            commands.insert(0, f"python scripts/predict.py IMAGE... --model {weights.stem}")
    use = "\n".join(["```bash", *commands, "```", ""]) if commands else ""
    versions = ", ".join(f"{name} {number}" for name, number in (record.get("versions") or {}).items())
    digests = "\n".join(f"- {part}: `{digest}`" for part, digest in (record.get("data_sha256") or {}).items())
    return f"""# {weights.stem}

{metrics or "no metric"} on the frozen test set, one run, seed {record["seed"]}.
{standing(record, known)}

Made from the record `results/records/{weights.stem}.json`; `make records` writes this file.

## Use

{use}
The file is a plain `state_dict` ({weights.stat().st_size:,} bytes, sha256
`{hashlib.sha256(weights.read_bytes()).hexdigest()}`);
`stn.training.job.rebuild(record, weights, "data")` gives the network and its data set.

## What it is

{record["params"]:,} trainable parameters, schedule `{record["schedule"]}`: {record["steps"]:,} steps of
{schedule.get("batch_size", "an unrecorded number of")} examples, {duration(record["seconds"])} on {record["device"]}, \
{record["threads"]} thread{"s" if record["threads"] > 1 else ""}, {config.get("precision", "precision not recorded")}.

```yaml
{yaml.safe_dump({group: config[group] for group in ("data", "model", "schedule")}, sort_keys=False).strip()}
```

## Data

{digests or "- not recorded"}

{"Made data: generated here, not collected." if record["made_data"] else "See `data/README.md` for source and licence."}

## Limits

One run with one seed; it was trained to be measured, on these data alone, and nothing is known about it on
others. Not for use where an error matters.

## Made with

{versions or "versions not recorded"}; commit `{record.get("commit") or "not recorded"}`\
{", with changes that were not committed" if record.get("dirty") else ""}; finished \
{record.get("finished_at") or "at a time not recorded"}. MIT licence.
"""
