"""Stored weights, before a model takes them: what it would change or leave out is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from phasegpt.core.errors import CheckpointError

_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def check(weights: Mapping[Any, Any], *, tied: bool) -> None:
    """CheckpointError for tensors that no model of ours wrote, whatever its names and shapes.

    Those are tensors of whole or complex numbers, which a copy would round, and, where the two are
    `tied`, a head that is not the embedding, whose place it takes.
    """
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"the weights hold {name!r:.80}: a {type(value).__name__}, which is no tensor with "
                f"a name"
            )
        if not value.is_floating_point():
            raise CheckpointError(
                f"the weight {name:.80} is a tensor of {value.dtype}; it must be of floating-point "
                f"numbers"
            )
    for name, head in weights.items() if tied else ():
        embedding = name.removesuffix(_HEAD) + _EMBEDDING if name.endswith(_HEAD) else ""
        if embedding in weights and not _same(head, weights[embedding]):
            raise CheckpointError(
                f"{name} is not {embedding}, and with model.tie_embeddings=true they are one tensor"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same numbers; NaN is NaN here."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """CheckpointError for weights that are not finite, which nobody could use."""
    for name, value in weights.items():
        if not value.isfinite().all():
            raise CheckpointError(
                f"the weight {name} holds NaN or infinity; give an earlier checkpoint of the run"
            )
