"""The loaders of one run over a tokenised corpus or a task, resumable at any batch."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sized
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from phasegpt.core import arguments
from phasegpt.data.config import DataSection
from phasegpt.data.corpus import Corpus
from phasegpt.data.task_batches import ScoredBatches, TaskBatches, TaskExamples
from phasegpt.data.windows import EvalWindows, TrainBatches


class _Steps(Sampler, Sized):
    """Batch numbers from `start` on, to the end of an epoch of `total`; a next epoch goes on there.

    Lightning counts the length, which is the whole epoch's. With `only` the first so many again
    and again.
    """

    def __init__(self, start: int, total: int, only: int | None = None) -> None:
        self.next, self.total, self.only = start, total, only

    def __iter__(self) -> Iterator[int]:
        begin = self.next  # once the first is asked for: workers make iterators that they drop
        self.next = begin + self.total - begin % self.total
        for k in range(begin, self.next):
            yield k if self.only is None else k % self.only

    def __len__(self) -> int:
        return self.total


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole process group must not kill workers while the parent finishes."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class _ResumableLoader(DataLoader):
    """Tells Lightning that this loader may be resumed; DataModule keeps the position itself."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


def epoch_steps(trainer: pl.Trainer, data: DataModule) -> int:
    """Optimizer steps of an epoch; Lightning makes one of its last batches, if they are few."""
    limit: Any = trainer.limit_train_batches
    most = limit if isinstance(limit, int) else int(data.total_batches * limit)
    return max(1, -(-min(data.total_batches, most) // trainer.accumulate_grad_batches))


class DataModule(pl.LightningDataModule):
    """Loaders for one run of `total_batches` micro-batches per process, seen as a single epoch.

    A Trainer of more epochs gets new batches in each.

    A resumed run goes on with the first batch that no optimizer step has used. The loaders have
    generators of their own and leave the global ones alone. Trainers with several processes need
    `use_distributed_sampler=False`: each rank takes its part of a batch here, and validates on
    the whole split.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataSection,
        *,
        block_size: int,
        seed: int,
        total_batches: int,
        overfit_batches: int | None = None,
        loads: tuple[int, ...] = (),
    ) -> None:
        """With `overfit_batches` the first so many are all that is trained on.

        `loads` are those of a task that are validated; all, where none are given.
        """
        super().__init__()
        task = corpus.task
        self.loads = task.config.loads if task is not None and not loads else loads
        self.overfit_batches = overfit_batches
        self.corpus, self.config = corpus, config
        self.block_size, self.seed, self.total_batches = block_size, seed, total_batches
        self.consumed = 0
        self.val_windows = self._windows("val")
        self._train_batches()  # a corpus that is too short fails here, not after a set-up

    def _train_batches(self) -> TrainBatches | TaskBatches:
        shared = {
            "batch_size": self.config.batch_size,
            "seed": self.seed,
            "rank": self.trainer.global_rank if self.trainer else 0,
            "world_size": self.trainer.world_size if self.trainer else 1,
        }
        if self.corpus.task is not None:
            return TaskBatches(self.corpus.task, **shared)
        return TrainBatches(
            self.corpus.split("train"),
            block_size=self.block_size,
            documents=self.corpus.documents.get("train"),
            **shared,
        )

    def _windows(self, split: str) -> EvalWindows | TaskExamples:
        size = self.block_size
        if (task := self.corpus.task) is not None:
            return TaskExamples(task, split, task.config.trained)
        starts = self.corpus.documents.get(split)
        return EvalWindows(self.corpus.split(split), context=size, stride=size, documents=starts)

    def _loader_options(self) -> dict[str, Any]:
        device = self.trainer.strategy.root_device.type if self.trainer else "cpu"
        return {
            "generator": torch.Generator().manual_seed(self.seed),
            "pin_memory": device == "cuda",
        }

    def train_dataloader(self) -> DataLoader:
        """Batches `consumed`, `consumed` + 1, ... of TrainBatches."""
        workers = self.config.num_workers
        return _ResumableLoader(
            self._train_batches(),
            batch_size=None,
            sampler=_Steps(self.consumed, self.total_batches, self.overfit_batches),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
            **self._loader_options(),
        )

    def val_dataloader(self) -> DataLoader:
        """The whole validation split, in windows of block_size that do not overlap.

        Of a task all its examples, load by load.
        """
        return self._scored("val", self.val_windows)

    def test_dataloader(self) -> DataLoader:
        """The test split likewise. Raises ConfigError where the corpus has none."""
        return self._scored("test", self._windows("test"))

    def _scored(self, split: str, windows: EvalWindows | TaskExamples) -> DataLoader:
        if (task := self.corpus.task) is not None:
            batches = ScoredBatches(task, split, self.config.batch_size, self.loads)
            return DataLoader(batches, batch_size=None, **self._loader_options())
        return DataLoader(windows, batch_size=self.config.batch_size, **self._loader_options())

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: how many micro-batches the finished optimizer steps have used."""
        if self.trainer is None:
            return {"consumed": self.consumed}
        epochs, steps = divmod(self.trainer.global_step, epoch_steps(self.trainer, self))
        consumed = epochs * self.total_batches + steps * self.trainer.accumulate_grad_batches
        return {"consumed": consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that the checkpoint has used."""
        self.consumed = arguments.whole("consumed", state_dict["consumed"], 0)
