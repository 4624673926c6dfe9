"""Ground truth of the integration: plain PyTorch, any device, dtype and size.

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from phasegpt.core.errors import ConfigError
from phasegpt.phase.order import cumulative_sum


class ScanState(NamedTuple):
    """Running sums over the prefix, one per integration step, and their total weight.

    With `return_order` there is one more sum: that of the final phases.
    """

    cos_SBC: Tensor
    sin_SBC: Tensor
    weight_C: Tensor


class MeanField(NamedTuple):
    """Z = R exp(i psi), the mean of exp(i theta), by its real and imaginary part."""

    cos: Tensor
    sin: Tensor


Drift = Callable[[Tensor], Tensor]


def _euler(drift: Drift, theta: Tensor, dt: float) -> Tensor:
    return theta + dt * drift(theta)


def _heun(drift: Drift, theta: Tensor, dt: float) -> Tensor:
    slope = drift(theta)
    return theta + 0.5 * dt * (slope + drift(theta + dt * slope))


def _rk4(drift: Drift, theta: Tensor, dt: float) -> Tensor:
    k1 = drift(theta)
    k2 = drift(theta + 0.5 * dt * k1)
    k3 = drift(theta + 0.5 * dt * k2)
    k4 = drift(theta + dt * k3)
    return theta + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


INTEGRATORS = {"euler": _euler, "heun": _heun, "rk4": _rk4}


def rows(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    *,
    steps: int,
    dt: float,
    lag: float | Tensor,
    integrator: str,
    return_order: bool,
) -> tuple[Tensor, MeanField | None]:
    """Integrate theta[B,T,H,N] with coupling[...,H,1]; see phasegpt.ops.kuramoto_rows.

    The mean field, over the N oscillators, is [B,T,H,S+1].
    """
    lagged = isinstance(lag, Tensor) or lag != 0.0

    def drift(theta: Tensor) -> Tensor:
        cos, sin = theta.cos(), theta.sin()
        mean_cos, mean_sin = cos.mean(-1, keepdim=True), sin.mean(-1, keepdim=True)
        if lagged:
            cos, sin = (theta + lag).cos(), (theta + lag).sin()
        return omega + coupling * (mean_sin * cos - mean_cos * sin)  # R sin(psi - theta - lag)

    step = INTEGRATORS[integrator]
    trajectory = [theta]
    for _ in range(steps):
        theta = step(drift, theta, dt)
        if return_order:
            trajectory.append(theta)
    if not return_order:
        return theta, None
    path = torch.stack(trajectory, dim=-2)  # [B,T,H,S+1,N]
    return theta, MeanField(path.cos().mean(-1), path.sin().mean(-1))


def prefix_sum(x_BTC: Tensor, forget_C: Tensor | None, carry_BC: Tensor | None) -> Tensor:
    """y_t = forget * y_{t-1} + x_t along T, from y_{-1} = carry; forget None is a plain sum.

    With forgetting, a doubling scan: log2(T) shifted additions, and no division by forget^t.
    """
    if forget_C is None:
        total = cumulative_sum(x_BTC, 1)
        return total if carry_BC is None else total + carry_BC.unsqueeze(1)
    if carry_BC is not None:
        first = x_BTC[:, :1] + (forget_C * carry_BC).unsqueeze(1)
        x_BTC = torch.cat((first, x_BTC[:, 1:]), dim=1)
    if isinstance(x_BTC.shape[1], torch.SymInt) and torch.compiler.is_exporting():
        raise ConfigError(
            "attention.forget is not for torch.export where the kernels cannot integrate (float64, "
            "or no C++ compiler): its scan in plain PyTorch is as deep as the text is long; export "
            "in float32 with a compiler"
        )
    shift, decay = 1, forget_C
    while shift < x_BTC.shape[1]:
        x_BTC = x_BTC + decay * F.pad(x_BTC, (0, 0, shift, 0))[:, :-shift]
        shift, decay = 2 * shift, decay * decay
    return x_BTC


def _last(total_BTC: Tensor, carry_BC: Tensor | None) -> Tensor:
    """The sum over all tokens; without one what was carried."""
    if total_BTC.shape[1]:
        return total_BTC[:, -1]
    return total_BTC.sum(1) if carry_BC is None else carry_BC


def scan(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    *,
    steps: int,
    dt: float,
    forget: Tensor | None,
    state: ScanState | None,
    return_order: bool,
) -> tuple[Tensor, ScanState, MeanField | None]:
    """Integrate theta[B,T,C] over its prefix; see phasegpt.ops.kuramoto_scan.

    The mean field, over the prefix, is [S+1,B,T,C].
    """
    sums = steps + 1 if return_order else steps
    ones = theta.new_ones(1, theta.shape[1], theta.shape[2])
    held = None if state is None else state.weight_C.unsqueeze(0)
    weight = prefix_sum(ones, forget, held)
    cos_sums, sin_sums, mean_cos, mean_sin = [], [], [], []
    for s in range(sums):
        cos, sin = theta.cos(), theta.sin()
        before = (None, None) if state is None else (state.cos_SBC[s], state.sin_SBC[s])
        cos_sum, sin_sum = prefix_sum(cos, forget, before[0]), prefix_sum(sin, forget, before[1])
        cos_sums.append(_last(cos_sum, before[0]))
        sin_sums.append(_last(sin_sum, before[1]))
        if return_order:
            mean_cos.append(cos_sum / weight)
            mean_sin.append(sin_sum / weight)
        if s < steps:
            force = (sin_sum * cos - cos_sum * sin) / weight
            theta = theta + dt * (omega + coupling * force)
    empty = theta.new_zeros(0, theta.shape[0], theta.shape[2])
    new_state = ScanState(
        torch.stack(cos_sums) if cos_sums else empty,
        torch.stack(sin_sums) if sin_sums else empty,
        _last(weight, held)[0],
    )
    if not return_order:
        return theta, new_state, None
    return theta, new_state, MeanField(torch.stack(mean_cos), torch.stack(mean_sin))
