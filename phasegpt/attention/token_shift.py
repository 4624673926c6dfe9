"""`token_shift`: softmax attention that retrieves a token's value together with its successor's.

    A = softmax over u <= t - 1 of q_t . k_u / sqrt(E)
    y_t = W_o [sum_u A_tu v_u; sum_u A_tu v_{u+1}] = W_0 sum_u A_tu v_u + W_1 sum_u A_tu v_{u+1}

With `tied` q = softplus(W_q x) * k channel by channel, before q and k are turned: what fsn has of
attention and delay, without phases, and weight by weight the parameters of the untied layer.

A control, the rival of `fsn`: what follows a match is in the values, without phases. Since u + 1 <=
t, no token sees a later one. The first token has nothing before it: its attention is 0, and y_0 is
the bias of W_0.

The two halves of a head's output, 2E wide, meet the two halves of W_o: W_0 is GPT-2's c_proj, and
W_1 is next_c_proj, without a bias of its own. With rotary positions q and k are turned as in
`softmax`; values are not. One SDPA call, whose queries and keys are padded to 2E.

Shapes: B batch, T time, D model width, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.attention import (
    AttentionConfig,
    AttentionOutput,
    Flops,
    LayerShape,
    ReturnPhase,
    linear_flops,
)
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import join_heads, preceding_attention
from phasegpt.attention.softmax import Softmax
from phasegpt.core.sections import option
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class TokenShiftConfig(AttentionConfig):
    """Options of `token_shift`, a control."""

    tied: bool = option(
        False, "true: queries are the keys, weighed by gates: tokens attend to those like them"
    )


class TokenShift(Softmax):
    """Strictly causal softmax attention over pairs of a value and the next token's.

    A decode cache holds keys and values as softmax's does: 2 D numbers of a token, 8 D bytes in
    float32.
    """

    Config: ClassVar[type[AttentionConfig]] = TokenShiftConfig
    options: TokenShiftConfig

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Softmax's projections, and the readout of the successors' values."""
        super().__init__(config, options, layer)
        self.next_c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

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
        pairs = torch.cat((v, v.roll(-1, 2)), dim=-1)  # the newest token's counts nowhere
        dropout, scale = self.dropout if self.training else 0.0, self.head_width**-0.5
        found = preceding_attention(q, k, pairs, scale=scale, dropout=dropout)
        own, following = (join_heads(z) for z in found.chunk(2, dim=-1))
        return AttentionOutput(self.resid_dropout(self.c_proj(own) + self.next_c_proj(following)))

    def parts(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See Softmax.parts."""
        q, k, v = super().parts(x_BTD)
        if self.options.tied:
            q = F.softplus(q) * k.repeat_interleave(self.n_head // self.kv_heads, dim=1)
        return q, k, v

    def flops(self, time: int) -> Flops:
        """See Attention.flops; queries, keys and values are 2E wide."""
        return Flops.preceding(linear_flops(self), 8.0 * self.n_embd, time)
