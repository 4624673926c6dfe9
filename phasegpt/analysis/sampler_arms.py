"""The arms of the benchmark: one table.

Processors, interventions and gates are written as (class of phasegpt.samplers, its arguments). A
chain acts in its order; the published arms have Hugging Face's, temperature first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phasegpt import samplers
from phasegpt.core.errors import ConfigError
from phasegpt.samplers.classic import rotation_of

Link = tuple[str, Any]  # ("TopK", 40), or ("DRY", {"allowed_length": 12})


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to sample. `against` is the arm whose rows are subtracted from this one's."""

    name: str
    role: str  # of analysis.sampling_figure.ROLES
    chain: tuple[Link, ...] = ()
    intervention: Link | None = None
    against: str | None = None

    @property
    def temperature(self) -> float | None:
        """The temperature of its chain."""
        return dict(self.chain).get("Temperature")

    def processors(self) -> list[samplers.Processor]:
        """The chain, made anew."""
        return [make(link) for link in self.chain]

    def described(self) -> str:
        """What it does, in one line."""
        links = [*self.chain, *([self.intervention] if self.intervention else [])]
        return ", ".join(f"{name} {value}" for name, value in links)


def make(link: Link) -> Any:
    """The object that a link names; links among its arguments are made first."""
    name, value = link
    kind = getattr(samplers, name)
    if not isinstance(value, Mapping):
        return kind(value)
    return kind(**{k: make(v) if _is_link(v) else v for k, v in value.items()})


def _is_link(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


_CONTROL: tuple[Link, ...] = (("Temperature", 0.65), ("TopK", 40))
_COLD: tuple[Link, ...] = (("Temperature", 0.2),)
_SWEEP = (0.2, 0.35, 0.5, 0.58, 0.65, 0.72, 0.8, 0.9, 1.0, 1.15, 1.3)
_PUBLISHED_ANGLE = rotation_of(0.03, 0.15)  # rad; the published noise_scale and its dilution
_GATE: Link = ("EntropyGate", {"center": 2.5, "temperature": 0.65})  # as published
_STAGNATION: Link = ("LowEntropy", {"threshold": 0.6, "patience": 3})  # published v0


def _sweep(temperature: float) -> Arm:
    return Arm(
        name=f"temperature_{temperature:g}", role="sweep", chain=(("Temperature", temperature),)
    )


def _power(name: str, *chain: Link) -> Arm:
    return Arm(name=name, role="power", chain=chain, against="temperature_1")


def _slip(name: str, role: str = "slip", **slip: Any) -> Arm:
    link = ("PhaseSlip", {"gate": _GATE, **slip})
    return Arm(name=name, role=role, chain=_CONTROL, intervention=link, against="control")


def _phases(name: str, **slip: Any) -> Arm:
    return _slip(name, "phases", target="phases", **slip)


def _loop(name: str, *chain: Link, shock: Mapping[str, Any] | None = None) -> Arm:
    return Arm(
        name=name,
        role="loop",
        chain=(*chain, *_COLD),
        intervention=None if shock is None else ("KVShock", shock),
        against="temperature_0.2",
    )


#: Every arm, in the order of the tables.
ARMS = (
    Arm(name="human", role="human"),
    Arm(name="greedy", role="seed", chain=(("Temperature", 0),), against="control"),
    Arm(
        name="standard",
        role="seed",
        chain=(("Temperature", 0.8), ("TopK", 40), ("TopP", 0.92)),
        against="control",
    ),
    _slip("phase_slip", "seed", angle=_PUBLISHED_ANGLE, protect_prompt=True),
    Arm(name="control", role="control", chain=_CONTROL),
    # Plain sampling between two points of the sweep: its frontier gap is 0, if the method is right.
    Arm(name="null", role="control", chain=(("Temperature", 0.61),), against="control"),
    *map(_sweep, _SWEEP),
    _power("min_p_0.1", ("MinP", 0.1), ("Temperature", 1.0)),
    _power("min_p_0.1_hot", ("MinP", 0.1), ("Temperature", 1.5)),
    _power("top_p_0.92", ("TopP", 0.92), ("Temperature", 1.0)),
    _slip("slip_0.1", angle=0.1),
    _slip("slip_0.3", angle=0.3),
    _slip("slip_1", angle=1.0),
    _slip("slip_1_bare", angle=1.0, anchor=0.0, gate=None),
    _phases("phases_0.1", angle=0.1),
    _phases("phases_0.3", angle=0.3),
    _phases("phases_1", angle=1.0),
    _phases("phases_1_where_R", angle=1.0, gate=("RGate", 0.5)),
    _phases("phases_1_bare", angle=1.0, anchor=0.0, gate=None),
    _loop("shock_0.1", shock={"scale": 0.1, "detector": _STAGNATION}),
    _loop("shock_1", shock={"scale": 1.0, "detector": _STAGNATION}),
    _loop("shock_1_on_loops", shock={"scale": 1.0, "detector": ("LoopDetector", {})}),
    _loop("repetition_1.2", ("RepetitionPenalty", 1.2)),
    _loop("dry_2", ("DRY", {"allowed_length": 2})),
    _loop("dry_12", ("DRY", {"allowed_length": 12})),
)


def arms_for(phases: bool, names: Sequence[str] | None = None) -> list[Arm]:
    """The arms of those names (None: all), without those that need `phases` the model lacks.

    Raises ConfigError for a name that no arm has, or that asks for phases where there are none.
    """
    known = {arm.name: arm for arm in ARMS}
    possible = [name for name, arm in known.items() if phases or arm.role != "phases"]
    for name in names or ():
        if name not in possible:
            why = "needs oscillators, and this model has none" if name in known else "is unknown"
            raise ConfigError(f"the arm {name} {why}; choose from: {', '.join(possible)}")
    return [known[name] for name in possible if names is None or name in names]
