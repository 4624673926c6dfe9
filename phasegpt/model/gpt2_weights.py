"""GPT-2 as Hugging Face stores it, config.json and safetensors, read without transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phasegpt.core.errors import CheckpointError, ConfigError, DataError
from phasegpt.core.files import read_json
from phasegpt.model import shards
from phasegpt.model.config import GPTConfig
from phasegpt.model.shards import INDEX, WHOLE

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
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def find(name_or_folder: str | Path) -> Path:
    """The folder with both files, fetched if it is a hub id; CheckpointError if there is none."""
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = _fetched(str(name_or_folder))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; it must hold a GPT-2 in HF's form")
    if not shards.there(folder):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        if not pickled:
            raise CheckpointError(f"{folder} has no {WHOLE}; it must hold a GPT-2 in HF's form")
        raise CheckpointError(
            f"{folder} has no {WHOLE} but {', '.join(pickled)}, a pickle, which can run code when "
            f"it is read; if you trust it, write it anew: "
            f"GPT2LMHeadModel.from_pretrained(folder).save_pretrained(folder) of transformers"
        )
    return folder


def _fetched(name: str) -> Path:
    """The local copy of a hub repository's config.json and weights."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        folder = Path(hf_hub_download(name, "config.json")).parent
        try:
            hf_hub_download(name, WHOLE)
        except LocalEntryNotFoundError:  # no network: whether it is there is not known
            raise
        except EntryNotFoundError:
            hf_hub_download(name, INDEX)
            for file in shards.files(folder):
                hf_hub_download(name, file)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{name} is neither a folder nor a model that can be fetched "
            f"({type(error).__name__}); give a folder with config.json and {WHOLE}"
        ) from error
    return folder


def config(folder: Path) -> GPTConfig:
    """The model's shape, with GPT2Config's defaults for what config.json leaves out.

    CheckpointError for one that is no GPT-2, or a variant of it.
    """
    hf = _json(folder / "config.json")
    where = f"{folder}/config.json"
    if hf.get("model_type") != "gpt2":
        raise CheckpointError(
            f"{folder} holds a {hf.get('model_type')!r} model; only 'gpt2' can be read"
        )
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
        found = GPTConfig(
            n_layer=sizes["n_layer"],
            n_head=sizes["n_head"],
            n_embd=sizes["n_embd"],
            block_size=sizes["n_positions"],
            vocab_size=sizes["vocab_size"],
            dropout=dropouts["resid_pdrop"],
            layer_norm_epsilon=sizes["layer_norm_epsilon"],
        )
    except ConfigError as error:
        raise CheckpointError(f"{where} is no GPT-2 that can be read: {error}") from None
    if hf.get("n_inner") not in (None, 4 * found.n_embd):
        raise CheckpointError(
            f"{where} has n_inner={hf['n_inner']!r}; only 4 n_embd = {4 * found.n_embd} (or null) "
            f"can be read: use transformers for this model"
        )
    return found


def fill(model: nn.Module, folder: Path) -> None:
    """Copy the weights into a GPT of that shape; CheckpointError where they do not fit.

    Every stored tensor must have its place; only the causal masks of old files are left out.
    """
    weights = _stored(folder)
    head = weights.pop(_HEAD, None)
    if head is not None and not torch.equal(
        head.float(), weights.setdefault(_EMBEDDING, head).float()
    ):
        raise CheckpointError(
            f"{folder}: {_HEAD} differs from {_EMBEDDING}, and a GPT has one matrix for both; use "
            f"transformers for this model, or remove {_HEAD} from the file to do without it"
        )
    targets = {name: x for name, x in model.state_dict().items() if name != _HEAD}  # tied
    if lacking := [name for name in targets if name not in weights]:
        raise CheckpointError(f"{folder} has no {_some(lacking)} among its weights")
    if unused := [x for x in weights if x not in targets and not _MASKS.fullmatch(x)]:
        raise CheckpointError(
            f"{folder}: {_some(unused)} would not be used by the GPT-2 that config.json describes; "
            f"correct config.json (n_layer?), or save the language model alone"
        )
    with torch.no_grad():
        for name, target in targets.items():
            value = weights[name].t() if name.endswith(_CONV1D) else weights[name]
            if value.shape != target.shape or not value.is_floating_point():
                raise CheckpointError(
                    f"{folder}: {name} has shape {list(value.shape)} of {value.dtype}, expected "
                    f"{list(target.shape)} of a floating-point type"
                )
            target.copy_(value)


def _stored(folder: Path) -> dict[str, Tensor]:
    """All tensors under the names of GPT2LMHeadModel."""

    def whole(name: str) -> str:
        return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"

    return shards.tensors(folder, whole)


def _json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
