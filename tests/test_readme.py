"""What the README says holds: its code runs, its tables are the records', its pictures and targets are there."""

import re

import pytest
import torch

from stn.experiments.command import ROOT
from stn.experiments.results import records, tables

README = (ROOT / "README.md").read_text()


def test_the_code_of_the_readme_classifies_digits():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["network"](torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("file", sorted((ROOT / "conf/table").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_tables_are_those_of_the_committed_records(file, tmp_path):
    table, found = tables.load(file), records.read_kept(ROOT / "results")
    assert tables.into_page(README, table, found) == README
    if any((ROOT / "runs").glob("*/result.json")):
        pytest.skip(f"results/{table.name}.md counts the runs of this folder as well")
    tables.write(tmp_path, table, found)
    for name in (f"{table.name}.md", f"{table.name}.csv"):
        assert (ROOT / "results" / name).read_text() == (tmp_path / name).read_text()


def test_every_picture_is_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert [path for path in pictures if not (ROOT / path).is_file()] == []


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^)make ([a-z0-9-]+)", README, flags=re.MULTILINE)
    assert named
    assert set(named) <= targets
