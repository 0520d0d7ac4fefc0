"""Make docs/tutorial.ipynb from the prose and the Python of docs/tutorial.md.

python scripts/notebook.py

The first cells open it in Colab and fetch the project there, from the `repository-code` of CITATION.cff.
"""

import json
import re
from typing import Any

from stn.experiments.command import ROOT, Options, run
from stn.experiments.results.records import replace
from stn.experiments.yaml_files import read_yaml

SETUP = """import importlib.util
import os
import subprocess
import sys

REPOSITORY = "{address}"  # where this project is, for a machine that does not have it
if importlib.util.find_spec("stn") is None:
    if REPOSITORY == "ADDRESS":
        sys.exit("error: set REPOSITORY to the address of this project, or run the notebook where it is installed")
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "stn-project"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "./stn-project[experiments]"], check=True)
    sys.path.insert(0, os.path.abspath("stn-project"))

from stn.experiments.command import ROOT

os.chdir(ROOT)  # where data/ is"""
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def cells(markdown: str, address: str) -> list[dict]:
    """The cells of a notebook: badge, set-up, then the page; code other than Python stays prose."""
    github = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    link = "https://colab.research.google.com/"  # where "Upload" opens the file
    if github:
        link += f"github/{github[1]}/blob/main/docs/tutorial.ipynb"
    parts = [BADGE.format(link=link), SETUP.format(address=address)]
    parts += re.split(r"^```python\n(.*?)^```\n", markdown, flags=re.DOTALL | re.MULTILINE)  # prose and code in turn
    made = []
    for i, part in enumerate(parts):
        if part.strip():
            kind: dict[str, Any] = (
                {"cell_type": "code", "execution_count": None, "outputs": []} if i % 2 else {"cell_type": "markdown"}
            )
            made.append(kind | {"id": f"cell-{i}", "metadata": {}, "source": part.strip().splitlines(keepends=True)})
    return made


def notebook() -> str:
    """The notebook of the tutorial as JSON."""
    address = read_yaml(ROOT / "CITATION.cff").get("repository-code", "ADDRESS")
    markdown = (ROOT / "docs/tutorial.md").read_text()
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole = {"cells": cells(markdown, address), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    Options(__doc__).parse_args()
    replace(ROOT / "docs/tutorial.ipynb", notebook())


if __name__ == "__main__":
    run(main)
