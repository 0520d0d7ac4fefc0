"""What the README says holds: its code runs, its tables are the records', its links lead somewhere."""

import re

import pytest
import torch

from stn.experiments.command import ROOT
from stn.experiments.results import against, pages, records, tables

README = (ROOT / "README.md").read_text()
FIGURE = r"<!-- = .*? -->.*?<!-- / -->"


def test_the_code_of_the_readme_classifies_digits():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["network"](torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("file", sorted((ROOT / "conf/table").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_tables_are_those_of_the_committed_records(file):
    assert pages.into_page(README, tables.load(file), records.read_kept(ROOT / "results")) == README


def test_the_chart_is_that_of_the_committed_records():
    table = tables.load(ROOT / "conf/table/table1.yaml")
    drawn = against.by_column(table, records.read_kept(ROOT / "results"))
    assert (ROOT / "docs/figures/results.svg").read_text() == drawn, "make records draws it"


def test_the_readme_shows_one_block_of_table_1():
    assert README.count("<!-- table1 -->\n\nSchedule `") == 1
    assert README.count("\n| FCN | ") == 1


def test_no_figure_among_the_results_is_typed():
    results = README.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    rows = [line.split(" | ") for line in results.splitlines() if line.startswith("| **")]
    assert len(rows) == 6
    for _, paper, ours, schedule in rows:
        typed = re.sub(FIGURE, "", f"{paper} {ours} {schedule}")
        assert re.findall(r"\d+", typed) in ([], ["75", "93"])  # of Table 5 on TC, which the paper gives as a range
        assert len(re.findall(FIGURE, ours)) >= 2
        assert re.search(FIGURE, schedule)


@pytest.mark.parametrize(("table", "words"), [("table2", "not on SVHN"), ("table3", "not on CUB-200-2011")])
def test_synthetic_data_are_called_so_and_not_compared(table, words):
    (row,) = re.findall(rf"^\| \*\*\[[^\]]*\]\(results/{table}\.md\).*$", README, flags=re.MULTILINE)
    what, paper, *_ = row.split(" | ")
    assert "synthetic" in what
    assert f"**{words}**" in what
    assert "no comparison" in paper


def test_every_distortion_is_spelt_out():
    for words in ("R, rotation", "RTS, rotation, translation and scale", "P, projective", "E, elastic",
                  "TC, translation and"):  # fmt: skip
        assert words in README


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert any(link.endswith(".png") for link in links)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", README, flags=re.MULTILINE))
    assert {"reproduce-table1", "test"} <= named
    assert named <= targets
