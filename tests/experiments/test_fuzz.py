"""Bad input of every kind, drawn from a seed: one line each, never a traceback, and no tracked file changes."""

import copy
import gzip
import io
import json
import random
import runpy
import subprocess
import sys
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from composing import compose
from PIL import Image
from test_zoo import record, write

from stn.experiments import preflight, zoo
from stn.experiments.command import ROOT
from stn.experiments.datasets import digitstruct, photos, svhn
from stn.experiments.results import pages, records, tables
from stn.experiments.training.job import plan

pytestmark = pytest.mark.usefixtures("tracked_files")
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed else []) for seed in range(30)]
JUNK = [None, True, -1, 0, 1.5, 1e-9, 10**9, 10**17, 10**400, float("nan"), float("inf"), "", "x", "../../x", "a\nb",
        "\0", "???", "nan", [], [1], [[]], {}, {"name": 5}, {"_target_": "os.system"}]  # fmt: skip
NESTED = json.loads("[" * 300 + "]" * 300)


@pytest.fixture(scope="module")
def tracked_files():
    """Fails where a file that git knows was changed."""

    def state():
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
        paths = [ROOT / name for name in names if name.startswith(("conf/", "data/", "results/"))]
        return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}

    before = state()
    yield
    assert state() == before


def mutated(rng, value):
    """A copy of nested mappings and lists with one to three entries replaced or deleted, and what was done."""
    value, done = copy.deepcopy(value), []
    for _ in range(rng.randint(1, 3)):
        node, path = value, []
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = rng.choice(keys)
            path.append(key)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            if rng.random() < 0.1:
                del node[key]
            else:
                node[key] = NESTED if rng.random() < 0.05 else rng.choice(JUNK)
            done.append((path, node.get(key, "deleted") if isinstance(node, dict) else "an entry"))
            break
    return value, done


def broken(rng, data):
    """Bytes with a few of them changed, cut off, doubled or replaced."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(4)
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.choice((1, 10, 10_000))]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
        else:
            data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
    return bytes(data)


def one_line(call, done):
    """What a call returns, or None where it says why it does not; anything else fails, with what was done."""
    try:
        return call()
    except (ValueError, OSError) as error:
        if 0 < len(str(error)) < 3000:
            return None
        raise
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} after {done!r:.500}: {error}") from error


EXPERIMENTS = ("mnist_st_cnn_tps", "addition_2xst_fcn_affine", "svhn_multi", "coloc_tc", "voxel_st_cnn",
               "mnist_st_fcn_recurrent_2")  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mutated_config_is_planned_or_refused_in_one_line_and_leaves_nothing(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    for experiment in EXPERIMENTS:
        config, _ = compose(f"experiment={experiment}", f"runs_dir={tmp_path}/runs")
        for _ in range(5):
            changed, done = mutated(rng, config)
            if (job := one_line(lambda c=changed: plan(c, []), done)) is not None:
                assert job.folder.parent == type(job.folder)(job.config["runs_dir"]), done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mutated_record_is_read_or_costs_its_own_line(seed, tmp_path):
    rng = random.Random(seed)
    torch.manual_seed(0)
    good = record("good")
    write(tmp_path, good)
    write(tmp_path, record("odd"))
    table = tables.load(ROOT / "conf/table/table1.yaml")
    for _ in range(20):
        changed, done = mutated(rng, record("odd"))
        (tmp_path / "odd/result.json").write_text(json.dumps(changed))
        damaged = []
        found = one_line(lambda d=damaged: records.read_runs(tmp_path, d), done)
        assert len(damaged) + len(found) in (1, 2), done
        assert "good" in {one["id"] for one in found}
        one_line(lambda f=found: pages.markdown(table, f), done)
        if not damaged:
            one_line(lambda c=changed: zoo.load(c["id"], ROOT, tmp_path), done)


def pictures():
    """One image in the bytes of many formats."""
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICNS", "ICO", "PPM", "TGA"):
        file = io.BytesIO()
        Image.fromarray(array).save(file, kind)
        yield kind, file.getvalue()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it repairs
def test_a_broken_image_is_decoded_or_refused_in_one_line(seed):
    rng = random.Random(seed)
    for kind, data in pictures():
        for _ in range(8):
            one_line(partial(photos.decode, broken(rng, data)), kind)


def archive(files):
    """A .tar.gz of these files in a folder train/."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"train/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_a_broken_archive_is_prepared_or_refused_in_one_line(seed, tmp_path):
    rng = random.Random(seed)
    numbers = [digitstruct.Number(f"{i}.png", np.array([[2.0, 3, 10, 12, 1 + i]])) for i in range(6)]
    digitstruct.write(tmp_path / "mat", numbers)
    png = dict(pictures())["PNG"]
    files = {f"{i}.png": png for i in range(6)} | {"digitStruct.mat": (tmp_path / "mat").read_bytes()}
    for turn in range(12):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if rng.random() < 0.5:
            data = broken(rng, archive(files))
        else:
            name = rng.choice(list(files))
            data = archive(files | {name: broken(rng, files[name])})
        (folder / "train.tar.gz").write_bytes(data if rng.random() < 0.9 else gzip.compress(data))
        one_line(lambda f=folder: svhn.prepare(f, 16, {"train": None}), turn)
        assert not list(folder.glob("*px")) or (folder / "16px/index.json").is_file()


CHARACTERS = "ab=,[]{}()'\"\\$:.~+-/ \t数*"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bad_command_line_ends_with_one_line_and_not_with_0(seed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    program = runpy.run_path(str(ROOT / "run.py"))
    for _ in range(60):
        word = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, 12)))
        said = ""
        try:
            preflight.check(["experiment=mnist_fcn", rng.choice(("seed=", "experiment=", "--", "")) + word])
        except program["EXPECTED"] as error:
            said = program["what_is_wrong"](error)
        assert "\n" not in said, word


BAD = [
    "seed",
    "budget",
    "schedule.steps",
    "schedule.batch_size",
    "optimizer.lr",
    "threads",
    "data.distortion.canvas_px",
    "progress",
    "devices",
    "data.distortion.scale",
    "model.transform",
    "experiment_name",
    "schedule.lr_scheduler",
    "device",
    "data.test_split",
    "schedule.bound",
]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_program_refuses_bad_values_with_an_exit_status(seed, monkeypatch, tmp_path, capsys):
    rng = random.Random(seed)
    for override in rng.sample(BAD, 2):
        word = f"{override}={rng.choice(('-7', 'nan', '[]', '{a:1}', '../x'))}"
        monkeypatch.setattr(
            sys, "argv", ["run.py", "experiment=mnist_fcn", "schedule=smoke", word, f"runs_dir={tmp_path}/runs"]
        )
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        assert isinstance(stop.value.code, str), word  # which Python prints, for an exit status of 1
        assert stop.value.code.startswith("error: "), word
        assert "\n" not in stop.value.code, word
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
