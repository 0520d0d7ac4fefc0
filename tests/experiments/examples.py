"""Records of runs that never were, and a table of them, for the tests of what is made from records."""

from stn.experiments.results import records, tables

TABLE = tables.Table(
    name="example",
    title="An example",
    metric="test/error",
    unit="% error",
    column_key="data.distortion.name",
    columns={"r": "R", "e": "E"},
    rows={"mnist_fcn": "FCN", "mnist_cnn": "CNN"},
    paper={"mnist_fcn": {"r": 2.1, "e": 3.2}, "mnist_cnn": {"r": 1.2}},
    notes=["A note."],
    data=["mnist", "rendered"],
)


def record(experiment="mnist_fcn", distortion="r", seed=0, error=2.0, schedule="short", steps=100, extra=(), **changes):
    """A whole record; without an error the run failed."""
    failed = {"failure": "the loss became nan at step 3: lower schedule.lr", "failed_step": 3}
    return {
        "version": 2,
        "id": f"{experiment}-{distortion}-{schedule}-seed{seed}-0123456789",
        "experiment": experiment,
        "schedule": schedule,
        "seed": seed,
        **({"status": "failed"} | failed if error is None else {"status": "finished"}),
        "metrics": {} if error is None else {"test/error": error},
        "params": 987,
        "steps": steps,
        "seconds": 1800.0,
        "precision": "fp32",
        "budget": 1000,
        "smoke": False,
        "synthetic": False,
        "in_shape": [1, 28, 28],
        "classes": 10,
        "config": {
            "data": {"name": "mnist", "distortion": {"name": distortion, "canvas_px": 28}},
            "model": {"name": "mnist", "classifier": "fcn", "budget": 1000},
            "objective": {"name": "classification"},
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
            "schedule": {"steps": steps, "batch_size": 10},
        },
        "revisions": {"data": 1, "model": 1, "objective": 1, "step": 1},
        "overrides": [f"experiment={experiment}", f"data/distortion={distortion}", f"schedule={schedule}", *extra],
        "versions": {"torch": "2.15.0"},
        "device": "a processor",
        "threads": 1,
        "commit": None,
        "dirty": None,
        "data_sha256": {"train": "aa", "test": "bb"},
        **changes,
    }


def save(runs, *examples):
    """Their run folders below `runs`."""
    for example in examples:
        (runs / example["id"]).mkdir(parents=True, exist_ok=True)
        records.write(runs / example["id"] / "result.json", example)
