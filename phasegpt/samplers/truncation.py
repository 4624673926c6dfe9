"""Processors that remove unlikely tokens: each sees what the one before it left.

They act on probabilities at T = 1 where they stand before the temperature, as in build_chain.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical

from phasegpt.samplers import _values
from phasegpt.samplers.processor import of_logits
from phasegpt.samplers.temperature import entropy


class TopK:
    """Keep the k largest logits, and those equal to the smallest of them. Raises ConfigError."""

    def __init__(self, k: int) -> None:
        self.k = _values.whole("top_k", k, 1, _values.OFF)

    @of_logits
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

    @of_logits
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

    @of_logits
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

    @of_logits
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


class TopH:
    """Keep the likeliest tokens whose terms -p ln p sum to at most h times the entropy.

    As transformers has it: p and the entropy are over the 100 likeliest tokens, beyond which none
    is kept. Source: Potraghloo et al., arXiv 2509.02510. Raises ConfigError.
    """

    def __init__(self, h: float) -> None:
        self.h = _values.between("top_h", h, 0, 1, closed=False, otherwise=_values.OFF)

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        likeliest, order = logits.topk(min(100, logits.shape[-1]), dim=-1)
        shares = Categorical(logits=likeliest, validate_args=False)
        terms = -shares.probs * shares.probs.log()
        left = terms.cumsum(dim=-1) <= shares.entropy()[..., None] * self.h
        left[..., 0] = True
        keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, left)
        return logits.masked_fill(~keep, -math.inf)


class Epsilon:
    """Keep the tokens with probability at least epsilon, and the likeliest in any case.

    Source: Hewitt et al., arXiv 2210.15191. Raises ConfigError.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = _values.between(
            "epsilon_cutoff", epsilon, 0, 1, closed=False, otherwise=_values.OFF
        )

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        return _at_least(logits, torch.tensor(self.epsilon))


class Eta:
    """Keep the tokens with probability at least min(epsilon, sqrt(epsilon) e^-H), H the entropy.

    The likeliest is kept in any case. Source: Hewitt et al., arXiv 2210.15191. Raises ConfigError.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = _values.between(
            "eta_cutoff", epsilon, 0, 1, closed=False, otherwise=_values.OFF
        )

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        expected_B1 = self.epsilon**0.5 * (-entropy(logits)[..., None]).exp()
        return _at_least(logits, expected_B1.clamp(max=self.epsilon))


class PLess:
    """Keep the tokens with probability at least sum p^2: that of drawing the same token twice.

    It has no parameter. Source: Tan et al., arXiv 2509.23234 (p-less sampling).
    """

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; a uniform distribution stays whole, up to rounding."""
        twice_B1 = logits.softmax(dim=-1).square().sum(dim=-1, keepdim=True)
        return _at_least(logits, twice_B1 * (1 - 1e-6))


def _at_least(logits: Tensor, least: Tensor) -> Tensor:
    """Remove what is less probable than `least`, but never the likeliest."""
    unlikely = logits.softmax(dim=-1) < least.to(logits.device)
    largest = logits.amax(dim=-1, keepdim=True)
    return logits.masked_fill(unlikely & (logits < largest), -math.inf)


class TopNSigma:
    """Keep the logits within n standard deviations of the largest: z >= max z - n sigma.

    sigma is over the tokens that are left (their number is the divisor), so the same ones are
    kept at every T > 0. Source: Tang et al., arXiv 2411.07641. Raises ConfigError.
    """

    def __init__(self, n: float) -> None:
        self.n = _values.between("top_n_sigma", n, 0, closed=False, otherwise=_values.OFF)

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        left = logits > -math.inf
        count = left.sum(dim=-1, keepdim=True)
        z = logits.masked_fill(~left, 0)
        centred = (z - z.sum(-1, keepdim=True) / count).masked_fill(~left, 0)
        sigma = (centred.square().sum(-1, keepdim=True) / count).sqrt()
        least = logits.amax(dim=-1, keepdim=True) - self.n * sigma
        return logits.masked_fill(logits < least, -math.inf)
