"""Integration of coupled oscillators: `kuramoto_rows` and `kuramoto_scan`, by any backend.

Coupling attracts: each phase is pulled by sin(theta_j - theta_i). Phases are in radians, are
never wrapped, and are held in float32 at least (bf16 in gives float32 out, float64 stays).

Backends: `reference`, plain PyTorch for any device, dtype and size, is the truth; `cpu` and
`cuda` are one-pass kernels with their own adjoints, compiled at first use (float32, Euler,
N <= 256; one pass for every 64 steps). Gradients are exact to float32 rounding, but for `cuda`'s
scan without forgetting: it takes tokens off the final sums, and the error of the first tokens'
gradients grows with T. `auto` takes the kernels of theta's device where they can do it, and
says once why when they cannot. `python -m phasegpt.ops` shows what there is here.

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError
from phasegpt.ops import fused, reference
from phasegpt.ops.reference import INTEGRATORS, MeanField, ScanState
from phasegpt.phase.polar import modulus

__all__ = ["INTEGRATORS", "Rows", "Scan", "ScanState", "kuramoto_rows", "kuramoto_scan"]

BACKENDS = ("auto", "reference", *fused.KERNELS)


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
    _check("[B,T,H,N]", theta0, steps, dt, backend, return_order, (omega, coupling), lag)
    arguments.choice("integrator", integrator, INTEGRATORS)
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
    if isinstance(lag, Tensor) and lag.shape != (H,):
        raise ConfigError(f"lag has shape {tuple(lag.shape)}; it must be a number or [H] = [{H}]")
    _check_devices(theta0, omega=omega, coupling=coupling, lag=lag)
    dtype = torch.promote_types(theta0.dtype, torch.float32)
    theta, omega, coupling = theta0.to(dtype), omega.to(dtype), coupling.to(dtype)
    lag = lag.to(dtype) if isinstance(lag, Tensor) else lag
    field: MeanField | None
    with torch.autocast(theta0.device.type, enabled=False):
        if _use_kernels(backend, theta, integrator, N):
            # The kernels see the lag as an angle of the coupling, K exp(-i lag).
            if isinstance(lag, Tensor):
                pair = torch.stack((coupling * lag.cos(), coupling * lag.sin()), dim=-1)
            else:
                pair = torch.stack((coupling * math.cos(lag), coupling * math.sin(lag)), dim=-1)
            theta, *means = fused.all_rows(theta, omega, pair, steps, dt, return_order)
            field = MeanField(*means) if return_order else None
        else:
            theta, field = reference.rows(
                theta,
                omega,
                coupling.unsqueeze(-1),
                steps=steps,
                dt=dt,
                lag=lag.unsqueeze(-1) if isinstance(lag, Tensor) else lag,
                integrator=integrator,
                return_order=return_order,
            )
    if field is None:
        return Rows(theta, None, None)
    return Rows(theta, modulus(*field), torch.atan2(field.sin, field.cos))


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
    _check("[B,T,C]", theta0, steps, dt, backend, return_order, (omega, coupling))
    if forget is not None and not torch.compiler.is_compiling():
        arguments.tensor("forget", forget)
        # Of a GPU's tensor nothing is read: that would wait for it. NaN is training's to tell.
        if forget.device.type == "cpu" and ((forget < 0) | (forget > 1)).any():
            raise ConfigError("forget holds a number outside of [0, 1]; it is a share per token")
    C = theta0.shape[-1]
    for name, value in (("omega", omega), ("coupling", coupling), ("forget", forget)):
        if value is not None and value.shape != (C,):
            raise ConfigError(f"{name} has shape {tuple(value.shape)}; it must be [C] = [{C}]")
    sums = steps + 1 if return_order else steps
    _check_devices(theta0, omega=omega, coupling=coupling, forget=forget)
    if state is not None:
        if not isinstance(state, ScanState):
            kind = type(state).__name__
            raise ConfigError(f"state is a {kind}; give None, or what an earlier call returned")
        for name, value in state._asdict().items():
            arguments.tensor(name, value)
        if state.cos_SBC.shape[0] != sums:
            raise ConfigError(
                f"the carried state has {state.cos_SBC.shape[0]} sums and this call needs {sums}; "
                f"keep steps and return_order the same from call to call"
            )
        found = [tuple(x.shape) for x in state]
        needed = [(sums, theta0.shape[0], C)] * 2 + [(C,)]
        if found != needed:
            raise ConfigError(
                f"the carried state has the shapes {found}, and this call's batch and channels "
                f"need {needed}; carry on with the batch that it comes from"
            )
        _check_devices(theta0, **state._asdict())
    dtype = torch.promote_types(theta0.dtype, torch.float32)
    theta, omega, coupling = theta0.to(dtype), omega.to(dtype), coupling.to(dtype)
    forget = None if forget is None else forget.to(dtype)
    field: MeanField | None
    with torch.autocast(theta0.device.type, enabled=False):
        if _use_kernels(backend, theta, "euler", 1):
            if state is None:
                zeros = theta.new_zeros(sums, theta.shape[0], C)
                state = ScanState(zeros, zeros, theta.new_zeros(C))
            absent = theta.new_empty(0)
            forget = absent if forget is None else forget
            inputs = (theta, omega, coupling, forget, *(x.to(dtype) for x in state))
            theta, *new, mean_cos, mean_sin = fused.all_scan(inputs, steps, dt, return_order)
            new_state = ScanState(*new)
            field = MeanField(mean_cos, mean_sin) if return_order else None
        else:
            theta, new_state, field = reference.scan(
                theta,
                omega,
                coupling,
                steps=steps,
                dt=dt,
                forget=forget,
                state=state,
                return_order=return_order,
            )
    return Scan(theta, new_state, None if field is None else modulus(*field).movedim(0, -1))


def _check_devices(theta0: Tensor, **others: Tensor | float | None) -> None:
    """ConfigError unless all are on theta's device: kernels take addresses as they are."""
    for name, value in others.items():
        if isinstance(value, Tensor) and value.device != theta0.device:
            raise ConfigError(
                f"{name} is on {value.device} and theta0 on {theta0.device}; move them to one "
                f"device"
            )


