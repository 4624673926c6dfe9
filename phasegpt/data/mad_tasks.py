"""Recall and memorisation of MAD (Poli et al., arXiv 2403.17844); its copying: copying_tasks.py.

Recall is trained on every next token, and judged at the values of keys that the row had before.

Shapes: B rows, P pairs, K keys, T time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.data._draws import IGNORED, Draws
from phasegpt.data.config import TaskConfig
from phasegpt.data.tasks import Rows, Task, nothing_scored


@dataclass(frozen=True, kw_only=True)
class RecallConfig(TaskConfig):
    """In-context recall of MAD (Poli et al., arXiv 2403.17844), with many queries."""

    length: int = option(128, "tokens of a row with its last answer; even", ge=4, le=2**20)
    vocab_size: int = option(16, "tokens; half of them keys, half values", ge=4, le=2**24)
    examples: int | None = option(
        12_800, "training examples, in a new order every epoch; null: new ones without end", ge=1
    )
    val_examples: int = option(1280, "examples of validation, and of test", ge=1)

    def __post_init__(self) -> None:
        """Also check that the row is pairs."""
        super().__post_init__()
        if self.length % 2:
            raise ConfigError(f"data.length={self.length} must be even, for pairs")

    @property
    def trained(self) -> int:
        """Tokens of a row."""
        return self.length

    def time(self, load: int) -> int:
        """T: the last answer is not shown."""
        return load - 1


class Recall(Task):
    """Pairs k v, where k is any key and v its value in this row; values of keys may be equal.

    The last pair has a key that was there before.
    """

    name: ClassVar[str] = "recall"
    Config: ClassVar[type[TaskConfig]] = RecallConfig

    def __init__(self, config: Any) -> None:
        """Its sizes."""
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.noise_tokens, self.noise = 0, 0.0
        self._split()

    def _split(self) -> None:
        told = self.vocab_size - self.noise_tokens
        self.keys, self.values = told // 2, told - told // 2
        self.chance = 1 / self.values

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        B, P, K = len(draws), self.config.length // 2, self.keys
        value_BK = K + draws.below(self.values, K)
        key_BP = draws.below(K, P)
        noisy_BP = draws.uniform(P) < self.noise
        sure_B = draws.below(P - 1, 1)[:, 0]  # is no noise, so that the last key was told before
        noisy_BP[np.arange(B), sure_B] = False
        noisy_BP[:, -1] = False
        told_BPK = (key_BP[:, :, None] == np.arange(K)) & ~noisy_BP[:, :, None]
        # The last key is one of those told before, each of them alike.
        told_BK = told_BPK[:, :-1].any(axis=1)
        told_BK[~told_BK.any(axis=1)] = True
        key_BP[:, -1] = np.where(told_BK, draws.uniform(K), 0).argmax(axis=1)
        again_BP = np.take_along_axis(
            told_BPK.cumsum(axis=1) - told_BPK > 0, key_BP[:, :, None], axis=2
        )[:, :, 0]
        again_BP[:, -1] = True
        pair_BP2 = np.stack([key_BP, np.take_along_axis(value_BK, key_BP, axis=1)], axis=2)
        if self.noise_tokens:
            first = self.keys + self.values
            noise_BP2 = first + draws.below(self.noise_tokens, 2 * P).reshape(B, P, 2)
            pair_BP2 = np.where(noisy_BP[:, :, None], noise_BP2, pair_BP2)
        row_BT = pair_BP2.reshape(B, 2 * P)
        if load is None:
            return Rows(row_BT[:, :-1].copy(), row_BT[:, 1:].copy())
        targets_BT = nothing_scored(row_BT[:, 1:])
        targets_BT[:, ::2] = np.where(again_BP & ~noisy_BP, pair_BP2[:, :, 1], IGNORED)
        return Rows(row_BT[:, :-1].copy(), targets_BT)


@dataclass(frozen=True, kw_only=True)
class NoisyRecallConfig(RecallConfig):
    """Noisy in-context recall of MAD (Poli et al., arXiv 2403.17844)."""

    vocab_size: int = option(32, "tokens, those of noise among them", ge=5, le=2**24)
    noise_tokens: int = option(16, "tokens that only noise has", ge=1)
    noise: float = option(0.2, "share of pairs that are two tokens of noise", gt=0, lt=1)

    def __post_init__(self) -> None:
        """Also check that keys and values are left."""
        super().__post_init__()
        if self.vocab_size - self.noise_tokens < 4:
            raise ConfigError(
                f"data.noise_tokens={self.noise_tokens} of data.vocab_size={self.vocab_size} "
                f"leave fewer than 4 for keys and values"
            )


class NoisyRecall(Recall):
    """The same with pairs of noise among the others, from tokens of its own."""

    name: ClassVar[str] = "noisy_recall"
    Config: ClassVar[type[TaskConfig]] = NoisyRecallConfig

    def __init__(self, config: NoisyRecallConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.noise_tokens, self.noise = config.noise_tokens, config.noise
        self._split()


@dataclass(frozen=True, kw_only=True)
class FuzzyRecallConfig(RecallConfig):
    """Fuzzy in-context recall of MAD (Poli et al., arXiv 2403.17844)."""

    motif: int = option(3, "tokens of a key, and of a value, at most", ge=1, le=8)

    def __post_init__(self) -> None:
        """Also check that keys and the probe fit."""
        super().__post_init__()
        if (self.vocab_size - 1) // 2 < self.motif or self.length <= 6 * self.motif:
            raise ConfigError(
                f"data.motif={self.motif} needs data.vocab_size >= {2 * self.motif + 1} and "
                f"data.length > {6 * self.motif}"
            )

    def time(self, load: int) -> int:
        """T: a filled row, its last answer not shown."""
        return load


class FuzzyRecall(Task):
    """Keys and values of several tokens, all of a motif's different; filled up in front.

    In training a motif has 1 to `motif` tokens, each number alike; in validation keys have the
    most. The last pair is a probe that was placed in the row before (ours: always; the published
    code asks for some that were not).
    """

    name: ClassVar[str] = "fuzzy_recall"
    Config: ClassVar[type[TaskConfig]] = FuzzyRecallConfig

    def __init__(self, config: FuzzyRecallConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.keys = (config.vocab_size - 1) // 2
        self.values = config.vocab_size - 1 - self.keys
        self.chance = 1 / self.values

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        T = self.config.length
        rows_BT = np.full((len(draws), T + 1), self.vocab_size - 1, dtype=np.int64)
        due_BT = np.zeros(rows_BT.shape, dtype=bool)
        # A pair draws less than 4 + 2 motif numbers, and two tokens are the shortest pair.
        numbers = draws.uniform((4 + 2 * self.config.motif) * (T // 2 + 2))
        for row_T, due_T, found in zip(rows_BT, due_BT, numbers, strict=True):
            row, due = self._row(iter(found.tolist()), fixed=load is not None)
            row_T[-len(row) :], due_T[-len(due) :] = row, due
        targets_BT = rows_BT[:, 1:].copy()
        if load is not None:
            targets_BT[~due_BT[:, 1:]] = IGNORED
        return Rows(rows_BT[:, :-1].copy(), targets_BT)

    def _row(self, numbers: Iterator[float], *, fixed: bool) -> tuple[list[int], list[bool]]:
        """Tokens without the filling, and whether each is of a value that was told before."""
        motif, T = self.config.motif, self.config.length

        def key() -> tuple[int, ...]:
            size = motif if fixed else 1 + int(next(numbers) * motif)
            return _motif(numbers, size, 0, self.keys)

        def value() -> tuple[int, ...]:
            return _motif(numbers, 1 + int(next(numbers) * motif), self.keys, self.values)

        probe = key()
        told = {probe: value()}
        size = len(probe) + len(told[probe])
        limit = T - size - 2 * motif
        place = int(next(numbers) * (limit - 2 * motif))
        row: list[int] = []
        due: list[bool] = []
        shown: set[tuple[int, ...]] = set()

        def add(k: tuple[int, ...]) -> None:
            row.extend(k + told[k])
            due.extend([False] * len(k) + [k in shown] * len(told[k]))
            shown.add(k)

        while len(row) < limit:
            if len(row) >= place and probe not in shown:
                add(probe)
                continue
            k = key()
            if k not in told:
                told[k] = value()
            add(k)
        add(probe)
        return row, due


def _motif(numbers: Iterator[float], size: int, first: int, count: int) -> tuple[int, ...]:
    """Different tokens of first..first+count-1, every ordered choice alike."""
    left = list(range(first, first + count))
    return tuple(left.pop(int(next(numbers) * len(left))) for _ in itertools.repeat(None, size))


@dataclass(frozen=True, kw_only=True)
class MemorizationConfig(TaskConfig):
    """Memorisation of MAD (Poli et al., arXiv 2403.17844)."""

    length: int = option(32, "T, tokens of an example; even", ge=2, le=2**20)
    vocab_size: int = option(256, "tokens; the last is the question", ge=5, le=2**24)
    examples: int | None = option(
        256, "training examples, in a new order every epoch; null: new ones without end", ge=1
    )
    val_examples: int = option(1280, "examples of validation, and of test", ge=1)

    def __post_init__(self) -> None:
        """Also check that the row is pairs."""
        super().__post_init__()
        if self.length % 2:
            raise ConfigError(f"data.length={self.length} must be even, for pairs")

    @property
    def trained(self) -> int:
        """Keys there are."""
        return (self.vocab_size - 1) // 2

    def time(self, load: int) -> int:
        """T."""
        return self.length


class Memorization(Task):
    """Keys, each with a question behind it, where its value is due: one map for all rows.

    The map is the same in every run, and different keys have different values. It is nowhere in a
    row, so it must be in the weights.
    """

    name: ClassVar[str] = "memorization"
    Config: ClassVar[type[TaskConfig]] = MemorizationConfig

    def __init__(self, config: MemorizationConfig) -> None:
        """The map."""
        super().__init__(config)
        self.vocab_size, self.keys = config.vocab_size, config.trained
        values = config.vocab_size - 1 - self.keys
        order = Draws(config.corpus, "map", values, example_B=np.zeros(1, np.int64))
        self.value_K = self.keys + order.distinct(values, values)[0, : self.keys]
        self.chance = 1 / self.keys

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        c = self.config
        key_BP = draws.below(self.keys, c.length // 2)
        idx_BT = np.full((len(draws), c.length), c.vocab_size - 1, dtype=np.int64)
        idx_BT[:, ::2] = key_BP
        targets_BT = nothing_scored(idx_BT)
        targets_BT[:, 1::2] = self.value_K[key_BP]
        return Rows(idx_BT, targets_BT)
