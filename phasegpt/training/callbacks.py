"""Callbacks: metrics, random state, early stopping, progress.

A step here is an optimizer step; hooks that run per micro-batch act only when one is complete.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.callbacks import EarlyStopping as LightningEarlyStopping
from tqdm import tqdm

from phasegpt.core.console import tell
from phasegpt.training.callback_config import EarlyStoppingConfig
from phasegpt.training.checkpointing import step_done
from phasegpt.training.gpus import peak_flops

_SILENCE_S = 30.0  # a longer one without a line looks like a run that hangs


class Metrics(Callback):
    """Averages what training_step returns over a step, and logs it every few steps in one call."""

    def __init__(self, every: int, flops_per_token: float) -> None:
        """Log when the step is a multiple of `every`; the FLOPs serve perf/mfu."""
        self.every, self.flops_per_token = every, flops_per_token
        self.latest: dict[str, float] = {}
        self._sums: dict[Any, torch.Tensor] = {}
        self._mark, self._tokens = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch; at a complete step, log and start over."""
        self._tokens += batch["idx"].numel() * trainer.world_size
        done = step_done(trainer, batch_idx)
        due = done and (trainer.global_step % self.every == 0 or trainer.global_step == 1)
        # Only the micro-batches of a step that will be logged need their sums.
        accumulation = trainer.accumulate_grad_batches
        current = batch_idx // accumulation + 1
        if due or (current % self.every == 0 or current == 1):
            self._add("loss", outputs["nll"])
            if outputs["penalty"] is not None:
                self._add("penalty", outputs["penalty"])
            for layer, R_H in outputs["R"].items():
                self._add(layer, R_H)
        if due:
            self._log(trainer, pl_module, accumulation, outputs["lambda"])
        if done:
            self._sums = {}

    def _add(self, key: Any, value: torch.Tensor) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _log(
        self, trainer: pl.Trainer, pl_module: Any, accumulation: int, penalty_weight: float
    ) -> None:
        pl_module.settle()  # what follows waits for the device anyway
        reduce = trainer.strategy.reduce
        mean = {k: reduce(v / accumulation, reduce_op="mean") for k, v in self._sums.items()}
        metrics = {
            "train/loss": mean.pop("loss").item(),
            "train/grad_norm": pl_module.grad_norm.item(),
            "train/lr": pl_module.last_lr,
        }
        if pl_module.skipped is not None:
            metrics["train/skipped_steps"] = pl_module.skipped
        if "penalty" in mean:
            metrics["reg/coherence"] = mean.pop("penalty").item()
            metrics["reg/lambda"] = penalty_weight
        for layer, R_H in mean.items():
            metrics[f"phase/R/layer{layer}"] = R_H.mean().item()
            for head, R in enumerate(R_H.tolist()):
                metrics[f"phase/R/layer{layer}/head{head}"] = R
        if mean:
            layers = [metrics[f"phase/R/layer{layer}"] for layer in mean]
            metrics["phase/R/mean"] = sum(layers) / len(layers)
        seconds = time.perf_counter() - self._mark
        if self._tokens and seconds > 0:
            metrics |= self._speed(self._tokens / seconds, pl_module.device, trainer.world_size)
        self.restart_clock()
        self.send(trainer, metrics)
        watched = {name: value for name, value in metrics.items() if name.startswith("train/")}
        pl_module.log_dict(watched, logger=False)  # for callbacks that monitor

    def _speed(self, tokens_per_s: float, device: torch.device, devices: int) -> dict[str, float]:
        speed = {"perf/tokens_per_s": tokens_per_s}
        if device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(device))
            if peak is not None:
                speed["perf/mfu"] = tokens_per_s * self.flops_per_token / (peak * devices)
        return speed

    def restart_clock(self) -> None:
        """Leave what happened since the last log (a validation, a save) out of the speed."""
        self._mark, self._tokens = time.perf_counter(), 0

    def send(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Give metrics to every logger under the optimizer step."""
        self.latest |= metrics
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log val/*."""
        self.send(trainer, pl_module.validation)
        self.restart_clock()


class RngState(Callback):
    """Carries torch's random state (dropout) through a checkpoint, that of every process."""

    def __init__(self) -> None:
        """Nothing to restore yet."""
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state of the CPU generator and of the GPU in use; of other processes as `ranks`."""
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
        state = {"cpu": torch.get_rng_state(), "cuda": cuda}
        if not torch.distributed.is_initialized():
            return state
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, state)
        return {**state, "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts: set-up in between may draw numbers."""
        self._loaded = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Restore it."""
        if self._loaded is not None:
            ranks = self._loaded.get("ranks", ())
            if len(ranks) == trainer.world_size:  # of another number all draw as the first did
                self._loaded = ranks[trainer.global_rank]
            torch.set_rng_state(self._loaded["cpu"].cpu())
            states, device = self._loaded["cuda"], trainer.strategy.root_device
            if device.type == "cuda" and states:
                # Older checkpoints have the state of every GPU that there was.
                index = device.index if device.index < len(states) else 0
                torch.cuda.set_rng_state(states[index].cpu(), device)


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, on val/ppl; a run resumed after it had stopped stays stopped."""

    def __init__(self, config: EarlyStoppingConfig) -> None:
        """Count validations without an improvement of `min_delta`."""
        assert config.patience is not None
        super().__init__(
            monitor="val/ppl",
            mode="min",
            patience=config.patience,
            min_delta=config.min_delta,
            check_on_train_epoch_end=False,
            check_finite=False,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop again if the patience was already used up."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Solved(Callback):
    """Stops where val/accuracy of a task reaches a threshold; a resumed run stays stopped."""

    def __init__(self, accuracy: float) -> None:
        """Not reached yet."""
        self.accuracy, self.reached = accuracy, False

    def state_dict(self) -> dict[str, Any]:
        """Whether it was reached."""
        return {"reached": self.reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.reached = state_dict["reached"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop again if it was reached."""
        trainer.should_stop |= self.reached

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop; the Saver comes after this."""
        if trainer.state.fn == "fit" and pl_module.validation["val/accuracy"] >= self.accuracy:
            self.reached = trainer.should_stop = True


class Progress(Callback):
    """A bar with loss, R and tokens per second; plain lines where there is no terminal.

    A line says what its own step gave, and what the rest will take at the speed so far.
    """

    def __init__(self, metrics: Metrics, max_steps: int) -> None:
        """The bar shows what `metrics` logged last."""
        self.metrics, self.max_steps = metrics, max_steps
        self._bar: tqdm | None = None
        self._first, self._tokens = 0, 0
        self._begin = self._said = self._mark = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the bar."""
        self._first, self._tokens = trainer.global_step, 0
        self._begin = self._said = self._mark = time.perf_counter()
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=self.max_steps, initial=trainer.global_step, unit="step")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance; refresh the numbers when they are new."""
        step = trainer.global_step
        self._tokens += batch["idx"].numel() * trainer.world_size
        if not step_done(trainer, batch_idx):
            return
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.perf_counter()
        if step % max(1, self.max_steps // 20) == 0 or now - self._said > _SILENCE_S:
            tell(f"step {step}/{self.max_steps} {self._line(step, outputs, now)}")
            self._said = self._mark = now
            self._tokens = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the perplexity, of a task its accuracy too."""
        found = pl_module.validation
        line = f"step {trainer.global_step}/{self.max_steps} validation perplexity "
        line += f"{found['val/ppl']:.4g}"
        if "val/accuracy" in found:
            line += f", accuracy {found['val/accuracy']:.4f}"
        if self._bar is None:
            tell(line)
        else:
            tqdm.write(line, file=sys.stderr)
        self._mark, self._tokens = time.perf_counter(), 0  # a validation is no training

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, step: int, outputs: Any, now: float) -> str:
        words = [f"loss {outputs['nll'].item():.3f}"]
        if outputs["R"]:
            R = torch.stack([R_H.mean() for R_H in outputs["R"].values()]).mean().item()
            words.append(f"R {R:.3f}")
        words.append(f"{self._tokens / (now - self._mark):,.0f} tokens/s")
        left = (now - self._begin) * (self.max_steps - step) / max(1, step - self._first)
        return " ".join(words) + (f", {duration(left)} left" if step < self.max_steps else "")

    def _text(self) -> str:
        shown = {"train/loss": "loss {:.3f}", "phase/R/mean": "R {:.3f}"}
        shown["perf/tokens_per_s"] = "{:,.0f} tokens/s"
        found = self.metrics.latest
        return " ".join(form.format(found[name]) for name, form in shown.items() if name in found)


def duration(seconds: float) -> str:
    """Seconds in the unit in which a person would say them."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{seconds / 60:.0f} minutes"
