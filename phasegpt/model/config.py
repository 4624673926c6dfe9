"""The shape of a GPT: the `model` group, and the flat GPTConfig that fixes a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, number
from phasegpt.data.config import DataConfig
from phasegpt.data.corpora import known_vocab_size


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """The `model` group: sizes under GPT-2's names; `vocab_size=null` takes the tokenizer's."""

    section: ClassVar[str] = "model"
    n_layer: int = number(12, ge=1)
    n_head: int = number(12, ge=1)
    n_embd: int = number(768, ge=1)
    block_size: int = number(512, ge=1)
    vocab_size: int | None = number(None, ge=2)
    dropout: float = number(0.1, ge=0, lt=1)
    bias: bool = True
    positions: Literal["learned", "rope"] = "learned"
    layer_norm_epsilon: float = number(1e-5, gt=0)
    activation_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelSection):
    """Everything that fixes a GPT's shape and mechanism, flat.

    `attention` is a module name under phasegpt/attention, used in `attention_layers` (0-based);
    the other layers are softmax. `attention_options` belong to the mechanism's own Config.
    """

    vocab_size: int = number(50257, ge=2)
    attention: str = "softmax"
    attention_layers: tuple[int, ...] = ()
    attention_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what binds several fields together."""
        super().__post_init__()
        if self.n_embd % self.n_head:
            fits = [h for h in range(1, min(self.n_embd, 64) + 1) if self.n_embd % h == 0]
            raise ConfigError(
                f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}; "
                f"choose n_head from {','.join(map(str, fits))}"
            )
        if self.positions == "rope" and (self.n_embd // self.n_head) % 2:
            raise ConfigError(
                f"model.positions=rope needs an even head width; n_embd/n_head is "
                f"{self.n_embd // self.n_head}"
            )
        for layer in self.attention_layers:
            if not 0 <= layer < self.n_layer:
                raise ConfigError(
                    f"attention.layers={list(self.attention_layers)} is out of range: the model "
                    f"has {self.n_layer} layers, counted 0..{self.n_layer - 1}; "
                    f"change attention.layers or model.n_layer"
                )
        object.__setattr__(self, "attention_layers", tuple(sorted(set(self.attention_layers))))

    @classmethod
    def from_sections(
        cls, model: ModelSection, attention: Mapping[str, Any], vocab_size: int
    ) -> GPTConfig:
        """Join the `model` and `attention` groups of a run's configuration."""
        check_memory(model)
        options = dict(attention)
        name, layers = str(options.pop("name", "softmax")), options.pop("layers", "all")
        if layers == "all":
            layers = range(model.n_layer)
        elif isinstance(layers, str) or not isinstance(layers, Sequence):
            raise ConfigError(f"attention.layers={layers!r} must be a list such as [7], or all")
        return cls(
            **{**dataclasses.asdict(model), "vocab_size": vocab_size},
            attention=name,
            attention_layers=tuple(layers),
            attention_options=options,
        )


def gpt_config(
    model: ModelSection,
    attention: Mapping[str, Any],
    data: DataConfig,
    vocab_size: int | None = None,
) -> GPTConfig:
    """The model's flat configuration; its vocabulary is model.vocab_size, or the tokenizer's.

    `vocab_size` is the tokenizer's where the data has been read; for known corpora it need not
    be. Raises ConfigError when it is unknown, or larger than model.vocab_size.
    """
    tokens = vocab_size or known_vocab_size(data)
    size = model.vocab_size or tokens
    if size is None:
        raise ConfigError(
            f"the vocabulary of data.corpus={data.corpus} with data.tokenizer="
            f"{data.tokenizer} is known only once the text is read; set model.vocab_size"
        )
    if tokens is not None and size < tokens:
        raise ConfigError(
            f"model.vocab_size={size} is smaller than the tokenizer's {tokens}; raise it, or "
            f"set null"
        )
    return GPTConfig.from_sections(model, attention, size)


def check_memory(model: ModelSection) -> None:
    """ConfigError for a model whose parameters alone exceed this machine's memory."""
    width, layers, rows = model.n_embd, model.n_layer, (model.vocab_size or 0) + model.block_size
    least = 4 * width * (12 * layers * width + rows)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if least > memory:
        sizes = ("n_layer", "n_embd", "block_size", "vocab_size")
        told = ", ".join(f"model.{key}={getattr(model, key)!s:.40}" for key in sizes)
        raise ConfigError(
            f"this model is too large for memory: its parameters take at least "
            f"{f'{least:,}':.60} bytes in float32, and this machine has {memory:,}; lower one of "
            f"{told}"
        )
