"""Rotations turn what they should by the stated angle and keep the rest."""

import math

import pytest
import torch
from torch import Tensor

from phasegpt.samplers.rotation import ROTATIONS, draw, slip_features

every_rotation = pytest.mark.parametrize("rotation", ROTATIONS)


def noise(rotation: str, seed: int, shape: tuple[int, int, int] = (3, 12, 16)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw(ROTATIONS[rotation].noise(*shape), [generator], torch.zeros(()))


def angles(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return 2 * torch.atan2((a / a.norm(dim=-1, keepdim=True) - b / b.norm(dim=-1, keepdim=True))
                           .norm(dim=-1), (a / a.norm(dim=-1, keepdim=True)
                           + b / b.norm(dim=-1, keepdim=True)).norm(dim=-1))  # fmt: skip


@every_rotation
@pytest.mark.parametrize("angle", [0.0085, 0.3, 1.5, 3.0])
def test_rotations_keep_the_norm(rotation: str, angle: float) -> None:
    v = torch.randn(1, 3, 12, 16) * torch.logspace(-3, 3, 12)[:, None]
    turned = ROTATIONS[rotation].turn(v, angle, noise(rotation, 1))
    error = turned.double().norm(dim=-1) / v.double().norm(dim=-1) - 1
    assert error.abs().max() <= 1e-6
    assert not torch.equal(turned, v)


@pytest.mark.parametrize("angle", [0.0, 0.0085, 0.3, 1.5, math.pi])
def test_geodesic_turns_every_vector_by_the_angle(angle: float) -> None:
    v = torch.randn(1, 3, 12, 16)
    turned = ROTATIONS["geodesic"].turn(v, angle, noise("geodesic", 1))
    torch.testing.assert_close(
        angles(v, turned), torch.full((1, 3, 12), angle).double(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("rotation", ["plane", "cayley"])
def test_a_rotation_of_a_head_keeps_the_products_inside_the_window(rotation: str) -> None:
    v = torch.randn(1, 3, 12, 16)
    turned = ROTATIONS[rotation].turn(v, 0.7, noise(rotation, 1))
    torch.testing.assert_close(turned @ turned.mT, v @ v.mT, atol=1e-4, rtol=1e-4)


def test_the_sizes_of_plane_and_cayley_are_the_documented_ones() -> None:
    v = torch.randn(1, 3, 2000, 64)
    plane = ROTATIONS["plane"].turn(v, 0.1, noise("plane", 2, (3, 2000, 64)))
    cayley = ROTATIONS["cayley"].turn(v, 0.1, noise("cayley", 2, (3, 2000, 64)))
    assert angles(v, plane).square().mean().sqrt() == pytest.approx(0.1 * (2 / 64) ** 0.5, rel=0.1)
    assert angles(v, cayley).square().mean().sqrt() == pytest.approx(0.1, rel=0.1)


def test_a_shorter_window_uses_the_newest_part_of_the_same_noise() -> None:
    v, given = torch.randn(1, 3, 12, 16), noise("geodesic", 1)
    whole = ROTATIONS["geodesic"].turn(v, 0.4, given)
    assert torch.equal(ROTATIONS["geodesic"].turn(v[:, :, 7:], 0.4, given), whole[:, :, 7:])


def test_a_phase_slips_by_plus_or_minus_the_angle() -> None:
    theta = torch.rand(1, 2, 12, 5) * 6 - 3
    slipped = slip_features(
        torch.cat((theta.cos(), theta.sin()), -1), 0.8, torch.randn(1, 2, 12, 5)
    )
    cos, sin = slipped.chunk(2, -1)
    change = torch.remainder(torch.atan2(sin, cos) - theta + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(change.abs(), torch.full_like(theta, 0.8), atol=1e-5, rtol=0)
    assert {-1.0, 1.0} == set(change.sign().flatten().tolist())
