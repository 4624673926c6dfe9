"""`phase_sync`: each oscillator of a token is coupled to the same oscillator of its prefix.

    theta_t(0) = W x_t + b;  dtheta_t/dt = omega + K Im(exp(-i theta_t) Z_t),
    Z_t = mean over u <= t of exp(i theta_u), uniform or exponentially forgetting;
    y_t = W_out [cos theta_t, sin theta_t]

Causal, O(T) work, and a decode state of fixed size (the running sums of every step). With rotary
positions the phases drift by t nu_n while they are coupled, and are read out without the drift.

Shapes: B batch, T time, D model width, H heads, N oscillators, C = H N channels, S steps.
"""

from __future__ import annotations

import math
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
    Trajectory,
    linear_flops,
)
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import rotary_angles
from phasegpt.attention._oscillators import NoisyConfig, Oscillators
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.phase import prefix_order_parameter
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class PhaseSyncConfig(NoisyConfig):
    """Options of `phase_sync`."""

    forget: float | None = option(
        None, "lambda of a channel at the start, 0.9: recent tokens count more; null: all the same",
        gt=0, lt=1,
    )  # fmt: skip


class PhaseSync(Attention):
    """Causal mean-field Kuramoto over tokens: a mixer without queries, keys or values."""

    Config = PhaseSyncConfig
    options: PhaseSyncConfig
    has_phases = True
    off = Off({"coupling": 0.0}, "alone")
    coupled_axis = "prefix"
    lr_factors: ClassVar[Mapping[str, float]] = {
        **Oscillators.lr_factors,
        "forget_logit": 1.0,
    }
    starts: ClassVar[Mapping[str, str]] = {**Oscillators.starts, "forget": "forget_logit"}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Oscillators and the readout c_proj."""
        super().__init__(config, options, layer)
        channels = config.n_head * self.options.num_oscillators
        self.oscillators = Oscillators(config, self.options)
        self.c_proj = nn.Linear(2 * channels, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        forgets = self.options.forget is not None
        self.forget_logit = nn.Parameter(torch.zeros(channels)) if forgets else None

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """See Oscillators.reset; lambda = `forget` in every channel."""
        self.oscillators.reset(generator)
        if self.forget_logit is not None:
            forget = self.options.forget
            assert forget is not None
            nn.init.constant_(self.forget_logit, math.log(forget / (1 - forget)))

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward; `phase.R` is over the prefix of each channel, [B,T,H,N]."""
        if return_phase and cache is not None:
            raise ConfigError("phase_sync has no prefix R with a cache; call without one")
        theta, drift_T1N = self._integrate(x_BTD, cache, perturbation)
        read = (theta if drift_T1N is None else theta - drift_T1N).flatten(2)
        lifted = torch.cat((read.cos(), read.sin()), dim=-1)
        if return_phase == "coupling":
            theta, _ = self._integrate(x_BTD, None, perturbation, coupling_only=True)
        phase = Phase(theta, self.order_parameter(theta)) if return_phase else None
        y_BTD = self.resid_dropout(self.c_proj(lifted.to(x_BTD.dtype)))
        return AttentionOutput(y_BTD, phase)

    def _integrate(
        self,
        x_BTD: Tensor,
        cache: LayerCache | None,
        perturbation: Perturbation | None,
        *,
        coupling_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Phases after S steps, [B,T,H,N], and the rotary drift that they contain."""
        if cache is not None and perturbation is not None:
            raise ConfigError(
                "phase_sync takes no perturbation with a cache, which holds sums of undisturbed "
                "phases; call without one of them"
            )
        theta0, drift_T1N = self._start(x_BTD, cache, coupling_only=coupling_only)
        omega = self.oscillators.frequencies(coupling_only)
        last: list[ops.Scan] = []

        def advance(theta: Tensor, steps: int = 1) -> Tensor:
            last.append(self._scan(theta, omega, steps, None if cache is None else cache.state))
            return last[-1].theta.view_as(theta)

        theta = self.oscillators(advance, theta0, omega, perturbation)
        if cache is not None:
            cache.state, cache.length = last[-1].state, cache.length + x_BTD.shape[1]
            cache.oscillators = self.options.num_oscillators
        return theta, drift_T1N

    def _start(
        self, x_BTD: Tensor, cache: LayerCache | None = None, *, coupling_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Phases before the first step, [B,T,H,N], and the rotary drift that they contain."""
        theta = self.oscillators.initial_phases(x_BTD, coupling_only)
        drift_T1N = self.drift(x_BTD.shape[1], cache.length if cache is not None else 0)
        if drift_T1N is None:
            return theta, None
        drift_T1N = drift_T1N.to(theta.dtype)
        return theta + drift_T1N, drift_T1N

    def drift(self, time: int, start: int = 0) -> Tensor | None:
        """See Attention.drift; of `time` tokens behind the first `start`."""
        if not self.rope:
            return None
        N, device = self.options.num_oscillators, self.oscillators.omega.device
        return rotary_angles(start, time, N, device, self.rope_theta).unsqueeze(1)

    @property
    def forget(self) -> Tensor | None:
        """lambda of every channel, [C]; None where every token of the prefix weighs the same."""
        return None if self.forget_logit is None else self.forget_logit.sigmoid()

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each channel with the weights it has there, [B,T,H,N]."""
        if self.forget_logit is None:
            return prefix_order_parameter(theta_BTHN)
        still = torch.zeros_like(self.oscillators.omega)
        scan = self._scan(theta_BTHN, still, 0, return_order=True)
        assert scan.R is not None
        return scan.R.view_as(theta_BTHN)

    def _scan(
        self,
        theta_BTHN: Tensor,
        omega_HN: Tensor,
        steps: int,
        state: ops.ScanState | None = None,
        *,
        return_order: bool = False,
    ) -> ops.Scan:
        return ops.kuramoto_scan(
            theta_BTHN.flatten(2),
            omega_HN.flatten(),
            self.oscillators.coupling.repeat_interleave(self.options.num_oscillators),
            steps=steps,
            dt=self.options.dt,
            forget=self.forget,
            state=state,
            return_order=return_order,
        )

    def flops(self, time: int) -> Flops:
        """See Attention.flops; coupling is elementwise, S sums over the prefix."""
        channels = self.n_head * self.options.num_oscillators
        return Flops.of(linear_flops(self), 0.0, time, channels * (4 + 12 * self.options.steps))

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory:
        """See Attention.trajectory; with rotary positions the phases contain their drift."""
        o, oscillators = self.options, self.oscillators
        (theta0, _), omega = self._start(x_BTD), oscillators.frequencies()
        scan = self._scan(theta0, omega, o.steps, return_order=True)
        assert scan.R is not None
        R, theta = scan.R.unflatten(2, omega.shape), scan.theta.view_as(theta0)
        path = None
        if return_path:
            path = oscillators.path(
                lambda theta, steps: self._scan(theta, omega, steps).theta.view_as(theta), theta0
            )
        found = (theta0, theta, R, omega, oscillators.coupling, o.dt)
        drift = self.drift(x_BTD.shape[1])
        return Trajectory(*found, self.order_parameter, path, drift=drift)
