"""Laws of coupled oscillators as plain functions that assert, for any integration.

The tests run them on every backend; the mutation tests run them on broken ones, where they must
raise AssertionError. P and D number the identities and dynamics that they state.

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phasegpt.phase import order_parameter

CHUNK = 64  # steps in one call: the limit of the fused backends


class Integration(NamedTuple):
    """An integration to be judged; `atol` is its rounding error on identities."""

    rows: Callable[..., Any]  # as phasegpt.ops.kuramoto_rows
    scan: Callable[..., Any]  # as phasegpt.ops.kuramoto_scan
    dtype: torch.dtype
    device: torch.device
    atol: float

    def tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)


class Run(NamedTuple):
    """Phases at the end, and R and psi before every step and after the last, on the CPU."""

    theta: Tensor
    R: Tensor
    psi: Tensor


def evolve(
    run: Integration,
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    *,
    steps: int,
    dt: float,
    order: bool = True,
    **options: Any,
) -> Run:
    """Many steps of `rows` over theta[B,T,H,N]; options are its lag and integrator."""
    R, psi = [], []
    for done in range(0, steps, CHUNK):
        part = run.rows(
            theta,
            omega,
            coupling,
            steps=min(CHUNK, steps - done),
            dt=dt,
            return_order=order,
            **options,
        )
        theta = part.theta
        if order:
            R.append(part.R[..., done > 0 :].cpu())
            psi.append(part.psi[..., done > 0 :].cpu())
    none = theta.new_empty(0)
    return Run(theta, torch.cat(R, -1) if order else none, torch.cat(psi, -1) if order else none)


def equal(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=0, atol=atol)


def rows_problem(run: Integration, N: int) -> tuple[Tensor, Tensor, Tensor]:
    """theta[2,3,3,N] over several turns; omega[3,N]; coupling[3], the last one repelling."""
    theta = run.tensor(4 * torch.randn(2, 3, 3, N, dtype=torch.float64))
    omega = run.tensor(torch.randn(3, N, dtype=torch.float64))
    return theta, omega, run.tensor([0.5, 2.0, -1.0])


def scan_problem(run: Integration, T: int) -> tuple[Tensor, Tensor, Tensor]:
    """theta[2,T,3] over several turns; omega[3]; coupling[3], the last one repelling."""
    theta = run.tensor(4 * torch.randn(2, T, 3, dtype=torch.float64))
    return theta, run.tensor([0.3, -1.0, 0.0]), run.tensor([0.5, 2.0, -1.0])


# --- identities ------------------------------------------------------------------------------


def mean_field_is_the_sum_over_pairs(run: Integration) -> None:
    """P1: (1/N) sum_m sin(theta_m - theta_n) is what one step of length 1 adds, over K."""
    for N in (2, 5, 33, 256):
        theta, omega, K = rows_problem(run, N)
        force = (theta.unsqueeze(-2) - theta.unsqueeze(-1)).double().sin().mean(-1)
        expected = theta + omega + K.view(-1, 1) * force
        equal(run.rows(theta, omega, K, steps=1, dt=1.0).theta, expected.to(run.dtype), run.atol)


def prefix_field_is_the_mean_over_the_prefix(run: Integration) -> None:
    """P2: (1/t) sum over u <= t of sin(theta_u - theta_t)."""
    for T in (1, 2, 70, 256):
        theta, omega, K = scan_problem(run, T)
        pairs = (theta.unsqueeze(1) - theta.unsqueeze(2)).double().sin()  # [B,t,u,C]
        weight = torch.ones(T, T, dtype=torch.float64, device=run.device).tril()
        weight = weight / weight.sum(-1, keepdim=True)
        expected = theta + omega + K * (weight.unsqueeze(-1) * pairs).sum(2)
        equal(run.scan(theta, omega, K, steps=1, dt=1.0).theta, expected.to(run.dtype), run.atol)


def mean_frequency_is_conserved(run: Integration) -> None:
    """P4: coupling is symmetric, so d/dt mean(theta) = mean(omega) whatever K."""
    for N in (2, 31, 256):
        theta, omega, K = rows_problem(run, N)
        end = run.rows(theta, omega, K, steps=9, dt=0.2).theta
        moved = (end - theta).double().mean(-1)
        equal(moved, (9 * 0.2 * omega.double().mean(-1)).expand_as(moved), run.atol)


def lag_drags_the_mean_phase(run: Integration) -> None:
    """P5: the mean force under a lag is -K R^2 sin(lag)."""
    for lag in (-0.4, 0.8):
        theta, omega, K = rows_problem(run, 32)
        end = run.rows(theta, 0 * omega, K, steps=1, dt=1.0, lag=lag).theta
        expected = -K * order_parameter(theta).square() * math.sin(lag)
        equal((end - theta).double().mean(-1), expected.double(), run.atol)


def a_common_shift_changes_nothing_else(run: Integration) -> None:
    """P6: theta + delta gives the same forces, also with a lag, and over the prefix."""
    theta, omega, K = rows_problem(run, 32)
    a, b = (
        run.rows(x, omega, K, steps=5, dt=0.2, lag=0.3, return_order=True)
        for x in (theta, theta + 1.234)
    )
    equal(b.theta - 1.234, a.theta, run.atol)
    equal(b.R, a.R, run.atol)
    theta, omega, K = scan_problem(run, 40)
    a, b = (run.scan(x, omega, K, steps=5, dt=0.2) for x in (theta, theta + 1.234))
    equal(b.theta - 1.234, a.theta, run.atol)


def reflection_reverses_the_motion(run: Integration) -> None:
    """P7: -theta and -omega move as theta and omega do, mirrored."""
    theta, omega, K = rows_problem(run, 32)
    a = run.rows(theta, omega, K, steps=5, dt=0.2).theta
    equal(run.rows(-theta, -omega, K, steps=5, dt=0.2).theta, -a, run.atol)
    theta, omega, K = scan_problem(run, 40)
    a = run.scan(theta, omega, K, steps=5, dt=0.2).theta
    equal(run.scan(-theta, -omega, K, steps=5, dt=0.2).theta, -a, run.atol)


def R_squared_is_the_mean_cosine_of_all_pairs(run: Integration) -> None:
    """P8: R^2 = (1/N^2) sum_ij cos(theta_i - theta_j), before and after every step."""
    for N in (2, 33, 256):
        theta, omega, K = rows_problem(run, N)
        R = run.rows(theta, omega, K, steps=2, dt=0.3, return_order=True).R
        for s in range(3):
            now = run.rows(theta, omega, K, steps=s, dt=0.3).theta.double()
            cosine = (now.unsqueeze(-1) - now.unsqueeze(-2)).cos().mean((-1, -2))
            equal(R[..., s].double().square(), cosine, run.atol)


# --- dynamics --------------------------------------------------------------------------------


def two_oscillators(run: Integration, detuning: Tensor) -> tuple[Tensor, Tensor]:
    """theta[1,T,1,2] at distance 1.5 and omega[1,T,1,2], one problem per detuning[T]."""
    omega = torch.stack((detuning, -detuning), -1).view(1, -1, 1, 2) / 2
    theta = torch.tensor([1.0, -0.5], dtype=torch.float64).expand_as(omega)
    return run.tensor(theta), run.tensor(omega)


def two_oscillators_lock_within_the_coupling(run: Integration, **options: Any) -> None:
    """D1: phi' = detuning - K sin(phi) rests at asin(detuning / K) when |detuning| < K."""
    detuning = torch.tensor([-1.6, 0.0, 0.4, 1.2, 1.8], dtype=torch.float64)
    theta, omega = two_oscillators(run, detuning)
    K = run.tensor(torch.full((1, 5, 1), 2.0))
    end = evolve(run, theta, omega, K, steps=640, dt=0.05, **options).theta[0, :, 0].double()
    equal(end[:, 0] - end[:, 1], (detuning / 2).asin(), max(run.atol, 1e-10))


