"""Recorded networks by name: which are found, what is loaded, and that a record from elsewhere executes nothing."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stn.experiments import build, zoo
from stn.experiments.command import ROOT
from stn.experiments.results import records

RTS = {"name": "rts", "max_angle_deg": 45.0, "scale": [0.7, 1.2], "canvas_px": 42}
MODEL = {
    "name": "mnist", "classifier": "fcn", "localisation": "fully_connected", "transform": "affine", "transformers": 1,
    "pooled": False, "kernel": "bilinear", "budget": 100_000,
}  # fmt: skip


def record(name, error=2.0, steps=100, **other):
    """The record of a run that was never run."""
    return {
        "version": records.VERSION, "id": name, "experiment": "mnist_st_fcn_affine", "schedule": "fast", "seed": 0,
        "status": "finished", "metrics": {"test/error": error}, "params": 99_000, "steps": steps, "seconds": 1.0,
        "samples_per_s": 100, "precision": "fp32", "budget": 100_000, "smoke": False, "synthetic": False,
        "in_shape": [1, 42, 42], "classes": 10,
        "config": {
            "data": {"name": "mnist", "distortion": RTS}, "model": MODEL, "objective": {"name": "classification"},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
            "schedule": {"steps": steps, "batch_size": 64, "localisation_lr": 0.3, "bound": None, "block_steps": 10,
                         "lr_scheduler": None},
        },
        "revisions": {"data": 1, "model": 1, "objective": 1, "step": 1}, "overrides": [],
        "versions": {"torch": "2.11"}, "device": "cpu", "threads": 1, "commit": None, "dirty": None,
        "data_sha256": {}, "finished_at": "2026-01-01T00:00:00+00:00", "curve": [{"step": steps, "train/loss": 1.0}],
    } | copy.deepcopy(other)  # fmt: skip


def write(runs, made, network=None, name=None):
    """A run's folder with that record and the network's weights, or those of a new one."""
    folder = runs / (name or made["id"])
    folder.mkdir(parents=True)
    records.write(folder / "result.json", made)
    network = network or build.network(MODEL, (1, 42, 42), 10)
    save_file(network.state_dict(), folder / "weights.safetensors", metadata={"id": made["id"]})
    return network


@pytest.fixture
def runs(tmp_path):
    """Two finished runs, `one` and `other`."""
    torch.manual_seed(0)
    write(tmp_path, record("one"))
    write(tmp_path, record("other", error=1.0, steps=200))
    return tmp_path


# --- what is found


def test_a_loaded_network_computes_what_was_saved(tmp_path):
    torch.manual_seed(1)
    saved = write(tmp_path, record("one")).eval()
    loaded = zoo.load("one", ROOT, tmp_path)
    u = torch.rand(3, 1, 42, 42)
    assert torch.equal(saved(u), loaded.network(u))
    assert (loaded.id, loaded.in_shape, loaded.network.training) == ("one", (1, 42, 42), False)


def test_of_many_names_the_first_dozen_are_listed(tmp_path):
    for i in range(15):
        write(tmp_path, record(f"n{i:02}"))
    with pytest.raises(
        ValueError, match=r"^15 recorded networks begin with 'n': choose one of n00, [^\n]*n11 and 3 more$"
    ):
        zoo.load("n", ROOT, tmp_path)


def test_a_name_may_be_shortened_while_it_is_the_only_one(runs):
    assert zoo.load("on", ROOT, runs).id == "one"
    with pytest.raises(ValueError, match=r"^2 recorded networks begin with 'o': choose one of one, other$"):
        zoo.load("o", ROOT, runs)
    with pytest.raises(ValueError, match=r"^no recorded network is called 'nothing': choose one of one, other[^\n]*$"):
        zoo.load("nothing", ROOT, runs)


def test_a_shortened_name_means_the_kept_network_after_own_runs(runs, tmp_path):
    kept = tmp_path / "root/results/weights"
    kept.mkdir(parents=True)
    (kept / "other.safetensors").write_bytes((runs / "other/weights.safetensors").read_bytes())
    assert zoo.load("o", tmp_path / "root", runs).id == "other"


def test_smoke_runs_are_never_found(runs):
    write(runs, record("one-smoke", smoke=True, steps=10_000))
    assert "one-smoke" not in zoo.find(ROOT, runs)
    assert zoo.load("on", ROOT, runs).id == "one"


def test_own_runs_stand_before_kept_ones(tmp_path):
    kept = next(iter(zoo.find(ROOT, tmp_path)))
    write(tmp_path, record(kept))
    found = zoo.find(ROOT, tmp_path)
    assert next(iter(found)) == kept
    assert found[kept].weights == tmp_path / kept / "weights.safetensors"


def test_the_longest_training_is_found_by_experiment_and_data(runs):
    assert zoo.longest("mnist_st_fcn_affine", ROOT, runs, distortion="rts") == "other"
    assert zoo.longest("mnist_st_fcn_affine", ROOT, runs, distortion="nothing") is None
    assert zoo.longest("nothing", ROOT, runs) is None


def test_a_network_tested_on_validation_data_is_no_result(runs):
    config = record("x")["config"]
    held_out = config | {"data": config["data"] | {"test_split": "valid"}}
    write(runs, record("held_out", error=0.0, steps=10_000, config=held_out))
    assert zoo.longest("mnist_st_fcn_affine", ROOT, runs, distortion="rts") == "other"
    assert zoo.best_transformer("rts", ROOT, runs) != "held_out"


def test_the_best_transformer_has_the_lowest_error(runs):
    assert zoo.best_transformer("rts", ROOT, runs) != "one"
    write(runs, record("best", error=0.0))
    assert zoo.best_transformer("rts", ROOT, runs) == "best"
    plain = MODEL | {"localisation": None, "transform": None}
    write(runs, record("plain", error=-1.0, config=record("x")["config"] | {"model": plain}))
    assert zoo.best_transformer("rts", ROOT, runs) == "best"
    with pytest.raises(ValueError, match="no recorded spatial transformer on q: choose another network with --model"):
        zoo.best_transformer("q", ROOT, runs)


def test_a_damaged_record_is_named_and_hides_no_other(runs):
    (runs / "one/result.json").write_text("{")
    assert zoo.load("other", ROOT, runs).id == "other"
    with pytest.raises(ValueError, match=r"^the record [^\n]*one/result.json is damaged[^\n]*$"):
        zoo.load("one", ROOT, runs)


# --- weights


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), r"the weights .*weights.safetensors are damaged: "),
        (lambda path: path.write_bytes(b"no weights"), r"the weights .* are damaged: "),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"the weights .* are damaged: "),
        (lambda path: torch.save({"a": torch.ones(1)}, path), r"the weights .* are damaged: "),
        (lambda path: save_file({"a": torch.ones(1)}, path), r"the weights .* do not fit their record: "),
        (
            lambda path: save_file({"a": torch.ones(1)}, path, {"id": "two"}),
            r"the weights .* belong to another run, two$",
        ),
    ],
    ids=["empty", "text", "cut", "pickle", "of another network", "of another run"],
)
def test_weights_that_cannot_be_used_are_named_in_one_line(runs, damage, reason):
    damage(runs / "one/weights.safetensors")
    with pytest.raises(ValueError, match=rf"^{reason}[^\n]*$"):
        zoo.load("one", ROOT, runs)


def test_kept_weights_other_than_those_listed_are_refused(tmp_path, monkeypatch):
    kept = tmp_path / "results/weights"
    kept.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, kept / "one.safetensors")
    (kept / "index.json").write_text(json.dumps({"one": {"sha256": "0" * 64, "bytes": 1}}))
    monkeypatch.setattr(records, "read_kept", lambda folder: [record("one")])
    with pytest.raises(ValueError, match=r"^the weights [^\n]* are not those of [^\n]*index.json: [^\n]*$"):
        zoo.load("one", tmp_path)


@pytest.mark.parametrize("name", sorted(zoo.find(ROOT, Path("no-such-folder"))))
def test_every_kept_network_loads(name):
    recorded = zoo.load(name, ROOT, Path("no-such-folder"))
    assert sum(p.numel() for p in recorded.network.parameters() if p.requires_grad) == recorded.record["params"]
    assert {p.dtype for p in recorded.network.parameters()} == {torch.float32}
    with torch.no_grad():
        recorded.network(torch.rand(2, *recorded.in_shape))


def test_a_kept_network_has_the_error_of_its_record():
    """On the first thousand of the frozen test images; the rest would take longer."""
    name = zoo.best_transformer("rts", ROOT, Path("no-such-folder"))
    model = zoo.load(name, ROOT, Path("no-such-folder"))
    u, labels = next(iter(build.data_set(model.record["config"]["data"], ROOT / "data").test_batches()))
    with torch.no_grad():
        wrong = 100 * (model.network(u).argmax(1) != labels).float().mean().item()
    assert abs(wrong - model.record["metrics"]["test/error"]) < 2  # three standard errors of a share of 2 % are 1.3


# --- a record is data, never code


def canary(folder):
    """A file whose unpickling, and a text whose writing, would leave folder/executed behind."""
    (folder / "executed.py").write_text("")

    class Evil:
        def __reduce__(self):
            return Path.touch, (folder / "executed",)

    torch.save(Evil(), folder / "evil.pt")
    return folder / "evil.pt"


ATTACKS = {  # each was executed by the loader of version 1
    "torch.load": lambda folder: {"_target_": "torch.load", "f": str(canary(folder)), "weights_only": False},
    "joblib.load": lambda folder: {"_target_": "joblib.load", "filename": str(canary(folder))},
    "write_text": lambda folder: {
        "_target_": "pathlib.Path.write_text",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [str(folder / "executed")]}, "x"],
    },
    "urlopen": lambda folder: {"_target_": "urllib.request.urlopen", "url": f"file://{folder}/executed.py"},
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize(
    "place",
    [
        lambda config, evil: config | {"model": evil},
        lambda config, evil: config | {"model": MODEL | evil},
        lambda config, evil: config | {"model": MODEL | {"transform": evil}},
        lambda config, evil: config | {"model": MODEL | {"classifier": [evil]}},
        lambda config, evil: config | {"optimizer": evil},
        lambda config, evil: config | {"data": config["data"] | {"distortion": RTS | {"x": evil}}},
    ],
    ids=["the model", "beside its name", "its transform", "in a list", "the optimiser", "the data"],
)
def test_a_record_that_calls_anything_is_refused_and_calls_nothing(attack, place, tmp_path, monkeypatch):
    for target in ("urllib.request.urlopen", "joblib.load"):
        module, function = target.rsplit(".", 1)
        monkeypatch.setattr(pytest.importorskip(module), function, lambda *a, **k: (tmp_path / "executed").touch())
    made = record("evil")
    made["config"] = place(made["config"], attack(tmp_path))
    write(tmp_path / "runs", made)
    with pytest.raises(ValueError, match=r"^(the record|the network of the record) [^\n]*$"):
        zoo.load("evil", ROOT, tmp_path / "runs")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"name": "os.system"}, "unknown model.name='os.system'"),
        ({"name": ["mnist"]}, "unknown model.name"),
        ({}, "unknown model.name=None"),
        (MODEL | {"shell": "ls"}, "unknown key model.shell"),
        (MODEL | {"transform": "os.system"}, "unknown model.transform='os.system'"),
        (MODEL | {"transform": {"name": "affine"}}, ""),
        (MODEL | {"budget": "many"}, ""),
        (MODEL | {"kernel": "/etc/passwd"}, ""),
    ],
    ids=["name", "list", "nothing", "key", "transform", "nested", "budget", "path"],
)
def test_names_keys_and_values_that_the_code_does_not_know_are_refused(model, reason, tmp_path):
    made = record("odd")
    made["config"]["model"] = model
    write(tmp_path, made)
    with pytest.raises(ValueError, match=rf"^the network of the record odd cannot be built: {reason}[^\n]*$"):
        zoo.load("odd", ROOT, tmp_path)


@pytest.mark.parametrize("shape", [[1, 10**9, 10**9], [1], "1x42x42", [1, -1, 3], [1, 42.0, 42]], ids=str)
def test_an_input_that_no_network_has_is_refused(shape, tmp_path):
    write(tmp_path, record("odd", in_shape=shape))
    with pytest.raises(ValueError, match=r"^[^\n]*in_shape[^\n]*$"):
        zoo.load("odd", ROOT, tmp_path)


def test_the_weights_that_a_backbone_began_with_are_never_read(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "network", lambda model, in_shape, classes: asked.append(model) or torch.nn.Identity())
    made = record("birds", in_shape=[3, 32, 32], classes=20)
    made["config"]["model"] = {"name": "cub", "weights": "/somewhere/evil.pt"}
    write(tmp_path, made, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="do not fit their record"):
        zoo.load("birds", ROOT, tmp_path)
    assert asked == [{"name": "cub", "weights": "random"}]
