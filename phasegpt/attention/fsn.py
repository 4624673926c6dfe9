"""`fsn`: the step of `torus` through one complex kernel over harmonics and the next token.

Tokens attend as in `torus`, but to those before them alone. What they retrieve is not the phases of
a token u but a learned mixture of its harmonics m and of those of its successor u + 1:

    A = softmax over u <= t - 1 of the scores of `torus`
    F_tk = sum_m sum_d Im(c^md_hk exp(-i m theta_tk) sum_u A_tu exp(i m theta_{u+d,k})),  d = 0, 1
         = sum_m sum_d |c^md| sum_u A_tu sin(m (theta_{u+d} - theta_t) + arg c^md)
    theta' = theta + eta_h F;  y = W_o [cos theta' - r, sin theta'], r as in `torus`

A phase of c is a frustration (Sakaguchi and Kuramoto 1986), and so is the delay: with alpha_u =
theta_u - theta_{u+1}, sin(theta_{u+1} - theta_t) = sin(theta_u - theta_t - alpha_u). Since u + 1 <=
t, no token sees a later one. The first token has nothing before it and feels no force.

c does not depend on t, so that it is folded over the delays into the values. Each harmonic is then
a head of its own, 2N wide, with the same queries and keys: one SDPA call of equal widths.

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

from phasegpt.attention import AttentionConfig, Flops, LayerShape, Off, linear_flops
from phasegpt.attention._cache import LayerCache
from phasegpt.attention._functional import preceding_attention
from phasegpt.attention.torus import StepConfig, Torus
from phasegpt.core.sections import option


@dataclass(frozen=True, kw_only=True)
class FsnConfig(StepConfig):
    """Options of `fsn` (Nunley, arXiv 2606.18694); the sizes are ours."""

    harmonics: int = option(2, "M, harmonics of the kernel", ge=1, le=64)
    delay: bool = option(True, "false: without the successor's phases, a strictly causal torus")
    step: bool = option(
        True, "false: a control, what the first harmonic retrieves is read out, and no phase moves"
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        super().check_idle()
        self.refuse_idle(self.step, "step", "coupling", "learn_coupling", "harmonics")
        coupled = self.coupling != 0 or self.learn_coupling or not self.step
        self.refuse_idle(coupled, "coupling", "harmonics", "delay")


class Fsn(Torus):
    """Frustrated synchronization: a step through a kernel over harmonics and successors.

    eta = 0 mixes nothing. With M = 1 and without the delay it is `torus` over u <= t - 1 with a
    frustration of every channel. Without the step y = W_o [Re Z - r, Im Z], Z = sum_d c^1d sum_u
    A_tu exp(i theta_{u+d}): the same attention and delay, and no phase moves. c^10 and c^11 begin
    at 1/2 (without the delay c^10 at 1), what else there is of c at N(0, 0.02^2).

    A decode cache holds theta alone: D numbers of a token, 4 D bytes in float32, half of softmax's.
    The values are computed anew from it for every new token.
    """

    Config: ClassVar[type[AttentionConfig]] = FsnConfig
    options: FsnConfig
    off = Off({"coupling": 0.0}, "alone", decisive={"delay": False, "harmonics": 1})
    lr_factors: ClassVar[Mapping[str, float]] = {**Torus.lr_factors, "kernel": 1.0}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """The parts of torus, and c as real and imaginary part, delay, harmonic, head, channel."""
        super().__init__(config, options, layer)
        delays = 1 + self.options.delay
        self.harmonics = self.options.harmonics if self.options.step else 1
        shape = (2, delays, self.harmonics, self.n_head, self.head_width)
        self.kernel = nn.Parameter(torch.zeros(shape))

    def _moves(self) -> bool:
        """See Torus."""
        return self.options.step

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """See Torus and this class."""
        super().reset_oscillators(generator)
        nn.init.normal_(self.kernel, std=0.02, generator=generator("kernel"))
        with torch.no_grad():
            self.kernel[0, :, 0] = 1 / self.kernel.shape[1]
            self.kernel[1, :, 0] = 0

    def _force(self, theta_BTHN: Tensor, gate_BHTN: Tensor, cache: LayerCache | None) -> Tensor:
        """F, [B,H,T,N]."""
        _, turned, mean = self._retrieved(theta_BTHN, gate_BHTN, cache)
        return (turned * mean).unflatten(-1, (2, -1)).sum((1, -2))

    def _mean(
        self, theta_BTHN: Tensor, gate_BHTN: Tensor, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """See Torus; of the first harmonic."""
        own, _, mean = self._retrieved(theta_BTHN, gate_BHTN, cache)
        return own[:, 0], mean[:, 0]

    def _retrieved(
        self, theta_BTHN: Tensor, gate_BHTN: Tensor, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z of the tokens' own harmonics, i z, and what each harmonic retrieves, [B,M,H,T,2N]."""
        theta, remembered = self._remembered(theta_BTHN, cache)
        own, turned = self._harmonics(theta)
        every = (own, turned) if cache is None else self._harmonics(remembered)
        mine = own[:, 0]  # the first harmonic, which torus compares
        q, k = self._features(mine, mine if cache is None else every[0][:, 0], gate_BHTN)
        # Every harmonic is a head of its own with the same queries and keys.
        M, values = self.harmonics, self._folded(*every).flatten(1, 2).to(q.dtype)
        q, k = (z.repeat(1, M, 1, 1) for z in (q, k))
        mean = preceding_attention(q, k, values, scale=1.0, dropout=self._dropout)
        return own, turned, mean.unflatten(1, (M, -1)).to(own.dtype)

    def _harmonics(self, theta_BHTN: Tensor) -> tuple[Tensor, Tensor]:
        """z = exp(i m theta) for m = 1 .. M as [Re, Im], [B,M,H,T,2N], and i z."""
        m = torch.arange(1, self.harmonics + 1, device=theta_BHTN.device)
        angles = theta_BHTN.unsqueeze(1) * m.view(-1, 1, 1, 1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, sin), dim=-1), torch.cat((-sin, cos), dim=-1)

    def _folded(self, every: Tensor, turned: Tensor) -> Tensor:
        """[Re, Im] of sum_d c^md exp(i m theta_{u+d}) for every token u, [B,M,H,T,2N].

        That of the newest token, which has no next one, counts nowhere.
        """
        c = torch.cat((self.kernel, self.kernel), dim=-1).to(every.dtype).unsqueeze(-2)
        here, *following = ((re * every).addcmul(im, turned) for re, im in c.unbind(1))
        return here + following[0].roll(-1, 3) if following else here

    def flops(self, time: int) -> Flops:
        """See Attention.flops; M heads for each, whose queries, keys and values are 2N wide."""
        D, M = self.n_embd, self.harmonics
        return Flops.preceding(linear_flops(self), 8.0 * M * D, time, (13.0 + 20.0 * M) * D)
