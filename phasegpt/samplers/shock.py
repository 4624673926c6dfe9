"""Phase-Slip v0 done right: watch for stagnation, then shock the newest part of the memory.

    x' = x + scale * std(x) * N(0, 1), x the keys and/or Values of a head in the last W positions

A shock stays in the memory. Phases beside the keys (kuramoto) and running sums (phase_sync) are
left alone: noise would take them off their circles.

Shapes: B batch, T time, V vocabulary, H heads, W window, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from phasegpt.attention._cache import LayerCache
from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import unknown
from phasegpt.samplers import _values
from phasegpt.samplers.intervene import WRAP, Memory
from phasegpt.samplers.models import Decoder
from phasegpt.samplers.options import EntropyShockOptions
from phasegpt.samplers.temperature import entropy


class Detector(Protocol):
    """Says of one row at one token whether it looks stuck."""

    patience: int  # tokens in a row that must look stuck

    def __call__(self, ids_T: Tensor, entropy: float) -> bool:
        """ids_T: the row's tokens so far; entropy: of the next token, in nats."""
        ...


class LowEntropy:
    """Stuck where the entropy of the next token, at temperature 1, is below `threshold` nats.

    A confident passage looks the same. Raises ConfigError.
    """

    def __init__(
        self,
        threshold: float = EntropyShockOptions.stagnation_threshold,
        patience: int = EntropyShockOptions.patience,
    ) -> None:
        self.threshold = _values.between(
            "stagnation_threshold", threshold, 0, closed=False, otherwise=" (nats)"
        )
        self.patience = _values.whole("patience", patience, 1)

    def __call__(self, ids_T: Tensor, entropy: float) -> bool:
        """See Detector."""
        return entropy < self.threshold


class LoopDetector:
    """Stuck where the text has come round: its newest period repeats the one before it.

    At least `match` tokens must be repeated, so that a name that recurs is no loop, and a period p
    longer than that in whole. Raises ConfigError.
    """

    def __init__(self, match: int = EntropyShockOptions.match, patience: int = 4) -> None:
        self.match = _values.whole("match", match, 1)
        self.patience = _values.whole("patience", patience, 1)

    def __call__(self, ids_T: Tensor, entropy: float = 0.0) -> bool:
        """See Detector."""
        arguments.tensor("ids_T", ids_T, "[T]", of="whole")
        T = len(ids_T)
        if self.match >= T:
            return False
        earlier = ids_T[:-1].unfold(0, self.match, 1)
        places = (earlier == ids_T[-self.match :]).all(dim=1).nonzero().flatten().tolist()
        for period in (T - self.match - place for place in places):
            length = max(self.match, period)
            if length + period <= T and torch.equal(
                ids_T[T - length :], ids_T[T - length - period : T - period]
            ):
                return True
        return False

    def first(self, ids_T: Tensor) -> int | None:
        """Tokens that are read when `patience` of them in a row look stuck; None: never."""
        arguments.tensor("ids_T", ids_T, "[T]", of="whole")
        streak = 0
        for length in range(self.match + 1, len(ids_T) + 1):
            streak = streak + 1 if self(ids_T[:length]) else 0
            if streak == self.patience:
                return length
        return None


class Shock(NamedTuple):
    """One shock: the batch's row, its tokens so far (padding not counted), what was shocked."""

    row: int
    token: int
    entropy: float  # nats
    positions: int  # of the memory that were shocked


