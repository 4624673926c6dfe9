"""The `callbacks` group of a run's configuration, as frozen, validated dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from phasegpt.core import targets
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, option


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """When training saves, beside every validation that improves and the last step."""

    section: ClassVar[str] = "callbacks.checkpoint"
    every_n_train_steps: int = option(500, "optimizer steps between two checkpoints", ge=1)


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig(Section):
    """Stop after `patience` validations without `val/ppl` falling by `min_delta`; null: never.

    A task is also stopped where it is solved.
    """

    section: ClassVar[str] = "callbacks.early_stopping"
    patience: int | None = option(
        None, "validations without val/ppl falling by min_delta; null: never stop", ge=1
    )
    min_delta: float = option(0.0, "by how much val/ppl must fall", ge=0)
    accuracy: float | None = option(
        None, "of generated tasks: stop where val/accuracy reaches this; null: never", gt=0, le=1
    )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.patience is not None, "patience", "min_delta")


@dataclass(frozen=True, kw_only=True)
class CollapseGuardConfig(Section):
    """What to do when loss or synchronization collapse; `action` null: nothing is watched."""

    section: ClassVar[str] = "callbacks.collapse_guard"
    action: Literal["stop", "rollback", "report"] | None = option(
        None, "rollback: to the best checkpoint, with a lower K; null: nothing is watched"
    )
    R_low: float = option(0.05, "lower limit of a layer's mean R over a validation", ge=0, le=1)
    R_high: float = option(0.95, "upper limit", ge=0, le=1)
    patience: int = option(3, "validations in a row with some R out of the limits", ge=1)
    loss_factor: float = option(
        1.5, "val/loss above this times the best is a collapse at once", gt=1
    )
    coupling_factor: float = option(
        0.5, "rollback: K times this, or divided by it if R was too low", gt=0, lt=1
    )
    max_rollbacks: int = option(3, "one collapse more stops the run", ge=1)

    def __post_init__(self) -> None:
        """Check the limits' order."""
        super().__post_init__()
        if self.R_low >= self.R_high:
            raise ConfigError(
                f"callbacks.collapse_guard.R_low={self.R_low} must be below R_high={self.R_high}"
            )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        watched = ("R_low", "R_high", "patience", "loss_factor")
        self.refuse_idle(self.action is not None, "action", *watched)
        self.refuse_idle(self.action == "rollback", "action", "coupling_factor", "max_rollbacks")


@dataclass(frozen=True, kw_only=True)
class PhaseMonitorConfig(Section):
    """Measures the phases of layers with oscillators; it changes no result."""

    section: ClassVar[str] = "callbacks.phase_monitor"
    every_n_steps: int | None = option(
        50, "optimizer steps between two measurements, in full at validations; null: off", ge=1
    )
    band: tuple[float, ...] = option(
        (0.35, 0.55),
        "of R over the oscillators of a head; its share is measured",
        form="two numbers in [0,1], the lower first, like [0.35,0.55]",
    )

    def __post_init__(self) -> None:
        """Check the band's ends."""
        super().__post_init__()
        if len(self.band) != 2 or not 0 <= self.band[0] < self.band[1] <= 1:
            raise ConfigError(
                f"{self.section}.band={list(self.band)} must be two numbers in [0,1], the lower "
                f"first, like [0.35,0.55]"
            )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.every_n_steps is not None, "every_n_steps", "band")


@dataclass(frozen=True, kw_only=True)
class SampleTextConfig(Section):
    """The sample of text shown at the end of training; 0 tokens: none."""

    section: ClassVar[str] = "callbacks.sample_text"
    prompt: str = option("\n", "what the sample continues")
    max_new_tokens: int = option(200, "tokens; 0: no sample", ge=0, le=1_000_000)
    temperature: float = option(0.8, "divides the logits; 0: always the likeliest token", ge=0)

    def check_idle(self) -> None:
        """See Section.check_idle; an empty prompt would fail only after the training."""
        self.refuse_idle(self.max_new_tokens > 0, "max_new_tokens", "prompt", "temperature")
        if not self.prompt:
            raise ConfigError(
                "callbacks.sample_text.prompt is empty, and a model needs something to continue; "
                "leave it out to begin after a line break"
            )


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig(Section):
    """The `callbacks` group."""

    section: ClassVar[str] = "callbacks"
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    collapse_guard: CollapseGuardConfig = CollapseGuardConfig()
    phase_monitor: PhaseMonitorConfig = PhaseMonitorConfig()
    sample_text: SampleTextConfig = SampleTextConfig()
    progress_bar: bool = option(True, "false: no progress bar")
    extra: tuple[dict[str, Any], ...] = option(
        (),
        "Lightning callbacks of your own",
        form="a list like [{_target_: my.module.MyCallback, key: 1}]",
    )

    def __post_init__(self) -> None:
        """Also check callbacks of one's own; they are not imported."""
        super().__post_init__()
        for i, node in enumerate(self.extra):
            targets.checked(f"callbacks.extra[{i}]", node)
