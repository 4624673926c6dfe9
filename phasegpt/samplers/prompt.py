"""What is continued: rows of token ids, padded on the left where they differ in length.

Shapes: B batch, T time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError
from phasegpt.samplers import _values
from phasegpt.samplers.models import Decoder


@dataclass(frozen=True, eq=False)
class Prompt:
    """ids[B,T] of whole numbers; attention_mask[B,T] is 0 on left padding and 1 on the text.

    Without a mask nothing is padding. Raises ConfigError.
    """

    ids: Tensor
    attention_mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check all that the model does not matter for."""
        ids_BT = _values.whole_numbers("ids", self.ids)
        if ids_BT.ndim != 2 or 0 in ids_BT.shape:
            raise ConfigError(
                f"ids have shape {list(ids_BT.shape)}; they must be [B,T] with at least one row "
                f"and one token to continue"
            )
        object.__setattr__(self, "ids", ids_BT)
        mask_BT: Any = self.attention_mask
        if mask_BT is None:
            return
        if not isinstance(mask_BT, Tensor) or mask_BT.shape != ids_BT.shape:
            shape = list(mask_BT.shape) if isinstance(mask_BT, Tensor) else type(mask_BT).__name__
            raise ConfigError(
                f"attention_mask has shape {shape}, ids {list(ids_BT.shape)}; they must be equal"
            )
        arguments.held("attention_mask", mask_BT)
        if ((mask_BT != 0) & (mask_BT != 1)).any():
            raise ConfigError("attention_mask may hold 0 (padding) and 1 (text) alone")
        mask_BT = mask_BT.long()
        if (mask_BT[:, -1] == 0).any() or (mask_BT.diff(dim=1) < 0).any():
            raise ConfigError(
                "attention_mask must be 0 on padding to the left and 1 from the first token of "
                "the prompt to its last; pad on the left, and give every row a token (generate "
                "masks the pad token inside a prompt too, where it is not given a mask)"
            )
        object.__setattr__(self, "attention_mask", mask_BT)

    @property
    def pads(self) -> list[int]:
        """Tokens of left padding in each row."""
        if self.attention_mask is None:
            return [0] * len(self.ids)
        return (self.attention_mask == 0).sum(dim=1).tolist()

    def check(self, decoding: Decoder, max_new_tokens: int) -> None:
        """ConfigError where the model has no such token, or no room for so many."""
        low, high = int(self.ids.min()), int(self.ids.max())
        if low < 0 or high >= decoding.vocab_size:
            raise ConfigError(
                f"token {low if low < 0 else high} is outside the model's vocabulary "
                f"0..{decoding.vocab_size - 1}"
            )
        if decoding.slides or decoding.context is None:
            return
        longest = self.ids.shape[1] - min(self.pads)
        room = decoding.context + 1 - longest
        if longest > decoding.context or max_new_tokens > room:
            raise ConfigError(
                f"the prompt has {longest} tokens and max_new_tokens is {max_new_tokens}; the "
                f"model attends to {decoding.context}, so "
                + (f"at most {room} can follow" if room > 0 else "the prompt must be shorter")
            )
