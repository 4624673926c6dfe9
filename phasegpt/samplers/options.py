"""The `sampler` group of conf/: options of every sampler. The classes take their defaults here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from phasegpt.core.sections import Section, option


@dataclass(frozen=True, kw_only=True)
class AncestralOptions(Section):
    """Plain sampling: token by token from the model's probabilities."""

    section: ClassVar[str] = "sampler"
    name: Literal["ancestral"] = option("ancestral", "the sampler")


@dataclass(frozen=True, kw_only=True)
class PhaseSlipOptions(Section):
    """See phasegpt.samplers.PhaseSlip."""

    section: ClassVar[str] = "sampler"
    name: Literal["phase_slip"] = option("phase_slip", "the sampler")
    heads: Literal["auto"] | tuple[tuple[int, int], ...] = option(
        "auto",
        "heads that slip; auto: the 3 that matter most in the upper half",
        form="auto or a list of [layer,head], such as [[7,0],[7,3]]",
    )
    angle: float | None = option(
        None, "radians, 0 is ancestral; null: the angle that target_kl asks for"
    )
    target_kl: float = option(0.02, "nats between the clean and the slipped path")
    window: int = option(12, "newest positions that are rotated")
    anchor: float = option(0.45, "share of the clean path with an open gate")
    gate: Literal["entropy", "R", "none"] = option("entropy", "what opens the slipped path")
    gate_entropy: float = option(2.5, "nats at which the entropy gate is half open")
    gate_R: float = option(0.5, "order parameter above which the R gate opens", ge=0, le=1)
    rotation: Literal["geodesic", "plane", "cayley"] = option("geodesic", "of the Values")
    protect_prompt: bool = option(False, "true: leave the prompt's positions as they are")
    target: Literal["values", "phases"] = option(
        "values", "what slips; phases: the oscillators of a phase model"
    )
    candidates: int | None = option(
        None, "slipped logits for this many best tokens alone; null: for all"
    )

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        self.refuse_idle(self.angle is None, "angle", "target_kl")
        every = ("heads", "window", "anchor", "gate", "rotation", "protect_prompt", "target")
        self.refuse_idle(self.angle != 0, "angle", *every, "candidates")
        self.refuse_idle(self.gate == "entropy", "gate", "gate_entropy")
        self.refuse_idle(self.gate == "R", "gate", "gate_R")


@dataclass(frozen=True, kw_only=True)
class EntropyShockOptions(Section):
    """See phasegpt.samplers.KVShock."""

    section: ClassVar[str] = "sampler"
    name: Literal["entropy_shock"] = option("entropy_shock", "the sampler")
    detector: Literal["entropy", "loop"] = option(
        "entropy", "what looks stuck: low entropy, or text that is repeated"
    )
    stagnation_threshold: float = option(0.6, "nats below which detector=entropy sees it")
    match: int = option(16, "tokens that detector=loop compares", ge=1)
    patience: int = option(3, "tokens in a row that must look stuck")
    noise_scale: float = option(0.1, "in standard deviations of each head's own keys and Values")
    window: int = option(32, "newest positions that are shocked")
    cooldown: int = option(16, "tokens from one shock to the next, at least")
    target: Literal["keys", "values", "both"] = option("both", "what is shocked")
    heat: float = option(2.0, "the shocked token's logits are divided by it")

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        self.refuse_idle(self.detector == "loop", "detector", "match")
        self.refuse_idle(self.detector == "entropy", "detector", "stagnation_threshold")
        self.refuse_idle(self.noise_scale != 0, "noise_scale", "window", "target")


#: By the name of their YAML in conf/sampler.
SAMPLERS: dict[str, type[Section]] = {
    "ancestral": AncestralOptions,
    "phase_slip": PhaseSlipOptions,
    "entropy_shock": EntropyShockOptions,
}
