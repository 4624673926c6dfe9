"""Anti-oversynchronization controls: phase noise, frequency jitter, coherence regularizer.

Noise is a pure function of (seed, optimizer step, layer, sample), so data workers, gradient
accumulation, process count and resume do not change it. Off (0, or no regularizer) is absent.

Shapes: B batch, T time, H heads, N oscillators, S integration steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phasegpt.core.randomness import keyed_seed
from phasegpt.phase import first_prefix, order_parameter, prefix_order_parameter


class NoiseKey(NamedTuple):
    """What training noise depends on, beside the layer: the run, the step and each sample."""

    seed: int
    step: int
    sample_B: tuple[int, ...]


class Perturbation(NamedTuple):
    """Random drive of one layer for one batch; a None field is off.

    noise_SBTHN is added to the phases after each step (radians); the frequencies of a sample are
    omega (1 + jitter_BHN).
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

    generator = torch.Generator(device)  # one, seeded anew: making one costs more than a draw

    def draw(kind: str, scale: float, shape: tuple[int, ...]) -> Tensor | None:
        if not scale:
            return None
        drawn = torch.empty((len(key.sample_B), *shape), device=device)
        for row, sample in zip(drawn, key.sample_B, strict=True):
            generator.manual_seed(keyed_seed(kind, key.seed, key.step, layer, int(sample)))
            row.normal_(generator=generator)
        return drawn.mul_(scale)

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
    """`steps` calls of `step`, each followed by its noise and the jitter's dt omega xi, which is
    what a jittered frequency adds to an Euler step."""
    noise, jitter = perturbation
    drift = 0.0 if jitter is None else (dt * omega_HN * jitter).unsqueeze(1)
    for s in range(steps):
        theta_BTHN = step(theta_BTHN) + drift
        if noise is not None:
            theta_BTHN = theta_BTHN + noise[s]
    return theta_BTHN


def coherence(theta_BTHN: Tensor, axis: str) -> Tensor:
    """The order parameter R over a named axis, differentiable in theta.

    oscillators: the N of one token and head, [B,T,H]. heads: the H heads of one oscillator index,
    [B,T,N]. prefix: the tokens u <= t of one channel, [B,T',H,N], for t >= 32 alone (or the last
    token of a shorter window): independent phases give 0.886/sqrt(t), 1 at t = 1.
    Raises ValueError for another axis.
    """
    if axis == "prefix":
        return prefix_order_parameter(theta_BTHN)[:, first_prefix(theta_BTHN.shape[1]) :]
    if axis not in ("oscillators", "heads"):
        raise ValueError(f"axis {axis!r} is unknown; choose from: oscillators, heads, prefix")
    return order_parameter(theta_BTHN, dim=-1 if axis == "oscillators" else -2)


def coherence_regularizer(
    R: Tensor, *, target: float, weight: float, mode: str = "ceiling", width: float = 0.1
) -> Tensor:
    """weight * mean of d^2, d how far order parameters R of any shape are from the target.

    ceiling: d = max(0, R - target). center: d = R - target. band: d = max(0, |R - target| - width),
    so R is free between target - width and target + width.

    A scalar in nats-like loss units; differentiable. Raises ValueError for another mode.
    """
    if mode not in _DISTANCE:
        raise ValueError(f"mode {mode!r} is unknown; choose from: {', '.join(_DISTANCE)}")
    distance = _DISTANCE[mode](R - target, width)
    return weight * distance.square().mean()


_DISTANCE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "ceiling": lambda above, width: above.clamp_min(0),
    "center": lambda above, width: above,
    "band": lambda above, width: (above.abs() - width).clamp_min(0),
}


class PenaltyWeight:
    """lambda, the weight of the coherence penalty at an optimizer step.

    constant: `weight`. warmup: weight * min(1, (k + 1) / warmup_steps) at step k = 0, 1, ...
    adaptive: `weight` at first, then after every optimizer step with its mean order parameter R

        R_ema <- R_ema + (R - R_ema) / 50          (the first R starts it)
        lambda <- clip(lambda + 5e-4 (R_ema - target), 0, 1)

    so lambda grows while R is above the target and falls to 0 below it. At 0 nothing pulls R up:
    with this schedule center and band, too, hold R from above alone.
    """

    def __init__(self, schedule: str, *, weight: float, target: float, warmup_steps: int) -> None:
        """Nothing seen yet."""
        self.schedule, self.target, self.warmup_steps = schedule, target, warmup_steps
        self.weight = weight
        self.R_ema: float | None = None

    def at(self, step: int) -> float:
        """lambda for the update that follows `step` earlier ones."""
        if self.schedule == "warmup":
            return self.weight * min(1.0, (step + 1) / self.warmup_steps)
        return self.weight

    def update(self, R: float) -> None:
        """Adapt to R, the mean over one optimizer step; call it once per step."""
        self.R_ema = R if self.R_ema is None else self.R_ema + (R - self.R_ema) / 50
        self.weight = min(1.0, max(0.0, self.weight + 5e-4 * (self.R_ema - self.target)))

    def state_dict(self) -> dict[str, float | None]:
        """What a checkpoint keeps of an adaptive weight."""
        return {"weight": self.weight, "R_ema": self.R_ema}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.weight, self.R_ema = state["weight"], state["R_ema"]
