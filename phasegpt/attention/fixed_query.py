"""`fixed_query`: an oscillator on a sphere settles among anchors, and attends where it rests.

    W_tu = softplus(q_t . k_u / sqrt(E)), u <= t         how hard token u pulls
    dx_t/dt = h_t - (x_t . h_t) x_t,  h_t = sum_u W_tu a_u      Kuramoto-Lohe, no frequencies
    x*_t = h_t / |h_t|                                   where it comes to rest, in closed form
    A_tu = (1 + x*_t . a_u)^p / sum over u' <= t;  y = W_o (A v)

Every head has one anchor a_u per position on the sphere S^(d-1). All of the sphere but the
antipode of h flows to x*, so nothing is integrated. Keys are matched through their positions alone:
content chooses x*. At p = 1 no key gets more than about 2/t of the weight.

Shapes: B batch, T queries, U keys, C model width, H heads, E head width, d oscillator dimension.
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
    Off,
    ReturnPhase,
    linear_flops,
)
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import join_heads
from phasegpt.attention._kernels import causal, check_table, mixed, normalized
from phasegpt.attention.softmax import Softmax
from phasegpt.core.sections import option
from phasegpt.phase.steering import Perturbation


@dataclass(frozen=True, kw_only=True)
class FixedQueryConfig(AttentionConfig):
    """Options of `fixed_query` (Pasqualetti and Guo, arXiv 2606.12059)."""

    sphere_dim: int = option(
        16, "d, the sphere of oscillators and anchors is S^(d-1); 2: a circle", ge=2, le=65_536
    )
    p: float = option(
        4.0, "exponent of the readout; 1: as published, 0: the mean of the prefix", ge=0, le=1000
    )
    learn_p: bool = option(False, "true: every head learns its p, from 0 on")
    free_anchors: bool = option(
        False, "true: anchors begin on the sphere and may leave it, as in the authors' code"
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.p != 0 or self.learn_p, "p", "sphere_dim", "free_anchors")


class FixedQuery(Softmax):
    """Attention by synchronisation with fixed anchors.

    Source: Pasqualetti and Guo, arXiv 2606.12059. The paper's: all but what follows. Ours: the
    exponent p = 4 and d = 16 as defaults, a learned p, anchors that are put back on the sphere in
    every forward pass (theirs may leave it: free_anchors), rotary positions on q and k, and GPT-2's
    biases and initialisation. p = 0 is the mean of the prefix.

    The oscillator is a point of a sphere and no phase, so there is none to return.
    Decoding remembers k and v: 2 C numbers a token, 8 C bytes of float32; the H T d numbers of the
    anchors are weights. There is one for every position, so none beyond model.block_size.
    Two tables [B,H,T,T] are held, several times over in training; see phasegpt.attention._kernels.
    """

    Config = FixedQueryConfig
    options: FixedQueryConfig
    off = Off({"p": 0.0}, "uniform")
    lr_factors: ClassVar[Mapping[str, float]] = {"anchors": 1.0, "p": 10.0}
    starts: ClassVar[Mapping[str, str]] = {"p": "p"}
    per_position = True

    def __init__(self, config: LayerShape, options: FixedQueryConfig, layer: int) -> None:
        """Softmax's projections, `anchors` [H, block_size, d] and the exponents `p` [H]."""
        super().__init__(config, options, layer)
        anchors = torch.zeros(config.n_head, config.block_size, options.sphere_dim)
        self.anchors = nn.Parameter(anchors)
        p = torch.full((config.n_head,), options.p)
        if options.learn_p:
            self.p = nn.Parameter(p)
        else:
            self.register_buffer("p", p)

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """Anchors uniform on the sphere; p as the option says."""
        nn.init.normal_(self.anchors, generator=generator("anchors"))
        with torch.no_grad():
            self.anchors.copy_(F.normalize(self.anchors, dim=-1))
        nn.init.constant_(self.p, self.options.p)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward."""
        q, k, v = self.project(x_BTD, cache)
        if cache is not None:
            k, v = cache.update(k, v)
        (B, H, T, _), U = q.shape, k.shape[2]
        check_table("fixed_query", B, H, T, U, q)
        seen_TU = causal(T, U, q.device)
        position_U = torch.arange(U, device=q.device)
        anchors_HUd = self.anchors[:, position_U]  # a view would not do in torch.export
        if not self.options.free_anchors:
            anchors_HUd = on_sphere(anchors_HUd)
        star_BHTd = direction(q, k, anchors_HUd, seen_TU)
        p_H = self.p + (self.p.clamp(min=0) - self.p).detach()  # a p below 0 can come back
        A_BHTU = readout(star_BHTd, anchors_HUd, p_H, seen_TU)
        y = mixed(A_BHTU, v, self.dropout if self.training else 0.0)
        return AttentionOutput(self.resid_dropout(self.c_proj(join_heads(y))))

    def flops(self, time: int) -> Flops:
        """See Attention.flops; scores, values, and the anchors in both stages."""
        H, E, d = self.n_head, self.head_width, self.options.sphere_dim
        return Flops.of(linear_flops(self), H * 4.0 * (E + d), time, 20.0 * H * time)


def direction(
    q_BHTE: Tensor, k_BHUE: Tensor, anchors_HUd: Tensor, seen: Tensor | None = None
) -> Tensor:
    """x*_t, where the oscillator of t comes to rest under the pull of the keys that it sees.

    Anchors are taken as they are. `seen`: bool, broadcastable to [B,H,T,U]; None: all. Returns unit
    vectors [B,H,T,d], float32 at least; where the keys pull with less than 1e-12 in all, shorter
    ones.
    """
    score = q_BHTE @ k_BHUE.transpose(-2, -1)
    dtype = torch.promote_types(score.dtype, torch.float32)
    with torch.autocast(score.device.type, enabled=False):
        pull = F.softplus(score.to(dtype) * q_BHTE.shape[-1] ** -0.5, threshold=30.0)
        if seen is not None:
            pull = pull.masked_fill(~seen, 0.0)
        return F.normalize(pull @ anchors_HUd.to(dtype), dim=-1)


def readout(
    star_BHTd: Tensor, anchors_HUd: Tensor, p_H: Tensor, seen: Tensor | None = None
) -> Tensor:
    """A_tu ~ (1 + x*_t . a_u)^p over the keys that t sees, [B,H,T,U]; `seen` as of direction."""
    dtype = star_BHTd.dtype
    with torch.autocast(star_BHTd.device.type, enabled=False):
        along = star_BHTd @ anchors_HUd.to(dtype).transpose(-2, -1)  # their cosine, on the sphere
        log_kernel = (1 + along).clamp(min=2**-23).log()  # in every type the same
        return normalized(p_H.to(dtype).view(-1, 1, 1) * log_kernel, seen)


def on_sphere(anchors_HUd: Tensor) -> Tensor:
    """Anchors of length 1, in float32 at least."""
    return F.normalize(
        anchors_HUd.to(torch.promote_types(anchors_HUd.dtype, torch.float32)), dim=-1
    )
