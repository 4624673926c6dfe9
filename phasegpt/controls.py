"""Anti-oversynchronization controls: phase noise, frequency jitter, coherence regularizer.

Noise is a pure function of (seed, optimizer step, layer, sample), so data workers, gradient
accumulation, process count and resume do not change it. Off (0, or no regularizer) is absent.

Shapes: B batch, T time, H heads, N oscillators, S integration steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.phase import order_parameter
from phasegpt.randomness import keyed_generator


class NoiseKey(NamedTuple):
    """What training noise depends on, beside the layer: the run, the step and each sample."""

    seed: int
    step: int
    sample_B: tuple[int, ...]


class Perturbation(NamedTuple):
    """Random drive of one layer for one batch; a None field is off.

    noise_SBTHN is added to the phases after each Euler step (radians); the frequencies of a
    sample are omega (1 + jitter_BHN).
    """

    noise_SBTHN: Tensor | None
    jitter_BHN: Tensor | None


def draw_perturbation(
    key: NoiseKey,
    layer: int,
    *,
    steps: int,
    time: int,
    heads: int,
    oscillators: int,
    noise_sigma: float,
    frequency_jitter: float,
    device: torch.device,
) -> Perturbation | None:
    """Phase noise N(0, noise_sigma^2) per step and relative frequency jitter; None if both off."""
    if not noise_sigma and not frequency_jitter:
        return None

    def draw(kind: str, scale: float, shape: tuple[int, ...]) -> Tensor | None:
        if not scale:
            return None
        rows = []
        for sample in key.sample_B:
            generator = keyed_generator(kind, key.seed, key.step, layer, int(sample), device=device)
            rows.append(torch.randn(shape, generator=generator, device=device))
        return torch.stack(rows) * scale

    noise_BSTHN = draw("noise", noise_sigma, (steps, time, heads, oscillators))
    jitter_BHN = draw("jitter", frequency_jitter, (heads, oscillators))
    return Perturbation(None if noise_BSTHN is None else noise_BSTHN.transpose(0, 1), jitter_BHN)


def integrate_perturbed(
    step: Callable[[Tensor], Tensor],
    theta_BTHN: Tensor,
    perturbation: Perturbation,
    *,
    omega_HN: Tensor,
    steps: int,
    dt: float,
) -> Tensor:
    """`steps` calls of `step`, each followed by its noise and the jitter's dt omega xi."""
    noise, jitter = perturbation
    drift = 0.0 if jitter is None else (dt * omega_HN * jitter).unsqueeze(1)
    for s in range(steps):
        theta_BTHN = step(theta_BTHN) + drift
        if noise is not None:
            theta_BTHN = theta_BTHN + noise[s]
    return theta_BTHN


def coherence_regularizer(
    theta_BTHN: Tensor, *, target: float, weight: float, mode: str = "ceiling"
) -> Tensor:
    """weight * mean(max(0, R - target)^2), R per token and head over the N oscillators.

    A scalar in nats-like loss units; differentiable in theta. mode: "ceiling".
    """
    if mode != "ceiling":
        raise ValueError(f"regularizer mode {mode!r} is unknown; choose from: ceiling")
    excess = (order_parameter(theta_BTHN) - target).clamp_min(0)
    return weight * excess.square().mean()
