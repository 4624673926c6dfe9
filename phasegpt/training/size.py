"""What a model costs: parameters, FLOPs of a token, bytes that decoding remembers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from phasegpt.attention import Flops
from phasegpt.core.eval_mode import inference
from phasegpt.model.gpt import GPT


def size(model: GPT, flops: Flops) -> dict[str, Any]:
    """Of a model, for run.json; of one that matches softmax also the width found.

    FLOPs are of training, forward and backward, at the full context: matrix products with all keys
    and with the causal ones alone, and a rough count of the attention's elementwise work.
    """
    found: dict[str, Any] = {}
    parameters = {
        "non_embedding": model.num_parameters(),
        "all": model.num_parameters(non_embedding=False),
    }
    if model.config.match_parameters is not None:
        plain = replace(model.config, attention_layers=(), mlp_width=None, match_parameters=None)
        with torch.device("meta"):
            parameters["softmax"] = GPT(plain, seed=0).num_parameters(non_embedding=False)
        found["mlp_width"] = model.config.mlp_width
    counts = {"full": flops.products, "causal": flops.causal_products}
    counts["elementwise"] = flops.elementwise
    return {
        **found,
        "parameters": parameters,
        "flops_per_token": {name: round(count) for name, count in counts.items()},
        "decode_bytes": decode_bytes(model),
    }


def decode_bytes(model: GPT) -> dict[str, int] | None:
    """What a decode cache of one text holds: bytes of each token, and bytes whatever its length.

    Measured on texts of one and of two tokens. None for a model that sees the future, or takes
    one token only.
    """
    if model.leaky or model.config.block_size < 2:
        return None
    device, held = next(model.parameters()).device, []
    with inference(model):
        for tokens in (1, 2):
            cache = model.new_cache()
            model(torch.zeros(1, tokens, dtype=torch.long, device=device), cache=cache)
            held.append(cache.nbytes)
    return {"token": held[1] - held[0], "constant": 2 * held[0] - held[1]}
