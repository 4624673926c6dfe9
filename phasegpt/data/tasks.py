"""Generated tasks: examples with answers at some positions, each a pure function of its number.

A task draws rows of `idx` and `targets`, as a text's windows have them: targets[t] is the token
that the model has to give at position t, or IGNORED, where nothing is scored. Training examples are
a function of (seed, number), those of validation and test of their number alone: every run is
judged by the same ones. Streams are endless, or a set of `examples` in a new order every epoch.

To add one: a Config and a Task in a module of this folder, its row in phasegpt.data.config.TASKS,
conf/data/NAME.yaml and NAME_small.yaml, a row in docs/tasks.md.

Shapes: B rows, T time.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from phasegpt.core.errors import ConfigError
from phasegpt.data._draws import IGNORED, Draws
from phasegpt.data.config import TaskConfig

_FINGERPRINTED = 64  # examples of every split and load that stand for all


class Rows(NamedTuple):
    """Some examples: idx [B,T] and targets [B,T], int64."""

    idx: np.ndarray
    targets: np.ndarray


class Task(ABC):
    """Draws examples for a Config; see the module."""

    Config: ClassVar[type[TaskConfig]]
    vocab_size: int
    #: Accuracy of the best guess that does not read the row, and of the best predictor there is.
    chance: float
    ceiling: float = 1.0
    ceiling_beyond: float = 1.0  # at loads beyond those of training

    def __init__(self, config: Any) -> None:
        """Of a Config of this task."""
        self.config = config

    @abstractmethod
    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """One example of each stream; of one load, None: as in training."""

    def train(self, seed: int, example_B: np.ndarray) -> Rows:
        """Training examples by number."""
        return self.draw(Draws(self.config.corpus, "train", seed, example_B=example_B))

    def scored(self, split: str, example_B: np.ndarray, load: int) -> Rows:
        """Examples of val or test by number."""
        return self.draw(Draws(self.config.corpus, split, load, example_B=example_B), load)

    @property
    def scored_share(self) -> float:
        """Share of the positions of training that are scored, of the first examples."""
        rows = self.train(0, np.arange(_FINGERPRINTED))
        return float((rows.targets != IGNORED).mean())

    def meta(self) -> dict[str, Any]:
        """What a run's record says of its data; the digests stand for the generator."""
        number_B = np.arange(_FINGERPRINTED)
        digests = {"train": _digest(self.train(0, number_B))}
        for split in ("val", "test"):
            rows = [self.scored(split, number_B, load) for load in self.config.loads]
            digests[split] = _digest(*rows)
        return {
            "corpus": self.config.corpus,
            "splits": {split: {"sha256": digest} for split, digest in digests.items()},
            "chance": self.chance,
            "ceiling": self.ceiling,
            "ceiling_beyond": self.ceiling_beyond,
        }


def _digest(*parts: Rows) -> str:
    whole = hashlib.sha256()
    for rows in parts:
        for array in rows:
            whole.update(np.ascontiguousarray(array, dtype="<i8").data)
    return whole.hexdigest()


def nothing_scored(idx_BT: np.ndarray) -> np.ndarray:
    """Targets [B,T] that are all IGNORED, to be filled."""
    return np.full(idx_BT.shape, IGNORED, dtype=np.int64)


def check_loads(name: str, loads: tuple[int, ...], trained: int, least: int = 1) -> None:
    """ConfigError for loads that do not rise, start below the training's, or are all above it."""
    if not loads or any(b <= a for a, b in zip((0, *loads), loads, strict=False)):
        raise ConfigError(f"{name}={list(loads)} must be whole numbers >= 1 that rise")
    if loads[0] < least:
        raise ConfigError(
            f"{name}={list(loads)} has {loads[0]}, and training begins at {least}; leave it out"
        )
    if loads[0] > trained:
        raise ConfigError(
            f"{name}={list(loads)} has none up to {trained}, the training's, by which a run "
            f"chooses its best step; add one"
        )
