"""The kernels as PyTorch operators: output shapes for the compiler, exact adjoints for autograd.

A forward operator and its adjoint are two operators each, `phasegpt::rows`, `rows_adjoint`,
`scan` and `scan_adjoint`; the device of theta decides whether ops/cpu.py or ops/cuda.py runs them.
The mathematics is in cpu_rows.h, cpu_scan.h, cuda_rows.h, cuda_scan.h. All tensors are float32.

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps, P running sums
(S, or S + 1 with `order`). A tensor of shape [0] stands for one that is absent.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from phasegpt.ops import cpu, cuda

KERNELS: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda}
MAX_OSCILLATORS = 256
MAX_STEPS = 64  # of one call; more are made in several


@torch.compiler.assume_constant_result
def obstacle(device: str, double: bool, integrator: str, oscillators: int) -> str | None:
    """Why the kernels of `device` cannot do this integration; None if they can."""
    if device not in KERNELS:
        return f"there are no kernels for the device {device}"
    if double:
        return "the kernels are float32, and float64 is kept"
    if integrator != "euler":
        return f"integrator={integrator} has no kernel"
    if oscillators > MAX_OSCILLATORS:
        return f"N={oscillators} is above the kernels' {MAX_OSCILLATORS}"
    return KERNELS[device].unavailable()


def _prepared(*tensors: Tensor) -> list[Tensor]:
    """Contiguous, and aligned to the 16 bytes that a vector load needs."""
    tensors_ = (x.contiguous() for x in tensors)
    return [x if x.data_ptr() % 16 == 0 else x.clone() for x in tensors_]


def _lengths(steps: int) -> list[int]:
    """Of the calls in which so many steps are made."""
    return [min(MAX_STEPS, steps - done) for done in range(0, steps, MAX_STEPS)] or [0]


def _joined(parts: list[Tensor], dim: int, shared: bool) -> Tensor:
    """One after the other along `dim`; `shared`: the last of each is the first of the next."""
    if len(parts) == 1 or parts[-1].dim() == 1:  # what was not asked for is a vector of none
        return parts[-1]
    *earlier, last = parts
    earlier = [x.narrow(dim, 0, x.shape[dim] - shared) for x in earlier]
    return torch.cat([*earlier, last], dim)


def _second_derivative(*_: Any) -> None:
    raise RuntimeError(
        "the fused kernels have no second derivative; integrate with backend='reference'"
    )


# --- rows ------------------------------------------------------------------------------------


@torch.library.custom_op("phasegpt::rows", mutates_args=())
def rows(
    theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Phases[B,T,H,N] after S Euler steps, and with `order` the mean cosine and sine [B,T,H,S+1].

    omega[H,N] or [B,T,H,N]; coupling[H,2] or [B,T,H,2] is (K cos lag, K sin lag).
    """
    if not theta.numel():
        return _rows_like(theta, omega, coupling, steps, dt, order)
    kernels = KERNELS[theta.device.type]
    return kernels.rows_forward(*_prepared(theta, omega, coupling), steps, dt, order)


@rows.register_fake
def _rows_like(
    theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*theta.shape[:-1], steps + 1) if order else (0,)
    return _fresh(theta), theta.new_empty(shape), theta.new_empty(shape)


