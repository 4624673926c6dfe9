"""Frozen dataclasses that check their own fields: types, bounds, unknown names.

Every error names the value, what is allowed and, for a misspelt name, the nearest one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from phasegpt.core.errors import ConfigError


def number(
    default: Any = dataclasses.MISSING,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Dataclass field for a number with bounds (`ge`: greater or equal, `gt`: greater, ...)."""
    bounds = {">=": ge, ">": gt, "<=": le, "<": lt}
    return field(
        default=default,
        metadata={"bounds": {k: v for k, v in bounds.items() if v is not None}},
    )


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the configuration; checks types and bounds of every field when it is made."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Convert and check every field; raises ConfigError naming the first wrong one."""
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            name = f"{self.section}.{f.name}" if self.section else f.name
            value = _convert(getattr(self, f.name), hints[f.name], name)
            for sign, bound in f.metadata.get("bounds", {}).items():
                if value is not None and not _holds(value, sign, bound):
                    raise ConfigError(f"{name}={value} is out of range; it must be {sign} {bound}")
            object.__setattr__(self, f.name, value)

    def refuse_idle(self, name: str, owner: str, acts: bool) -> None:
        """ConfigError if the field `name` was set, although as `owner` is it does nothing."""
        value = getattr(self, name)
        if not acts and value != type(self).__dataclass_fields__[name].default:
            prefix = f"{self.section}." if self.section else ""
            raise ConfigError(
                f"{prefix}{name}={value!r} does nothing while {prefix}{owner}="
                f"{getattr(self, owner)}; set that too, or leave {name} out"
            )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> typing.Self:
        """Build from a mapping; unknown and missing keys are errors with a suggestion."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        prefix = f"{cls.section}." if cls.section else ""
        for key in values:
            if key not in known:
                raise ConfigError(unknown(f"{prefix}{key}", [prefix + k for k in known]))
        for name, f in known.items():
            no_default = f.default is f.default_factory is dataclasses.MISSING
            if name not in values and no_default:
                raise ConfigError(f"{prefix}{name} is missing; give it a value")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready copy."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with keys such as optimizer.lr."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {k: v for key in node for k, v in flat(node[key], f"{prefix}.{key}".lstrip(".")).items()}


def unknown(name: str, allowed: Sequence[str]) -> str:
    """One-line error text for an unknown name, with the nearest allowed ones."""
    near = nearest(name, allowed)
    hint = f"did you mean {near}?" if near else f"choose from: {', '.join(sorted(allowed))}"
    return f"{name} is unknown; {hint}"


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """The allowed name that `name` is a slip of the pen from, if there is one.

    Of dotted names the last part must be close too: what comes before it says little.
    """
    last = name.rpartition(".")[2]
    close = [
        other for other in allowed if difflib.get_close_matches(last, [other.rpartition(".")[2]])
    ]
    return next(iter(difflib.get_close_matches(name, close, n=1, cutoff=0.8)), None)


def _holds(value: float, sign: str, bound: float) -> bool:
    return {
        ">=": value >= bound,
        ">": value > bound,
        "<=": value <= bound,
        "<": value < bound,
    }[sign]


def _convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotated type `hint`, or ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for arg in (a for a in args if a is not type(None)):
            try:
                return _convert(value, arg, name)
            except ConfigError as error:
                last = error
        raise last
    if origin is Literal:
        if value in args:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        hint_text = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"{name}={value!r} is not allowed{hint_text}; choose from: {', '.join(map(str, args))}"
        )
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(v, args[0], f"{name}[{i}]") for i, v in enumerate(value))
        raise ConfigError(f"{name}={value!r} must be a list, for instance [0.9,0.95]")
    if origin is dict:
        return {str(k): v for k, v in dict(value).items()}
    if isinstance(hint, type) and issubclass(hint, Section):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            keys = ", ".join(f.name for f in dataclasses.fields(hint))
            raise ConfigError(f"{name}={value!r} must be a group of keys: {keys}")
        return hint.parse(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        if hint is float and not math.isfinite(value):
            raise ConfigError(f"{name}={value} must be a finite number")
        return value
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
    }
    raise ConfigError(f"{name}={value!r} must be {words.get(hint, hint)}")