def two_oscillators_beat_beyond_the_coupling(
    run: Integration, error: tuple[float, float], **options: Any
) -> None:
    """D1: for detuning > K the distance grows by 2 pi in every 2 pi / sqrt(detuning^2 - K^2).

    `error`: of the mean frequency over 3 periods, relative, at detuning 1.01 K and 2 K.
    """
    detuning = torch.tensor([1.01, 2.0], dtype=torch.float64)
    beat = (detuning.square() - 1).sqrt()
    theta, omega = two_oscillators(run, detuning / beat)  # in units of its own beat
    K = run.tensor((1 / beat).view(1, 2, 1))
    steps = 3 * 640
    end = evolve(run, theta, omega, K, steps=steps, dt=6 * math.pi / steps, **options).theta
    moved = (end - theta)[0, :, 0].double().cpu()
    relative = (moved[:, 0] - moved[:, 1]) / (6 * math.pi) - 1
    assert (relative.abs() < torch.tensor(error)).all(), relative


def poisson_phases(N: int, R: float) -> Tensor:
    """Quantiles of the Poisson kernel whose order parameter is R, float64[N]."""
    u = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    return 2 * torch.atan((1 - R) / (1 + R) * torch.tan(math.pi * (u - 0.5)))


def ott_antonsen(R0: float, K: float, width: float, time: Tensor) -> Tensor:
    """R(t) for a Lorentzian of half-width `width`: dR/dt = (K/2 - width) R - (K/2) R^3."""
    mu = K / 2 - width
    growth = (2 * mu * time).exp()
    return (mu * R0**2 * growth / (mu + K / 2 * R0**2 * (growth - 1))).sqrt()


