"""Strings of a regular language and of a group: what an automaton has in its state at the end.

They ask whether a model generalises to strings longer than those of its training. A load is a
length; validation asks at the last position alone.

Shapes: B rows, N symbols of a string, T time.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.data._draws import Draws
from phasegpt.data.config import TaskConfig
from phasegpt.data.tasks import Rows, Task, check_loads, nothing_scored


@dataclass(frozen=True, kw_only=True)
class FormalConfig(TaskConfig):
    """Regular languages of Deletang et al., arXiv 2207.02098."""

    length: int = option(40, "symbols of a string of training, at most", ge=1, le=2**20)
    val_lengths: tuple[int, ...] = option(
        (10, 20, 40, 60, 80, 100),
        "symbols of the strings of validation; its loads",
        form="a list of whole numbers >= 1, rising, like [20,40,80]",
    )
    scored: Literal["end", "every"] = option(
        "end", "in training; end: after strings of 1 to length symbols; every: after every symbol"
    )
    val_examples: int = option(512, "examples of validation, and of test, of each length", ge=1)

    def __post_init__(self) -> None:
        """Also check the lengths."""
        super().__post_init__()
        check_loads("data.val_lengths", self.val_lengths, self.trained)
        if self.corpus == "even_pairs" and 1 in (self.length, *self.val_lengths):
            raise ConfigError(
                f"data.length={self.length} data.val_lengths={list(self.val_lengths)}: a string of "
                f"one symbol has no neighbours to compare; both must be 2 or more"
            )
        known = {self.length, *self.val_lengths}
        twice = sorted(n for n in self.val_lengths if n % 2 == 0 and n - 1 in known)
        if self.corpus == "modular_arithmetic" and twice:
            raise ConfigError(
                f"data.length={self.length} data.val_lengths={list(self.val_lengths)}: strings of "
                f"{twice[0]} symbols have {twice[0] - 1}, as those of {twice[0] - 1}; leave out one"
            )
        if self.corpus == "modular_arithmetic" and self.scored == "every":
            raise ConfigError(
                "data.scored=every is not for modular_arithmetic, whose strings have a value only "
                "where they end in a number; use end"
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
        """The string, and a question mark where the end is asked for."""
        return load + (self.scored == "end")


class Formal(Task):
    """Symbols at random, alike; the answer is the automaton's state, a token too.

    With `scored=end` the token behind the string is a question mark, where the answer is due (ours:
    the paper reads it off an empty token as well); shorter strings are filled up with them.
    """

    Config: ClassVar[type[TaskConfig]] = FormalConfig
    states: ClassVar[int]  # answers are tokens 0..states-1
    symbols: ClassVar[int]  # tokens besides that a string may have

    def __init__(self, config: Any) -> None:
        """Its sizes."""
        super().__init__(config)
        self.question = self.states + self.symbols
        self.vocab_size = self.question + (config.scored == "end")
        self.chance = 1 / self.states

    @abstractmethod
    def strings(self, draws: Draws, length: int) -> np.ndarray:
        """[B,N] tokens."""

    @abstractmethod
    def answers(self, string_BN: np.ndarray) -> np.ndarray:
        """[B,N]: the state after every symbol."""

    def ends(self, n_B: np.ndarray) -> np.ndarray:
        """Lengths that strings have where these were drawn."""
        return n_B

    def draw(self, draws: Draws, load: int | None = None) -> Rows:
        """See Task.draw."""
        B, longest = len(draws), self.config.length if load is None else load
        string_BN = self.strings(draws, longest)
        answer_BN = self.answers(string_BN)
        targets_BT = nothing_scored(np.empty((B, self.config.time(longest))))
        if self.config.scored == "every":
            first = 0 if load is None else longest - 1
            targets_BT[:, first:] = answer_BN[:, first:]
            return Rows(string_BN, targets_BT)
        n_B = np.full(B, longest) if load is not None else 1 + draws.below(longest, 1)[:, 0]
        n_B = self.ends(n_B)
        idx_BT = np.concatenate([string_BN, np.zeros((B, 1), np.int64)], axis=1)
        idx_BT[np.arange(longest + 1) >= n_B[:, None]] = self.question
        rows = np.arange(B)
        targets_BT[rows, n_B] = answer_BN[rows, n_B - 1]
        return Rows(idx_BT, targets_BT)


class Parity(Formal):
    """Bits; the number of ones modulo 2."""

    name: ClassVar[str] = "parity"
    states, symbols = 2, 0

    def strings(self, draws: Draws, length: int) -> np.ndarray:
        """Bits."""
        return draws.below(2, length)

    def answers(self, string_BN: np.ndarray) -> np.ndarray:
        """Sums modulo 2."""
        return string_BN.cumsum(axis=1) % 2


class EvenPairs(Parity):
    """Bits; the number of unequal neighbours modulo 2 (which is whether the ends differ)."""

    name: ClassVar[str] = "even_pairs"

    def answers(self, string_BN: np.ndarray) -> np.ndarray:
        """Changes modulo 2."""
        changes = (string_BN[:, 1:] != string_BN[:, :-1]).astype(np.int64)
        return np.pad(changes, ((0, 0), (1, 0))).cumsum(axis=1) % 2


class CycleNavigation(Formal):
    """Steps of -1, 0, 1 (tokens 5, 6, 7) on a circle of five places, from 0; where they lead."""

    name: ClassVar[str] = "cycle_navigation"
    states, symbols = 5, 3

    def strings(self, draws: Draws, length: int) -> np.ndarray:
        """Steps."""
        return 5 + draws.below(3, length)

    def answers(self, string_BN: np.ndarray) -> np.ndarray:
        """Sums of steps modulo 5."""
        return (string_BN - 6).cumsum(axis=1) % 5


class ModularArithmetic(Formal):
    """Numbers 0..4 joined by +, -, * (tokens 5, 6, 7), times before plus; the value modulo 5.

    A string of an even length is one symbol shorter, as in the paper.
    """

    name: ClassVar[str] = "modular_arithmetic"
    states, symbols = 5, 3

    def strings(self, draws: Draws, length: int) -> np.ndarray:
        """Numbers at places 0, 2, .., operators between them."""
        string_BN = draws.below(5, length)
        operators = 5 + draws.below(3, length)
        string_BN[:, 1::2] = operators[:, 1::2]
        return string_BN

    def ends(self, n_B: np.ndarray) -> np.ndarray:
        """The odd length at most that long."""
        return n_B - (n_B % 2 == 0)

    def answers(self, string_BN: np.ndarray) -> np.ndarray:
        """The value of what ends at a number; behind an operator that of before it."""
        answer_BN = np.empty_like(string_BN)
        done_B, term_B = np.zeros_like(string_BN[:, 0]), string_BN[:, 0]
        answer_BN[:, 0] = term_B
        for i in range(1, string_BN.shape[1]):
            if i % 2 == 0:
                operator_B, number_B = string_BN[:, i - 1], string_BN[:, i]
                times_B = operator_B == 7
                done_B = np.where(times_B, done_B, done_B + term_B) % 5
                signed_B = np.where(operator_B == 6, -number_B, number_B)
                term_B = np.where(times_B, term_B * number_B, signed_B) % 5
            answer_BN[:, i] = (done_B + term_B) % 5
        return answer_BN


@dataclass(frozen=True, kw_only=True)
class GroupConfig(FormalConfig):
    """Products in a symmetric group (Grazzi et al., arXiv 2411.12537; 2511.17388)."""

    length: int = option(128, "elements of a string of training", ge=1, le=2**20)
    val_lengths: tuple[int, ...] = option(
        (128, 256, 384, 512),
        "elements of the strings of validation; its loads",
        form="a list of whole numbers >= 1, rising, like [20,40,80]",
    )
    scored: Literal["every"] = option("every", "the product is asked for after every element")


class StateS2(Formal):
    """Permutations of 2 things at random; their product so far, scored after each."""

    name: ClassVar[str] = "state_s2"
    Config: ClassVar[type[TaskConfig]] = GroupConfig
    things: ClassVar[int] = 2
    states, symbols = 2, 0

    def strings(self, draws: Draws, length: int) -> np.ndarray:
        """Elements; 0 is the identity."""
        return draws.below(self.states, length)

    def answers(self, string_BN: np.ndarray) -> np.ndarray:
        """Products: the element of a prefix, then the next one applied before it."""
        elements = list(itertools.permutations(range(self.things)))
        table = np.array(
            [[elements.index(tuple(a[k] for k in b)) for b in elements] for a in elements]
        )
        answer_BN = string_BN.copy()
        for i in range(1, string_BN.shape[1]):
            answer_BN[:, i] = table[answer_BN[:, i - 1], string_BN[:, i]]
        return answer_BN


class StateS3(StateS2):
    """The same of 3 things, where the order counts."""

    name: ClassVar[str] = "state_s3"
    things: ClassVar[int] = 3
    states = 6
