"""The progress of a run: a bar over its steps, then one over its test batches."""

import sys
import threading

import pytorch_lightning as pl
from tqdm import tqdm

TRAINING = (
    "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}, {rate_fmt}]"  # narrow terminals cut off the end
)


class Progress(pl.Callback):
    """A bar with the time left and the objective's report on the last block.

    A thread draws it every second, however long a step or a block takes; without a terminal, every half minute.
    """

    def __init__(self, name: str):
        self.name = name

    def on_train_start(self, trainer, module) -> None:
        done = trainer.current_epoch * module.schedule.block_steps
        module.done = done
        self.open(
            lambda: module.done, total=module.schedule.steps, initial=done, desc=self.name, unit="step",
            bar_format=TRAINING,
        )  # fmt: skip

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        entry = module.curve[-1]
        shown = {key.removeprefix("train/"): value for key, value in entry.items() if key.startswith("train/")}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)

    def on_test_start(self, trainer, module) -> None:
        self.batches = 0
        self.open(lambda: self.batches, desc=f"{self.name}: testing", unit="batch", leave=False)

    def on_test_batch_end(self, *_) -> None:
        self.batches += 1

    def open(self, done, **how) -> None:
        """Show a bar, which calls `done` for the steps so far, until it is closed."""
        self.bar = tqdm(dynamic_ncols=True, **how)
        self.over = threading.Event()
        every_s = 1 if sys.stderr.isatty() else 30

        def draw() -> None:
            more = True
            while more:
                more = not self.over.wait(every_s)
                self.bar.n = done()
                self.bar.refresh()

        self.drawing = threading.Thread(target=draw, daemon=True)
        self.drawing.start()

    def on_exception(self, trainer, module, exception) -> None:
        self.close()

    def teardown(self, trainer, module, stage) -> None:
        self.close()

    def close(self) -> None:
        """End the bar's line, if there is one."""
        if hasattr(self, "bar"):
            self.over.set()
            self.drawing.join()
            self.bar.close()
            del self.bar
