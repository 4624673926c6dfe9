"""The coherence penalty and its weight, by hand-computed values."""

import math

import pytest
import torch
from torch import Tensor

from phasegpt.phase import order_parameter
from phasegpt.phase.steering import PenaltyWeight, coherence, coherence_regularizer

F64 = torch.float64


def phases(*R: float) -> Tensor:
    """theta[1,T,1,2]: the two oscillators of token t have order parameter R[t] = cos(half gap)."""
    half = torch.tensor(R, dtype=F64).acos().view(1, -1, 1, 1)
    return torch.cat((half, -half), dim=-1)


TOKENS = (0.95, 0.60, 0.50, 0.25)
BY_HAND = {
    # target 0.45, width 0.1, weight 2; mean over the four tokens
    "ceiling": 2 * (0.50**2 + 0.15**2 + 0.05**2 + 0) / 4,
    "center": 2 * (0.50**2 + 0.15**2 + 0.05**2 + 0.20**2) / 4,
    "band": 2 * (0.40**2 + 0.05**2 + 0 + 0.10**2) / 4,
}


@pytest.mark.parametrize("mode", BY_HAND)
def test_a_penalty_is_the_mean_squared_distance_of_every_tokens_R(mode: str) -> None:
    theta = phases(*TOKENS)
    torch.testing.assert_close(order_parameter(theta).flatten(), torch.tensor(TOKENS, dtype=F64))
    found = coherence_regularizer(
        order_parameter(theta), target=0.45, weight=2.0, mode=mode, width=0.1
    )
    assert found.item() == pytest.approx(BY_HAND[mode], rel=1e-12)


#: The sign with which the gradient moves R = 0.9, 0.5, 0.4 and 0.2 by mode; 0: left free.
PUSHES = {
    "ceiling": [-1, -1, 0, 0],
    "center": [-1, -1, 1, 1],
    "band": [-1, 0, 0, 1],
}


@pytest.mark.parametrize("mode", PUSHES)
def test_a_ceiling_only_lowers_R_center_and_band_also_raise_it(mode: str) -> None:
    theta = phases(0.9, 0.5, 0.4, 0.2).requires_grad_()
    coherence_regularizer(order_parameter(theta), target=0.45, weight=1.0, mode=mode).backward()
    with torch.no_grad():
        moved = order_parameter(theta - 0.01 * theta.grad) - order_parameter(theta)
    assert moved.flatten().sign().tolist() == PUSHES[mode]


@pytest.mark.parametrize("axis", ["oscillators", "heads", "prefix"])
@pytest.mark.parametrize("mode", BY_HAND)
def test_every_mode_is_differentiable_on_every_axis(mode: str, axis: str) -> None:
    theta = torch.randn(2, 5, 3, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: coherence_regularizer(coherence(x, axis), target=0.3, weight=1.0, mode=mode),
        (theta,),
    )


def test_axes_are_of_oscillators_heads_and_prefixes_from_32() -> None:
    theta = torch.randn(2, 40, 3, 4, dtype=F64)
    z = torch.exp(1j * theta)
    torch.testing.assert_close(coherence(theta, "oscillators"), z.mean(3).abs())
    torch.testing.assert_close(coherence(theta, "heads"), z.mean(2).abs())
    prefix = coherence(theta, "prefix")
    assert prefix.shape == (2, 9, 3, 4)
    for t in (32, 36, 40):
        torch.testing.assert_close(prefix[:, t - 32], z[:, :t].mean(1).abs())
    short = coherence(theta[:, :6], "prefix")
    torch.testing.assert_close(short, z[:, :6].mean(1, keepdim=True).abs())


def test_an_unknown_mode_or_axis_is_named_with_the_known_ones() -> None:
    theta = torch.zeros(1, 1, 1, 2)
    with pytest.raises(ValueError, match="'floor' is unknown; choose from: ceiling, center, band"):
        coherence_regularizer(theta, target=0.4, weight=1.0, mode="floor")
    with pytest.raises(ValueError, match="'time' is unknown; choose from: oscillators, heads"):
        coherence(theta, "time")


# --- the weight ------------------------------------------------------------------------------


def weight(schedule: str, start: float = 0.2, steps: int = 4) -> PenaltyWeight:
    return PenaltyWeight(schedule, weight=start, target=0.45, warmup_steps=steps)


def test_a_constant_weight_stays_and_warmup_grows_linearly() -> None:
    assert [weight("constant").at(k) for k in (0, 3, 1000)] == [0.2] * 3
    assert [weight("warmup").at(k) for k in range(6)] == pytest.approx(
        [0.05, 0.1, 0.15, 0.2, 0.2, 0.2]
    )


def test_an_adaptive_weight_follows_the_moving_average_of_R() -> None:
    adaptive = weight("adaptive")
    assert adaptive.at(0) == 0.2
    adaptive.update(0.95)  # the first R starts the average
    assert adaptive.R_ema == 0.95
    assert adaptive.at(1) == pytest.approx(0.2 + 5e-4 * 0.5, rel=1e-14)
    adaptive.update(0.45)
    assert adaptive.R_ema == pytest.approx(0.95 - 0.5 / 50, rel=1e-14)
    assert adaptive.at(2) == pytest.approx(0.2 + 5e-4 * (0.5 + 0.49), rel=1e-14)


@pytest.mark.parametrize(("start", "R", "end"), [(0.9998, 1.0, 1.0), (0.0002, 0.0, 0.0)])
def test_an_adaptive_weight_stays_between_0_and_1(start: float, R: float, end: float) -> None:
    adaptive = weight("adaptive", start)
    for _ in range(3):
        adaptive.update(R)
    assert adaptive.at(3) == end


def test_an_adaptive_weight_goes_on_exactly_from_its_state() -> None:
    first, second = weight("adaptive"), weight("adaptive", 0.7)
    for k in range(20):
        first.update(0.5 + 0.3 * math.sin(k))
    second.load_state_dict(first.state_dict())
    for k in range(20):
        first.update(0.1 * k)
        second.update(0.1 * k)
    assert first.state_dict() == second.state_dict()
