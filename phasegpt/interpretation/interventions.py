"""What the loss does when synchronization is changed at test time.

All phase layers, or those asked for, are changed together; nothing is learned again, and the model
is itself afterwards. Shapes: B sequences, T time, H heads, N oscillators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.core.randomness import keyed_generator
from phasegpt.data.tasks import Task
from phasegpt.interpretation.tracing import PhaseLayer, integrating, phase_layers, token_losses
from phasegpt.model.gpt import GPT
from phasegpt.model.scoring import score_task

Change = Callable[[PhaseLayer], AbstractContextManager[None]]

FACTORS = (0.0, 0.5, 1.0, 2.0)


class Intervention(NamedTuple):
    """What is changed in every phase layer, and by what."""

    name: str
    kind: str  # coupling, scramble, steps or readout
    value: float | str
    change: Change


@dataclass(frozen=True)
class Effect:
    """One intervention and the loss of every token under it."""

    name: str
    kind: str
    value: float | str
    loss_BT: Tensor


@dataclass(frozen=True)
class TaskEffect:
    """One intervention and what the model scores on a generated task under it (Tally.scores)."""

    name: str
    kind: str
    value: float | str
    scores: dict[str, float]


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
    return [
        Effect(*_changed_to(one, found, lambda: token_losses(model, ids_BT)))
        for one in _every(found, seed)
    ]


def task_interventions(
    model: GPT,
    task: Task,
    split: str = "test",
    *,
    batch_size: int = 32,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> list[TaskEffect]:
    """The same by what the model scores on val or test of a generated task."""
    found = phase_layers(model, layers)
    return [
        TaskEffect(
            *_changed_to(one, found, lambda: score_task(model, task, split, batch_size=batch_size))
        )
        for one in _every(found, seed)
    ]


def _changed_to(
    one: Intervention, layers: Sequence[PhaseLayer], measured: Callable[[], Any]
) -> tuple[str, str, float | str, Any]:
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(one.change(layer))
        return one.name, one.kind, one.value, measured()


def _every(layers: Sequence[PhaseLayer], seed: int) -> list[Intervention]:
    found = [
        Intervention(f"K x {factor:g}", "coupling", factor, partial(coupling, factor=factor))
        for factor in FACTORS
    ]
    for what in ("tokens", "oscillators"):
        change: Change = partial(scrambled, what=what, seed=seed)
        found.append(Intervention(f"scrambled across {what}", "scramble", what, change))
    S = layers[0].oscillators.steps  # all phase layers have the same options
    for steps in sorted({0, S // 2, S, 2 * S}):
        found.append(Intervention(f"S = {steps}", "steps", steps, partial(integrated, steps=steps)))
    if any(isinstance(layer.module, Kuramoto) for layer in layers):
        found.append(Intervention("coherence not read out", "readout", 0.0, silent))
    return found


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
