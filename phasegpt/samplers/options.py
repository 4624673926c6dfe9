"""The `sampler` group of conf/: options of every sampler, and the intervention they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, number, unknown


@dataclass(frozen=True, kw_only=True)
class AncestralOptions(Section):
    """Plain sampling: token by token from the model's probabilities."""

    section: ClassVar[str] = "sampler"
    name: Literal["ancestral"] = "ancestral"

    def build(self) -> None:
        """No intervention."""
        return


@dataclass(frozen=True, kw_only=True)
class PhaseSlipOptions(Section):
    """See phasegpt.samplers.PhaseSlip."""

    section: ClassVar[str] = "sampler"
    name: Literal["phase_slip"] = "phase_slip"
    heads: Any = "auto"
    angle: float | None = None
    target_kl: float = 0.02
    window: int = 12
    anchor: float = 0.45
    gate: Literal["entropy", "R", "none"] = "entropy"
    gate_entropy: float = 2.5  # nats at which the entropy gate is half open
    gate_R: float = number(0.5, ge=0, le=1)  # R above which the R gate opens
    rotation: Literal["geodesic", "plane", "cayley"] = "geodesic"
    protect_prompt: bool = False
    target: Literal["values", "phases"] = "values"
    candidates: int | None = None

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        self.refuse_idle("target_kl", "angle", self.angle is None)
        self.refuse_idle("gate_entropy", "gate", self.gate == "entropy")
        self.refuse_idle("gate_R", "gate", self.gate == "R")

    def build(self) -> Any:
        """The intervention; ConfigError."""
        from phasegpt.samplers.intervene import EntropyGate, RGate
        from phasegpt.samplers.phase_slip import PhaseSlip

        gates: dict[str, Any] = {"entropy": EntropyGate(self.gate_entropy), "R": RGate(self.gate_R)}
        return PhaseSlip(
            _heads(self.heads), angle=self.angle, target_kl=self.target_kl, window=self.window,
            anchor=self.anchor, gate=gates.get(self.gate), rotation=self.rotation,
            protect_prompt=self.protect_prompt, target=self.target, candidates=self.candidates,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EntropyShockOptions(Section):
    """See phasegpt.samplers.KVShock."""

    section: ClassVar[str] = "sampler"
    name: Literal["entropy_shock"] = "entropy_shock"
    detector: Literal["entropy", "loop"] = "entropy"
    stagnation_threshold: float = 0.6  # nats
    match: int = number(16, ge=1)  # tokens that detector=loop compares
    patience: int = 3
    noise_scale: float = 0.1
    window: int = 32
    cooldown: int = 16
    target: Literal["keys", "values", "both"] = "both"
    heat: float = 2.0

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        self.refuse_idle("match", "detector", self.detector == "loop")
        self.refuse_idle("stagnation_threshold", "detector", self.detector == "entropy")

    def build(self) -> Any:
        """The intervention; ConfigError."""
        from phasegpt.samplers.shock import KVShock, LoopDetector, LowEntropy

        detector: Any = (
            LowEntropy(self.stagnation_threshold, self.patience)
            if self.detector == "entropy"
            else LoopDetector(self.match, self.patience)
        )
        return KVShock(
            self.noise_scale, detector=detector, window=self.window, cooldown=self.cooldown,
            target=self.target, heat=self.heat,
        )  # fmt: skip


#: By the name of their YAML in conf/sampler.
SAMPLERS = {cls.name: cls for cls in (AncestralOptions, PhaseSlipOptions, EntropyShockOptions)}


def build_sampler(values: Mapping[str, Any]) -> Any:
    """The intervention of a `sampler` group, or None for ancestral; ConfigError."""
    name = str(values.get("name"))
    if name not in SAMPLERS:
        raise ConfigError(unknown(f"sampler={name}", [f"sampler={n}" for n in SAMPLERS]))
    return SAMPLERS[name].parse(values).build()  # type: ignore[attr-defined]


def _heads(heads: Any) -> Any:
    if heads == "auto":
        return heads
    try:
        return [(int(layer), int(head)) for layer, head in heads]
    except (TypeError, ValueError):
        raise ConfigError(
            f"sampler.heads={heads!r} must be auto or a list of [layer,head], such as [[7,0],[7,3]]"
        ) from None
