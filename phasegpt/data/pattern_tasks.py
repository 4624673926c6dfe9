"""Patterns that a row repeats: a bigram, a motif. Both are ours; sizes follow no publication.

Shapes: B rows, R places, P period, T time.
"""

from __future__ import annotations

import functools
import math
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


#: Periods in a row at most: their factorial is the largest that a float64 holds.
MOST_COPIES = 170


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
        check_loads("data.val_periods", self.val_periods, self.trained, self.min_period)
        if self.min_period > self.period:
            raise ConfigError(
                f"data.min_period={self.min_period} is above data.period={self.period}; lower it"
            )
        if (longest := max(self.period, *self.val_periods)) * 2 >= self.length:
            raise ConfigError(
                f"data.length={self.length} has no third period of {longest} tokens, and scoring "
                f"begins there; raise it"
            )
        if (copies := self.length // self.val_periods[0]) > MOST_COPIES:
            raise ConfigError(
                f"data.val_periods={list(self.val_periods)}: {copies} periods of "
                f"{self.val_periods[0]} tokens are in data.length={self.length}, and the ceiling "
                f"is known up to {MOST_COPIES}; leave it out, or lower data.length"
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

    What is due is the token that comes, noise and all. The ceiling is exact for who is told the
    period and takes the commonest of the copies so far, which nobody beats.
    """

    name: ClassVar[str] = "periodic"
    Config: ClassVar[type[TaskConfig]] = PeriodicConfig

    def __init__(self, config: PeriodicConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.chance = 1 / config.vocab_size
        of = {load: self._ceiling(load) for load in config.loads}
        within = {load: of[load] for load in of if load <= config.trained}
        places = {load: config.length - 2 * load + 1 for load in of}  # that are scored
        self.ceiling = sum(places[n] * within[n] for n in within) / sum(places[n] for n in within)
        beyond = [of[load] for load in of if load not in within]
        self.ceiling_beyond = sum(beyond) / len(beyond) if beyond else self.ceiling

    def _ceiling(self, period: int) -> float:
        """The best accuracy at places 2P..T, of which each has copies of its token before it."""
        c, share = self.config, self.config.noise * self.chance
        copies = np.arange(2 * period, c.length + 1) // period
        known = {int(k): _commonest(int(k), share, c.vocab_size) for k in set(copies)}
        return float(np.mean([known[int(k)] * (1 - c.noise) + share for k in copies]))

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        c, B = self.config, len(draws)
        P_B = np.full(B, load)
        if load is None:
            P_B = c.min_period + draws.below(c.period - c.min_period + 1, 1)[:, 0]
        motif = draws.below(c.vocab_size, c.period if load is None else load)
        place_T = np.arange(c.length + 1)
        x = np.take_along_axis(motif, place_T % P_B[:, None], axis=1)
        noisy = draws.uniform(c.length + 1) < c.noise
        x = np.where(noisy, draws.below(c.vocab_size, c.length + 1), x)
        due_BT = place_T[1:] >= 2 * P_B[:, None]
        return Rows(x[:, :-1].copy(), np.where(due_BT, x[:, 1:], nothing_scored(x[:, 1:])))


@functools.cache
def _commonest(copies: int, share: float, vocab_size: int) -> float:
    """Probability that the commonest of noisy copies of a token, ties at random, is the token.

    A copy is any other token with probability `share` each.
    """
    own, found, others = 1 - share * (vocab_size - 1), 0.0, vocab_size - 1
    for seen in range(1, copies + 1):  # times that the token was seen; all others were less often
        most = own**seen / math.factorial(seen)
        equal = share**seen / math.factorial(seen)
        fewer = np.array([share**i / math.factorial(i) for i in range(seen)])
        for ties in range(min(others, (copies - seen) // seen) + 1):
            left = copies - seen - ties * seen
            rest = _power(fewer, others - ties, left + 1)
            if left < len(rest):
                ways = math.comb(others, ties) * equal**ties * rest[left]
                found += most * ways / (ties + 1)
    return found * math.factorial(copies)


def _power(polynomial: np.ndarray, exponent: int, size: int) -> np.ndarray:
    """The first `size` coefficients of a power of a polynomial, from its own."""
    found = np.ones(1)
    while exponent:
        if exponent % 2:
            found = np.convolve(found, polynomial)[:size]
        polynomial, exponent = np.convolve(polynomial, polynomial)[:size], exponent // 2
    return found
