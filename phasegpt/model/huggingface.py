"""Causal language models of Hugging Face, with their tokenizers (extra hf)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phasegpt.core.errors import ConfigError


def load(name: str | Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or of a name on the hub; ConfigError where there is none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name} is neither a checkpoint of ours nor a Hugging Face model that can be loaded "
            f"({str(error).splitlines()[0]})"
        ) from error


def stop_strings(tokenizer: Any, strings: str | list[str]) -> Any:
    """Hugging Face's own criterion that ends a row once one of `strings` is in its new text."""
    from transformers import StopStringCriteria

    return StopStringCriteria(tokenizer, strings)
