"""Where synchrony begins and how strong it is, for three distributions of frequencies.

K_c = 2 / (pi g(0)); N = 4000 or 5000 oscillators at quantile frequencies, RK4, as in
Strogatz, Physica D 143, 1 (2000) and Acebron et al., Rev. Mod. Phys. 77, 137 (2005).
"""

import math
from collections.abc import Callable

import pytest
import torch
from laws import Integration
from populations import Steady, gaussian, incoherent, lorentzian, steady, synchronous, uniform
from torch import Tensor

from phasegpt.phase import daido_harmonics, susceptibility

F64 = torch.float64
K_C = {lorentzian: 2.0, gaussian: math.sqrt(8 / math.pi), uniform: 4 / math.pi}
STEP = {lorentzian: 0.02, gaussian: 0.1, uniform: 0.1}


def root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where a function that rises through 0 once between low and high does so, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        above = function(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return middle


@pytest.mark.parametrize("frequencies", K_C, ids=lambda f: f.__name__)
def test_incoherence_is_stable_below_K_c_and_unstable_above(
    reference: Integration, frequencies: Callable[[int], Tensor]
) -> None:
    N, critical = 4000, K_C[frequencies]
    time = 40 / STEP[frequencies]
    found = steady(
        *(reference, frequencies(N), incoherent(N)),
        [critical * x for x in (0.25, 0.5, 0.75, 0.95, 1.3, 2.0)],
        **{"burn": int(time), "steps": 200, "dt": STEP[frequencies]},
    )
    assert (found.R_KS[:4] < 4 / math.sqrt(N)).all(), found.R_KS[:4].amax(-1)
    assert (found.R_KS[4:] > 0.4).all(), found.R_KS[4:].amin(-1)


@pytest.fixture(scope="module")
def ratios() -> Tensor:
    return torch.tensor([1.25, 1.5, 2.0, 3.0, 4.0], dtype=F64)


def test_R_of_lorentzian_frequencies_is_the_root_of_one_minus_K_c_over_K(
    reference: Integration, ratios: Tensor
) -> None:
    N = 5000
    found = steady(reference, lorentzian(N), synchronous(N), (2 * ratios).tolist())
    R = (1 - 1 / ratios).sqrt()
    error = found.R_KS.mean(-1) - R
    assert error.abs().max() < 3e-4, error  # 1 / N, the tails that N quantiles leave out
    assert (found.R_KS.std(-1) < 0.01).all()
    harmonics = daido_harmonics(found.end_KN, 3)
    expected = torch.stack((R, R**2, R**3), -1)  # on the Ott-Antonsen manifold R_m = R^m
    assert (harmonics - expected)[2:].abs().max() < 0.015, harmonics - expected


def test_R_of_fewer_oscillators_is_off_by_about_1_over_N(
    reference: Integration, ratios: Tensor
) -> None:
    for N, error in ((200, 9e-3), (1000, 2.5e-3)):
        found = steady(reference, lorentzian(N), synchronous(N), (2 * ratios).tolist())
        assert ((found.R_KS.mean(-1) - (1 - 1 / ratios).sqrt()).abs() < error).all()


def test_fluctuations_of_R_peak_just_above_K_c(reference: Integration, ratios: Tensor) -> None:
    N = 200
    found = steady(reference, lorentzian(N), incoherent(N), (2 * ratios).tolist(), steps=4000)
    chi = susceptibility(found.R_KS, N, time=-1)
    assert chi[0] > 2 * chi[-1]
    assert found.R_KS.std(-1)[[0, -1]].tolist() == pytest.approx([0.035, 0.015], rel=0.35)


def test_R_of_gaussian_frequencies_solves_kuramotos_self_consistency(
    reference: Integration,
) -> None:
    N, K = 4000, K_C[gaussian] * torch.tensor([1.1, 1.3, 1.6, 2.5], dtype=F64)

    def excess(R: Tensor) -> Tensor:
        y = (K * R).square() / 4
        bessel = torch.special.i0e(y) + torch.special.i1e(y)  # e^-y (I0 + I1)
        return 1 - K * math.sqrt(math.pi / 8) * bessel

    R = root(excess, torch.zeros_like(K), torch.ones_like(K))
    assert R.tolist() == pytest.approx([0.510, 0.752, 0.878, 0.964], abs=5e-4)
    found = steady(
        *(reference, gaussian(N), synchronous(N), K.tolist()), burn=400, steps=400, dt=0.1
    )
    error = found.R_KS.mean(-1) - R
    assert error.abs().max() < 1e-3, error


def test_R_of_uniform_frequencies_jumps_to_pi_over_4(reference: Integration) -> None:
    N, K = 4000, torch.tensor([1.285, 1.3, 1.5], dtype=F64)

    def excess(R: Tensor) -> Tensor:
        u = (1 / (K * R)).clamp(max=1)
        return R - ((1 - u.square()).sqrt() + u.asin() / u) / 2

    R = root(excess, torch.full_like(K, math.pi / 4), torch.ones_like(K))
    assert R.tolist() == pytest.approx([0.8097, 0.8244, 0.8986], abs=1e-4)
    options = {"burn": 800, "steps": 100, "dt": 0.1}
    above: Steady = steady(reference, uniform(N), synchronous(N), K.tolist(), **options)
    error = above.R_KS.mean(-1) - R
    assert error.abs().max() < 1e-4, error
    assert above.R_KS.min() > math.pi / 4
    below = steady(reference, uniform(N), incoherent(N), [1.26], **options)
    assert below.R_KS.max() < 4 / math.sqrt(N)
