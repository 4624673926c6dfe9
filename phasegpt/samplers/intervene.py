"""What may act on a model's memory while it decodes, and the gates that weigh a second path.

Shapes: B batch, T time, V vocabulary, R rows of the logits (B, or 2B beside a copy), N oscillators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from phasegpt.attention._cache import Cache, LayerCache
from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError
from phasegpt.samplers import _values
from phasegpt.samplers.options import PhaseSlipOptions
from phasegpt.samplers.temperature import entropy, sharpened

if TYPE_CHECKING:
    from phasegpt.samplers.models import Decoder

#: Of an intervention that was called, as Hugging Face calls a custom_generate.
WRAP = "an intervention decodes nothing by itself; give custom_generate=Sampler(intervention)"


class Memory(NamedTuple):
    """A cache that holds the prompt (or the new window), and whose rows it holds."""

    cache: Cache
    rows: Sequence[int]  # indices in the batch that was given to decode
    pads: Sequence[int]  # tokens of left padding per row
    protected: int  # position of the first token that is not the prompt's
    generators: Sequence[torch.Generator]  # one per row, apart from the tokens' streams


class Intervention(Protocol):
    """Something that edits the memory. `decode` calls start, then per memory watch and steps.

    A step is before (the memory is complete but for the newest token), the model's forward, and
    after, which turns the forward's logits[R,V] into those of the B rows.
    """

    @property
    def active(self) -> bool:
        """False: decode as if there were none."""
        ...

    def start(self, decoder: Decoder) -> None:
        """A new decoding: check the model, forget the last decoding."""
        ...

    def watch(self, memory: Memory) -> None:
        """From now on this is the memory."""
        ...

    def before(self) -> None:
        """Edit the memory before the newest token is read."""
        ...

    def after(self, logits_RV: Tensor, ids_BT: Tensor, done: Sequence[bool]) -> Tensor:
        """Logits[B,V] for the next token; ids are all tokens so far, `done` rows have ended."""
        ...

    def stop(self) -> None:
        """The decoding has ended, if by an error."""
        ...

    def report(self) -> str:
        """What was done in the last decoding, for a person."""
        ...


class Gate(Protocol):
    """How much of the second path is heard, beside the anchor's share."""

    def __call__(self, logits_BV: Tensor, parts: Sequence[tuple[LayerCache, Tensor]]) -> Tensor:
        """Openness[B] in [0, 1] from the clean logits and (memory, chosen heads) of each part."""
        ...


class EntropyGate:
    """sigmoid(H - center): open where the clean path is uncertain; H in nats at `temperature`.

    So at H = 0 it is 1/(1 + e^center), not closed, and at H = center it is 1/2. ConfigError.
    """

    def __init__(
        self, center: float = PhaseSlipOptions.gate_entropy, temperature: float = 1.0
    ) -> None:
        self.center = _values.between("center", center, -math.inf, otherwise=" (nats)")
        self.temperature = _values.real("temperature of the gate", temperature)
        if not self.temperature > 0:
            raise ConfigError(f"temperature={temperature} of the gate must be > 0")

    def __call__(self, logits_BV: Tensor, parts: Sequence[tuple[LayerCache, Tensor]]) -> Tensor:
        """See Gate."""
        arguments.tensor("logits_BV", logits_BV, "[B,V]", of="floating-point")
        beta = torch.tensor(1 / self.temperature)
        return torch.sigmoid(entropy(sharpened(logits_BV, beta)) - self.center)


class RGate:
    """1 where a chosen head is over-synchronized, R > threshold at the newest token, else 0.

    R is LayerCache.order_parameter: over the oscillators of a head (kuramoto), or the mean over a
    head's channels of R over the prefix (phase_sync, torus, fsn), before the last step. A prefix of
    t tokens has 0.886/sqrt(t) by chance, 0.64 at t = 2. ConfigError for heads without phases.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = _values.between("threshold", threshold, 0, 1, otherwise=", as R is")

    def __call__(self, logits_BV: Tensor, parts: Sequence[tuple[LayerCache, Tensor]]) -> Tensor:
        """See Gate."""
        B = len(logits_BV)
        orders = [(part.order_parameter(), heads) for part, heads in parts]
        found = [R_RH[:B, heads] for R_RH, heads in orders if R_RH is not None]
        if not found:
            raise ConfigError(
                "RGate needs heads with phases in the memory (of kuramoto those with readout=bias "
                "or both); take an EntropyGate or gate=None"
            )
        return (torch.cat(found, dim=1) > self.threshold).any(dim=1).to(logits_BV.dtype)


def divergence(clean_BV: Tensor, other_BV: Tensor) -> Tensor:
    """KL(clean || other) of the softmaxes in nats, [B]."""
    log_p, log_q = clean_BV.log_softmax(dim=-1), other_BV.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
