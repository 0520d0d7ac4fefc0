"""docs/tutorial.ipynb is what scripts/notebook.py makes of docs/tutorial.md, and it runs from top to bottom."""

import json
import re
import runpy

import pytest

from stn.experiments.command import ROOT

NOTEBOOK = ROOT / "docs/tutorial.ipynb"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts/notebook.py"))


def code(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_made_from_the_tutorial(script):
    assert NOTEBOOK.read_text() == script["notebook"](), "run `python scripts/notebook.py`"
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), flags=re.DOTALL)
    assert [block.strip() for block in blocks] == code(json.loads(NOTEBOOK.read_text())["cells"])[1:]


def test_the_badge_leads_to_the_notebook_of_a_public_repository(script):
    first = script["cells"]("text\n", "https://github.com/someone/something")[0]["source"][0]
    assert first.endswith("(https://colab.research.google.com/github/someone/something/blob/main/docs/tutorial.ipynb)")
    assert script["cells"]("text\n", "ADDRESS")[0]["source"][0].endswith("(https://colab.research.google.com/)")


def test_code_that_is_no_python_stays_prose(script):
    made = script["cells"]("One\n\n```python\nx = 1\n```\n\n```bash\nls\n```\n", "ADDRESS")
    assert [cell["cell_type"] for cell in made] == ["markdown", "code", "markdown", "code", "markdown"]
    assert made[-1]["source"] == ["```bash\n", "ls\n", "```"]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "docs")  # where Jupyter starts it
    names = {}
    for i, source in enumerate(code(json.loads(NOTEBOOK.read_text())["cells"])):
        exec(compile(source, f"cell {i}", "exec"), names)
    without, with_one = map(float, re.search(r"without: ([\d.]+) with: ([\d.]+)", capsys.readouterr().out).groups())
    assert with_one < without / 2
