"""Hooks of `mkdocs build` for generated content: lists from conf/ and docs/figures, the tables, and the report."""

import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import stn
from stn.experiments.command import ROOT
from stn.experiments.results import pages, records, report, tables

MEASURE = "results/table4_specialisation.json"  # a page links to it
FILES = sorted((ROOT / "conf/table").glob("*.yaml"), key=lambda path: (not path.stem.startswith("table"), path.stem))
TABLES = [tables.load(path) for path in FILES]  # the paper's numbered ones first


def results() -> str:
    """The README's table of results."""
    return (ROOT / "README.md").read_text().split("<!-- results -->")[1].split("<!-- /results -->")[0]


def schedules() -> str:
    """Every file of conf/schedule."""
    return "\n".join(f"**{path.stem}**\n\n{_file(path)}" for path in sorted((ROOT / "conf/schedule").glob("*.yaml")))


def _file(path: Path) -> str:
    return f"```yaml\n{path.read_text().replace('# @package _global_', '').strip()}\n```\n"


def experiments() -> str:
    """Every table with its command, and each of its rows with its file."""
    parts = []
    for table in TABLES:
        parts.append(f"### {table.title}\n\n```bash\npython run.py table={table.name}\n```\n")
        for name, row in table.rows.items():
            file = ROOT / "conf/experiment" / f"{name}.yaml"
            if file.exists():
                parts.append(f"**{row}**\n\n{_file(file)}")
    return "\n".join(parts)


def figures() -> str:
    """Every picture of docs/figures with its caption."""
    found = report.pictures(ROOT / "docs/figures")
    return "\n\n".join(f"![{p['caption']}](figures/{p['file']})\n\n{p['caption']}" for p in found if not p["film"])


def fenced(docstring: str | None) -> str:
    """A docstring as Markdown, with its examples as code."""
    text = inspect.cleandoc(docstring or "")
    return re.sub(r"^>>>.*?(?=^$|\Z)", lambda m: f"```pycon\n{m.group().rstrip()}\n```\n", text, flags=re.M | re.S)


def signature(value: Any) -> str:
    """How to call it, with the types by their last names."""
    return re.sub(r"\b(?:[a-z]+\.)+(?=[A-Z])", "", str(inspect.signature(value)))


def api() -> str:
    """Every public name of the library with its signature and docstring; a class also with its public methods."""
    parts = []
    for name in stn.__all__:
        value = getattr(stn, name)
        plain = isinstance(value, type) and "__init__" not in vars(value)  # nn.Module's __init__ takes anything
        protocol = getattr(value, "_is_protocol", False)
        call = name + ("" if protocol else "()" if plain else signature(value))
        parts.append(f"## {name}\n\n```python\n{call}\n```\n\n{fenced(value.__doc__)}\n")
        for each in (each for each in vars(value) if isinstance(value, type) and not each.startswith("_")):
            method = getattr(value, each)
            if callable(method) and method.__doc__ and each != "forward":
                call = f"{name}.{each}{signature(method)}"
                parts.append(f"### {name}.{each}\n\n```python\n{call}\n```\n\n{fenced(method.__doc__)}\n")
    return "\n".join(parts)


MADE = {each.__name__: each for each in (results, schedules, experiments, figures, api)}  # by their marker in a page


def on_page_markdown(markdown: str, **_: Any) -> str:
    for name, content in MADE.items():
        if (mark := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(mark, content())
    markdown = re.sub(r"\]\(docs/", "](", markdown)  # links of the README
    return re.sub(r"\]\(\.\./results/", "](results/", markdown)  # the site has these pages, too


def on_files(files: Files, config: Any) -> Files:
    try:
        found = records.read_kept(ROOT / "results", curves=True)
        page = report.page(found, TABLES, ROOT / "docs/figures", ROOT / "results/not_run.yaml", [])
    except ValueError as error:
        raise PluginError(str(error)) from None
    files.append(File.generated(config, "report.html", content=page))
    for table in TABLES:
        text = f"# {table.title}\n\nMade from the records, one block per schedule.\n\n{pages.markdown(table, found)}\n"
        files.append(File.generated(config, f"results/{table.name}.md", content=text))
    for each in (MEASURE, "results/speed.md"):
        files.append(File.generated(config, each, content=(ROOT / each).read_text()))
    return files
