"""Rotations by a stated angle: of Values in their head's space, of oscillators on their circles.

All keep the length of what they turn exactly (up to rounding). Noise is drawn for whole windows
and used from the newest position back, so that a row's noise depends on nothing but its generator.

Shapes: B rows, H heads, W positions of the window, E head width, N oscillators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """noise(H, W, E) is the shape of a row's standard normals; turn(x, angle, noise) rotates."""

    noise: Callable[[int, int, int], tuple[int, ...]]
    turn: Callable[[Tensor, float, Tensor], Tensor]


def draw(shape: tuple[int, ...], generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normals [B, *shape] on the device of `like`, row i from generators[i] (CPU)."""
    rows = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.stack(rows).to(like.device)


def geodesic(v_BHWE: Tensor, angle: float, noise_BHWE: Tensor) -> Tensor:
    """Every vector turned by exactly `angle` towards a random direction of its own.

    v' = cos(a) v + sin(a) |v| w, w a unit tangent: the noise without its part along v.
    """
    noise = noise_BHWE[:, :, -v_BHWE.shape[2] :]
    norm = v_BHWE.norm(dim=-1, keepdim=True)
    unit = v_BHWE / norm.clamp_min(torch.finfo(v_BHWE.dtype).tiny)
    for _ in range(2):  # once more, for what rounding leaves along v
        noise = noise - unit * (unit * noise).sum(-1, keepdim=True)
        noise = noise / noise.norm(dim=-1, keepdim=True)
    return v_BHWE * math.cos(angle) + norm * noise * math.sin(angle)


def plane(v_BHWE: Tensor, angle: float, noise_BHE2: Tensor) -> Tensor:
    """One random plane per head turned by `angle` for all of the window: a rotation matrix.

    A vector moves by about angle sqrt(2/E), since most of it is outside of the plane.
    """
    basis = torch.linalg.qr(noise_BHE2)[0]
    x, y = basis[..., :1], basis[..., 1:]  # [B,H,E,1]
    cx, cy = v_BHWE @ x, v_BHWE @ y  # [B,H,W,1]
    c, s = math.cos(angle) - 1, math.sin(angle)
    return v_BHWE + (c * cx - s * cy) * x.mT + (s * cx + c * cy) * y.mT


def cayley(v_BHWE: Tensor, angle: float, noise_BHEE: Tensor) -> Tensor:
    """One random rotation matrix per head for all of the window, about `angle` (root mean square).

    R = (I - tan(a/2) A)^-1 (I + tan(a/2) A), A skew with |A v| = |v| in the mean. Cayley (1846).
    Angles inside the window are kept. Close to pi it saturates: tan(pi/2) has no value.
    """
    E = v_BHWE.shape[-1]
    A = (noise_BHEE - noise_BHEE.mT).double() / math.sqrt(2 * max(1, E - 1))
    eye, t = torch.eye(E, dtype=A.dtype, device=A.device), math.tan(angle / 2)
    R = torch.linalg.solve(eye - t * A, eye + t * A)
    return (v_BHWE.double() @ R.mT).to(v_BHWE.dtype)


#: By name; see each function.
ROTATIONS = {
    "geodesic": Rotation(lambda H, W, E: (H, W, E), geodesic),
    "plane": Rotation(lambda H, W, E: (H, E, 2), plane),
    "cayley": Rotation(lambda H, W, E: (H, E, E), cayley),
}


def slip_features(features_BHWF: Tensor, angle: float, noise_BHWN: Tensor) -> Tensor:
    """(cos theta, sin theta) of phases that each slip by +angle or -angle, as the noise's sign."""
    cos, sin = features_BHWF.chunk(2, dim=-1)
    signs = noise_BHWN[:, :, -features_BHWF.shape[2] :].sign()
    return torch.cat(turned(cos, sin, signs * angle), dim=-1)


def slip_angles(theta_BHWN: Tensor, angle: float, noise_BHWN: Tensor) -> Tensor:
    """The same of phases that are kept as angles."""
    return theta_BHWN + noise_BHWN[:, :, -theta_BHWN.shape[2] :].sign() * angle


def turned(cos: Tensor, sin: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine of phases that slip by `angle`."""
    return (
        cos * angle.cos() - sin * angle.sin(),
        sin * angle.cos() + cos * angle.sin(),
    )
