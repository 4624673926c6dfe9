"""PhaseMonitor: how the phases of a run develop, measured beside the training and never in it.

Every n optimizer steps the scalars of phasegpt.training.metric_names.MEASURES, on a few rows of
the batch that was just trained on; at every validation the same on fixed windows of the validation
text, and arrays in the run's folder `phase`. The monitor has a forward pass of its own without
dropout, noise, jitter, gradients or random numbers: weights and losses are the same with and
without it.

Shapes: B batch, T time, D model width, H heads, S integration steps, V validations.
"""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import default_collate

from phasegpt.attention import Attention, Trajectory
from phasegpt.core.eval_mode import inference
from phasegpt.core.files import write_atomic
from phasegpt.model import documents
from phasegpt.model.gpt import GPT
from phasegpt.training import phase_measures
from phasegpt.training.callback_config import PhaseMonitorConfig
from phasegpt.training.checkpointing import step_done
from phasegpt.training.loggers import heat_map, showing
from phasegpt.training.run_folder import step_of

ROWS = 2  # of the training batch, so that every 50 steps it costs little
WINDOWS = 8  # of the validation text, spread over it evenly


def trajectories(model: GPT, idx_BT: Tensor) -> dict[int, Trajectory]:
    """A snapshot of the noiseless trajectory of every phase layer on the tokens, by layer.

    Below a compiled model it runs the plain one. Leaves modes and random states as they are.
    """
    inputs: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def keep(layer: int, _: Any, args: tuple[Tensor, ...], words: dict[str, Any]) -> None:
        inputs[layer] = args[0], {name: words[name] for name in ("carry",) if name in words}

    attention = {layer: model.blocks[layer].attn for layer in model.config.attention_layers}
    hooks = [
        module.register_forward_pre_hook(partial(keep, layer), with_kwargs=True)
        for layer, module in attention.items()
        if type(module).trajectory is not Attention.trajectory
    ]
    if not hooks:
        return {}
    try:
        with inference(model):
            model.forward(idx_BT)
            paths = {
                layer: attention[layer].trajectory(x, **carried)
                for layer, (x, carried) in inputs.items()
            }
    finally:
        for hook in hooks:
            hook.remove()
    return {
        layer: path._replace(
            omega=path.omega.detach().clone(), coupling=path.coupling.detach().clone()
        )
        for layer, path in paths.items()
        if path is not None
    }


def _rows(batch: dict[str, Tensor], number: int) -> Tensor:
    """Rows to measure: the first, or where a batch is packed its longest documents."""
    if "begins" in batch:
        return documents.longest(batch["idx"], batch["begins"], number)
    return batch["idx"][:number]


class PhaseMonitor(Callback):
    """Logs phase/*, and writes phase/step-N.npz; see phasegpt.training.run_folder.read_phases."""

    def __init__(self, config: PhaseMonitorConfig, folder: Path) -> None:
        """Write arrays below the run's folder."""
        assert config.every_n_steps is not None
        self.every, self.band = config.every_n_steps, config.band
        self.directory = folder / "phase"
        self._val_idx_BT: Tensor | None = None
        self._kept: tuple[list[int], dict[str, np.ndarray]] | None = None  # layers, and arrays

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop the files past the step we start from: they will be written again."""
        for partial_file in self.directory.glob(".*.tmp"):
            partial_file.unlink()
        for path in self.directory.glob("step-*.npz"):
            if step_of(path) > trainer.global_step:
                path.unlink()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every n steps, and after the first: the scalars of a few rows of this batch."""
        step = trainer.global_step
        if step_done(trainer, batch_idx) and (step % self.every == 0 or step == 1):
            self.measure(trainer, pl_module, _rows(batch, ROWS), "phase")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The scalars of the fixed windows, and their arrays.

        A hook later Lightning's WeightAveraging has taken out the weights that were validated.
        """
        if trainer.state.fn != "fit":
            return
        if self._val_idx_BT is None:
            windows = trainer.datamodule.val_windows  # type: ignore[attr-defined]
            places = np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).round()
            batch = default_collate([windows[int(i)] for i in places])
            self._val_idx_BT = _rows(batch, WINDOWS)
        idx_BT = self._val_idx_BT.to(pl_module.device)
        paths, found = self.measure(trainer, pl_module, idx_BT, "phase/val")
        if not paths or not trainer.is_global_zero:
            return
        self._kept = (
            list(paths),
            {
                f"layer{layer}/{name}": array
                for layer, path in paths.items()
                for name, array in phase_measures.arrays(path, found[layer]).items()
            },
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the arrays, and pictures for loggers that show; a collapse ends the run before."""
        if self._kept is not None:
            (layers, kept), self._kept = self._kept, None
            self._write(trainer.global_step, kept)
            self._show(trainer, layers, kept)

    def measure(
        self, trainer: pl.Trainer, pl_module: Any, idx_BT: Tensor, prefix: str
    ) -> tuple[dict[int, Trajectory], dict[int, dict[str, Tensor]]]:
        """Trajectories and what is found in them, by layer; its scalars go to every logger."""
        with trainer.precision_plugin.forward_context():
            paths = trajectories(pl_module.model, idx_BT)
        with torch.inference_mode():  # not in bf16: a covariance is a matrix product
            found = {i: phase_measures.measure(path, self.band) for i, path in paths.items()}
            metrics = phase_measures.scalars(found, prefix)
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
        return paths, found

    def _write(self, step: int, kept: dict[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **kept)  # type: ignore[arg-type]
        self.directory.mkdir(exist_ok=True)
        write_atomic(self.directory / f"step-{step:08d}.npz", buffer.getvalue())

    def _show(self, trainer: pl.Trainer, layers: list[int], kept: dict[str, np.ndarray]) -> None:
        loggers, step = showing(trainer.loggers), trainer.global_step
        if not loggers:
            return
        R_HS = [kept[f"layer{layer}/R_HS"] for layer in layers]
        names = [f"layer {layer}" for layer in layers]
        heads = [f"{name}, head {h}" for name, R in zip(names, R_HS, strict=True)
                 for h in range(len(R))]  # fmt: skip
        by_head = np.stack([R[:, -1] for R in R_HS])
        pictures = {
            "phase/R_by_head": heat_map(by_head, names, f"R at step {step}", "head"),
            "phase/R_by_integration_step": heat_map(
                np.concatenate(R_HS), heads, f"R at step {step}", "integration step"
            ),
        }
        edges = np.linspace(-math.pi, math.pi, phase_measures.BINS + 1)
        for logger in loggers:
            for name, pixels in pictures.items():
                logger.picture(name, pixels, step)
            for layer in layers:
                counts = kept[f"layer{layer}/theta_HK"].sum(0)
                logger.histogram(f"phase/theta/layer{layer}", counts, edges, step)
