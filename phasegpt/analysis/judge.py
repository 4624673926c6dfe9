"""A judge of texts that shares nothing with the models that wrote them but the training text."""

from __future__ import annotations

import numpy as np

from phasegpt.errors import ConfigError
from phasegpt.references import WittenBell

_ORDER = 7


class NGramJudge:
    """A character 7-gram model of `train_text` (see phasegpt.references.WittenBell).

    Its alphabet is that of train_text and one sign for all other characters. It sees 6 characters
    back: it judges spelling, words and short phrases, not sense. Raises ConfigError.
    """

    def __init__(self, train_text: str) -> None:
        if not train_text:
            raise ConfigError("the judge's training text is empty; give it some text")
        self._alphabet, tokens = np.unique(_characters(train_text), return_inverse=True)
        self._model = WittenBell(tokens, order=_ORDER, vocab_size=len(self._alphabet) + 1)

    def nats_per_char(self, text: str, context: str = "") -> float:
        """Mean -log p of the characters of `text` after `context`, nats; NaN for an empty text."""
        if not text:
            return float("nan")
        characters = _characters(context[-_ORDER:] + text)
        place = np.minimum(np.searchsorted(self._alphabet, characters), len(self._alphabet) - 1)
        tokens = np.where(self._alphabet[place] == characters, place, len(self._alphabet))
        return float(self._model.nats(tokens)[-len(text) :].mean())


def _characters(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], dtype=np.int64)
