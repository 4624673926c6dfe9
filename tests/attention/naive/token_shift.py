"""`token_shift` written from its equations, one pair of tokens at a time, in float64."""

import math

import torch
from torch import Tensor


def token_shift(x_TD: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """y[T,D] of one sequence, without rotary positions; weights by the names of the state dict."""
    T, D = x_TD.shape
    E = D // heads
    q, k, v = (x_TD @ weights["c_attn.weight"].T + weights["c_attn.bias"]).split(D, dim=-1)
    own, following = torch.zeros(T, D, dtype=torch.float64), torch.zeros(T, D, dtype=torch.float64)
    for t in range(1, T):
        for h in range(heads):
            here = slice(h * E, (h + 1) * E)
            scores = [math.exp((q[t, here] @ k[u, here]).item() / math.sqrt(E)) for u in range(t)]
            for u, score in enumerate(scores):
                own[t, here] += score / sum(scores) * v[u, here]
                following[t, here] += score / sum(scores) * v[u + 1, here]
    y = own @ weights["c_proj.weight"].T + weights["c_proj.bias"]
    return y + following @ weights["next_c_proj.weight"].T
