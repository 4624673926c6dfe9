"""When a row ends.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError


@dataclass(frozen=True)
class Stop:
    """Which rows end with the token they have just got; see decode. Raises ConfigError."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: Any
    criteria: tuple[Callable[[Tensor, None], Tensor], ...]

    def __post_init__(self) -> None:
        """Check the strings."""
        if "" in self.strings:
            raise ConfigError(
                "stop_strings hold an empty string, which every text contains; leave it"
            )
        if self.strings and self.tokenizer is None:
            raise ConfigError(
                "stop_strings need a tokenizer to read the new tokens; pass tokenizer="
            )

    def __call__(self, ids_BT: Tensor, prompt: int) -> list[bool]:
        """Of rows of ids, the first `prompt` of which were given."""
        ends = [token in self.ids for token in ids_BT[:, -1].tolist()]
        if self.strings:
            # Enough tokens for the longest string, were every token one byte of UTF-8.
            tail = max(prompt, ids_BT.shape[1] - 4 * max(map(len, self.strings)))
            texts = [self.tokenizer.decode(row) for row in ids_BT[:, tail:].tolist()]
            found = [any(s in text for s in self.strings) for text in texts]
            ends = [a or b for a, b in zip(ends, found, strict=True)]
        for criterion in self.criteria:
            flags = torch.as_tensor(criterion(ids_BT, None)).expand(len(ends)).tolist()
            ends = [a or bool(b) for a, b in zip(ends, flags, strict=True)]
        return ends
