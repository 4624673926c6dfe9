"""CollapseGuard: what to do when the loss or the synchronization of a run collapses.

A loss that is not finite ends every run by itself (errors.Collapsed), with or without the guard.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from phasegpt.model import checkpoint
from phasegpt.training.callback_config import CollapseGuardConfig
from phasegpt.training.callbacks import Metrics
from phasegpt.training.checkpointing import Saver


class CollapseGuard(Callback):
    """Judges every validation, and stops, rolls back or reports.

    Collapse of loss: val/loss above `loss_factor` times the best so far. Collapse of
    synchronization: for `patience` validations in a row, the mean R of some layer over the whole
    validation (R as in Phase.R: over what is coupled) was below R_low or above R_high.

    A rollback takes place before the next batch: weights and the optimizer's state become those of
    the best checkpoint, and K of every phase layer is multiplied by `coupling_factor` (divided by
    it where R was too low), once more for each rollback to the same checkpoint. Step count,
    learning rate, data order and an adaptive lambda go on. A collapse after `max_rollbacks` stops
    the run.

    All of its state is in the checkpoint, so a resumed run does the same. `events` says in words
    what happened and ends up in run.json as `guard`.
    """

    def __init__(self, config: CollapseGuardConfig, metrics: Metrics, saver: Saver) -> None:
        """Log through `metrics`; roll back to the best checkpoint of `saver`."""
        self.config, self.metrics, self.saver = config, metrics, saver
        self.events: list[str] = []
        self.stopped = False
        self._in_a_row = 0
        self._pending: float | None = None  # factor of K for a rollback that is due
        self._rollbacks: list[list[float]] = []  # step of the checkpoint, factor of K
        self._sums: dict[int, tuple[torch.Tensor, int]] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this."""
        return {
            "events": list(self.events),
            "stopped": self.stopped,
            "in_a_row": self._in_a_row,
            "pending": self._pending,
            "rollbacks": [list(pair) for pair in self._rollbacks],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.events, self.stopped = state_dict["events"], state_dict["stopped"]
        self._in_a_row, self._pending = state_dict["in_a_row"], state_dict["pending"]
        self._rollbacks = state_dict["rollbacks"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop again if it had stopped."""
        if self.stopped:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the sums of a validation."""
        self._sums = {}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add R at every position that is scored."""
        scored_BT = batch["targets"] >= 0
        for layer, phase in outputs["phase"].items():
            R = phase.R[scored_BT]
            total, count = self._sums.get(layer, (0.0, 0))
            self._sums[layer] = (total + R.double().sum(), count + R.numel())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Judge, log R and guard/*, and act; the Saver comes after this."""
        R = {layer: float(total) / count for layer, (total, count) in self._sums.items()}
        R = trainer.strategy.broadcast(R)  # so that all processes act alike
        loss = pl_module.validation["val/loss"]
        found, in_a_row = self._collapse(loss, R), self._in_a_row
        if found is not None:
            self._act(trainer, *found)
        logged = {f"phase/val/R/layer{layer}": mean for layer, mean in R.items()}
        logged |= {"guard/in_a_row": in_a_row, "guard/rollbacks": len(self._rollbacks)}
        logged["guard/collapsed"] = found is not None
        self.metrics.send(trainer, logged)

    def _collapse(self, loss: float, R: dict[int, float]) -> tuple[str, float] | None:
        """What collapsed, in words, and the factor of K against it; None if nothing did."""
        c = self.config
        out = {layer: mean for layer, mean in R.items() if not c.R_low <= mean <= c.R_high}
        self._in_a_row = self._in_a_row + 1 if out else 0
        best = self.saver.best.get("val/loss")
        if best is not None and loss > c.loss_factor * best:
            return f"val/loss is {loss:.4g}, {loss / best:.2f} times the best", c.coupling_factor
        if self._in_a_row < c.patience:
            return None
        layer, mean = max(out.items(), key=lambda item: abs(item[1] - (c.R_low + c.R_high) / 2))
        low = mean < c.R_low
        limit = f"below {c.R_low}" if low else f"above {c.R_high}"
        factor = 1 / c.coupling_factor if low else c.coupling_factor
        return f"R of layer {layer} is {mean:.3f}, {limit}, validation {self._in_a_row}", factor

    def _act(self, trainer: pl.Trainer, why: str, factor: float) -> None:
        c, step = self.config, trainer.global_step
        if c.action == "rollback" and len(self._rollbacks) < c.max_rollbacks:
            self._pending, self._in_a_row = factor, 0
            done = f"the next step starts from the best checkpoint, K times {factor:g}"
        elif c.action == "report":
            done = "reported only"
        else:
            self.stopped = trainer.should_stop = True
            done = f"stopped after {c.max_rollbacks} rollbacks" if self._rollbacks else "stopped"
        self.events.append(f"step {step}: {why}; {done}")
        if trainer.is_global_zero:
            warnings.warn(f"collapse guard, {self.events[-1]}", stacklevel=2)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Roll back if that is due: here, so that what was validated has been saved as it was."""
        if self._pending is None:
            return
        best = int(self.saver.best["step"])
        self._rollbacks.append([best, self._pending])
        self._pending = None
        self.saver.writer.wait()  # the best may be the one that is being written,
        trainer.strategy.barrier()  # by the first process
        payload = checkpoint.read(self.saver.path(best))
        pl_module.load_state_dict(payload["state_dict"])
        (optimizer,), (saved,) = trainer.optimizers, payload["optimizer_states"]
        # The groups hold the learning rate of today's step.
        optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
        with torch.no_grad():
            for oscillators in pl_module.model.oscillators.values():
                path = optimizer.state.get(oscillators.coupling, {}).get("z")  # of schedule_free,
                for step, factor in self._rollbacks:  # to which its mean would go back
                    if step == best:
                        oscillators.coupling.mul_(factor)
                        if path is not None:
                            path.mul_(factor)