def _use_kernels(backend: str, theta: Tensor, integrator: str, oscillators: int) -> bool:
    """Whether the kernels of theta's device integrate; ConfigError if they are asked and cannot."""
    if backend == "reference":
        return False
    device = theta.device.type
    if backend not in ("auto", device):
        raise ConfigError(
            f"backend={backend!r} needs tensors on the device {backend}; these are on {device}"
        )
    why = fused.obstacle(device, theta.dtype == torch.float64, integrator, oscillators)
    if why is None:
        return True
    if backend != "auto":
        raise ConfigError(f"backend={backend!r}: {why}; use backend='reference' or 'auto'")
    _say_once(why)
    return False


_SAID: set[str] = set()


@torch.compiler.assume_constant_result
def _say_once(why: str) -> None:
    if why not in _SAID:
        _SAID.add(why)
        warnings.warn(f"oscillators are integrated in plain PyTorch: {why}", stacklevel=4)


def _check(
    shape: str,
    theta0: Tensor,
    steps: int,
    dt: float,
    backend: str,
    order: bool,
    others: tuple[Tensor, Tensor],
    lag: float | Tensor = 0.0,
) -> None:
    """ConfigError for what is of another type, without the axes of `shape`, or out of range.

    `others` are omega and coupling.
    """
    if torch.compiler.is_compiling():
        return  # a graph is made of what a model's configuration has checked
    arguments.held("theta0", arguments.tensor("theta0", theta0, shape))
    for name, value in zip(("omega", "coupling"), others, strict=True):
        arguments.tensor(name, value)
    if isinstance(lag, Tensor):
        arguments.tensor("lag", lag)
    else:
        arguments.between("lag", lag, -math.inf)
    arguments.whole("steps", steps, 0)
    arguments.between("dt", dt, 0, closed=False)
    arguments.choice("backend", backend, BACKENDS)
    arguments.flag("return_order", order)
