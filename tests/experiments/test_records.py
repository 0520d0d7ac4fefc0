"""Records on disk: one file a run, and the lines that git keeps."""

import copy
import json
import os
import random

import pytest
from examples import TABLE, record, save

from stn.experiments import identity
from stn.experiments.command import ROOT
from stn.experiments.results import cards, pages, records, report
from stn.experiments.training import job
from stn.experiments.yaml_files import read_yaml

CURVE = [{"step": 10 * i, "train/loss": 2 / i, "lr": 0.1} for i in range(1, 251)]


# --- one file


def test_a_record_is_read_as_it_was_written(tmp_path):
    records.write(tmp_path / "result.json", record())
    assert records.read(tmp_path / "result.json") == record()
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_an_error_on_validation_digits_is_not_called_a_test_error():
    one = record(error=1.5)
    assert job.summary(one) == "finished, test/error 1.50 %"
    one["config"]["data"]["test_split"] = "valid"
    assert job.summary(one) == "finished, valid/error 1.50 %"
    assert report.every_run([one])[0][3] == "valid/error 1.50"


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    records.write(path, record())

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        records.write(path, record(error=3.0))
    assert records.read(path) == record()
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_record_in_which_a_digit_was_changed_is_refused(tmp_path):
    path = tmp_path / "result.json"
    records.write(path, record(error=91.20))
    path.write_text(path.read_text().replace("91.2", "1.2"))
    with pytest.raises(ValueError, match=rf"^the record {path} is damaged \(it was changed after the run\): delete it"):
        records.read(path)


def test_a_symbolic_link_is_replaced_and_not_written_through(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    for link in ("config.json", ".config.json.tmp"):
        (tmp_path / link).symlink_to(other)
    assert records.replace(tmp_path / "config.json", "new")
    assert (other.read_text(), (tmp_path / "config.json").read_text()) == ("mine", "new")
    assert not (tmp_path / "config.json").is_symlink()


def test_a_file_that_says_the_same_is_not_written_again(tmp_path):
    path = tmp_path / "page.md"
    assert records.replace(path, "one\n")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert not records.replace(path, "one\n")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert records.replace(path, "two\n")


def without(key):
    return {name: value for name, value in record().items() if name != key}


BAD = {
    "truncated": (json.dumps(record())[:200].encode(), "is damaged"),
    "empty": (b"", "is damaged"),
    "no text": (b"\xff\xfe\x00", "is damaged"),
    "too deep": (b"[" * 100_000, "is damaged"),
    "no object": (b"[]", "has version 'list'"),
    "of version 1": (json.dumps(record() | {"version": 1}).encode(), "has version 1, this code reads version 2"),
    "without version": (json.dumps(without("version")).encode(), "has version None"),
    "without metrics": (json.dumps(without("metrics")).encode(), "lacks metrics"),
    "failed for no reason": (json.dumps(record() | {"status": "failed"}).encode(), "lacks failure"),
}
WRONG = {
    "id": ["../x", "", 3, "a\nb"],
    "seed": ["0", -1, True, 0.5],
    "status": ["running", [], None],
    "metrics": [[], {"test/error": "2.0"}, {"test/error": None}, {"test/error": float("nan")}],
    "params": [None, 1.5, 10**400],
    "steps": [0, "many"],
    "seconds": [-1.0, "long", float("inf")],
    "budget": ["", -1],
    "smoke": ["false", 0],
    "in_shape": ["1", [0, 28, 28], [True]],
    "classes": [0, "ten"],
    "config": [{}, [], {"data": 1}, record()["config"] | {"data": {"name": "mnist", "distortion": "rts"}}],
    "revisions": [{"data": "1"}],
    "overrides": ["experiment=x", [3]],
    "versions": [{"torch": 2}],
    "dirty": ["no"],
    "data_sha256": [None, {"train": 1}],
    "curve": [{}, [1], [{"train/loss": 1.0}], [{"step": 1, "train/loss": "low"}]],
}
for wrong_key, values in WRONG.items():
    for number, value in enumerate(values):
        BAD[f"{wrong_key} {number}"] = (json.dumps(record() | {wrong_key: value}).encode(), f"has {wrong_key}=")


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_what_is_no_record_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^the record {path} {message}[^\n]*: delete it to run again$"):
        records.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38, -4e27])
def test_the_curve_of_a_failed_run_may_hold_whatever_a_network_computes(value, tmp_path):
    failed = record(error=None, curve=[{"step": 1, "train/loss": value}])
    records.write(tmp_path / "result.json", failed)
    assert records.read(tmp_path / "result.json")["status"] == "failed"


