"""The shape of a GPT: the `model` group, and the flat GPTConfig that fixes a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from phasegpt.core import modules
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import REQUIRED, Section, option, shown
from phasegpt.data.config import DataSection
from phasegpt.data.corpora import known_vocab_size
from phasegpt.model.migration import migrated


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """The `model` group: sizes under GPT-2's names (Radford et al. 2019)."""

    section: ClassVar[str] = "model"
    n_layer: int = option(12, "blocks of attention and MLP", ge=1, le=10_000)
    n_head: int = option(12, "H, attention heads of a layer", ge=1, le=65_536)
    n_kv_head: int | None = option(
        None, "heads of keys and values, each shared by n_head/n_kv_head queries; null: n_head",
        ge=1, le=65_536,
    )  # fmt: skip
    n_embd: int = option(
        768, "D, width of the residual stream; a multiple of n_head", ge=1, le=2**20
    )
    block_size: int = option(512, "tokens that the model attends to at most", ge=1, le=2**24)
    vocab_size: int | None = option(
        None, "rows of the embedding; null: the tokenizer's", ge=2, le=2**24
    )
    dropout: float = option(0.1, "probability, in training only", ge=0, lt=1)
    bias: bool = option(True, "whether linear maps and layer norms have one")
    positions: Literal["learned", "rope"] = option(
        "learned", "how a layer knows positions; rope: rotary, arXiv 2104.09864"
    )
    rope_theta: float = option(
        10_000.0, "base of the rotary frequencies, t theta^(-2k/E)", gt=1, le=1e12
    )
    norm: Literal["layernorm", "rmsnorm"] = option(
        "layernorm", "before attention, MLP and head; rmsnorm: a gain alone, arXiv 1910.07467"
    )
    layer_norm_epsilon: float = option(
        1e-5, "added to the variance, or of rmsnorm to the mean square", gt=0, le=1
    )
    mlp: Literal["gelu", "swiglu", "none"] = option(
        "gelu",
        "4 D wide; swiglu: 8/3 D up to a multiple of 8, arXiv 2002.05202; none: attention alone",
    )
    mlp_width: int | None = option(
        None, "F, width inside the MLP; null: the one that mlp names", ge=1, le=2**24
    )
    match_parameters: Literal["softmax"] | None = option(
        None, "what F makes the parameters equal to, within 1%; null: nothing, F is as named"
    )
    tie_embeddings: bool = option(True, "the head is the embedding; false: a matrix of its own")
    activation_checkpointing: bool = option(
        False, "true: compute activations again in the backward pass, to save memory"
    )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def inner_width(self) -> int:
        """F; 0 without an MLP."""
        return 0 if self.mlp == "none" else self.mlp_width or self.named_width

    @property
    def named_width(self) -> int:
        """The F that mlp names; swiglu has as many weights as GELU, up to a multiple of 8."""
        return -(-self.n_embd // 3) * 8 if self.mlp == "swiglu" else 4 * self.n_embd

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.match_parameters is None, "match_parameters", "mlp_width")
        self.refuse_idle(self.mlp != "none", "mlp", "mlp_width", "match_parameters")


@dataclass(frozen=True, kw_only=True)
class AttentionSection(Section):
    """The `attention` group: a mechanism, the layers that have it, and its own options.

    In a file they stand side by side; here `options` is the mechanism's own Config.
    """

    section: ClassVar[str] = "attention"
    late: ClassVar[bool] = True  # a mechanism's Config stands beside its layer, which needs torch
    name: str = option(REQUIRED, "the mechanism, or a module that holds one: my_package.my_module")
    layers: Literal["all"] | tuple[int, ...] = option(
        "all",
        "layers that have it, counted from 0; the others are softmax",
        form="a list such as [7], or all",
    )
    options: Section = option(REQUIRED, "the mechanism's own")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> AttentionSection:
        """From the group's flat keys, of an old record too; ConfigError."""
        options = migrated(values)
        own = {k: options.pop(k) for k in ("name", "layers") if k in options}
        name = own.setdefault("name", "softmax")
        return cls(**own, options=_options(name if isinstance(name, str) else shown(name), options))

    def check_idle(self) -> None:
        """See Section.check_idle; also refuse options of a mechanism that no layer has."""
        super().check_idle()
        names = [f.name for f in fields(self.options) if f.default is not REQUIRED]
        why = f"while {self.full_name('layers')}=[] gives {self.name} to no layer"
        self.options.refuse_idle(self.layers != (), why, *names)

    def to_dict(self) -> dict[str, Any]:
        """The group's flat keys, complete."""
        own = super().to_dict()
        return {**own.pop("options"), **own}

    def in_layers(self, n_layer: int) -> tuple[int, ...]:
        """The layers by index, of n_layer."""
        return tuple(range(n_layer)) if self.layers == "all" else self.layers


