"""Circular statistics: pure functions of phases in radians.

Shapes: B batch, T time, H heads, N oscillators. The axis is always named by `dim`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def resultant_length(cos: Tensor, sin: Tensor, dim: int = -1) -> Tensor:
    """|mean over `dim` of exp(i theta)| from cos(theta) and sin(theta); differentiable at 0."""
    square = cos.mean(dim).square() + sin.mean(dim).square()
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


def order_parameter(theta: Tensor, dim: int = -1) -> Tensor:
    """Kuramoto's order parameter R = |mean over `dim` of exp(i theta)|, in [0, 1].

    For theta[B,T,H,N] and dim=-1: synchrony of the N oscillators of one head in one token.
    Source: Kuramoto, Chemical Oscillations, Waves, and Turbulence (1984), ch. 5.
    """
    return resultant_length(theta.cos(), theta.sin(), dim)


def prefix_order_parameter(theta: Tensor, dim: int = 1) -> Tensor:
    """R_t = |(1/t) sum over u <= t of exp(i theta_u)| along `dim`; same shape as theta."""
    shape = [1] * theta.dim()
    shape[dim] = -1
    count = torch.arange(1, theta.shape[dim] + 1, device=theta.device, dtype=theta.dtype)
    cos, sin = theta.cos().cumsum(dim), theta.sin().cumsum(dim)
    square = cos.square() + sin.square()
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt() / count.view(shape)


def null_order_parameter(n: int) -> float:
    """Mean R of n independent uniform phases, sqrt(pi / 4n); within 0.5% for n >= 16."""
    return math.sqrt(math.pi / (4 * n))
