"""The truth that kernels are held to: phasegpt.ops.reference in float64 with its autograd.

The functions have the signatures of the kernels' host functions (phasegpt/ops/fused.py), float64
inside, and return float64. Shapes: B batch, T time, H heads, N oscillators, C channels, S steps,
P = S or, with `order`, S + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phasegpt.ops import ScanState, reference


def rows(
    theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """theta[B,T,H,N] after S steps, and the mean cosine and sine [B,T,H,S+1] ([0] if not order).

    coupling[H,2] or [B,T,H,2] is (K cos lag, K sin lag).
    """
    K, lag = coupling.norm(dim=-1), torch.atan2(coupling[..., 1], coupling[..., 0])
    end, field = reference.rows(
        theta,
        omega,
        K.unsqueeze(-1),
        steps=steps,
        dt=dt,
        lag=lag.unsqueeze(-1),
        integrator="euler",
        return_order=order,
    )
    return (end, *(field if field is not None else (theta.new_zeros(0),) * 2))


def scan(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    forget: Tensor,
    cos_sums: Tensor,
    sin_sums: Tensor,
    weight: Tensor,
    steps: int,
    dt: float,
    order: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """theta[B,T,C]; the carried cos_sums, sin_sums[P,B,C], weight[C]; mean fields [S+1,B,T,C].

    forget[0] means uniform weights; mean fields are [0] without `order`.
    """
    end, state, field = reference.scan(
        theta,
        omega,
        coupling,
        steps=steps,
        dt=dt,
        forget=forget if forget.numel() else None,
        state=ScanState(cos_sums, sin_sums, weight),
        return_order=order,
    )
    return (end, *state, *(field if field is not None else (theta.new_zeros(0),) * 2))


def gradients(
    function, inputs: Sequence[Tensor], cotangents: Sequence[Tensor], *options
) -> list[Tensor]:
    """Float64 gradients of sum_k <cotangents[k], function(*inputs, *options)[k]> for every input.

    A [0] input or output has a [0] gradient.
    """
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    outputs = function(*leaves, *options)
    total = sum((o * g.double()).sum() for o, g in zip(outputs, cotangents, strict=True))
    found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [g.detach() for g in found]


def error(result: Tensor, truth: Tensor) -> float:
    """max |result - truth| relative to max(1, max |truth|); NaN or a wrong shape is infinite."""
    assert result.shape == truth.shape, (result.shape, truth.shape)
    if not truth.numel():
        return 0.0
    worst = (result.double().cpu() - truth).abs().max() / truth.abs().max().clamp_min(1)
    return worst.item() if torch.isfinite(worst) else float("inf")
