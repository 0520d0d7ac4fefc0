"""Shared by all commands: the repository's folder, options, and how a command ends, by error or by signal."""

import argparse
import io
import logging
import multiprocessing
import os
import re
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
from typing import NoReturn

from stn.experiments.errors import one_line
from stn.experiments.rules import whole

ROOT = Path(__file__).parents[2]
EXPECTED = (ValueError, OSError, ArithmeticError)  # one line explains them; others are bugs
# Importing Lightning sets the level of its top logger, so the loggers below it are set
TALKATIVE = (
    "hydra", "wandb", "pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero",
    "pytorch_lightning.trainer.connectors.checkpoint_connector", "lightning_fabric.utilities.distributed",
    "pytorch_lightning.accelerators.cuda",
)  # fmt: skip
WATCH_S = 1  # between two checks of whether another process of a run has ended
PARENT = "STN_PARENT"  # variable with the id of the process that started this one and may have ended since
STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Options(argparse.ArgumentParser):
    """A script's options, with its docstring as the help text; a wrong option ends the script with one line."""

    def __init__(self, doc: str | None):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {one_line(ValueError(message))}; {self.prog} --help lists the options")


def a_path(text: str) -> Path:
    """The path of an option.  An empty one comes from an unset shell variable and does not mean this folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def a_file(text: str) -> Path:
    """The path of a file to write."""
    if (given := a_path(text)).exists() and not given.is_file():  # a device would be replaced
        raise argparse.ArgumentTypeError(f"{text} is a folder or a device: name a file")
    return given


def a_number(least: int, most: int) -> Callable[[str], int]:
    """The parser of an option that is a whole number from `least` to `most`."""

    def read(text: str) -> int:
        value, rule = int(text) if re.fullmatch(r"-?\d{1,20}", text) else text, whole(least, most)
        if not rule.fits(value):
            raise argparse.ArgumentTypeError(f"{text[:100]!r} has to be {rule.words}")
        return int(value)

    return read


def runs_folder(given: Path | None) -> Path:
    """The folder of --runs, else runs/ of this repository.  Raises ValueError if a given folder does not exist."""
    if given is not None and not given.is_dir():
        raise ValueError(f"--runs {given}: there is no such folder")
    return given or ROOT / "runs"


def end_with(damaged: list[str], rest: str) -> None:
    """If records are damaged, exit with one error line for each, then `rest`, which says what was done without them."""
    if damaged:
        sys.exit("\n".join([*(f"error: {line}" for line in damaged), rest]))


def quiet() -> None:
    """Silence the messages of libraries; works before and after they are imported."""
    for logger in TALKATIVE:
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning")  # 2.6 on PyTorch 2.15
    warnings.filterwarnings("ignore", "GPU available but not used")  # Lightning, with device=cpu and a GPU


def run(main: Callable[[], object]) -> None:
    """Call a script's main; on bad input or a signal, print one line on stderr and exit with a status other than 0."""
    quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path or a table's frame may not fit the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
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
    """Whether another process of this project started this one, reports for it and ends it.

    That is so for a job of a joblib or submitit_local sweep, for all but the first process of devices > 1, and for a
    run of a search or a campaign.
    """
    return multiprocessing.parent_process() is not None or _of_a_batch() or _parent() != os.getpid()


def _of_a_batch() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


def child() -> dict[str, str]:
    """The variables that a run started by this process needs in order to end with it."""
    return {PARENT: str(os.getpid())}


def _parent() -> int:
    return int(os.environ.get(PARENT, os.getpid()))


def stoppable(main: Callable[[], object]) -> None:
    """Call a program's main; a signal of STOP ends it at once, with one line on what is safe and how to resume.

    A signal that was ignored when the program started (nohup) stays ignored.
    """

    stopped: list[Stopped] = []

    def stop(number: int, frame: object) -> None:
        for each in STOP:  # a second Ctrl-C would kill joblib's helper and leave its workers running
            signal.signal(each, signal.SIG_IGN)
        stopped.append(Stopped(number))
        raise stopped[0]

    before = {number: signal.getsignal(number) for number in STOP}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        main()
    except BaseException:  # Ray raises another one in place of Stopped
        if not stopped:
            raise
        if not worker():
            say_stopped(f"stopped by {stopped[0].name}")
        raise stopped[0] from None
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # a stopped program ignores them until it ends
                signal.signal(number, handler)


_safe: list[Callable[[], str]] = []


def tell_when_stopped(safe: Callable[[], str]) -> None:
    """Register the function that says which work is safe; the first one counts, since a sweep reports for its runs."""
    _safe.append(safe)


def say_stopped(how: str) -> None:
    """Print one line: how the program was stopped, what is safe, and how to resume."""
    try:
        safe = f": {_safe[0]()}" if _safe else ""
    except (OSError, ValueError) as error:  # a file of the run is damaged or missing
        safe = f": the last checkpoint is safe ({one_line(error)})"
    print(f"{how}{safe}; resume with: {shlex.join(['python', *sys.argv])}", file=sys.stderr, flush=True)


def watch(gone: Callable[[], bool], end: Callable[[], object]) -> None:
    """Start a thread that calls `gone` every WATCH_S seconds, and `end` once it returns true."""

    def look() -> None:
        while not gone():
            time.sleep(WATCH_S)
        end()

    threading.Thread(target=look, daemon=True).start()


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes started in this context never see a signal of the terminal, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(STOP) - {signal.SIGTERM})  # a new process inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_running(pid: int) -> bool:
    """Whether a process of this machine, which has Linux, runs; one that has ended and was not waited for does not."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@cache
def end_with_parent() -> None:
    """In a worker: leave terminal signals to the first process, and end within a second of it."""
    first = multiprocessing.parent_process()
    parent = (first and first.pid) or _parent()
    for number in STOP:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if _of_a_batch():  # exit at once: unwinding would involve Lightning and the other processes
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

    def end() -> None:
        if os.environ.get("LOCAL_RANK") == "1":  # one process reports for all
            how = "stopped: the first process of this run has ended"
            print(f"{how}; the same command resumes from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)  # like a kill: every file stays whole

    started_by_it = os.getppid() == parent  # else by a process of submitit (launchers.py)
    watch(lambda: os.getppid() != parent if started_by_it else not is_running(parent), end)
