"""What was written before `as_coded` was a mechanism: read, and hashed as it was.

Until then it was `phase_sync` with the key as_coded=true, and every phase_sync had that key. Run
folders, checkpoints and exports keep it; `migrated` reads them, the only place that knows it, and
`as_hashed` writes the old form for hashes, so that old ones are recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phasegpt.core.errors import ConfigError

#: Keys that did nothing in the layer as coded, with the only values that mean so.
_IDLE = {"forget": None, "noise_sigma": 0.0, "frequency_jitter": 0.0}


def _holder(attention: Mapping[str, Any]) -> str:
    """The key with the name of the mechanism of the oscillators: a hybrid's is its partner."""
    return "partner" if attention.get("name") == "hybrid" else "name"


def migrated(attention: Mapping[str, Any]) -> dict[str, Any]:
    """An `attention` group from outside, in today's form; ConfigError where it has none.

    {name: phase_sync, as_coded: true, ...} becomes {name: as_coded, ...}; as_coded: false goes.
    """
    found = dict(attention)
    holder = _holder(found)
    if found.get(holder) != "phase_sync" or not isinstance(found.get("as_coded"), bool):
        return found  # an as_coded elsewhere is an unknown key
    if found.pop("as_coded"):
        found[holder] = "as_coded"
        for key, idle in _IDLE.items():
            if (value := found.pop(key, idle)) != idle:
                raise ConfigError(
                    f"attention.{key}={value!r} does nothing in the layer as coded; set "
                    f"attention.{key}={'null' if idle is None else idle}"
                )
    return found


def migrated_flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """GPTConfig's keys from outside; of them `attention` and `attention_options` are a group."""
    found, options = dict(values), values.get("attention_options")
    if isinstance(options, Mapping):
        group = migrated({**options, "name": values.get("attention")})
        found |= {"attention": group.pop("name"), "attention_options": group}
    return found


def as_hashed(attention: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `migrated`, for hashes; a group in the old form is left as it is."""
    found = dict(attention)
    holder = _holder(found)
    if found.get(holder) == "as_coded":
        return {**found, holder: "phase_sync", "as_coded": True, **_IDLE}
    return {"as_coded": False, **found} if found.get(holder) == "phase_sync" else found
