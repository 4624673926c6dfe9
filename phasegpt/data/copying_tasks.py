"""Copying what a row began with, all of it or what is not blank.

Shapes: B rows, N tokens to copy, T time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.data._draws import Draws
from phasegpt.data.config import TaskConfig
from phasegpt.data.tasks import Rows, Task, check_loads, nothing_scored


@dataclass(frozen=True, kw_only=True)
class CopyingConfig(TaskConfig):
    """Copying of strings (Jelassi et al., arXiv 2402.01032, at the sizes of 2511.17388)."""

    letters: int = option(26, "of the alphabet", ge=2, le=2**20)
    min_length: int = option(2, "letters of a string of training, at least", ge=1)
    length: int = option(64, "letters of a string of training, at most", ge=1, le=2**20)
    val_lengths: tuple[int, ...] = option(
        (16, 32, 64, 128, 256, 512),
        "letters of the strings of validation; its loads",
        form="a list of whole numbers >= 1, rising, like [20,40,80]",
    )
    val_examples: int = option(256, "examples of validation, and of test, of each length", ge=1)

    def __post_init__(self) -> None:
        """Also check the lengths."""
        super().__post_init__()
        check_loads("data.val_lengths", self.val_lengths, self.trained, self.min_length)
        if self.min_length > self.length:
            raise ConfigError(
                f"data.min_length={self.min_length} is above data.length={self.length}; lower it"
            )

    @property
    def trained(self) -> int:
        """The longest string of training."""
        return self.length

    @property
    def loads(self) -> tuple[int, ...]:
        """Lengths."""
        return self.val_lengths

    def time(self, load: int) -> int:
        """A beginning, the string, a bar, the string."""
        return 2 * load + 2


class Copying(Task):
    """$ x1 .. xn | x1 .. xn, then a full stop; every letter behind the bar is asked for, and the
    stop in training. Letters are at random, lengths uniform.

    One string is a row, filled up behind (ours: the published code packs several into a context).
    """

    name: ClassVar[str] = "copying"
    Config: ClassVar[type[TaskConfig]] = CopyingConfig

    def __init__(self, config: CopyingConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.begin, self.bar, self.stop = (config.letters + i for i in range(3))
        self.vocab_size = config.letters + 3
        self.chance = 1 / config.letters

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        c, B = self.config, len(draws)
        N = c.length if load is None else load
        letter_BN = draws.below(c.letters, N)
        n_B = np.full(B, N)
        if load is None:
            n_B = c.min_length + draws.below(c.length - c.min_length + 1, 1)[:, 0]
        place_T = np.arange(c.time(N))
        behind_BT = place_T - n_B[:, None] - 2  # of the copy's letters, from 0
        source_BT = np.where(behind_BT >= 0, behind_BT, place_T - 1)
        letter_BT = np.take_along_axis(letter_BN, source_BT.clip(0, N - 1), axis=1)
        idx_BT = np.where(behind_BT < n_B[:, None], letter_BT, self.stop)
        idx_BT[:, 0] = self.begin
        idx_BT[behind_BT == -1] = self.bar
        asked_BT = (behind_BT >= -1) & (behind_BT < n_B[:, None] - (load is not None))
        following_BT = np.concatenate([idx_BT[:, 1:], np.full((B, 1), self.stop)], axis=1)
        return Rows(idx_BT, np.where(asked_BT, following_BT, nothing_scored(idx_BT)))


@dataclass(frozen=True, kw_only=True)
class SelectiveCopyConfig(TaskConfig):
    """Selective copying of MAD (Poli et al., arXiv 2403.17844)."""

    length: int = option(256, "T, tokens of an example", ge=4, le=2**20)
    vocab_size: int = option(16, "tokens, the last two a blank and the question", ge=4, le=2**24)
    tokens: int = option(16, "N, tokens to copy; less than T / 2", ge=1)
    examples: int | None = option(
        12_800, "training examples, in a new order every epoch; null: new ones without end", ge=1
    )
    val_examples: int = option(1280, "examples of validation, and of test", ge=1)

    def __post_init__(self) -> None:
        """Also check that they fit."""
        super().__post_init__()
        if self.length <= 2 * self.tokens + 1:
            raise ConfigError(
                f"data.length={self.length} must be above 2 * data.tokens + 1 = "
                f"{2 * self.tokens + 1}; raise it"
            )

    @property
    def trained(self) -> int:
        """Tokens to copy."""
        return self.tokens

    def time(self, load: int) -> int:
        """T."""
        return self.length


class SelectiveCopy(Task):
    """Tokens with blanks among them, a question, then blanks, at which they are due in order.

    Each of the T - 2N - 1 blanks stands before one of the N tokens, each token alike. What was
    answered is not shown: the position alone says which token is due.
    """

    name: ClassVar[str] = "selective_copy"
    Config: ClassVar[type[TaskConfig]] = SelectiveCopyConfig

    def __init__(self, config: SelectiveCopyConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.chance = 1 / (config.vocab_size - 2)

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        c, B, N = self.config, len(draws), self.config.tokens
        token_BN = draws.below(c.vocab_size - 2, N)
        before = np.sort(draws.below(N, c.length - 2 * N - 1), axis=1)
        blanks_BN = (before[:, :, None] <= np.arange(N)).sum(axis=1)
        idx_BT = np.full((B, c.length), c.vocab_size - 2, dtype=np.int64)
        np.put_along_axis(idx_BT, np.arange(N) + blanks_BN, token_BN, axis=1)
        idx_BT[:, -N - 1] = c.vocab_size - 1
        targets_BT = nothing_scored(idx_BT)
        targets_BT[:, -N:] = token_BN
        return Rows(idx_BT, targets_BT)
