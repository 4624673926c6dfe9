"""Names of a study's arms for people: the mechanism, and what sets the arm apart from others of it.

"softmax + RoPE", "kuramoto, layer 7, N 32, K 0": from the configurations alone, so that tables,
figures and pages of any study say the same.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from phasegpt.training.preregistration import config_fields

Records = Sequence[Mapping[str, Any]]

#: Settings in the order of a name, and how they are said; what is not here is said by its own name.
_SAID = {
    "attention.layers": "layer {}",
    "attention.num_oscillators": "N {}",
    "attention.coupling": "K {}",
    "attention.steps": "S {}",
    "attention.noise_sigma": "noise {}",
    "attention.frequency_jitter": "jitter {}",
    "regularizer.mode": "{}",
}
#: These are said wherever they vary, others where an arm has not what most have.
_ALWAYS = tuple(_SAID)[:3]
_SHOWN = {("attention.theta_init", "gpt2"): "clustered phases"}
#: Said with the mechanism, or with another setting.
_ELSEWHERE = {"attention.name", "attention.as_coded", "attention.learn_coupling", "model.positions"}
_IDLE = {"attention.theta_std"}  # a theta_init of gpt2 has none


class Name(NamedTuple):
    """The mechanism of an arm, its whole name, and the name without the mechanism."""

    mechanism: str
    whole: str
    short: str


def arm_names(arms: Mapping[str, Records]) -> dict[str, Name]:
    """The name of every arm, of the records that `phasegpt.analysis.study.load_records` gives.

    An arm whose records have no configuration keeps its id; of two with one name each has its id
    behind it.
    """
    fields = {arm: config_fields(records[0].get("config", {})) for arm, records in arms.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for arm, of in fields.items():
        groups[_mechanism(of)].append(arm)
    names = {}
    for mechanism, members in groups.items():
        varied = _varied([fields[arm] for arm in members])
        for arm in members:
            parts = _parts(fields[arm], varied) if mechanism else [arm]
            start = _start(mechanism, fields[arm], varied)
            short = ", ".join(parts) or start
            names[arm] = Name(mechanism, ", ".join(filter(None, [start, *parts])), short)
    count = Counter(name.whole for name in names.values())
    return {
        arm: name if count[name.whole] == 1 else Name(name[0], *(f"{n} ({arm})" for n in name[1:]))
        for arm, name in names.items()
    }


def _mechanism(fields: Mapping[str, Any]) -> str:
    if fields.get("attention.as_coded"):  # of records before as_coded was a mechanism
        return "as_coded"
    return str(fields.get("attention.name", ""))


def _varied(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that differ within a mechanism, and what more than half of its arms have."""
    found = {}
    for key in dict.fromkeys([*_SAID, *sorted({key for of in members for key in of})]):
        values = Counter(json.dumps(of.get(key)) for of in members)
        if len(values) > 1 and key not in _IDLE:
            (most, n), *_ = values.most_common()
            found[key] = most if n > len(members) / 2 else None
    return found


def _start(mechanism: str, fields: Mapping[str, Any], varied: Mapping[str, Any]) -> str:
    positions = fields.get("model.positions")
    if positions == "rope" and (mechanism == "softmax" or "model.positions" in varied):
        return f"{mechanism} + RoPE"
    if positions == "learned" and "model.positions" in varied:
        return f"{mechanism}, learned positions"
    return mechanism


def _parts(fields: Mapping[str, Any], varied: Mapping[str, Any]) -> list[str]:
    parts = []
    for key, most in varied.items():
        value = fields.get(key)
        usual = key not in _ALWAYS and (value == 0 or json.dumps(value) == most)
        if key in _ELSEWHERE or usual or value is None or value in ("none", "spread"):
            continue
        parts.append(_said(key, value))
        if key == "attention.coupling" and fields.get("attention.learn_coupling"):
            parts[-1] += " learned"
    return parts


def _said(key: str, value: Any) -> str:
    if isinstance(value, list):
        text = " and ".join(map(str, value))
        return f"layer{'s' * (len(value) > 1)} {text}" if key == "attention.layers" else text
    if key == "attention.layers":
        return f"{value} layers"
    if (key, value) in _SHOWN:
        return _SHOWN[key, value]
    own = key.split(".")[-1].replace("_", " ")
    if value is True:
        return own
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return _SAID.get(key, f"{own} {{}}").format(text)
