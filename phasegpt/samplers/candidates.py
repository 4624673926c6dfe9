"""The second path's logits for the likeliest tokens alone; the others keep their clean ones.

Shapes: R rows (2B), B batch, D model width, V vocabulary, C candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError

_OTHER = (
    "candidates need logits that are the output embeddings times the last hidden state; this model "
    "does more to them: leave candidates at None"
)


class CandidateHead:
    """Sends the clean rows alone through a model's head, and keeps what the others had.

    head: a linear map with weight[V,D] and perhaps a bias. `rows` is B from the moment that it
    is set until `difference`, and 0 else, when all rows go through; `remove` ends it. Raises
    ConfigError.
    """

    def __init__(self, head: Any, count: int) -> None:
        if not isinstance(getattr(head, "weight", None), Tensor):
            raise ConfigError(_OTHER)
        self.rows = 0
        self._head, self._count = head, count
        self._hidden_RD: Tensor | None = None
        self._handle = head.register_forward_pre_hook(self._keep)

    def remove(self) -> None:
        """The head is as it was."""
        self._handle.remove()

    def _keep(self, head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self.rows:
            return None
        (hidden_RTD,) = args
        self._hidden_RD = hidden_RTD[:, -1]
        return (hidden_RTD[: self.rows],)

    def difference(self, clean_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Ids[B,C] of the best clean tokens, and their slipped minus clean logits. ConfigError."""
        assert self._hidden_RD is not None
        top_BC, ids_BC = clean_BV.topk(min(self._count, clean_BV.shape[-1]), dim=-1)
        weight_BCD, bias = self._head.weight[ids_BC], getattr(self._head, "bias", None)

        def logits(hidden_BD: Tensor) -> Tensor:
            found_BC = torch.einsum("bnd,bd->bn", weight_BCD, hidden_BD).float()
            return found_BC if bias is None else found_BC + bias[ids_BC]

        clean_BC, slipped_BC = map(logits, self._hidden_RD.split(self.rows))
        self.rows = 0
        # Rounding of bf16 aside: a cap, a scale or another map after the head would show here.
        if (clean_BC - top_BC).abs().max() > 0.01 * top_BC.abs().max():
            raise ConfigError(_OTHER)
        return ids_BC, slipped_BC - clean_BC
