"""A run's configuration: the groups of conf/ assembled into one frozen, validated RunConfig."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from phasegpt.core.composition import plain
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, flat, number
from phasegpt.data.config import DataConfig
from phasegpt.model.config import GPTConfig, ModelSection, gpt_config
from phasegpt.model.migration import as_hashed, migrated
from phasegpt.training.callback_config import CallbacksConfig

if TYPE_CHECKING:
    from phasegpt.model.gpt import GPT

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


def hashed_fields(
    config: Mapping[str, Any],
    form: Callable[[Mapping[str, Any]], dict[str, Any]] = as_hashed,
) -> dict[str, Any]:
    """A run's configuration as a dict, by field, without NOT_HASHED.

    `form` is that of `attention`: as hashes have it, or `migrated`, as one would write it now; see
    phasegpt.model.migration.
    """
    attention = {"attention": form(config["attention"])} if "attention" in config else {}
    return {
        name: value
        for name, value in flat({**config, **attention}).items()
        if not any(name == key or name.startswith(f"{key}.") for key in NOT_HASHED)
    }


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

    See phasegpt.phase.steering for modes, axes and schedules, phasegpt.attention for `through`.
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

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """As Section.parse; a configuration from before `as_coded` was a mechanism is migrated."""
        if isinstance(attention := values.get("attention"), Mapping):
            values = {**values, "attention": migrated(attention)}
        return super().parse(values)

    def gpt(self, vocab_size: int | None = None) -> GPTConfig:
        """The configuration of its model; see phasegpt.model.config.gpt_config."""
        return gpt_config(self.model, self.attention, self.data, vocab_size)

    @property
    def hash(self) -> str:
        """16 hex digits of the sha256 of everything that changes the result of the run."""
        plain = {**self.to_dict(), "attention": as_hashed(self.attention)}
        for key in NOT_HASHED:
            *parents, last = key.split(".")
            node = plain
            for parent in parents:
                node = node[parent]
            node.pop(last)
        if self.trainer.devices == 1:
            del plain["trainer"]["devices"]  # runs keep the hash from before there was a choice
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def run_config(config: Any) -> RunConfig:
    """Validate a composed configuration (DictConfig, mapping or RunConfig) whole.

    The attention's options come back converted and complete, so that 1 and 1.0 are one run.
    """
    from phasegpt.attention import layer_class

    run = config if isinstance(config, RunConfig) else RunConfig.parse(plain(config))
    layout = GPTConfig.from_sections(run.model, run.attention, vocab_size=2)
    options = layer_class(layout.attention).Config.parse(layout.attention_options)
    own = {"name": layout.attention, "layers": run.attention.get("layers", "all")}
    return replace(run, attention={**options.flat(), **own})


def build(config: Any) -> GPT:
    """A freshly initialised GPT for `config` (see compose); the seed is config.seed."""
    from phasegpt.model.gpt import GPT

    run = run_config(config)
    return GPT(run.gpt(), seed=run.seed)
