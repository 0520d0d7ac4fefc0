"""The documentation: its code runs, run.py takes its commands, and what it shows how to add can be added."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from itertools import product

import hydra
import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from stn.experiments.command import ROOT
from stn.experiments.results import checks, records

pytestmark = pytest.mark.usefixtures("one_thread")
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)


def blocks(page):
    """(language, title, text) of every code block, in order."""
    for indent, language, title, text in BLOCK.findall(page.read_text()):
        yield language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def commands(page, begins):
    lines = [
        line.split("#")[0].strip()
        for language, _, text in blocks(page)
        if language == "bash"
        for line in text.splitlines()
    ]
    return [line for line in lines if line.startswith(begins)]


RUNNABLE = [ROOT / f"docs/{name}.md" for name in ("own-images", "records", "troubleshooting", "uses")]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for language, _, text in blocks(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)


def test_the_network_of_the_tutorial_learns(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = "\n".join(text for language, _, text in blocks(ROOT / "docs/tutorial.md") if language == "python")
    exec(compile(code, "tutorial.md", "exec"), {})
    without, with_one = map(float, re.search(r"without: ([\d.]+) with: ([\d.]+)", capsys.readouterr().out).groups())
    assert without < 1.2  # 2.3 by guessing
    assert with_one < 1.2


FIXED = [ROOT / "README.md", *(page for page in PAGES if page.stem != "extend")]  # that one adds what its commands name


@pytest.mark.parametrize("command", sorted({c for page in FIXED for c in commands(page, "python run.py")}))
def test_run_py_takes_every_command_of_the_pages(command):
    for launcher, plugin in (("ray_", "hydra_ray_launcher"), ("slurm", "hydra_submitit_launcher")):
        if f"hydra/launcher={launcher}" in command:  # an extra
            pytest.importorskip(f"hydra_plugins.{plugin}")
    program = runpy.run_path(str(ROOT / "run.py"))
    parsed = OverridesParser.create().parse_overrides(shlex.split(command)[2:])
    words = [f"{o.key_or_group}={next(o.sweep_string_iterator())}" if o.is_sweep_override() else o.input_line
             for o in parsed]  # fmt: skip
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("config", words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    sweep = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in (cfg.hydra.sweeper.params or {}).items()])
    assert cfg.experiment_name or any(override.key_or_group == "experiment" for override in sweep)
    choices = cfg.hydra.runtime.choices
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    program["check_keys"](cfg, choices)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_and_make_target_of_a_page_is_there(page):
    text = page.read_text()
    targets = set(re.findall(r"[\w-]+(?=[^=\n]*:)", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"`make ([\w-]+)|^make ([\w-]+)", text, flags=re.MULTILINE)) <= {
        pair for t in targets for pair in ((t, ""), ("", t))
    }
    named = re.findall(r"(?:scripts|tests|conf|docs|results|stn|sweeps)/[\w./]+\.(?:py|yaml|jsonl?|md)\b", text)
    added = {title for _, title, _ in blocks(page)} | {"results/report.html", "results/shear.md"}
    assert [path for path in named if path not in added and not (ROOT / path).exists()] == []


def test_the_menu_has_every_page_and_links_lead_somewhere():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {page for entry in menu for page in entry.values()}
    assert {page.name for page in PAGES} - {
        "3d.md",
        "uses.md",
    } <= listed  # the experiments' pages are linked from README
    prose = [re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL) for page in PAGES]
    links = {link for text in prose for link in re.findall(r"\]\((?!http)([^)#]+)", text)}
    assert [link for link in links if link != "report.html" and not (ROOT / "docs" / link).exists()] == []


def test_forms_and_citation_are_complete():
    for file in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")):
        form = yaml.safe_load(file.read_text())
        if file.stem != "config":
            assert {"name", "description", "body"} <= form.keys()
            ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
            assert len(set(ids)) == len(ids) > 0
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= citation.keys()
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_differences_are_numbered_without_a_gap():
    text = (ROOT / "docs/differences.md").read_text()
    numbers = [int(n) for n in re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    for file in (ROOT / "conf/experiment").glob("*.yaml"):
        for cited in re.findall(r"Differences ([\d, -]+)$", file.read_text(), flags=re.MULTILINE):
            assert {int(n) for n in re.findall(r"\d+", cited)} <= set(numbers), file.stem


def test_the_page_on_records_names_every_key_of_a_record():
    text = (ROOT / "docs/records.md").read_text()
    table = {
        key for line in re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE) for key in re.findall(r"`(\w+)`", line)
    }
    assert checks.REQUIRED.keys() | checks.OPTIONAL.keys() == table


ALL_IN_ONE_PROCESS = """
import runpy, shlex, sys
for command in sys.stdin.read().splitlines():
    sys.argv = shlex.split(command)[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""  # PyTorch is loaded once


def test_the_page_on_additions_works_to_the_letter(tmp_path):
    page = ROOT / "docs/extend.md"
    for part in ("conf", "stn", "scripts"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "run.py", tmp_path)
    (tmp_path / "data").mkdir()
    for part in ("manifest.yaml", "mnist"):
        (tmp_path / "data" / part).symlink_to(ROOT / "data" / part)
    for half, name in product(("train", "test"), ("ash", "oak")):
        folder = tmp_path / "data/leaves" / half / name
        folder.mkdir(parents=True)
        Image.effect_noise((50, 40), 30).convert("RGB").save(folder / "1.jpg")
    for _, title, text in blocks(page):
        if title:
            file = tmp_path / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text((file.read_text() if file.exists() else "") + text)
    done = subprocess.run(
        [sys.executable, "-c", ALL_IN_ONE_PROCESS], cwd=tmp_path, text=True, capture_output=True, timeout=240,
        input="\n".join(commands(page, "python ")), env=os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    runs = records.read_runs(tmp_path / "runs", smoke=True)
    assert len(runs) == 8  # the table's sweep finds two of its four runs finished
    assert re.search(r"ST-Halved(\s+│\s+\d+\.\d\d){2}", done.stdout)
    assert not (tmp_path / "results").exists()  # a smoke run leaves nothing there
    tests = [str(tmp_path / title) for _, title, _ in blocks(page) if title.startswith("tests/")]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