def _options(name: str, values: Mapping[str, Any]) -> Section:
    from phasegpt.attention import layer_class

    config = layer_class(name).Config
    try:
        return config.parse(values)
    except ConfigError as error:
        if modules.dotted(name) and " is unknown; " in str(error):  # as a rule another's option
            remedy = f"attention={name} begins without options, attention.name with another's"
            raise ConfigError(f"{error} ({remedy})") from None
        raise


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelSection):
    """Everything that fixes a GPT's shape and mechanism, flat.

    `attention` is a mechanism's name (see phasegpt.attention.layer_class), used in
    `attention_layers` (0-based; "all", as on the command line); the other layers are softmax, and
    of softmax itself "all" are none. `attention_options` is the mechanism's Config, or its keys.
    With `match_parameters` it has the `mlp_width` that was found,
    which is kept wherever the configuration is written and read.
    """

    vocab_size: int = option(50257, "rows of the embedding", ge=2, le=2**24)
    attention: str = "softmax"
    attention_layers: tuple[int, ...] = "all"  # type: ignore[assignment]
    attention_options: Section = field(default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check what binds several fields together."""
        every = self.attention_layers == "all"  # type: ignore[comparison-overlap]
        if every:
            object.__setattr__(self, "attention_layers", ())
        super().__post_init__()
        if every and self.attention != "softmax":
            object.__setattr__(self, "attention_layers", tuple(range(self.n_layer)))
        if self.n_embd % self.n_head:
            fits = [h for h in range(1, min(self.n_embd, 64) + 1) if self.n_embd % h == 0]
            raise ConfigError(
                f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}; "
                f"choose n_head from {','.join(map(str, fits))}"
            )
        if self.n_head % self.kv_heads:
            raise ConfigError(
                f"model.n_head={self.n_head} is not divisible by model.n_kv_head={self.n_kv_head}; "
                f"each head of keys and values serves as many queries"
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
        if not isinstance(self.attention_options, Section):
            options = _options(self.attention, self.attention_options)
            object.__setattr__(self, "attention_options", options)
        if self.match_parameters is not None and self.mlp_width is None:
            from phasegpt.model.matching import matched_width

            object.__setattr__(self, "mlp_width", matched_width(self))

    @property
    def extrapolates(self) -> bool:
        """Whether it can be asked about positions beyond those that it was trained at: not where
        parameters belong to positions."""
        from phasegpt.attention import layer_class

        own = bool(self.attention_layers) and layer_class(self.attention).per_position
        return self.positions != "learned" and not own

    @classmethod
    def from_sections(
        cls, model: ModelSection, attention: AttentionSection, vocab_size: int
    ) -> GPTConfig:
        """Join the `model` and `attention` groups of a run's configuration."""
        check_memory(model)
        return cls(
            **{**model.to_dict(), "vocab_size": vocab_size},
            attention=attention.name,
            attention_layers=attention.in_layers(model.n_layer),
            attention_options=attention.options,
        )


def gpt_config(
    model: ModelSection,
    attention: AttentionSection,
    data: DataSection,
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
            f"the vocabulary of data.corpus={data.corpus} with this tokenizer is known only once "
            f"the text is read; set model.vocab_size"
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
    attention = (2 + 2 * model.kv_heads / model.n_head) * width
    mlp = (3 if model.mlp == "swiglu" else 2) * model.inner_width
    least = int(4 * width * (layers * (attention + mlp) + rows))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if least > memory:
        sizes = ("n_layer", "n_embd", "block_size", "vocab_size")
        told = ", ".join(f"model.{key}={getattr(model, key)!s:.40}" for key in sizes)
        raise ConfigError(
            f"this model is too large for memory: its parameters take at least "
            f"{f'{least:,}':.60} bytes in float32, and this machine has {memory:,}; lower one of "
            f"{told}"
        )