@torch.library.custom_op("phasegpt::rows_adjoint", mutates_args=())
def rows_adjoint(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    grad_theta: Tensor,
    grad_cos: Tensor,
    grad_sin: Tensor,
    steps: int,
    dt: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of theta, omega and coupling from those of the outputs of `rows`."""
    if not theta.numel():
        return torch.empty_like(theta), torch.zeros_like(omega), torch.zeros_like(coupling)
    inputs = _prepared(theta, omega, coupling, grad_theta, grad_cos, grad_sin)
    return KERNELS[theta.device.type].rows_backward(*inputs, steps, dt)


@rows_adjoint.register_fake
def _rows_adjoint_like(
    theta: Tensor, omega: Tensor, coupling: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _fresh(theta), _fresh(omega), _fresh(coupling)


def _fresh(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rows_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.steps, ctx.dt, _ = inputs
    ctx.save_for_backward(*tensors)


def _rows_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *rows_adjoint(*ctx.saved_tensors, *grads, ctx.steps, ctx.dt), None, None, None


rows.register_autograd(_rows_backward, setup_context=_rows_context)
rows_adjoint.register_autograd(_second_derivative)


def all_rows(
    theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`rows` of any number of steps, which keeps the phases every MAX_STEPS for its adjoint."""
    cos, sin = [], []
    for length in _lengths(steps):
        theta, mean_cos, mean_sin = rows(theta, omega, coupling, length, dt, order)
        cos.append(mean_cos)
        sin.append(mean_sin)
    return theta, _joined(cos, -1, True), _joined(sin, -1, True)


# --- scan ------------------------------------------------------------------------------------


@torch.library.custom_op("phasegpt::scan", mutates_args=())
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
    """Phases[B,T,C] after S Euler steps, the state carried on, and with `order` the mean fields.

    omega, coupling, weight[C]; forget[C] or [0]: uniform; sums[P,B,C]; mean cosine and sine
    [S+1,B,T,C].
    """
    inputs = (theta, omega, coupling, forget, cos_sums, sin_sums, weight)
    if not theta.numel():
        like, *_, mean_cos, mean_sin = _scan_like(*inputs, steps, dt, order)
        return like, cos_sums.clone(), sin_sums.clone(), weight.clone(), mean_cos, mean_sin
    kernels = KERNELS[theta.device.type]
    return kernels.scan_forward(*_prepared(*inputs), steps, dt, order)


@scan.register_fake
def _scan_like(
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
    means = [theta.new_empty((steps + 1, *theta.shape) if order else (0,)) for _ in range(2)]
    return _fresh(theta), _fresh(cos_sums), _fresh(sin_sums), _fresh(weight), means[0], means[1]


@torch.library.custom_op("phasegpt::scan_adjoint", mutates_args=())
def scan_adjoint(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    forget: Tensor,
    cos_sums: Tensor,
    sin_sums: Tensor,
    weight: Tensor,
    grad_theta: Tensor,
    grad_cos_sums: Tensor,
    grad_sin_sums: Tensor,
    grad_weight: Tensor,
    grad_cos: Tensor,
    grad_sin: Tensor,
    steps: int,
    dt: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the seven tensors that `scan` takes, from those of what it returns.

    The state is the initial one; or the final one for kernels that take the sums apart again
    (UNSUMS), if weights are uniform. A uniform weight is a count: its gradient is [0], as is that
    of an absent `forget`.
    """
    inputs = (theta, omega, coupling, forget, cos_sums, sin_sums, weight)
    grads = (grad_theta, grad_cos_sums, grad_sin_sums, grad_weight, grad_cos, grad_sin)
    if not theta.numel():
        zeros = [torch.zeros_like(x) for x in (theta, omega, coupling, forget)]
        carried = weight.new_empty(0) if not forget.numel() else grad_weight.clone()
        return (*zeros, grad_cos_sums.clone(), grad_sin_sums.clone(), carried)  # type: ignore[return-value]
    return KERNELS[theta.device.type].scan_backward(*_prepared(*inputs, *grads), steps, dt)


@scan_adjoint.register_fake
def _scan_adjoint_like(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    forget: Tensor,
    cos_sums: Tensor,
    sin_sums: Tensor,
    weight: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    carried = weight if forget.numel() else forget
    inputs = (theta, omega, coupling, forget, cos_sums, sin_sums, carried)
    return tuple(_fresh(x) for x in inputs)


def _scan_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.steps, ctx.dt, _ = inputs
    theta, omega, coupling, forget, *initial = tensors
    unsums = KERNELS[theta.device.type].UNSUMS and not forget.numel()
    state = output[1:4] if unsums else initial
    ctx.save_for_backward(theta, omega, coupling, forget, *state)


def _scan_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    found = scan_adjoint(*saved, *grads, ctx.steps, ctx.dt)
    given = (x if saved[3].numel() or i not in (3, 6) else None for i, x in enumerate(found))
    return *given, None, None, None


scan.register_autograd(_scan_backward, setup_context=_scan_context)
scan_adjoint.register_autograd(_second_derivative)


def all_scan(inputs: tuple[Tensor, ...], steps: int, dt: float, order: bool) -> tuple[Tensor, ...]:
    """`scan` of any number of steps, as all_rows; `inputs` are the seven tensors that it takes."""
    lengths = _lengths(steps)
    if len(lengths) == 1:
        return scan(*inputs, steps, dt, order)
    theta, omega, coupling, forget, cos_sums, sin_sums, weight = inputs
    found: list[list[Tensor]] = [[], [], [], []]  # sums of cosines and sines, and their means
    done = 0
    for length in lengths:
        own = (x[done : done + length + order] for x in (cos_sums, sin_sums))
        theta, cos, sin, after, mean_cos, mean_sin = scan(
            theta, omega, coupling, forget, *own, weight, length, dt, order
        )
        for each, part in zip(found, (cos, sin, mean_cos, mean_sin), strict=True):
            each.append(part)
        done += length
    cos, sin, mean_cos, mean_sin = (_joined(each, 0, order) for each in found)
    return theta, cos, sin, after, mean_cos, mean_sin
