"""`no_mixing`, a control: every token keeps its own value, and no token sees another.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from phasegpt.attention import (
    Attention,
    AttentionConfig,
    AttentionOutput,
    Flops,
    LayerShape,
    ReturnPhase,
    linear_flops,
)
from phasegpt.attention._cache import LayerCache
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class NoMixingConfig(AttentionConfig):
    """Options of `no_mixing`: it has none."""


class NoMixing(Attention):
    """y = W_o W_v x of the token itself: what is left of attention when nothing is mixed.

    What a mechanism gains over it, it gains by mixing at all. A decode cache holds nothing.
    """

    Config: ClassVar[type[AttentionConfig]] = NoMixingConfig
    mixes = False
    knows_order = False

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """c_v and c_proj, both [D,D]."""
        super().__init__(config, options, layer)
        self.c_v = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward."""
        mixed_BTD = self.mix(self.c_v(x_BTD), cache)
        if cache is not None:
            cache.length += x_BTD.shape[1]
        return AttentionOutput(self.resid_dropout(self.c_proj(mixed_BTD)))

    def mix(self, v_BTD: Tensor, cache: LayerCache | None) -> Tensor:
        """What of the values of a prefix its newest token gets, [B,T,D]: its own."""
        return v_BTD

    def flops(self, time: int) -> Flops:
        """See Attention.flops; two linear maps, and no product between tokens."""
        return Flops.of(linear_flops(self), 0.0, time)
