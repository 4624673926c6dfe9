"""`torus` written from its equations, one pair of tokens and one phase at a time, in float64."""

import cmath
import math

import torch
from torch import Tensor


def torus(
    x_TD: Tensor,
    weights: dict[str, Tensor],
    heads: int,
    *,
    drift: bool,
    theta_std: float,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """y[T,D] and theta'[T,D] of one sequence; weights by the names of the state dict.

    `drift`: rotary positions of base 10000. `mean`: the readout of the circular mean.
    """
    T, D = x_TD.shape
    rest = math.exp(-(theta_std**2) / 2)
    N = D // heads
    theta = (x_TD @ weights["phase.weight"].T).tolist()
    gates = (x_TD @ weights["c_gate.weight"].T + weights["c_gate.bias"]).exp().log1p().tolist()
    moved, read = torch.zeros(T, D, dtype=torch.float64), []
    for t in range(T):
        lifted: list[float] = []
        for h in range(heads):
            tau, eta = weights["tau"][h].item(), weights["oscillators.coupling"][h].item()
            channels = range(h * N, (h + 1) * N)
            scores = []
            for u in range(t + 1):
                score = 0.0
                for k in channels:
                    nu = 10_000.0 ** (-(k - h * N) / N) if drift else 0.0
                    score += gates[t][k] * math.cos(theta[t][k] - theta[u][k] + (t - u) * nu)
                scores.append(math.exp(tau * score))
            A = [s / sum(scores) for s in scores]
            Z = [sum(A[u] * cmath.exp(1j * theta[u][k]) for u in range(t + 1)) for k in channels]
            for k, z in zip(channels, Z, strict=True):
                force = sum(A[u] * math.sin(theta[u][k] - theta[t][k]) for u in range(t + 1))
                moved[t, k] = theta[t][k] + eta * force
                # F = R sin(psi - theta)
                assert abs(force - abs(z) * math.sin(cmath.phase(z) - theta[t][k])) < 1e-12
            ends = Z if mean else [cmath.exp(1j * moved[t, k].item()) for k in channels]
            lifted += [z.real - rest for z in ends] + [z.imag for z in ends]
        read.append(lifted)
    y = torch.tensor(read, dtype=torch.float64) @ weights["c_proj.weight"].T
    return y + weights["c_proj.bias"], moved
