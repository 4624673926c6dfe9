"""Configuration: the groups of conf/ as validated dataclasses, and how conf/ is composed.

The YAML files under conf/ are the source users read; below the shell everything is one of these
classes or a plain Python type.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from phasegpt.callback_config import CallbacksConfig
from phasegpt.errors import ConfigError
from phasegpt.validate import Section, flat, number, unknown

_PACKAGE = Path(__file__).resolve().parent
#: conf/ inside an installed wheel, or beside the package in a checkout.
CONF_DIR = next(
    (p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir()),
    _PACKAGE / "conf",
)

#: Keys that may differ between a run and its continuation: they change no number in the result.
NOT_HASHED = (
    "resume",
    "debug",
    "name",
    "logger",
    "data.num_workers",
    "data.cache_dir",
    "callbacks.checkpoint",
    "callbacks.phase_monitor",
    "callbacks.sample_text",
    "callbacks.progress_bar",
)


def hashed_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as a dict, by field, without NOT_HASHED."""
    return {
        name: value
        for name, value in flat(config).items()
        if not any(name == key or name.startswith(f"{key}.") for key in NOT_HASHED)
    }


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


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The `data` group: which text, how it is cut into tokens, and the batch."""

    section: ClassVar[str] = "data"
    corpus: Literal["shakespeare", "wikitext2", "text", "hub", "synthetic"]
    tokenizer: Literal["char", "byte", "gpt2"] = "char"
    variant: Literal["tokens", "raw"] | None = None  # wikitext2 only
    path: str | None = None  # text only: a UTF-8 file or a glob
    name: str | None = None  # hub only: owner/dataset
    subset: str | None = None  # hub only: the dataset's configuration
    text_column: str = "text"  # hub only
    val_fraction: float = number(0.1, gt=0, lt=1)  # text, and hub data sets without one
    characters: int = number(3_000_000, ge=10_000)  # synthetic only: size of the train split
    batch_size: int = number(ge=1)
    num_workers: int = number(0, ge=0)
    cache_dir: str | None = None  # null: $XDG_CACHE_HOME/phasegpt or ~/.cache/phasegpt


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """The `optimizer` group: AdamW with linear warm-up and cosine decay, counted in steps."""

    section: ClassVar[str] = "optimizer"
    lr: float = number(gt=0)
    min_lr: float = number(0.0, ge=0)
    warmup_steps: int = number(100, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = number(0.1, ge=0)
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = number(1e-8, gt=0)
    oscillator_lr_factor: float = number(1.0, ge=0)

    def __post_init__(self) -> None:
        """Check betas and the learning rates' order."""
        super().__post_init__()
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(
                f"optimizer.betas={list(self.betas)} must be two numbers in [0,1), like [0.9,0.95]"
            )
        if self.min_lr > self.lr:
            raise ConfigError(
                f"optimizer.min_lr={self.min_lr} is above optimizer.lr={self.lr}; lower it"
            )


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig(Section):
    """The `regularizer` group: a penalty on the order parameter R; `none` adds nothing.

    See phasegpt.controls for modes, axes and schedules, phasegpt.attention for `through`.
    """

    section: ClassVar[str] = "regularizer"
    mode: Literal["none", "ceiling", "center", "band"] = "none"
    target: float = number(0.45, ge=0, le=1)
    width: float = number(0.1, ge=0, le=1)  # band: R is free within target +- width
    weight: float = number(0.01, ge=0)  # lambda, at the start or when it is constant
    axis: Literal["coupled", "oscillators", "heads", "prefix"] = "coupled"
    schedule: Literal["constant", "warmup", "adaptive"] = "constant"
    warmup_steps: int = number(100, ge=1)
    through: Literal["all", "coupling"] = "all"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Section):
    """The `trainer` group. Intervals count optimizer steps, whatever the accumulation."""

    section: ClassVar[str] = "trainer"
    max_steps: int = number(ge=1)
    accumulate_grad_batches: int = number(1, ge=1)
    gradient_clip_val: float | None = number(1.0, gt=0)
    val_check_interval: int = number(ge=1)
    log_every_n_steps: int = number(10, ge=1)
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    deterministic: bool = False
    devices: int = number(1, ge=1)  # processes on this machine, data.batch_size each


