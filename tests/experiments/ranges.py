"""The distortions with the ranges of conf/data/distortion, by name."""

from pathlib import Path

import yaml

from stn.experiments.datasets.distortions import build

FILES = sorted((Path(__file__).parents[2] / "conf/data/distortion").glob("*.yaml"))
RANGES = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}
DISTORTIONS = {name: build(config) for name, config in RANGES.items()}