def tampered(draw):
    """A record in which one value, anywhere, is of another kind."""
    changed = copy.deepcopy(record(curve=CURVE[:3]))
    node = changed
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not (isinstance(node[key], dict | list) and node[key] and draw.random() < 0.7):
            node[key] = draw.choice([None, True, 0, -1, 1e300, "text", [], {}, [[]], {"_target_": "os.system"}])
            return changed
        node = node[key]


def test_a_record_that_was_tampered_with_gives_no_traceback(tmp_path):
    draw = random.Random(0)
    path, messages = tmp_path / "result.json", []
    for _ in range(400):
        path.write_text(json.dumps(tampered(draw)))
        try:
            accepted = records.read(path)
        except ValueError as error:
            messages.append(str(error))
            continue
        pages.markdown(TABLE, [accepted])
        cards.page([accepted], [TABLE])
        try:
            report.page([accepted], [TABLE], tmp_path / "none", tmp_path / "none.yaml", [])
        except ValueError as error:
            assert str(error).startswith("there is no record to report")  # noqa: PT017
    assert 200 < len(messages) < 400
    assert all(len(message.splitlines()) == 1 for message in messages)


# --- below runs/


def test_every_run_that_ended_is_read_once_and_smoke_runs_apart(tmp_path):
    save(tmp_path, record(), record(seed=1, error=None), record(seed=2, smoke=True))
    save(tmp_path / "older", record(error=9.0))
    assert [(r["seed"], r["status"]) for r in records.read_runs(tmp_path)] == [(0, "finished"), (1, "failed")]
    assert [r["seed"] for r in records.read_runs(tmp_path, smoke=True)] == [2]
    assert records.read_runs(tmp_path / "nothing") == []


# --- the lines in git


def test_a_kept_record_reads_as_the_run_wrote_it(tmp_path):
    example = record(old_id="an-older-id", samples_per_s=100, finished_at="2026-01-01T00:00:00+00:00")
    assert records.keep([example | {"curve": CURVE}], tmp_path) == [example["id"]]
    assert records.read_kept(tmp_path) == [example]
    (found,) = records.read_kept(tmp_path, curves=True)
    assert found == example | {"curve": found["curve"]}


def test_a_kept_curve_has_100_points_of_four_digits(tmp_path):
    records.keep([record(curve=CURVE)], tmp_path)
    (line,) = map(json.loads, (tmp_path / "curves.jsonl").read_text().splitlines())
    assert line["id"] == record()["id"]
    assert len(line["step"]) == len(line["train/loss"]) == 84  # 250 blocks, three to a point
    assert line["step"][:2] == [30, 60]
    assert line["step"][-1] == 2500
    assert line["train/loss"][0] == float(f"{(2 / 1 + 2 / 2 + 2 / 3) / 3:.4g}")


def test_a_value_that_an_entry_lacks_is_null_in_the_line(tmp_path):
    curve = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": float("inf"), "det": 0.5}]
    records.keep([record(curve=curve)], tmp_path)
    line = json.loads((tmp_path / "curves.jsonl").read_text())
    assert (line["train/loss"], line["det"]) == ([1.0, None], [None, 0.5])
    (found,) = records.read_kept(tmp_path, curves=True)
    assert found["curve"] == [{"step": 1, "train/loss": 1.0}, {"step": 2, "det": 0.5}]


