"""Saving a run: verified checkpoints, when they are due, and stopping on a signal.

A step here is an optimizer step; hooks that run per micro-batch act only when one is complete.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError, Interrupted
from phasegpt.model import checkpoint
from phasegpt.training.late import Late
from phasegpt.training.run_folder import RunFolder, step_of
from phasegpt.training.signals import StopSignals

#: What best.ckpt leaves out of a step's checkpoint: all that only a resumed training needs.
_FOR_RESUME = ("optimizer_states", "lr_schedulers", "loops", "callbacks")


def step_done(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True when this micro-batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """True when Lightning validates right after this micro-batch."""
    last = 0 < trainer.max_steps <= trainer.global_step
    interval = int(trainer.val_check_batch or 0)
    return last or trainer.should_stop or (batch_idx + 1) % interval == 0


class VerifiedIO(CheckpointIO):
    """Lightning's door to phasegpt.model.checkpoint: atomic, hashed, weights only."""

    def __init__(self, save: Callable[[dict[str, Any], Path], None] = checkpoint.save) -> None:
        self._save = save

    def save_checkpoint(self, checkpoint_: Any, path: Any, storage_options: Any = None) -> None:
        """See phasegpt.model.checkpoint.save."""
        self._save(checkpoint_, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See phasegpt.model.checkpoint.read."""
        return checkpoint.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """See phasegpt.model.checkpoint.remove."""
        checkpoint.remove(Path(path))


class Writer:
    """Runs one job at a time in a thread beside the training; its error is raised by what follows.

    A job that is handed over while another runs waits for it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Wait for the job before, then start this one."""
        self.wait()
        # No daemon: a process that ends by itself finishes what it writes.
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a job that has failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when nothing is being written; raises what the last job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error


def copied(value: Any, made: dict[Any, torch.UntypedStorage] | None = None) -> Any:
    """A copy on the CPU of nested dicts, lists and tuples of tensors; shared memory stays shared.

    It is what a checkpoint writes while the training goes on with the original.
    """
    made = {} if made is None else made
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        key = value.device, storage.data_ptr()
        if key not in made:
            made[key] = storage.clone() if value.device.type == "cpu" else storage.cpu()
        empty = torch.empty(0, dtype=value.dtype)
        return empty.set_(made[key], value.storage_offset(), value.size(), value.stride())
    if isinstance(value, dict):
        twin = copy.copy(value)  # a state_dict's metadata comes along
        for key in twin:
            twin[key] = copied(twin[key], made)
        return twin
    if type(value) in (list, tuple):
        return type(value)(copied(item, made) for item in value)
    return value


class Saver(Checkpoint):
    """Saves every `every` steps, at validations that improve, at the end, and when stopped.

    When a validation is due, the save waits for it, so that a checkpoint always stands after
    everything that belongs to its step. A save costs the training a copy in memory; it is written
    beside the training, one at a time. Keeps the newest two checkpoints, and the best weights as
    best.ckpt; with `best_whole` that is a link to a whole checkpoint of its step, as a rollback
    needs it. Of several processes all take part in a save, and the first one alone writes and
    listens for signals.
    """

    def __init__(
        self,
        folder: RunFolder,
        every: int,
        *,
        best_whole: bool = False,
        stop: StopSignals | None = None,
    ) -> None:
        """Save into folder/checkpoints; the loggers are written out before each save."""
        super().__init__()
        self.folder, self.every, self.best_whole = folder, every, best_whole
        self.directory = folder.path / "checkpoints"
        self.stop = StopSignals() if stop is None else stop
        self.writer = Writer()
        self.best: dict[str, float] = {}
        self._improved = False
        #: Whether a step has been made, so that what was restored has served.
        self.stepped = False
        self._step: int | None = None
        self._told = Late()
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
        """Go on from a checkpoint; ConfigError for what is no state of this."""
        self._seconds_before = arguments.between("wall_seconds", state_dict["wall_seconds"], 0)
        self.best = dict(state_dict["best"])
        if not all(isinstance(value, int | float) for value in self.best.values()):
            raise ConfigError(f"best={arguments.seen(self.best)} must hold numbers")

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Remember its step, which the restored loops must have."""
        self._step = checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen for signals; drop what lies past the step we start from, or was half written."""
        self._begin = time.perf_counter()
        if self._step not in (None, trainer.global_step):
            raise ConfigError(f"global_step={self._step}, and its loops at {trainer.global_step}")
        if not trainer.is_global_zero:
            return
        self.stop.defer()
        for logger in trainer.loggers:
            if hasattr(logger, "cut"):  # metrics.csv, TensorBoard
                logger.cut(trainer.global_step)
        for partial in self.directory.glob(".*.tmp"):
            partial.unlink()
        self._mend_links(trainer.global_step)
        for path in self._steps():
            if step_of(path) > trainer.global_step and path != self._best_file():
                checkpoint.remove(path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if due, unless a validation comes first."""
        self.writer.check()
        self.stepped = self.stepped or step_done(trainer, batch_idx)
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

    def write(self, payload: dict[str, Any], path: Path) -> None:
        """Copy a checkpoint and have it written, linked and recorded beside the training.

        One of a callback of the user's own, such as Lightning's ModelCheckpoint, is only written.
        """
        if path != self.path(payload["global_step"]):
            checkpoint.save(payload, path)
            return
        payload, best = copied(payload), dict(self.best)
        self.writer.start(lambda: self._write(payload, path, best, self._improved))

    def _save(self, trainer: pl.Trainer, best: bool = False) -> None:
        for logger in trainer.loggers:
            getattr(logger, "write", logger.save)()  # of metrics.csv the open row
        self._improved = best
        trainer.save_checkpoint(self.path(trainer.global_step))

    def _write(
        self, payload: dict[str, Any], path: Path, best: dict[str, float], improved: bool
    ) -> None:
        step = step_of(path)
        if improved and not self.best_whole:
            # First: whoever resumes at this step finds its best weights; whoever resumes before
            # it makes them again.
            lean = {key: value for key, value in payload.items() if key not in _FOR_RESUME}
            checkpoint.save(lean, self.directory / "best.ckpt")
        checkpoint.save(payload, path)
        if improved and self.best_whole:
            checkpoint.link(path, "best.ckpt")
        checkpoint.link(path, "last.ckpt")
        kept = [p for p in self._steps() if step_of(p) <= step][-2:]
        for old in self._steps():
            if step_of(old) < step_of(kept[0]) and old != self._best_file():
                checkpoint.remove(old)
        self.folder.update(step=step, best=best or None)

    def _mend_links(self, step: int) -> None:
        """Point the names at what they mean where a copy of the run lost them."""
        if self.path(step).is_file():
            checkpoint.link(self.path(step), "last.ckpt")
        name = self.directory / "best.ckpt"
        own = name.with_name(f"{name.name}.sha256").is_file() and name.is_file()
        if self.best and not own and not (name.is_symlink() and name.exists()):
            best = self.path(int(self.best["step"]))
            if best.is_file():
                checkpoint.link(best, "best.ckpt")

    def _signal(self, trainer: pl.Trainer) -> int:
        """The signal that the first process has received, or 0; the same on all.

        Of several, what it had received when this was asked last: so no GPU waits for the answer.
        """
        signum = self.stop.signum or 0
        if trainer.world_size == 1:
            return signum
        before = self._told.read()
        total = torch.full((), float(signum), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(total)
        self._told.send(total)
        return int(before or 0)

    def _obey(self, trainer: pl.Trainer, signum: int) -> None:
        if signum:
            self.writer.wait()
            self.stop.hold()
            raise Interrupted(
                f"stopped by signal {signum} after step {trainer.global_step}; "
                f"checkpoint saved. Run the same command with resume=true to go on",
                signum,
            )

    def _steps(self) -> list[Path]:
        return sorted(self.directory.glob("step-*.ckpt"))

    def _best_file(self) -> Path:
        return (self.directory / "best.ckpt").resolve()
