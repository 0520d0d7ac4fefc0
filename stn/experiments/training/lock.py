"""One process per run: its lock, and a sign of life that others can read without the lock."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

BEAT_S = 10  # between two signs of life
DEAD_S = 60  # after this time without one a run counts as stopped; network file systems update times late


@contextmanager
def locked(folder: Path, wait_s: int | float) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created if needed, and touch it every BEAT_S seconds.

    Raises ValueError if the folder is not writable, or if another process holds its lock for `wait_s` seconds.
    """
    path = folder / "lock"
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise ValueError(
            f"another process is working on this run: {folder}; wait for it, or change a setting"
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot write the run folder {folder} ({error.strerror}): set runs_dir to a writable folder"
        ) from None
    over = threading.Event()

    def beat() -> None:
        with suppress(OSError):  # the folder was deleted
            os.utime(path)
            while not over.wait(BEAT_S):
                os.utime(path)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with suppress(OSError):
            os.utime(path, (0, 0))  # stopped from now on
        lock.release()


def held(folder: Path) -> bool:
    """Whether a process is working on the run of a folder: it gave a sign of life in the last DEAD_S seconds."""
    try:
        return time.time() - (folder / "lock").stat().st_mtime < DEAD_S
    except FileNotFoundError:
        return False
