"""The second path's logits for the likeliest tokens alone; the others keep their clean ones.

Shapes: R rows (2B), B batch, D model width, V vocabulary, C candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from phasegpt.errors import ConfigError


class CandidateHead:
    """Sends the clean rows alone through a model's head, until `remove`; keeps what the others had.

    head: a linear map with weight[V,D] and perhaps a bias. `rows` is B.
    """

    def __init__(self, head: Any, count: int) -> None:
        self.rows = 0
        self._head, self._count = head, count
        self._hidden_RD: Tensor | None = None
        self._checked = False
        self._handle = head.register_forward_pre_hook(self._keep)

    def remove(self) -> None:
        """The head is as it was."""
        self._handle.remove()

    def _keep(self, head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        (hidden_RTD,) = args
        if len(hidden_RTD) != 2 * self.rows:
            return None  # the prompt
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

        clean_BD, slipped_BD = self._hidden_RD.split(self.rows)
        if not self._checked:
            # Rounding of bf16 aside: a cap, a scale or another map after the head would show here.
            if (logits(clean_BD) - top_BC).abs().max() > 0.03 * top_BC.abs().max():
                raise ConfigError(
                    "candidates need logits that are the output embeddings times the last hidden "
                    "state; this model does more to them: leave candidates at None"
                )
            self._checked = True
        return ids_BC, logits(slipped_BD) - top_BC
