"""The kernels on a CUDA device, compiled by NVRTC on first use for N and S at hand.

Everything here takes and returns contiguous float32 tensors on one device; sizes are in the
kernels' limits and never zero (phasegpt.ops.fused sees to it). Sums of gradients that rows share
are made in two stages of fixed order, so results do not depend on timing or on the device's size.

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps, P running sums
(S, or S + 1 where the mean fields are wanted). A tensor of shape [0] stands for an absent one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from phasegpt.core.diskcache import cache_dir
from phasegpt.ops import nvrtc
from phasegpt.ops.nvrtc import Launch

SOURCES = [Path(__file__).with_name(f"cuda_{part}.h") for part in ("common", "rows", "scan")]

#: scan_backward takes the final state where weights are uniform, and un-sums it: no memory, no
#: second pass, and an error of the first tokens' gradients of about T times float32 rounding.
UNSUMS = True

WARP = 32
MAX_GRID_Y = 65535
#: Tokens between two checkpoints of a forgetting scan's backward.
CHUNK = 16
#: Blocks of rows_backward: several for every place on a large device, so that all end together,
#: yet few enough for short sums of what each adds to the gradients of a head's parameters.
BACKWARD_BLOCKS = 2048

Launcher = Callable[[torch.device, Launch, Sequence[Tensor | int | float]], None]


@functools.cache
def unavailable() -> str | None:
    """Why the CUDA kernels cannot run here, in one line, or None. Compiles nothing."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA: install one that is not"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    obstacle = nvrtc.missing()
    if obstacle is None:
        try:
            nvrtc.target(nvrtc.architecture(torch.cuda.current_device()))
            return nvrtc.too_new()
        except RuntimeError as error:
            return str(error)
    return obstacle


def describe() -> str:
    """One line: device, architecture, driver, NVRTC, place in the cache."""
    device = torch.cuda.current_device()
    target = nvrtc.target(nvrtc.architecture(device))
    return (
        f"{torch.cuda.get_device_name(device)}, {target}, driver for CUDA "
        f"{nvrtc.driver_version()}, NVRTC {nvrtc.version()}; {cache_dir() / 'kernels'}"
    )


# --- which instance, in which shape ----------------------------------------------------------


def lanes(N: int) -> int:
    """Lanes of a warp that share a row of N oscillators, 4 to a lane (8 beyond N = 128)."""
    slots = 1 << (N - 1).bit_length()
    return slots // min(slots, 8 if slots > 128 else 4)


def _instance(template: str, *arguments: int | bool) -> str:
    words = (str(x).lower() if isinstance(x, bool) else str(x) for x in arguments)
    return f"{template}<{', '.join(words)}>"


