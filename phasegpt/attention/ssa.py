"""`ssa`: tokens attend to those whose frequency is near enough to lock to theirs (Adler).

    omega = W_w x, d_w numbers a head;  dw_tu^2 = s^2 |omega_t - omega_u|^2 / (2 d_w)
    J_tu = exp(-alpha dw_tu^2)                                like frequencies couple strongly
    r_t  = mean over the channels of a head of |(1/t) sum_{u <= t} exp(i theta_u)|,  theta = W_th x
    locked where dw_tu <= K r_t J_tu, and always to itself
    A_tu ~ J_tu sqrt(1 - (dw_tu / (K r_t J_tu))^2) if locked, else 0;   y = W_o (A v), u <= t

Two oscillators that differ by dw lock if the coupling is as strong, at the lag asin(dw / coupling);
the root is the cosine of that lag. The steady state is used, nothing is integrated: the phases act
through their order parameter alone.

Shapes: B batch, T queries, U keys, D model width, H heads, E head width, d = d_w, N phases of a
head, C = H N channels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from phasegpt.attention._functional import join_heads, rotary_angles, rotate, split_heads
from phasegpt.attention._kernels import causal, check_table, mixed, normalized
from phasegpt.attention._oscillators import CoupledPhases, projected_phases
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option, shown
from phasegpt.phase import prefix_order_parameter
from phasegpt.phase.order import cumulative_sum
from phasegpt.phase.polar import modulus
from phasegpt.phase.steering import Perturbation

#: dw / (K r J) beyond which the root stays as it is: its slope diverges where pairs unlock.
EDGE = 1 - 1e-4
#: Share of pairs that lock at the start, below which the layer is called dead: one in a thousand.
FEW = 1e-3


@dataclass(frozen=True, kw_only=True)
class SsaConfig(AttentionConfig):
    """Options of `ssa` (Hays, arXiv 2602.14445). 1.3133 is softplus(1), as published."""

    frequency_dim: int | None = option(
        2, "d_w, frequencies of a head; null: the width of a head, as published", ge=1, le=65_536
    )
    scale: float | None = option(
        0.7, "s of the distance; null: sqrt(2 d_w), which leaves it as it is, as published",
        gt=0, le=1e6,
    )  # fmt: skip
    init: Literal["spread", "gpt2"] = option(
        "spread", "frequencies of variance 1, phases of theta_std; or weights of 0.02, as published"
    )
    theta_std: float = option(
        0.5, "standard deviation of the phases at the start, radians", gt=0, le=1e3
    )
    bandwidth: float = option(
        1.3133, "alpha, how fast coupling falls with the distance, at the start", gt=0, le=1000
    )
    coupling: float = option(
        1.3133, "K: a pair locks up to a distance of K r J; the start of every head's", gt=0, le=1e5
    )
    learn_coupling: bool = option(True, "false: K stays as it is")
    locking: bool = option(
        True, "false: the off control A ~ J, without phases, K and the factor of locking"
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.locking, "locking", "theta_std", "coupling", "learn_coupling")
        self.refuse_idle(self.init == "spread", "init", "theta_std")


class _Phases(CoupledPhases):
    """theta = W_th x, and K: what the order parameter of the prefix is made of."""

    def __init__(self, width: int, heads: int, oscillators: int, options: SsaConfig) -> None:
        super().__init__(heads, oscillators, steps=0)
        self.phase = nn.Linear(width, heads * oscillators, bias=False)
        self.couple(options.coupling, options.learn_coupling)


class Ssa(Attention):
    """Selective synchronisation attention, causal and alive.

    Source: Hays, arXiv 2602.14445, whose code neither masks the future nor trains: see
    `ssa_as_published`. The paper's: J, r, the locking condition, alpha and K through the start
    1.3133. Ours: the prefix in place of all tokens in r and in A, few frequencies of variance 1
    (d_w, s), a K for every head, no biases in W_w and W_th (they cancel in every difference, and in
    r), the clamp at EDGE, no top-k, GPT-2's values and projection.

    With rotary positions the frequencies turn, so that distances depend on t - u: the H d_w / 2
    planes of a layer share one ladder of rotary frequencies, from 1 in head 0 downwards.
    Decoding remembers v and omega, C + H d_w numbers a token or 4 (C + H d_w) bytes of float32, and
    3 C running sums. Tables [B,H,T,T] are held, several in training: phasegpt.attention._kernels.
    """

    Config: ClassVar[type[AttentionConfig]] = SsaConfig
    options: SsaConfig
    has_phases = True
    off = Off({"locking": False}, "own")
    coupled_axis = "prefix"
    lr_factors: ClassVar[Mapping[str, float]] = {
        "frequency.weight": 1.0,
        "bandwidth": 1.0,
        "oscillators.phase.weight": 1.0,
        "oscillators.coupling": 1.0,
    }
    starts: ClassVar[Mapping[str, str]] = {
        "init": "frequency.weight",
        "theta_std": "oscillators.phase.weight",
        "bandwidth": "bandwidth",
        "coupling": "oscillators.coupling",
    }

    def __init__(self, config: LayerShape, options: SsaConfig, layer: int) -> None:
        """Values `c_v`, projection `c_proj`, `frequency`, `bandwidth` [H] and the phases."""
        super().__init__(config, options, layer)
        H, C = config.n_head, config.n_embd
        self.d_w = options.frequency_dim or self.head_width
        if self.rope and self.d_w % 2:
            raise ConfigError(
                f"model.positions=rope turns pairs of frequencies; attention.frequency_dim is "
                f"{self.d_w} and must be even"
            )
        s_squared = 2 * self.d_w if options.scale is None else options.scale**2
        self.unit = s_squared / (2 * self.d_w)
        self.c_v = nn.Linear(C, C, bias=config.bias)
        self.c_proj = nn.Linear(C, C, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.frequency = nn.Linear(C, H * self.d_w, bias=False)
        self.bandwidth = nn.Parameter(torch.zeros(H))  # alpha is its softplus
        self.has_phases = self.phased(options)
        share = self._locked_at_start()
        if not self.dead and share < FEW:
            warnings.warn(
                f"with attention.scale={shown(options.scale)}, bandwidth={options.bandwidth:g} and "
                f"coupling={options.coupling:g} a share of {share:.1g} of all pairs of tokens can "
                f"lock at the start: every token attends to itself alone, and nothing learns; "
                f"lower the scale or the bandwidth, or raise the coupling",
                stacklevel=2,
            )
        if options.locking:
            self.oscillators = _Phases(C, H, self.head_width, options)

    def _locked_at_start(self) -> float:
        """Share of pairs within the largest distance that locks, x = K exp(-alpha x^2), at r = 1.

        |omega_t - omega_u|^2 is twice the variance of omega times chi squared of d_w.
        """
        o = self.options
        if not o.locking:
            return 1.0
        low, high = 0.0, o.coupling
        for _ in range(60):  # x - K exp(-alpha x^2) grows with x
            x = (low + high) / 2
            low, high = (low, x) if x > o.coupling * math.exp(-o.bandwidth * x * x) else (x, high)
        variance = 1.0 if o.init == "spread" else 0.02**2 * self.n_embd
        nearer = [self.d_w / 2, low**2 / (4 * self.unit * variance)]
        a, z = torch.tensor(nearer, dtype=torch.float64, device="cpu")
        return torch.special.gammainc(a, z).item()

    @classmethod
    def phased(cls, options: Any) -> bool:
        """See Attention.phased: the off control has none."""
        return bool(options.locking)

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """W_w ~ N(0, 1/C) and W_th ~ N(0, theta_std^2 / C), or GPT-2's 0.02; alpha and K."""
        o = self.options
        nn.init.constant_(self.bandwidth, o.bandwidth + math.log(-math.expm1(-o.bandwidth)))
        if o.init == "spread":
            _draw(self.frequency, 1.0, generator("frequency"))
        if not o.locking:
            return
        nn.init.constant_(self.oscillators.coupling, o.coupling)
        if o.init == "spread":
            _draw(self.oscillators.phase, o.theta_std, generator("phase"))

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
            raise ConfigError("ssa has no prefix R with a cache; call without one")
        v_BHUE = split_heads(self.c_v(x_BTD), self.n_head)
        omega_BHTd = self._frequencies(x_BTD, 0 if cache is None else cache.length)
        theta = R = r_BHT = None
        if self.has_phases:
            theta = self._phases(x_BTD)
            R = self.order_parameter(theta) if cache is None else self._continued(theta, cache)
            r_BHT = R.mean(-1).transpose(1, 2)
        omega_BHUd = omega_BHTd
        if cache is not None:
            omega_BHUd, v_BHUE = cache.update(omega_BHTd, v_BHUE)
        T, U = omega_BHTd.shape[2], omega_BHUd.shape[2]
        check_table("ssa", x_BTD.shape[0], self.n_head, T, U, x_BTD)
        seen_TU = causal(T, U, x_BTD.device)
        with torch.autocast(x_BTD.device.type, enabled=False):
            log_kernel = self.log_kernel(omega_BHTd, omega_BHUd, r_BHT, seen_TU.triu(U - T))
            A_BHTU = normalized(log_kernel, seen_TU)
        y = mixed(A_BHTU, v_BHUE, self.dropout if self.training else 0.0)
        y = self.resid_dropout(self.c_proj(join_heads(y)))
        if return_phase == "coupling" and self.has_phases:
            theta = self._phases(x_BTD, coupling_only=True)
            R = self.order_parameter(theta)
        if return_phase and theta is not None and R is not None:
            return AttentionOutput(y, Phase(theta, R))
        return AttentionOutput(y)

    def log_kernel(
        self, omega_BHTd: Tensor, omega_BHUd: Tensor, r_BHT: Tensor | None, own: Tensor
    ) -> Tensor:
        """log of J sqrt(1 - (dw / (K r J))^2), -inf where a pair is not locked, [B,H,T,U].

        `own`, bool broadcastable to it: where key and query are one token. r None: log J.
        """
        alpha_H11 = F.softplus(self.bandwidth.to(omega_BHTd.dtype)).view(-1, 1, 1)
        unit = (alpha_H11 * self.unit).sqrt()  # so that J = exp(-distance^2)
        square = _square_distances(unit * omega_BHTd, unit * omega_BHUd)
        log_J = -square.masked_fill(own, 0.0)  # what is left on it is rounding
        if r_BHT is None:
            return log_J
        # (dw / (K r J))^2, of K and -K alike. Pairs are unlocked long before the exponent is cut,
        # or the pull is held up: both are against overflow, here and in the gradient.
        pull = self.oscillators.coupling.to(log_J.dtype).view(-1, 1) * r_BHT
        pull = (alpha_H11 * pull[..., None].square()).clamp(
            min=torch.finfo(log_J.dtype).tiny ** 0.5
        )
        ratio = log_J * (-2 * log_J).clamp(max=30.0).exp() * -(1 / pull)
        strength = torch.log1p(-ratio.clamp(max=EDGE**2))
        return torch.add(log_J, strength, alpha=0.5).masked_fill(ratio > 1, -torch.inf)

    def _frequencies(self, x_BTD: Tensor, start: int) -> Tensor:
        """omega, [B,H,T,d] in float32 at least, turned when positions are rotary."""
        omega = split_heads(projected_phases(self.frequency, x_BTD), self.n_head)
        if not self.rope:
            return omega
        (_, H, T, d), device = omega.shape, x_BTD.device
        angles = rotary_angles(start, T, H * d // 2, device, self.rope_theta)
        return rotate(omega, angles.view(T, H, d // 2).transpose(0, 1))

    def _phases(self, x_BTD: Tensor, coupling_only: bool = False) -> Tensor:
        """theta, [B,T,H,N] in float32 at least; for `coupling_only` see ReturnPhase."""
        oscillators = self.oscillators
        theta = projected_phases(oscillators.phase, x_BTD, coupling_only)
        theta = theta.unflatten(-1, oscillators.shape)
        return oscillators(lambda theta, steps=0: theta, theta, oscillators.frequencies())

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each channel, [B,T,H,N]; r is its mean over the channels."""
        return prefix_order_parameter(theta_BTHN)

    def _continued(self, theta_BTHN: Tensor, cache: LayerCache) -> Tensor:
        """The same, of tokens behind those that the cache has seen; it adds them."""
        theta_BTC = theta_BTHN.flatten(2)
        cos, sin = (cumulative_sum(f(theta_BTC), 1) for f in (torch.cos, torch.sin))
        count = torch.arange(1, theta_BTC.shape[1] + 1, device=cos.device, dtype=cos.dtype)
        count = count + cache.length
        if cache.state is not None:
            cos = cos + cache.state.cos_SBC[0, :, None]
            sin = sin + cache.state.sin_SBC[0, :, None]
        weight_C = count[-1].expand(theta_BTC.shape[2])
        cache.state = ops.ScanState(cos[None, :, -1], sin[None, :, -1], weight_C)
        cache.oscillators = theta_BTHN.shape[3]
        return (modulus(cos, sin) / count[:, None]).view_as(theta_BTHN)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; distances and values."""
        H, d = self.n_head, self.d_w
        elementwise = 20.0 * H * time + 6.0 * self.n_embd
        return Flops.of(linear_flops(self), 2.0 * H * (d + 2 + self.head_width), time, elementwise)

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory | None:
        """See Attention.trajectory: of no steps, since nothing moves the phases."""
        if not self.has_phases:
            return None
        theta, oscillators = self._phases(x_BTD), self.oscillators
        R, omega = self.order_parameter(theta)[..., None], oscillators.frequencies()
        found = (theta, theta, R, omega, oscillators.coupling, oscillators.dt)
        return Trajectory(*found, self.order_parameter, theta[None] if return_path else None)


def _square_distances(a_BHTd: Tensor, b_BHUd: Tensor) -> Tensor:
    """|a_t - b_u|^2 as one product, [B,H,T,U]."""
    one = a_BHTd.new_ones(())
    a2, b2 = a_BHTd.square().sum(-1, keepdim=True), b_BHUd.square().sum(-1, keepdim=True)
    left = torch.cat((-2 * a_BHTd, a2, one.expand_as(a2)), -1)
    right = torch.cat((b_BHUd, one.expand_as(b2), b2), -1)
    return (left @ right.transpose(-2, -1)).clamp(min=0)


def _draw(linear: nn.Linear, std: float, generator: torch.Generator) -> None:
    """Weights that give features of standard deviation `std` at any width."""
    nn.init.normal_(linear.weight, std=std / linear.in_features**0.5, generator=generator)
