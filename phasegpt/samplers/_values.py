"""Checks of the values that decode and its processors take: ConfigError for all but the allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError


def real(name: str, value: Any) -> float:
    """`value` as a float that is not NaN; ConfigError otherwise."""
    try:
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise ConfigError(f"{name}={value!r} must be a number")
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} is a number too large for floating point") from None


#: What ends the error of a processor that removes unlikely tokens.
OFF = ", or null to keep every token"


def between(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    closed: bool = True,
    otherwise: str = "",
) -> float:
    """`value` as a finite float in [low, high], or (low, high] if not `closed`; else ConfigError.

    `otherwise` ends its message.
    """
    number = real(name, value)
    if not (low <= number if closed else low < number) or number > high or math.isinf(number):
        top = "pi" if high == math.pi else f"{high:g}"
        bounds = f"in {'[' if closed else '('}{low:g}, {top}]"
        if math.isinf(high):
            above = "" if math.isinf(low) else f"{'>=' if closed else '>'} {low:g} and "
            bounds = f"{above}finite"
        raise ConfigError(f"{name}={value} is out of range; it must be {bounds}{otherwise}")
    return number


#: The largest whole number that stands for a size, a length or a count.
MOST = 2**31 - 1


def whole(name: str, value: Any, least: int, otherwise: str = "") -> int:
    """`value` as a whole number in least..MOST; else ConfigError, which ends with `otherwise`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number >= {least}{otherwise}")
    if int(value) > MOST:
        raise ConfigError(f"{name}={value} is too large; at most {MOST}{otherwise}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False; ConfigError for anything that only counts as one of them."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} must be True or False")
    return value


def whole_numbers(name: str, value: Any) -> Tensor:
    """A tensor of whole numbers as int64; ConfigError."""
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} must be a tensor of whole numbers, not {type(value).__name__}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ConfigError(f"{name} are a tensor of {value.dtype}; they must be whole numbers")
    return value.long()


def token_ids(name: str, value: Any) -> list[int]:
    """Ids >= 0 from one id, or from a tensor [N], an array or any collection; ConfigError."""
    if isinstance(value, Tensor):
        value = whole_numbers(name, value).tolist()
    many = isinstance(value, Iterable) and not isinstance(value, str | bytes | dict)
    found = list(value) if many else [value]
    for x in found:
        if isinstance(x, bool) or not isinstance(x, Integral) or not 0 <= int(x) <= MOST:
            raise ConfigError(
                f"{name} hold {x!r}; they must be token ids, whole numbers >= 0 (one, or a flat "
                f"list)"
            )
    return [int(x) for x in found]


def callables(name: str, value: Any) -> Sequence[Callable[..., Any]]:
    """A list or tuple of things to call; ConfigError."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name}={value!r} must be a list of functions or processors")
    for x in value:
        if isinstance(x, type) or not callable(x):
            raise ConfigError(f"{name} hold {x!r}, which cannot be called; give functions, or "
                              f"processors that were made, such as TopK(40)")  # fmt: skip
    return value


def processor(name: str, value: Any) -> Any:
    """Something to call with (ids, logits), or None; ConfigError."""
    return None if value is None else callables(name, [value])[0]


def having(name: str, value: Any, parts: Sequence[str], what: str) -> None:
    """ConfigError for an object without one of the attributes `parts`; `what` says what it is."""
    if isinstance(value, type) or not all(hasattr(value, part) for part in parts):
        raise ConfigError(f"{name}={value!r} must be {what}")
