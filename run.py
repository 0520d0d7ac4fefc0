"""Train, test and record one experiment, or sweep over a table.

python run.py experiment=mnist_st_cnn_tps data/distortion=rts seed=0
python run.py table=table1 schedule=fast seed=0,1,2
"""

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from stn.experiments import command, launchers, preflight, resolvers
from stn.experiments.errors import first_line, one_line
from stn.experiments.yaml_files import yaml_error

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes errors on, and we print them in one line
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # joblib's warning after a stop
CONF = command.ROOT / "conf"
resolvers.register()


GLOBAL = ("experiment", "schedule", "table")  # their files set keys of any group


def check_keys(cfg: Any, choices: dict[str, str | None]) -> None:
    """Raise ValueError on a key that is neither in conf/config.yaml nor in the file of a chosen group that has its own.

    Hydra checks the command line, but accepts any key in the files of `GLOBAL`.
    """
    if "experiment" in cfg:
        raise ValueError(
            f"experiment={choices.get('experiment')}: its file is empty or does not begin with `# @package _global_`"
        )
    known: Any = OmegaConf.merge(OmegaConf.load(CONF / "config.yaml"), {"table": None, "hydra": None})
    loggers = cfg.get("logger") if isinstance(cfg.get("logger"), DictConfig) else {}  # several loggers
    places: dict[str, Any] = {}
    for group, option in [*choices.items(), *(("logger", name) for name in loggers)]:
        file = CONF / group / f"{option}.yaml"
        if file.is_file():
            content: Any = OmegaConf.load(file)
            if group in GLOBAL:
                places[f"conf/{group}/{option}.yaml"] = content
                continue
            for part in reversed(group.split("/")):
                content = {part: content}
            known = OmegaConf.merge(known, content)

    def compare(node: Any, allowed: Any, path: str, place: str) -> None:
        if not isinstance(node, dict):
            return
        for key, value in node.items():
            if not isinstance(allowed, dict) or key not in allowed:
                valid = ", ".join(map(str, allowed)) if isinstance(allowed, dict) else "none"
                raise ValueError(f"unknown key {path}{key} in {place}: valid here: {valid}")
            if allowed[key] is not None and not isinstance(
                allowed[key], str
            ):  # null and an interpolation accept any value
                compare(value, allowed[key], f"{path}{key}.", place)

    for place, content in [*places.items(), (f"experiment={choices.get('experiment')}", cfg)]:
        compare(OmegaConf.to_container(content), OmegaConf.to_container(known), "", place)


def check_distortion(cfg: Any, choices: dict[str, str | None]) -> None:
    """Raise ValueError if a distortion has another name than its file: its runs would be in the other one's column."""
    file, name = choices.get("data/distortion"), OmegaConf.select(cfg, "data.distortion.name")
    if file is not None and isinstance(name, str) and name != file:
        known = ", ".join(sorted(path.stem for path in (CONF / "data/distortion").glob("*.yaml")))
        raise ValueError(
            f"data.distortion.name={name!r} of conf/data/distortion/{file}.yaml: it has to be {file}, as the file; "
            f"data/distortion=NAME chooses one of {known}"
        )


WITH_JOBS = ("joblib", "ray", "submitit")  # packages whose errors tell of a job that ended without a result


