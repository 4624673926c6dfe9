"""`kope` in loops over tokens and phases, in complex numbers, written from the equations."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def kope(model: Any, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y of layer 0, the phases of layer 1 as (c, s), its y, without norms and MLPs between them."""
    (B, T, D), H = x_BTD.shape, model.config.n_head
    E, N = D // H, D // H // 2
    z = torch.zeros(B, T, H, N, dtype=torch.complex128)
    for t in range(T):
        for k in range(N):
            z[:, t, :, k] = complex(np.exp(1j * t * model.config.rope_theta ** (-k / N)))

    def attend(logits: list[Tensor], values: list[Tensor]) -> Tensor:
        weights = [math.exp(float(logit)) for logit in logits]
        return sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True))  # type: ignore[return-value]

    def layer(attn: Any, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for b in range(B):
            heads: list[list[Tensor]] = [[] for _ in range(H)]
            for h in range(H):
                q, k, v = [], [], []
                for t in range(T):
                    mixed = torch.stack(
                        [
                            sum(z[b, t, h, i] * attn.mixing[h, i, j] for i in range(N))
                            for j in range(N)
                        ]
                    )
                    mixed = mixed / mixed.abs()
                    row = attn.c_attn.weight @ x[b, t] + attn.c_attn.bias
                    for kept, part in zip((q, k, v), row.split(D), strict=True):
                        own = part[h * E : (h + 1) * E]
                        kept.append(torch.complex(own[:N], own[N:]) * mixed)
                    logits = [(q[t] * k[u].conj()).real.sum() / E**0.5 for u in range(t + 1)]
                    out = attend(logits, v[: t + 1]) * mixed.conj()
                    heads[h].append(torch.cat((out.real, out.imag)))
            for t in range(T):
                joined = torch.cat([heads[h][t] for h in range(H)])
                y[b, t] = attn.c_proj.weight @ joined + attn.c_proj.bias
        return y

    def couple(link: Any, gamma: Tensor, x: Tensor) -> Tensor:
        after = z.clone()
        for b in range(B):
            for h in range(H):
                q, k = [], []
                for t in range(T):
                    row = link.c_attn.weight @ x[b, t] + link.c_attn.bias
                    for kept, part in zip((q, k), row.split(D), strict=True):
                        own = part[h * E : (h + 1) * E]
                        kept.append(own / own.square().mean().sqrt())
                    logits = [(link.scale[h] * q[t]) @ k[u] / E**0.5 for u in range(t + 1)]
                    for n in range(N):
                        angle = z[b, : t + 1, h, n].angle()
                        force = attend(logits, [(a - angle[t]).sin() for a in angle])
                        step = torch.atan(gamma[h] * force)
                        after[b, t, h, n] = z[b, t, h, n] * torch.exp(1j * step)
        return after

    first = layer(model.blocks[0].attn, x_BTD)
    z = couple(model.link, model.blocks[1].attn.oscillators.coupling, x_BTD + first)
    return first, torch.cat((z.real, z.imag), -1), layer(model.blocks[1].attn, x_BTD + first)
