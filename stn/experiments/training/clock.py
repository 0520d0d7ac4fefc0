"""How long a run trains: wall clock and CPU time of its steps, neither of which goes on while it is suspended."""

import signal
import threading
import time


class Clock:
    """A context in which both go on: `seconds`, and `core_seconds` of all threads of this process.

    The kernel does not say when a process was stopped (Ctrl-Z, SIGSTOP), but sends SIGCONT when it goes on.  The time
    between the last tick and SIGCONT is therefore not counted.
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
        """Whether SIGCONT is there (not on Windows), and a handler may be set: by the first thread alone."""
        return hasattr(signal, "SIGCONT") and threading.current_thread() is threading.main_thread()

    def tick(self) -> None:
        """Count what has passed since the last tick; to be called about once a step."""
        now = time.perf_counter()
        self.seconds += now - self.last
        self.last = now

    def skip(self, *_: object) -> None:
        """Leave out what has passed since the last tick."""
        self.last = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.tick()
        self.core_seconds += time.process_time() - self.cpu
        if self.may_handle():
            signal.signal(signal.SIGCONT, self.before)
