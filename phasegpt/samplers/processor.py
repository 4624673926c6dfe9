"""What a link of the chain is, and the check of what it is called with.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor

from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError


class Processor(Protocol):
    """Anything that maps the logits of the next token; ids[B,T] are the tokens so far, or None.

    The same call as Hugging Face's LogitsProcessor. A removed token has logit -inf. A processor
    does not change its input.
    """

    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        ...


Call = TypeVar("Call", bound=Callable[[Any, Tensor | None, Tensor], Tensor])


def of_logits(call: Call) -> Call:
    """A processor's __call__ that raises ConfigError for what are no logits."""

    @functools.wraps(call)
    def checked(self: Any, ids: Tensor | None, logits: Tensor) -> Tensor:
        _check_logits(logits)
        return call(self, ids, logits)

    return cast(Call, checked)


def of_tokens(call: Call) -> Call:
    """The same for a processor that reads the tokens so far, ids[B,T]."""

    @functools.wraps(call)
    def checked(self: Any, ids: Tensor | None, logits: Tensor) -> Tensor:
        _check_logits(logits, "[B,V]")
        name = type(self).__name__
        if ids is None:
            raise ConfigError(f"{name} reads the tokens so far: it needs ids, and got None")
        arguments.tensor("ids", ids, "[B,T]", of="whole")
        if len(ids) != len(logits) or ids.device != logits.device:
            raise ConfigError(
                f"ids {list(ids.shape)} on {ids.device} do not belong to logits "
                f"{list(logits.shape)} on {logits.device}; give one row of each per text, on one "
                f"device"
            )
        last = logits.shape[-1] - 1
        if not ids.is_cuda and ids.numel():  # a GPU would be waited for, and tells it by itself
            for token in (int(ids.min()), int(ids.max())):
                if not 0 <= token <= last:
                    raise ConfigError(f"ids hold the token {token}; the logits are of 0..{last}")
        return call(self, ids, logits)

    return cast(Call, checked)


def _check_logits(logits: Any, shape: str = "") -> None:
    arguments.held("logits", arguments.tensor("logits", logits, shape, of="floating-point"))
    if not logits.dim() or not logits.shape[-1]:
        raise ConfigError(
            f"logits are a tensor {list(logits.shape)}; they must be [B,V], "
            f"with a number for every token"
        )
