"""Forces, and the local order that attention sees.

A field Z = sum_j w_j exp(i theta_j) pulls a phase theta with Im(exp(-i theta) Z), the weighted sum
of sin(theta_j - theta); times the coupling K it is an angular velocity.

Shapes: B batch, T time, H heads, N oscillators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phasegpt.phase.checks import checked
from phasegpt.phase.order import _counts, cumulative_sum
from phasegpt.phase.polar import modulus


@checked
def uncoupled_phases(theta0: Tensor, omega: Tensor, *, steps: int, dt: float) -> Tensor:
    """theta0[B,T,H,N] + steps dt omega[H,N]: the same weights and tokens with K = 0.

    The null of "synchronized by coupling": dR = R(theta) - R(uncoupled) must be above 0.
    """
    return theta0 + steps * dt * omega


@checked
def mean_field_force(theta: Tensor, dim: int = -1, lag: float = 0.0) -> Tensor:
    """(1/N) sum_m sin(theta_m - theta_n - lag) over the phases along `dim`; same shape as theta.

    Null: root mean square sqrt((N-1) / 2) / N. Zero everywhere: each phase is at psi or
    opposite to it, or R = 0.
    Source: Sakaguchi and Kuramoto, Prog. Theor. Phys. 76, 576 (1986).
    """
    return _pull(theta + lag, theta.cos().mean(dim, True), theta.sin().mean(dim, True))


@checked
def prefix_force(theta: Tensor, dim: int = 1) -> Tensor:
    """(1/t) sum over u <= t of sin(theta_u - theta_t) along `dim`; same shape as theta.

    Null: root mean square sqrt((t-1) / 2) / t.
    """
    count = _counts(theta, dim)
    cos, sin = cumulative_sum(theta.cos(), dim), cumulative_sum(theta.sin(), dim)
    return _pull(theta, cos / count, sin / count)


@checked
def attention_force(theta_BTHN: Tensor, attention_BHTT: Tensor) -> Tensor:
    """sum_u A_tu sin(theta_u - theta_t) of every oscillator, [B,T,H,N]; rows of A sum to 1."""
    return _pull(theta_BTHN, *_attended(theta_BTHN, attention_BHTT))


@checked
def attention_order_parameter(theta_BTHN: Tensor, attention_BHTT: Tensor) -> Tensor:
    """R_t = |sum_u A_tu exp(i theta_u)| of every oscillator, [B,T,H,N]: how far the keys agree.

    It is the gain R in the force R sin(psi - theta_t). Null: null_order_parameter of
    effective_keys(A); `debias` with the same number has null 0.
    """
    return modulus(*_attended(theta_BTHN, attention_BHTT))


@checked
def attention_coherence(theta_BTHN: Tensor, attention_BHTT: Tensor) -> Tensor:
    """r_t = sum_u A_tu cos(theta_t - theta_u) of every oscillator, [B,T,H,N].

    Does attention pick partners in phase? Its mean over t is the universal order parameter with
    A as adjacency. Null: A_tt (the token's cosine with itself), or the same under
    permute_within_prefix(A). Source: Schroeder, Timme and Witthaut, arXiv 1704.04130.
    """
    cos, sin = _attended(theta_BTHN, attention_BHTT)
    return theta_BTHN.cos() * cos + theta_BTHN.sin() * sin


@checked
def attention_energy(theta_BTHN: Tensor, attention_BHTT: Tensor) -> Tensor:
    """H = -(1/2) sum_tu A_tu cos(theta_u - theta_t) of every oscillator, [B,H,N].

    Low where attention is among phases that agree. attention_force is -grad H where A = A^T; that
    of a causal A descends no energy. Null: -(1/2) sum_t A_tt, the tokens' own cosines.
    """
    return -attention_coherence(theta_BTHN, attention_BHTT).sum(1) / 2


@checked
def effective_keys(attention_BHTT: Tensor) -> Tensor:
    """1 / sum_u A_tu^2, [B,T,H,1]: as many equal weights have the same null, E R^2 = 1 / n."""
    return 1 / attention_BHTT.square().sum(-1).transpose(1, 2).unsqueeze(-1)


@checked
def permute_within_prefix(
    attention_BHTT: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Every row's weights dealt anew among its tokens u <= t: same sharpness, other partners."""
    key = torch.rand(
        attention_BHTT.shape, generator=generator, device=attention_BHTT.device
    ) + torch.ones_like(attention_BHTT).triu(1)  # the future sorts last and keeps its zeros
    return attention_BHTT.gather(-1, key.argsort(-1))


def _pull(theta: Tensor, mean_cos: Tensor, mean_sin: Tensor) -> Tensor:
    return mean_sin * theta.cos() - mean_cos * theta.sin()


def _attended(theta_BTHN: Tensor, attention_BHTT: Tensor) -> tuple[Tensor, Tensor]:
    weights = attention_BHTT.to(theta_BTHN.dtype)
    cos, sin = (
        torch.einsum("bhtu,buhn->bthn", weights, x) for x in (theta_BTHN.cos(), theta_BTHN.sin())
    )
    return cos, sin
