"""Random integration problems: float64 numbers that float32 holds exactly."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phasegpt import ops


def on(device: str, *tensors: Tensor) -> list[Tensor]:
    return [x.detach().float().to(device).requires_grad_() for x in tensors]


def time_step(steps: int) -> float:
    """0.1, or less so that repelling phases cannot part by more than a few e-folds."""
    return min(0.1, 1.5 / max(steps, 1))


def rows_problem(
    B: int, T: int, H: int, N: int, *, per_token: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta0, omega, coupling, lag."""
    omega = torch.randn((B, T, H, N) if per_token else (H, N))
    coupling = torch.randn((B, T, H) if per_token else (H,)) + 1
    tensors = 2 * torch.randn(B, T, H, N), omega, coupling, 0.5 * torch.randn(H)
    return tuple(x.float().double().requires_grad_() for x in tensors)


def scan_problem(B: int, T: int, C: int, *, forgets: bool = False) -> tuple[Tensor, ...]:
    """theta0, omega, coupling and, if it forgets, forget in (0.5, 1)."""
    tensors = [2 * torch.randn(B, T, C), torch.randn(C), torch.randn(C) + 1]
    if forgets:
        tensors.append(0.5 + 0.5 * torch.rand(C))
    return tuple(x.float().double().requires_grad_() for x in tensors)


def integrate(problem: Sequence[Tensor], **options: Any) -> ops.Scan:
    theta, omega, coupling, *forget = problem
    return ops.kuramoto_scan(
        theta, omega, coupling, forget=forget[0] if forget else None, **options
    )
