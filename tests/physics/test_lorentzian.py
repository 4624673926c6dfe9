"""Lorentzian frequencies of half-width 1, where the infinite population is solved exactly.

Ott and Antonsen, Chaos 18, 037113 (2008), arXiv 0806.0004; Sakaguchi and Kuramoto, Prog. Theor.
Phys. 76, 576 (1986).
"""

import math

import pytest
import torch
from laws import Integration, evolve, ott_antonsen, poisson_phases
from populations import incoherent, lorentzian, steady

from phasegpt.phase import effective_frequency, locked_fraction

F64 = torch.float64


@pytest.mark.parametrize(
    ("K", "R0", "error"), [(4.0, 0.9, 0.006), (1.0, 0.8, 0.010), (4.0, 0.1, 0.022)]
)
def test_R_follows_the_ott_antonsen_trajectory(
    reference: Integration, K: float, R0: float, error: float
) -> None:
    N, steps, dt = 10_000, 300, 0.02
    shuffle = incoherent(N).argsort()  # as even over the frequencies as it can be
    theta = poisson_phases(N, R0)[shuffle].view(1, 1, 1, N)
    found = evolve(
        *(reference, theta, lorentzian(N).view(1, N), torch.tensor([K], dtype=F64)),
        **{"steps": steps, "dt": dt, "integrator": "rk4"},
    )
    expected = ott_antonsen(R0, K, 1.0, dt * torch.arange(steps + 1, dtype=F64))
    deviation = (found.R[0, 0, 0] - expected).abs().max()
    assert deviation < error, deviation


def test_a_lag_weakens_synchrony_and_turns_the_mean_field(reference: Integration) -> None:
    """K_c = 2 / cos(a), R = sqrt(1 - 2 / (K cos a)), Omega = -(K/2) sin(a) (1 + R^2)."""
    N, dt, lag = 4000, 0.02, torch.tensor([0.3, 0.8, 1.2], dtype=F64)
    K = 4 / lag.cos()  # twice K_c
    found = steady(reference, lorentzian(N), incoherent(N), K.tolist(), lag=lag.tolist(), dt=dt)
    R = (1 - 2 / (K * lag.cos())).sqrt()
    error = found.R_KS.mean(-1) - R
    assert error.abs().max() < 4e-4, error
    turned = found.psi_KS.diff(dim=-1)
    turned = torch.remainder(turned + math.pi, 2 * math.pi) - math.pi
    error = turned.mean(-1) / dt + K / 2 * lag.sin() * (1 + R.square())
    assert error.abs().max() < 0.01, error


def test_oscillators_slower_than_K_R_are_entrained_and_the_others_drift(
    reference: Integration,
) -> None:
    """Locked if |omega| <= K R; beyond, the frequency is sgn(omega) sqrt(omega^2 - (K R)^2)."""
    N, K, omega = 2000, 3.0, lorentzian(2000)
    found = steady(reference, omega, incoherent(N), [K], steps=10_000, dt=0.04)
    frequency = effective_frequency(found.start_KN, found.end_KN, found.duration)[0]
    pull = K * found.R_KS.mean()
    expected = omega.sign() * (omega.square() - pull**2).clamp_min(0).sqrt()
    error = (frequency - expected).abs()
    assert error.median() < 7e-5, error.median()
    slow = omega.abs() < 10  # 0.4 rad a step; faster ones feel the step of the integrator
    assert error[slow].max() < 0.03, error[slow].max()
    assert locked_fraction(frequency, 0.02).item() == pytest.approx(2 / 3, abs=2e-3)
