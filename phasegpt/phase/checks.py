"""The check of what the functions of this folder are called with, from their signatures alone.

A parameter annotated Tensor takes a tensor of real numbers; letters at the end of its name are its
axes (theta_BTHN), and one letter has one size throughout a call. `dim`, `time` and `community`
are axes of the first tensor.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

_AXES = ("dim", "time", "community")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with a ConfigError for arguments of another type, shape or device."""
    signature = inspect.signature(function)
    hints = {name: str(p.annotation) for name, p in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # a graph is made of what a layer hands over
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        _check(hints, given)
        try:
            return function(*bound.args, **bound.kwargs)
        except (RuntimeError, IndexError, OverflowError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = {k: list(v.shape) for k, v in given.items() if isinstance(v, Tensor)}
            said = str(error).splitlines()[0]
            raise ConfigError(
                f"{function.__name__} cannot take the shapes {shapes} with these axes ({said:.200})"
            ) from error

    return call


def _check(hints: dict[str, str], given: dict[str, Any]) -> None:
    """ConfigError for what does not fit its hint; a real number becomes a float."""
    first: Tensor | None = None
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in given.items():
        hint = hints[name]
        if hint == "Tensor":
            _tensor(name, value, sizes)
            first = value if first is None else first
            if value.device != first.device:
                raise ConfigError(
                    f"{name} is on {value.device} and the tensor before it on {first.device}; move "
                    f"them to one device"
                )
        elif name in _AXES:
            for axis in value if isinstance(value, tuple) and hint == "Dim" else (value,):
                _axis(name, axis, first)
        elif hint == "int":
            arguments.whole(name, value, 0)
        elif hint == "torch.Generator | None":
            if not isinstance(value, torch.Generator | None):
                raise ConfigError(f"{name}={arguments.seen(value)} must be a torch.Generator")
        elif isinstance(value, Tensor) and hint != "float":
            arguments.tensor(name, value)
        else:
            given[name] = arguments.between(name, value, -math.inf)


def positive(name: str, value: float | Tensor) -> None:
    """ConfigError for a number that is not above 0; a tensor is not looked into."""
    if not isinstance(value, Tensor):
        arguments.between(name, value, 0, closed=False)


def _tensor(name: str, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
    letters = name.rpartition("_")[2] if "_" in name and name.rpartition("_")[2].isupper() else ""
    arguments.tensor(name, value, f"[{','.join(letters)}]" if letters else "")
    if not value.numel():
        raise ConfigError(f"{name} has shape {tuple(value.shape)}; it must hold numbers")
    for letter, size in zip(letters, value.shape, strict=False):
        known, where = sizes.setdefault(letter, (size, name))
        if size != known:
            raise ConfigError(
                f"{name} has shape {tuple(value.shape)}, [{','.join(letters)}]; {letter} is "
                f"{known} in {where}"
            )


def _axis(name: str, axis: Any, of: Tensor | None) -> None:
    axes = 0 if of is None else of.dim()
    arguments.whole(name, axis, -arguments.MOST)
    if not -axes <= axis < axes:
        raise ConfigError(
            f"{name}={axis} is no axis of a tensor of {axes}; give one from {-axes} to {axes - 1}"
        )
