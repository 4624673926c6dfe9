"""How far a model's oscillators agree, whether coupling does it, and what it is worth.

    model = phasegpt.load("runs/quickstart/TIME")
    measured = measure(model, ids_BT)            # B sequences of T + 1 tokens
    measured.statistics["layers"][0]["heads"][0]["dR"]

Shapes: B sequences, T time, H heads, N oscillators, S integration steps, C order parameters (see
phasegpt.interpretation.tracing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phasegpt import phase
from phasegpt.analysis.statistics import interval
from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.core.randomness import keyed_generator
from phasegpt.interpretation.attention_maps import Maps, attention_maps, map_measures
from phasegpt.interpretation.interventions import interventions
from phasegpt.interpretation.tracing import Trace, trace
from phasegpt.model.gpt import GPT
from phasegpt.training.callback_config import PhaseMonitorConfig

#: The working band of R over the oscillators of a head (kuramoto); a rule of thumb, no result.
BAND = PhaseMonitorConfig().band
#: Prefix PPC above which the tokens' phases hardly differ (phase_sync); a convention.
LOCKED = 0.9
#: Two oscillators with a PLV above this are in one cluster.
PLV_THRESHOLD = 0.5

#: The status of phases that no coupling can move; the model's is that of the others.
UNCOUPLED = "uncoupled"

#: By Attention.coupled_axis.
RULES = {
    "oscillators": (
        f"healthy: mean R in [{BAND[0]}, {BAND[1]}] and dR above 0 with its interval clear of 0; "
        f"over-synchronized: mean R above {BAND[1]}; under-synchronized: anything else"
    ),
    "prefix": (
        f"healthy: dR above 0 with its interval clear of 0 and mean prefix PPC at most {LOCKED}; "
        f"over-synchronized: mean prefix PPC above {LOCKED}; under-synchronized: anything else"
    ),
}


@dataclass(frozen=True)
class Measurement:
    """What `measure` found; `statistics` is JSON-ready, the rest is what it comes from."""

    ids_BT: Tensor
    loss_BT: Tensor  # of predicting the next token, nats
    traces: list[Trace]
    maps: dict[int, Maps]  # attention of the first sequence, by layer (kuramoto)
    coherence_BTH: dict[int, Tensor]  # of each token with the others it attends to, or prefix R
    statistics: dict[str, Any]


def measure(
    model: GPT,
    ids_BT: Tensor,
    *,
    layers: Sequence[int] | None = None,
    effects: bool = True,
    seed: int = 0,
) -> Measurement:
    """Statistics of every phase layer (or those in `layers`) on B sequences of T + 1 tokens.

    `effects` adds the interventions, about ten more forward passes; `seed` is for what is
    scrambled. The model stays as it is. Raises ConfigError for a model without oscillators.
    """
    loss_BT, traces = trace(model, ids_BT, layers)
    maps: dict[int, Maps] = {}
    coherence: dict[int, Tensor] = {}
    rows = []
    for t in traces:
        attention = None
        if isinstance(t.layer.module, Kuramoto):
            maps[t.layer.index], attention = _attention(t, seed)
            coherence[t.layer.index] = attention["coherence"]
        else:
            coherence[t.layer.index] = t.R_BTHC.mean(-1)
        rows.append(_layer(t, loss_BT, attention))
    statistics: dict[str, Any] = {
        "sequences": len(loss_BT),
        "context": loss_BT.shape[1],
        "tokens": loss_BT.numel(),
        "loss": estimate(loss_BT),
        "status": _worst([row["status"] for row in rows]),
        "layers": rows,
    }
    if effects:
        changed = interventions(model, ids_BT, layers=layers, seed=seed)
        statistics["interventions"] = [
            {
                "name": effect.name,
                "kind": effect.kind,
                "value": effect.value,
                "loss": _round(effect.loss_BT.double().mean()),
                "change": estimate(effect.loss_BT.double() - loss_BT.double()),
            }
            for effect in changed
        ]
    return Measurement(ids_BT, loss_BT, traces, maps, coherence, statistics)


def estimate(values_BT: Tensor) -> dict[str, Any]:
    """Mean with its 95% interval by Student's t over `n` sequences: {mean low high n per}.

    A single sequence gives the interval over its tokens instead (per: token), which is too
    narrow, since neighbouring tokens are not independent.
    """
    values = values_BT.double().mean(1) if len(values_BT) > 1 else values_BT.double()[0]
    mean, _, low, high = interval(values.tolist())
    ends = {"low": _round(low), "high": _round(high)}
    per = "sequence" if len(values_BT) > 1 else "token"
    return {"mean": _round(mean), **ends, "n": len(values), "per": per}


def status(axis: str, mean_R: float, ppc: float | None, dR: dict[str, Any]) -> tuple[str, str]:
    """healthy, over-synchronized or under-synchronized by RULES[axis], and why in a sentence."""
    coupled = dR["low"] is not None and dR["low"] > 0
    by = (
        f"coupling raises it by {dR['mean']:.3f}"
        if coupled
        else f"coupling does not raise it clearly (dR = {dR['mean']:+.3f})"
    )
    if axis == "prefix":
        if ppc is not None and ppc > LOCKED:
            return "over-synchronized", f"Prefix PPC {ppc:.3f} is above {LOCKED}; {by}."
        return "healthy" if coupled else "under-synchronized", f"Prefix R is {mean_R:.3f}; {by}."
    low, high = BAND
    if mean_R > high:
        return "over-synchronized", f"R = {mean_R:.3f} is above the band; {by}."
    if mean_R < low:
        return "under-synchronized", f"R = {mean_R:.3f} is below the band; {by}."
    return "healthy" if coupled else "under-synchronized", f"R = {mean_R:.3f} is in the band; {by}."


def _layer(t: Trace, loss_BT: Tensor, attention: dict[str, Tensor] | None) -> dict[str, Any]:
    o = t.layer.oscillators
    over = "prefix of a channel" if t.layer.over_prefix else "oscillators of a head in one token"
    if getattr(t.layer.module, "forget_logit", None) is not None:
        over += ", weighted as it forgets"
    K = o.coupling.detach().cpu()
    harmonics, harmonics_uncoupled, harmonics_null = daido(t)
    plv, threshold = locking(t)
    effective = phase.cluster_count(t.theta_BTHN.flatten(0, 1), time=0)
    labels = phase.locking_clusters(plv, threshold)
    drift = t.layer.module.drift(t.theta_BTHN.shape[1])
    drift = torch.zeros(()) if drift is None else drift.cpu()
    per_head = {
        "participation": phase.participation_ratio(t.theta_BTHN - drift),
        "offsets": phase.offset_spread(t.theta0_BTHN - drift),
        "coupling": K,
        "budget": phase.coupling_budget(K, steps=o.steps, dt=o.dt),
        "plv_clusters": torch.tensor([len(set(row)) for row in labels.tolist()]),
        "plv_effective": effective,
    }
    heads = []
    for h in range(t.theta_BTHN.shape[2]):
        row = {"head": h, **_order_statistics(t, [h])}
        row |= {name: _round(value[h]) for name, value in per_head.items()}
        row["R_over_steps"] = _round(t.R_steps_HS[h])
        row["R_over_steps_uncoupled"] = _round(t.R_steps_uncoupled_HS[h])
        row["daido"] = _round(harmonics[h])
        row["daido_uncoupled"] = _round(harmonics_uncoupled[h])
        R_BT = t.R_BTHC.mean(-1)[..., h]
        row["loss_correlation"] = {"R": _correlation(loss_BT, R_BT, t.first)}
        if attention is not None:
            coherence_BT = attention["coherence"][..., h]
            row["loss_correlation"]["coherence"] = _correlation(loss_BT, coherence_BT, 1)
            row["attention"] = {
                name: _round(value[..., h].nanmean()) for name, value in attention.items()
            }
        heads.append(row)
    everything = _order_statistics(t, list(range(len(heads))))
    return {
        "layer": t.layer.index,
        "attention": t.layer.name,
        "mechanism": t.layer.mechanism,
        "oscillators": t.theta_BTHN.shape[-1],
        "steps": o.steps,
        "dt": o.dt,
        "R_is_over": over,
        "from_token": t.first + 1,
        "rule": RULES[t.layer.module.coupled_axis],
        "null": {
            "R": _round(phase.null_order_parameter(t.count_THC[t.first :]).mean()),
            "ppc": 0.0,
            "daido": _round(harmonics_null),
            "plv": _round(phase.null_order_parameter(float(loss_BT.numel()))),
            "plv_threshold": _round(threshold),
        },
        **everything,
        "heads": heads,
    }


def _order_statistics(t: Trace, heads: list[int]) -> dict[str, Any]:
    """R, dR, PPC and status of some heads together; tokens before t.first do not count."""
    R, R_uncoupled = (x[:, t.first :, heads] for x in (t.R_BTHC, t.R_uncoupled_BTHC))
    ppc = phase.debias(R, t.count_THC[t.first :, heads])
    in_band = phase.band_statistics(R, *BAND, time=1).fraction.mean()
    dR = estimate((R - R_uncoupled).mean((2, 3)))
    mean = float(R.mean())
    mean_ppc = None if ppc.isnan().any() else float(ppc.mean())
    name, reason = status(t.layer.module.coupled_axis, mean, mean_ppc, dR)
    K = t.layer.oscillators.coupling
    fixed = not isinstance(K, torch.nn.Parameter) and not K[heads].any()
    if fixed or not t.layer.oscillators.steps:
        name, reason = UNCOUPLED, "Nothing couples these phases: K = 0, or there are no steps."
    return {
        "R": {
            "mean": _round(mean),
            "sd": _round(R.std(correction=0)),
            "min": _round(R.min()),
            "max": _round(R.max()),
            "in_band": None if t.layer.over_prefix else _round(in_band),
        },
        "R_uncoupled": _round(R_uncoupled.mean()),
        "dR": dR,
        "ppc": None if mean_ppc is None else estimate(ppc.mean((2, 3))),
        "status": name,
        "reason": reason,
    }


def daido(t: Trace) -> tuple[Tensor, Tensor, float]:
    """R_1 .. R_4 of each head, coupled and not, [H,4], and their null.

    Over oscillators, mean over tokens; where R is over prefixes, over the tokens of a sequence,
    mean over channels.
    """
    if not t.layer.over_prefix:
        spectra = [phase.daido_harmonics(x) for x in (t.theta_BTHN, t.uncoupled_BTHN)]
        means = [x.mean((0, 1)) for x in spectra]
        return means[0], means[1], phase.null_order_parameter(float(t.theta_BTHN.shape[-1]))
    spectra = [phase.daido_harmonics(x, dim=1) for x in (t.theta_BTHN, t.uncoupled_BTHN)]
    means = [x.mean((0, 2)) for x in spectra]
    return means[0], means[1], phase.null_order_parameter(float(t.theta_BTHN.shape[1]))


def locking(t: Trace) -> tuple[Tensor, float]:
    """PLV of the oscillators of each head over all tokens, [H,N,N], and the cluster threshold."""
    theta = t.theta_BTHN.flatten(0, 1)
    chance = phase.null_order_parameter_quantile(float(len(theta)), 0.999)
    return phase.phase_locking_values(theta, time=0), min(1.0, max(PLV_THRESHOLD, chance))


def _attention(t: Trace, seed: int) -> tuple[Maps, dict[str, Tensor]]:
    """Maps of the first sequence, and the measures of every token, one sequence at a time."""
    module = t.layer.module
    assert isinstance(module, Kuramoto)
    device = module.oscillators.omega.device
    generator = keyed_generator("interpret", seed, t.layer.index, device=device)
    kept, measures = None, []
    for x_TD, theta_THN in zip(t.x_BTD, t.theta_BTHN, strict=True):
        theta_BTHN = theta_THN.unsqueeze(0).to(device)
        maps = attention_maps(module, x_TD.unsqueeze(0).to(device), theta_BTHN)
        kept = kept or Maps(maps.coherent.cpu(), maps.plain.cpu())
        measures.append(map_measures(maps, theta_BTHN, generator))
    assert kept is not None
    return kept, {k: torch.cat([m[k].cpu() for m in measures]) for k in measures[0]}


def _correlation(loss_BT: Tensor, coherence_BT: Tensor, first: int) -> dict[str, Any] | None:
    """Pearson's r within a sequence: mean over sequences and its interval.

    Loss and coherence both change along a text; `r_at_position` compares tokens at one position
    of different sequences instead: both less their mean over sequences.
    """
    loss, coherence = loss_BT[:, first:], coherence_BT[:, first:]
    if loss.shape[1] < 3:
        return None
    pairs = zip(loss, coherence, strict=True)
    each = [float(phase.loss_correlation(a[None], b[None])) for a, b in pairs]
    if not all(map(math.isfinite, each)):
        return None  # one of the two does not vary
    r, _, low, high = interval(each)
    at_position = phase.loss_correlation(loss - loss.mean(0), coherence - coherence.mean(0))
    return {
        "r": _round(r),
        "low": _round(low),
        "high": _round(high),
        "n": len(each),
        "r_at_position": _round(at_position) if len(each) > 1 else None,
    }


def _worst(names: list[str]) -> str:
    for name in ("over-synchronized", "under-synchronized"):
        if name in names:
            return name
    return UNCOUPLED if set(names) == {UNCOUPLED} else "healthy"


def _round(value: Any) -> Any:
    """JSON-ready: six decimals, tensors as numbers or lists, NaN and infinity as None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_round(v) for v in value]
    if isinstance(value, float):
        return round(value, 6) + 0.0 if math.isfinite(value) else None
    return value
