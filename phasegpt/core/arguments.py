"""Checks of what public functions are given: ConfigError for all but the allowed.

They look at types, shapes and Python numbers alone: none waits for a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import nameable, printable

if TYPE_CHECKING:
    from torch import Tensor


def seen(value: Any) -> str:
    """A value as Python writes it, on one line of at most 80 characters."""
    try:
        return printable(" ".join(repr(value).split()))
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"


def real(name: str, value: Any) -> float:
    """`value` as a float that is not NaN; ConfigError otherwise."""
    try:
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise ConfigError(f"{name}={seen(value)} must be a number")
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} is a number too large for floating point") from None


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
        raise ConfigError(f"{name}={seen(value)} must be a whole number >= {least}{otherwise}")
    if int(value) > MOST:
        raise ConfigError(f"{name}={seen(value)} is too large; at most {MOST}{otherwise}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False; ConfigError for anything that only counts as one of them."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={seen(value)} must be True or False")
    return value


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """One of the texts `choices`; ConfigError."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}={seen(value)}; choose from: {', '.join(choices)}")
    return value


def path(name: str, value: Any) -> Path:
    """`value`, text or a path, as a Path; ConfigError."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ConfigError(f"{name}={seen(value)} must be a path, as text or as a pathlib.Path")
    if not nameable(os.fspath(value)):
        raise ConfigError(f"{name}={seen(value)} holds a character that no file can be named with")
    return Path(value)


def tensor(name: str, value: Any, shape: str = "", *, of: str = "real") -> Tensor:
    """A tensor of "whole", "real" or "floating-point" numbers; ConfigError.

    `shape`, such as "[B,T]", tells its axes; "": any.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise ConfigError(f"{name} is a {kind}; it must be a tensor {shape} of {of} numbers")
    floating = value.is_floating_point()
    counted = not floating and not value.is_complex() and value.dtype != torch.bool
    if not {"whole": counted, "real": counted or floating, "floating-point": floating}[of]:
        raise ConfigError(f"{name} is a tensor of {value.dtype}; it must be of {of} numbers")
    if shape and value.dim() != shape.count(",") + 1:
        raise ConfigError(f"{name} has shape {tuple(value.shape)}; it must be {name}{shape}")
    return value


def held(name: str, value: Tensor) -> Tensor:
    """`value`, a tensor that holds numbers; ConfigError for one on the device meta."""
    if value.is_meta:
        raise ConfigError(f"{name} is on the device meta, where a tensor holds no numbers")
    return value


def callables(name: str, value: Any) -> Sequence[Callable[..., Any]]:
    """A list or tuple of things to call; ConfigError."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name}={seen(value)} must be a list of functions or processors")
    for x in value:
        if isinstance(x, type) or not callable(x):
            raise ConfigError(f"{name} hold {seen(x)}, which cannot be called; give functions, or "
                              f"processors that were made, such as TopK(40)")  # fmt: skip
    return value


def having(name: str, value: Any, parts: Sequence[str], what: str) -> None:
    """ConfigError for an object without one of the attributes `parts`; `what` says what it is."""
    if isinstance(value, type) or not all(hasattr(value, part) for part in parts):
        raise ConfigError(f"{name}={seen(value)} must be {what}")


def idle(name: str, value: Any, default: Any, why: str) -> None:
    """ConfigError if `value` is not the default's although it does nothing, as `why` says."""
    if value != default:
        raise ConfigError(f"{name}={seen(value)} does nothing {why}; leave one of them out")
