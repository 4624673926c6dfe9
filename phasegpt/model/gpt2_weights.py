"""GPT-2 as Hugging Face stores it, config.json and model.safetensors, read without transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import read_json
from phasegpt.model.config import GPTConfig

# What GPT-2 variants may change and we do not: other values would load and compute wrongly.
_FIXED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored as [in, out]


def find(name_or_folder: str | Path) -> Path:
    """The folder with both files, fetched if it is a hub id; CheckpointError if there is none."""
    folder = Path(name_or_folder)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            paths = [
                hf_hub_download(str(name_or_folder), file)
                for file in ("config.json", "model.safetensors")
            ]
        except Exception as error:
            raise CheckpointError(
                f"{name_or_folder} is neither a folder nor a model that can be fetched "
                f"({type(error).__name__}); give a folder with config.json and "
                f"model.safetensors"
            ) from error
        folder = Path(paths[0]).parent
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder} has no {file}; it must hold a GPT-2 in HF's form")
    return folder


def config(folder: Path) -> GPTConfig:
    """The model's shape; CheckpointError for one that is no GPT-2, or a variant of it."""
    try:
        hf = read_json(folder / "config.json")
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if hf.get("model_type") != "gpt2":
        raise CheckpointError(
            f"{folder} holds a {hf.get('model_type')!r} model; only 'gpt2' can be read"
        )
    for key, expected in _FIXED.items():
        if hf.get(key, expected) not in (expected, None):
            raise CheckpointError(
                f"{folder}/config.json has {key}={hf[key]!r}; only {expected!r} can be read"
            )
    return GPTConfig(
        n_layer=hf["n_layer"],
        n_head=hf["n_head"],
        n_embd=hf["n_embd"],
        block_size=hf["n_positions"],
        vocab_size=hf["vocab_size"],
        dropout=hf.get("resid_pdrop", 0.1),
        layer_norm_epsilon=hf.get("layer_norm_epsilon", 1e-5),
    )


def fill(model: nn.Module, folder: Path) -> None:
    """Copy the weights into a GPT of that shape; CheckpointError where they do not fit."""
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / "model.safetensors")
    except Exception as error:  # SafetensorError has no public home
        raise CheckpointError(f"{folder}/model.safetensors is damaged: {error}") from error
    weights = {k if k.startswith("transformer.") else f"transformer.{k}": v
               for k, v in weights.items()}  # fmt: skip
    with torch.no_grad():
        for name, target in model.state_dict().items():
            if name == "lm_head.weight":
                continue  # tied
            if name not in weights:
                raise CheckpointError(f"{folder}/model.safetensors has no {name}")
            value = weights[name].t() if name.endswith(_CONV1D) else weights[name]
            if value.shape != target.shape:
                raise CheckpointError(
                    f"{folder}/model.safetensors: {name} has shape {list(value.shape)}, "
                    f"expected {list(target.shape)}"
                )
            target.copy_(value)
