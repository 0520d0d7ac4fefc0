"""Train, test and record one experiment, or sweep over a table.

python run.py experiment=mnist_st_cnn_tps data.distortion=rts seed=0
python run.py table=table1 schedule=fast seed=0,1,2
"""

import logging
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on to us, and we say them in one line


def bf16_where_fast() -> str:
    """bf16 where this machine multiplies bf16 matrices faster than fp32 ones, else fp32."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


OmegaConf.register_new_resolver("bf16_where_fast", bf16_where_fast, use_cache=True)


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    from stn.training.job import run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for quiet in ("pytorch_lightning", "wandb"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    run(cfg, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    try:
        main()
    except (HydraException, OmegaConfBaseException, ValueError, OSError, RuntimeError, ArithmeticError) as error:
        if os.environ.get("STN_DEBUG"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")
