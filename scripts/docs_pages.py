"""What `mkdocs build` asks for beside the pages: lists made from conf/ and docs/figures, and the report."""

from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from stn.results import records, report, tables

ROOT = Path(__file__).parent.parent


def experiments() -> str:
    """Every table with its command, and every row of it with the head comment of its file."""
    parts = []
    for path in sorted((ROOT / "conf/table").glob("*.yaml")):
        table = tables.load(path)
        parts.append(f"### {table.title}\n\n```bash\npython run.py table={table.name}\n```\n")
        for name, row in table.rows.items():
            file = ROOT / "conf/experiment" / f"{name}.yaml"
            if file.exists():
                lines = [line for line in file.read_text().splitlines() if line.startswith("# ")]
                parts.append(f"**{row}**\n\n```text\n" + "\n".join(line[2:] for line in lines[1:]) + "\n```\n")
    return "\n".join(parts)


def figures() -> str:
    """Every picture of docs/figures with its caption."""
    found = report.pictures(ROOT / "docs/figures")
    return "\n\n".join(f"![{p['caption']}](figures/{p['file']})\n\n{p['caption']}" for p in found if not p["film"])


def on_page_markdown(markdown: str, **_: Any) -> str:
    for name, content in (("experiments", experiments), ("figures", figures)):
        if (mark := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(mark, content())
    return markdown


def on_files(files: Files, config: Any) -> Files:
    known = [tables.load(path) for path in sorted((ROOT / "conf/table").glob("*.yaml"))]
    try:
        found = records.read_all(ROOT / "results/records")
        page = report.page(found, known, ROOT / "docs/figures", ROOT / "results/not_run.yaml", [])
    except ValueError as error:
        raise PluginError(str(error)) from None
    files.append(File.generated(config, "report.html", content=page))
    return files
