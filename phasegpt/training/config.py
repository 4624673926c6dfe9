"""A run's configuration: the groups of conf/ assembled into one frozen, validated RunConfig."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from phasegpt.core import modules, targets
from phasegpt.core.composition import plain
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_name
from phasegpt.core.sections import Section, flat, option
from phasegpt.data.config import TASKS, DataSection, TaskConfig
from phasegpt.model.config import AttentionSection, GPTConfig, ModelSection, gpt_config
from phasegpt.model.migration import as_hashed
from phasegpt.training.callback_config import CallbacksConfig
from phasegpt.training.optimizer_config import OptimizerConfig
from phasegpt.training.trainer_config import TrainerConfig

if TYPE_CHECKING:
    from phasegpt.model.gpt import GPT

#: Keys that may differ between a run and its continuation: they change no number in the result.
NOT_HASHED = (
    "resume",
    "debug",
    "name",
    "logger",
    "trainer.profiler",
    "trainer.strategy",
    "trainer.timeout_s",
    "data.num_workers",
    "data.cache_dir",
    "callbacks.checkpoint",
    "callbacks.phase_monitor",
    "callbacks.sample_text",
    "callbacks.progress_bar",
)

#: Keys that came later, with what every run did before: hashed only where they say otherwise.
CAME_LATER: dict[str, Any] = {
    "init_from": None,
    "data.documents": False,
    "data.tokenizer_path": None,
    "data.vocab_size": None,
    "callbacks.early_stopping.accuracy": None,
    "attention.tied": False,
    "attention.step": True,
    "model.norm": "layernorm",
    "model.mlp": "gelu",
    "model.n_kv_head": None,
    "model.rope_theta": 10_000.0,
    "model.mlp_width": None,
    "model.match_parameters": None,
    "model.tie_embeddings": True,
    "trainer.skip_nonfinite": 0,
    "trainer.tf32": False,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.fast_dev_run": 0,
    "trainer.limit_val_batches": None,
    "trainer.overfit_batches": None,
    "callbacks.extra": [],
}


def hashed_fields(
    config: Mapping[str, Any],
    form: Callable[[Mapping[str, Any]], dict[str, Any]] = as_hashed,
) -> dict[str, Any]:
    """A run's configuration as a dict, by field, without NOT_HASHED, as of one process.

    `form` is that of `attention`: as hashes have it, or `migrated`, as one would write it now; see
    phasegpt.model.migration.
    """
    config = _of_one_process(config)
    attention = {"attention": form(config["attention"])} if "attention" in config else {}
    return {
        name: value
        for name, value in flat({**config, **attention}).items()
        if not any(name == key or name.startswith(f"{key}.") for key in NOT_HASHED)
        and not (name in CAME_LATER and value == CAME_LATER[name])
    }


def _of_one_process(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with which one process trains the same, up to rounding, if there is one.

    There is none with dropout, which differs from process to process, with single documents and
    generated tasks, whose targets count per process, and where `batches` are counted.
    """
    if not {"trainer", "data", "model"} <= config.keys():
        return config
    t, data = config["trainer"], config["data"]
    processes = t.get("devices", 1) * t.get("num_nodes", 1)
    limits = ("fast_dev_run", "limit_val_batches", "overfit_batches")
    own = config["model"].get("dropout") or data.get("documents") or any(map(t.get, limits))
    if processes == 1 or own or data.get("corpus") in TASKS:
        return config
    batch = {**data, "batch_size": data["batch_size"] * processes}
    return {**config, "trainer": {**t, "devices": 1, "num_nodes": 1}, "data": batch}


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig(Section):
    """The `regularizer` group: a penalty on the order parameter R; `none` adds nothing.

    See phasegpt.phase.steering for modes, axes and schedules, phasegpt.attention for `through`.
    """

    section: ClassVar[str] = "regularizer"
    mode: Literal["none", "ceiling", "center", "band"] = option(
        "none", "what costs: R above target, off it, or out of a band around it"
    )
    target: float = option(0.45, "the R that is held, or not to be passed", ge=0, le=1)
    width: float = option(0.1, "of a band, to either side of the target", ge=0, le=1)
    weight: float = option(
        0.01, "lambda, at the start or throughout, nats; adaptive: at most 1", ge=0, le=1e6
    )
    axis: Literal["coupled", "oscillators", "heads", "prefix"] = option(
        "coupled", "what R is over; coupled: what the layer couples"
    )
    schedule: Literal["constant", "warmup", "adaptive"] = option(
        "constant",
        "of lambda; adaptive: it grows to 1 while R is above target, and falls to 0 below",
    )
    warmup_steps: int = option(100, "of warmup: optimizer steps of linear growth", ge=1)
    through: Literal["all", "coupling"] = option(
        "all", "coupling: it moves K and token-dependent phases, no offsets"
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        every = ("target", "width", "weight", "axis", "schedule", "warmup_steps", "through")
        self.refuse_idle(self.mode != "none", "mode", *every)
        self.refuse_idle(self.mode == "band", "mode", "width")
        self.refuse_idle(self.schedule == "warmup", "schedule", "warmup_steps")
        if self.schedule == "adaptive" and self.weight > 1:
            raise ConfigError(
                f"regularizer.weight={self.weight} is out of range with "
                f"regularizer.schedule=adaptive, whose lambda is in [0,1] from the second step on; "
                f"give at most 1, or take schedule=constant"
            )


@dataclass(frozen=True, kw_only=True)
class LoggerConfig(Section):
    """The `logger` group; metrics.csv is always written, this adds another place."""

    section: ClassVar[str] = "logger"
    name: (
        Literal["csv", "wandb", "tensorboard"] | tuple[Literal["csv", "wandb", "tensorboard"], ...]
    ) = option(
        "csv", "where metrics go besides; csv: nowhere; logger=[wandb,tensorboard]: to both"
    )  # fmt: skip
    project: str = option("phasegpt", "wandb: project of the run")
    entity: str | None = option(None, "wandb: user or team; null: the account's own")
    group: str | None = option(None, "wandb: group of the run; null: none, in a sweep its folder")
    offline: bool = option(False, "wandb: true keeps the run here and needs no account")
    extra: tuple[dict[str, Any], ...] = option(
        (), "Lightning loggers of your own", form="a list like [{_target_: my.module.MyLogger}]"
    )

    def __post_init__(self) -> None:
        """Also check loggers of one's own; they are not imported."""
        super().__post_init__()
        for i, node in enumerate(self.extra):
            targets.checked(f"logger.extra[{i}]", node)

    @property
    def besides(self) -> tuple[str, ...]:
        """The loggers beside metrics.csv, each once."""
        names = (self.name,) if isinstance(self.name, str) else self.name
        return tuple(name for name in dict.fromkeys(names) if name != "csv")

    def check_idle(self) -> None:
        """See Section.check_idle."""
        wandb = "wandb" in self.besides
        self.refuse_idle(wandb, "name", "project", "entity", "group", "offline")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A whole training run, as written to the run folder's config.yaml."""

    name: str = option("run", "of the run and its folder; it changes no result")
    seed: int = option(42, "of weights, batches, dropout, noise and sample", ge=0, lt=2**32)
    compile: Literal["auto"] | bool = option(
        "auto",
        "torch.compile; auto: on a GPU, where it saves more time than it takes",
        form="auto, true or false",
    )
    resume: bool | str = option(
        False,
        "true: go on with the newest unfinished run of this configuration; a path: with that one",
        form="true, false, or a run folder",
    )
    debug: bool = option(False, "true: show tracebacks")
    init_from: str | None = option(
        None,
        "weights to begin with: a run, a .ckpt, an export, GPT-2 as a folder or by its hub id",
    )
    attention: AttentionSection
    model: ModelSection
    data: DataSection
    optimizer: OptimizerConfig
    regularizer: RegularizerConfig = RegularizerConfig()
    trainer: TrainerConfig
    logger: LoggerConfig = LoggerConfig()
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)

    def __post_init__(self) -> None:
        """Also check that attention and model fit."""
        super().__post_init__()
        GPTConfig.from_sections(self.model, self.attention, vocab_size=2)
        if isinstance(self.data, TaskConfig):
            longest = max(map(self.data.time, (self.data.trained, *self.loads)))
            if longest > self.model.block_size:
                raise ConfigError(
                    f"data={self.data.corpus} has examples of {longest} tokens, and "
                    f"model.block_size={self.model.block_size}; raise that, or shorten them"
                )

    @property
    def loads(self) -> tuple[int, ...]:
        """Loads of a task that this model is validated at; none of a text."""
        if isinstance(self.data, TaskConfig):
            shape = GPTConfig.from_sections(self.model, self.attention, vocab_size=2)
            return self.data.loads_with(shape.extrapolates)
        return ()

    def check_idle(self) -> None:
        """See Section.check_idle; also refuse what is for oscillators where there are none."""
        super().check_idle()
        from phasegpt.attention import layer_class

        layer, somewhere = layer_class(self.attention.name), self.attention.layers != ()
        phased = layer.phased(self.attention.options)
        phases, rates = (somewhere and bool(x) for x in (phased, layer.lr_factors))
        why, callbacks = "without oscillators in some layer", self.callbacks
        turns = self.model.positions == "rope" or (somewhere and layer.own_rotary)
        self.model.refuse_idle(turns, "positions", "rope_theta")
        self.regularizer.refuse_idle(phases, why, "mode")
        self.optimizer.refuse_idle(rates, why, "oscillator_lr_factor")
        callbacks.phase_monitor.refuse_idle(phases, why, "band")
        if self.trainer.strategy == "fsdp":
            self._check_fsdp()
        plain = self.optimizer.name != "schedule_free"
        self.trainer.refuse_idle(
            plain, "with optimizer=schedule_free, whose weights are ahead of themselves in a step",
            "skip_nonfinite",
        )  # fmt: skip
        of_R = ("R_low", "R_high", "patience", "coupling_factor")
        callbacks.collapse_guard.refuse_idle(phases, why, *of_R)
        task = isinstance(self.data, TaskConfig)
        callbacks.early_stopping.refuse_idle(task, "without a generated task", "accuracy")
        sample = callbacks.sample_text
        if task and sample.max_new_tokens:
            why = "with a generated task, which has no text"
            sample.refuse_idle(False, why, "prompt", "temperature", "max_new_tokens")

    def _check_fsdp(self) -> None:
        """ConfigError for what needs a model that is whole in one process."""
        monitor = self.callbacks.phase_monitor.every_n_steps
        against = {
            "compile": (self.compile is True, "false"),
            "data.documents": (getattr(self.data, "documents", False), "false"),
            "optimizer": (self.optimizer.name not in ("adamw", "sgd"), "adamw, or sgd"),
            "callbacks.phase_monitor.every_n_steps": (monitor is not None, "null"),
            "callbacks.collapse_guard.action": (
                self.callbacks.collapse_guard.action == "rollback",
                "report, or stop",
            ),
        }
        for key, (used, instead) in against.items():
            if used:
                raise ConfigError(
                    f"trainer.strategy=fsdp cannot have {key} as it is: it needs a model that is "
                    f"whole; set {key}={instead}, or use trainer.strategy=ddp. The phases of a "
                    f"run can be measured afterwards, by phasegpt.interpret"
                )

    def gpt(self, vocab_size: int | None = None) -> GPTConfig:
        """The configuration of its model; see phasegpt.model.config.gpt_config."""
        return gpt_config(self.model, self.attention, self.data, vocab_size)

    @property
    def hash(self) -> str:
        """16 hex digits of the sha256 of everything that changes the result of the run."""
        plain = {**_of_one_process(self.to_dict())}
        plain["attention"] = as_hashed(plain["attention"])
        for key in (*NOT_HASHED, *CAME_LATER):
            *parents, last = key.split(".")
            node = plain
            for parent in parents:
                node = node[parent]
            # Of data a task has other keys than a text.
            if last in node and (key not in CAME_LATER or node[last] == CAME_LATER[key]):
                node.pop(last)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def run_config(config: Any) -> RunConfig:
    """Validate a configuration that the user's own command composed, see `checked`.

    A module that it names as its attention is imported, and in no other place: a configuration
    that stands in a file is read by RunConfig.parse or `checked`, which import nothing.
    """
    if isinstance(config, RunConfig):
        return config
    values = plain(config)
    attention = values.get("attention")
    name = attention.get("name") if isinstance(attention, Mapping) else None
    if isinstance(name, str) and modules.dotted(name):
        modules.imported(name, "attention")
    return checked(values)


def checked(config: Any) -> RunConfig:
    """Validate a composed configuration (DictConfig, mapping or RunConfig) whole.

    The attention's options come back converted and complete, so that 1 and 1.0 are one run. An
    option that is set and can do nothing is a ConfigError, like a wrong one.
    """
    run = RunConfig.parse(plain(config))
    check_name(run.name, "name")
    run.check_idle()
    return run


def build(config: Any) -> GPT:
    """A freshly initialised GPT for `config` (see compose); the seed is config.seed.

    With config.init_from it has those weights. No data is read, so the tokenizer is not compared.
    """
    from phasegpt.model.gpt import GPT

    run = run_config(config)
    model = GPT(run.gpt(), seed=run.seed)
    if run.init_from is not None:
        from phasegpt.model import pretrained

        pretrained.start(run.init_from, model.config).fill(model)
    return model
