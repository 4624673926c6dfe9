"""Checks of the numbers that processors take."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from phasegpt.core.errors import ConfigError


def real(name: str, value: Any) -> float:
    """`value` as a float that is not NaN; ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise ConfigError(f"{name}={value!r} must be a number")
    return float(value)


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


def whole(name: str, value: Any, least: int, otherwise: str = "") -> int:
    """`value` as a whole number >= least; else ConfigError, whose message ends with `otherwise`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}={value} must be a whole number >= {least}{otherwise}")
    return int(value)
