"""The only door to oscillator integration: `kuramoto_rows` and `kuramoto_scan`.

Coupling attracts: each phase is pulled by sin(theta_j - theta_i). Phases are in radians, are
never wrapped, and are held in float32 at least (bf16 in gives float32 out, float64 stays).

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.errors import ConfigError
from phasegpt.ops import reference
from phasegpt.ops.reference import INTEGRATORS, ScanState

__all__ = ["INTEGRATORS", "Rows", "Scan", "ScanState", "kuramoto_rows", "kuramoto_scan"]

BACKENDS = ("auto", "reference")


class Rows(NamedTuple):
    """Result of kuramoto_rows; R and psi are None unless `return_order`."""

    theta: Tensor  # [B,T,H,N]
    R: Tensor | None  # [B,T,H,S+1]
    psi: Tensor | None  # [B,T,H,S+1]


class Scan(NamedTuple):
    """Result of kuramoto_scan; R is None unless `return_order`."""

    theta: Tensor  # [B,T,C]
    state: ScanState
    R: Tensor | None  # [B,T,C,S+1]


def kuramoto_rows(
    theta0: Tensor,
    omega: Tensor,
    coupling: Tensor,
    *,
    steps: int,
    dt: float,
    lag: float | Tensor = 0.0,
    integrator: str = "euler",
    return_order: bool = False,
    backend: str = "auto",
) -> Rows:
    """Integrate the N all-to-all coupled oscillators of every token and head.

    dtheta_n/dt = omega_n + (K/N) sum_m sin(theta_m - theta_n - lag), through the mean field
    R sin(psi - theta_n - lag): O(N) work, no [N,N] tensor. Sakaguchi and Kuramoto (1986).

    theta0[B,T,H,N]; omega[H,N] or [B,T,H,N] in rad per unit time; coupling[H] or [B,T,H];
    lag: a number or [H], radians; steps >= 0 of length dt. With `return_order`, R and psi
    before every step and after the last. Raises ConfigError on a wrong shape or option.
    """
    _check(theta0, 4, "theta0[B,T,H,N]", steps, dt, integrator, backend)
    H, N = theta0.shape[-2:]
    if omega.shape not in ((H, N), theta0.shape):
        raise ConfigError(
            f"omega has shape {tuple(omega.shape)}; it must be [H,N] = [{H},{N}] or theta0's "
            f"{tuple(theta0.shape)}"
        )
    if coupling.shape not in ((H,), theta0.shape[:-1]):
        raise ConfigError(
            f"coupling has shape {tuple(coupling.shape)}; it must be [H] = [{H}] or [B,T,H] = "
            f"{list(theta0.shape[:-1])}"
        )
    dtype = torch.promote_types(theta0.dtype, torch.float32)
    lag = lag.to(dtype).unsqueeze(-1) if isinstance(lag, Tensor) else lag
    with torch.autocast(theta0.device.type, enabled=False):
        theta, R, psi = reference.rows(
            theta0.to(dtype),
            omega.to(dtype),
            coupling.to(dtype).unsqueeze(-1),
            steps=steps,
            dt=dt,
            lag=lag,
            integrator=integrator,
            return_order=return_order,
        )
    return Rows(theta, R, psi)


def kuramoto_scan(
    theta0: Tensor,
    omega: Tensor,
    coupling: Tensor,
    *,
    steps: int,
    dt: float,
    forget: Tensor | None = None,
    state: ScanState | None = None,
    return_order: bool = False,
    backend: str = "auto",
) -> Scan:
    """Integrate every channel of every token, coupled to the same channel of its prefix.

    dtheta_t/dt = omega + K Im(exp(-i theta_t) Z_t), Z_t the mean of exp(i theta_u) over u <= t,
    uniform or with weights forget^(t-u): causal, O(T), no [T,T] tensor.

    theta0[B,T,C]; omega[C]; coupling[C]; forget[C] in (0,1] or None for uniform weights.
    `state` continues an earlier call: the running sums of every step are all that is needed of
    the tokens before. Raises ConfigError on a wrong shape or option.
    """
    _check(theta0, 3, "theta0[B,T,C]", steps, dt, "euler", backend)
    C = theta0.shape[-1]
    for name, value in (("omega", omega), ("coupling", coupling), ("forget", forget)):
        if value is not None and value.shape != (C,):
            raise ConfigError(f"{name} has shape {tuple(value.shape)}; it must be [C] = [{C}]")
    dtype = torch.promote_types(theta0.dtype, torch.float32)
    with torch.autocast(theta0.device.type, enabled=False):
        theta, new_state, R = reference.scan(
            theta0.to(dtype),
            omega.to(dtype),
            coupling.to(dtype),
            steps=steps,
            dt=dt,
            forget=None if forget is None else forget.to(dtype),
            state=state,
            return_order=return_order,
        )
    return Scan(theta, new_state, R)


def _check(
    theta0: Tensor, dims: int, name: str, steps: int, dt: float, integrator: str, backend: str
) -> None:
    if theta0.dim() != dims:
        raise ConfigError(f"theta0 has shape {tuple(theta0.shape)}; it must be {name}")
    if steps < 0 or dt <= 0:
        raise ConfigError(f"steps={steps}, dt={dt}: steps must be >= 0 and dt > 0")
    if integrator not in INTEGRATORS:
        raise ConfigError(f"integrator={integrator!r}; choose from: {', '.join(INTEGRATORS)}")
    if backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r}; choose from: {', '.join(BACKENDS)}")
