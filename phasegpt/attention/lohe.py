"""`lohe`: tokens as points on spheres that turn towards what they attend to (AKOrN, causal).

    x^0 = Pi(W_0 h);  S times:  y = W_j MHA(x) + h,  x <- Pi(x + gamma (Omega x + y - <y, x> x));
    output = W_o m,  m_k = |U_k x|

h is the layer's input, LN of the stream. Pi puts each group of n numbers on its unit sphere, so a
token is C/n oscillators. n = 4 is AKOrN's, n = 2 Kuramoto's (x = (cos theta, sin theta)), n = E, a
head's width, attention as a flow on one sphere a head. MHA is causal softmax attention on x itself,
anew in every step with the same weights.

Shapes: B batch, T time, D model width, H heads, E head width, G oscillators of a token, n numbers
of one, N oscillators of a head, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

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
)
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import (
    causal_attention,
    join_heads,
    rotary_angles,
    rotate,
    split_heads,
)
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, option
from phasegpt.phase import prefix_order_parameter
from phasegpt.phase.steering import Perturbation

READ = 2  # numbers behind each output of the readout


@dataclass(frozen=True, kw_only=True)
class LoheConfig(AttentionConfig):
    """Options of `lohe` (AKOrN: Miyato et al., arXiv 2410.13821; spheres: Lohe 2009)."""

    group: int = option(
        4, "n, numbers of an oscillator, even: 2 is a phase, the head width a sphere a head", ge=2
    )
    steps: int = option(
        4, "S, an attention over x each, with shared weights; 0: no token sees another", ge=0,
        le=1000,
    )  # fmt: skip
    gamma: float = option(1.0, "length of a step, time", gt=0, le=1000)
    omega: float = option(
        0.5, "turn of every pair of numbers at the start, radians per time, learned; 0: none",
        ge=0, le=1e6,
    )  # fmt: skip

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.steps > 0, "steps", "gamma", "omega")


class Lohe(Attention):
    """Oscillators on spheres, coupled over the prefix by attention, driven by the token itself.

    Source: Miyato et al., Artificial Kuramoto Oscillatory Neurons, arXiv 2410.13821: the update,
    J as attention on x, the drive, the readout by norms, groups of 4, gamma = 1. Ours: that it is
    causal, x^0 of the token and not of noise, S = 4, omega = 0.5 for every pair (their Sudoku
    command's value), omega = |parameter|, no bias within the steps, rotary positions on q and k
    alone, and the initial scale of the weights. Their code turns pairs the other way, which is a
    matter of naming, and without omega adds x itself.

    S = 1 tells depth from coupling. S may be another one than in training. A decode cache holds
    keys and values of every step: S x 2 D numbers a token, 8 S D bytes of float32.

    With n = 2 the layer has phases theta = atan2(x_2, x_1), and one step is exactly
    theta <- theta + atan(gamma (omega + |y| sin(psi - theta))), psi the angle of y. Its R is over
    the prefix of an oscillator. State and update are float32 at least; where there are phases the
    coupling is too, whatever the autocast.
    """

    Config = LoheConfig
    options: LoheConfig
    off = Off({"steps": 0}, "alone")
    coupled_axis = "prefix"
    lr_factors: ClassVar[Mapping[str, float]] = {"omega": 1.0}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """c_start W_0 [D,D], c_couple q, k, v of x [3D,D], c_join W_j, c_read U [2D,D], c_proj."""
        super().__init__(config, options, layer)
        D, n = config.n_embd, self.options.group
        if n % 2 or D % n or self.head_width % 2:
            raise ConfigError(
                f"attention.group={n} must be even and divide model.n_embd={D}, and heads of "
                f"{self.head_width} numbers must hold pairs; take group=4, or 2 for phases"
            )
        self.has_phases = self.phased(options)
        self.c_start = nn.Linear(D, D, bias=False)
        self.c_couple = nn.Linear(D, 3 * D, bias=False)
        self.c_join = nn.Linear(D, D, bias=False)
        self.omega = nn.Parameter(torch.zeros(D // 2)) if self.options.omega else None
        self.c_read = nn.Linear(D, READ * D, bias=config.bias)
        self.c_proj = nn.Linear(D, D, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    @classmethod
    def phased(cls, options: Section) -> bool:
        """See Attention.phased: points on circles have phases."""
        assert isinstance(options, LoheConfig)
        return options.group == 2

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """omega, and every map of oscillators N(0, 1/D), so that the width changes no size."""
        for name in ("c_start", "c_couple", "c_join", "c_read"):
            weight = getattr(self, name).weight
            nn.init.normal_(weight, std=self.n_embd**-0.5, generator=generator(f"{name}.weight"))
        if self.omega is not None:
            nn.init.constant_(self.omega, self.options.omega)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward; `phase.R` is over the prefix of each oscillator, [B,T,H,N]."""
        if return_phase and self.has_phases and cache is not None:
            raise ConfigError("lohe has no prefix R with a cache; call without one")
        path = self.states(x_BTD, cache)
        if cache is not None:
            cache.length += x_BTD.shape[1]
        read = self.c_read(path[-1].flatten(2).to(x_BTD.dtype))
        norms = torch.linalg.vector_norm(read.unflatten(-1, (-1, READ)), dim=-1)
        y_BTD = self.resid_dropout(self.c_proj(norms))
        if not (return_phase and self.has_phases):
            return AttentionOutput(y_BTD)
        if return_phase == "coupling":
            path = self.states(x_BTD, None, coupling_only=True)
        theta = self._angles(path)[-1]
        return AttentionOutput(y_BTD, Phase(theta, self.order_parameter(theta)))

    def states(
        self, x_BTD: Tensor, cache: LayerCache | None = None, *, coupling_only: bool = False
    ) -> list[Tensor]:
        """x before every step and after the last, S + 1 of [B,T,G,n].

        `coupling_only`: see ReturnPhase; the values are the same, and no gradient reaches omega, a
        turn that the tokens have in common at the start, or the token mean of the drive.
        """
        device, dtype = x_BTD.device.type, torch.promote_types(x_BTD.dtype, torch.float32)
        omega = None if self.omega is None else self.omega.abs().to(dtype)
        lower = torch.is_autocast_enabled(device) and not self.has_phases
        with torch.autocast(device, enabled=False):
            drive = x_BTD.to(dtype).unflatten(-1, (-1, self.options.group))
            start = F.linear(x_BTD.to(dtype), self.c_start.weight.to(dtype))
            x = F.normalize(start.view_as(drive), dim=-1)
            if coupling_only:
                omega = None if omega is None else omega.detach()
                mean = drive.mean(1, keepdim=True)
                x, drive = _unturned(x), drive - (mean - mean.detach())
            path = [x]
            for step in range(self.options.steps):
                part = None if cache is None else cache.child(f"step{step}")
                with torch.autocast(device, enabled=lower):
                    y = self._coupling(x.flatten(2).to(x_BTD.dtype), part)
                x = advance(x, y.to(dtype).view_as(x) + drive, omega, self.options.gamma)
                path.append(x)
        return path

    def _coupling(self, x_BTD: Tensor, cache: LayerCache | None) -> Tensor:
        """W_j MHA(x), [B,T,D], over the tokens so far."""
        q, k, v = (split_heads(z, self.n_head) for z in self.c_couple(x_BTD).chunk(3, dim=-1))
        if self.rope:
            start, time = cache.length if cache is not None else 0, x_BTD.shape[1]
            pairs = self.head_width // 2
            angles = rotary_angles(start, time, pairs, x_BTD.device, self.rope_theta)
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.update(k, v)
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, scale=self.head_width**-0.5, dropout=dropout)
        return self.c_join(join_heads(y))

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each oscillator, [B,T,H,N]."""
        return prefix_order_parameter(theta_BTHN)

    def _angles(self, path: list[Tensor]) -> Tensor:
        """Phases along a path of points on circles, radians, not wrapped, [S+1,B,T,H,N]."""
        x_SBTG, y_SBTG = torch.stack(path).unbind(-1)
        (a, c), (b, d) = ((z[:-1], z[1:]) for z in (x_SBTG, y_SBTG))
        turn = torch.atan2(a * d - b * c, a * c + b * d)  # from each point to the next
        first = torch.atan2(y_SBTG[:1], x_SBTG[:1])
        return torch.cat((first, first + turn.cumsum(0))).unflatten(-1, (self.n_head, -1))

    def flops(self, time: int) -> Flops:
        """See Attention.flops; every step projects and attends anew."""
        S, square = self.options.steps, 2.0 * self.n_embd**2
        weights = square * (2 + READ + 4 * S)
        return Flops.of(weights, 4.0 * self.n_embd * S, time, self.n_embd * (6 + 14 * S))

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory | None:
        """See Attention.trajectory; None where n is not 2.

        R is over the prefix of each oscillator, all weighing the same: the field that pulls, y, is
        of attention and the drive, and has no R of its own. K is 1, dt gamma, and omega what a lone
        oscillator turns in a step, atan(gamma omega), over gamma.
        """
        if not self.has_phases:
            return None
        gamma, path = self.options.gamma, self._angles(self.states(x_BTD))
        omega = path.new_zeros(self.n_embd // 2) if self.omega is None else self.omega.abs()
        omega = (gamma * omega).atan().div(gamma).unflatten(0, (self.n_head, -1))
        R = torch.stack([self.order_parameter(theta) for theta in path], dim=-1)
        return Trajectory(
            path[0],
            path[-1],
            R,
            omega,
            coupling=omega.new_ones(self.n_head),
            dt=gamma,
            order_parameter=self.order_parameter,
            path=path if return_path else None,
        )


def advance(x: Tensor, y: Tensor, omega_P: Tensor | None, gamma: float) -> Tensor:
    """One step of unit vectors x [...,G,n] towards y: Pi(x + gamma (Omega x + y - <y,x> x)).

    Omega turns each pair of numbers, (a, b) to omega (-b, a); omega_P [G n/2], None for 0. What is
    added is tangent to the sphere, so the length before Pi is at least 1.
    """
    tangent = y - (y * x).sum(-1, keepdim=True) * x
    if omega_P is not None:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        omega = omega_P.view(a.shape[-2:])
        tangent = tangent + torch.stack((-omega * b, omega * a), dim=-1).flatten(-2)
    return F.normalize(x + gamma * tangent, dim=-1)


def _unturned(x_BTG2: Tensor) -> Tensor:
    """Points on circles as they are, without the gradient of a turn common to all tokens."""
    a, b = x_BTG2.unbind(-1)
    common = torch.atan2(b, a).mean(1, keepdim=True)
    back = common.detach() - common  # 0, with a gradient
    cos, sin = back.cos(), back.sin()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
