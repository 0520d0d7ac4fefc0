"""The processes of devices > 1: where one of them ends before its time, all do, in one line."""

import os
import signal
import subprocess
import time

import pytorch_lightning as pl

from stn.experiments import command


class Others(pl.Callback):
    """In the first process: those that Lightning has started, which end with it, and it with each of them.

    Lightning's own observer would kill the first process, which has a line to say.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.ending = False

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        started: list[subprocess.Popen] = trainer.strategy.launcher.procs  # type: ignore[union-attr]
        self.processes = list(started)
        started.clear()  # which leaves nothing to the observer
        command.watch(lambda: any(process.poll() for process in self.processes), self.lost)

    def lost(self) -> None:
        """Say that one of them has ended, and end, unless this process is ending already."""
        time.sleep(command.WATCH_S)  # a signal to all of them is this process's own to tell of
        if not self.ending:
            status = next(process.returncode for process in self.processes if process.returncode)
            command.say_stopped(f"stopped: another process of this run has ended with status {status}")
            self.end()
            os._exit(1)  # it may wait for the lost one without end

    def end(self) -> None:
        """End them."""
        self.ending = True
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
