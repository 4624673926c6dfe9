"""What a link of the chain is.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Processor(Protocol):
    """Anything that maps the logits of the next token; ids[B,T] are the tokens so far, or None.

    The same call as Hugging Face's LogitsProcessor. A removed token has logit -inf. A processor
    does not change its input.
    """

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        ...
