"""Published weights in Hugging Face's form, config.json and safetensors: found, read, checked."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import read_json
from phasegpt.model import gpt2_weights, llama_weights, shards
from phasegpt.model.config import GPTConfig
from phasegpt.model.shards import INDEX, WHOLE

#: By model_type: a module with `config` and `weights`.
_FAMILIES: dict[str, ModuleType] = {"gpt2": gpt2_weights, "llama": llama_weights}
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def find(name_or_folder: str | Path) -> Path:
    """The folder with both files, fetched if it is a hub id; CheckpointError if there is none."""
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = _fetched(str(name_or_folder))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; it must hold a model in HF's form")
    if not shards.there(folder):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        if not pickled:
            raise CheckpointError(f"{folder} has no {WHOLE}; it must hold a model in HF's form")
        raise CheckpointError(
            f"{folder} has no {WHOLE} but {', '.join(pickled)}, a pickle, which can run code when "
            f"it is read; if you trust it, write it anew: "
            f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder) of transformers"
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
        with suppress(EntryNotFoundError):  # also of one that is not in the cache, offline
            hf_hub_download(name, "tokenizer.json")
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{name} is neither a folder nor a model that can be fetched "
            f"({type(error).__name__}); give a folder with config.json and {WHOLE}"
        ) from error
    return folder


def family(folder: Path) -> str:
    """The model_type; CheckpointError for one that cannot be read."""
    name = _json(folder).get("model_type")
    if name not in _FAMILIES:
        raise CheckpointError(
            f"{folder} holds a {name!r} model; only {' and '.join(map(repr, _FAMILIES))} can be "
            f"read"
        )
    return name


def config(folder: Path) -> GPTConfig:
    """The model's shape; CheckpointError for one that computes something else."""
    return _FAMILIES[family(folder)].config(_json(folder), f"{folder}/config.json")


def fill(model: nn.Module, folder: Path) -> None:
    """Copy the weights into a GPT of that shape; CheckpointError where they do not fit.

    Every stored tensor must have its place; only masks and angles of old files are left out.
    """
    shape: GPTConfig = model.config  # type: ignore[assignment]
    weights = _FAMILIES[family(folder)].weights(folder, shape)
    targets = dict(model.state_dict())
    if shape.tie_embeddings:
        del targets[_HEAD]
        head = weights.pop(_HEAD, None)
        if head is not None and not torch.equal(
            head.float(), weights.setdefault(_EMBEDDING, head).float()
        ):
            raise CheckpointError(
                f"{folder}: {_HEAD} differs from {_EMBEDDING}, and config.json says one matrix for "
                f"both; use transformers for this model, or remove {_HEAD} from the file to do "
                f"without it"
            )
    if lacking := [name for name in targets if name not in weights]:
        raise CheckpointError(f"{folder} has no {_some(lacking)} among its weights")
    if unused := [name for name in weights if name not in targets]:
        raise CheckpointError(
            f"{folder}: {_some(unused)} would not be used by the model that config.json describes; "
            f"correct config.json (the number of layers?), or save the language model alone"
        )
    with torch.no_grad():
        for name, target in targets.items():
            value = weights[name]
            if value.shape != target.shape or not value.is_floating_point():
                raise CheckpointError(
                    f"{folder}: {name} has shape {list(value.shape)} of {value.dtype}, expected "
                    f"{list(target.shape)} of a floating-point type"
                )
            target.copy_(value)


def _json(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