def test_a_new_run_is_one_more_line_and_no_line_changes(tmp_path):
    records.keep([record(seed=1, curve=CURVE)], tmp_path)
    path = tmp_path / "records.jsonl"
    odd = path.read_text().replace(", ", " ,  ")  # as nobody writes it, and yet the same
    path.write_text(odd)
    again = record(seed=1, error=9.0, curve=CURVE)
    new = records.keep([again, record(seed=0, curve=CURVE)], tmp_path)
    assert new == [record(seed=0)["id"]]
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 2
    assert lines[1] == odd
    assert json.loads(lines[0])["seed"] == 0
    assert list(json.loads(lines[0]))[:6] == ["version", "id", "experiment", "schedule", "seed", "status"]
    assert records.keep([again], tmp_path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.jsonl", "environments.json", "records.jsonl"]


def test_machines_and_data_are_named_once(tmp_path):
    other = record(seed=2, device="another")
    records.keep([record(), record(seed=1), other], tmp_path)
    shared = json.loads((tmp_path / "environments.json").read_text())
    assert len(shared["environments"]) == 2
    assert list(shared["data"].values()) == [record()["data_sha256"]]
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len({line["environment"] for line in lines[:2]}) == 1
    assert not any({"versions", "device", "data_sha256", "curve"} & set(line) for line in lines)


def test_smoke_runs_are_never_kept(tmp_path):
    assert records.keep([record(smoke=True)], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_kept_as_one_until_it_finishes(tmp_path):
    failed = record(error=None, curve=CURVE[:2])
    for _ in range(2):
        records.keep([failed], tmp_path)
        (kept,) = records.read_kept(tmp_path)
        assert (kept["status"], kept["failure"], kept["failed_step"]) == ("failed", failed["failure"], 3)
    assert records.keep([record(curve=CURVE)], tmp_path) == [failed["id"]]
    (kept,) = records.read_kept(tmp_path, curves=True)
    assert (kept["status"], kept["metrics"], len(kept["curve"])) == ("finished", {"test/error": 2.0}, 84)
    assert records.keep([failed], tmp_path) == []


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"id": "x"}', "\xff", json.dumps(record() | {"environment": "no"})])
def test_a_damaged_line_costs_only_itself_where_that_is_wanted(tmp_path, line):
    records.keep([record(), record(seed=2)], tmp_path)
    path = tmp_path / "records.jsonl"
    first, last = path.read_text().splitlines()
    path.write_text(f"{first}\n{line}\n{last}\n")
    damaged: list[str] = []
    assert [r["seed"] for r in records.read_kept(tmp_path, damaged=damaged)] == [0, 2]
    assert len(damaged) == 1
    assert damaged[0].startswith(f"line 2 of {path} ")
    with pytest.raises(ValueError, match=r"^line 2 of [^\n]*$"):
        records.read_kept(tmp_path)
    with pytest.raises(ValueError, match=r"^line 2 of [^\n]*$"):
        records.keep([record(seed=1)], tmp_path)


def test_a_record_that_cannot_be_opened_or_named_costs_only_itself(tmp_path):
    save(tmp_path, record())
    (tmp_path / "folder/result.json").mkdir(parents=True)
    (tmp_path / "no UTF-8 \udcff").mkdir()
    (tmp_path / "no UTF-8 \udcff/result.json").write_text("{}")
    damaged: list[str] = []
    assert len(records.read_runs(tmp_path, damaged)) == 1
    first, second = damaged
    assert first.endswith(f"Is a directory: '{tmp_path}/folder/result.json'")
    assert second.startswith(f"the record {tmp_path}/no UTF-8 \\udcff/result.json has version None")
    (tmp_path / "folder/unfinished.json").mkdir()
    assert records.read_unfinished(tmp_path) == []


def test_a_damaged_curve_costs_the_curve_alone(tmp_path):
    records.keep([record(curve=CURVE)], tmp_path)
    (tmp_path / "curves.jsonl").write_text(json.dumps({"id": record()["id"], "step": [1, 2], "lr": [0.1]}) + "\n")
    damaged: list[str] = []
    (found,) = records.read_kept(tmp_path, True, damaged)
    assert "curve" not in found
    assert len(damaged) == 1


def test_an_own_run_stands_before_the_kept_record_of_it(tmp_path):
    save(tmp_path / "runs", record(error=1.0))
    records.keep([record(error=3.0), record(seed=2, error=4.0)], tmp_path)
    found = records.read_all(tmp_path / "runs", tmp_path)
    assert [r["metrics"]["test/error"] for r in found] == [1.0, 4.0]


# --- those of this repository


def test_the_kept_records_are_sorted_and_each_has_a_curve():
    found = records.read_kept(ROOT / "results", curves=True)
    ids = [r["id"] for r in found]
    assert len(ids) >= 219
    assert ids == sorted(set(ids))
    assert all(r["curve"] and len(r["curve"]) <= records.POINTS for r in found)
    assert all(r["curve"][-1]["step"] == r["steps"] for r in found)
    assert not any(r["smoke"] for r in found)


def test_the_id_of_a_kept_record_follows_from_what_it_holds():
    for r in records.read_kept(ROOT / "results"):
        said = dict(word.split("=", 1) for word in r["overrides"] if "=" in word)
        schedule = ROOT / f"conf/schedule/{r['schedule']}.yaml"
        stated = read_yaml(schedule).get("precision") if schedule.exists() else None  # a schedule may ask for one, too
        asked = said.get("precision", stated) not in (None, "auto")
        name = (r["experiment"], r["schedule"], r["seed"], r["config"])
        digits = identity.of(*name, r["revisions"], **({"precision": r["precision"]} if asked else {}))
        assert r["id"] == identity.run_name(*name, digits)
