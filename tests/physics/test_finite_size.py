"""R of N independent uniform phases: what has to be exceeded before one speaks of synchrony."""

import math

import pytest
import torch
from torch import Tensor

from phasegpt.phase import (
    debias,
    null_order_parameter,
    null_order_parameter_quantile,
    null_order_parameter_variance,
    order_parameter,
)

DRAWS = 100_000
SIZES = (4, 16, 64)


@pytest.fixture(scope="module")
def drawn() -> dict[int, Tensor]:
    """R of many draws for every N."""
    generator = torch.Generator().manual_seed(0)
    return {
        N: order_parameter(2 * math.pi * torch.rand(DRAWS, N, generator=generator)).double()
        for N in SIZES
    }


@pytest.mark.parametrize("N", SIZES)
def test_the_mean_square_of_R_is_one_over_N(drawn: dict[int, Tensor], N: int) -> None:
    standard_error = 1 / N / DRAWS**0.5
    assert drawn[N].square().mean().item() == pytest.approx(1 / N, abs=4 * standard_error)
    assert debias(drawn[N], N).mean().item() == pytest.approx(0, abs=4 / (N - 1) / DRAWS**0.5)


@pytest.mark.parametrize(("N", "error"), [(4, 0.02), (16, 0.006), (64, 0.005)])
def test_the_mean_of_R_is_the_root_of_pi_over_4N(
    drawn: dict[int, Tensor], N: int, error: float
) -> None:
    assert drawn[N].mean().item() == pytest.approx(null_order_parameter(N), rel=error)


def test_the_mean_of_R_of_four_phases_is_above_the_limit_law(drawn: dict[int, Tensor]) -> None:
    exact = 1.79909 / 4  # W_4(1) / 4: Borwein et al., Ramanujan J. 26, 109 (2011)
    assert drawn[4].mean().item() == pytest.approx(exact, abs=3e-3)
    assert null_order_parameter(4) == pytest.approx(0.443, abs=1e-3)


@pytest.mark.parametrize("N", [16, 64])
def test_the_variance_of_R_is_1_minus_pi_over_4_divided_by_N(
    drawn: dict[int, Tensor], N: int
) -> None:
    expected = null_order_parameter_variance(N)
    assert drawn[N].var().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("N", [16, 64])
def test_R_exceeds_r_with_probability_exp_of_minus_N_r_squared(
    drawn: dict[int, Tensor], N: int
) -> None:
    for r in (0.5 / N**0.5, 1 / N**0.5, 1.7 / N**0.5):
        share = (drawn[N] > r).double().mean().item()
        assert share == pytest.approx(math.exp(-N * r**2), abs=0.01)


def test_the_95_percent_quantile_is_1731_over_root_N(drawn: dict[int, Tensor]) -> None:
    assert null_order_parameter_quantile(1) == pytest.approx(1.731, abs=1e-3)
    found = drawn[64].quantile(0.95).item()
    assert found == pytest.approx(0.2151, abs=2e-3)
    assert null_order_parameter_quantile(64) == pytest.approx(found, rel=0.015)
