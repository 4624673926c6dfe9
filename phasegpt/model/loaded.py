"""A model with where it comes from, put together from what a file holds.

What a file holds of an earlier form is migrated, and what is damaged is a CheckpointError.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from phasegpt.attention import origin
from phasegpt.core.errors import CheckpointError
from phasegpt.core.files import read_json
from phasegpt.data.json_tokenizers import library
from phasegpt.data.tokenizers import Tokenizer, from_state
from phasegpt.model.checkpoint import reading
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.model.migration import migrated


class Loaded(NamedTuple):
    """A model with where it comes from."""

    model: GPT
    tokenizer: Tokenizer
    config: dict[str, Any] | None  # the run's; None: an exported folder without run.json
    path: Path  # the .ckpt file or the exported folder
    sha256: str  # of the .ckpt or of model.safetensors
    data_fingerprint: str | None = None  # of the corpus it was trained on, where run.json says


def tokenizer_of(path: Path, state: Any) -> Tokenizer:
    """The tokenizer whose state the file at `path` holds; CheckpointError, DataError."""
    if isinstance(state, dict) and state.get("name") == "gpt2":
        return from_state(state)  # where its file is missing, this one is not damaged
    if isinstance(state, dict) and state.get("name") == "hf":
        library(f"the tokenizer in {path}")
    with reading(path):
        return from_state(state)


def recorded(record: Path, attention: str) -> str | None:
    """The fingerprint of the text, as a run.json has it; warns if the mechanism's code changed."""
    with reading(record):
        content = read_json(record)
        known = (content.get("data") or {}).get("fingerprint")
        if not isinstance(known, str | None):
            raise TypeError(f"data.fingerprint={known!r:.80} must be text")
        if changed := code_changed(content, attention):
            warnings.warn(f"{record.parent}: {changed}; its numbers may differ", stacklevel=4)
    return known


def code_changed(record: Mapping[str, Any], attention: str) -> str | None:
    """How the code of a mechanism of another package differs from what a run.json says, or None."""
    then, now = record.get("attention_code"), origin(attention)
    if not isinstance(then, dict) or now is None or then.get("sha256") == now["sha256"]:
        return None
    return (
        f"the code of attention={attention} is not that of the training ({now['module']}: sha256 "
        f"{now['sha256']!s:.16}, then {then.get('sha256')!s:.16})"
    )


def of_today(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as it would be written now; what is damaged is judged by others."""
    attention = config.get("attention") if isinstance(config, dict) else None
    return {**config, "attention": migrated(attention)} if isinstance(attention, dict) else config


def assembled(config: GPTConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer) -> GPT:
    """The GPT with these weights, in eval mode; CheckpointError where they do not fit."""
    if config.vocab_size < tokenizer.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}"
        )
    with torch.random.fork_rng(devices=[]):  # making a layer draws numbers that are not used
        model = GPT(config, seed=0)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the weights do not fit the configuration: {error!s:.600}"
        ) from error
    model.tokenizer = tokenizer
    return model.eval()
