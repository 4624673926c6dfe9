"""LitGPT: the training step, validation and optimizer of a GPT, as a LightningModule.

What a step measures is returned from it (`nll`, `penalty`, `R`, phases), for callbacks to average
and log.

Shapes: B batch, T time, H heads, N oscillators, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.attention import Phase
from phasegpt.core import arguments, targets
from phasegpt.core.errors import Collapsed, ConfigError
from phasegpt.data.config import TaskConfig
from phasegpt.data.tokenizers import from_state
from phasegpt.data.windows import IGNORED
from phasegpt.model import documents
from phasegpt.model.gpt import GPT, GPTOutput
from phasegpt.model.scoring import Tally, bytes_by_token, nats, perplexity
from phasegpt.phase.steering import (
    NoiseKey,
    PenaltyWeight,
    Perturbation,
    coherence,
    coherence_regularizer,
)
from phasegpt.training.callbacks import Metrics
from phasegpt.training.checkpointing import step_done
from phasegpt.training.config import RunConfig
from phasegpt.training.datamodule import DataModule, epoch_steps
from phasegpt.training.diagnosis import diagnosis, gradients_again
from phasegpt.training.finite import FiniteWatch, restorer
from phasegpt.training.optim import build_optimizer, build_schedule
from phasegpt.training.optimizers import ScheduleFree
from phasegpt.training.sharding import Sharded, whole


class LitGPT(pl.LightningModule):
    """A GPT and how it is trained. `config` and `tokenizer` are plain and go into checkpoints.

    Its weights are fresh: `init_from` is read by fit, and with phasegpt.model.pretrained.
    """

    def __init__(self, config: dict[str, Any], tokenizer: dict[str, Any], vocab_size: int) -> None:
        """Build the model of `config` (a RunConfig's dict) for `vocab_size` tokens."""
        super().__init__()
        self.save_hyperparameters()
        self.run = RunConfig.parse(config)
        shape = self.run.gpt(vocab_size)
        if shape.match_parameters:  # what is saved has the width that was found
            self.run = replace(self.run, model=replace(self.run.model, mlp_width=shape.mlp_width))
            self.hparams["config"] = self.run.to_dict()
        self.model = GPT(shape, seed=self.run.seed)
        r = self.run.regularizer
        self.penalty_weight = PenaltyWeight(
            r.schedule, weight=r.weight, target=r.target, warmup_steps=r.warmup_steps
        )
        self._order: list[Tensor] = []  # R of each micro-batch, for an adaptive weight
        self.grad_norm: Tensor | None = None
        self.last_lr = 0.0  # of the last step; the schedule is at the next one when it is logged
        self._finite = FiniteWatch(self.run.trainer.skip_nonfinite)
        self._undo: list[Callable[[], None]] = []  # of what counts the last step as made
        self.register_state_dict_pre_hook(_settled)
        self._bytes_V: Tensor | None = None  # of every token, once a validation has begun
        self._task = self.run.data if isinstance(self.run.data, TaskConfig) else None
        self.validation: dict[str, float] = {}
        self._read = False  # whether its configuration is a checkpoint's

    @property
    def lr(self) -> float:
        """The learning rate after the warm-up; Lightning's lr_find sets it."""
        return self.run.optimizer.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.run = replace(self.run, optimizer=replace(self.run.optimizer, lr=float(value)))
        self.hparams["config"] = self.run.to_dict()

    @property
    def _reports(self) -> bool:
        """Whether it logs by itself: in a trainer without the callback that does it in a run."""
        trainer: Any = self._trainer
        return trainer is not None and not any(isinstance(c, Metrics) for c in trainer.callbacks)

    def forward(self, idx_BT: Tensor) -> Tensor:
        """Logits [B,T,V]."""
        return self.model(idx_BT).logits

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Move all but what is read here: reading it back would wait for the GPU."""
        here = ("sample", "begins", "load")
        moved = {name: value for name, value in batch.items() if name not in here}
        return batch | super().transfer_batch_to_device(moved, device, dataloader_idx)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Loss of one micro-batch: cross-entropy plus the coherence penalty, and what to log."""
        # Forward, with noise that the step, the sample and the layer determine.
        self._last_batch = batch
        r = self.run.regularizer
        if r.schedule == "adaptive" and self._finite.allowed:
            self.settle()  # before lambda is read: a step that was left out did not move it
        out = self._predict(
            batch,
            perturbations=self._perturbations(batch),
            return_phase="coupling" if r.mode != "none" and r.through == "coupling" else True,
        )
        total, count = nats(out.logits, self._targets(batch))
        nll = total / count.clamp(min=1)  # a document of one token has no target

        # The penalty on R, under its weight of this step.
        weight = self.penalty_weight.at(self.global_step)
        penalty = self._penalty(out, weight)
        loss = nll if penalty is None else nll + penalty
        if self._reports:
            self.log("train/loss", nll.detach(), prog_bar=True)

        # What callbacks log, without a graph.
        R_H = {layer: _per_head(phase) for layer, phase in out.phase.items()}
        return {"loss": loss, "nll": nll, "penalty": penalty, "lambda": weight, "R": R_H}

    def _predict(self, batch: dict[str, Tensor], **words: Any) -> GPTOutput | documents.Packed:
        """The model on a batch: every document alone where the batch says where they begin.

        Of a task the logits are [M,V], of the scored positions alone, see `_targets`.
        """
        if "begins" in batch:
            return documents.forward(self.model, batch["idx"], batch["begins"], **words)
        if self._task is not None:
            words["only_BT"] = batch["targets"] != IGNORED
        return self.model(batch["idx"], **words)

    def _targets(self, batch: dict[str, Tensor]) -> Tensor:
        """The targets of what `_predict` gives logits of: [B,T], or of a task [M]."""
        targets_BT = batch["targets"]
        return targets_BT if self._task is None else targets_BT[targets_BT != IGNORED]

    def _perturbations(self, batch: dict[str, Tensor]) -> dict[int, Perturbation]:
        """The noise of this step's samples; batches that do not number them are for models without.

        Our DataModule numbers them as `sample`.
        """
        rows, time = batch["idx"].shape
        samples = tuple(batch["sample"].tolist()) if "sample" in batch else tuple(range(rows))
        key = NoiseKey(self.run.seed, self.global_step, samples)
        drawn = self.model.draw_perturbations(key, time)
        if drawn and "sample" not in batch:
            raise ConfigError(
                "attention.noise_sigma and attention.frequency_jitter need a batch that numbers "
                "its rows: batch['sample'], as phasegpt's DataModule gives it; add it, or set both "
                "to 0"
            )
        return drawn

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """Add the batch's summed nats, scored tokens or those of a task; return phases."""
        self._last_batch = batch
        out = self._of_all_rows(batch)
        if self._task is not None:
            self._tally.add(out.logits, batch["targets"], int(batch["load"]))
            return {"phase": out.phase}
        total, count = nats(out.logits, batch["targets"])
        self._val_nats += total.double()
        self._val_tokens += count
        assert self._bytes_V is not None
        scored = batch["targets"] != IGNORED
        self._val_bytes += (self._bytes_V[batch["targets"] * scored] * scored).sum()
        return {"phase": out.phase}

    def _of_all_rows(self, batch: dict[str, Tensor]) -> GPTOutput | documents.Packed:
        """The model on a batch with its phases; compiled always on as many rows.

        The last batch of a split would cost a graph of its own.
        """
        rows, full = len(batch["idx"]), self.run.data.batch_size
        plain = "begins" not in batch and self._task is None
        if not plain or rows >= full or self.model._compiled_call_impl is None:
            return self._predict(batch, return_phase=True)
        idx_BT = F.pad(batch["idx"], (0, 0, 0, full - rows))
        out = self.model(idx_BT, return_phase=True)
        phase = {layer: Phase(*(x[:rows] for x in found)) for layer, found in out.phase.items()}
        return GPTOutput(out.logits[:rows], phase)

    def on_validation_epoch_start(self) -> None:
        """Start the sums of a validation, of weights that a finite gradient has made."""
        self.settle()
        if self._task is not None:
            self._tally = Tally()
            return
        self._val_nats = torch.zeros((), dtype=torch.float64, device=self.device)
        self._val_tokens = torch.zeros((), dtype=torch.int64, device=self.device)
        self._val_bytes = torch.zeros((), dtype=torch.int64, device=self.device)
        if self._bytes_V is None:
            self._bytes_V = bytes_by_token(from_state(self.hparams["tokenizer"])).to(self.device)

    def on_validation_epoch_end(self) -> None:
        """`val/loss` (nats per token), `val/ppl` and `val/bpb` of what was scored.

        Of a task `val/accuracy` and `val/exact` in place of the last, and /LOAD of several.
        """
        self.validation = self._scores("val")

    # `trainer.test` scores the test split in the same way.
    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """The same of the test split."""
        self._scores("test")

    def _scores(self, split: str) -> dict[str, float]:
        """Loss, perplexity and bits per byte (of a task accuracy) of the sums, logged.

        A trainer's validate() and test() return what it logs, in float32.
        """
        # Every process scores the whole split; what follows from it must be the same on all.
        if self._task is not None:
            sums = self.trainer.strategy.broadcast(self._tally.sums())
            found = Tally.scores(sums, trained=self._task.trained)
        else:
            three = self._val_nats.item(), self._val_tokens.item(), self._val_bytes.item()
            total, tokens, count = self.trainer.strategy.broadcast(three)
            bits = total / math.log(2) / count
            found = {"loss": total / tokens, "ppl": perplexity(total, tokens), "bpb": bits}
        if not math.isfinite(found["loss"]):
            raise Collapsed(diagnosis(self.model, self.global_step, self._last_batch["idx"]))
        scores = {f"{split}/{name}": value for name, value in found.items()}
        self.log_dict(scores, logger=self._reports)
        return scores

    def configure_model(self) -> None:
        """Split the model over the processes, where the strategy is to."""
        if self._trainer is not None and isinstance(self.trainer.strategy, Sharded):
            self.trainer.strategy.shard(self.model)

    def configure_optimizers(self) -> Any:
        """The optimizer of the configuration, and the schedule per optimizer step.

        ConfigError where a checkpoint, and not the user, names code for them.
        """
        own = self.run.optimizer
        if self._read:
            targets.refuse_named("the checkpoint that this LitGPT was made from", own.to_dict())
        optimizer = build_optimizer(self.model, own)
        scheduler = build_schedule(optimizer, own, self._steps())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _steps(self) -> int:
        """Those of the schedule: a trainer of the user's own may have others, or count epochs."""
        own = self._trainer
        if own is None:
            return self.run.trainer.steps
        if own.max_steps > 0:
            return own.max_steps
        data = getattr(own, "datamodule", None)
        epochs = own.max_epochs or 0
        if isinstance(data, DataModule) and epochs > 0:
            return epochs * epoch_steps(own, data)
        return self.run.trainer.steps

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Adapt lambda, once per optimizer step and before anything is saved."""
        self.settle()
        weight = self.penalty_weight
        self._undo = [partial(weight.load_state_dict, weight.state_dict())]
        if self._order:
            order = torch.stack(self._order).mean()
            self.penalty_weight.update(self.trainer.strategy.reduce(order, reduce_op="mean").item())
            self._order = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep an adaptive lambda, other schedules have no state, and the count of skipped steps.

        Nothing after a collapse.
        """
        self.settle()
        if self._finite.skipped:
            checkpoint["skipped"] = [self._finite.skipped, self._finite.in_a_row]
        if self.run.regularizer.schedule == "adaptive":
            checkpoint["regularizer"] = self.penalty_weight.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it; a module that is made from a checkpoint (no trainer has it) knows that."""
        self._read |= self._trainer is None
        counts = (arguments.whole("skipped", n, 0) for n in checkpoint.get("skipped", (0, 0)))
        self._finite.skipped, self._finite.in_a_row = counts
        if self.run.regularizer.schedule == "adaptive":
            self.penalty_weight.load_state_dict(checkpoint["regularizer"])

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm or value; a norm before that is not finite skips the step, or ends the run.

        Which, `settle` finds out: one step late, if the optimizer needs no telling.
        """
        limit = math.inf if gradient_clip_val is None else gradient_clip_val
        by_value = gradient_clip_algorithm == "value"
        parameters = list(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if by_value else limit)
        self.grad_norm, self.last_lr = whole(norm), optimizer.param_groups[0]["lr"]
        if by_value:
            nn.utils.clip_grad_value_(parameters, limit)
        at_once = self._finite.see(self.grad_norm, self.global_step, self._last_batch, optimizer)
        if at_once and self.settle():
            optimizer.zero_grad()  # what has no gradient is not moved

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule, but not for an optimizer's step that is known to be skipped."""
        if self._finite.skipping:
            return
        if self._finite.allowed:
            self._undo.append(restorer(scheduler))
        super().lr_scheduler_step(scheduler, metric)

    def settle(self) -> bool:
        """Read whether the last step was skipped; if so take back what counts steps that are made.

        Collapsed, with a diagnosis, where more than trainer.skip_nonfinite in a row were.
        """
        failed = self._finite.read()
        if failed is None:
            return False
        if self._finite.in_a_row > self._finite.allowed:
            if failed.step < self.global_step:  # its gradients are gone, its weights are there
                gradients_again(self.model, failed.batch)
            raise Collapsed(diagnosis(self.model, failed.step, failed.batch["idx"]))
        for undo in self._undo:
            undo()
        return True

    @property
    def skipped(self) -> int | None:
        """Steps that were skipped; None: none may be."""
        return self._finite.skipped if self._finite.allowed else None

    def on_train_end(self) -> None:
        """Look at the last step, where no validation did."""
        self.settle()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Take a schedule-free optimizer's gradients where it wants them."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimizer, ScheduleFree):
            optimizer.look_ahead()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Free the gradients of a finished step, and ask for a validation at the last one."""
        if step_done(self.trainer, batch_idx):
            self.optimizers(use_pl_optimizer=False).zero_grad()  # type: ignore[union-attr]
        if 0 < self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True

    def _penalty(self, out: GPTOutput | documents.Packed, weight: float) -> Tensor | None:
        """The regularizer summed over phase layers, or None when it is off."""
        r = self.run.regularizer
        if r.mode == "none" or not out.phase:
            return None
        terms, order = [], []
        for layer, (theta, _) in out.phase.items():
            attn = self.model.blocks[layer].attn
            if isinstance(out, documents.Packed):
                R = documents.order(attn, out.groups, layer, r.axis)
            elif r.axis == "coupled":
                R = attn.order_parameter(theta)[:, attn.first_token(theta.shape[1]) :]
            else:
                R = coherence(theta, r.axis)
            terms.append(
                coherence_regularizer(R, target=r.target, weight=weight, mode=r.mode, width=r.width)
            )
            if r.schedule == "adaptive":
                order.append(R.detach().mean())
        if order:
            self._order.append(torch.stack(order).mean())
        return torch.stack(terms).sum()


def _per_head(phase: Phase) -> Tensor:
    """R averaged over everything but heads, [H]."""
    return phase.R.detach().transpose(0, 2).flatten(1).mean(1)


def _settled(lit: LitGPT, *_: Any) -> None:
    """Before a checkpoint is put together, which begins with the weights."""
    lit.settle()
