"""`fsn`: the step of `torus` through one complex kernel over harmonics and the next token.

Tokens attend as in `torus`, but to those before them alone. What they retrieve is not the phases of
a token u but a learned mixture of its harmonics m and of those of its successor u + 1:

    A = softmax over u <= t - 1 of the scores of `torus`
    F_tk = sum_m sum_d Im(c^md_hk exp(-i m theta_tk) sum_u A_tu exp(i m theta_{u+d,k})),  d = 0, 1
         = sum_m sum_d |c^md| sum_u A_tu sin(m (theta_{u+d} - theta_t) + arg c^md)
    theta' = theta + eta_h F;  y = W_o [cos theta', sin theta']

A phase of c is a frustration (Sakaguchi and Kuramoto 1986), and so is the delay: with alpha_u =
theta_u - theta_{u+1}, sin(theta_{u+1} - theta_t) = sin(theta_u - theta_t - alpha_u). Since u + 1 <=
t, no token sees a later one. The first token has nothing before it and feels no force.

c does not depend on t, so that it is folded over the delays into the values, which are 2 M N wide
in a head: one SDPA call, whose queries and keys are padded to that width.

The paper (Nunley, arXiv 2606.18694, of which we know the abstract) has the complex kernel over
harmonics and the delays 0 and 1. Ours are: one strictly causal A for both delays, a c of every
channel, M = 2, where c begins, and what `torus` says of itself.

Shapes: B batch, T time, D model width, H heads, N = D / H phases of a head, M harmonics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from phasegpt.attention import AttentionConfig, Flops, LayerShape, linear_flops
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import preceding_attention
from phasegpt.attention.torus import StepConfig, Torus
from phasegpt.core.sections import option


@dataclass(frozen=True, kw_only=True)
class FsnConfig(StepConfig):
    """Options of `fsn` (Nunley, arXiv 2606.18694); the sizes are ours."""

    harmonics: int = option(2, "M, harmonics of the kernel", ge=1, le=64)
    delay: bool = option(True, "false: without the successor's phases, a strictly causal torus")


class Fsn(Torus):
    """Frustrated synchronization: a step through a kernel over harmonics and successors.

    eta = 0 mixes nothing. With M = 1 and without the delay it is `torus` over u <= t - 1 with a
    frustration of every channel. c^10 and c^11 begin at 1/2 (without the delay c^10 at 1), what
    else there is of c at N(0, 0.02^2).

    A decode cache holds theta alone: D numbers of a token, 4 D bytes in float32, half of softmax's.
    The values are computed anew from it for every new token.
    """

    Config: ClassVar[type[AttentionConfig]] = FsnConfig
    options: FsnConfig
    lr_factors: ClassVar[Mapping[str, float]] = {**Torus.lr_factors, "kernel": 1.0}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """The parts of torus, and c as real and imaginary part, delay, head, harmonic, channel."""
        super().__init__(config, options, layer)
        delays, M = 1 + self.options.delay, self.options.harmonics
        self.kernel = nn.Parameter(torch.zeros(2, delays, self.n_head, M, self.head_width))

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """See Torus and this class."""
        super().reset_oscillators(generator)
        nn.init.normal_(self.kernel, std=0.02, generator=generator("kernel"))
        with torch.no_grad():
            self.kernel[0, :, :, 0] = 1 / self.kernel.shape[1]
            self.kernel[1, :, :, 0] = 0

    def _force(self, theta_BTHN: Tensor, gate_BHTN: Tensor, cache: LayerCache | None) -> Tensor:
        """F, [B,H,T,N]."""
        theta, remembered = self._remembered(theta_BTHN, cache)
        own = self._harmonics(theta)
        every = own if cache is None else self._harmonics(remembered)
        mine = own[..., 0, :].flatten(-2)  # of the first harmonic, as in torus
        theirs = mine if cache is None else every[..., 0, :].flatten(-2)
        q, k = self._features(mine, theirs, gate_BHTN)
        values = self._folded(every).flatten(-3).to(q.dtype)
        mean = preceding_attention(q, k, values, scale=1.0, dropout=self._dropout)
        (cos, sin), (x, y) = own.unbind(-3), mean.to(own.dtype).view_as(own).unbind(-3)
        return (cos * y - sin * x).sum(-2)

    def _harmonics(self, theta_BHTN: Tensor) -> Tensor:
        """[cos m theta, sin m theta] for m = 1 .. M, [B,H,T,2,M,N]."""
        m = torch.arange(1, self.options.harmonics + 1, device=theta_BHTN.device)
        angles = theta_BHTN.unsqueeze(-2) * m.unsqueeze(-1)
        return torch.stack((angles.cos(), angles.sin()), dim=-3)

    def _folded(self, every: Tensor) -> Tensor:
        """sum_d c^md exp(i m theta_{u+d}) of every token u, [B,H,T,2,M,N].

        That of the newest token, which has no next one, counts nowhere.
        """
        x = y = every.new_zeros(())
        for d, (re, im) in enumerate(self.kernel.to(every.dtype).unsqueeze(3).unbind(1)):
            cos, sin = every.roll(-d, 2).unbind(-3)
            x, y = x + re * cos - im * sin, y + re * sin + im * cos
        return torch.stack((x, y), dim=-3)

    def flops(self, time: int) -> Flops:
        """See Attention.flops; queries, keys and values are 2 M N wide."""
        D, M = self.n_embd, self.options.harmonics
        return Flops.preceding(linear_flops(self), 8.0 * M * D, time, (12.0 + 20.0 * M) * D)
