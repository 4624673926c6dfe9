"""Motion with a closed form: pairs, identical oscillators, and a chain of tokens.

The fused kernels know Euler in float32, whose error at these steps is stated; the reference obeys
the same laws with Euler in test_mutations.py.
"""

import laws
import pytest
import torch
from laws import Integration

F64 = torch.float64


def test_two_oscillators_lock_within_the_coupling(fused_backend: Integration) -> None:
    laws.two_oscillators_lock_within_the_coupling(fused_backend)


def test_two_oscillators_beat_beyond_the_coupling(fused_backend: Integration) -> None:
    # Over whole periods the error of Euler is of second order: 4e-6 here.
    laws.two_oscillators_beat_beyond_the_coupling(fused_backend, error=(2e-5, 2e-5))


def test_two_oscillators_lock_and_beat_to_the_accuracy_of_rk4(reference: Integration) -> None:
    laws.two_oscillators_lock_within_the_coupling(reference, integrator="rk4")
    laws.two_oscillators_beat_beyond_the_coupling(reference, error=(3e-9, 1e-10), integrator="rk4")


def test_identical_oscillators_follow_ott_antonsen(fused_backend: Integration) -> None:
    # Euler's error is of first order: 2e-3 here.
    laws.identical_oscillators_follow_ott_antonsen(fused_backend, N=256, error=3e-3)


def test_identical_oscillators_follow_ott_antonsen_to_the_accuracy_of_rk4(
    reference: Integration,
) -> None:
    laws.identical_oscillators_follow_ott_antonsen(reference, N=4000, error=1e-10, integrator="rk4")


def test_euler_is_stable_below_a_step_of_2_over_K(any_backend: Integration) -> None:
    laws.euler_is_stable_below_a_step_of_2_over_K(any_backend)


def test_tokens_follow_the_first_one(any_backend: Integration) -> None:
    laws.tokens_follow_the_first_one(any_backend)


@pytest.mark.parametrize("lag", [0.0, 0.9])
def test_identical_oscillators_conserve_their_cross_ratios(
    reference: Integration, lag: float
) -> None:
    """Watanabe and Strogatz (1994): a common sinusoidal field moves phases by a Moebius map."""
    N = 12
    theta = 2 * torch.pi * torch.rand(1, 3, 1, N, dtype=F64)
    omega, K = torch.full_like(theta, 0.7), torch.tensor([1.0, -1.0, 0.5], dtype=F64)

    def cross_ratios(theta: torch.Tensor) -> torch.Tensor:
        z = torch.exp(1j * theta)
        a, b, c, d = (z[..., k : N - 3 + k] for k in range(4))
        return (a - b) * (c - d) / ((a - c) * (b - d))

    def drift(integrator: str) -> float:
        options = {"steps": 300, "dt": 0.01, "lag": lag, "integrator": integrator}
        end = reference.rows(theta, omega, K.view(1, 3, 1), **options).theta
        assert (end - theta).abs().amax(-1).min() > 0.1
        return (cross_ratios(end) / cross_ratios(theta) - 1).abs().max().item()

    assert drift("rk4") < 1e-10
    assert drift("euler") > 1e-4  # a step of Euler is no Moebius map
