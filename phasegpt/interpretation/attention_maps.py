"""Attention weights with and without the coherence term, and what tells them apart.

Shapes: B sequences, T time, D model width, H heads, E head width, N oscillators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from phasegpt.attention import Attention
from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.attention.softmax import Softmax
from phasegpt.phase import attention_coherence, permute_within_prefix


class Maps(NamedTuple):
    """Attention weights A_tu, query t and key u, rows summing to 1, [B,H,T,T]."""

    coherent: Tensor  # softmax of q . k / sqrt(E) + beta mean_n cos(theta_tn - theta_un)
    plain: Tensor  # softmax of q . k / sqrt(E) alone, the same weights and inputs


@torch.no_grad()
def attention_maps(layer: Kuramoto, x_BTD: Tensor, theta_BTHN: Tensor) -> Maps:
    """Both maps of a kuramoto layer for its input x and final phases; equal without a bias."""
    q, k, _ = layer.project(x_BTD, None)
    lifted = layer.cohere(q, k, theta_BTHN.cos(), theta_BTHN.sin())
    scale = layer.head_width**-0.5
    return Maps(_weights(*lifted, scale), _weights(q, k, scale))


def has_weights(layer: Attention) -> bool:
    """Whether attention_weights knows how a layer attends: softmax and kuramoto, no class of theirs
    that turns queries and keys further."""
    return type(layer) in (Softmax, Kuramoto)


@torch.no_grad()
def attention_weights(layer: Softmax, x_BTD: Tensor) -> Tensor:
    """The attention weights of a softmax or kuramoto layer for its input x, [B,H,T,T].

    Not of layers that take softmax's projections and attend otherwise: see has_weights.
    """
    if isinstance(layer, Kuramoto):
        return attention_maps(layer, x_BTD, layer.integrate(x_BTD)).coherent
    q, k, _ = layer.project(x_BTD, None)
    return _weights(q, k, layer.head_width**-0.5)


def map_measures(maps: Maps, theta_BTHN: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Measures of every query, [B,T,H]; NaN for the first token where it has no choice.

    - entropy, entropy_plain: of the row over ln t, in [0, 1];
    - distance, distance_plain: mean of t - u, tokens;
    - largest, largest_plain: the largest weight of the row;
    - sink, sink_plain: the weight A_t1 of the first token;
    - own, own_plain: the weight A_tt of the token itself, whose coherence is always 1;
    - moved: share of the attention that the coherence term moves, (1/2) sum_u |A - A_plain|;
    - coherence, coherence_shuffled: mean_n cos(theta_tn - theta_un) with the other tokens u < t,
      weighted by A_tu, and the same with each row's weights dealt anew among them: chance.
    """
    measures = {
        "entropy": row_entropy(maps.coherent),
        "entropy_plain": row_entropy(maps.plain),
        "distance": mean_distance(maps.coherent),
        "distance_plain": mean_distance(maps.plain),
        "largest": maps.coherent.amax(-1),
        "largest_plain": maps.plain.amax(-1),
        "sink": maps.coherent[..., 0],
        "sink_plain": maps.plain[..., 0],
        "own": maps.coherent.diagonal(dim1=-2, dim2=-1),
        "own_plain": maps.plain.diagonal(dim1=-2, dim2=-1),
        "moved": (maps.coherent - maps.plain).abs().sum(-1) / 2,
    }
    others = maps.coherent.tril(-1)
    others = others / others.sum(-1, keepdim=True).clamp_min(torch.finfo(others.dtype).tiny)
    # Without its first row and last column this is a causal map again, of what is before t.
    before = others[..., 1:, :-1]
    if before.numel():  # a text of one token has nothing before it
        before = permute_within_prefix(before, generator)
    shuffled = F.pad(before, (0, 1, 1, 0))
    first = torch.arange(theta_BTHN.shape[1], device=theta_BTHN.device).view(-1, 1) == 0
    coherence = {"coherence": others, "coherence_shuffled": shuffled}
    return {name: value.transpose(1, 2) for name, value in measures.items()} | {
        name: attention_coherence(theta_BTHN, A).mean(-1).masked_fill(first, torch.nan)
        for name, A in coherence.items()
    }


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * scale
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return logits.masked_fill(future, -torch.inf).softmax(-1)


def row_entropy(A_BHTT: Tensor) -> Tensor:
    """Entropy of every row t over ln t, in [0, 1]; NaN for the first."""
    t = torch.arange(1, A_BHTT.shape[-1] + 1, device=A_BHTT.device)
    entropy = torch.special.entr(A_BHTT).sum(-1) / t.log()
    return torch.where(t > 1, entropy, torch.nan)


def mean_distance(A_BHTT: Tensor) -> Tensor:
    """Mean of t - u under every row, tokens."""
    t = torch.arange(A_BHTT.shape[-1], device=A_BHTT.device, dtype=A_BHTT.dtype)
    return t - A_BHTT @ t
