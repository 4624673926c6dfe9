"""What a block has besides its attention: `model.norm` and `model.mlp`.

Shapes: B batch, T time, D model width, F width inside the MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.model.config import ModelSection


class MLP(nn.Module):
    """Two linear maps around GELU (tanh form, as GPT-2 has it)."""

    def __init__(self, config: ModelSection) -> None:
        """c_fc [F,D] and c_proj [D,F]."""
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner_width, bias=config.bias)
        self.c_proj = nn.Linear(config.inner_width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x_BTD), approximate="tanh")))


class SwiGLU(nn.Module):
    """y = W_proj (silu(W_gate x) * W_fc x), Shazeer, arXiv 2002.05202."""

    def __init__(self, config: ModelSection) -> None:
        """c_fc and c_gate [F,D], c_proj [D,F]."""
        super().__init__()
        width = config.inner_width
        self.c_fc = nn.Linear(config.n_embd, width, bias=config.bias)
        self.c_gate = nn.Linear(config.n_embd, width, bias=config.bias)
        self.c_proj = nn.Linear(width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        return self.dropout(self.c_proj(F.silu(self.c_gate(x_BTD)) * self.c_fc(x_BTD)))


def mlp(config: ModelSection) -> nn.Module | None:
    """The one that config.mlp names; None: a block is its attention alone."""
    if config.mlp == "none":
        return None
    return SwiGLU(config) if config.mlp == "swiglu" else MLP(config)


def norm(config: ModelSection) -> nn.Module:
    """The one that config.norm names; RMSNorm (arXiv 1910.07467) has a gain and no bias."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.layer_norm_epsilon)
    return nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)


class Head(nn.Linear):
    """A linear map to the words, whose products on a GPU have a multiple of 64 words in training.

    GPT-2's 50,257 is odd, which keeps a GPU from its fast kernels. What is added is zeros, and is
    cut off again. Where no gradient is taken the copy of the weights would cost more than it gives,
    and on a CPU always (a step of the head alone takes 1.3 times as long).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x[...,D] to [...,V]."""
        missing = -self.out_features % 64
        if not (missing and self.training and torch.is_grad_enabled() and self._pays(x)):
            return super().forward(x)
        weight = F.pad(self.weight, (0, 0, 0, missing))
        return F.linear(x, weight)[..., : self.out_features]

    def _pays(self, x: Tensor) -> bool:
        return x.is_cuda
