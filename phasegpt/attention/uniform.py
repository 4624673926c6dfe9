"""`uniform`, a control: every token gets the mean of the values so far, whatever they say.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.attention import Flops
from phasegpt.attention._cache import LayerCache
from phasegpt.attention.no_mixing import NoMixing, NoMixingConfig
from phasegpt.phase.order import cumulative_sum


@dataclass(frozen=True, kw_only=True)
class UniformConfig(NoMixingConfig):
    """Options of `uniform`: it has none."""


class Sums(NamedTuple):
    """Memory of `uniform`: the sum of the values so far, [1,B,D], and no more for more tokens."""

    sum_1BD: Tensor


class Uniform(NoMixing):
    """y_t = W_o (1/t) sum_{u <= t} W_v x_u: attention whose weights are all the same.

    What a mechanism gains over it, it gains by choosing what it mixes. It does not know the order
    of the tokens: model.positions=rope gives it none. Sums are float32 at least. A decode cache
    holds D numbers in all, 4 D bytes of float32, whatever the number of tokens.
    """

    Config = UniformConfig
    mixes = True

    def mix(self, v_BTD: Tensor, cache: LayerCache | None) -> Tensor:
        """The mean of the values of each prefix, [B,T,D]."""
        before = 0 if cache is None else cache.length
        sum_BTD = cumulative_sum(v_BTD.to(torch.promote_types(v_BTD.dtype, torch.float32)), 1)
        if cache is not None:
            if cache.state is not None:
                sum_BTD = sum_BTD + cache.state.sum_1BD[0].unsqueeze(1)
            cache.state = Sums(sum_BTD[:, -1].unsqueeze(0))
        counts_T = torch.arange(1, v_BTD.shape[1] + 1, device=v_BTD.device) + before
        return (sum_BTD / counts_T.unsqueeze(-1)).to(v_BTD.dtype)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; the sums over the prefix are elementwise."""
        return super().flops(time)._replace(elementwise=2.0 * self.n_embd)
