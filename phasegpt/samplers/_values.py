"""Checks of the values that decode and its processors take: ConfigError for all but the allowed."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.arguments import (
    MOST,
    between,
    callables,
    flag,
    having,
    held,
    idle,
    real,
    seen,
    whole,
)
from phasegpt.core.errors import ConfigError

__all__ = [
    "MOST",
    "OFF",
    "between",
    "callables",
    "flag",
    "having",
    "held",
    "idle",
    "processor",
    "real",
    "token_ids",
    "whole",
    "whole_numbers",
]

#: What ends the error of a processor that removes unlikely tokens.
OFF = ", or null to keep every token"


def whole_numbers(name: str, value: Any) -> Tensor:
    """A tensor of whole numbers as int64; ConfigError."""
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} must be a tensor of whole numbers, not {type(value).__name__}")
    held(name, value)
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
                f"{name} hold {seen(x)}; they must be token ids, whole numbers >= 0 (one, or a "
                f"flat list)"
            )
    return [int(x) for x in found]


def processor(name: str, value: Any) -> Any:
    """Something to call with (ids, logits), or None; ConfigError."""
    return None if value is None else callables(name, [value])[0]
