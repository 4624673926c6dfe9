"""From the `sampler` group of conf/ to the intervention that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import shown, unknown
from phasegpt.samplers.intervene import EntropyGate, RGate
from phasegpt.samplers.options import SAMPLERS, EntropyShockOptions, PhaseSlipOptions
from phasegpt.samplers.phase_slip import PhaseSlip
from phasegpt.samplers.shock import KVShock, LoopDetector, LowEntropy


def _phase_slip(options: PhaseSlipOptions) -> PhaseSlip:
    gates: dict[str, Any] = {
        "entropy": EntropyGate(options.gate_entropy),
        "R": RGate(options.gate_R),
    }
    return PhaseSlip(
        options.heads, angle=options.angle, target_kl=options.target_kl, window=options.window,
        anchor=options.anchor, gate=gates.get(options.gate), rotation=options.rotation,
        protect_prompt=options.protect_prompt, target=options.target,
        candidates=options.candidates,
    )  # fmt: skip


def _entropy_shock(options: EntropyShockOptions) -> KVShock:
    detector: Any = (
        LowEntropy(options.stagnation_threshold, options.patience)
        if options.detector == "entropy"
        else LoopDetector(options.match, options.patience)
    )
    return KVShock(
        options.noise_scale, detector=detector, window=options.window, cooldown=options.cooldown,
        target=options.target, heat=options.heat,
    )  # fmt: skip


_MAKE: dict[str, Callable[[Any], Any]] = {
    "ancestral": lambda options: None,
    "phase_slip": _phase_slip,
    "entropy_shock": _entropy_shock,
}


def build_sampler(values: Mapping[str, Any]) -> Any:
    """The intervention of a `sampler` group, or None for ancestral; ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"sampler={shown(values)} must be a group of keys, with its name")
    name = values.get("name")
    if not isinstance(name, str) or name not in SAMPLERS:
        raise ConfigError(
            unknown(
                f"sampler={name if isinstance(name, str) else shown(name)}",
                [f"sampler={n}" for n in SAMPLERS],
            )
        )
    return _MAKE[name](SAMPLERS[name].parse(values))
