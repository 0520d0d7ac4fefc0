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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from stn.experiments.errors import one_line

ROOT = Path(__file__).parents[2]
EXPECTED = (ValueError, OSError, ArithmeticError)  # what one line explains; anything else is a bug and is seen whole
# Lightning sets the level of its topmost logger when it is imported, so the one below that speaks is told
TALKATIVE = (
    "hydra", "wandb", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector", "lightning_fabric.utilities.distributed",
)  # fmt: skip
WATCH_S = 1  # between two looks at whether another process of a run has ended
PARENT = "STN_PARENT"  # the variable that names the process which started this one; it may be gone before this one asks
STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def runs_folder(given: Path | None) -> Path:
    """The folder of --runs, else runs/ of this repository.  Raises ValueError where a given one is not there."""
    if given is not None and not given.is_dir():
        raise ValueError(f"--runs {given}: there is no such folder")
    return given or ROOT / "runs"


def end_with(damaged: list[str], rest: str) -> None:
    """Exit with a line for each record that cannot be read, if there are any, and one that says what `rest` is of."""
    if damaged:
        sys.exit("\n".join([*(f"error: {line}" for line in damaged), rest]))


def quiet() -> None:
    """Silence what libraries say of themselves; before or after they are imported."""
    for logger in TALKATIVE:
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning")  # 2.6 on PyTorch 2.15
    warnings.filterwarnings("ignore", "GPU available but not used")  # Lightning, of device=cpu beside a GPU


def run(main: Callable[[], object]) -> None:
    """Call a script's main; bad input or a signal ends it with one line on stderr, and an exit status that is not 0."""
    quiet()
    try:
        stoppable(main)
    except EXPECTED as error:
        sys.exit(f"error: {one_line(error)}")


# --- signals


class Stopped(SystemExit):
    """A signal ends the program, with exit status 128 + n."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def worker() -> bool:
    """Whether another process of ours, which speaks for it and ends it, started this one.

    For a share of a sweep (joblib) or of a batch (devices), or as one run of a search or a campaign.
    """
    return multiprocessing.parent_process() is not None or _of_a_batch() or _parent() != os.getpid()


def _of_a_batch() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


def child() -> dict[str, str]:
    """What the environment of a run.py that this process starts has to have, so that it ends with this process."""
    return {PARENT: str(os.getpid())}


def _parent() -> int:
    return int(os.environ.get(PARENT, os.getpid()))


def stoppable(main: Callable[[], object]) -> None:
    """Call a program's main; a signal of STOP ends it at once, with one line that says what is safe and how to go on.

    A signal that whoever started the program ignores (nohup) stays ignored.
    """

    def stop(number: int, frame: object) -> None:
        for each in STOP:  # a second Ctrl-C would kill what joblib starts to find its workers, and leave them at work
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in STOP}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        main()
    except Stopped as stopped:
        if not worker():
            say_stopped(f"stopped by {stopped.name}")
        raise
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # one that was stopped ignores them to its end
                signal.signal(number, handler)


_safe: list[Callable[[], str]] = []


def tell_when_stopped(safe: Callable[[], str]) -> None:
    """What says which work is safe; the first one counts: a sweep speaks for its runs."""
    _safe.append(safe)


def say_stopped(how: str) -> None:
    """One line: how the program was stopped, what is safe, and how to go on."""
    try:
        safe = f": {_safe[0]()}" if _safe else ""
    except (OSError, ValueError) as error:  # a file of the run is damaged, or gone
        safe = f": the last checkpoint is safe ({one_line(error)})"
    print(f"{how}{safe}; go on with: {shlex.join(['python', *sys.argv])}", file=sys.stderr, flush=True)


def watch(gone: Callable[[], bool], end: Callable[[], object]) -> None:
    """Call `end`, in a thread, once `gone` says so, which is asked every WATCH_S seconds."""

    def look() -> None:
        while not gone():
            time.sleep(WATCH_S)
        end()

    threading.Thread(target=look, daemon=True).start()


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that are started meanwhile never see a signal of the terminal, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(STOP) - {signal.SIGTERM})  # which a new process takes over
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def end_with_parent() -> None:
    """In a worker: leave signals from the terminal to the first process, and end within a second of it."""
    first = multiprocessing.parent_process()
    parent = _parent() if first is None else first.pid
    for number in STOP:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if _of_a_batch():  # without the unwinding that Lightning and the other processes would take part in
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

    def end() -> None:
        if os.environ.get("LOCAL_RANK") == "1":  # one speaks for all
            how = "stopped: the first process of this run has ended"
            print(f"{how}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)  # as a kill would: what it leaves is whole

    watch(lambda: os.getppid() != parent, end)
