"""What every command shares: where the repository is, and how it ends, by itself, in an error or by a signal."""

import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPECTED = (ValueError, OSError, ArithmeticError)  # what one line explains; anything else is a bug and is seen whole
# Lightning sets the level of its topmost logger when it is imported, so the one below that speaks is told
TALKATIVE = (
    "hydra", "wandb", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector",
)  # fmt: skip
STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


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


# --- signals


class Stopped(SystemExit):
    """A signal ends the program, with exit status 128 + n."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def worker() -> bool:
    """Whether another process of ours started this one: for a share of a sweep (joblib), or of a batch (devices)."""
    return multiprocessing.parent_process() is not None or int(os.environ.get("LOCAL_RANK", 0)) > 0


def stoppable(main: Callable[[], object]) -> None:
    """Call a program's main; a signal of STOP ends it at once, with one line that says what is safe and how to go on.

    A signal that whoever started the program ignores (nohup) stays ignored.
    """

    def stop(number: int, frame: object) -> None:
        for each in STOP:  # a second Ctrl-C would kill what joblib starts to find its workers, and leave them at work
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    for number in STOP:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        main()
    except Stopped as stopped:
        if not worker():
            try:
                safe = _safe[0]() if _safe else "nothing was computed yet"
            except (OSError, ValueError) as error:  # the files are read while others write them
                safe = f"all but the seconds since the last checkpoint is safe ({error})"
            print(
                f"stopped by {stopped.name}: {safe}; go on with: {shlex.join(['python', *sys.argv])}", file=sys.stderr
            )
        raise


_safe: list[Callable[[], str]] = []


def tell_when_stopped(safe: Callable[[], str]) -> None:
    """What says which work is safe; the first one counts: a sweep speaks for its runs."""
    _safe.append(safe)


@cache
def end_with_parent() -> None:
    """In a worker: leave signals from the terminal to the first process, and end within a second of it."""
    first = multiprocessing.parent_process()
    parent = os.getppid() if first is None else first.pid
    for number in STOP:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(128 + signal.SIGTERM)  # as a kill would: what it leaves is whole

    threading.Thread(target=watch, daemon=True).start()
