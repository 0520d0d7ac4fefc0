"""Reads the YAML files that Hydra does not: a manifest, a table, a sweep."""

from pathlib import Path
from typing import Any

import yaml

from stn.experiments.errors import one_line


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.  Raises OSError or ValueError if it cannot be read."""
    try:
        return yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-99-99
        raise ValueError(f"{path} is not YAML: {yaml_error(error)}") from None


def yaml_error(error: BaseException) -> str:
    """The problem and its line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return one_line(error)
