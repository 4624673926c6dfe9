"""Batches of generated tasks: training as a function of (seed, k), validation load by load.

Shapes: B rows, T time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from phasegpt.core.errors import ConfigError
from phasegpt.data._draws import Order
from phasegpt.data.tasks import Rows, Task


class TaskBatches(Dataset):
    """Training batches: number k is a pure function of (seed, k), split over ranks as text is.

    See phasegpt.data.windows.TrainBatches: idx [B,T], targets [B,T], sample [B].
    """

    def __init__(
        self, task: Task, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.task, self.batch_size, self.seed = task, batch_size, seed
        self.rank, self.world_size = rank, world_size
        examples = task.config.examples
        self._order = None if examples is None else Order(seed, examples)

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        """Batch k."""
        first = (k * self.world_size + self.rank) * self.batch_size
        sample_B = np.arange(first, first + self.batch_size, dtype=np.int64)
        example_B = sample_B if self._order is None else self._order[sample_B]
        rows = self.task.train(self.seed, example_B)
        return {**_tensors(rows), "sample": torch.from_numpy(sample_B)}


class TaskExamples(Dataset):
    """The examples of `split` of one load, as rows idx [T], targets [T]."""

    def __init__(self, task: Task, split: str, load: int) -> None:
        self.task, self.split, self.load = task, split, load

    def __len__(self) -> int:
        return self.task.config.val_examples

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Example i."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        rows = self.task.scored(self.split, np.array([i]), self.load)
        return {name: tensor[0] for name, tensor in _tensors(rows).items()}


class ScoredBatches(IterableDataset):
    """All examples of `split`, load by load, in batches; `load` [] says of which one is."""

    def __init__(self, task: Task, split: str, batch_size: int, loads: tuple[int, ...]) -> None:
        if split not in ("val", "test"):
            raise ConfigError(f"split={split} of a generated task: choose from val, test")
        self.task, self.split, self.batch_size = task, split, batch_size
        self.loads = loads

    def __len__(self) -> int:
        return -(-self.task.config.val_examples // self.batch_size) * len(self.loads)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of idx [B,T], targets [B,T], load []."""
        total = self.task.config.val_examples
        for load in self.loads:
            for first in range(0, total, self.batch_size):
                number_B = np.arange(first, min(first + self.batch_size, total))
                rows = self.task.scored(self.split, number_B, load)
                yield {**_tensors(rows), "load": torch.tensor(load)}


def _tensors(rows: Rows) -> dict[str, torch.Tensor]:
    return {"idx": torch.from_numpy(rows.idx), "targets": torch.from_numpy(rows.targets)}
