"""What `mkdocs build` asks for beside the pages: lists made from conf/ and docs/figures, and the report."""

from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from stn.experiments.command import ROOT
from stn.experiments.results import records, report, tables


def experiments() -> str:
    """Every table with its command, and every row of it with its file."""
    parts = []
    for path in sorted((ROOT / "conf/table").glob("*.yaml")):
        table = tables.load(path)
        parts.append(f"### {table.title}\n\n```bash\npython run.py table={table.name}\n```\n")
        for name, row in table.rows.items():
            file = ROOT / "conf/experiment" / f"{name}.yaml"
            if file.exists():
                text = file.read_text().replace("# @package _global_\n", "").strip()
                parts.append(f"**{row}**\n\n```yaml\n{text}\n```\n")
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
        found = records.read_kept(ROOT / "results", curves=True)
        page = report.page(found, known, ROOT / "docs/figures", ROOT / "results/not_run.yaml", [])
    except ValueError as error:
        raise PluginError(str(error)) from None
    files.append(File.generated(config, "report.html", content=page))
    return files
