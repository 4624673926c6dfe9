"""The H x N coupled phases of a token: what tools see of them, and the oscillators of our layers.

Shapes: B batch, T time, D model width, H heads, N oscillators, S steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.attention._contract import AttentionConfig, LayerShape
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.phase.steering import NoiseKey, Perturbation, draw_perturbation, integrate_perturbed

#: |K| dt from which on an Euler step moves two locked phases further apart than they were.
OVERSHOOTS = 2.0

#: Radians that natural frequencies may turn phases by; the compiled kernels are good to ten times
#: as much, where float32 has a phase to 0.06 radians.
FARTHEST = 1e5


@dataclass(frozen=True, kw_only=True)
class OscillatorConfig(AttentionConfig):
    """Options of every layer of H x N oscillators (Kuramoto 1984); angles in radians.

    Time has no unit of its own: one step lasts `dt`, all of them S dt.
    """

    num_oscillators: int = option(32, "N, oscillators of a head and token", ge=1, le=65_536)
    steps: int = option(
        10, "S, integration steps; 0 leaves the phases as projected", ge=0, le=100_000
    )
    dt: float = option(0.1, "length of a step, time", gt=0, le=1000)
    coupling: float = option(
        1.0, "K, attracting, per time; the initial value of every head if learned", ge=-1e3, le=1e3
    )
    learn_coupling: bool = option(True, "false: K stays as it is")
    theta_init: Literal["spread", "gpt2"] = option(
        "spread", "initial phases: of standard deviation theta_std, or clustered (weights of 0.02)"
    )
    theta_std: float = option(
        1.6, "standard deviation of the initial phases, radians, at any width", gt=0, le=1e3
    )
    omega_std: float = option(
        0.1, "of the natural frequencies, radians per time, learned", ge=0, le=1e6
    )
    omega_spread: float = option(
        0.0,
        "fixed Gaussian disorder added to them; K_c = 1.6 of it in kuramoto, none in phase_sync",
        ge=0,
        le=1e6,
    )

    def __post_init__(self) -> None:
        """Also check that float32 can tell the angles that frequencies lead to."""
        super().__post_init__()
        turned = (self.omega_std + self.omega_spread) * self.dt * self.steps
        if turned > FARTHEST:
            name = "omega_std" if self.omega_std >= self.omega_spread else "omega_spread"
            raise ConfigError(
                f"{self.full_name(name)}={getattr(self, name):g} turns phases by some {turned:g} "
                f"radians in {self.steps} steps of {self.dt:g}; above {FARTHEST:g} float32 tells "
                f"no angles: lower it, or {self.full_name('steps')} or {self.full_name('dt')}"
            )

    def check_idle(self) -> None:
        """See Section.check_idle. K stays free at S = 0: both are off controls."""
        self.refuse_idle(self.steps > 0, "steps", "dt", "omega_spread")
        self.refuse_idle(self.theta_init == "spread", "theta_init", "theta_std")


@dataclass(frozen=True, kw_only=True)
class NoisyConfig(OscillatorConfig):
    """Options of a layer whose oscillators can be driven by noise."""

    noise_sigma: float = option(
        0.0, "phase noise added at every step, radians, training only", ge=0, le=1e6
    )
    frequency_jitter: float = option(
        0.0, "relative spread of the frequencies by sample, training only", ge=0, le=1e6
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        super().check_idle()
        self.refuse_idle(self.steps > 0, "steps", "noise_sigma", "frequency_jitter")


class CoupledPhases(nn.Module):
    """Phases of H heads x N oscillators per token that a layer couples, as its `oscillators`.

    `model.oscillators` finds them: the monitor, regularizers, guards, samplers and interpretation
    read `shape` (H, N), `coupling` [H], `steps` S and `dt`, and replace what `forward` returns.
    Where the phases come from, and what couples them, is the layer's.
    """

    coupling: Tensor

    def __init__(self, heads: int, oscillators: int, *, steps: int = 1, dt: float = 1.0) -> None:
        """Without a parameter; see couple."""
        super().__init__()
        self.shape, self.steps, self.dt = (heads, oscillators), steps, dt

    def couple(self, strength: float, learn: bool) -> None:
        """The coupling of every head, a parameter or a buffer."""
        coupling = torch.full(self.shape[:1], strength)
        if learn:
            self.coupling = nn.Parameter(coupling)
        else:
            self.register_buffer("coupling", coupling)

    def frequencies(self, coupling_only: bool = False) -> Tensor:
        """omega, [H,N], radians per unit time: none here."""
        return self.coupling.new_zeros(self.shape)

    def forward(
        self,
        advance: Callable[..., Tensor],
        theta_BTHN: Tensor,
        omega_HN: Tensor,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        """Phases after S steps: `advance(theta, steps)` at once, or step by step under noise.

        A module's forward, so that a hook of torch can see or replace what the layer reads.
        """
        if perturbation is None:
            return advance(theta_BTHN, self.steps)
        return integrate_perturbed(
            advance, theta_BTHN, perturbation, omega_HN=omega_HN, steps=self.steps, dt=self.dt
        )

    def path(self, advance: Callable[..., Tensor], theta_BTHN: Tensor) -> Tensor:
        """The phases before every step and after the last, [S+1,B,T,H,N], without noise."""
        path = [theta_BTHN]
        for _ in range(self.steps):
            path.append(advance(path[-1], 1))
        return torch.stack(path)

    def draw_perturbation(
        self, key: NoiseKey, layer: int, time: int, device: torch.device
    ) -> Perturbation | None:
        """Noise and jitter of one batch for layer `layer`, or None where there is none."""
        return None


class Oscillators(CoupledPhases):
    """Oscillators whose first phases are a linear map of the token, with frequencies and noise."""

    #: Attention.lr_factors of a layer that keeps them as `oscillators`.
    lr_factors: ClassVar[Mapping[str, float]] = {
        f"oscillators.{name}": 1.0 for name in ("phase.weight", "phase.bias", "omega", "coupling")
    }
    #: Attention.starts of such a layer.
    starts: ClassVar[Mapping[str, str]] = {
        "coupling": "oscillators.coupling",
        "theta_init": "oscillators.phase.weight",
        "theta_std": "oscillators.phase.weight",
        "omega_std": "oscillators.omega",
    }
    disorder: Tensor | None

    def __init__(self, config: LayerShape, options: OscillatorConfig) -> None:
        """Parameters `phase`, `omega`, `coupling`; the buffer `disorder` if there is some.

        Warns of steps that overshoot.
        """
        if options.steps and abs(options.coupling) * options.dt > OVERSHOOTS:
            warnings.warn(
                f"attention.coupling={options.coupling:g} with attention.dt={options.dt:g} turns a "
                f"phase by up to {abs(options.coupling) * options.dt:g} in a step, and beyond "
                f"{OVERSHOOTS:g} a step overshoots: this is no integration of the equation, and "
                f"rounding decides where phases end. Lower attention.dt, or the coupling",
                stacklevel=2,
            )
        H, N = config.n_head, options.num_oscillators
        super().__init__(H, N, steps=options.steps, dt=options.dt)
        self.options = options
        self.phase = nn.Linear(config.n_embd, H * N)
        self.omega = nn.Parameter(torch.zeros(H, N))
        self.couple(options.coupling, options.learn_coupling)
        self.register_buffer("disorder", torch.zeros(H, N) if options.omega_spread else None)

    def reset(self, generator: Callable[[str], torch.Generator]) -> None:
        """W ~ N(0, theta_std^2 / D) (or GPT-2's 0.02), b = 0, omega ~ N(0, omega_std^2), K.

        Each head's disorder is the quantiles of N(0, omega_spread^2) at (n + 1/2)/N, shuffled:
        alone (omega = 0), it lets the N oscillators of a head lock above K_c = omega_spread
        sqrt(8/pi) as N -> infinity, once S dt is many 1/omega_spread (Kuramoto 1984, ch. 5).
        """
        o = self.options
        width = self.phase.in_features
        std = 0.02 if o.theta_init == "gpt2" else o.theta_std * width**-0.5
        nn.init.normal_(self.phase.weight, std=std, generator=generator("phase.weight"))
        nn.init.zeros_(self.phase.bias)
        nn.init.normal_(self.omega, std=o.omega_std, generator=generator("omega"))
        nn.init.constant_(self.coupling, o.coupling)
        if self.disorder is not None:
            shuffle = generator("disorder")
            points = torch.arange(o.num_oscillators, dtype=torch.float64, device="cpu") + 0.5
            quantiles = o.omega_spread * torch.special.ndtri(points / o.num_oscillators)
            for row_N in self.disorder:
                order = torch.randperm(o.num_oscillators, generator=shuffle, device="cpu")
                row_N.copy_(quantiles[order])

    def frequencies(self, coupling_only: bool = False) -> Tensor:
        """omega and its disorder, [H,N], radians per unit time; `coupling_only`: a constant."""
        omega = self.omega.detach() if coupling_only else self.omega
        return omega if self.disorder is None else omega + self.disorder

    def initial_phases(self, x_BTD: Tensor, coupling_only: bool = False) -> Tensor:
        """theta(0) = W x + b, [B,T,H,N], in float32 at least whatever the autocast.

        `coupling_only`: the same values, but b and each sequence's token mean of W x are
        constants: their gradient is blocked.
        """
        return projected_phases(self.phase, x_BTD, coupling_only).unflatten(-1, self.shape)

    def draw_perturbation(
        self, key: NoiseKey, layer: int, time: int, device: torch.device
    ) -> Perturbation | None:
        """Noise and jitter of one batch for layer `layer`, or None when both are off."""
        if not isinstance(self.options, NoisyConfig):
            return None
        heads, oscillators = self.shape
        return draw_perturbation(
            key,
            layer,
            steps=self.steps,
            time=time,
            heads=heads,
            oscillators=oscillators,
            noise_sigma=self.options.noise_sigma,
            frequency_jitter=self.options.frequency_jitter,
            device=device,
        )


def projected_phases(phase: nn.Module, x_BTD: Tensor, coupling_only: bool = False) -> Tensor:
    """W x, or W x + b, of a linear map of the token, in float32 at least whatever the autocast.

    `coupling_only`: the same values, but b and each sequence's token mean of W x are constants:
    their gradient is blocked.
    """
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    with torch.autocast(x_BTD.device.type, enabled=False):
        if isinstance(phase, nn.Linear):
            bias = None if phase.bias is None else phase.bias.to(dtype)
            if coupling_only and bias is not None:
                bias = bias.detach()
            theta = F.linear(x_BTD.to(dtype), phase.weight.to(dtype), bias)
        else:  # an adapter around it (PEFT): what it adds is part of W
            theta = phase(x_BTD.to(dtype)).to(dtype)
    if coupling_only:
        mean = theta.mean(1, keepdim=True)
        theta = theta - (mean - mean.detach())
    return theta
