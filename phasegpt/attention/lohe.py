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
    random_numbers_again,
    random_state,
    rotary,
    split_heads,
    turn,
    unit,
)
from phasegpt.attention._oscillators import CoupledPhases, projected_phases
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
    starts: ClassVar[Mapping[str, str]] = {"omega": "omega"}

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
        self.oscillators: CoupledPhases | None = None
        if self.has_phases:
            steps, dt = self.options.steps, self.options.gamma
            self.oscillators = CoupledPhases(self.n_head, D // n // self.n_head, steps=steps, dt=dt)
            self.oscillators.couple(1.0, learn=False)
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
        again = return_phase == "coupling" and self.training and self.dropout > 0
        drawn = random_state(x_BTD) if again else None
        x, theta = self._settled(x_BTD, cache), None
        if self.has_phases:
            theta, x = x, _points(x)
        if cache is not None:
            cache.length += x_BTD.shape[1]
        read = self.c_read(x.flatten(2).to(x_BTD.dtype))
        norms = torch.linalg.vector_norm(read.unflatten(-1, (-1, READ)), dim=-1)
        y_BTD = self.resid_dropout(self.c_proj(norms))
        if return_phase == "coupling" and theta is not None:
            with random_numbers_again(drawn, x_BTD):
                theta = self._settled(x_BTD, coupling_only=True)
        if not return_phase or theta is None:
            return AttentionOutput(y_BTD)
        return AttentionOutput(y_BTD, Phase(theta, self.order_parameter(theta)))

    def _settled(
        self, x_BTD: Tensor, cache: LayerCache | None = None, *, coupling_only: bool = False
    ) -> Tensor:
        """x after S steps, [B,T,G,n], or its phases, [B,T,H,N]."""
        start, advance = self.dynamics(x_BTD, cache, coupling_only=coupling_only)
        if self.oscillators is None:
            return advance(start, self.options.steps)
        return self.oscillators(advance, start, self.oscillators.frequencies())

    def dynamics(
        self,
        x_BTD: Tensor,
        cache: LayerCache | None = None,
        *,
        coupling_only: bool = False,
        coupled: bool = True,
    ) -> tuple[Tensor, Callable[..., Tensor]]:
        """Where x begins, and `advance(x, steps)`: points [B,T,G,n], or phases [B,T,H,N].

        `coupling_only`: see ReturnPhase; the values are the same, and no gradient reaches omega, a
        turn that the tokens have in common at the start, or the token mean of the drive. Without
        `coupled` each token follows its own drive.
        """
        device, dtype = x_BTD.device.type, torch.promote_types(x_BTD.dtype, torch.float32)
        lower = torch.is_autocast_enabled(device) and not self.has_phases
        omega = None if self.omega is None else self.omega.abs().to(dtype)
        drive = x_BTD.to(dtype).unflatten(-1, (-1, self.options.group))
        start = projected_phases(self.c_start, x_BTD).view_as(drive)
        if coupling_only:
            omega = None if omega is None else omega.detach()
            drive = _without_mean(drive)

        def step(x: Tensor, at: int) -> Tensor:
            part = None if cache is None else cache.child(f"step{at}")
            y = drive
            if coupled:
                with torch.autocast(device, enabled=lower):
                    pull = self._coupling(x.flatten(2).to(x_BTD.dtype), part)
                y = y + pull.to(dtype).view_as(x)
            with torch.autocast(device, enabled=False):
                return advance_points(x, y, omega, self.options.gamma)

        def points(x: Tensor, steps: int = 1) -> Tensor:
            for at in range(steps):
                x = step(x, at)
            return x

        def phases(theta: Tensor, steps: int = 1) -> Tensor:
            x = _points(theta)
            for at in range(steps):
                old, x = x, step(x, at)
                theta = theta + _turn(old, x).view_as(theta)
            return theta

        if not self.has_phases:
            return unit(start), points
        a, b = start.unbind(-1)
        theta = torch.atan2(b, a).unflatten(-1, (self.n_head, -1))
        return _without_mean(theta) if coupling_only else theta, phases

    def _coupling(self, x_BTD: Tensor, cache: LayerCache | None) -> Tensor:
        """W_j MHA(x), [B,T,D], over the tokens so far."""
        q, k, v = (split_heads(z, self.n_head) for z in self.c_couple(x_BTD).chunk(3, dim=-1))
        if self.rope:
            start, time = cache.length if cache is not None else 0, x_BTD.shape[1]
            waves = rotary(start, time, self.head_width // 2, q, self.rope_theta)
            q, k = turn(q, *waves), turn(k, *waves)
        if cache is not None:
            k, v = cache.update(k, v)
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, scale=self.head_width**-0.5, dropout=dropout)
        if self.oscillators is not None:  # what the tools that look at coupling may change
            y = y * self.oscillators.coupling.to(y.dtype).view(-1, 1, 1)
        return self.c_join(join_heads(y))

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each oscillator, [B,T,H,N]."""
        return prefix_order_parameter(theta_BTHN)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; every step projects and attends anew."""
        S, square = self.options.steps, 2.0 * self.n_embd**2
        weights = square * (2 + READ + 4 * S)
        return Flops.of(weights, 4.0 * self.n_embd * S, time, self.n_embd * (6 + 14 * S))

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory | None:
        """See Attention.trajectory; None where n is not 2.

        R is over the prefix of each oscillator, all weighing the same: the field that pulls, y, is
        of attention and the drive, and has no R of its own. K is 1, dt gamma, and omega what a lone
        oscillator turns in a step, atan(gamma omega), over gamma. Without coupling the drive
        still pulls.
        """
        if self.oscillators is None:
            return None
        start, advance = self.dynamics(x_BTD)
        path, gamma = self.oscillators.path(advance, start), self.options.gamma
        alone = self.dynamics(x_BTD, coupled=False)[1]
        omega = path.new_zeros(self.oscillators.shape)
        if self.omega is not None:
            omega = (gamma * self.omega.abs()).atan().div(gamma).view_as(omega)
        return Trajectory(
            start,
            path[-1],
            torch.stack([self.order_parameter(theta) for theta in path], dim=-1),
            omega,
            self.oscillators.coupling,
            gamma,
            self.order_parameter,
            path=path if return_path else None,
            free=self.oscillators.path(alone, start),
        )


def advance_points(x: Tensor, y: Tensor, omega_P: Tensor | None, gamma: float) -> Tensor:
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


def _points(theta_BTHN: Tensor) -> Tensor:
    """Phases as points on circles, [B,T,G,2]."""
    return torch.stack((theta_BTHN.cos(), theta_BTHN.sin()), dim=-1).flatten(2, 3)


def _turn(old_BTG2: Tensor, new_BTG2: Tensor) -> Tensor:
    """The angle from points on circles to others, [B,T,G]."""
    (a, b), (c, d) = old_BTG2.unbind(-1), new_BTG2.unbind(-1)
    return torch.atan2(a * d - b * c, a * c + b * d)


def _without_mean(x: Tensor) -> Tensor:
    """x [B,T,...] as it is, without the gradient of its token mean."""
    mean = x.mean(1, keepdim=True)
    return x - (mean - mean.detach())
