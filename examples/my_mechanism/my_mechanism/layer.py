"""Oscillators of a token are pulled towards those of earlier tokens that agree with them.

    theta = W x + b;  A = causal softmax of (focus/N) sum_n cos(theta_tn - theta_un)
    theta_t <- theta_t + K sum_u A_tu sin(theta_u - theta_t);  y = W_out [cos theta, sin theta]

Shapes: B batch, T time, D model width, H heads, N oscillators.
"""

from dataclasses import dataclass

import torch
from torch import nn

from phasegpt.attention import (
    Attention,
    AttentionConfig,
    AttentionOutput,
    Off,
    causal_attention,
    join_heads,
    rotary_angles,
    rotate,
    split_heads,
)
from phasegpt.core.sections import option


@dataclass(frozen=True, kw_only=True)
class MyConfig(AttentionConfig):
    """Options of `my_mechanism`."""

    num_oscillators: int = option(16, "N, oscillators of a head and token", ge=1, le=4096)
    coupling: float = option(1.0, "K of every head at the start", ge=-100, le=100)
    learn_coupling: bool = option(True, "false: K stays as it is, also where it is off")
    focus: float = option(4.0, "how much attention prefers agreeing phases", ge=0, le=1000)


class MyMechanism(Attention):
    """One step of Kuramoto coupling along attention; with K = 0 no token sees another.

    It returns no phases, so nothing measures R. For metrics, `return_phase` and penalties set
    has_phases and return AttentionOutput(y, Phase(theta, R)); for the monitor and interpret also
    define trajectory.
    """

    Config = MyConfig
    off = Off({"coupling": 0.0}, "alone")
    lr_factors = {"phase.weight": 1.0, "phase.bias": 1.0, "coupling": 1.0}
    starts = {"coupling": "coupling"}  # options that say where a parameter begins, and nothing else

    def __init__(self, config, options, layer):
        super().__init__(config, options, layer)
        channels = config.n_head * options.num_oscillators
        self.phase = nn.Linear(config.n_embd, channels)
        K = torch.zeros(config.n_head)
        if options.learn_coupling:
            self.coupling = nn.Parameter(K)
        else:
            self.register_buffer("coupling", K)
        self.c_proj = nn.Linear(2 * channels, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def reset_oscillators(self, generator):
        std = 1.6 * self.n_embd**-0.5  # phases all around the circle at any width
        nn.init.normal_(self.phase.weight, std=std, generator=generator("phase.weight"))
        nn.init.constant_(self.coupling, self.options.coupling)

    def forward(self, x_BTD, *, cache=None, perturbation=None, return_phase=False):
        N = self.options.num_oscillators
        theta = split_heads(self.phase(x_BTD), self.n_head)  # [B,H,T,N]
        cos, sin = theta.cos(), theta.sin()
        q = k = v = torch.cat((cos, sin), dim=-1)
        if self.rope:  # a rotary angle is one more phase
            start = cache.length if cache is not None else 0
            time, device = x_BTD.shape[1], x_BTD.device
            q = k = rotate(q, rotary_angles(start, time, N, device, self.rope_theta))
        if cache is not None:
            k, v = cache.update(k, v)
        dropout = self.dropout if self.training else 0.0
        field = causal_attention(q, k, v, scale=self.options.focus / N, dropout=dropout)
        field_cos, field_sin = field.chunk(2, dim=-1)
        pull = field_sin * cos - field_cos * sin
        theta = theta + self.coupling.view(-1, 1, 1) * pull
        read = join_heads(torch.cat((theta.cos(), theta.sin()), dim=-1))
        return AttentionOutput(self.resid_dropout(self.c_proj(read.to(x_BTD.dtype))))
