"""Sections of a configuration: frozen dataclasses whose types and bounds pydantic checks.

Strictly: true is no number, 1.0 no whole number, "1" neither; a whole number is a number. Every
error names the value, what is allowed and, for a misspelt name, the nearest one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from phasegpt.core.errors import ConfigError

#: In place of a default: the option must be given.
REQUIRED: Any = dataclasses.MISSING
# Magnitudes that float32, in which models compute, holds with full precision.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**128


def option(
    default: Any,
    meaning: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    form: str | None = None,
) -> Any:
    """Field of a Section: its default, its meaning with its unit, and its bounds.

    `form` says in words what is allowed where type and bounds cannot.
    """
    bounds = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    metadata = {"meaning": meaning, "bounds": bounds, "form": form}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the configuration; checks types and bounds of every field when it is made."""

    #: Where it stands in the configuration, as in optimizer.lr.
    section: ClassVar[str] = ""
    #: Checked after the sections beside it, since that takes long.
    late: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Append every option to the docstring: name, default, meaning."""
        inherited: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
        own = {k: v for k, v in vars(cls).items() if isinstance(v, dataclasses.Field)}
        rows = [
            f"{name}: {f.metadata['meaning']} "
            + ("(required)" if f.default is REQUIRED else f"(default {shown(f.default)})")
            for name, f in (inherited | own).items()
            if "meaning" in f.metadata
        ]
        if rows and "__doc__" in vars(cls) and cls.__doc__:
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Options:", *rows])

    def __post_init__(self) -> None:
        """Convert and check every field; raises ConfigError naming the first wrong one."""
        from pydantic import ValidationError

        cls: Any = type(self)
        values = {f.name: _tuples(getattr(self, f.name)) for f in dataclasses.fields(self)}
        try:
            checked = vars(_checker(cls).model_validate(values))
        except ValidationError as error:
            raise ConfigError(_message(cls, error)) from None
        for name, value in checked.items():
            _representable(self.full_name(name), value, floats=hints_of(cls)[name] is not Any)
            object.__setattr__(self, name, value)

    @classmethod
    def full_name(cls, name: str) -> str:
        """A field's full name, such as optimizer.lr."""
        return f"{cls.section}.{name}" if cls.section else name

    def refuse_idle(self, acts: bool, why: str, *names: str) -> None:
        """ConfigError if a field of `names` was set although it does not act.

        A value that is the default's counts as not set. `why` is the field that it depends on, or
        says in words when it does nothing.
        """
        for name in () if acts else names:
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                if why in type(self).__dataclass_fields__:
                    why = f"while {self.full_name(why)}={getattr(self, why)}"
                raise ConfigError(
                    f"{self.full_name(name)}={shown(value)} does nothing {why}; change that, or "
                    f"leave {name} out"
                )

    def check_idle(self) -> None:
        """ConfigError for an option that was set and does nothing beside the others.

        For what a user asks for; a record of an earlier run is read without it.
        """
        for f in dataclasses.fields(self):
            if isinstance(value := getattr(self, f.name), Section):
                value.check_idle()

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> typing.Self:
        """Build from a mapping; unknown and missing keys are errors with a suggestion."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                said = unknown(cls.full_name(str(key)), [cls.full_name(k) for k in known])
                raise ConfigError(said.replace(f", {cls.full_name('')}", ", "))
        for name, f in known.items():
            if name not in values and f.default is f.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{cls.full_name(name)} is missing; give it a value")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready copy."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.loads(json.dumps(values, default=lambda section: section.to_dict()))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with keys such as optimizer.lr."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {k: v for key in node for k, v in flat(node[key], f"{prefix}.{key}".lstrip(".")).items()}


_SHOWN = 100  # names that one error lists


def unknown(name: str, allowed: Sequence[str]) -> str:
    """One-line error text for an unknown name, with the nearest allowed ones."""
    name = printable(name)
    if not allowed:
        return f"{name} is unknown; nothing can be set there, so leave it out"
    near = nearest(name, allowed)
    first, more = sorted(allowed)[:_SHOWN], len(allowed) - _SHOWN
    choice = f"{', '.join(first)}{f' and {more:,} more' if more > 0 else ''}"
    hint = f"did you mean {near}?" if near else f"choose from: {choice}"
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


def shown(value: Any) -> str:
    """A value as an error or a page shows it, as YAML writes constants, at most 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = "a number of thousands of digits"
    return printable(text)


