"""`kope`: softmax attention that rotates by phases, which a coupling carries from layer to layer.

The phases begin as RoPE's angles. A layer mixes them within each head and turns queries, keys and
values by them; after its block every token's phases are pulled towards those of the tokens before,
and the next layer of the mechanism gets them:

    z_tk = c_tk + i s_tk, |z| = 1, at first exp(i t theta^(-2k/E))
    layer:    z~ = z M_l, renormalised pair by pair;  q, k, v turned by z~, the output turned back
    coupling: P_t = sum_{u <= t} B_tu z_u,  B = softmax(rms(W_q x) scale . rms(W_k x) / sqrt(E))
              z <- normalise(z + gamma (P - <P, z> z))

The step is Kuramoto's: P - <P, z> z = F i z with F_t = sum_u B_tu sin(phi_u - phi_t), so that a
phase turns by arctan(gamma F). Source: Xiao et al., arXiv 2604.07904, for images. Ours: the causal
mask, RoPE's angles in one dimension with model.rope_theta, the coupling's dropout as the layer's.

Shapes: B batch, T time, D model width, H heads, E head width, N = E/2 phases of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.attention import (
    AttentionConfig,
    AttentionOutput,
    Flops,
    LayerShape,
    Link,
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
    rotary_angles,
    split_heads,
    turn,
)
from phasegpt.attention.softmax import Softmax
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import option
from phasegpt.phase import prefix_order_parameter
from phasegpt.phase.steering import Perturbation

_FLOOR = 1e-5  # of c^2 + s^2 where mixed phases are renormalised, and of a length after a step


@dataclass(frozen=True, kw_only=True)
class KopeConfig(AttentionConfig):
    """Options of `kope` (Xiao et al., arXiv 2604.07904)."""

    gamma: float = option(
        0.05, "step of the coupling between layers, radians at most; 0: phases stay RoPE's",
        ge=-1, le=1,
    )  # fmt: skip
    learn_gamma: bool = option(False, "true: gamma, one number for all layers, is learned")
    mix: bool = option(True, "a matrix per head and layer mixes the phases that it rotates by")
    rotate_values: bool = option(
        True, "values are rotated too, and the output back; false: queries and keys alone"
    )


class Coupling(Link):
    """Phases pulled towards those of the tokens before, by attention of its own; see the module.

    One for all layers: 2 D^2 weights. A decoder remembers rms(W_k x) and (c, s) of every token in
    every layer but the last one, 2 D numbers. Attention runs in the type of autocast, the step in
    float32 at least.
    """

    lr_factors: ClassVar[Mapping[str, float]] = {"scale": 1.0, "gamma": 1.0}

    def __init__(self, config: LayerShape, options: KopeConfig) -> None:
        """W_q and W_k as one map, the scale of rms(W_q x), gamma."""
        super().__init__(config, options)
        self.options, self.dropout = options, config.dropout
        H, E = config.n_head, config.n_embd // config.n_head
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd, bias=config.bias)
        self.scale = nn.Parameter(torch.ones(H, E))
        gamma = torch.tensor(options.gamma)
        if options.learn_gamma:
            self.gamma = nn.Parameter(gamma)
        else:
            self.register_buffer("gamma", gamma)

    def reset(self, generator: Callable[[str], torch.Generator]) -> None:
        """See Link.reset; scale = 1, gamma as its option; W by GPT-2's rule."""
        nn.init.ones_(self.scale)
        nn.init.constant_(self.gamma, self.options.gamma)

    def forward(self, x_BTD: Tensor, carry: Tensor, *, cache: LayerCache | None = None) -> Tensor:
        """The phases after the step, (c, s) as [B,T,H,2N]."""
        z = carry.transpose(1, 2)  # [B,H,T,2N]
        return _step(z, self.pull(x_BTD, z, cache), self.gamma).transpose(1, 2)

    def pull(self, x_BTD: Tensor, z_BHTE: Tensor, cache: LayerCache | None = None) -> Tensor:
        """P, the attention's mean of (c, s), [B,H,T,2N]."""
        H, E = self.scale.shape
        parts = self.c_attn(x_BTD).chunk(2, dim=-1)
        dtype = torch.promote_types(parts[0].dtype, torch.float32)
        q, k = (F.rms_norm(split_heads(p, H).to(dtype), (E,)) for p in parts)
        q = q * self.scale.unsqueeze(1)
        q, k, z = (tensor.to(parts[0].dtype) for tensor in (q, k, z_BHTE))
        if cache is not None:
            cache.oscillators, cache.over_prefix = E // 2, True
            kept = cache.update(torch.cat((k, z), dim=-1))[0]
            k, z = kept.split(E, dim=-1)
        dropout = self.dropout if self.training else 0.0
        return causal_attention(q, k, z, scale=E**-0.5, dropout=dropout).to(z_BHTE.dtype)

    def flops(self, time: int) -> Flops:
        """See Link.flops."""
        D = self.scale.numel()
        return Flops.of(linear_flops(self), 4.0 * D, time, 20.0 * D)

    def trajectory(self, x_BTD: Tensor, carry: Tensor) -> Trajectory:
        """See Link.trajectory: one step of length 1 with K = gamma, without frequencies."""
        before, after = _angles(carry), _angles(self(x_BTD, carry))
        turned = (after - before + torch.pi).remainder(2 * torch.pi) - torch.pi
        path = torch.stack((before, before + turned))
        R = torch.stack([prefix_order_parameter(theta) for theta in path], dim=-1)
        H, N = path.shape[-2:]
        return Trajectory(
            theta0=path[0],
            theta=path[1],
            R=R,
            omega=path.new_zeros(H, N),
            coupling=self.gamma.expand(H),
            dt=1.0,
            order_parameter=prefix_order_parameter,
            path=path,
        )


