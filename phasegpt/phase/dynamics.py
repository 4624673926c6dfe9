"""Synchrony in time: frequencies, locking, clusters, and how R moves.

`time` names an axis of integration steps, layers or tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.phase.checks import checked, positive


class Band(NamedTuple):
    """How a series of R visits a band; times in the unit of dt."""

    fraction: Tensor  # of the samples, in [0, 1]
    inside: Tensor  # time spent in the band: samples in it times dt
    entry: Tensor  # time of the first sample in the band, inf if there is none
    exits: Tensor  # number of times that R leaves the band


@checked
def coupling_budget(coupling: Tensor, *, steps: int, dt: float) -> Tensor:
    """K S dt per head, dimensionless; add it up over layers.

    Equal frequencies reach R > .99 at 7-17 under uniform causal coupling of random phases (N = 64
    to 1024); 0 is no coupling.
    """
    return coupling * steps * dt


@checked
def effective_frequency(start: Tensor, end: Tensor, duration: float) -> Tensor:
    """(theta(end) - theta(start)) / duration of unwrapped phases, rad per unit time.

    Equal values mean frequency synchrony, with any phases. Null (K = 0): omega itself.
    """
    positive("duration", duration)
    return (end - start) / duration


@checked
def locked_fraction(frequency: Tensor, tolerance: float, dim: int = -1) -> Tensor:
    """Share of the effective frequencies within `tolerance` of their mean along `dim`.

    Null: the same of omega. Source: Kuramoto (1984), ch. 5.
    """
    distance = (frequency - frequency.mean(dim, keepdim=True)).abs()
    return (distance < tolerance).to(frequency.dtype).mean(dim)


@checked
def phase_locking_values(theta: Tensor, *, time: int, dim: int = -1) -> Tensor:
    """PLV_ij = |mean over `time` of exp(i (theta_i - theta_j))|, [..., N, N], N along `dim`.

    Null: null_order_parameter of the number of times; `debias` with it has null 0.
    Source: Lachaux et al., Hum. Brain Mapp. 8, 194 (1999).
    """
    return _coherency(theta, time, dim).abs()


@checked
def locking_clusters(plv: Tensor, threshold: float) -> Tensor:
    """Connected components of PLV > threshold: for every oscillator the first one of its own.

    plv[..., N, N] to integer labels [..., N]; unlocked oscillators are clusters of one. Choose a
    threshold above null_order_parameter_quantile of the number of times.
    """
    N = plv.shape[-1]
    reach = (plv > threshold) | torch.eye(N, dtype=torch.bool, device=plv.device)
    for _ in range(max(N - 1, 1).bit_length()):  # each squaring doubles the length of the paths
        reach = reach.float() @ reach.float() > 0
    return reach.float().argmax(-1)


@checked
def cluster_count(theta: Tensor, *, time: int, dim: int = -1) -> Tensor:
    """Effective rank of the matrix of mean over `time` of exp(i (theta_i - theta_j)).

    exp of the entropy of its eigenvalues over their sum N: k for k equal clusters that do not
    lock to each other, 1 when all are locked. Null: N when the times far outnumber the N phases
    along `dim`. Source: Roy and Vetterli, EUSIPCO (2007).
    """
    eigenvalues = torch.linalg.eigvalsh(_coherency(theta, time, dim))
    share = eigenvalues.clamp_min(0) / theta.shape[dim]
    return torch.special.entr(share).sum(-1).exp()


@checked
def metastability(R: Tensor, *, time: int, community: int) -> Tensor:
    """Mean over communities of the variance of R in time (some authors divide by 1/12).

    Communities are heads or layers; NaN for a single time. Null: null_order_parameter_variance of
    their size. Source: Shanahan, arXiv 0908.3881.
    """
    return R.var(time, keepdim=True).mean((time, community))


@checked
def chimera_index(R: Tensor, *, time: int, community: int) -> Tensor:
    """Mean in time of the variance of R over communities (some authors divide by 5/36).

    High: some communities are in synchrony while others are not; NaN for a single one. Null and
    source as for metastability.
    """
    return R.var(community, keepdim=True).mean((time, community))


@checked
def susceptibility(R: Tensor, n: int, *, time: int) -> Tensor:
    """n Var(R) in time, R over n phases; it peaks at the transition. Null: 1 - pi/4 = .215."""
    return n * R.var(time)


@checked
def band_statistics(R: Tensor, low: float, high: float, *, time: int = -1, dt: float = 1.0) -> Band:
    """Visits of R to low <= R <= high along `time`; null of the fraction: null_band_fraction."""
    positive("dt", dt)
    if low > high:
        raise ConfigError(f"low={low} is above high={high}; give the band as low <= high")
    inside = ((low <= R) & (high >= R)).movedim(time, -1)
    fraction = inside.to(R.dtype).mean(-1)
    entry = torch.where(inside.any(-1), dt * inside.to(R.dtype).argmax(-1), torch.inf)
    exits = (inside[..., :-1] & ~inside[..., 1:]).sum(-1)
    return Band(fraction, dt * inside.sum(-1), entry, exits)


def _coherency(theta: Tensor, time: int, dim: int) -> Tensor:
    """Mean over `time` of exp(i (theta_i - theta_j)), [..., N, N], Hermitian."""
    z = torch.polar(torch.ones_like(theta), theta).movedim((dim, time), (-2, -1))
    return z @ z.mH / z.shape[-1]
