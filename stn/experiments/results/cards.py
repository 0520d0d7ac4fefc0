"""The model card of the kept networks, made from their records."""

from collections.abc import Mapping
from typing import Any

from stn.experiments.results import tables
from stn.experiments.results.pages import escaped
from stn.experiments.results.records import Record, unit
from stn.experiments.results.report import duration
from stn.experiments.results.tables import Table

INTRO = """# Recorded networks

Written by `make records` from the records.  Each file holds the weights of one network, in float16 (safetensors);
`index.json` has their sha256 and size.  `zoo.load` builds the network from its record, in float32 and eval mode:

```python
from stn.experiments import zoo

recorded = zoo.load("{first}")
recorded.network, recorded.in_shape, recorded.record
```

Each network is one run with one seed.  It was trained to be measured on the data named below, and nothing is known
about it on others: do not use it where an error matters.  MIT licence; source and licence of the data are in
`data/README.md`.
"""


def standing(record: Record, known: list[Table]) -> str:
    """The record's cell in the paper's tables, with the paper's figure."""
    for table in known:
        if tables.belongs(table, record) and record["experiment"] not in table.borrowed:
            column = tables.column_of(table, record)
            figure = table.paper.get(record["experiment"], {}).get(column)
            paper = "the paper gives no figure for it" if figure is None else f"the paper's figure is {figure}"
            if record["synthetic"]:
                paper = "trained and tested on **synthetic data**, so the paper's figure is no comparison"
            return f"{table.title.split(':')[0]}, {table.rows[record['experiment']]}, {table.columns[column]}; {paper}."
    return "It is in no table of the paper."


def section(record: Record, known: list[Table]) -> str:
    """The section of one network, in Markdown."""
    config = record["config"]
    metrics = ", ".join(f"`{name}` {value:.2f}{unit(name)}" for name, value in record["metrics"].items())
    lines = [
        f"- {metrics or 'no metric'} on the frozen test set, seed {record['seed']}.  {standing(record, known)}",
        f"- {record['params']:,} trainable parameters, input {' x '.join(map(str, record['in_shape']))}; schedule "
        f"`{record['schedule']}`: {record['steps']:,} steps of {config['schedule'].get('batch_size')} examples in "
        f"{duration(record['seconds'])} on {escaped(record['device'])}, {record['precision']}.",
        f"- Model: {settings(config['model'])}",
        f"- Data: {settings(config['data'])}",
    ]
    if config["data"]["name"] == "mnist":  # both commands need such images
        commands = [f"`python scripts/export_onnx.py {record['id']}`"]
        if config["model"].get("transform"):
            commands.insert(0, f"`python scripts/predict.py IMAGE... --model {record['id']}`")
        lines.append(f"- Use: {', '.join(commands)}")
    return "\n".join([f"## {record['id']}", "", *lines, ""])


def settings(group: Mapping[str, Any]) -> str:
    """name mnist, classifier cnn, distortion (name rts, canvas_px 42)."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return f"({settings(value)})"
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        return "none" if value is None else escaped(value) if isinstance(value, str) else str(value)

    return ", ".join(f"{escaped(key)} {text(value)}" for key, value in group.items())


def page(records: list[Record], known: list[Table]) -> str:
    """The card of all networks."""
    in_order = sorted(records, key=lambda record: record["id"])
    first = in_order[0]["id"] if in_order else "ID"
    return "\n".join([INTRO.replace("{first}", first), *(section(record, known) for record in in_order)])
