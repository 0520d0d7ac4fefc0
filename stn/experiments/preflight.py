"""Checks a command line of run.py before Hydra runs it: its options, its number of runs, their data, their launcher."""

import json
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stn.experiments import launchers
from stn.experiments.command import ROOT

CONF = ROOT / "conf"
OPTIONS = ("help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion",
           "config-path", "config-name", "config-dir", "experimental-rerun", "info")  # fmt: skip
SHORT = ("h", "c", "p", "r", "m", "i", "s")  # first letters of their short forms
MOST_RUNS = 10_000  # of a sweep
# settings that decide which files a job reads
CHOOSE_DATA = ("experiment", "data", "data.name", "data.root", "data.size_px")


def check(words: list[str]) -> None:
    """Raise an error, explained in one line, on a command line that cannot run."""
    for word in words:
        long = word.startswith("--")
        if word.startswith("-") and (word[2:].split("=")[0] not in OPTIONS if long else word[1:2] not in SHORT):
            raise ValueError(
                f"unknown option {word}: settings have no dashes, such as experiment=mnist_fcn; "
                f"options are --{', --'.join(OPTIONS)}"
            )
    settings = [word for word in words if "=" in word and not word.startswith(("-", "~"))]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choices = _choices(settings)
        swept = [f"{key}={values[0]}" if len(values) == 1 else None for key, values in choices.items()]
        if "-m" not in words and "--multirun" not in words and not {"table", "hydra.mode"} & set(choices):
            return
        try:
            cfg = compose("config", [word for word in swept if word], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            return  # Hydra says so when it runs
        params = cfg.hydra.sweeper.params or {}
        choices = _choices([f"{key}={value}" for key, value in params.items()]) | choices
        runs = prod(map(len, choices.values()))  # printed before PyTorch loads, which takes seconds
        print(f"{runs} run{'s' if runs > 1 else ''}; finished ones are skipped, unfinished ones resume", flush=True)
        launcher = cfg.hydra.runtime.choices["hydra/launcher"]
        if launcher in launchers.LOCAL:
            _check_runs(choices, [word for word in words if word.startswith("~")])
            _check_data(choices)
        launchers.prepare(launcher, cfg.hydra.launcher)


def _choices(settings: list[str]) -> dict[str, list[str]]:
    """The values of every setting, several if it is swept.  Raises ValueError on no runs and on too many."""
    runs, choices = 1, {}
    for override in OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(settings):
        key = override.get_key_element()
        if not key:
            raise ValueError(f"{override.input_line} has no key: write KEY=VALUE")
        if override.is_interval_sweep():
            raise ValueError(f"{override.input_line}: an interval has infinitely many values: list some, such as 1,2,3")
        if not override.is_discrete_sweep():
            if (CONF / key).is_dir():
                _check_group(key, override.value())
            choices[key] = [str(override.get_value_element_as_str())]
            continue
        choices[key] = list(islice(override.sweep_string_iterator(), MOST_RUNS + 1))
        runs *= len(choices[key])
        if not 0 < runs <= MOST_RUNS:
            how = f"more than {MOST_RUNS:,} runs" if runs else "no run: no name matches, or the range is empty"
            raise ValueError(f"{override.input_line} asks for {how}")
    return choices


def _check_group(group: str, value: Any) -> None:
    """Raise ValueError unless a group's value is the name of a file that Hydra knows, or a list of such names."""
    for name in value if isinstance(value, list) and value else [value]:
        if not isinstance(name, str) or Path(name).name != name or name == "..":
            options = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
            raise ValueError(f"unknown {group}={name}: choose one of {options}")


def _check_runs(choices: dict[str, list[str]], deleted: list[str]) -> None:
    """If no run of a sweep can start, raise the error of the first one, once."""
    from stn.experiments.training.check import check as check_config  # loads PyTorch

    first: Exception | None = None
    for values in product(*choices.values()):
        settings = [f"{key}={value}" for key, value in zip(choices, values, strict=True)]
        try:
            cfg = compose("config", settings + deleted, return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
            config: Any = OmegaConf.to_container(own, resolve=True)
            if config["experiment_name"] is not None:
                check_config(config)
            return
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            first = first or error
    if first is not None:
        raise first


def _check_data(choices: dict[str, list[str]]) -> None:
    """Before the first job of a sweep, fetch or find the files of all jobs, each once."""
    mine = {key: values for key, values in choices.items() if key in CHOOSE_DATA}
    found: dict[str, Any] = {}
    for values in product(*mine.values()):
        try:
            cfg = compose("config", [f"{key}={value}" for key, value in zip(mine, values, strict=True)])
            data: Any = OmegaConf.to_container(cfg.data, resolve=True)
        except (HydraException, OmegaConfBaseException):
            continue  # that job reports it
        files = {key.removeprefix("data."): data.get(key.removeprefix("data.")) for key in CHOOSE_DATA[2:]}
        found.setdefault(json.dumps(files), data)
    from stn.experiments import build  # loads PyTorch

    for data in found.values():
        build.ensure(data, data_folder(data.get("root")))


def data_folder(root: Any) -> Any:
    """The folder of a data.root: relative to the working directory if it exists there, else to this repository."""
    return root if not isinstance(root, str) or Path(root).is_dir() else str(ROOT / root)