class KVShock:
    """The intervention. `events` holds the shocks of the last decoding.

    scale: noise in standard deviations of each head's own keys or Values in the window.
    detector: LoopDetector or LowEntropy; shocks of a row are `cooldown` tokens apart at least.
    window: positions back from the newest. target: keys | values | both.
    heat: the logits of the shocked token are divided by it, once (1: not). Raises ConfigError.
    """

    active = True

    def __init__(
        self,
        scale: float = EntropyShockOptions.noise_scale,
        *,
        detector: Detector | None = None,
        window: int = EntropyShockOptions.window,
        cooldown: int = EntropyShockOptions.cooldown,
        target: Literal["keys", "values", "both"] = EntropyShockOptions.target,
        heat: float = EntropyShockOptions.heat,
    ) -> None:
        targets = ("keys", "values", "both")
        if not isinstance(target, str) or target not in targets:
            raise ConfigError(unknown(f"target={target}", [f"target={t}" for t in targets]))
        self.detector = LoopDetector() if detector is None else detector
        _values.having(
            "detector", self.detector, ("__call__", "patience"), "LoopDetector() or LowEntropy()"
        )
        self.scale = _values.between("scale", scale, 0)
        self.heat = _values.between("heat", heat, 0, closed=False)
        self.target = target
        self.window = _values.whole("window", window, 1)
        self.cooldown = _values.whole("cooldown", cooldown, 0)
        self.events: list[Shock] = []

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Hugging Face would call it as custom_generate; ConfigError says how that goes."""
        raise ConfigError(WRAP)

    def start(self, decoder: Decoder) -> None:
        """See Intervention."""
        self.events = []
        self._streak: dict[int, int] = {}
        self._rest: dict[int, int] = {}

    def watch(self, memory: Memory) -> None:
        """See Intervention; ConfigError for a model without keys and Values."""
        self._memory = memory
        parts = [part for layer in memory.cache.layers for part in layer.parts()]
        self._parts = [part for part in parts if part.values is not None]
        if not self._parts:
            raise ConfigError("no layer of this model keeps keys and Values that could be shocked")

    def before(self) -> None:
        """See Intervention."""

    def after(self, logits_RV: Tensor, ids_BT: Tensor, done: Sequence[bool]) -> Tensor:
        """See Intervention; the shock is felt from the next token on, the heat in this one."""
        entropies = entropy(logits_RV).tolist()
        divisor = torch.ones_like(logits_RV[:, :1])
        for i, row in enumerate(self._memory.rows):
            ids_T = ids_BT[i, self._memory.pads[i] :]
            stuck = not done[i] and self.detector(ids_T, entropies[i])
            self._streak[row] = self._streak.get(row, 0) + 1 if stuck else 0
            self._rest[row] = max(0, self._rest.get(row, 0) - 1)
            if self._streak[row] >= self.detector.patience and not self._rest[row]:
                positions = self._shock(i)
                self.events.append(Shock(row, len(ids_T), entropies[i], positions))
                self._streak[row], self._rest[row] = 0, self.cooldown
                divisor[i] = self.heat
        return logits_RV / divisor

    def stop(self) -> None:
        """See Intervention."""

    def report(self) -> str:
        """Every shock of the last decoding, one per line."""
        return "\n".join(
            [
                f"entropy_shock: {len(self.events)} shocks",
                *(
                    f"  row {e.row}, after {e.token} tokens: entropy {e.entropy:.3f} nats, "
                    f"{e.positions} positions"
                    for e in self.events
                ),
            ]
        )

    def _shock(self, i: int) -> int:
        """Shock row i of the memory; the number of positions."""
        pad, generator = self._memory.pads[i], self._memory.generators[i]
        length = self._memory.cache.length
        start = max(pad, length - self.window)
        for part in self._parts:
            for x_HTE in _memories(part, self.target, i):
                x_HWE = x_HTE[:, start:]
                noise = torch.randn(x_HWE.shape, generator=generator).to(x_HWE)
                x_HWE += self.scale * x_HWE.float().std((1, 2), keepdim=True).to(x_HWE) * noise
        return length - start


def _memories(part: LayerCache, target: str, row: int) -> list[Tensor]:
    """Views of what is shocked in one row, [H,T,E] each."""
    assert part.keys is not None and part.values is not None
    width = part.keys.shape[-1] - 2 * part.oscillators
    chosen = {"keys": part.keys[row, ..., :width], "values": part.values[row]}
    return [x for name, x in chosen.items() if target in (name, "both")]
