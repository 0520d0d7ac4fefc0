"""Every make target and every documented command, in its smallest form, from a fresh clone (slow)."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z0-9-]+):.*##", MAKEFILE, flags=re.MULTILINE)
VARIABLES = re.findall(r"^([A-Z]+) \?=", MAKEFILE, flags=re.MULTILINE)

TINY = "threads=1 progress=false logger=none"
# every target in its smallest form; None: not run here, for the reason given
SMALLEST: dict[str, str | None] = {
    "help": "",
    "setup": "",  # finds everything installed
    "data": "",
    "data-svhn": "",  # of REHEARSED
    "data-svhn-rendered": "",  # with the counts of FEWER
    "data-cub": "",  # of REHEARSED
    "reproduce-table1": f"SCHEDULE=smoke 'ARGS={TINY}'",
    "reproduce-table2": f"SCHEDULE=smoke 'ARGS=data=svhn_rendered {TINY} ++model.width=0.1'",
    "reproduce-table3": "SCHEDULE=smoke 'ARGS=data=synthetic_birds hydra.sweeper.params.experiment=cub_cnn_224 "
    f"{TINY} data.shrink=4 ++model.weights=random'",  # its row without a transformer: the others take minutes each
    "reproduce-table4": f"SCHEDULE=smoke 'ARGS={TINY}'",
    "reproduce-table5": f"SCHEDULE=smoke 'ARGS={TINY}'",
    "reproduce-3d": f"SCHEDULE=smoke 'ARGS={TINY} ++data.size_px=32'",
    "reproduce-uses": "SCHEDULE=smoke",
    "reproduce-pooled": f"SCHEDULE=smoke SEEDS=0,1 LAUNCHER=joblib 'ARGS={TINY}'",
    "status": "SCHEDULE=smoke",
    "dashboard": None,  # an account of W&B; what it would send is a documented command
    "records": "",
    "figures": "'ARGS=distortions --out drawn'",
    "report": "",
    "docs": "",
    "bench": "ARGS=a",
    "bundle": None,  # wheels from a network; tests/experiments/test_bundle.py makes one
    "campaign": "'ARGS=--minutes 0.1 --tables uses --seeds 1 --schedule smoke'",
    "test-gpu": "",  # each skipped with its reason where there is no GPU
    "test-unit": "",
    "test": "",  # with COLLECTED: they are what runs this file
    "test-slow": "",
    "lint": "",
}
COLLECTED = {"PYTEST_ADDOPTS": "--collect-only"}
REHEARSED = {"svhn": 500, "cub": 200}  # archives in the formats of the real ones, with one image in so many
FEWER = ('{"train": 26_000, "test": 4_000}', '{"train": 96, "test": 32}')  # rendered house numbers

# documented commands in a smaller form than that of `smaller`
SMALLER = {
    "python scripts/search.py --trials 40": f"python scripts/search.py --trials 1 schedule=smoke {TINY}",
}
# documented commands that are not run here, by how they begin
EXCUSED = {
    "ray start": "joins machines; tests/experiments/test_sweeps.py starts a cluster of two nodes",
    "wandb sweep": "an account",
    "WANDB_PROGRAM=wandb wandb sync": "an account; tests/experiments/test_wandb.py sends to a server of its own",
    "wandb leet": "a terminal; tests/experiments/test_wandb.py reads runs with its `inspect`",
    "pip install": "a network",
    "make dashboard": "an account",
    "make bundle": "wheels from a network; tests/experiments/test_bundle.py makes one",
    "python scripts/bundle.py": "what another machine packed; tests/experiments/test_bundle.py",
    "python3 scripts/bundle.py": "inside of a bundle; tests/experiments/test_bundle.py",
    ".venv/bin/python scripts/": "inside of a bundle; tests/experiments/test_bundle.py and test_campaign.py",
}
LAUNCHERS = ("hydra/launcher=ray", "hydra/launcher=slurm")  # run by tests/experiments/test_sweeps.py


def clean_environment(**more: str) -> dict[str, str]:
    """Without what a `make test` hands down to the make of a test."""
    return {key: value for key, value in os.environ.items() if key not in {*VARIABLES, "MAKEFLAGS", "MAKELEVEL"}} | more


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


DOCUMENTED = sorted({line for page in PAGES for line in commands(page)})
# docs/extend.md's commands need its files; tests/test_docs.py adds these and runs it to the letter
RUN = sorted({line for page in PAGES if page.stem != "extend" for line in commands(page) if line.startswith("python ")})


def excuse(command: str) -> str | None:
    return next((reason for begin, reason in EXCUSED.items() if command.startswith(begin)), None)


def smaller(command: str) -> list[str]:
    """The same command with few steps and one thread, of a table one row: a make target runs the whole of it."""
    words = shlex.split(SMALLER.get(command, command))
    if words[1] != "run.py":
        return words
    if "table=table1" in words:
        words.append("hydra.sweeper.params.experiment=mnist_fcn")
    words = [word for word in words if not re.match(r"schedule=|logger=|threads=", word)]
    return [*words, "schedule=smoke", *TINY.split()]


# --- their words


def test_every_target_has_a_smallest_form_and_is_phony():
    assert set(TARGETS) == set(SMALLEST)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)
    tables = re.search(r"addprefix reproduce-,(.*)\)", MAKEFILE)[1].split()
    assert set(phony.replace("$(TABLES)", "").split()) | {f"reproduce-{table}" for table in tables} == set(TARGETS)
    assert set(tables) <= {path.stem for path in (ROOT / "conf/table").glob("*.yaml")}  # run.py runs the others


def test_make_help_lists_every_target_and_variable():
    done = subprocess.run(["make", "help"], cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    first = [line.split()[0] for line in done.stdout.splitlines()]
    assert set(TARGETS) <= set(first)
    assert {word.split("=")[0] for word in first if "=" in word} == set(VARIABLES)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("reproduce-table2", ["run.py", "table=table2", "schedule=it's; $HOME \"", "seed=0, 1", "hydra/launcher=a b",
                              "x=*", "y='b", "c'", "'", "scripts/table.py", "table2", "--schedule", "it's; $HOME \""]),
        ("status", ["scripts/status.py", "`table`", "--schedule", "it's; $HOME \"", "--seeds", "0, 1"]),
        ("bench", ["scripts/prepare.py", "scripts/bench.py", "x=*", "y='b", "c'", "'"]),
        ("setup", ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt", "-e",
                   ".[ray, svhn]", "The packages are in .venv."]),
    ],
)  # fmt: skip
def test_no_value_of_a_variable_breaks_a_recipe(target, expected, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    values = ["SCHEDULE=it's; $$HOME \"", "SEEDS=0, 1", "LAUNCHER=a b", "TABLE=`table`", "EXTRAS=ray, svhn"]
    done = subprocess.run(["make", "--silent", target, *values, "ARGS=x=* y='b c' '"], cwd=tmp_path,
                          env=clean_environment(), capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("command", DOCUMENTED)
def test_every_documented_command_is_known(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert all(SMALLEST[word] is not None or excuse(command) for word in words[1:] if word in TARGETS)
        assert {word.split("=")[0] for word in words[1:]} <= {*TARGETS, *VARIABLES}
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert excuse(command), f"{command!r} is neither run nor excused"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_target_that_a_page_mentions_is_there(page):
    for mentioned in re.findall(r"`([^`\n]*\bmake [^`\n]*)`", page.read_text()):
        for command in re.findall(r"\bmake ([^;&|]*)", mentioned):
            names = [word.split("=")[0] for word in re.sub(r"\"[^\"]*\"|'[^']*'", "", command).split()]
            assert set(names) <= {*TARGETS, *VARIABLES}, mentioned


def test_every_excuse_and_every_smaller_form_is_needed():
    assert [begin for begin in EXCUSED if not any(line.startswith(begin) for line in DOCUMENTED)] == []
    assert set(SMALLER) <= set(DOCUMENTED)


@pytest.mark.parametrize("words", [[], ["b", "a"]], ids=["all", "two"])
def test_bench_runs_every_part_or_those_that_are_named(words, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    main, ran = runpy.run_path(str(ROOT / "scripts/bench.py"))["main"], []
    parts = {part: partial(ran.append, part) for part in main.__globals__["PARTS"]}
    monkeypatch.setitem(main.__globals__, "PARTS", parts)
    monkeypatch.setattr("sys.argv", ["bench.py", *words])
    main()
    assert ran == (words or list(parts))


# --- from a fresh clone


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What git has, this environment, MNIST and archives of REHEARSED, so that nothing is fetched; fewer numbers."""
    if not (ROOT / ".venv/.ready").exists():
        pytest.skip("needs the environment of `make setup`")
    folder = tmp_path_factory.mktemp("fresh") / "stn"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "data/mnist").symlink_to(ROOT / "data/mnist")
    rendered = folder / "stn/experiments/datasets/rendered.py"
    text = rendered.read_text()
    assert FEWER[0] in text
    rendered.write_text(text.replace(*FEWER))
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(folder / name, (0, 0))  # older than the environment, so that make leaves it alone
    for name, size in (("digit.jpg", (28, 28)), ("another.png", (40, 30))):
        image = Image.new("L", size)
        image.paste(255, (12, 4, 16, 24))
        image.save(folder / name)
    for name, one_in in REHEARSED.items():
        rehearse = [".venv/bin/python", "scripts/rehearse.py", name, "--root", "data", "--one-in", str(one_in)]
        subprocess.run(rehearse, cwd=folder, env=clean_environment(PYTHONPATH=str(folder)), check=True)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--all"]
    subprocess.run([*git, "--message", "fewer numbers"], cwd=folder, check=True)
    return folder


def check(clone: Path, command: list[str], **more: str) -> None:
    """It ends well and changes no tracked file."""
    env = clean_environment(PYTHONPATH=str(clone), WANDB_MODE="offline", **more)
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    assert "Traceback" not in said
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(status, cwd=clone, check=True, capture_output=True, text=True).stdout
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=clone, check=True)  # the next one begins clean
    assert changed == "", said


@pytest.mark.slow
@pytest.mark.parametrize("target", [target for target in TARGETS if SMALLEST.get(target) is not None])
def test_a_target_runs_from_a_fresh_clone(target, clone):
    more = COLLECTED if target in ("test", "test-slow") else {}
    check(clone, ["make", target, *shlex.split(SMALLEST[target])], **more)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_a_documented_command_runs_from_a_fresh_clone(command, clone):
    if any(launcher in command for launcher in LAUNCHERS):
        pytest.skip("needs a cluster; tests/experiments/test_sweeps.py runs one")
    if reason := excuse(command):
        pytest.skip(reason)
    words = smaller(command)
    check(clone, [".venv/bin/python", *words[1:]])
