"""What the loss does when synchronization is changed at test time.

All phase layers, or those asked for, are changed together; nothing is learned again, and the model
is itself afterwards. Shapes: B sequences, T time, H heads, N oscillators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.core.randomness import keyed_generator
from phasegpt.interpretation.tracing import PhaseLayer, integrating, phase_layers, token_losses
from phasegpt.model.gpt import GPT

Change = Callable[[PhaseLayer], AbstractContextManager[None]]

FACTORS = (0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Effect:
    """One intervention and the loss of every token under it."""

    name: str
    kind: str  # coupling, scramble, steps or readout
    value: float | str
    loss_BT: Tensor


def interventions(
    model: GPT, ids_BT: Tensor, *, layers: Sequence[int] | None = None, seed: int = 0
) -> list[Effect]:
    """Loss with K scaled, phases scrambled, S changed, and without the phases' readout.

    K times 1 and the model's own S change nothing and are there as controls. Phases are
    scrambled after the integration: dealt anew among the tokens of a sequence (also backwards:
    no causal model, a measure of what the phases carry), or among the oscillators of each head
    and token by itself (which leaves kuramoto's R as it is). Without the readout, kuramoto is
    softmax.
    """
    found = phase_layers(model, layers)

    def effect(name: str, kind: str, value: float | str, change: Change) -> Effect:
        with ExitStack() as stack:
            for layer in found:
                stack.enter_context(change(layer))
            return Effect(name, kind, value, token_losses(model, ids_BT))

    effects = [
        effect(f"K x {factor:g}", "coupling", factor, partial(coupling, factor=factor))
        for factor in FACTORS
    ]
    for what in ("tokens", "oscillators"):
        change = partial(scrambled, what=what, seed=seed)
        effects.append(effect(f"scrambled across {what}", "scramble", what, change))
    S = found[0].oscillators.steps  # all phase layers have the same options
    for steps in sorted({0, S // 2, S, 2 * S}):
        effects.append(effect(f"S = {steps}", "steps", steps, partial(integrated, steps=steps)))
    if any(isinstance(layer.module, Kuramoto) for layer in found):
        effects.append(effect("coherence not read out", "readout", 0.0, silent))
    return effects


@contextmanager
def coupling(layer: PhaseLayer, factor: float) -> Iterator[None]:
    """Inside, the layer's K is `factor` times its own."""
    with _changed(layer.oscillators.coupling) as K:
        K.mul_(factor)
        yield


@contextmanager
def silent(layer: PhaseLayer) -> Iterator[None]:
    """Inside, beta and gate of a kuramoto layer are 0: softmax. Other layers stay."""
    with ExitStack() as stack:
        for name in ("beta", "gate"):
            value = getattr(layer.module, name, None)
            if isinstance(value, Tensor):
                stack.enter_context(_changed(value)).zero_()
        yield


def integrated(layer: PhaseLayer, steps: int) -> AbstractContextManager[None]:
    """Inside, the layer integrates for `steps` steps."""
    return integrating(layer, lambda advance, theta0: advance(theta0, steps))


def scrambled(layer: PhaseLayer, what: str, seed: int) -> AbstractContextManager[None]:
    """Inside, the final phases are permuted across `what`: tokens or oscillators."""
    device = layer.oscillators.coupling.device
    generator = keyed_generator("scramble", seed, layer.index, device=device)
    S = layer.oscillators.steps

    def integrate(advance: Callable[..., Tensor], theta0: Tensor) -> Tensor:
        theta, drift = advance(theta0, S), layer.module.drift(theta0.shape[1])
        drift = torch.zeros((), device=device) if drift is None else drift.to(theta.dtype)
        theta = theta - drift  # which the readout takes off where a phase ends up
        if what == "tokens":  # a token's phases move together
            key = torch.rand(theta.shape[:2], generator=generator, device=device)
            place = key.argsort(1)[..., None, None].expand_as(theta)
        else:
            place = torch.rand(theta.shape, generator=generator, device=device).argsort(-1)
        return theta.gather(1 if what == "tokens" else -1, place) + drift

    return integrating(layer, integrate)


@contextmanager
def _changed(value: Tensor) -> Iterator[Tensor]:
    """A parameter to write on; it has its own value again afterwards, bit for bit."""
    own = value.detach().clone()
    try:
        yield value.detach()
    finally:
        value.detach().copy_(own)
