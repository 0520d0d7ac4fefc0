"""What every script shares: where the repository is, and how it ends."""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPECTED = (ValueError, OSError, ArithmeticError)  # what one line explains; anything else is a bug and is seen whole
# Lightning sets the level of its topmost logger when it is imported, so the one below that speaks is told
TALKATIVE = (
    "hydra", "wandb", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)  # fmt: skip


def runs_folder(given: Path | None) -> Path:
    """The folder of --runs, else runs/ of this repository.  Raises ValueError where a given one is not there."""
    if given is not None and not given.is_dir():
        raise ValueError(f"--runs {given}: there is no such folder")
    return given or ROOT / "runs"


def quiet() -> None:
    """Silence what libraries say of themselves; before or after they are imported."""
    for logger in TALKATIVE:
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")  # Lightning 2.6 on PyTorch 2.15


def run(main: Callable[[], object]) -> None:
    """Call a script's main; an error that bad input explains ends it with one line on stderr and exit status 1."""
    quiet()
    try:
        main()
    except EXPECTED as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