def plan_rows_forward(tokens: int, H: int, N: int, steps: int, order: bool) -> Launch:
    """Every row gets its own lanes, up to the largest grid."""
    threads, L = 256, lanes(N)
    blocks = -(-tokens * L // threads)
    kernel = _instance("rows_forward", N, steps, L, order)
    return Launch(kernel, (H, min(blocks, MAX_GRID_Y)), threads)


def plan_rows_backward(tokens: int, H: int, N: int, steps: int, order: bool) -> Launch:
    """The partition of the tokens depends on the sizes alone."""
    threads, L = 128, lanes(N)
    blocks = min(-(-tokens * L // threads), max(1, BACKWARD_BLOCKS // H))
    kernel = _instance("rows_backward", N, steps, L, order)
    return Launch(kernel, (H, blocks), threads)


def plan_scan(template: str, B: int, C: int, *arguments: int | bool) -> Launch:
    """A thread for every channel of every batch element."""
    threads = 64
    return Launch(_instance(template, *arguments), (B * -(-C // threads), 1), threads)


# --- the four functions ----------------------------------------------------------------------


class Kernels:
    """The four functions, over a way to launch a kernel: the device's or an emulator's."""

    def __init__(self, launch: Launcher) -> None:
        self._launch = launch

    def rows_forward(
        self, theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, order: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See fused.rows."""
        B, T, H, N = theta.shape
        means = (B, T, H, steps + 1) if order else (0,)
        outputs = _like(theta), _empty(theta, *means), _empty(theta, *means)
        strides = [H if x.dim() == 4 else 0 for x in (omega, coupling)]
        plan = plan_rows_forward(B * T, H, N, steps, order)
        tensors = (theta, omega, coupling, *outputs)
        self._launch(theta.device, plan, (*tensors, B * T, *strides, float(dt)))
        return outputs

    def rows_backward(
        self,
        theta: Tensor,
        omega: Tensor,
        coupling: Tensor,
        grad_theta: Tensor,
        grad_cos: Tensor,
        grad_sin: Tensor,
        steps: int,
        dt: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See fused.rows_adjoint; grad_cos, grad_sin may be [0]."""
        B, T, H, N = theta.shape
        plan = plan_rows_backward(B * T, H, N, steps, grad_cos.numel() > 0)
        partials = plan.grid[1] * plan.threads // WARP
        g_theta = _like(theta)
        g_omega, g_coupling = (
            _like(x) if x.dim() == 4 else _empty(x, partials, *x.shape) for x in (omega, coupling)
        )
        strides = [H if x.dim() == 4 else 0 for x in (omega, coupling)]
        inputs = (theta, omega, coupling, grad_theta, grad_cos, grad_sin)
        gradients = (g_theta, g_omega, g_coupling)
        self._launch(theta.device, plan, (*inputs, *gradients, B * T, *strides, float(dt)))
        return (
            g_theta,
            g_omega if omega.dim() == 4 else g_omega.sum(0),
            g_coupling if coupling.dim() == 4 else g_coupling.sum(0),
        )

    def scan_forward(
        self,
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
        """See fused.scan. Token-by-token calls with the carried state give the same bits as one."""
        B, T, C = theta.shape
        inputs = (theta, omega, coupling, forget, cos_sums, sin_sums, weight)
        means = (steps + 1, B, T, C) if order else (0,)
        state = _like(cos_sums), _like(sin_sums), _like(weight)
        outputs = (_like(theta), *state, _empty(theta, *means), _empty(theta, *means))
        plan = plan_scan("scan_forward", B, C, steps, order)
        self._launch(theta.device, plan, (*inputs, *outputs, B, T, C, float(dt)))
        return outputs

    def scan_backward(
        self,
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
        """See fused.scan_adjoint; the state is the final one if weights are uniform (no forget),
        the initial one otherwise. grad_cos, grad_sin[S+1,B,T,C] may be [0].
        """
        B, T, C = theta.shape
        chunk = CHUNK if forget.numel() else 0
        plan = plan_scan("scan_backward", B, C, steps, grad_cos.numel() > 0, chunk)
        inputs = (theta, omega, coupling, forget, cos_sums, sin_sums, weight)
        cotangents = (grad_theta, grad_cos_sums, grad_sin_sums, grad_weight, grad_cos, grad_sin)
        g_theta, g_cos_sums, g_sin_sums = _like(theta), _like(cos_sums), _like(sin_sums)
        g_omega, g_coupling = _empty(theta, B, C), _empty(theta, B, C)
        g_forget, g_weight = (_empty(theta, B if chunk else 0, forget.numel()) for _ in range(2))
        rows = 2 * cos_sums.shape[0] + 1  # the sums and the weight
        checkpoints = _empty(theta, -(-T // chunk) if chunk else 0, rows, B, C)
        gradients = (g_theta, g_omega, g_coupling, g_forget, g_cos_sums, g_sin_sums, g_weight)
        tensors = (*inputs, *cotangents, *gradients, checkpoints)
        self._launch(theta.device, plan, (*tensors, B, T, C, float(dt)))
        sums = (g_omega.sum(0), g_coupling.sum(0), g_forget.sum(0))
        return g_theta, *sums, g_cos_sums, g_sin_sums, g_weight.sum(0)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _like(x: Tensor) -> Tensor:
    return _empty(x, *x.shape)


@functools.cache
def source() -> str:
    """The kernels' text; what a compiler says of it names the file and the line."""
    return "".join(f'#line 1 "{f.name}"\n{f.read_text(encoding="utf-8")}' for f in SOURCES)


_kernels = Kernels(lambda *launch: nvrtc.launch(source(), *launch))
rows_forward = _kernels.rows_forward
rows_backward = _kernels.rows_backward
scan_forward = _kernels.scan_forward
scan_backward = _kernels.scan_backward
