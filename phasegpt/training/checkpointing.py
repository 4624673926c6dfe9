"""Saving a run: verified checkpoints, when they are due, and stopping on a signal.

A step here is an optimizer step; hooks that run per micro-batch act only when one is complete.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from phasegpt.core.errors import Interrupted
from phasegpt.model import checkpoint
from phasegpt.training.run_folder import RunFolder, step_of


def step_done(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True when this micro-batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True when Lightning validates right after this micro-batch."""
    last = trainer.global_step >= trainer.max_steps
    interval = int(trainer.val_check_batch or 0)
    return last or trainer.should_stop or (batch_idx + 1) % interval == 0


class VerifiedIO(CheckpointIO):
    """Lightning's door to phasegpt.model.checkpoint: atomic, hashed, weights only."""

    def save_checkpoint(self, checkpoint_: Any, path: Any, storage_options: Any = None) -> None:
        """See phasegpt.model.checkpoint.save."""
        checkpoint.save(checkpoint_, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See phasegpt.model.checkpoint.read."""
        return checkpoint.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """See phasegpt.model.checkpoint.remove."""
        checkpoint.remove(Path(path))


class StopSignals:
    """SIGINT and SIGTERM, remembered until the step is complete; a second SIGINT stops at once."""

    def __init__(self) -> None:
        """Nothing received yet."""
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def install(self, *, listen: bool = True) -> None:
        """Take the signals over (in the main thread only), or ignore them."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(
                    signum, self._receive if listen else signal.SIG_IGN
                )

    def restore(self) -> None:
        """Give the signals back."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _receive(self, signum: int, frame: Any) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        sys.stderr.write("\nstopping after this step; a checkpoint will be saved\n")


class Saver(Checkpoint):
    """Saves every `every` steps, at validations that improve, at the end, and when stopped.

    When a validation is due, the save waits for it, so that a checkpoint always stands after
    everything that belongs to its step. Keeps the newest two checkpoints and the best. Of several
    processes all take part in a save, and the first one alone writes and listens for signals.
    """

    def __init__(self, folder: RunFolder, every: int) -> None:
        """Save into folder/checkpoints; the loggers are written out before each save."""
        super().__init__()
        self.folder, self.every = folder, every
        self.directory = folder.path / "checkpoints"
        self.stop = StopSignals()
        self.best: dict[str, float] = {}
        self._seconds_before, self._begin = 0.0, time.perf_counter()

    @property
    def wall_seconds(self) -> float:
        """Seconds of training in this run, earlier parts included."""
        return self._seconds_before + time.perf_counter() - self._begin

    def path(self, step: int) -> Path:
        """The checkpoint file of a step."""
        return self.directory / f"step-{step:08d}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {"best": self.best, "wall_seconds": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self._seconds_before = state_dict["best"], state_dict["wall_seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen for signals; drop what lies past the step we start from, or was half written."""
        self.stop.install(listen=trainer.is_global_zero)
        self._begin = time.perf_counter()
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if hasattr(logger, "cut"):  # metrics.csv, TensorBoard
                logger.cut(trainer.global_step)
        for partial in self.directory.glob(".*.tmp"):
            partial.unlink()
        for path in self._steps():
            if step_of(path) > trainer.global_step and path != self._best_file():
                checkpoint.remove(path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if due, unless a validation comes first."""
        if not step_done(trainer, batch_idx) or validation_follows(trainer, batch_idx):
            return
        signum = self._signal(trainer)
        if trainer.global_step % self.every == 0 or signum:
            self._save(trainer)
        self._obey(trainer, signum)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save if this validation is the best, or if a save is due at its step."""
        if trainer.state.fn != "fit":
            return
        step, values = trainer.global_step, pl_module.validation
        improved = values["val/ppl"] < self.best.get("val/ppl", float("inf"))
        if improved:
            self.best = {"step": step, **values}
        signum = self._signal(trainer)
        if improved or step % self.every == 0 or trainer.should_stop or signum:
            self._save(trainer, best=improved)
        self._obey(trainer, signum)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Give the signals back."""
        self.stop.restore()

    def _save(self, trainer: pl.Trainer, best: bool = False) -> None:
        for logger in trainer.loggers:
            logger.save()
        path = self.path(trainer.global_step)
        trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        checkpoint.link(path, "last.ckpt")
        if best:
            checkpoint.link(path, "best.ckpt")
        kept = [p for p in self._steps() if step_of(p) <= trainer.global_step][-2:]
        for old in self._steps():
            if step_of(old) < step_of(kept[0]) and old != self._best_file():
                checkpoint.remove(old)
        self.folder.update(step=trainer.global_step, best=self.best or None)

    def _signal(self, trainer: pl.Trainer) -> int:
        """The signal that the first process has received by now, or 0; the same on all."""
        signum = self.stop.signum or 0
        if trainer.world_size == 1:
            return signum
        total = torch.tensor(signum, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(total, reduce_op="sum"))

    def _obey(self, trainer: pl.Trainer, signum: int) -> None:
        if signum:
            raise Interrupted(
                f"stopped by signal {signum} after step {trainer.global_step}; "
                f"checkpoint saved. Run the same command with resume=true to go on",
                signum,
            )

    def _steps(self) -> list[Path]:
        return sorted(self.directory.glob("step-*.ckpt"))

    def _best_file(self) -> Path:
        return (self.directory / "best.ckpt").resolve()
