"""Algebraic identities of the coupling: 1e-12 in float64, 1e-5 in the fused float32 kernels."""

from collections.abc import Callable

import laws
import pytest
from laws import Integration


@pytest.mark.parametrize(
    "law",
    [
        laws.mean_field_is_the_sum_over_pairs,
        laws.prefix_field_is_the_mean_over_the_prefix,
        laws.mean_frequency_is_conserved,
        laws.lag_drags_the_mean_phase,
        laws.a_common_shift_changes_nothing_else,
        laws.reflection_reverses_the_motion,
        laws.R_squared_is_the_mean_cosine_of_all_pairs,
    ],
    ids=lambda law: law.__name__,
)
def test_the_coupling_obeys(law: Callable[[Integration], None], any_backend: Integration) -> None:
    law(any_backend)


def test_coupling_to_the_prefix_does_not_conserve_the_mean_frequency(
    any_backend: Integration,
) -> None:
    theta, omega, K = laws.scan_problem(any_backend, 50)
    end = any_backend.scan(theta, omega, K, steps=9, dt=0.2).theta
    assert ((end - theta).mean(1) - 9 * 0.2 * omega).abs().min() > 1e-3
