"""The embedded corpus: little plays from a stochastic source whose exact entropy is known.

A text is a sequence of scenes; a scene has a place, a time of day, a cast, things that the
speakers introduce and come back to, and questions that wait for an answer. So context helps: the
name behind a comma is the previous speaker's, "they" follows "pearls", "the silver key" appears
because somebody found it ten lines ago, and "Yes, you found it" depends on who did.

One walk through the grammar (_grammar.py, over the memory in _scene.py) serves both directions. At
each random choice it calls `pick(options, weights)`: the sampler draws one and writes it, the
scorer reads which one stands in the text and adds log(weight / total). Every option is visible
in the text and none is the beginning of another, so at most one fits: every text has at most one
derivation, and `log_prob` is its exact log probability. Scenes are independent and generation
stops after the first scene that reaches the wanted size, so the texts of one size are a proper
distribution, and the probability of a text is the product over its scenes. Hence a causal model
beats the floor by x nats with probability below e^-x (Markov's inequality).
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Sequence

from phasegpt.core.errors import DataError
from phasegpt.data._grammar import write_scene

#: Fixes the text of every split; the seed of a run does not enter.
SOURCE_SEED = 20_240_229
#: Characters of the evaluation splits, whatever the size of the train split.
EVAL_CHARACTERS = {"val": 100_000, "test": 200_000}
#: Every character that the source can write.
ALPHABET = "\n ,.:?ABCDEFGHIJLMNOPQRSTUVWXYabcdefghijklmnopqrstuvwxyz"
VOCAB_SIZE = len(ALPHABET)


class _Sampler:
    """Draws each choice and writes the text."""

    def __init__(self, seed: int) -> None:
        # Python promises that random() keeps its stream in every version, numpy does not.
        self.uniform = random.Random(seed).random
        self.pieces: list[str] = []
        self.length = 0

    def say(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def pick(self, options: Sequence[str], weights: Sequence[float] | None = None) -> int:
        left = self.uniform() * (sum(weights) if weights else len(options))
        chosen = 0
        if weights is None:
            chosen = int(left)
        else:
            while chosen < len(weights) - 1 and left >= weights[chosen]:
                left -= weights[chosen]
                chosen += 1
        self.say(options[chosen])
        return chosen


class _Scorer:
    """Reads each choice off a given text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.log_prob = 0.0

    def say(self, text: str) -> None:
        if not self.text.startswith(text, self.position):
            raise self.error([text])
        self.position += len(text)

    def pick(self, options: Sequence[str], weights: Sequence[float] | None = None) -> int:
        starts, position = self.text.startswith, self.position
        fits = [i for i, option in enumerate(options) if starts(option, position)]
        if not fits:
            raise self.error(options)
        if len(fits) > 1:
            raise AssertionError(f"the source is ambiguous: {[options[i] for i in fits]}")
        self.log_prob += _log_share(options, weights, fits[0])
        self.position += len(options[fits[0]])
        return fits[0]

    def error(self, options: Sequence[str]) -> DataError:
        found = self.text[self.position : self.position + 24]
        return DataError(
            f"this text is not from the synthetic source: at character {self.position} it has "
            f"{found!r}, where the source writes {' or '.join(map(repr, options[:6]))}"
        )


def _log_share(options: Sequence[str], weights: Sequence[float] | None, chosen: int) -> float:
    return math.log(weights[chosen] / sum(weights)) if weights else -math.log(len(options))


def generate(seed: int, characters: int) -> str:
    """Scenes until at least `characters` characters are written; the same for the same seed."""
    sampler = _Sampler(seed)
    while sampler.length < characters:
        write_scene(sampler)
    return "".join(sampler.pieces)


def log_prob(text: str) -> float:
    """Exact log probability of `text` under the source, in nats.

    Raises DataError, with the place, for a text that the source cannot write (a cut-off scene is
    one).
    """
    scorer = _Scorer(text)
    if not text:
        raise DataError("this text is not from the synthetic source: it is empty")
    while scorer.position < len(text):
        write_scene(scorer)
    return scorer.log_prob


def splits(characters: int) -> dict[str, str]:
    """The corpus: `train` with `characters` characters, `val` and `test` of a fixed size."""
    sizes = {"train": characters, **EVAL_CHARACTERS}
    return {name: generate(SOURCE_SEED + i, n) for i, (name, n) in enumerate(sizes.items())}


@functools.cache
def fingerprint() -> str:
    """Hash of a sample, so that a changed grammar never meets the token cache of the old one."""
    return hashlib.sha256(generate(SOURCE_SEED, 50_000).encode()).hexdigest()