def identical_oscillators_follow_ott_antonsen(
    run: Integration, N: int, error: float, **options: Any
) -> None:
    """D5: R(t)^2 = R0^2 e^(Kt) / (1 - R0^2 + R0^2 e^(Kt)) from Poisson phases."""
    start = (0.1, 0.4, 0.7)
    theta = run.tensor(torch.stack([poisson_phases(N, R0) for R0 in start]).view(1, 3, 1, N))
    K, still = run.tensor(torch.full((1, 3, 1), 1.5)), torch.zeros_like(theta)
    steps, dt = 200, 0.01  # to R = .975, where 256 phases still are the continuum
    R = evolve(run, theta, still, K, steps=steps, dt=dt, **options).R[0, :, 0].double()
    time = dt * torch.arange(steps + 1, dtype=torch.float64)
    equal(R, torch.stack([ott_antonsen(R0, 1.5, 0.0, time) for R0 in start]), error)


def euler_is_stable_below_a_step_of_2_over_K(run: Integration) -> None:
    """D17: near synchrony a deviation is multiplied by 1 - dt K at every step."""
    step = [0.5, 1.0, 1.9, 2.1, 2.5]
    theta = run.tensor(0.01 * torch.randn(1, 1, 1, 64, dtype=torch.float64)).expand(1, 5, 1, 64)
    K, still = run.tensor(step).view(1, 5, 1), torch.zeros_like(theta)
    end = evolve(run, theta, still, K, steps=192, dt=1.0).theta[0, :, 0].double()
    spread = end.std(-1)
    # A GPU's sine adds some 1e-6 at every step, of which little is damped at dt K = 1.9.
    assert (spread[:3] < max(1e-6, run.atol)).all(), spread
    assert (spread[3:] > 0.1).all(), spread


def tokens_follow_the_first_one(run: Integration) -> None:
    """D19: under causal coupling theta_1 stays, and all others are within 1e-3 of it at Kt = 40.

    R over all tokens passes .99 at Kt of 7 to 17, on average over five draws.
    """
    for T in (64, 256, 1024):
        theta = run.tensor(2 * math.pi * torch.rand(1, T, 5, dtype=torch.float64))
        still, K = run.tensor(torch.zeros(5)), run.tensor([1.0] * 5)
        now, R = theta, []
        for _ in range(4):
            part = run.scan(now, still, K, steps=50, dt=0.2, return_order=True)
            now = part.theta
            R.append(part.R[0, -1, :, :-1].cpu())
        equal(now[:, 0], theta[:, 0], run.atol)
        distance = torch.remainder(now - now[:, :1] + math.pi, 2 * math.pi) - math.pi
        assert distance.abs().max() < 1e-3, distance.abs().max()
        passed = 0.2 * (torch.cat(R, -1) > 0.99).float().argmax(-1)
        assert 7 < passed.mean() < 17, passed
