"""Search hyper-parameters with Optuna (TPE), without an account; FILE is the same as for a W&B sweep.

The study is kept in FILE.journal beside the runs.  The same command continues it, also from several shells or nodes at
a time.  Every trial is a run of run.py with a record; Optuna is told of failed ones.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from stn.experiments.command import ROOT, Options, a_number, a_path, child, run, tell_when_stopped
from stn.experiments.errors import first_line, writing
from stn.experiments.results import records
from stn.experiments.rules import is_finite
from stn.experiments.yaml_files import read_yaml


def read_sweep(path: Path) -> dict[str, Any]:
    """A W&B sweep file.  Raises OSError or ValueError if a key that the search needs is missing or wrong."""
    sweep = read_yaml(path)
    needs = {"command": list, "parameters": dict, "metric": dict}
    if not isinstance(sweep, dict) or not all(isinstance(sweep.get(key), kind) for key, kind in needs.items()):
        raise ValueError(f"{path} is not a sweep file: it needs command (a list), parameters and metric (mappings)")
    metric = sweep["metric"]
    if not isinstance(metric.get("name"), str) or metric.get("goal") not in ("minimize", "maximize"):
        raise ValueError(f"{path}: metric={metric} needs a name and a goal, minimize or maximize")
    if wrong := [name for name, space in sweep["parameters"].items() if not isinstance(space, dict)]:
        raise ValueError(f"{path}: parameter {wrong[0]} has to be a mapping with values, or min and max")
    for name, space in sweep["parameters"].items():
        low, high = space.get("min"), space.get("max")
        listed = isinstance(space.get("values"), list) and space["values"]
        if listed and not all(isinstance(value, str | int | float) for value in listed):
            raise ValueError(f"{path}: parameter {name} has values that are neither texts nor numbers")
        if not listed and not (is_finite(low) and is_finite(high) and low < high):
            raise ValueError(f"{path}: parameter {name} needs a list of values, or numbers min < max")
        if not listed and space.get("distribution") == "log_uniform_values" and low <= 0:
            raise ValueError(f"{path}: parameter {name} has min={low}: log_uniform_values needs a min above 0")
    return sweep


def suggest(trial: Any, parameters: dict[str, Any]) -> list[str]:
    """One override per parameter of a W&B sweep file: of `values`, or from `min` to `max`, uniform or log-uniform."""
    words = []
    for name, space in parameters.items():
        if "values" in space:
            value = trial.suggest_categorical(name, space["values"])
        else:
            log = space.get("distribution") == "log_uniform_values"
            value = trial.suggest_float(name, space["min"], space["max"], log=log)
        words.append(f"{name}={value}")
    return words


def train(overrides: list[str], folder: Path, metric: str) -> float | None:
    """The metric of the run with these overrides, which has its own folder; None if it failed."""
    words = [sys.executable, "run.py", *overrides, f"runs_dir={folder}"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | child())
    results = list(folder.glob("*/result.json"))
    if done.returncode or len(results) != 1:
        return None
    metrics = records.metrics_of(records.read(results[0]))
    if metric not in metrics:
        raise ValueError(f"a run has no metric {metric!r}: choose one of {', '.join(metrics)} in the sweep file")
    return metrics[metric]


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("--sweep", type=a_path, default=ROOT / "sweeps/localisation_lr.yaml")
    parser.add_argument(
        "--trials", type=a_number(1, 1_000_000), default=20, help="number of further trials (default: 20)"
    )
    parser.add_argument("--runs", type=a_path, default=ROOT / "runs/search", help="default: runs/search")
    parser.add_argument(
        "overrides", nargs="*", help="overrides of run.py, after those of the file, such as schedule=smoke"
    )
    options = parser.parse_args()
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError:
        raise ValueError("optuna is not installed: pip install '.[search]'") from None

    sweep = read_sweep(options.sweep)
    words = [word for word in sweep["command"] if isinstance(word, str) and "=" in word]
    options.runs.mkdir(parents=True, exist_ok=True)
    journal = options.runs / f"{options.sweep.stem}.journal"
    with writing(journal):
        study = optuna.create_study(
            study_name=options.sweep.stem,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            direction=sweep["metric"]["goal"],
            load_if_exists=True,
        )
    tell_when_stopped(lambda: f"the finished trials are kept in {options.runs}")
    for _ in range(options.trials):
        with writing(journal):
            trial = study.ask()
        folder = (options.runs / f"trial{trial.number}").resolve()
        folder.mkdir(exist_ok=True)
        try:
            chosen = suggest(trial, sweep["parameters"])
        except ValueError as error:
            raise ValueError(
                f"{options.sweep} has other values than the trials in {journal} ({first_line(error)}): rename the file"
            ) from None
        value = train([*words, *options.overrides, *chosen], folder, sweep["metric"]["name"])
        with writing(journal):
            study.tell(trial, value, state=optuna.trial.TrialState.FAIL if value is None else None)
        print(
            f"trial {trial.number}: {' '.join(chosen)}: {'failed' if value is None else f'{value:.2f} %'}", flush=True
        )
    finished = [trial for trial in study.trials if trial.value is not None]
    if not finished:
        raise ValueError("no trial has finished: the reasons are above")
    best = study.best_trial
    print(f"best of {len(finished)}: {' '.join(f'{k}={v}' for k, v in best.params.items())}: {best.value:.2f} %")


if __name__ == "__main__":
    run(main)