def printable(text: str) -> str:
    """At most 80 characters, which every UTF-8 output takes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The annotated type of every field."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def allowed(cls: Any, name: str) -> str:
    """What a field may be, in words: "a number > 0, or null"."""
    f = cls.__dataclass_fields__[name]
    if f.metadata.get("form"):
        return f.metadata["form"]
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{signs[k]} {v:.15g}" for k, v in f.metadata.get("bounds", {}).items()]
    words = []
    for part in _parts(hints_of(cls)[name]):
        word = _word(part)
        words.append(f"{word} {' and '.join(bounds)}".strip() if part in (int, float) else word)
    return ", or ".join(words)


def _parts(hint: Any) -> list[Any]:
    """The alternatives of a type; None last."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = list(typing.get_args(hint)) if union else [hint]
    return sorted(parts, key=lambda part: part is type(None))


def _choices(hint: Any) -> list[str]:
    return [shown(a) if isinstance(a, bool) else str(a) for a in typing.get_args(hint)]


def _word(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(_choices(hint))
    if (origin := typing.get_origin(hint)) in (tuple, dict):
        return "a list" if origin is tuple else "a mapping"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "null" if hint is type(None) else "any value")


@functools.cache
def _checker(cls: Any) -> Any:
    """Pydantic's model of a section's fields; made at the first use, so that importing is quick."""
    from pydantic import ConfigDict, Field, create_model

    hints = hints_of(cls)
    order = sorted(hints, key=lambda name: getattr(hints[name], "late", False))
    made = {
        name: (_nested(hints[name], cls.full_name(name)),
               Field(**cls.__dataclass_fields__[name].metadata.get("bounds", {})))
        for name in order
    }  # fmt: skip
    config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **made)  # type: ignore[call-overload]


def _nested(hint: Any, name: str) -> Any:
    """A type for pydantic: a section inside a section is made by its own `parse`."""
    from pydantic import PlainValidator

    if not isinstance(hint, type) or not issubclass(hint, Section):
        return hint

    def make(value: Any) -> Any:
        if isinstance(value, hint) or hint is Section:  # a bare Section is its owner's to make
            return value
        if not isinstance(value, Mapping):
            keys = ", ".join(f.name for f in dataclasses.fields(hint))
            raise ConfigError(f"{name}={printable(repr(value))} must be a group of keys: {keys}")
        return hint.parse(value)

    return typing.Annotated[Any, PlainValidator(make)]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _representable(name: str, value: Any, *, floats: bool) -> None:
    """ConfigError for what float32 (if `floats`), a 64-bit integer or UTF-8 cannot hold."""
    for item in value if isinstance(value, tuple) else (value,):
        if floats and isinstance(item, float) and item and not _SMALLEST <= abs(item) < _LARGEST:
            raise ConfigError(
                f"{name}={item} is out of range; it must be from {_SMALLEST:.2g} to "
                f"{_LARGEST:.2g} in size, so that float32 can hold it"
            )
        if isinstance(item, int) and abs(item) >= 2**63:
            raise ConfigError(f"{name}={shown(item)} is out of range; it must fit in 64 bits")
        if isinstance(item, str) and not nameable(item):
            raise ConfigError(
                f"{name}={shown(item)} holds a NUL or half a surrogate pair; leave it out"
            )


def nameable(text: str) -> bool:
    """Whether UTF-8 can write a text, and no NUL is in it."""
    return "\0" not in text and text == text.encode("utf-8", "replace").decode()


_COMPARISONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than_equal": lambda ctx: f">= {ctx['ge']:.15g}",
    "greater_than": lambda ctx: f"> {ctx['gt']:.15g}",
    "less_than_equal": lambda ctx: f"<= {ctx['le']:.15g}",
    "less_than": lambda ctx: f"< {ctx['lt']:.15g}",
}


def _message(cls: Any, error: Any) -> str:
    """One line for the first of pydantic's errors."""
    first = error.errors(include_url=False)[0]
    kind, context, (field, *rest) = first["type"], first.get("ctx", {}), first["loc"]
    if kind == "value_error":
        return str(context["error"])
    name = cls.full_name(field) + "".join(f"[{part}]" for part in rest if isinstance(part, int))
    value, parts = first["input"], _parts(hints_of(cls)[field])
    text = f"{name}={shown(value)}"
    if kind in _COMPARISONS:
        if float in parts and isinstance(value, int):  # as it was understood
            text = f"{name}={float(value)}"
        return f"{text} is out of range; it must be {_COMPARISONS[kind](context)}"
    if kind == "finite_number":
        return f"{text} must be a finite number"
    if kind == "literal_error" and not cls.__dataclass_fields__[field].metadata.get("form"):
        choices = _choices(parts[0])
        near = difflib.get_close_matches(value if isinstance(value, str) else "", choices, n=1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        return f"{text} is not allowed{guess}; choose from: {', '.join(choices)}"
    return f"{text} must be {allowed(cls, field)}"
