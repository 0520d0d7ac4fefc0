"""The wall clock and CPU time of a run's steps, without the time while it is suspended."""

import signal
import threading
import time


class Clock:
    """A context that measures `seconds`, and `core_seconds` of all threads of this process.

    The kernel does not tell when a process is suspended (Ctrl-Z, SIGSTOP), but sends SIGCONT when it continues.  So the
    time between the last tick and SIGCONT is not counted.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.core_seconds = 0.0

    def __enter__(self) -> None:
        self.last, self.cpu = time.perf_counter(), time.process_time()
        if self.may_handle():
            self.before = signal.signal(signal.SIGCONT, self.skip)

    @staticmethod
    def may_handle() -> bool:
        """Whether SIGCONT exists (not on Windows) and this is the main thread, which alone may set a handler."""
        return hasattr(signal, "SIGCONT") and threading.current_thread() is threading.main_thread()

    def tick(self) -> None:
        """Count the time since the last tick; call it about once per step."""
        now = time.perf_counter()
        self.seconds += now - self.last
        self.last = now

    def skip(self, *_: object) -> None:
        """Discard the time since the last tick."""
        self.last = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.tick()
        self.core_seconds += time.process_time() - self.cpu
        if self.may_handle():
            signal.signal(signal.SIGCONT, self.before)