def lost_a_job(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in WITH_JOBS


def what_is_wrong(error: BaseException) -> str:
    """What is wrong, in one line: the cause of an error that Hydra wraps, or the choices for an unknown key or name."""
    cause: Any = error.__cause__
    if lost_a_job(error):
        return f"a job has ended without a result: {first_line(error)}; the same command resumes"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        # Hydra lists no options when one of several choices is unknown
        options = sorted(error.options or (path.stem for path in (CONF / group).glob("*.yaml")))
        if group == "hydra/launcher":
            options = [name for name in launchers.EXTRA if name not in launchers.BASES]
            if extra := launchers.EXTRA.get(option):
                return f"{group}={option} is not installed: make setup EXTRAS={extra}, or pip install '.[{extra}]'"
        choices = ", ".join(options)
        return f"unknown {group}={option}: choose one of {choices}" if group else f"conf/{option}.yaml does not exist"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: write KEY=VALUE, and quote special characters: 'KEY=\"VALUE\"'"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name} is not YAML: {yaml_error(error)}"
    if isinstance(error, InterpolationResolutionError | InterpolationKeyError):
        return f"{error.full_key} refers to a key or an environment variable that does not exist, or to itself"
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return f"{error.full_key or error.key} is missing: every run has it"
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 text: {error}"
    if isinstance(error, OSError) and error.filename is None and error.strerror:  # a library's error on a full disk
        return f"{error.strerror}: check runs_dir, data.root and the temporary folder {tempfile.gettempdir()}"
    if isinstance(error, InstantiationException) and cause is not None:
        return what_is_wrong(cause)
    unknown = isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException)
    if unknown and cause.parent_node is not None and cause.full_key:
        if cause.key in cause.parent_node:
            return f"{cause.full_key} cannot have this value: {first_line(cause)}"
        if not cause.parent_node:  # Hydra makes a mapping of null and of a plain value
            node = cause.full_key.rpartition(".")[0]
            return f"{node} is null or a plain value: set all of it, {node}=VALUE or '{node}={{{cause.key}: VALUE}}'"
        return f"unknown key {cause.full_key}: valid here: {', '.join(map(str, cause.parent_node))}"
    return one_line(error)


DYING_S = 60  # how long a restarted job waits for the process of a dead node, which takes a while to notice
EXPECTED = (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError, *command.EXPECTED)


def is_bug(error: BaseException) -> bool:
    """Whether an error is a bug, whose traceback should be shown; STN_DEBUG=1 shows it for every error."""
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ is not None else error
    return bool(os.environ.get("STN_DEBUG")) or not (isinstance(cause, EXPECTED) or lost_a_job(cause))


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> Any:
    if command.worker():
        command.end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command.quiet()
    resolvers.register()
    hydra_config = HydraConfig.get()
    multirun = hydra_config.mode == RunMode.MULTIRUN
    try:
        if multirun and cfg.get("devices", 1) != 1:
            raise ValueError(
                f"devices={cfg.devices} in a sweep: each of its processes would start the sweep again; give each job "
                "one device, or start the runs one by one"
            )
        if Path(hydra_config.runtime.cwd).is_dir():
            os.chdir(hydra_config.runtime.cwd)  # a worker on another node starts in another folder
        check_keys(cfg, hydra_config.runtime.choices)
        check_distortion(cfg, hydra_config.runtime.choices)
        if cfg.experiment_name is None:
            names = ", ".join(sorted(file.stem for file in (CONF / "experiment").glob("*.yaml")))
            raise ValueError(f"no experiment chosen: python run.py experiment=NAME, with NAME one of {names}")
        if not multirun and not command.worker():
            logging.info("%s, seed %s: loading PyTorch", cfg.experiment_name, cfg.seed)
        from stn.experiments.training.environment import take_card
        from stn.experiments.training.job import run  # loads PyTorch, which an error or --help does not need

        if multirun:
            take_card(hydra_config.job.num)

        config: Any = OmegaConf.to_container(cfg, resolve=True)
        if isinstance(config.get("data"), dict) and "root" in config["data"]:
            config["data"]["root"] = preflight.data_folder(config["data"]["root"])
        return run(config, list(hydra_config.overrides.task), wait_s=DYING_S if multirun else 0)
    except EXPECTED as error:
        if is_bug(error):
            raise
        if not multirun:
            sys.exit(f"error: {what_is_wrong(error)}")
        logging.error("error: %s", what_is_wrong(error))  # the sweep goes on; Hydra raises the first error at its end
        raise


def program() -> None:
    preflight.check(sys.argv[1:])
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # no option among settings
    main()


if __name__ == "__main__":
    try:
        command.stoppable(program)
    except Exception as error:
        if is_bug(error):
            raise
        sys.exit(f"error: {what_is_wrong(error)}")
