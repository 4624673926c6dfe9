"""Causal softmax attention, GPT-2's, with learned positions or RoPE: the baseline.

Shapes: B batch, T time, D model width, H heads, G heads of keys and values, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from phasegpt.attention import Attention, AttentionConfig, AttentionOutput, LayerShape, ReturnPhase
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import (
    causal_attention,
    join_heads,
    rotary,
    split_heads,
    turn,
)
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class SoftmaxConfig(AttentionConfig):
    """Options of `softmax` (Vaswani et al., arXiv 1706.03762): it has none."""


class Softmax(Attention):
    """y = softmax(q k^T / sqrt(E)) v. Source: Vaswani et al., arXiv 1706.03762.

    With G < H heads of keys and values, each serves H/G queries next to each other (Ainslie et
    al., arXiv 2305.13245). It is repeated for them before it is remembered, since the phases that
    stand beside a key differ by head: fewer weights, and a decode cache of the same size.
    """

    Config: ClassVar[type[AttentionConfig]] = SoftmaxConfig
    softmax_parts = ("",)

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Projections under GPT-2's names."""
        super().__init__(config, options, layer)
        self.kv_heads = config.kv_heads
        width = config.n_embd + 2 * self.kv_heads * self.head_width
        self.c_attn = nn.Linear(config.n_embd, width, bias=config.bias)
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
        q, k, v = self.project(x_BTD, cache)
        if cache is not None:
            k, v = cache.update(k, v)
        return AttentionOutput(self.mix(q, k, v))

    def project(self, x_BTD: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as [B,H,T,E], q and k rotated when positions are rotary."""
        H, G, E = self.n_head, self.kv_heads, self.head_width
        q, k, v = self.parts(x_BTD)
        if self.rope:
            start, time = cache.length if cache is not None else 0, x_BTD.shape[1]
            waves = rotary(start, time, E // 2, q, self.rope_theta)
            q, k = turn(q, *waves), turn(k, *waves)
        if G < H:
            k, v = (z.repeat_interleave(H // G, dim=1) for z in (k, v))
        return q, k, v

    def parts(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q[B,H,T,E], k and v[B,G,T,E] before they are turned."""
        H, G, E = self.n_head, self.kv_heads, self.head_width
        parts = self.c_attn(x_BTD).split((H * E, G * E, G * E), dim=-1)
        q, k, v = (split_heads(z, n) for z, n in zip(parts, (H, G, G), strict=True))
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, gain: Tensor | None = None) -> Tensor:
        """Attend at scale 1/sqrt(E) and project out; `gain` multiplies each head's output."""
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, scale=self.head_width**-0.5, dropout=dropout)
        if gain is not None:
            y = y * gain
        return self.resid_dropout(self.c_proj(join_heads(y)))