@dataclass(frozen=True, kw_only=True)
class LoggerConfig(Section):
    """The `logger` group; metrics.csv is always written, this adds another place."""

    section: ClassVar[str] = "logger"
    name: Literal["csv", "wandb", "tensorboard"] = "csv"
    project: str = "phasegpt"
    entity: str | None = None
    group: str | None = None
    offline: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A whole training run, as written to the run folder's config.yaml."""

    name: str = "run"
    seed: int = number(42, ge=0, lt=2**32)
    compile: Literal["auto", True, False] = "auto"
    resume: bool | str = False
    debug: bool = False
    attention: dict[str, Any]
    model: ModelSection
    data: DataConfig
    optimizer: OptimizerConfig
    regularizer: RegularizerConfig = RegularizerConfig()
    trainer: TrainerConfig
    logger: LoggerConfig = LoggerConfig()
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)

    @property
    def hash(self) -> str:
        """16 hex digits of the sha256 of everything that changes the result of the run."""
        plain = self.to_dict()
        for key in NOT_HASHED:
            *parents, last = key.split(".")
            node = plain
            for parent in parents:
                node = node[parent]
            node.pop(last)
        if self.trainer.devices == 1:
            del plain["trainer"]["devices"]  # runs keep the hash from before there was a choice
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def compose(overrides: Sequence[str] = (), *, config_name: str = "config") -> Any:
    """Compose conf/ as the command line does and return Hydra's DictConfig.

    `compose(["+experiment=quickstart", "attention.coupling=0.5"])`. Raises ConfigError.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    check_groups(overrides)
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return hydra_compose(config_name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError("\n".join([*misspelt(overrides, config_name), str(error)])) from error


def check_groups(overrides: Sequence[str]) -> None:
    """ConfigError for words that Hydra answers with a traceback, or takes in an order of its own.

    That is a group set to nothing (logger=null), and a +scale before the +experiment whose sizes it
    is to replace: of appended groups the last wins.
    """
    scale = None
    for word in overrides:
        if word.startswith("+scale"):
            scale = word
        elif scale and word.startswith("+experiment"):
            raise ConfigError(
                f"{scale} stands before {word}, which would set its own sizes again; give {word} "
                f"first, then {scale}"
            )
        group, _, value = word.partition("=")
        if value == "null" and group.isidentifier() and (CONF_DIR / group).is_dir():
            options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
            raise ConfigError(f"{word} is no option of {group}; choose from: {', '.join(options)}")


def misspelt(overrides: Sequence[str], config_name: str = "config") -> list[str]:
    """For every override whose key conf/ does not have, the nearest key that it has."""

    def keys(node: Any, prefix: str = "") -> list[str]:
        if not isinstance(node, Mapping):
            return []
        return [k for name in node for k in (prefix + name, *keys(node[name], f"{prefix}{name}."))]

    default = plain(compose(config_name=config_name))
    pairs = [word.partition("=")[::2] for word in overrides]
    chosen = [  # groups have other keys for every option
        f"{group}={option}"
        for group, option in pairs
        if group in default and (CONF_DIR / group / f"{option}.yaml").is_file()
    ]
    known = [*keys(plain(compose(chosen, config_name=config_name))), "experiment"]
    given = [word.partition("=")[0] for word in overrides if "=" in word]
    return [
        unknown(key, known)
        for key in given
        if key not in known
        and not key.startswith(("+", "~", "hydra", "experiment"))
        and difflib.get_close_matches(key, known, n=1)
    ]


def plain(config: Any) -> dict[str, Any]:
    """Any configuration (DictConfig, mapping or section) as plain nested dicts and lists."""
    if isinstance(config, Section):
        return config.to_dict()
    if isinstance(config, Mapping) and not hasattr(config, "_metadata"):
        return dict(config)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
