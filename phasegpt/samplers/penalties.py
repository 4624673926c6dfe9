"""Processors against repetition; they need the tokens so far, the prompt included.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from phasegpt.samplers import _values
from phasegpt.samplers.processor import of_tokens

_ENOUGH = 1e4  # nats; a token with a larger penalty is never drawn anyway


class RepetitionPenalty:
    """Logits of the tokens so far: divided by `penalty` where positive, else multiplied by it.

    1 changes nothing. Source: Keskar et al., arXiv 1909.05858. Raises ConfigError.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = _values.between("repetition_penalty", penalty, 0, closed=False)

    @of_tokens
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """ids[B,T], logits[B,V] -> logits[B,V]."""
        assert ids is not None
        z_BT = logits.gather(-1, ids)
        z_BT = torch.where(z_BT < 0, z_BT * self.penalty, z_BT / self.penalty)
        return logits.scatter(-1, ids, z_BT)


class DRY:
    """Don't Repeat Yourself: logits of tokens that would prolong a repetition, minus a penalty.

    If the last n tokens stood before in this text and token w followed them there, then w loses
    multiplier * base^(n - allowed_length) for the longest such n >= allowed_length. A repetition
    does not reach over a token in `breakers`, such as the end of a line, and a breaker itself loses
    nothing. A multiplier of 0 changes nothing. Source: p-e-w, text-generation-webui pull request
    5677. Raises ConfigError.
    """

    def __init__(
        self,
        multiplier: float = 0.8,
        *,
        base: float = 1.75,
        allowed_length: int = 2,
        breakers: Collection[int] | Tensor = (),
    ) -> None:
        self.multiplier = _values.between("dry_multiplier", multiplier, 0)
        self.base = _values.between("dry_base", base, 1, closed=False)
        self.allowed_length = _values.whole("dry_allowed_length", allowed_length, 1)
        self.breakers = np.array(
            sorted(set(_values.token_ids("dry_breakers", breakers))), dtype=np.int64
        )

    @of_tokens
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """ids[B,T], logits[B,V] -> logits[B,V]."""
        assert ids is not None
        ids_BT = ids.cpu().numpy()
        if not self.multiplier:
            return logits
        penalties_BV = torch.zeros(logits.shape, dtype=logits.dtype)
        for row, penalty_V in zip(ids_BT, penalties_BV, strict=True):
            for length, tokens in self._repetitions(row):
                penalty_V[torch.from_numpy(tokens)] = self._penalty(length)
        return logits - penalties_BV.to(logits.device)

    def _repetitions(self, row_T: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Lengths n, ascending, and the tokens that followed the row's last n tokens before."""
        found = []
        broken_T = np.isin(row_T, self.breakers)
        # Earlier places where the n tokens end, but for those that a breaker follows.
        ends, length = np.flatnonzero(~broken_T[1:]), 0
        while len(ends) and not broken_T[-1 - length]:
            ends = ends[row_T[ends - length] == row_T[-1 - length]]
            length += 1
            if length >= self.allowed_length:
                found.append((length, row_T[ends + 1]))
                if self._penalty(length) >= _ENOUGH:
                    break
            ends = ends[ends >= length]
        return found

    def _penalty(self, length: int) -> float:
        """Nats, at most _ENOUGH."""
        exponent = (length - self.allowed_length) * math.log(self.base)
        return min(_ENOUGH, self.multiplier * math.exp(min(exponent, 100.0)))
