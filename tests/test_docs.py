"""The documentation: its code runs, run.py takes its commands, and what it shows how to add can be added."""

import json
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
from stn.experiments.results import checks, prose, records, tables

PAGES = sorted((ROOT / "docs").glob("*.md"))
OURS = {"3d", "cluster", "experiments", "gpu", "speed"}  # whose commands stand in blocks of their own
KEPT = records.read_kept(ROOT / "results")
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


@pytest.mark.slow
def test_the_network_of_the_tutorial_learns(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = "\n".join(text for language, _, text in blocks(ROOT / "docs/tutorial.md") if language == "python")
    exec(compile(code, "tutorial.md", "exec"), {})
    without, with_one = map(float, re.search(r"without: ([\d.]+) with: ([\d.]+)", capsys.readouterr().out).groups())
    assert with_one < without / 2


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
    listed = set(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {page.name for page in PAGES} <= listed
    assert all((ROOT / page).exists() for page in listed if page.startswith("results/"))
    texts = [re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL) for page in PAGES]
    links = {link for text in texts for link in re.findall(r"\]\((?!http)([^)#]+)", text)}
    assert [link for link in links if link != "report.html" and not (ROOT / "docs" / link).exists()] == []


def leaves(menu):
    """The pages of a menu, whatever it is nested in."""
    for entry in menu:
        for page in entry.values():
            yield from leaves(page) if isinstance(page, list) else [page]


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in OURS], ids=lambda page: page.stem)
def test_what_the_copy_button_copies_is_a_command(page):
    lines = [line for language, _, text in blocks(page) if language == "bash" for line in text.splitlines()]
    assert [line for line in lines if "#" in line or not line.strip()] == []


# --- findings


def error(table, row, column, schedule):
    known = [tables.load(ROOT / f"conf/table/{table}.yaml")]
    ((cell, _),) = prose.find(f"{table}/{row}/{column}/{schedule}", known, KEPT)
    return cell.mean


def test_each_further_transformer_lowers_the_error_of_table_4():
    for transform in ("affine", "projective", "tps"):
        rows = ("addition_fcn", f"addition_st_fcn_{transform}", f"addition_2xst_fcn_{transform}")
        none, one, two = (error("table4", row, "rts", "onecycle") for row in rows)
        assert none > one > two


def test_the_pool_of_tc_costs_more_than_the_transformer_wins_back():
    whole, pooled = (error("pooled", f"mnist_cnn{end}", "tc", "fast_sgd") for end in ("", "_pooled"))
    for transform in ("affine", "projective", "tps"):
        assert whole < error("pooled", f"mnist_st_cnn_{transform}", "tc", "fast_sgd") < pooled


def test_the_wider_field_of_table_2_costs_the_cnn_most():
    cnn, single, multi = (
        error("table2", f"svhn_{name}", "128", "svhn_small") - error("table2", f"svhn_{name}", "64", "svhn_small")
        for name in ("cnn", "single", "multi")
    )
    assert cnn > max(single, multi)


def test_learnt_windows_of_table_3_follow_the_head_and_win_by_it():
    rows = [f"cub_2st_448{end}" for end in ("_fixed", "_random", "", "_parts")]
    fixed, random, learnt, parts = (error("table3", row, "synthetic_birds", "cub_small") for row in rows)
    assert max(fixed, random) < 0.7 * learnt
    assert learnt < parts
    least = [
        min(value for name, value in record["metrics"].items() if "head_correlation" in name)
        for record in KEPT
        if record["experiment"] == "cub_2st_448"
    ]
    assert [each > 0.7 for each in least].count(True) == 2
    assert len(least) == 3


def test_each_of_two_transformers_takes_one_channel():
    shares = []
    for network in json.loads((ROOT / "results/table4_specialisation.json").read_text()):
        of = {(each["transformer"], each["channel"]): each["share_pose"] for each in network["carried"]}
        first = max((1, 2), key=lambda channel: of[1, channel])
        shares += [of[1, first], of[2, 3 - first]]
    assert len(shares) == 14  # two of each of seven networks
    text = " ".join((ROOT / "docs/findings.md").read_text().split())
    assert text.count(f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of") == 2


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
from pathlib import Path
for command in sys.stdin.read().splitlines():
    sys.argv = shlex.split(command)[1:]
    script = Path(sys.argv[0]).resolve()
    sys.path.insert(0, str(script.parent))  # as Python does
    runpy.run_path(str(script), run_name="__main__")
"""  # PyTorch is loaded once


def test_the_page_on_additions_works_to_the_letter(tmp_path):
    page = ROOT / "docs/extend.md"
    for part in ("conf", "stn", "scripts", "tests"):
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
            before = file.read_text() if file.exists() else ""
            if text not in before:  # somebody may have followed the page here
                head, main, rest = before.partition('\n\nif __name__ == "__main__":')
                file.write_text(f"{head}{text}{main}{rest}")
    done = subprocess.run(
        [sys.executable, "-c", ALL_IN_ONE_PROCESS], cwd=tmp_path, text=True, capture_output=True, timeout=550,
        input="\n".join(commands(page, "python ")), env=os.environ | {"WANDB_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    runs = records.read_runs(tmp_path / "runs", smoke=True)
    assert len(runs) == 10  # the table's sweep finds two of its four runs finished
    assert re.search(r"ST-Halved(\s+│\s+\d+\.\d\d ± [\d.]+ \(1\)){2}", done.stdout)
    assert not (tmp_path / "results").exists()  # a smoke run leaves nothing there
    assert (tmp_path / "docs/figures/sheared.png").exists()
    assert "mnist_halved" in json.loads((tmp_path / "tests/experiments/pinned_losses.json").read_text())
    tests = [str(tmp_path / title) for _, title, _ in blocks(page) if title.startswith("tests/")]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "leaves or [s]"]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, timeout=550)
    assert done.returncode == 0, done.stdout[-2000:]
