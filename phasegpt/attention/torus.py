"""`torus`: attention over phases, which moves every phase towards those that it retrieves.

Each channel of a token is an angle. Tokens attend to each other where their phases agree, and the
layer takes one Kuramoto step towards the attention-weighted circular mean of the prefix:

    theta = W x;  g = softplus(W_g x) of the query
    s_tu = tau_h sum_k g_tk cos(theta_tk - theta_uk + (t - u) nu_k);  A = softmax over u <= t
    Z_tk = sum_u A_tu exp(i theta_uk) = R_tk exp(i psi_tk)
    F_tk = Im(exp(-i theta_tk) Z_tk) = sum_u A_tu sin(theta_uk - theta_tk) = R sin(psi - theta)
    theta' = theta + eta_h F;  y = W_o [cos theta' - r, sin theta'], r = exp(-theta_std^2 / 2)

r is the mean cosine of the first phases. Without it every token would add the same large vector to
the stream, beside which its content is small for all layers above.

The drift t nu_k is RoPE: it is there with positions=rope alone, and in the scores alone. The cosine
lifts to [cos, sin] features, so that the layer is one SDPA call.

The paper (Nunley, arXiv 2606.11585, of which we know the abstract) has the gated cosine, the raw
phases as values, the tangent step and the drift. Ours are: a layer beside a residual stream (in the
paper the stream is the phases), content gates, tau = 8/E, eta = 1, the spread of W, r.

Shapes: B batch, T time, D model width, H heads, E head width, N = E phases of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from phasegpt.attention._functional import (
    causal_attention,
    join_heads,
    random_numbers_again,
    random_state,
    rotary_angles,
    rotate,
    split_heads,
)
from phasegpt.attention._oscillators import CoupledPhases, projected_phases
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.phase import prefix_order_parameter
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class StepConfig(AttentionConfig):
    """Options of a layer that moves phases by one step of attention."""

    coupling: float = option(
        1.0, "eta, the step; the initial value of every head if learned", ge=-1e3, le=1e3
    )
    learn_coupling: bool = option(True, "false: eta stays as it is")
    theta_std: float = option(
        0.4, "standard deviation of the phases, radians, at any width", gt=0, le=1e3
    )


@dataclass(frozen=True, kw_only=True)
class TorusConfig(StepConfig):
    """Options of `torus` (Nunley, arXiv 2606.11585); the sizes are ours."""

    readout: Literal["tangent", "mean"] = option(
        "tangent", "the phases after the step; or, as a control, the circular mean without a step"
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.readout == "tangent", "readout", "coupling", "learn_coupling")


class Torus(Attention):
    """Kuramoto attention on the torus: one step towards the phases that attention retrieves.

    eta = 0 mixes nothing. With readout=mean y = W_o [Re Z - r, Im Z]: the same attention without
    the tangent step, so that no phase moves. W has no bias: W_o can turn any offset away.

    A token's score with itself is about 0.7 tau E, and pulls nowhere. With tau = 8/E a fresh model
    hears a token of the prefix as well as one of uniform means, at any width of a head; with
    4/sqrt(E) a head 64 wide starts with 97% of its attention on the token itself.

    A decode cache holds theta alone: D numbers of a token, 4 D bytes in float32, half of softmax's.
    The features are computed anew from it for every new token.
    """

    Config: ClassVar[type[AttentionConfig]] = TorusConfig
    options: StepConfig
    has_phases = True
    off = Off({"coupling": 0.0}, "alone", decisive={"readout": "mean"})
    coupled_axis = "prefix"
    phase_error = 0.02
    lr_factors: ClassVar[Mapping[str, float]] = {
        "phase.weight": 1.0,
        "tau": 1.0,
        "oscillators.coupling": 1.0,
    }
    starts: ClassVar[Mapping[str, str]] = {
        "coupling": "oscillators.coupling",
        "theta_std": "phase.weight",
    }

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """The maps to phases and gates, tau and eta of every head, and the readout c_proj."""
        super().__init__(config, options, layer)
        o, D = self.options, config.n_embd
        self.rest = math.exp(-(o.theta_std**2) / 2)  # r
        self.moves = self._moves()
        self.phase = nn.Linear(D, D, bias=False)
        self.c_gate = nn.Linear(D, D, bias=config.bias)
        self.c_proj = nn.Linear(2 * D, D, bias=config.bias)
        self.tau = nn.Parameter(torch.zeros(config.n_head))
        self.oscillators = CoupledPhases(config.n_head, self.head_width)
        self.oscillators.couple(o.coupling * self.moves, o.learn_coupling and self.moves)
        self.resid_dropout = nn.Dropout(config.dropout)

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """W ~ N(0, theta_std^2 / D), tau, eta."""
        o = self.options
        std = o.theta_std * self.n_embd**-0.5
        nn.init.normal_(self.phase.weight, std=std, generator=generator("phase.weight"))
        nn.init.constant_(self.tau, 8 / self.head_width)
        nn.init.constant_(self.oscillators.coupling, o.coupling * self.moves)

    def _moves(self) -> bool:
        """Whether there is a step."""
        return getattr(self.options, "readout", "tangent") == "tangent"

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
            raise ConfigError("phases over a prefix have no R with a cache; call without one")
        gate = self._gate(x_BTD)
        again = return_phase == "coupling" and self.training and self.dropout > 0
        drawn = random_state(x_BTD) if again else None
        theta = self._integrate(x_BTD, self._advance(gate, cache), perturbation)
        read = lifted(theta.transpose(1, 2)) if self.moves else self._mean(theta, gate, cache)[1]
        cos, sin = read.chunk(2, dim=-1)
        read = torch.cat((cos - self.rest, sin), dim=-1)
        y_BTD = self.resid_dropout(self.c_proj(join_heads(read).to(x_BTD.dtype)))
        if return_phase == "coupling":
            with random_numbers_again(drawn, x_BTD):
                advance = self._advance(gate)
                theta = self._integrate(x_BTD, advance, perturbation, coupling_only=True)
        phase = Phase(theta, self.order_parameter(theta)) if return_phase else None
        return AttentionOutput(y_BTD, phase)

    def _integrate(
        self,
        x_BTD: Tensor,
        advance: Callable[..., Tensor],
        perturbation: Perturbation | None,
        *,
        coupling_only: bool = False,
    ) -> Tensor:
        """Phases after the step, [B,T,H,N]."""
        theta = self._initial_phases(x_BTD, coupling_only)
        return self.oscillators(advance, theta, self.oscillators.frequencies(), perturbation)

    def _initial_phases(self, x_BTD: Tensor, coupling_only: bool = False) -> Tensor:
        """theta = W x, [B,T,H,N]."""
        theta = projected_phases(self.phase, x_BTD, coupling_only)
        return theta.unflatten(-1, self.oscillators.shape)

    def _gate(self, x_BTD: Tensor) -> Tensor:
        """g of every query, [B,H,T,N], in the type that attention is to run in."""
        return split_heads(F.softplus(self.c_gate(x_BTD)), self.n_head)

    def _advance(self, gate_BHTN: Tensor, cache: LayerCache | None = None) -> Callable[..., Tensor]:
        """`advance(theta, steps)`; attention is computed anew for every step."""

        def advance(theta: Tensor, steps: int = 1) -> Tensor:
            for _ in range(steps if self.moves else 0):
                force_BTHN = self._force(theta, gate_BHTN, cache).transpose(1, 2)
                theta = theta + self.oscillators.coupling.unsqueeze(-1) * force_BTHN
            return theta

        return advance

    def _force(self, theta_BTHN: Tensor, gate_BHTN: Tensor, cache: LayerCache | None) -> Tensor:
        """F, [B,H,T,N]."""
        own, mean = self._mean(theta_BTHN, gate_BHTN, cache)
        (cos, sin), (x, y) = own.chunk(2, dim=-1), mean.chunk(2, dim=-1)
        return cos * y - sin * x

    def _mean(
        self, theta_BTHN: Tensor, gate_BHTN: Tensor, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """The tokens' own [cos theta, sin theta] and what they retrieve, [Re Z, Im Z]."""
        theta, every = self._remembered(theta_BTHN, cache)
        own = lifted(theta)
        all_ = own if cache is None else lifted(every)
        q, k = self._features(own, all_, gate_BHTN)
        mean = causal_attention(q, k, all_.to(q.dtype), scale=1.0, dropout=self._dropout)
        return own, mean.to(own.dtype)

    def _remembered(self, theta_BTHN: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """The tokens' phases and those of all tokens so far, [B,H,T,N]."""
        theta_BHTN = theta_BTHN.transpose(1, 2)
        if cache is None:
            return theta_BHTN, theta_BHTN
        cache.over_prefix = True
        return theta_BHTN, cache.append(theta_BHTN)

    def _features(self, own: Tensor, every: Tensor, gate_BHTN: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of the last tokens and keys of all, whose products are the scores s.

        own[B,H,Tq,2N], every[B,H,Tk,2N] are [cos, sin]. They are rotated by t nu in float32 before
        they are rounded to the type of the gates.
        """
        q, k = own, every
        if self.rope:
            time, N = every.shape[2], self.head_width
            angles = rotary_angles(0, time, N, every.device, self.rope_theta)
            k = rotate(every, angles)
            q = k if own is every else rotate(own, angles[time - own.shape[2] :])
        weight = self.tau.view(-1, 1, 1).to(q.dtype) * gate_BHTN.to(q.dtype)
        q = q * torch.cat((weight, weight), dim=-1)
        return q.to(gate_BHTN.dtype), k.to(gate_BHTN.dtype)

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each channel, all tokens alike, [B,T,H,N]."""
        return prefix_order_parameter(theta_BTHN)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; queries, keys and values are 2N wide, twice softmax's."""
        return Flops.of(linear_flops(self), 8.0 * self.n_embd, time, 21.0 * self.n_embd)

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory:
        """See Attention.trajectory; one step, whose phases are without drift."""
        theta0, oscillators = self._initial_phases(x_BTD), self.oscillators
        path = oscillators.path(self._advance(self._gate(x_BTD)), theta0)
        R = torch.stack([self.order_parameter(theta) for theta in path], dim=-1)
        found = (theta0, path[-1], R, oscillators.frequencies(), oscillators.coupling)
        return Trajectory(
            *found, oscillators.dt, self.order_parameter, path if return_path else None
        )


def lifted(theta_BHTN: Tensor) -> Tensor:
    """[cos theta, sin theta], [B,H,T,2N]."""
    return torch.cat((theta_BHTN.cos(), theta_BHTN.sin()), dim=-1)
