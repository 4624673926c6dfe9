"""Populations of oscillators with given frequencies, and their steady state in the reference.

Frequencies are quantiles, not draws, so that a finite population is as close to the infinite one
as it can be. Shapes: K values of the coupling, N oscillators, S steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from laws import Integration, Run, evolve
from torch import Tensor

F64 = torch.float64


def _ranks(N: int) -> Tensor:
    return torch.arange(1, N + 1, dtype=F64)


def lorentzian(N: int) -> Tensor:
    """Half-width 1: g(0) = 1 / pi."""
    return torch.tan(math.pi * (2 * _ranks(N) - N - 1) / (2 * (N + 1)))


def gaussian(N: int) -> Tensor:
    """Standard deviation 1: g(0) = 1 / sqrt(2 pi)."""
    return torch.special.ndtri((_ranks(N) - 0.5) / N)


def uniform(N: int) -> Tensor:
    """On [-1, 1]: g(0) = 1/2."""
    return 2 * (_ranks(N) - 0.5) / N - 1


def incoherent(N: int) -> Tensor:
    """Phases that the golden ratio spreads evenly, over the circle and over the frequencies."""
    return 2 * math.pi * torch.remainder(_ranks(N) * (5**0.5 - 1) / 2, 1)


def synchronous(N: int) -> Tensor:
    """All phases 0."""
    return torch.zeros(N, dtype=F64)


class Steady(NamedTuple):
    """A population after its transient, for every K."""

    R_KS: Tensor
    psi_KS: Tensor
    start_KN: Tensor
    end_KN: Tensor
    duration: float


def steady(
    run: Integration,
    omega: Tensor,
    start: Tensor,
    coupling: list[float],
    *,
    lag: float | list[float] = 0.0,
    burn: int = 2000,
    steps: int = 2000,
    dt: float = 0.02,
) -> Steady:
    """RK4 for `burn` steps, then for `steps` measured ones; K (and the lag) along the head axis."""
    shape = (1, 1, len(coupling), len(omega))
    problem = start.expand(shape), omega.expand(shape), torch.tensor(coupling, dtype=F64)
    options = {
        "dt": dt,
        "integrator": "rk4",
        "lag": torch.tensor(lag, dtype=F64) if isinstance(lag, list) else lag,
    }
    before = evolve(run, *problem, steps=burn, order=False, **options).theta
    after: Run = evolve(run, before, *problem[1:], steps=steps, **options)
    return Steady(after.R[0, 0], after.psi[0, 0], before[0, 0], after.theta[0, 0], steps * dt)
