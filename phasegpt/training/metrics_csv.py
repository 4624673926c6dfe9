"""metrics.csv, the logger that every run has, and the steps that rows of loggers are of."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from phasegpt.core.files import write_atomic, writing
from phasegpt.training.metric_names import today
from phasegpt.training.run_folder import read_metrics


class AtSteps:
    """A logger whose rows are of optimizer steps, by whatever number a callback logs.

    Lightning's count batches, from 0, also those of a validation.
    """

    #: Set by assemble.
    trainer: pl.Trainer | None = None

    def step_of(self, given: int | None) -> int | None:
        """The optimizer step that is being made, or the last one between two; without a trainer
        `given`."""
        if self.trainer is None:
            return given
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return -(-batches // self.trainer.accumulate_grad_batches)


class MetricsCSV(AtSteps, Logger):
    """metrics.csv: one row per optimizer step that logged anything, `step` first.

    Values of one step share a row; a new metric adds a column. Floats are written exactly.
    """

    def __init__(self, path: Path) -> None:
        """Write to `path`, after what it already holds."""
        super().__init__()
        self.path = path
        self._pending: tuple[int, dict[str, float]] | None = None
        self._columns = ["step"]
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                self._columns = list(map(today, next(csv.reader(file), ["step"])))

    @property
    def name(self) -> str:
        """The folder of the run in which Lightning's ModelCheckpoint puts its own by default."""
        return "lightning"

    @property
    def version(self) -> str:
        """No folder in that."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of `step`."""
        step = self.step_of(step)
        assert step is not None
        if self._pending and self._pending[0] != step:
            self.write()
        _, row = self._pending or (step, {})
        self._pending = (step, row | {k: float(v) for k, v in metrics.items()})

    def save(self) -> None:
        """Nothing: Lightning asks for it whenever a callback logs, and the row is not whole yet."""

    def write(self) -> None:
        """Write the open row."""
        if self._pending is None:
            return
        step, row = self._pending
        self._pending = None
        new = [name for name in row if name not in self._columns]
        if new or not self.path.is_file():
            self._columns += new
            self._rewrite(read_metrics(self.path))
        with writing(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow({"step": step} | _text(row))

    def finalize(self, status: str) -> None:
        """Write the open row."""
        self.write()

    def cut(self, step: int) -> None:
        """Drop rows past `step`: they will be written again."""
        self._pending = None
        if self.path.is_file():
            self._rewrite([row for row in read_metrics(self.path) if row["step"] <= step])

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self._columns)
        writer.writeheader()
        for row in rows:
            writer.writerow(_text(row) | {"step": int(row["step"])})
        write_atomic(self.path, buffer.getvalue().encode())


def _text(row: Mapping[str, float]) -> dict[str, str]:
    return {name: repr(value) for name, value in row.items()}
