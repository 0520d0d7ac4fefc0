"""The bundle for machines without a network, and what comes back from them."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch
from examples import record, save

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "scripts/bundle.py"


def bundle(*words, expected=0):
    """What the script says, on stdout or as it ends."""
    with mock.patch("sys.argv", [str(BUNDLE), *map(str, words)]), redirect_stdout(io.StringIO()) as out:
        if expected == 0:
            runpy.run_path(str(BUNDLE), run_name="__main__")
            return out.getvalue()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(BUNDLE), run_name="__main__")
    return str(end.value)


def checkpoint(folder, steps, **changes):
    """An unfinished run, so many steps far."""
    one = record(**changes) | {"status": "unfinished", "metrics": {}, "step": steps}
    (folder / one["id"]).mkdir(parents=True)
    (folder / one["id"] / "unfinished.json").write_text(json.dumps(one))
    state = dict.fromkeys(["state_dict", "optimizer_states", "loops", "curve", "seconds"], steps) | {"state_dict": {}}
    torch.save(state, folder / one["id"] / "checkpoint.ckpt")
    return one["id"]


@pytest.fixture
def there(tmp_path):
    """Runs of a machine without a network: two that have ended, one unfinished."""
    runs = tmp_path / "there"
    finished, failed = record(seed=0), record(seed=1, error=None)
    save(runs, finished, failed)
    (runs / finished["id"] / "weights.safetensors").write_bytes(b"weights")
    (runs / finished["id"] / "wandb").mkdir()
    checkpoint(runs, 40, seed=2)
    (runs / "campaign").mkdir()
    (runs / "campaign/bench.txt").write_text("fast")
    return runs


def test_what_was_computed_comes_home_and_is_merged_once(there, tmp_path):
    out, here = tmp_path / "home.tar.gz", tmp_path / "here"
    assert "5 files" in bundle("home", "--runs", there, "--out", out)
    assert bundle("merge", out, "--runs", here).startswith(f"{here}: 2 new records, 1 unfinished runs, 0 unchanged")
    assert sorted(p.name for p in here.iterdir()) == sorted(p.name for p in there.iterdir())
    for path in here.rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (there / path.relative_to(here)).read_bytes()
    assert "0 new records, 0 unfinished runs, 3 unchanged" in bundle("merge", out, "--runs", here)


def test_weights_come_home_where_they_are_asked_for(there, tmp_path):
    out = tmp_path / "home.tar.gz"
    bundle("home", "--runs", there, "--out", out, "--weights", "*-seed0-*")
    with tarfile.open(out) as tar:
        names = tar.getnames()
    assert [name for name in names if name.endswith("safetensors")] == [f"runs/{record()['id']}/weights.safetensors"]


def test_of_a_run_that_goes_on_the_further_one_stays(there, tmp_path):
    out, here = tmp_path / "home.tar.gz", tmp_path / "here"
    bundle("home", "--runs", there, "--out", out)
    name = checkpoint(here, 60, seed=2)
    bundle("merge", out, "--runs", here)
    assert torch.load(here / name / "checkpoint.ckpt", weights_only=True)["seconds"] == 60


def archive(path, **members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


GOOD = json.dumps(record()).encode()
NAME = f"runs/{record()['id']}/result.json"


@pytest.mark.parametrize(
    "members",
    [
        {"../result.json": GOOD}, {"/tmp/result.json": GOOD}, {"runs/../../result.json": GOOD},
        {"runs/a/evil.py": b"1"}, {"runs/.git/config.json": b"{}"}, {"stn/experiments/zoo.py": b"1"},
        {NAME: link(NAME, "/etc/passwd")}, {"runs/another/result.json": GOOD}, {NAME: b"{}"}, {NAME: b"\x00"},
        {NAME: GOOD, NAME.replace("result.json", "checkpoint.ckpt"): b"cposix\nsystem\n(S'touch evil'\ntR."},
        {"campaign/state.json/..": b"{}"}, {"campaign/evil.py": b"1"},
    ],
)  # fmt: skip
def test_an_archive_with_anything_else_is_refused_whole(members, tmp_path):
    here = tmp_path / "here"
    said = bundle("merge", archive(tmp_path / "x.tar.gz", **{NAME.replace("seed0", "seed9"): b""} | members), "--runs",
                  here, expected=1)  # fmt: skip
    assert re.fullmatch(r"error: .*", said.strip())
    assert "Traceback" not in said
    assert list(here.iterdir()) == []
    assert not Path("evil").exists()


def test_a_file_that_is_no_archive_is_refused_in_one_line(tmp_path):
    (tmp_path / "x").write_text("nothing")
    assert "error: " in bundle("merge", tmp_path / "x", "--runs", tmp_path / "here", expected=1)
    assert "error: " in bundle("merge", tmp_path / "none", "--runs", tmp_path / "here", expected=1)


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    assert "exists and is not a bundle" in bundle("make", "--out", tmp_path, expected=1)
    assert (tmp_path / "mine").exists()


@pytest.mark.net
@pytest.mark.slow
def test_a_bundle_is_small_and_runs_without_a_network(tmp_path):
    """In the environment at hand, whose packages are there already; docs/gpu.md says where else it was tried."""
    out, python = tmp_path / "bundle", "{}.{}".format(*sys.version_info)
    bundle("make", "--worktree", "--out", out, "--python", python)
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) <= 60_000_000
    alone = ["unshare", "-n"] if os.geteuid() == 0 else []
    subprocess.run([*alone, sys.executable, "scripts/bundle.py", "unpack"], cwd=out, check=True)
    words = "run.py experiment=mnist_st_fcn_affine schedule=smoke logger=none progress=false threads=1"
    subprocess.run([*alone, ".venv/bin/python", *words.split()], cwd=out, check=True)
    (made,) = (json.loads(path.read_text()) for path in (out / "runs").glob("*/result.json"))
    assert made["status"] == "finished"
    assert re.fullmatch("[0-9a-f]{40}", made["commit"])
