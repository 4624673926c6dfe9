"""What a report shows of a measurement, as plain JSON: large arrays packed to 8 or 16 bits.

Shapes: T time, H heads, N oscillators, S integration steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phasegpt import phase
from phasegpt.analysis.report import pack
from phasegpt.data.tokenizers import Tokenizer
from phasegpt.interpretation.synchronization import BAND, Measurement, daido, locking
from phasegpt.interpretation.tracing import Trace

_TOKENS = 128  # of the first sequence
_MAP_TOKENS = 64
_POINTS = 400  # of a scatter
_PHASES = 3_000_000  # of all layers together, one byte each


def view(measured: Measurement, tokenizer: Tokenizer) -> dict[str, Any]:
    """The first sequence of a measurement token by token, and every layer's pictures.

    A packed array is {shape, bits, step, data}: little-endian integers in base64, times step.
    """
    per_token = sum(t.path_STHN[:, 0].numel() for t in measured.traces)
    T = min(_TOKENS, measured.loss_BT.shape[1], max(8, _PHASES // per_token))
    ids = measured.ids_BT[0, : T + 1].tolist()
    return {
        "tokens": [tokenizer.decode([token]) for token in ids],
        "loss": _round(measured.loss_BT[0, :T]),
        "band": list(BAND),
        "layers": [_layer(measured, t, T) for t in measured.traces],
    }


def _unit(values: Tensor) -> dict[str, Any]:
    return pack(values, step=1 / 65535, bits=16)


def _forget(t: Trace) -> list[list[float]] | None:
    """The rate of every channel, [H,N], where prefixes are weighted by one."""
    forget: Tensor | None = getattr(t.layer.module, "forget", None)
    return None if forget is None else _round(forget.view(t.layer.oscillators.shape))


def _layer(measured: Measurement, t: Trace, T: int) -> dict[str, Any]:
    index = t.layer.index
    maps, M = measured.maps.get(index), min(T, _MAP_TOKENS)
    harmonics, harmonics_uncoupled, harmonics_null = daido(t)
    plv, threshold = locking(t)
    clusters = phase.locking_clusters(plv, threshold)
    null_T = phase.null_order_parameter(t.count_THC).mean((1, 2)).clamp(max=1)
    turn = 2 * math.pi / 256
    return {
        "over_prefix": t.layer.over_prefix,
        "steps": list(t.steps),
        "dt": t.layer.oscillators.dt,
        "null_T": _round(null_T),
        "forget": _forget(t),
        # Angles that would round to a whole turn become 0.
        "theta": pack(
            t.path_STHN[:, :T].remainder(2 * math.pi) % (255.5 * turn), step=turn, bits=8
        ),
        "R": _unit(t.path_R_STH[:, :T]),
        "R_uncoupled": _unit(t.R_uncoupled_BTHC[0, :T].mean(-1)),
        "over_tokens": _unit(t.R_BTHC.mean((0, 3)).T),
        "over_tokens_uncoupled": _unit(t.R_uncoupled_BTHC.mean((0, 3)).T),
        "over_steps": _round(t.R_steps_HS),
        "over_steps_uncoupled": _round(t.R_steps_uncoupled_HS),
        "daido": _round(harmonics),
        "daido_uncoupled": _round(harmonics_uncoupled),
        "daido_null": round(harmonics_null, 4),
        "plv": _unit(plv),
        "plv_order": clusters.sort(dim=-1, stable=True).indices.tolist(),
        "plv_clusters": clusters.tolist(),
        "attention": None if maps is None else _unit(maps.coherent[0, :, :M, :M]),
        "attention_plain": None if maps is None else _unit(maps.plain[0, :, :M, :M]),
        "scatter": _scatter(measured.loss_BT, measured.coherence_BTH[index], max(1, t.first)),
    }


def _scatter(loss_BT: Tensor, coherence_BTH: Tensor, first: int) -> dict[str, Any]:
    """Evenly spaced tokens of all sequences: their loss, and each head's local coherence.

    None where every sequence is shorter than that.
    """
    loss, coherence = loss_BT[:, first:].flatten(), coherence_BTH[:, first:].flatten(0, 1)
    places = np.linspace(0, len(loss) - 1, min(_POINTS, len(loss)))
    chosen = torch.from_numpy(np.unique(places.astype(np.int64)))
    return {"loss": _round(loss[chosen]), "coherence": _round(coherence[chosen].T)}


def _round(values: Tensor) -> Any:
    return np.round(values.double().numpy(), 4).tolist()
