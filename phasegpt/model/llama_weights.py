"""Llama as Hugging Face stores it: its config.json and its tensors, read without transformers.

What a GPT computes alike: RMSNorm, SwiGLU, rotary positions, grouped heads of keys and values
(Touvron et al., arXiv 2307.09288), the head tied to the embedding or not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.model import shards
from phasegpt.model.config import GPTConfig

# What Llama variants may change and a GPT does not: other values would compute wrongly.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
}
_ROTARY = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # of old versions
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_NAMES = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}
_PARTS = {
    "input_layernorm": "ln_1",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.gate_proj": "mlp.c_gate",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def config(hf: dict[str, Any], where: str) -> GPTConfig:
    """The model's shape; `hf` is the content of config.json, called `where`.

    CheckpointError for a variant that computes something else, and for a key that is missing.
    """
    rope = hf.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else rope
    wrong = {key: hf[key] for key in _FIXED if key in hf and hf[key] not in _FIXED[key]}
    if kind != "default":
        wrong["rope_parameters"] = rope
    heads, width = hf.get("num_attention_heads"), hf.get("hidden_size")
    if hf.get("head_dim") is not None and hf["head_dim"] * (heads or 0) != width:
        wrong["head_dim"] = hf["head_dim"]
    for key, value in wrong.items():
        raise CheckpointError(
            f"{where} has {key}={value!r:.200}, which a GPT does not compute; use transformers for "
            f"this model"
        )
    try:
        return GPTConfig.parse(
            {
                "n_layer": hf["num_hidden_layers"],
                "n_head": heads,
                "n_kv_head": hf.get("num_key_value_heads"),
                "n_embd": width,
                "mlp_width": hf["intermediate_size"],
                "block_size": hf["max_position_embeddings"],
                "vocab_size": hf["vocab_size"],
                "layer_norm_epsilon": hf["rms_norm_eps"],
                "rope_theta": float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0))),
                "tie_embeddings": hf.get("tie_word_embeddings", False),
                **{"dropout": 0.0, "bias": False, "positions": "rope"},
                **{"norm": "rmsnorm", "mlp": "swiglu"},
            }
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{where} is no Llama that can be read: {said}") from None


def weights(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """The tensors under the names of a GPT; what has no place there keeps its name."""
    stored = {k: v for k, v in shards.tensors(folder).items() if not _ROTARY.fullmatch(k)}
    found: dict[str, Tensor] = {}
    for layer in range(config.n_layer):
        names = [f"model.layers.{layer}.{part}.weight" for part in _QKV]
        parts = [stored.pop(name) for name in names if name in stored]
        if len(parts) == len(names):
            found[f"transformer.h.{layer}.attn.c_attn.weight"] = torch.cat(parts)
    for name, value in stored.items():
        inside = _LAYER.fullmatch(name)
        if inside and inside[2] in _PARTS:
            found[f"transformer.h.{inside[1]}.{_PARTS[inside[2]]}.weight"] = value
        else:
            found[_NAMES.get(name, name)] = value
    return found
