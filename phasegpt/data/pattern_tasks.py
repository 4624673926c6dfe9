"""Patterns that a row repeats: a bigram, a motif. Both are ours; sizes follow no publication.

Shapes: B rows, R places, P period, T time.
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
class InductionConfig(TaskConfig):
    """A bigram that comes again; the task of induction heads (Olsson et al., arXiv 2209.11895)."""

    length: int = option(128, "T, tokens of an example", ge=4, le=2**20)
    vocab_size: int = option(64, "tokens", ge=3, le=2**24)
    repeats: int = option(1, "times that the bigram comes again, each scored", ge=1)

    def __post_init__(self) -> None:
        """Also check that the bigrams fit."""
        super().__post_init__()
        if 2 * (self.repeats + 1) > self.length:
            raise ConfigError(
                f"data.repeats={self.repeats} needs data.length >= {2 * (self.repeats + 1)}"
            )

    @property
    def trained(self) -> int:
        """Repeats."""
        return self.repeats

    def time(self, load: int) -> int:
        """T."""
        return self.length


class Induction(Task):
    """Random tokens in which a bigram a b stands R + 1 times; at every a but the first b is due.

    a is nowhere else; where the bigrams stand is uniform over all ways in which they do not meet.
    """

    name: ClassVar[str] = "induction"
    Config: ClassVar[type[TaskConfig]] = InductionConfig

    def __init__(self, config: InductionConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.chance = 1 / config.vocab_size

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        c, times = self.config, self.config.repeats + 1
        a_B1, offset_B1 = draws.below(c.vocab_size, 1), 1 + draws.below(c.vocab_size - 1, 1)
        b_B1 = (a_B1 + offset_B1) % c.vocab_size
        other_BT = 1 + draws.below(c.vocab_size - 1, c.length)
        idx_BT = (a_B1 + other_BT) % c.vocab_size
        place_BR = np.sort(draws.distinct(c.length - times, times), axis=1) + np.arange(times)
        np.put_along_axis(idx_BT, place_BR, a_B1, axis=1)
        np.put_along_axis(idx_BT, place_BR + 1, b_B1, axis=1)
        targets_BT = nothing_scored(idx_BT)
        np.put_along_axis(targets_BT, place_BR[:, 1:], b_B1, axis=1)
        return Rows(idx_BT, targets_BT)


@dataclass(frozen=True, kw_only=True)
class PeriodicConfig(TaskConfig):
    """A motif repeated to the end of the row, with noise."""

    length: int = option(256, "T, tokens of an example", ge=4, le=2**20)
    vocab_size: int = option(16, "tokens", ge=2, le=2**24)
    min_period: int = option(3, "P, tokens of a motif of training, at least", ge=1)
    period: int = option(32, "tokens of a motif of training, at most", ge=1)
    val_periods: tuple[int, ...] = option(
        (8, 16, 32, 40, 48, 56, 64),
        "tokens of the motifs of validation; its loads",
        form="a list of whole numbers >= 1, rising, like [8,16,32]",
    )
    noise: float = option(0.05, "probability that a token is any token", ge=0, lt=1)

    def __post_init__(self) -> None:
        """Also check the periods."""
        super().__post_init__()
        check_loads("data.val_periods", self.val_periods, self.trained)
        if self.min_period > self.period:
            raise ConfigError(
                f"data.min_period={self.min_period} is above data.period={self.period}; lower it"
            )
        if (longest := max(self.period, *self.val_periods)) * 2 >= self.length:
            raise ConfigError(
                f"data.length={self.length} has no third period of {longest} tokens, and scoring "
                f"begins there; raise it"
            )

    @property
    def trained(self) -> int:
        """The longest period of training."""
        return self.period

    @property
    def loads(self) -> tuple[int, ...]:
        """Periods."""
        return self.val_periods

    def time(self, load: int) -> int:
        """T."""
        return self.length


class Periodic(Task):
    """x_t = motif[t mod P], or with probability `noise` any token; from 2P on the next is due.

    What is due is the token that comes, noise and all: who knows the motif is right with
    probability 1 - noise (1 - 1/V). Nobody can do better; who reads it off two noisy periods falls
    a little short.
    """

    name: ClassVar[str] = "periodic"
    Config: ClassVar[type[TaskConfig]] = PeriodicConfig

    def __init__(self, config: PeriodicConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.chance = 1 / config.vocab_size
        self.ceiling = 1 - config.noise * (1 - self.chance)

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        c, B = self.config, len(draws)
        P_B = np.full(B, load)
        if load is None:
            P_B = c.min_period + draws.below(c.period - c.min_period + 1, 1)[:, 0]
        motif = draws.below(c.vocab_size, max(c.period, *c.val_periods))
        place_T = np.arange(c.length + 1)
        x = np.take_along_axis(motif, place_T % P_B[:, None], axis=1)
        noisy = draws.uniform(c.length + 1) < c.noise
        x = np.where(noisy, draws.below(c.vocab_size, c.length + 1), x)
        due_BT = place_T[1:] >= 2 * P_B[:, None]
        return Rows(x[:, :-1].copy(), np.where(due_BT, x[:, 1:], nothing_scored(x[:, 1:])))
