"""Two models on the same text: where their attention looks, and which predicts the text better.

Intervals here are over pieces of text at fixed weights; of seeds they say nothing.

Shapes: B sequences, T time, D model width, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phasegpt.analysis.report import pack
from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.attention.softmax import Softmax
from phasegpt.core.errors import ConfigError
from phasegpt.core.eval_mode import inference
from phasegpt.data.corpus import Corpus
from phasegpt.interpretation.attention_maps import (
    attention_weights,
    has_weights,
    mean_distance,
    row_entropy,
)
from phasegpt.interpretation.synchronization import estimate
from phasegpt.model.gpt import GPT

_MEASURES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "entropy": (row_entropy, "entropy of a row / ln t"),
    "distance": (mean_distance, "mean distance, tokens"),
}
_HEADS, _TOKENS = 4, 48  # of a map
_HEADING = re.compile(rb"(?:\A|(?<=\n)) = [^=\n]+ = \n")


def compare_attention(baseline: GPT, phase: GPT, ids_BT: Tensor) -> dict[str, Any]:
    """Entropy and distance of the attention of both models in every layer that has weights.

    Each is {mean low high n per} (synchronization.estimate) over heads and rows but the first;
    `difference` is phase - baseline, paired by sequence. `heads` are means by head, which do not
    correspond. In layers with oscillators `maps` has the weights of the first sequence, packed.
    Raises ConfigError where no layer of both has attention weights.
    """
    if baseline.leaky or phase.leaky:
        raise ConfigError("a model that sees the future has no causal attention to compare")
    both = [_weights(model, ids_BT) for model in (baseline, phase)]
    layers = sorted(both[0].keys() & both[1].keys())
    if not layers:
        raise ConfigError(
            "no layer of both models is softmax or kuramoto, whose attention weights are known "
            "here; compare those two"
        )
    rows = []
    for index in layers:
        maps = {
            which: weights[index][0]
            for which, weights in zip(("baseline", "phase"), both, strict=True)
        }
        oscillates = isinstance(phase.blocks[index].attn, Kuramoto)
        row: dict[str, Any] = {"layer": index, "phase": oscillates, "maps": None}
        for name in _MEASURES:
            a_BHT, b_BHT = (weights[index][1][name] for weights in both)
            values = {"baseline": a_BHT, "phase": b_BHT, "difference": b_BHT - a_BHT}
            row[name] = {which: estimate(v.mean(1)) for which, v in values.items()}
            row[name]["heads"] = {
                which: np.round(values[which].double().mean((0, 2)).numpy(), 6).tolist()
                for which in maps
            }
        if oscillates:
            row["maps"] = {k: pack(A_HTT, step=1 / 255, bits=8) for k, A_HTT in maps.items()}
        rows.append(row)
    return {
        "sequences": len(ids_BT),
        "context": ids_BT.shape[1] - 1,
        "units": {name: unit for name, (_, unit) in _MEASURES.items()},
        "layers": rows,
    }


def _weights(model: GPT, ids_BT: Tensor) -> dict[int, tuple[Tensor, dict[str, Tensor]]]:
    """By layer: the map of the first sequence, [H,T',T'], and the measures, [B,H,T-1]."""
    found: dict[int, tuple[Tensor, dict[str, list[Tensor]]]] = {}

    def look(index: int, layer: Softmax, inputs: tuple[Tensor, ...]) -> None:
        A_BHTT = attention_weights(layer, inputs[0])
        first = A_BHTT[0, :_HEADS, :_TOKENS, :_TOKENS].float().cpu()
        _, measures = found.setdefault(index, (first, {name: [] for name in _MEASURES}))
        for name, (measure, _) in _MEASURES.items():
            measures[name].append(measure(A_BHTT)[..., 1:].cpu())

    attention = [(i, b.attn) for i, b in enumerate(model.blocks) if has_weights(b.attn)]
    hooks = [m.register_forward_pre_hook(partial(look, i)) for i, m in attention]
    device = next(model.parameters()).device
    try:
        with inference(model):
            for ids_T in ids_BT:
                model.forward(ids_T[None, :-1].to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        index: (first, {name: torch.cat(values) for name, values in measures.items()})
        for index, (first, measures) in found.items()
    }


def documents(corpus: Corpus, split: str) -> np.ndarray | None:
    """The document of every token but the first of a split, [T-1], from 0; None without headings.

    A document begins with a line " = Title = ", as the articles of WikiText do; the first with
    whatever stands before it.
    """
    pieces = [corpus.tokenizer.token_bytes(i) for i in range(corpus.tokenizer.vocab_size)]
    tokens_T = np.asarray(corpus.split(split))
    text = b"".join(pieces[token] for token in tokens_T)
    starts = [match.start() for match in _HEADING.finditer(text)]
    if len(starts) < 2:
        return None
    last_T = np.cumsum(np.array([len(piece) for piece in pieces])[tokens_T]) - 1  # byte of a token
    return np.maximum(np.searchsorted(starts, last_T[1:], side="right") - 1, 0)
