"""What a loss is compared with: interpolated n-gram models and the source's own entropy."""

from __future__ import annotations

import numpy as np

from phasegpt.core.errors import ConfigError
from phasegpt.data.corpus import Corpus


def floor(corpus: Corpus) -> float | None:
    """The source's validation cross-entropy, nats per scored token; None for unknown sources.

    The first token counts as certain, which it is in the synthetic corpus.
    """
    tokens = corpus.split("val")
    nats = corpus.meta["splits"]["val"]["floor_nats"]
    return None if nats is None else nats / (len(tokens) - 1)


def trigram(corpus: Corpus) -> float:
    """Nats per token of a trigram model of the train split, over the same tokens as val/loss."""
    tokens = corpus.split("val")
    nats = trigram_nats(corpus.split("train"), tokens, vocab_size=corpus.tokenizer.vocab_size)
    return nats / (len(tokens) - 1)


def trigram_nats(train_tokens: np.ndarray, eval_tokens: np.ndarray, *, vocab_size: int) -> float:
    """Total -log p of eval_tokens[1:] under an interpolated trigram model of train_tokens."""
    model = WittenBell(train_tokens, order=3, vocab_size=vocab_size)
    return float(model.nats(eval_tokens)[1:].sum())


class WittenBell:
    """An interpolated n-gram model of train_tokens, with Witten-Bell smoothing.

    From the uniform distribution up, with h' the history h without its oldest token, c counts,
    and n(h) the number of different tokens seen after h:

        p(w | h) = (c(h w) + n(h) p(w | h')) / (c(h) + n(h))

    It has nothing to tune and sums to one. vocab_size^order must be below 2^63. Raises
    ConfigError. Source: Witten and Bell, 1991, IEEE Trans. Inf. Theory 37(4), as given by Chen
    and Goodman (arXiv:cmp-lg/9606011).
    """

    def __init__(self, train_tokens: np.ndarray, *, order: int, vocab_size: int) -> None:
        if order < 1 or vocab_size**order >= 1 << 63:
            raise ConfigError(
                f"order={order} is out of range; with {vocab_size} tokens it must be at least 1, "
                f"and {vocab_size}^order below 2^63"
            )
        self.vocab_size = vocab_size
        train = train_tokens.astype(np.int64)
        self._orders = []
        for n in range(1, min(order, len(train)) + 1):
            grams, counts = np.unique(_grams(train, n, vocab_size), return_counts=True)
            histories, first = np.unique(grams // vocab_size, return_index=True)
            totals = np.add.reduceat(counts, first)
            kinds = np.diff(np.append(first, len(grams)))
            self._orders.append((grams, counts, histories, totals, kinds))

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """-log p of every token given those before it (the first: given nothing), float64."""
        scored = tokens.astype(np.int64)
        p_T = np.full(len(scored), 1.0 / self.vocab_size)
        for n, (grams, counts, histories, totals, kinds) in enumerate(self._orders, start=1):
            wanted = _grams(scored, n, self.vocab_size)
            p = p_T[len(p_T) - len(wanted) :]  # a view: each order writes into p_T
            place, seen = _find(histories, wanted // self.vocab_size)
            gram_place, gram_seen = _find(grams, wanted)
            c_hw = np.where(gram_seen, counts[gram_place], 0)
            n_h, c_h = np.where(seen, kinds[place], 1), np.where(seen, totals[place], 0)
            p[:] = (c_hw + n_h * p) / (c_h + n_h)
        return -np.log(p_T)


def _grams(tokens: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """The number of each run of `order` tokens, oldest first: w1 V^2 + w2 V + w3."""
    code = np.zeros(max(0, len(tokens) - order + 1), dtype=np.int64)
    for i in range(order):
        code = code * vocab_size + tokens[i : i + len(code)]
    return code


def _find(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of `values` in a sorted table, and whether they are there."""
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return place, table[place] == values
