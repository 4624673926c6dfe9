"""Recall of pairs that a row began with.

Shapes: B rows, T time, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.data._draws import Draws
from phasegpt.data.config import TaskConfig
from phasegpt.data.tasks import Rows, Task, nothing_scored


@dataclass(frozen=True, kw_only=True)
class MQARConfig(TaskConfig):
    """Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927)."""

    length: int = option(64, "T, tokens of an example", ge=4, le=2**20)
    examples: int | None = option(
        100_000, "training examples, in a new order every epoch; null: new ones without end", ge=1
    )
    val_examples: int = option(3000, "examples of validation, and of test", ge=1, le=10_000_000)
    vocab_size: int = option(8192, "tokens; the upper half are values", ge=4, le=2**24)
    pairs: int = option(4, "P, keys with their values; at most T / 4", ge=1, le=2**16)
    power_a: float = option(
        0.01, "the gap before a query is g with weight g^(a-1); 1: all gaps alike", gt=0, le=1
    )
    random_non_queries: bool = option(
        False, "true: what is neither pair nor query is any token; false: it is 0"
    )

    @property
    def trained(self) -> int:
        """Pairs."""
        return self.pairs

    def time(self, load: int) -> int:
        """T."""
        return self.length

    def __post_init__(self) -> None:
        """Also check that pairs and queries fit."""
        super().__post_init__()
        if self.length % 2 or 4 * self.pairs > self.length:
            raise ConfigError(
                f"data.length={self.length} must be even and at least 4 * data.pairs="
                f"{4 * self.pairs}, for the pairs and as many queries"
            )
        if self.pairs > self.vocab_size // 2 - 1:
            raise ConfigError(
                f"data.vocab_size={self.vocab_size} has {self.vocab_size // 2 - 1} keys, too few "
                f"for data.pairs={self.pairs}"
            )


class MQAR(Task):
    """Pairs k v k v ..., then every key once more, at places that favour short gaps.

    Keys are 1..V/2-1, values V/2..V-1, each at most once in a row; what is empty is 0. At the
    second place of a key its value is asked for, and nothing else is scored. A query stands at an
    even distance 2g behind the pairs, g = 0.. by weights (g+1)^(a-1) without replacement. Who
    knows the values of the row and no key guesses 1/P of them.
    """

    name: ClassVar[str] = "mqar"
    Config: ClassVar[type[TaskConfig]] = MQARConfig

    def __init__(self, config: MQARConfig) -> None:
        """Its sizes."""
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.chance = 1 / (config.vocab_size - config.vocab_size // 2)

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        c, B = self.config, len(draws)
        half, prefix = c.vocab_size // 2, 2 * c.pairs
        key_BP = 1 + draws.distinct(half - 1, c.pairs)
        value_BP = half + draws.distinct(c.vocab_size - half, c.pairs)
        gaps = np.arange(1, (c.length - prefix) // 2 + 1, dtype=np.float64)
        place_BP = prefix + 2 * draws.weighted(gaps ** (c.power_a - 1), c.pairs)
        empty = np.zeros((B, c.length), dtype=np.int64)
        idx_BT = draws.below(c.vocab_size, c.length) if c.random_non_queries else empty
        idx_BT[:, 0:prefix:2], idx_BT[:, 1:prefix:2] = key_BP, value_BP
        np.put_along_axis(idx_BT, place_BP, key_BP, axis=1)
        targets_BT = nothing_scored(idx_BT)
        np.put_along_axis(targets_BT, place_BP, value_BP, axis=1)
        return Rows(idx_BT, targets_BT)
