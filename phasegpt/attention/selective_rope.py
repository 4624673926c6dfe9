"""`selective_rope`: RoPE whose angles depend on the tokens: phases that nothing couples, a control.

Every token adds an increment to the angle of each pair, which a causal convolution makes of a map
of low rank; queries and keys are turned by the sums:

    u_t = W_2 W_1 x_t, x_t of length 1 in each head's part;  a_t = sum_{j < 4} w_j u_{t-3+j}
    theta_tk = nu_k (t + sum_{s <= t} a_sk),  nu_k = rope_theta^(-2k/E)
    y = W_o softmax(R(theta_t) q_t . R(theta_u) k_u / sqrt(E)) v_u

A constant increment is RoPE. Source: arXiv 2511.17388, whose language models have no drift t nu_k
(drift=false) and whose base is 500,000; ours are the drift, which makes it RoPE at rank 0, and the
size of the increments at the start.

Shapes: B batch, T time, D model width, H heads, E head width, P = E/2 pairs of a head, C = H P.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.attention import (
    AttentionConfig,
    AttentionOutput,
    Flops,
    LayerShape,
    Off,
    ReturnPhase,
    linear_flops,
)
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import rotary_angles, rotate
from phasegpt.attention._oscillators import projected_phases
from phasegpt.attention.softmax import Softmax
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.phase.order import cumulative_sum
from phasegpt.phase.steering import Perturbation

_TAPS = 4  # tokens that one increment is made of


@dataclass(frozen=True, kw_only=True)
class SelectiveRopeConfig(AttentionConfig):
    """Options of `selective_rope` (arXiv 2511.17388)."""

    rank: int = option(
        16, "of the map to the increments; 0: none depends on a token", ge=0, le=65_536
    )
    drift: bool = option(True, "RoPE's t nu is in the angles; false: increments of tokens alone")
    increment_std: float = option(
        0.1, "standard deviation of an increment at the start, radians times nu", gt=0, le=1e6
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.rank > 0, "rank", "increment_std")


class _Sums(NamedTuple):
    """What is kept of the tokens before: the sum of increments, and the last u."""

    total_1BC: Tensor
    last_WBC: Tensor  # W = 3


class SelectiveRope(Softmax):
    """Softmax attention with input-dependent rotary angles; rank = 0 is RoPE.

    Source: arXiv 2511.17388. The layer turns whatever model.positions; learned ones stand beside.
    Its angles are phases with frequencies and without coupling: has_phases is False, since R of
    them says nothing of synchronization, and what acts on phases is refused. A decoder remembers
    2 D numbers a token, 8 D bytes in float32, and 2 D for all of them, which cannot be cropped.
    """

    Config = SelectiveRopeConfig
    options: SelectiveRopeConfig
    off = Off({"rank": 0}, "softmax", positions="rope")
    own_rotary = True
    lr_factors: ClassVar[Mapping[str, float]] = {
        "down.weight": 1.0,
        "up.weight": 1.0,
        "kernel": 1.0,
    }
    starts: ClassVar[Mapping[str, str]] = {"increment_std": "kernel"}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Softmax's projections, W_1, W_2 and w. ConfigError for heads of odd width."""
        super().__init__(config, options, layer)
        self.rope = False  # it turns by its own angles
        if self.head_width % 2:
            raise ConfigError(
                f"attention=selective_rope turns pairs of numbers and needs an even head width; "
                f"n_embd/n_head is {self.head_width}"
            )
        rank, C = self.options.rank, self.n_embd // 2
        self.down = nn.Linear(config.n_embd, rank, bias=False) if rank else None
        self.up = nn.Linear(rank, C, bias=False) if rank else None
        self.kernel = nn.Parameter(torch.zeros(C, _TAPS)) if rank else None

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """W_1 ~ N(0, 1/D), W_2 ~ N(0, 1/rank), so u ~ N(0, 1/E); w ~ N(0, increment_std^2 E/4)."""
        if self.down is None or self.up is None or self.kernel is None:
            return
        for name, weight, std in (
            ("down.weight", self.down.weight, self.n_embd**-0.5),
            ("up.weight", self.up.weight, self.options.rank**-0.5),
            ("kernel", self.kernel, self.options.increment_std * (self.head_width / _TAPS) ** 0.5),
        ):
            nn.init.normal_(weight, std=std, generator=generator(name))

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward."""
        angles = self.angles(x_BTD, cache)
        q, k, v = self.project(x_BTD, cache)
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.update(k, v)
        return AttentionOutput(self.mix(q, k, v))

    def angles(self, x_BTD: Tensor, cache: LayerCache | None = None) -> Tensor:
        """theta as [B,H,T,P], or [T,P] at rank 0, radians, in float32 at least."""
        start, T, P = 0 if cache is None else cache.length, x_BTD.shape[1], self.head_width // 2
        drift_TP = rotary_angles(start, T, P, x_BTD.device, self.rope_theta) * self.options.drift
        if self.kernel is None:
            return drift_TP
        u_BTC = self._projected(x_BTD)
        B, _, C = u_BTC.shape
        past = None if cache is None else cache.state
        if past is None:
            past = _Sums(u_BTC.new_zeros(1, B, C), u_BTC.new_zeros(_TAPS - 1, B, C))
        window_BSC = torch.cat((past.last_WBC.transpose(0, 1), u_BTC), dim=1)
        kernel_JC = self.kernel.to(u_BTC.dtype).unbind(1)
        taps = (w_C * window_BSC[:, j : j + T] for j, w_C in enumerate(kernel_JC))
        increments_BTC = sum(taps, u_BTC.new_zeros(()))
        sums_BTC = cumulative_sum(increments_BTC, 1) + past.total_1BC.transpose(0, 1)
        if cache is not None:
            last_WBC = window_BSC[:, -(_TAPS - 1) :].transpose(0, 1)
            cache.state = _Sums(sums_BTC[:, -1:].transpose(0, 1), last_WBC)
        sums = sums_BTC.unflatten(-1, (self.n_head, P)).transpose(1, 2)
        exponent_P = torch.arange(P, device=x_BTD.device, dtype=torch.float64) / P
        nu_P = (self.rope_theta**-exponent_P).to(sums.dtype)
        return drift_TP.to(sums.dtype) + nu_P * sums

    def _projected(self, x_BTD: Tensor) -> Tensor:
        """u, [B,T,C], in float32 at least whatever the autocast."""
        assert self.down is not None and self.up is not None
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        heads = x_BTD.to(dtype).unflatten(-1, (self.n_head, -1))
        x = F.normalize(heads, dim=-1, eps=1e-3).flatten(-2)  # of a zero vector no gradient of 1e7
        return projected_phases(self.up, projected_phases(self.down, x))

    def flops(self, time: int) -> Flops:
        """See Attention.flops."""
        angles = 10.0 * self.n_embd if self.kernel is not None else 0.0
        return Flops.of(linear_flops(self), 4.0 * self.n_embd, time, angles + 6.0 * self.n_embd)
