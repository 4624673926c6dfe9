"""Processors `(ids, logits) -> logits`, the same call as Hugging Face's, and their usual order.

A chain is a plain list that is applied in order: temperature first, then each truncation sees
what the one before left. A removed token has logit -inf. Processors do not change their input.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from phasegpt.errors import ConfigError


class Processor(Protocol):
    """Anything that maps the logits of the next token; ids[B,T] are the tokens so far, or None."""

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        ...


class Temperature:
    """Logits / T: below 1 sharpens, above 1 flattens; T = 0 keeps the largest logit alone.

    T = 0 is exactly greedy. Of equal largest logits, the lowest id is kept. Raises ConfigError.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = _number("temperature", temperature)
        if temperature < 0:
            raise ConfigError(
                f"temperature={temperature} is negative, and negative temperatures are not "
                f"supported yet; it must be >= 0 (0: always the likeliest token)"
            )
        if math.isinf(self.temperature):
            raise ConfigError("temperature=inf must be finite; 1e6 is as good as uniform")

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; for T other than 1 the largest becomes 0."""
        if self.temperature == 1:
            return logits
        if self.temperature == 0:
            best = logits.argmax(dim=-1, keepdim=True)
            greedy = torch.full_like(logits, -math.inf)
            # Gathered, so that NaN and -inf stay what they are and decode can see them.
            return greedy.scatter(-1, best, logits.gather(-1, best))
        # Counted from the largest, so that a tiny T cannot overflow; softmax does not notice.
        divisor = max(self.temperature, torch.finfo(logits.dtype).tiny)
        return (logits - logits.amax(dim=-1, keepdim=True)) / divisor


class TopK:
    """Keep the k largest logits, and those equal to the smallest of them. Raises ConfigError."""

    def __init__(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"top_k={k} must be a whole number >= 1, or null to keep every token")
        self.k = k

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        smallest = logits.topk(min(self.k, logits.shape[-1]), dim=-1).values[..., -1:]
        return logits.masked_fill(logits < smallest, -math.inf)


class TopP:
    """Keep the fewest likeliest tokens whose probability sums to at least p: the nucleus.

    Source: Holtzman et al., arXiv 1904.09751. Raises ConfigError.
    """

    def __init__(self, p: float) -> None:
        self.p = _number("top_p", p)
        if not 0 < self.p <= 1:
            raise ConfigError(f"top_p={p} is out of range; it must be in (0, 1], or null")

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
        self.min_p = _number("min_p", min_p)
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={min_p} is out of range; it must be in [0, 1], or null")

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; 0 keeps everything, 1 the likeliest alone."""
        probs = logits.softmax(dim=-1)
        return logits.masked_fill(probs < self.min_p * probs.amax(-1, keepdim=True), -math.inf)


class Vocabulary:
    """Remove ids from `size` on: those of a padded model.vocab_size that have no text."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        if logits.shape[-1] <= self.size:
            return logits
        return logits.masked_fill(
            torch.arange(logits.shape[-1], device=logits.device) >= self.size, -math.inf
        )


def build_chain(
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> list[Processor]:
    """The usual chain, in Hugging Face's order: temperature, top_k, top_p, min_p; None: left out.

    So top_p and min_p act on probabilities at the temperature. The list may be edited. Raises
    ConfigError for a value out of range.
    """
    chain: list[Processor] = [Temperature(temperature)]
    if top_k is not None:
        chain.append(TopK(top_k))
    if top_p is not None:
        chain.append(TopP(top_p))
    if min_p is not None:
        chain.append(MinP(min_p))
    return chain


def _number(name: str, value: Any) -> float:
    """A number that is not NaN; ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigError(f"{name}={value} must be a number")
    return float(value)
