"""`kope`: softmax attention that turns by phases, which are coupled over tokens between layers.

The phases begin as RoPE's angles and go from layer to layer. After each block but the last one an
attention of its own, the same for all layers, says where those of the tokens before pull; the
next layer of the mechanism takes the step, mixes the phases of each head for itself and turns
queries, keys and values by them:

    theta_tk = t rope_theta^(-2k/E) in the first layer;  z = exp(i theta)
    between layers:  P_t = sum_{u <= t} B_tu z_u,
                     B = softmax(scale rms(W_q x) . rms(W_k x) / sqrt(E)), x the block's output
    in the next one: z <- normalise(z + gamma (P - <P, z> z)), which is
                     theta <- theta + arctan(gamma F), F_t = sum_u B_tu sin(theta_u - theta_t)
    z~ = z M_l, renormalised;  q, k, v turned by arg z~, attention's output turned back

Source: Xiao et al., arXiv 2604.07904, for images. Ours: the causal mask, positions in one dimension
with model.rope_theta, the step as an angle, K = gamma learned per head and layer if at all, at the
model's learning rate (there at half of it), and no norm of the layer's own queries and keys.

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
from phasegpt.attention._oscillators import CoupledPhases
from phasegpt.attention.softmax import Softmax
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, option
from phasegpt.phase import prefix_order_parameter
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class KopeConfig(AttentionConfig):
    """Options of `kope` (Xiao et al., arXiv 2604.07904)."""

    coupling: float = option(
        0.05, "gamma, the step between layers; 0: every layer has RoPE's angles", ge=-1e6, le=1e6
    )
    learn_coupling: bool = option(False, "true: gamma is learned, per head and layer")
    mix: bool = option(True, "a matrix per head and layer mixes the phases that it turns by")
    rotate_values: bool = option(
        True, "values are turned too, and the output back; false: queries and keys alone"
    )


class Pull(Link):
    """Where the tokens before pull the phases: one attention for all layers, 2 D^2 weights.

    A decoder remembers rms(W_k x), cos and sin of every token, 2 D numbers. Attention runs in the
    type of autocast, as the layers'; the steps that use it in float32 at least.
    """

    lr_factors: ClassVar[Mapping[str, float]] = {"scale": 1.0}

    def __init__(self, config: LayerShape, options: Section) -> None:
        """W_q and W_k as one map, and the scale of rms(W_q x)."""
        super().__init__(config, options)
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd, bias=config.bias)
        self.scale = nn.Parameter(torch.ones(config.n_head, config.n_embd // config.n_head))

    def reset(self, generator: Callable[[str], torch.Generator]) -> None:
        """See Link.reset: scale = 1; W by GPT-2's rule, which is the source's."""
        nn.init.ones_(self.scale)

    def forward(self, x_BTD: Tensor, carry: Tensor, *, cache: LayerCache | None = None) -> Tensor:
        """(theta, Re P, Im P) as [B,T,H,3N], from theta, [B,T,H,N]."""
        H, E = self.scale.shape
        parts = self.c_attn(x_BTD).chunk(2, dim=-1)
        dtype = torch.promote_types(parts[0].dtype, torch.float32)
        q, k = (F.rms_norm(split_heads(part, H).to(dtype), (E,)) for part in parts)
        z = torch.cat((carry.cos(), carry.sin()), dim=-1).transpose(1, 2)  # [B,H,T,2N]
        q, k, z = (w.to(parts[0].dtype) for w in (q * self.scale.unsqueeze(1), k, z))
        if cache is not None:
            cache.oscillators, cache.over_prefix = E // 2, True
            kept = cache.update(torch.cat((k, z), dim=-1))[0]
            k, z = kept.split(E, dim=-1)
        dropout = self.dropout if self.training else 0.0
        pull = causal_attention(q, k, z, scale=E**-0.5, dropout=dropout)
        return torch.cat((carry, pull.transpose(1, 2).to(carry.dtype)), dim=-1)

    def flops(self, time: int) -> Flops:
        """See Link.flops."""
        D = self.scale.numel()
        return Flops.of(linear_flops(self), 4.0 * D, time, 12.0 * D)


class Kope(Softmax):
    """Softmax attention whose queries, keys and values are turned by phases from the layer below.

    Source: Xiao et al., arXiv 2604.07904. The phases begin as RoPE's angles whatever
    model.positions: learned positions stand beside them, as in the source. Without mix and
    rotate_values the first layer is RoPE softmax, and with coupling = 0 all of them are.

    The phases are those after the step and before M_l; they hold RoPE's drift, and in the first
    layer nothing else. A decoder remembers 2 D numbers of a token here and 2 D in the `Pull` after
    the block, 16 D bytes in float32; after the last one there is none.
    """

    Config = KopeConfig
    options: KopeConfig
    has_phases = True
    off = Off(
        {"coupling": 0.0, "mix": False, "rotate_values": False},
        "softmax",
        positions="rope",
        decisive={"coupling": 0.0},
    )
    coupled_axis = "prefix"
    own_rotary = True
    link = Pull
    lr_factors: ClassVar[Mapping[str, float]] = {"mixing": 1.0, "oscillators.coupling": 1.0}
    starts: ClassVar[Mapping[str, str]] = {"coupling": "oscillators.coupling"}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Softmax's projections, M, and K, which is 0 in the first layer: nothing pulls there.

        ConfigError for heads of odd width.
        """
        super().__init__(config, options, layer)
        self.rope = False  # it turns by its phases, which contain RoPE's angles
        if self.head_width % 2:
            raise ConfigError(
                f"attention=kope turns pairs of numbers and needs an even head width; "
                f"n_embd/n_head is {self.head_width}"
            )
        N, o = self.head_width // 2, self.options
        pulled = layer != config.attention_layers[0]
        self.mixing = nn.Parameter(torch.zeros(self.n_head, N, N)) if o.mix else None
        self.oscillators = CoupledPhases(self.n_head, N)
        self.oscillators.couple(o.coupling * pulled, o.learn_coupling and pulled)
        self.strength = o.coupling * pulled

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """M = I + N(0, 0.1^2 2/(N^2 + H N)), xavier_normal of the whole tensor as the source's."""
        nn.init.constant_(self.oscillators.coupling, self.strength)
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
        """See Attention.forward; `carry` is what Pull returns. No phases with a cache.

        The gradient of the phases is that of the coupling alone: RoPE's angles are constants.
        """
        if return_phase and cache is not None:
            raise ConfigError("kope has no prefix R with a cache; call without one")
        theta0, advance = self._begin(x_BTD, carry, 0 if cache is None else cache.length)
        theta = self.oscillators(advance, theta0, self.oscillators.frequencies())
        cos, sin = self._mixed(theta.transpose(1, 2))
        q, k, v = self.project(x_BTD, cache)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        if self.options.rotate_values:
            v = turn(v, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v)
        dropout = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, scale=self.head_width**-0.5, dropout=dropout)
        if self.options.rotate_values:
            y = turn(y, cos, -sin)
        y_BTD = self.resid_dropout(self.c_proj(join_heads(y)))
        phase = Phase(theta, self.order_parameter(theta)) if return_phase else None
        return AttentionOutput(y_BTD, phase, theta)

    def _begin(
        self, x_BTD: Tensor, carry: Tensor | None, start: int = 0
    ) -> tuple[Tensor, Callable[..., Tensor]]:
        """Phases before the step, [B,T,H,N], and advance(theta, steps) under what pulls them."""
        (B, T, _), (H, N) = x_BTD.shape, self.oscillators.shape
        if carry is None:
            angles = rotary_angles(start, T, N, x_BTD.device, self.rope_theta)
            theta = angles.to(torch.promote_types(x_BTD.dtype, torch.float32), copy=True)
            return theta.unsqueeze(1).expand(B, T, H, N), lambda theta, steps=1: theta
        theta, P_cos, P_sin = carry.split(N, dim=-1)

        def advance(theta: Tensor, steps: int = 1) -> Tensor:
            for _ in range(steps):
                force = theta.cos() * P_sin - theta.sin() * P_cos
                theta = theta + torch.atan(self.oscillators.coupling.unsqueeze(-1) * force)
            return theta

        return theta, advance

    def _mixed(self, theta_BHTN: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of arg(z M), [B,H,T,N]; c^2 + s^2 counts as 1e-5 at least."""
        cos, sin = theta_BHTN.cos(), theta_BHTN.sin()
        if self.mixing is None:
            return cos, sin
        with torch.autocast(cos.device.type, enabled=False):
            M = self.mixing.to(cos.dtype)
            cos, sin = cos @ M, sin @ M
        inverse = (cos.square() + sin.square()).clamp_min(1e-5).rsqrt()
        return cos * inverse, sin * inverse

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R over the prefix of each channel, [B,T,H,N]."""
        return prefix_order_parameter(theta_BTHN)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; what pulls is counted in Pull.flops."""
        mixing = 0 if self.mixing is None else 4 * self.mixing.numel()
        turns = (14 + 6 * self.options.rotate_values) * self.n_embd
        return Flops.of(linear_flops(self) + mixing, 4.0 * self.n_embd, time, turns)

    def trajectory(
        self, x_BTD: Tensor, *, return_path: bool = False, carry: Tensor | None = None
    ) -> Trajectory:
        """See Attention.trajectory: the step from the layer below, of length 1 with K = gamma."""
        theta0, advance = self._begin(x_BTD, carry)
        path = self.oscillators.path(advance, theta0)
        R = torch.stack([self.order_parameter(theta) for theta in path], dim=-1)
        omega, K = self.oscillators.frequencies(), self.oscillators.coupling
        kept = path if return_path else None
        return Trajectory(theta0, path[-1], R, omega, K, 1.0, self.order_parameter, kept)
