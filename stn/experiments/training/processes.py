"""The processes of devices > 1: if one of them ends early, all end, with one line."""

import os
import signal
import subprocess
import time

import pytorch_lightning as pl

from stn.experiments import command


class Others(pl.Callback):
    """Runs in the first process and watches those that Lightning has started: if one ends, all end.

    Lightning's own observer would kill the first process before it can print its line.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.ending = False

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        started: list[subprocess.Popen] = trainer.strategy.launcher.procs  # type: ignore[union-attr]
        self.processes = list(started)
        started.clear()  # so that the observer has nothing to watch
        command.watch(lambda: any(process.poll() for process in self.processes), self.lost)

    def lost(self) -> None:
        """Report that one of them has ended, and exit, unless this process is already ending."""
        time.sleep(command.WATCH_S)  # after a signal to all of them, this process reports the signal
        if not self.ending:
            status = next(process.returncode for process in self.processes if process.returncode)
            command.say_stopped(f"stopped: another process of this run has ended with status {status}")
            self.end()
            os._exit(1)  # the main thread may wait for the lost process forever

    def end(self) -> None:
        """End the watched processes."""
        self.ending = True
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
