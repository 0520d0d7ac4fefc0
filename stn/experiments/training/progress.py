"""Where a run stands: one bar over its steps."""

import pytorch_lightning as pl
from tqdm import tqdm


class Progress(pl.Callback):
    """One bar over the steps of a run, with the time left and what the objective reports of the last block."""

    def __init__(self, name: str):
        self.name = name

    def on_train_start(self, trainer, module) -> None:
        done = trainer.current_epoch * module.schedule.block_steps
        self.bar = tqdm(
            total=module.schedule.steps, initial=done, desc=self.name, unit="step", dynamic_ncols=True, mininterval=1
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        entry = module.curve[-1]
        shown = {key.removeprefix("train/"): value for key, value in entry.items() if key.startswith("train/")}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
        self.bar.update(int(entry["step"]) - self.bar.n)

    def teardown(self, trainer, module, stage) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
