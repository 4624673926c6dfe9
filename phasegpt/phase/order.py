"""Order parameters: how far phases agree along an axis, and what chance alone would give."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError
from phasegpt.phase.checks import checked, positive
from phasegpt.phase.polar import modulus

Dim = int | tuple[int, ...]
Count = TypeVar("Count", float, Tensor)


@checked
def resultant_length(cos: Tensor, sin: Tensor, dim: Dim = -1) -> Tensor:
    """|mean over `dim` of exp(i theta)| from cos(theta) and sin(theta); differentiable at 0."""
    return modulus(cos.mean(dim), sin.mean(dim))


@checked
def order_parameter(theta: Tensor, dim: Dim = -1) -> Tensor:
    """Kuramoto's order parameter R = |mean over `dim` of exp(i theta)|, in [0, 1].

    For theta[B,T,H,N] and dim=-1: synchrony of the N oscillators of one head in one token.
    Null: null_order_parameter(n), n the number of phases along `dim`.
    Source: Kuramoto, Chemical Oscillations, Waves, and Turbulence (1984), ch. 5.
    """
    return resultant_length(theta.cos(), theta.sin(), dim)


@checked
def mean_phase(theta: Tensor, dim: Dim = -1) -> Tensor:
    """psi = arg(mean over `dim` of exp(i theta)), in (-pi, pi]; without meaning where R is 0."""
    return torch.atan2(theta.sin().mean(dim), theta.cos().mean(dim))


@checked
def daido_harmonics(theta: Tensor, harmonics: int = 4, dim: Dim = -1) -> Tensor:
    """R_m = |mean over `dim` of exp(i m theta)| for m = 1..harmonics, as a new last axis.

    R_1 low and R_2 high: two clusters in antiphase. Null: that of R, for every m.
    Source: Daido, Prog. Theor. Phys. 88, 1213 (1992).
    """
    positive("harmonics", harmonics)
    return torch.stack([order_parameter(m * theta, dim) for m in range(1, harmonics + 1)], -1)


@checked
def debias(R: Tensor, n: float | Tensor) -> Tensor:
    """Pairwise phase consistency (n R^2 - 1) / (n - 1) of n phases; NaN where n is 1.

    The mean cosine between two different ones of them: 1 in full synchrony, and 0 on average
    for independent uniform phases whatever n is, so that prefixes, heads or layers of different
    n compare. Also for the R of T times (phase_locking_values) or of `effective_keys`.
    Source: Vinck et al., NeuroImage 51, 112 (2010).
    """
    count = torch.as_tensor(n, dtype=R.dtype, device=R.device)
    return torch.where(count > 1, (count * R.square() - 1) / (count - 1), math.nan)


@checked
def ppc(theta: Tensor, dim: Dim = -1) -> Tensor:
    """`debias` of the order parameter over `dim`; null 0, sd about 1/n."""
    dims = (dim,) if isinstance(dim, int) else dim
    return debias(order_parameter(theta, dim), math.prod(theta.shape[d] for d in dims))


SHORTEST_PREFIX = 32  # tokens; independent phases then have R = .157, as 32 oscillators do


@checked
def first_prefix(tokens: int) -> int:
    """Index of the first token whose prefix is long enough for its R to mean something.

    That of the prefix of SHORTEST_PREFIX tokens, or the last of a shorter sequence.
    """
    return min(SHORTEST_PREFIX, tokens) - 1


@checked
def prefix_order_parameter(theta: Tensor, dim: int = 1) -> Tensor:
    """R_t = |(1/t) sum over u <= t of exp(i theta_u)| along `dim`; same shape as theta.

    Null: null_order_parameter(t) = .886 / sqrt(t), so always report prefix_ppc too.
    """
    return modulus(cumulative_sum(theta.cos(), dim), cumulative_sum(theta.sin(), dim)) / _counts(
        theta, dim
    )


def cumulative_sum(x: Tensor, dim: int) -> Tensor:
    """Sum over everything up to each index along `dim`.

    On CUDA torch's cumsum may give other bits in another run. Under
    torch.use_deterministic_algorithms, which refuses it, the sum is taken in ceil(log2 n) additions
    of shifted copies (Hillis and Steele, CACM 29, 1170 (1986)), with the same bits in every run.
    """
    if not _cumsum_is_refused(x):
        return x.cumsum(dim)
    total, shift = x.movedim(dim, -1), 1
    while shift < total.shape[-1]:
        total = total + F.pad(total[..., :-shift], (shift, 0))
        shift *= 2
    return total.movedim(-1, dim)


def _cumsum_is_refused(x: Tensor) -> bool:
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


@checked
def prefix_ppc(theta: Tensor, dim: int = 1) -> Tensor:
    """`debias` of the prefix R along `dim`, same shape as theta; NaN at t = 1, null 0, sd 1/t."""
    return debias(prefix_order_parameter(theta, dim), _counts(theta, dim))


@checked
def null_order_parameter(n: Count) -> Count:
    """Mean R of n independent uniform phases, sqrt(pi / 4n); within 0.5% for n >= 16."""
    positive("n", n)
    return (math.pi / (4 * n)) ** 0.5


@checked
def null_order_parameter_variance(n: Count) -> Count:
    """Variance of R of n independent uniform phases, (1 - pi/4) / n, for large n.

    Also the null of `metastability` and `chimera_index` with n phases per community, and, times
    n, that of `susceptibility`.
    """
    positive("n", n)
    return (1 - math.pi / 4) / n


@checked
def null_order_parameter_quantile(n: Count, q: float = 0.95) -> Count:
    """Quantile q of R of n independent uniform phases, sqrt(ln(1/(1-q)) / n): Rayleigh's test.

    P(R > r) = exp(-n r^2) for large n. Source: Mardia and Jupp, Directional Statistics (2000).
    """
    positive("n", n)
    if not 0 <= q < 1:
        raise ConfigError(f"q={q} is out of range; it must be in [0, 1)")
    return (math.log(1 / (1 - q)) / n) ** 0.5


@checked
def null_band_fraction(n: int, low: float, high: float) -> float:
    """Probability that n independent uniform phases have low <= R <= high, for large n."""
    arguments.between("low", low, 0)
    arguments.between("high", high, low)
    return math.exp(-n * low**2) - math.exp(-n * high**2)


def _counts(theta: Tensor, dim: int) -> Tensor:
    """1, 2, ... along `dim`, broadcastable against theta."""
    shape = [1] * theta.dim()
    shape[dim] = -1
    count = torch.arange(1, theta.shape[dim] + 1, device=theta.device, dtype=theta.dtype)
    return count.view(shape)
