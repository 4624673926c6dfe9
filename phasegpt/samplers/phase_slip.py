"""Phase-Slip: a second path whose memory is rotated, beside the clean one, in one forward.

    v'_j = rotation of v_j by `angle`, for the chosen heads and the last W positions j
    logits = clean + (1 - anchor) gate (slipped - clean)

For every token the memory's rows are used twice: clean, and with rotated Values (or, in a phase
model, slipped phases). The blocks below the first chosen one are computed once. The slip lasts for
one token: keys, Values and states of the clean rows are never touched, and the second path's are
clean again before the next token. The first token after a prompt (and after the window of a full
context has moved) is read from the clean path alone, since its memory is only being written.

Shapes: B batch, V vocabulary, H heads, W window, E head width, N oscillators, C = H N channels.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from phasegpt.attention._cache import LayerCache
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import unknown
from phasegpt.samplers import _values
from phasegpt.samplers.calibrate import Head, calibrate_heads
from phasegpt.samplers.candidates import CandidateHead
from phasegpt.samplers.intervene import WRAP, EntropyGate, Gate, Memory, divergence
from phasegpt.samplers.models import Decoder
from phasegpt.samplers.options import PhaseSlipOptions
from phasegpt.samplers.rotation import ROTATIONS, draw, slip_angles, slip_features, turned
from phasegpt.samplers.target_kl import angle_for, own_text, phase_heads
from phasegpt.samplers.temperature import entropy

#: Heads that heads="auto" chooses, of the upper half of the layers.
AUTO_HEADS = 3


class SlipStep(NamedTuple):
    """One token: what the gate saw and did. `rows` are those of the batch; the rest are [B]."""

    rows: tuple[int, ...]
    entropy: Tensor  # of the clean logits, nats
    weight: Tensor  # share of the slipped path, (1 - anchor) gate
    kl: Tensor | None  # KL(clean || slipped) before the gate, nats; None with candidates


class PhaseSlip:
    """The intervention; hand it to decode, Sampler or PhaseSlipSampler.

    heads: [(layer, head), ...], counting the heads of the memory (key/value heads), or "auto":
    the 3 heads of the upper half of the layers that move the logits most (calibrate_heads); with
    target="phases" all heads with phases.
    angle: radians in [0, pi]; 0 is plain sampling. None: the angle at which KL(clean || slipped)
    is `target_kl` nats on text of the model's own, found once per model.
    window: W, positions back from the newest, which is one of them. anchor: the share of the clean
    path with an open gate. gate: EntropyGate, RGate, or None (always open).
    rotation: geodesic | plane | cayley, see phasegpt.samplers.rotation.
    protect_prompt: leave the prompt's positions as they are.
    target: "values", or "phases": each phase that is kept of a token in the window (kuramoto,
    torus, fsn) slips by +angle or -angle, as chance has it, and in phase_sync each channel's
    prefix does, without a window or protect_prompt.
    candidates: compute the slipped logits only for this many best tokens of the clean path.
    force: at angle 0, compute the second path nevertheless (for measurements).

    `trace` holds the steps of the last decoding. Raises ConfigError.
    """

    def __init__(
        self,
        heads: Sequence[Head] | Literal["auto"] = PhaseSlipOptions.heads,
        *,
        angle: float | None = PhaseSlipOptions.angle,
        target_kl: float = PhaseSlipOptions.target_kl,
        window: int = PhaseSlipOptions.window,
        anchor: float = PhaseSlipOptions.anchor,
        gate: Gate | Literal["entropy"] | None = "entropy",
        rotation: str = PhaseSlipOptions.rotation,
        protect_prompt: bool = PhaseSlipOptions.protect_prompt,
        target: Literal["values", "phases"] = PhaseSlipOptions.target,
        candidates: int | None = PhaseSlipOptions.candidates,
        force: bool = False,
    ) -> None:
        if not isinstance(rotation, str) or rotation not in ROTATIONS:
            raise ConfigError(unknown(f"rotation={rotation}", [f"rotation={r}" for r in ROTATIONS]))
        if target not in ("values", "phases"):
            raise ConfigError(unknown(f"target={target}", ["target=values", "target=phases"]))
        if target == "phases" and rotation != "geodesic":
            raise ConfigError(
                f"rotation={rotation} is for target=values; a phase has one circle to slip on, so "
                f"leave rotation at geodesic"
            )
        if isinstance(heads, str) and heads != "auto":
            raise ConfigError(f'heads={heads!r} must be "auto" or a list of (layer, head)')
        heads = heads if isinstance(heads, str) else _pairs(heads)
        if not heads:
            raise ConfigError("heads=[] slips nothing; set angle=0 for plain sampling")
        if angle is not None:
            otherwise = " radians, or None to take the angle that target_kl asks for"
            angle = _values.between("angle", angle, 0, math.pi, otherwise=otherwise)
            _values.idle(
                "target_kl", target_kl, PhaseSlipOptions.target_kl, f"beside angle={angle}"
            )
        if candidates is not None:
            _values.whole("candidates", candidates, 1, ", or None for all")
        if gate is not None and gate != "entropy" and not _callable(gate):
            raise ConfigError(f'gate={gate!r} must be "entropy", EntropyGate, RGate or None')
        self.heads: list[Head] | str = heads
        self.angle = angle
        self.target_kl = _values.between(
            "target_kl", target_kl, 0, closed=False, otherwise=" (nats)"
        )
        self.window = _values.whole("window", window, 1, " of positions")
        self.anchor = _values.between("anchor", anchor, 0, 1)
        self.gate: Gate | None = EntropyGate() if gate == "entropy" else gate  # type: ignore[assignment]
        self.rotation, self.target, self.candidates = rotation, target, candidates
        self.protect_prompt = _values.flag("protect_prompt", protect_prompt)
        self.force = _values.flag("force", force)
        self.trace: list[SlipStep] = []
        self._fitted: tuple[tuple, list[Head], float] | None = None
        self._batch = 0  # rows of the memory that is watched
        self._partial: CandidateHead | None = None

    @property
    def active(self) -> bool:
        """Whether there is a second path to compute."""
        return self.angle != 0 or self.force

    def fit(self, model: Any, ids_BT: Tensor | None = None) -> tuple[list[Head], float]:
        """The heads and the angle for `model`: those given, or found on ids (or its own text)."""
        heads, angle = self.heads, self.angle
        to_score = self.target == "values"
        if ids_BT is None and (angle is None or (heads == "auto" and to_score)):
            ids_BT = own_text(model)
        scores = None
        if to_score and ids_BT is not None:
            scores = calibrate_heads(model, ids_BT, window=self.window)
        if isinstance(heads, str):
            heads = phase_heads(model) if scores is None else scores.top(AUTO_HEADS)
        chosen = list(heads)
        if angle is None:
            assert ids_BT is not None
            quadratic = None if scores is None else scores.total(chosen)
            angle = angle_for(
                model, ids_BT, self.target_kl, lambda a: self._copy(chosen, a), quadratic
            )
        self._fitted = (self._question(model), chosen, angle)
        return chosen, angle

    def _question(self, model: Any) -> tuple:
        """What the fitted heads and angle depend on."""
        heads = self.heads if isinstance(self.heads, str) else tuple(self.heads)
        numbers = (self.angle, self.target_kl, self.window, self.protect_prompt)
        changes = sum(p._version for p in model.parameters() if not p.is_inference())
        return (weakref.ref(model), changes, heads, *numbers, self.target, self.rotation)

    def _copy(self, heads: Sequence[Head], angle: float) -> PhaseSlip:
        return PhaseSlip(
            heads, angle=angle, window=self.window, rotation=self.rotation, target=self.target,
            gate=None, protect_prompt=self.protect_prompt,
        )  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Hugging Face would call it as custom_generate; ConfigError says how that goes."""
        raise ConfigError(WRAP)

    # ---- Intervention

    def start(self, decoder: Decoder) -> None:
        """See Intervention; finds heads and angle where they are left open."""
        self.trace, self._batch = [], 0
        model = decoder.module
        if self._fitted is None or self._fitted[0] != self._question(model):
            self.fit(model)
        assert self._fitted is not None
        _, heads, self._angle = self._fitted
        self._by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            if not 0 <= layer < len(decoder.blocks):
                raise ConfigError(
                    f"head ({layer}, {head}) is not there: the model has {len(decoder.blocks)} "
                    f"layers, counted from 0"
                )
            self._by_layer.setdefault(layer, []).append(head)
        if self.candidates is not None:
            self._partial = CandidateHead(decoder.head, self.candidates)

    def watch(self, memory: Memory) -> None:
        """See Intervention; copies the rows and sets the edits of the chosen layers."""
        cache = memory.cache
        self._memory, self._batch = memory, len(memory.rows)
        self._parts: list[tuple[LayerCache, Tensor]] = []
        for layer, heads in sorted(self._by_layer.items()):
            found = [p for p in cache.parts(layer) if _target(p, self.target) is not None]
            if not found:
                raise ConfigError(
                    f"layer {layer} keeps no {self.target} to rotate"
                    + ("; choose a layer with phases (of kuramoto with readout=bias or both)"
                       if self.target == "phases" else "; choose another, or target=phases")
                )  # fmt: skip
            for part in found:
                if self.target == "phases" and part.phases is None:
                    why = f"beside the phases of layer {layer}, running sums without positions"
                    for name in ("window", "protect_prompt"):
                        _values.idle(
                            name, getattr(self, name), getattr(PhaseSlipOptions, name), why
                        )
                count = _target(part, self.target)
                for head in heads:
                    if not 0 <= head < (count or 0):
                        raise ConfigError(
                            f"head ({layer}, {head}) is not there: layer {layer} has {count} heads "
                            f"of {self.target}, counted from 0 (of grouped heads, the key/value "
                            f"heads)"
                        )
                self._parts.append((part, torch.tensor(sorted(set(heads)))))
        cache.split(min(self._by_layer))
        for part, heads_h in self._parts:
            edited = part.values if self.target == "values" else part.phases
            part.edit = partial(self._edit, heads_h) if edited is not None else None

    def before(self) -> None:
        """See Intervention; slips the running sums of phase_sync, which have no positions."""
        if self._partial is not None:
            self._partial.rows = self._batch
        for part, heads in self._parts:
            if self.target == "phases" and part.phases is None and self._angle:
                part.state = self._slip_state(part.state, heads, part.oscillators)

    def after(self, logits_RV: Tensor, ids_BT: Tensor, done: Sequence[bool]) -> Tensor:
        """See Intervention; joins the two paths and makes the copies clean again."""
        clean_BV = logits_RV[: self._batch]
        gate = clean_BV.new_ones(self._batch)
        if self.gate is not None:
            gate = self.gate(clean_BV, self._parts)
        weight = (1 - self.anchor) * gate
        kl = None
        if self._partial is None:
            slipped_BV = logits_RV[self._batch :]
            kl = divergence(clean_BV, slipped_BV)
            logits_BV = clean_BV + weight[:, None] * (slipped_BV - clean_BV)
        else:
            ids_BC, difference_BC = self._partial.difference(clean_BV)
            logits_BV = clean_BV.scatter_add(1, ids_BC, weight[:, None] * difference_BC)
        self._memory.cache.commit(self.window)
        self.trace.append(SlipStep(tuple(self._memory.rows), entropy(clean_BV), weight, kl))
        return logits_BV

    def stop(self) -> None:
        """See Intervention."""
        if self._partial is not None:
            self._partial.remove()
            self._partial = None

    def report(self) -> str:
        """The last decoding in one line: heads, angle, means over its steps."""
        if not self.active:
            return "phase_slip: angle 0, plain sampling"
        if self._fitted is None:
            return "phase_slip: nothing decoded yet"
        _, heads, angle = self._fitted
        text = f"phase_slip: (layer, head) {', '.join(map(str, heads))}; angle {angle:.4f} rad"
        for name in ("entropy", "weight", "kl"):
            found = [x for step in self.trace if (x := getattr(step, name)) is not None]
            if found:
                text += f"; {name} {float(torch.cat(found).mean()):.3g}"
        return text

    # ---- edits

    def _edit(self, heads: Tensor, part: LayerCache) -> None:
        """Rotate the window of the copies, which are clean until now but for the newest token."""
        assert part.keys is not None
        if not self._angle:
            return
        B, end = self._batch, part.keys.shape[2]
        start = max(self._memory.protected if self.protect_prompt else 0, end - self.window)
        memory = part.values if self.target == "values" else part.phases
        assert memory is not None
        if start >= end:
            return
        clean = memory[B:, heads, start:end]
        clean = clean.to(torch.promote_types(clean.dtype, torch.float32))
        if self.target == "values":
            kind = ROTATIONS[self.rotation]
            noise = self._noise(kind.noise(len(heads), self.window, clean.shape[-1]), clean)
            rotated = kind.turn(clean, self._angle, noise)
        else:
            noise = self._noise((len(heads), self.window, part.oscillators), clean)
            slip = slip_angles if part.angles else slip_features
            rotated = slip(clean, self._angle, noise)
        memory[B:, heads, start:end] = rotated.to(memory.dtype)

    def _slip_state(self, state: Any, heads: Tensor, oscillators: int) -> Any:
        B = self._batch
        cos, sin = (x.clone().unflatten(-1, (-1, oscillators)) for x in state[:2])  # [S,2B,H,N]
        x, y = cos[:, B:, heads], sin[:, B:, heads]
        turn = self._noise((len(heads), oscillators), x).sign() * self._angle
        cos[:, B:, heads], sin[:, B:, heads] = turned(x, y, turn)
        return state._replace(cos_SBC=cos.flatten(-2), sin_SBC=sin.flatten(-2))

    def _noise(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return draw(shape, self._memory.generators, like)


def _pairs(heads: Any) -> list[Head]:
    """Heads as pairs of whole numbers; ConfigError for anything else."""
    try:
        pairs = [(operator.index(layer), operator.index(head)) for layer, head in heads]
        if any(isinstance(x, bool) for pair in heads for x in pair):
            raise TypeError("True is no number of a head")
        return pairs
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"heads={heads!r} must be a list of (layer, head), as in [(7, 0), (7, 3)]"
        ) from error


def _callable(gate: Any) -> bool:
    return callable(gate) and not isinstance(gate, type)


def _target(part: LayerCache, target: str) -> int | None:
    """Heads that keep what is rotated, or None."""
    if target == "values":
        return None if part.values is None else part.values.shape[1]
    if part.phases is not None:
        return part.phases.shape[1]
    phased = part.state is not None and part.oscillators  # a state of sums of values has none
    return part.state.cos_SBC.shape[-1] // part.oscillators if phased else None
