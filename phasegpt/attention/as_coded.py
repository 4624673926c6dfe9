"""`as_coded`: the original PhaseGPT's layer as coded, which SEES THE FUTURE. A named control.

    theta_t(0) = pi tanh(W x_t + b);
    dtheta_t/dt = omega + K (1/T) sum over all u of sin(theta_t - theta_u), wrapped at every step;
    y_t = W_out theta_t

It couples all tokens, future ones included, with the repelling sign, and reads out raw angles.
Its losses compare with no causal model: runs are marked leaky and stay off every ranking, and
decoding and analysis refuse it.

Shapes: B batch, T time, D model width, H heads, N oscillators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from phasegpt import ops
from phasegpt.attention import (
    Attention,
    AttentionConfig,
    AttentionOutput,
    Flops,
    LayerShape,
    Off,
    Phase,
    ReturnPhase,
    linear_flops,
)
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._oscillators import OscillatorConfig, Oscillators
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.phase import prefix_order_parameter
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class AsCodedConfig(OscillatorConfig):
    """Options of `as_coded`."""

    coupling: float = option(
        1.0, "K, repelling, per time; the initial value of every head if learned", ge=-1e3, le=1e3
    )
    theta_std: float = option(
        1.6, "standard deviation of W x, before pi tanh, at any width", gt=0, le=1e6
    )


class AsCoded(Attention):
    """Mean-field oscillators over all tokens, repelling: the original PhaseGPT's layer."""

    Config = AsCodedConfig
    options: AsCodedConfig
    has_phases = True
    off = Off({"coupling": 0.0}, "alone")
    leaky = True
    coupled_axis = "prefix"  # what is reported of it, as of phase_sync; it couples all tokens
    lr_factors: ClassVar[Mapping[str, float]] = Oscillators.lr_factors
    starts: ClassVar[Mapping[str, str]] = Oscillators.starts

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Oscillators and the readout c_proj. ConfigError for rotary positions; warns."""
        super().__init__(config, options, layer)
        if self.rope:
            raise ConfigError("attention=as_coded knows model.positions=learned only")
        self.oscillators = Oscillators(config, self.options)
        channels = config.n_head * self.options.num_oscillators
        self.c_proj = nn.Linear(channels, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        warnings.warn(
            f"layer {layer}: attention=as_coded sees the future; its losses compare with no "
            f"causal model and its run is marked leaky",
            stacklevel=2,
        )

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """See Oscillators.reset."""
        self.oscillators.reset(generator)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward, but every token sees all others. ConfigError with a cache."""
        if cache is not None:
            raise ConfigError(
                "attention=as_coded sees the future, so it cannot decode with a cache; call the "
                "model without one"
            )
        theta = self._integrate(x_BTD)
        y_BTD = self.resid_dropout(self.c_proj(theta.flatten(2).to(x_BTD.dtype)))
        if return_phase == "coupling":
            theta = self._integrate(x_BTD, coupling_only=True)
        phase = Phase(theta, self.order_parameter(theta)) if return_phase else None
        return AttentionOutput(y_BTD, phase)

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each channel, [B,T,H,N], as of phase_sync."""
        return prefix_order_parameter(theta_BTHN)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; coupling is elementwise, S sums over all tokens."""
        channels = self.n_head * self.options.num_oscillators
        return Flops.of(linear_flops(self), 0.0, time, channels * (4 + 12 * self.options.steps))

    def _integrate(self, x_BTD: Tensor, *, coupling_only: bool = False) -> Tensor:
        o, oscillators = self.options, self.oscillators
        theta_BTHN = torch.pi * oscillators.initial_phases(x_BTD, coupling_only).tanh()
        # Tokens take the place of oscillators: the rows of [B,N,H,T] are whole sequences.
        theta_BNHT = theta_BTHN.transpose(1, 3)
        omega_NH1 = oscillators.frequencies(coupling_only).t().unsqueeze(-1)
        for _ in range(o.steps):
            theta_BNHT = ops.kuramoto_rows(
                theta_BNHT, omega_NH1.expand_as(theta_BNHT), -oscillators.coupling, steps=1, dt=o.dt
            ).theta
            theta_BNHT = (theta_BNHT + torch.pi).remainder(2 * torch.pi) - torch.pi
        return theta_BNHT.transpose(1, 3)
