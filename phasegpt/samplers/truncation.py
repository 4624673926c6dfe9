"""Processors that remove unlikely tokens: each sees what the one before it left.

They act on probabilities at T = 1 where they stand before the temperature, as in build_chain.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math

from torch import Tensor

from phasegpt.samplers import _values
from phasegpt.samplers.temperature import entropy


class TopK:
    """Keep the k largest logits, and those equal to the smallest of them. Raises ConfigError."""

    def __init__(self, k: int) -> None:
        self.k = _values.whole("top_k", k, 1, _values.OFF)

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        smallest = logits.topk(min(self.k, logits.shape[-1]), dim=-1).values[..., -1:]
        return logits.masked_fill(logits < smallest, -math.inf)


class TopP:
    """Keep the fewest likeliest tokens whose probability sums to at least p: the nucleus.

    Source: Holtzman et al., arXiv 1904.09751. Raises ConfigError.
    """

    def __init__(self, p: float) -> None:
        self.p = _values.between("top_p", p, 0, 1, closed=False, otherwise=_values.OFF)

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; p = 1 keeps everything."""
        if self.p == 1:
            return logits
        ascending, order = logits.sort(dim=-1)
        remove = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.p
        remove[..., -1] = False
        return logits.masked_fill(remove.scatter(-1, order, remove), -math.inf)


class MinP:
    """Keep the tokens at least `min_p` times as probable as the likeliest.

    Source: Nguyen et al., arXiv 2407.01082. Raises ConfigError.
    """

    def __init__(self, min_p: float) -> None:
        self.min_p = _values.between("min_p", min_p, 0, 1, otherwise=_values.OFF)

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; 0 keeps everything, 1 the likeliest alone."""
        probs = logits.softmax(dim=-1)
        return logits.masked_fill(probs < self.min_p * probs.amax(-1, keepdim=True), -math.inf)


class Typical:
    """Keep the tokens whose surprise is nearest the entropy, with probability at least p together.

    Surprise -ln p_i and entropy H in nats; tokens in the order of |-ln p_i - H|. Source: Meister
    et al., arXiv 2202.00666 (locally typical sampling). Raises ConfigError.
    """

    def __init__(self, p: float) -> None:
        self.p = _values.between("typical_p", p, 0, 1, closed=False, otherwise=_values.OFF)

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; p = 1 keeps everything."""
        if self.p == 1:
            return logits
        surprise = -logits.log_softmax(dim=-1)
        distance = (surprise - entropy(logits)[..., None]).abs()
        ascending, order = distance.sort(dim=-1)
        mass = logits.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (mass < self.p).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        return logits.masked_fill(distance > ascending.gather(-1, last), -math.inf)


class TopNSigma:
    """Keep the logits within n standard deviations of the largest: z >= max z - n sigma.

    sigma is over the tokens that are left (their number is the divisor), so the same ones are
    kept at every T > 0. Source: Tang et al., arXiv 2411.07641. Raises ConfigError.
    """

    def __init__(self, n: float) -> None:
        self.n = _values.between("top_n_sigma", n, 0, closed=False, otherwise=_values.OFF)

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        left = logits > -math.inf
        count = left.sum(dim=-1, keepdim=True)
        z = logits.masked_fill(~left, 0)
        centred = (z - z.sum(-1, keepdim=True) / count).masked_fill(~left, 0)
        sigma = (centred.square().sum(-1, keepdim=True) / count).sqrt()
        least = logits.amax(dim=-1, keepdim=True) - self.n * sigma
        return logits.masked_fill(logits < least, -math.inf)
