"""From a run's configuration to a model, without reading data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from phasegpt.attention import layer_class
from phasegpt.config import GPTConfig, RunConfig, plain
from phasegpt.corpora import known_vocab_size
from phasegpt.errors import ConfigError
from phasegpt.model import GPT


def run_config(config: Any) -> RunConfig:
    """Validate a composed configuration (DictConfig, mapping or RunConfig) whole.

    The attention's options come back converted and complete, so that 1 and 1.0 are one run.
    """
    run = config if isinstance(config, RunConfig) else RunConfig.parse(plain(config))
    layout = GPTConfig.from_sections(run.model, run.attention, vocab_size=2)
    options = layer_class(layout.attention).Config.parse(layout.attention_options)
    own = {"name": layout.attention, "layers": run.attention.get("layers", "all")}
    return replace(run, attention={**options.flat(), **own})


def gpt_config(run: RunConfig, vocab_size: int | None = None) -> GPTConfig:
    """The model's flat configuration; its vocabulary is model.vocab_size, or the tokenizer's.

    `vocab_size` is the tokenizer's where the data has been read; for known corpora it need not
    be. Raises ConfigError when it is unknown, or larger than model.vocab_size.
    """
    tokens = vocab_size or known_vocab_size(run.data)
    size = run.model.vocab_size or tokens
    if size is None:
        raise ConfigError(
            f"the vocabulary of data.corpus={run.data.corpus} with data.tokenizer="
            f"{run.data.tokenizer} is known only once the text is read; set model.vocab_size"
        )
    if tokens is not None and size < tokens:
        raise ConfigError(
            f"model.vocab_size={size} is smaller than the tokenizer's {tokens}; raise it, or "
            f"set null"
        )
    return GPTConfig.from_sections(run.model, run.attention, size)


def build(config: Any) -> GPT:
    """A freshly initialised GPT for `config` (see compose); the seed is config.seed."""
    run = run_config(config)
    return GPT(gpt_config(run), seed=run.seed)
