"""`fsn` written from its equations, one pair of tokens, phase, harmonic and delay at a time."""

import cmath
import math

import torch
from torch import Tensor


def fsn(
    x_TD: Tensor,
    weights: dict[str, Tensor],
    heads: int,
    *,
    drift: bool,
    theta_std: float,
    step: bool = True,
) -> tuple[Tensor, Tensor]:
    """y[T,D] and theta'[T,D] of one sequence in float64; weights by the names of the state dict.

    The force is the sum over u of |c| sin(m (theta_{u+d} - theta_t) + arg c), weighted by A.
    """
    T, D = x_TD.shape
    rest = math.exp(-(theta_std**2) / 2)
    N = D // heads
    theta = (x_TD @ weights["phase.weight"].T).tolist()
    gates = (x_TD @ weights["c_gate.weight"].T + weights["c_gate.bias"]).exp().log1p().tolist()
    real, imaginary = weights["kernel"].tolist()  # [d][m][h][k]
    moved, read = torch.zeros(T, D, dtype=torch.float64), []
    retrieved = torch.zeros(T, D, dtype=torch.complex128)  # of the first harmonic
    for t in range(T):
        for h in range(heads):
            tau, eta = weights["tau"][h].item(), weights["oscillators.coupling"][h].item()
            scores = []
            for u in range(t):
                score = 0.0
                for k in range(N):
                    nu = 10_000.0 ** (-k / N) if drift else 0.0
                    difference = theta[t][h * N + k] - theta[u][h * N + k] + (t - u) * nu
                    score += gates[t][h * N + k] * math.cos(difference)
                scores.append(math.exp(tau * score))
            A = [s / sum(scores) for s in scores]
            for k in range(N):
                c, force = h * N + k, 0.0
                for d in range(len(real)):
                    for m in range(len(real[d])):
                        size, frustration = cmath.polar(
                            complex(real[d][m][h][k], imaginary[d][m][h][k])
                        )
                        for u in range(t):
                            turn = (m + 1) * (theta[u + d][c] - theta[t][c]) + frustration
                            force += A[u] * size * math.sin(turn)
                            if m == 0:
                                angle = theta[u + d][c] + frustration
                                retrieved[t, c] += A[u] * cmath.rect(size, angle)
                moved[t, c] = theta[t][c] + eta * force * step
        ends = torch.polar(torch.ones_like(moved[t]), moved[t]) if step else retrieved[t]
        parts = [ends[h * N : (h + 1) * N] for h in range(heads)]
        read.append(torch.cat([torch.cat((p.real - rest, p.imag)) for p in parts]))
    return torch.stack(read) @ weights["c_proj.weight"].T + weights["c_proj.bias"], moved
