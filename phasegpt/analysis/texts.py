"""What can be counted in sampled texts: variety, repetition, loops, nearness to human text.

Pure functions of strings. A word is what stands between white space, in lower case, without full
stops and commas (the definition of the Phase-Slip README's "diversity"); a text that was cut in the
middle of a word begins or ends with a part of one. Every number depends on the length of the texts
(short ones repeat less), so compare only texts of one length, and look at a human row first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import numpy as np

from phasegpt.core.errors import ConfigError
from phasegpt.data.ngram import WittenBell

Unit = Literal["word", "character"]

_PIECE, _LAST = 16, 60  # of `looped`
_RANKS = 200  # of the Zipf line
_ORDER = 7  # of the judge


def words(text: str) -> list[str]:
    """The words of a text, as this module counts them."""
    return text.lower().replace(".", "").replace(",", "").split()


def unique_words(text: str) -> float:
    """Different words / words, the published "diversity"; 0 for a text without words."""
    found = words(text)
    return len(set(found)) / len(found) if found else 0.0


def distinct(texts: Iterable[str], n: int) -> float:
    """Different word n-grams / word n-grams, over all texts together; 0 if there is none.

    Source: Li et al., arXiv 1510.03055.
    """
    counts = _counts(texts, n, "word")
    return len(counts) / max(1, counts.total())


def repetition(text: str, n: int, unit: Unit = "word") -> float:
    """The share of n-grams that the text has already had: 1 - different / all; 0 if there is none.

    With characters, n = 16 sees copied phrases. Source: Welleck et al., arXiv 1908.04319 (rep-n).
    """
    counts = _counts([text], n, unit)
    return 1 - len(counts) / counts.total() if counts else 0.0


def looped(text: str) -> bool:
    """Whether the text ends in a loop: a quarter of its last 60 16-character pieces were before.

    So a loop may have any period and may drift slowly, as loops of small models do. A text of less
    than 75 characters is too short to tell.
    """
    pieces = [text[i : i + _PIECE] for i in range(len(text) - _PIECE + 1)]
    first: dict[str, int] = {}
    for i, piece in enumerate(pieces):
        first.setdefault(piece, i)
    last = range(len(pieces) - _LAST, len(pieces))
    return len(pieces) >= _LAST and sum(first[pieces[i]] < i for i in last) >= _LAST / 4


def self_bleu(texts: Sequence[str], order: int = 3) -> float:
    """Mean BLEU of every text against the others: 1 if all are the same, lower if they vary.

    Modified n-gram precisions up to `order`, each with one added to both counts, because a short
    text often shares no long n-gram and BLEU would be 0; their geometric mean, without a brevity
    penalty, because the texts are of one length. NaN for fewer than two texts. Source: Zhu et al.,
    arXiv 1802.01886; smoothing of Lin and Och (COLING 2004), here for n = 1 too.
    """
    if len(texts) < 2:
        return math.nan
    log_precisions = np.zeros(len(texts))
    for n in range(1, order + 1):
        counts = [_counts([text], n, "word") for text in texts]
        best: dict[tuple[str, ...], list[int]] = {}  # the two largest counts in one text
        for count in counts:
            for gram, c in count.items():
                best[gram] = sorted((c, *best.get(gram, (0, 0))))[:0:-1]
        for i, count in enumerate(counts):
            matches = 0
            for gram, c in count.items():
                first, second = best[gram]
                matches += min(c, second if c == first else first)
            log_precisions[i] += math.log((matches + 1) / (count.total() + 1))
    return float(np.exp(log_precisions / order).mean())


def zipf(texts: Iterable[str]) -> float:
    """Zipf's exponent: minus the slope of log count over log rank of the 200 commonest words.

    Human text has about 1. NaN for fewer than two different words.
    """
    counts = [c for _, c in _counts(texts, 1, "word").most_common(_RANKS)]
    if len(counts) < 2:
        return math.nan
    return -float(np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0])


def jsd(texts: Iterable[str], others: Iterable[str], n: int, unit: Unit = "character") -> float:
    """Jensen-Shannon divergence of two sets of texts by their n-grams, in bits: 0 (same) to 1.

    (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2. Two finite samples of one source are above 0
    already, so compare with human against human. NaN if a side has no n-gram. Source: Lin (1991).
    """
    P, Q = _counts(texts, n, unit), _counts(others, n, unit)
    if not P or not Q:
        return math.nan
    grams = list(P | Q)
    p = np.array([P[gram] for gram in grams]) / P.total()
    q = np.array([Q[gram] for gram in grams]) / Q.total()
    m = (p + q) / 2
    return sum(float((x[x > 0] * np.log2(x[x > 0] / m[x > 0])).sum()) for x in (p, q)) / 2


def real_word_rate(texts: Iterable[str], vocabulary: Collection[str]) -> float:
    """The share of words that are in `vocabulary` (see `words`); 0 if there is no word."""
    found = [word for text in texts for word in words(text)]
    return sum(word in vocabulary for word in found) / max(1, len(found))


def _counts(texts: Iterable[str], n: int, unit: Unit) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs; none reaches over the border of a text."""
    if n < 1:
        raise ValueError(f"n={n} must be >= 1")
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        units = words(text) if unit == "word" else text
        counts.update(zip(*(units[i:] for i in range(n)), strict=False))
    return counts


class NGramJudge:
    """A judge that shares nothing with the models that wrote a text but the training text.

    A character 7-gram model of `train_text` (see phasegpt.data.ngram.WittenBell).

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
