"""`kuramoto`, the flagship: oscillators inside each head bias softmax by their coherence.

Every head of every token owns N oscillators whose initial phases are a linear map of the token.
They are coupled all-to-all inside the head (never across tokens, so the layer is causal by
construction) for S steps, and two tokens attend to each other more where their phases agree:

    theta(0) = W x + b;  dtheta_n/dt = omega_n + (K/N) sum_m sin(theta_m - theta_n - lag)
    logit(t, u) = q_t . k_u / sqrt(E) + beta (1/N) sum_n cos(theta_tn - theta_un)

The cosine lifts to [cos, sin] features, so the whole layer is one SDPA call.

Shapes: B batch, T time, D model width, H heads, E head width, N oscillators, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from phasegpt import ops
from phasegpt.attention import (
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
from phasegpt.attention._oscillators import NoisyConfig, Oscillators
from phasegpt.attention.softmax import Softmax
from phasegpt.core.sections import option
from phasegpt.phase import null_order_parameter, resultant_length
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class KuramotoConfig(NoisyConfig):
    """Options of `kuramoto` (Kuramoto 1984; lag: Sakaguchi and Kuramoto 1986)."""

    integrator: Literal["euler", "heun", "rk4"] = option("euler", "method of a step")
    lag: float = option(0.0, "Sakaguchi's phase lag, radians", ge=-1000, le=1000)
    beta: float | None = option(
        None, "strength of the coherence in the logits; null: 4 sqrt(N/32)", ge=-1e6, le=1e6
    )
    readout: Literal["bias", "gate", "both"] = option(
        "bias", "the phases bias the logits, or R above chance scales the output of a head"
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        super().check_idle()
        self.refuse_idle(self.steps > 0, "steps", "integrator", "lag")
        self.refuse_idle(self.coupling != 0 or self.learn_coupling, "coupling", "lag")
        self.refuse_idle(self.readout != "gate", "readout", "beta")


class Kuramoto(Softmax):
    """Softmax attention whose logits or outputs feel the phases of intra-head oscillators.

    Source: Kuramoto (1984); Sakaguchi and Kuramoto (1986). beta = 0 (and gate = 0) is softmax;
    with the bias readout K = 0 equals S = 0, since omega and constant offsets cancel.
    """

    Config = KuramotoConfig
    options: KuramotoConfig
    has_phases = True
    off = Off({"readout": "bias", "beta": 0.0}, "softmax", decisive={"coupling": 0.0})
    lr_factors: ClassVar[Mapping[str, float]] = {
        **Oscillators.lr_factors,
        "beta": 10.0,
        "gate": 1.0,
    }
    starts: ClassVar[Mapping[str, str]] = {**Oscillators.starts, "beta": "beta"}

    def __init__(self, config: LayerShape, options: KuramotoConfig, layer: int) -> None:
        """Softmax's projections, the oscillators, and one readout strength per head."""
        super().__init__(config, options, layer)
        self.oscillators = Oscillators(config, options)
        self.beta = nn.Parameter(torch.zeros(config.n_head)) if options.readout != "gate" else None
        self.gate = nn.Parameter(torch.zeros(config.n_head)) if options.readout != "bias" else None

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """See Oscillators.reset; beta = 4 sqrt(N/32), gate = 1."""
        self.oscillators.reset(generator)
        if self.beta is not None:
            beta = self.options.beta
            default = 4 * (self.options.num_oscillators / 32) ** 0.5
            nn.init.constant_(self.beta, default if beta is None else beta)
        if self.gate is not None:
            nn.init.ones_(self.gate)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward; `phase.R` is over the oscillators of each token and head."""
        q, k, v = self.project(x_BTD, cache)
        theta = self.integrate(x_BTD, perturbation)
        cos, sin = theta.cos(), theta.sin()
        R_BTH = resultant_length(cos, sin)  # order_parameter(theta) from parts that are there
        q, k = self.cohere(q, k, cos, sin)
        if cache is not None:
            cache.oscillators = self.options.num_oscillators if self.beta is not None else 0
            k, v = cache.update(k, v)
        gain = None
        if self.gate is not None:
            null = null_order_parameter(self.options.num_oscillators)
            gain = (1 + self.gate * (R_BTH - null)).transpose(1, 2).unsqueeze(-1).to(v.dtype)
        y = self.mix(q, k, v, gain)
        if return_phase == "coupling":
            theta = self.integrate(x_BTD, perturbation, coupling_only=True)
            R_BTH = self.order_parameter(theta)
        return AttentionOutput(y, Phase(theta, R_BTH) if return_phase else None)

    def cohere(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """q and k with phase features beside them, so that q . k carries the coherence term.

        q, k [B,H,T,E] to [B,H,T,E+2N]; as they are where the readout is not through the logits.
        """
        if self.beta is None:
            return q, k
        features = torch.cat((cos, sin), dim=-1).transpose(1, 2)  # [B,H,T,2N]
        # SDPA multiplies by 1/sqrt(E), so the query's features carry sqrt(E) beta / N.
        strength = self.head_width**0.5 / self.options.num_oscillators * self.beta.view(-1, 1, 1)
        q = torch.cat((q, (strength * features).to(q.dtype)), dim=-1)
        return q, torch.cat((k, features.to(k.dtype)), dim=-1)

    def integrate(
        self,
        x_BTD: Tensor,
        perturbation: Perturbation | None = None,
        *,
        coupling_only: bool = False,
    ) -> Tensor:
        """Phases after S steps, [B,T,H,N]; for `coupling_only` see ReturnPhase."""
        omega = self.oscillators.frequencies(coupling_only)
        theta = self.oscillators.initial_phases(x_BTD, coupling_only)
        if self.options.integrator != "euler" and perturbation is not None:
            # A jittered frequency is in every stage of a step, not added after it.
            noise, jitter = perturbation
            if jitter is not None:
                omega = (omega * (1 + jitter)).unsqueeze(1).expand(theta.shape)
                perturbation = Perturbation(noise, None)
        return self.oscillators(self._advance(omega), theta, omega, perturbation)

    def _advance(self, omega: Tensor) -> Callable[..., Tensor]:
        return lambda theta, steps=1: self._rows(theta, omega, steps).theta

    def _rows(
        self, theta: Tensor, omega: Tensor, steps: int, *, return_order: bool = False
    ) -> ops.Rows:
        return ops.kuramoto_rows(
            theta,
            omega,
            self.oscillators.coupling,
            steps=steps,
            dt=self.options.dt,
            lag=self.options.lag,
            integrator=self.options.integrator,
            return_order=return_order,
        )

    def flops(self, time: int) -> Flops:
        """See Attention.flops; keys are 2N wider, and values as wide as they are."""
        o = self.options
        wider = 2 * o.num_oscillators if self.beta is not None else 0
        steps = self.n_head * o.num_oscillators * (4 + 8 * o.steps)
        pair = 4.0 * self.n_head * (self.head_width + wider)
        return Flops.of(linear_flops(self), pair, time, steps)

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory:
        """See Attention.trajectory; R is over the oscillators of each token and head."""
        o, oscillators = self.options, self.oscillators
        theta0, omega = oscillators.initial_phases(x_BTD), oscillators.frequencies()
        rows = self._rows(theta0, omega, o.steps, return_order=True)
        assert rows.R is not None
        path = oscillators.path(self._advance(omega), theta0) if return_path else None
        found = (theta0, rows.theta, rows.R, omega, oscillators.coupling, o.dt)
        return Trajectory(*found, self.order_parameter, path)
