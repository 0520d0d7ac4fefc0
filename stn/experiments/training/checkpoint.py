"""Checkpoints that survive a kill at any moment, and that load plain values only."""

import io
import time
import zipfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stn.experiments.errors import first_line, writing
from stn.experiments.results import records

BOUND = ("id", "data_sha256")  # keys of the record that are stored in the checkpoint


class InPlace(TorchCheckpointIO):
    """Writes directly to the path; Lightning's own goes through the temporary folder, which may be full."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)  # writing directly to a full disk would end in a RuntimeError
        with writing(Path(path)), open(path, "wb") as file:
            file.write(content.getbuffer())


class Checkpoint(pl.Callback):
    """After a block, at most every `every_s` seconds, writes the whole state to `path` atomically.

    The record up to the checkpoint goes into unfinished.json beside it, for `status` and for the message after a stop.
    """

    def __init__(self, path: Path, every_s: int | float, record: records.Record | None = None):
        self.path = path
        self.every_s = every_s
        self.record = record
        self.last = time.monotonic()

    def on_train_start(self, trainer, module) -> None:
        self.note(trainer, module)

    def on_train_epoch_end(self, trainer, module) -> None:
        # one process may be a little later than another: all of them save, or none
        if trainer.strategy.reduce_boolean_decision(time.monotonic() - self.last >= self.every_s, all=False):
            self.save(trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        if self.record is not None:
            checkpoint |= {key: self.record[key] for key in BOUND}

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint now."""
        scratch = self.path.with_suffix(".tmp")
        if trainer.is_global_zero:  # another process, a little later, would delete the file
            scratch.unlink(missing_ok=True)
        try:
            trainer.save_checkpoint(scratch)
            if trainer.is_global_zero:
                records.commit(scratch, self.path)
        finally:
            if trainer.is_global_zero:
                scratch.unlink(missing_ok=True)
        self.note(trainer, trainer.lightning_module)
        self.last = time.monotonic()

    def note(self, trainer, module) -> None:
        """Write the record up to the last checkpoint."""
        if self.record is not None and trainer.is_global_zero:
            times = {"seconds": module.clock.seconds, "core_seconds": module.clock.core_seconds}
            so_far = {"step": int(module.curve[-1]["step"]) if module.curve else 0, "sessions": module.sessions}
            rounded = {key: round(value, 2) for key, value in times.items()}
            records.write(self.path.with_name("unfinished.json"), self.record | so_far | rounded)


def check(path: Path, record: records.Record | None = None) -> None:
    """Raise ValueError unless `path` is an undamaged checkpoint of this project, of that record's run and data."""
    remedy = "delete it to start this run afresh"
    try:
        with zipfile.ZipFile(path) as file:
            spoilt = file.testzip()  # PyTorch writes these checksums but does not read them
        if spoilt is not None:
            raise ValueError(f"the checksum of {spoilt} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"state_dict", "optimizer_states", "loops", "curve", "seconds"} - set(state)
    except Exception as error:  # on arbitrary bytes, the unpickler may raise anything
        raise ValueError(f"the checkpoint {path} is damaged ({first_line(error)}): {remedy}") from None
    if missing:
        raise ValueError(f"the checkpoint {path} lacks {', '.join(sorted(missing))}: {remedy}")
    if record is not None:  # older checkpoints lack some of these keys
        if state.get("id", record["id"]) != record["id"]:
            raise ValueError(f"the checkpoint {path} belongs to another run, {state['id']}: {remedy}")
        if state.get("data_sha256", record["data_sha256"]) != record["data_sha256"]:
            raise ValueError(f"the checkpoint {path} was trained on other data than are here now: {remedy}")
    weights = state["state_dict"] if isinstance(state["state_dict"], dict) else {"state_dict": None}
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or not value.isfinite().all():
            raise ValueError(f"the checkpoint {path} holds weights that are not finite, {name}: {remedy}")
