"""GPT-2 as Hugging Face stores it: its config.json and its tensors, read without transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.model import shards
from phasegpt.model.config import GPTConfig

# What GPT-2 variants may change and we do not: other values would load and compute wrongly.
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "reorder_and_upcast_attn": (False, None),
    "tie_word_embeddings": (True,),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
}
# Sizes with GPT2Config's defaults, and the general name under which it takes them too.
_SIZES = {
    "n_layer": (12, "num_hidden_layers"),
    "n_head": (12, "num_attention_heads"),
    "n_embd": (768, "hidden_size"),
    "n_positions": (1024, "max_position_embeddings"),
    "vocab_size": (50257, "vocab_size"),
    "layer_norm_epsilon": (1e-5, "layer_norm_epsilon"),
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored as [in, out]
_MASKS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # causal, of old versions


def config(hf: dict[str, Any], where: str) -> GPTConfig:
    """The model's shape, with GPT2Config's defaults for what config.json leaves out.

    hf: the content of config.json, called `where`. CheckpointError for a variant of GPT-2.
    """
    for key, allowed in _FIXED.items():
        if key in hf and hf[key] not in allowed:
            raise CheckpointError(
                f"{where} has {key}={hf[key]!r}; only {' or '.join(map(repr, allowed))} can be "
                f"read: use transformers for this model"
            )
    sizes = {key: hf.get(key, hf.get(alias, value)) for key, (value, alias) in _SIZES.items()}
    dropouts = {key: hf.get(key, 0.1) for key in _DROPOUTS}
    if any(value != dropouts["resid_pdrop"] for value in dropouts.values()):
        raise CheckpointError(
            f"{where} has {', '.join(f'{k}={v!r}' for k, v in dropouts.items())}; a GPT has one "
            f"dropout: make the three equal there (they act in training only)"
        )
    try:
        return GPTConfig(
            n_layer=sizes["n_layer"],
            n_head=sizes["n_head"],
            n_embd=sizes["n_embd"],
            block_size=sizes["n_positions"],
            vocab_size=sizes["vocab_size"],
            dropout=dropouts["resid_pdrop"],
            mlp_width=_inner(hf.get("n_inner"), sizes["n_embd"]),
            layer_norm_epsilon=sizes["layer_norm_epsilon"],
        )
    except ConfigError as error:
        raise CheckpointError(f"{where} is no GPT-2 that can be read: {error}") from None


def _inner(width: Any, n_embd: Any) -> Any:
    """n_inner as a GPT has it: None where it is GPT-2's own 4 D."""
    return None if isinstance(n_embd, int) and width == 4 * n_embd else width


def weights(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """The tensors under the names of a GPT, which are GPT-2's; causal masks are left out."""

    def whole(name: str) -> str:
        return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"

    return {
        name: value.t() if name.endswith(_CONV1D) and value.dim() == 2 else value
        for name, value in shards.tensors(folder, whole).items()
        if not _MASKS.fullmatch(name)
    }
