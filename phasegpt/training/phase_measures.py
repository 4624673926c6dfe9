"""What is measured of a layer's trajectory: numbers for the loggers, arrays for the run folder.

R is over what is coupled: the oscillators of a token and head (kuramoto), or the prefix of a
channel (phase_sync), there for t >= 32 alone, or the last token of a shorter context. R alone can
be moved for free; read it beside dR, ppc, participation and offsets.

    path = model.blocks[7].attn.trajectory(x_BTD)
    measure(path, band=(0.35, 0.55))["dR"]  # per head, [H]

Shapes: B batch, T time, H heads, N oscillators, S integration steps, V validations, K histogram
bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phasegpt import phase
from phasegpt.attention import Trajectory
from phasegpt.training.metric_names import HARMONICS, LOCKED_WITHIN, TOTAL_BUDGET

BINS = 32  # of the histograms, from -pi to pi

#: Every array beside the per-head values of MEASURES, by layer.
ARRAYS = {
    "R_HS": "[H,S+1] R before every step and after the last, mean over tokens",
    "R_HT": "[H,T] R at the end by token position",
    "theta0_HK": "[H,K] number of initial phases in each of K equal arcs from -pi to pi",
    "theta_HK": "[H,K] the same of the final phases",
    "frequency_HN": "[H,N] mean effective frequency of every oscillator, radians per unit time",
}


@torch.no_grad()
def measure(path: Trajectory, band: tuple[float, ...]) -> dict[str, Tensor]:
    """The values of MEASURES that the layer has, per head [H] except for those in SINGLE."""
    theta0, theta, S, dt = path.theta0, path.theta, path.steps, path.dt
    first = _first(path)
    dim = 1 if path.over_prefix else -1  # along which phases are coupled
    free = phase.uncoupled_phases(theta0, path.omega, steps=S, dt=dt)
    free = free if path.free is None else path.free[-1]
    R_BTH = order(path, theta)
    gain_BTH = R_BTH - order(path, free)
    drift = 0.0 if path.drift is None else path.drift
    ppc = phase.prefix_ppc(theta)[:, first:] if path.over_prefix else phase.ppc(theta)
    found = {
        "R_start": _heads(order(path, theta0)),
        "R_end": _heads(R_BTH),
        "dR": _heads(gain_BTH),
        "ppc": _heads(ppc),
        **{f"daido_{m}": _heads(order(path, m * theta)) for m in range(2, HARMONICS + 1)},
        "budget": phase.coupling_budget(path.coupling, steps=S, dt=dt),
        "participation": phase.participation_ratio(theta - drift),
        "offsets": phase.offset_spread(theta0 - drift),
    }
    if len(gain_BTH) > 1:
        found["dR_se"] = gain_BTH.mean((1, 2)).std() / len(gain_BTH) ** 0.5
    if S:
        R_BTHS = _order_in_time(path)
        found["metastability"] = phase.metastability(R_BTHS, time=-1, community=2).mean()
        found["chimera"] = phase.chimera_index(R_BTHS, time=-1, community=2).mean()
        frequency = phase.effective_frequency(theta0, theta, S * dt)[:, first:]
        locked = phase.locked_fraction(frequency, LOCKED_WITHIN, dim).unsqueeze(dim)
        found["frequency"] = _heads(frequency.std(dim, correction=0, keepdim=True))
        found["locked"] = _heads(locked)
        if path.free is not None:
            alone = phase.effective_frequency(theta0, free, S * dt)[:, first:]
            found["locked_null"] = _heads(
                phase.locked_fraction(alone, LOCKED_WITHIN, dim).unsqueeze(dim)
            )
        else:  # over a prefix every token has the channel's own omega
            null = phase.locked_fraction(path.omega, LOCKED_WITHIN)
            found["locked_null"] = torch.ones_like(null) if path.over_prefix else null
    if not path.over_prefix:
        visits = phase.band_statistics(path.R, *band, dt=dt)
        found["band_final"] = _heads(((band[0] <= R_BTH) & (band[1] >= R_BTH)).to(R_BTH.dtype))
        found["band_inside"] = _heads(visits.inside)
        entry = visits.entry.masked_fill(visits.entry.isinf(), math.nan)
        found["band_entry"] = entry.nanmean((0, 1))
        found["band_exits"] = _heads(visits.exits.to(R_BTH.dtype))
    return found


@torch.no_grad()
def order(path: Trajectory, theta_BTHN: Tensor) -> Tensor:
    """The layer's R of any phases, mean over the channels of a head, [B,T',H]."""
    R = path.order_parameter(theta_BTHN)
    return R[:, _first(path) :].mean(-1) if path.over_prefix else R


def scalars(layers: Mapping[int, Mapping[str, Tensor]], prefix: str) -> dict[str, float]:
    """The mean over heads of what `measure` found in each layer, by metric name.

    A value that is not there (nothing enters the band, one head has no chimera) is left out.
    """
    means = {
        f"{prefix}/{name}/layer{layer}": value.double().nanmean()
        for layer, found in layers.items()
        for name, value in found.items()
    }
    if not means:
        return {}
    values = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
    values[f"{prefix}/{TOTAL_BUDGET}"] = sum(values[f"{prefix}/budget/layer{i}"] for i in layers)
    return {name: value for name, value in values.items() if math.isfinite(value)}


@torch.no_grad()
def arrays(path: Trajectory, found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """ARRAYS, and per head what `measure` found, float32; histograms are int64."""
    R_HT = path.order_parameter(path.theta).mean((0, 3) if path.over_prefix else 0).T
    duration = path.steps * path.dt or 1.0  # of no steps all frequencies are 0
    frequency = phase.effective_frequency(path.theta0, path.theta, duration)
    kept = {
        **found,
        "R_HS": _order_in_time(path).mean((0, 1)),
        "R_HT": R_HT,
        "theta0_HK": histogram(path.theta0),
        "theta_HK": histogram(path.theta),
        "frequency_HN": frequency.mean((0, 1)),
    }
    return {name: _numpy(value) for name, value in kept.items()}


def histogram(theta_BTHN: Tensor) -> Tensor:
    """Number of phases of every head in each of BINS equal arcs from -pi to pi, [H,K]."""
    H = theta_BTHN.shape[2]
    turn = (theta_BTHN + math.pi).remainder(2 * math.pi) / (2 * math.pi)
    arc = (turn * BINS).long().clamp(0, BINS - 1)  # NaN is in the first one
    arc = arc + BINS * torch.arange(H, device=arc.device).unsqueeze(-1)
    return arc.flatten().bincount(minlength=H * BINS).view(H, BINS)


def _first(path: Trajectory) -> int:
    """Index of the first token that counts."""
    return phase.first_prefix(path.theta.shape[1]) if path.over_prefix else 0


def _order_in_time(path: Trajectory) -> Tensor:
    """R of every head before each step and after the last, [B,T',H,S+1]."""
    return path.R[:, _first(path) :].mean(3) if path.over_prefix else path.R


def _heads(values: Tensor) -> Tensor:
    """Mean of [B,T,H] or [B,T,H,N] over all but heads."""
    return values.mean((0, 1, 3) if values.dim() == 4 else (0, 1))


def _numpy(value: Tensor) -> np.ndarray[Any, Any]:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()
