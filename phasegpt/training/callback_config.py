"""The `callbacks` group of a run's configuration, as frozen, validated dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, number


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """When training saves, beside every validation that improves and the last step."""

    section: ClassVar[str] = "callbacks.checkpoint"
    every_n_train_steps: int = number(500, ge=1)


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig(Section):
    """Stop after `patience` validations without `val/ppl` falling by `min_delta`; null: never."""

    section: ClassVar[str] = "callbacks.early_stopping"
    patience: int | None = number(None, ge=1)
    min_delta: float = number(0.0, ge=0)


@dataclass(frozen=True, kw_only=True)
class CollapseGuardConfig(Section):
    """What to do when loss or synchronization collapse; `action` null: nothing is watched."""

    section: ClassVar[str] = "callbacks.collapse_guard"
    action: Literal["stop", "rollback", "report"] | None = None
    R_low: float = number(0.05, ge=0, le=1)
    R_high: float = number(0.95, ge=0, le=1)
    patience: int = number(3, ge=1)  # validations in a row with R of a layer out of the limits
    loss_factor: float = number(1.5, gt=1)  # val/loss above this times the best
    coupling_factor: float = number(0.5, gt=0, lt=1)  # rollback: multiplies K
    max_rollbacks: int = number(3, ge=1)

    def __post_init__(self) -> None:
        """Check the limits' order."""
        super().__post_init__()
        if self.R_low >= self.R_high:
            raise ConfigError(
                f"callbacks.collapse_guard.R_low={self.R_low} must be below R_high={self.R_high}"
            )


@dataclass(frozen=True, kw_only=True)
class PhaseMonitorConfig(Section):
    """Measures the phases every n steps, and in full at validations; null: not at all."""

    section: ClassVar[str] = "callbacks.phase_monitor"
    every_n_steps: int | None = number(50, ge=1)
    band: tuple[float, ...] = (0.35, 0.55)  # of R over the oscillators of a head

    def __post_init__(self) -> None:
        """Check the band's ends."""
        super().__post_init__()
        if len(self.band) != 2 or not 0 <= self.band[0] < self.band[1] <= 1:
            raise ConfigError(
                f"{self.section}.band={list(self.band)} must be two numbers in [0,1], the lower "
                f"first, like [0.35,0.55]"
            )


@dataclass(frozen=True, kw_only=True)
class SampleTextConfig(Section):
    """The sample of text shown at the end of training; 0 tokens: none."""

    section: ClassVar[str] = "callbacks.sample_text"
    prompt: str = "\n"
    max_new_tokens: int = number(200, ge=0)
    temperature: float = number(0.8, ge=0)


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig(Section):
    """The `callbacks` group."""

    section: ClassVar[str] = "callbacks"
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    collapse_guard: CollapseGuardConfig = CollapseGuardConfig()
    phase_monitor: PhaseMonitorConfig = PhaseMonitorConfig()
    sample_text: SampleTextConfig = SampleTextConfig()
    progress_bar: bool = True
