"""Configs as run.py gets them."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from stn.experiments import resolvers

CONF = Path(__file__).parents[2] / "conf"


def compose_raw(*overrides: str) -> Any:
    """Hydra's own config, with its part `hydra`."""
    resolvers.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def compose(*overrides: str) -> tuple[dict[str, Any], dict[str, str | None]]:
    """The resolved config, and which file of each group was chosen."""
    cfg = compose_raw(*overrides)
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    config: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    return config, cfg.hydra.runtime.choices
