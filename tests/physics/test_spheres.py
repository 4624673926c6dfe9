"""A step of oscillators on spheres, as `lohe` takes it, against exact laws."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from phasegpt.attention.lohe import advance_points

F64 = torch.float64


@pytest.mark.parametrize("group", [2, 4, 8])
def test_a_step_of_any_length_stays_on_the_sphere(group: int) -> None:
    x = F.normalize(torch.randn(5, 3, group, dtype=F64), dim=-1)
    omega = torch.rand(3 * group // 2, dtype=F64)
    for gamma in (0.01, 1.0, 100.0):
        x = advance_points(x, torch.randn_like(x) * 5, omega, gamma)
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(5, 3, dtype=F64))


def test_without_a_pull_a_pair_turns_by_omega() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], dtype=F64)
    new = advance_points(x, torch.zeros_like(x), torch.tensor([0.3, 0.9], dtype=F64), 1.0)
    assert torch.atan2(new[0, 0, 1], new[0, 0, 0]).item() == pytest.approx(math.atan(0.3))


@pytest.mark.parametrize("dimension", [2, 4, 7])
def test_under_a_fixed_pull_the_half_angle_decays_exponentially(dimension: int) -> None:
    """tan(delta(t) / 2) = tan(delta(0) / 2) exp(-|h| t), the exact solution on any sphere."""
    h = F.normalize(torch.randn(dimension, dtype=F64), dim=-1)
    x = F.normalize(torch.randn(6, 1, dimension, dtype=F64), dim=-1)

    def half_tangents(x: torch.Tensor) -> torch.Tensor:
        cosine = x.squeeze(1) @ h
        return ((1 - cosine) / (1 + cosine)).sqrt()

    before, dt, steps = half_tangents(x), 1e-3, 1500
    for _ in range(steps):
        x = advance_points(x, h.expand_as(x), None, dt)
    expected = before * math.exp(-dt * steps)  # |h| = 1
    torch.testing.assert_close(half_tangents(x), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("group", [2, 4, 8])
def test_a_token_seldom_starts_opposite_to_what_pulls_it(group: int, make_model: Callable) -> None:
    """x^0 is uniform on the sphere: P(angle < a) = c int_0^a sin^(n-2), and about a^(n-1)."""
    angle = math.pi / 3
    grid = torch.linspace(0, angle, 10_001, dtype=F64)
    size = math.gamma(group / 2) / (math.sqrt(math.pi) * math.gamma((group - 1) / 2))
    expected = size * torch.trapezoid(grid.sin() ** (group - 2), grid).item()
    model = make_model("lohe", n_layer=1, n_embd=64, n_head=4, layers=(0,), group=group)
    layer, starts = model.blocks[0].attn, []
    for seed in range(60):  # of other weights each: tokens of one W_0 are not independent
        generator = torch.Generator().manual_seed(seed)
        layer.reset_oscillators(lambda name, g=generator: g)
        with torch.no_grad():
            x_BTD = torch.randn(1, 40, 64, generator=generator)
            x, _ = layer.dynamics(x_BTD)
            x = torch.stack((x.cos(), x.sin()), -1) if group == 2 else x
            starts.append(x.flatten(0, -2))
    pull = F.normalize(torch.ones(group), dim=-1)
    near = (torch.cat(starts) @ -pull) > math.cos(angle)
    assert near.float().mean().item() == pytest.approx(expected, rel=0.1, abs=1e-3)


def test_attention_without_causality_raises_the_energy_of_its_flow() -> None:
    """E = sum exp(beta x_i . x_j) / (2 beta n^2) never falls (Geshkovski et al., 2312.10794)."""
    beta, energies = 2.0, []
    x = F.normalize(torch.randn(16, 1, 3, dtype=F64), dim=-1)
    for _ in range(600):
        weights = (beta * x.squeeze(1) @ x.squeeze(1).T).exp()
        energies.append(weights.mean() / (2 * beta))
        y = (weights / weights.sum(-1, keepdim=True)) @ x.squeeze(1)
        x = advance_points(x, y.unsqueeze(1), None, 0.05)
    energy = torch.stack(energies)
    assert (energy.diff() > -1e-14).all()
    assert energy[-1] > 1.5 * energy[0]
