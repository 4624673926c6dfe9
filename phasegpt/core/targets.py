"""`_target_`: code of the user's own that a configuration names, as Hydra's instantiate does.

`checked` imports nothing: reading a record, a checkpoint or an export executes nothing. `made`
imports and calls what is named, and is for the training that the user's own command starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from phasegpt.core.composition import instantiate
from phasegpt.core.errors import ConfigError, UserError
from phasegpt.core.sections import nameable, shown

Made = TypeVar("Made")


def checked(name: str, node: Any) -> dict[str, Any]:
    """`node` if it is a mapping of plain values with a dotted name as `_target_`; ConfigError."""
    if not isinstance(node, Mapping) or not _dotted(node.get("_target_")):
        raise ConfigError(
            f"{name}={shown(node)} must be a mapping with _target_, the dotted name of a class or "
            f"function, and its arguments, like {{_target_: my.module.Name, key: 1}}"
        )
    return {key: plain(f"{name}.{key}", value) for key, value in node.items()}


def plain(name: str, value: Any) -> Any:
    """`value` if a record can hold it: text, numbers, true, false, null, lists and mappings."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and nameable(key) for key in value):
            raise ConfigError(f"{name:.100}={shown(value)} must have texts as keys")
        return {key: plain(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(f"{name}[{i}]", inner) for i, inner in enumerate(value)]
    if (
        value is None
        or (isinstance(value, str) and nameable(value))
        or (isinstance(value, int) and abs(value) < 2**63)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    raise ConfigError(
        f"{name:.100}={shown(value)} must be text, a finite number, true, false, null, or a list "
        f"or mapping of such"
    )


def _dotted(value: Any) -> bool:
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


def named(node: Any) -> list[str]:
    """Every `_target_` of a configuration."""
    if isinstance(node, Mapping):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [name for value in node.values() for name in named(value)]
    return [name for value in node for name in named(value)] if isinstance(node, list) else []


def refuse_named(what: str, config: Mapping[str, Any]) -> None:
    """ConfigError where a configuration that was read from a file, `what`, names code to run."""
    if found := named(config):
        raise ConfigError(
            f"{what} names code of its own ({', '.join(found):.200}), and what a file names is not "
            f"executed; give the configuration yourself, on the command line or with "
            f"phasegpt.compose"
        )


def made(name: str, node: Mapping[str, Any], kind: type[Made], *first: Any, **more: Any) -> Made:
    """What `node` names, called with the arguments `first`, then `more` and its own keys.

    Raises ConfigError where it cannot be imported or called, or gives something else than a `kind`.
    """
    target = node["_target_"]
    what = f"{name}: _target_={target}"
    if first and "_args_" in node:
        raise ConfigError(f"{name}._args_ would do nothing here; name the arguments")
    try:
        found = instantiate(node, *first, **more)
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise ConfigError(
            f"{what} cannot be used ({reason:.400}); give the dotted name of what Python can "
            f"import from here, and the arguments that it takes"
        ) from error
    if not isinstance(found, kind):
        raise ConfigError(
            f"{what} gives a {type(found).__module__}.{type(found).__qualname__}; it must give a "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    return found