def _step(z_BHTE: Tensor, pull_BHTE: Tensor, gamma: Tensor) -> Tensor:
    """z + gamma (P - <P, z> z), renormalised, of (c, s) side by side."""
    (c, s), (P_c, P_s) = z_BHTE.chunk(2, dim=-1), pull_BHTE.chunk(2, dim=-1)
    along = P_c * c + P_s * s
    c, s = c + gamma * (P_c - along * c), s + gamma * (P_s - along * s)
    return torch.cat(_renormalised(c, s, _FLOOR**2), dim=-1)


def _renormalised(c: Tensor, s: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Pairs of length 1; c^2 + s^2 counts as `floor` at least."""
    inverse = (c.square() + s.square()).clamp_min(floor).rsqrt()
    return c * inverse, s * inverse


def _angles(carry: Tensor) -> Tensor:
    """theta in (-pi, pi] of (c, s), [B,T,H,2N] to [B,T,H,N]."""
    c, s = carry.chunk(2, dim=-1)
    return torch.atan2(s, c)


class Kope(Softmax):
    """Softmax attention whose queries, keys and values are turned by the phases it is handed.

    Source: Xiao et al., arXiv 2604.07904. RoPE's angles are in the phases whatever
    model.positions: learned positions stand beside them, as in the source. The layer itself is
    RoPE softmax where mix and rotate_values are off, and with gamma = 0 so is the model.

    `phase` is what the layer is handed, before its own mixing; in the first layer RoPE's angles. R
    is over the prefix. A decoder remembers 2 D numbers a token here and 2 D in the coupling after
    its block; 2 D in the last layer.
    """

    Config = KopeConfig
    options: KopeConfig
    has_phases = True
    off = Off({"gamma": 0.0, "mix": False, "rotate_values": False}, "softmax", positions="rope")
    coupled_axis = "prefix"
    link = Coupling
    lr_factors: ClassVar[Mapping[str, float]] = {"mixing": 1.0}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Softmax's projections, and M. ConfigError for heads of odd width."""
        super().__init__(config, options, layer)
        self.rope = False  # it turns by the phases that it is handed
        if self.head_width % 2:
            raise ConfigError(
                f"attention=kope turns pairs of numbers and needs an even head width; "
                f"n_embd/n_head is {self.head_width}"
            )
        N = self.head_width // 2
        self.mixing = nn.Parameter(torch.zeros(self.n_head, N, N)) if self.options.mix else None

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """M = I + N(0, 0.1^2 2/(N^2 + H N)): xavier_normal of the whole tensor, as the source's."""
        if self.mixing is not None:
            nn.init.xavier_normal_(self.mixing, gain=0.1, generator=generator("mixing"))
            with torch.no_grad():
                self.mixing.add_(torch.eye(self.mixing.shape[-1]).to(self.mixing))

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
        carry: Tensor | None = None,
    ) -> AttentionOutput:
        """See Attention.forward; `carry` is (c, s) as [B,T,H,2N]. No phases with a cache."""
        if return_phase and cache is not None:
            raise ConfigError("kope has no prefix R with a cache; call without one")
        if carry is None:
            carry = self.first_phases(x_BTD, 0 if cache is None else cache.length)
        c, s = self.mixed(*carry.transpose(1, 2).chunk(2, dim=-1))
        q, k, v = self.project(x_BTD, cache)
        q, k = turn(q, c, s), turn(k, c, s)
        if self.options.rotate_values:
            v = turn(v, c, s)
        if cache is not None:
            k, v = cache.update(k, v)
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, scale=self.head_width**-0.5, dropout=dropout)
        if self.options.rotate_values:
            y = turn(y, c, -s)
        y_BTD = self.resid_dropout(self.c_proj(join_heads(y)))
        phase = None
        if return_phase:  # the gradient reaches the coupling alone: RoPE's angles are constants
            theta = _angles(carry)
            phase = Phase(theta, self.order_parameter(theta))
        return AttentionOutput(y_BTD, phase, carry)

    def first_phases(self, x_BTD: Tensor, start: int) -> Tensor:
        """RoPE's angles from token `start` on, (c, s) as [B,T,H,2N], in float32 at least."""
        B, T, _ = x_BTD.shape
        angles = rotary_angles(start, T, self.head_width // 2, x_BTD.device, self.rope_theta)
        z_TE = torch.cat((angles.cos(), angles.sin()), dim=-1)
        z_TE = z_TE.to(torch.promote_types(x_BTD.dtype, torch.float32))
        return z_TE.unsqueeze(1).expand(B, T, self.n_head, self.head_width)

    def mixed(self, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(c M, s M), renormalised pair by pair, [B,H,T,N]; as they are without M."""
        if self.mixing is None:
            return c, s
        with torch.autocast(c.device.type, enabled=False):
            M = self.mixing.to(c.dtype)
            return _renormalised(c @ M, s @ M, _FLOOR)

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each channel, [B,T,H,N]; the phases hold RoPE's drift."""
        return prefix_order_parameter(theta_BTHN)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; the coupling's are its own."""
        mixing = 0 if self.mixing is None else 4 * self.mixing.numel()
        turns = (4 if self.options.rotate_values else 2) * 3 * self.n_embd
        return Flops.of(linear_flops(self) + mixing, 4.0 * self.n_embd, time, turns)
