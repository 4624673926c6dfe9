"""What the phase layers of a model do with given tokens, step by step.

A trace is the layer's own `trajectory` for the input that it has in the model's forward pass; an
intervention is a forward hook on its `oscillators`, whose output is all that the layer reads.

Shapes: B sequences, T time, D model width, H heads, N oscillators, S integration steps, C order
parameters of a head and token: 1 over its oscillators (kuramoto), N over the prefix of each
channel (phase_sync).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phasegpt.attention import Attention
from phasegpt.attention._oscillators import CoupledPhases
from phasegpt.attention.hybrid import Hybrid
from phasegpt.core.errors import ConfigError
from phasegpt.core.eval_mode import inference
from phasegpt.model.gpt import GPT
from phasegpt.model.scoring import token_nats
from phasegpt.phase import uncoupled_phases

Integrate = Callable[[Callable[..., Tensor], Tensor], Tensor]

_BATCH_TOKENS = 1024
_STEPS_KEPT = 20


@dataclass(frozen=True)
class PhaseLayer:
    """A layer with oscillators; of a hybrid, its phase partner."""

    index: int
    name: str  # of the attention; of a hybrid, hybrid
    module: Attention
    oscillators: CoupledPhases

    @property
    def mechanism(self) -> str:
        """The name of its own attention, which is not hybrid."""
        return type(self.module).__module__.rpartition(".")[2]

    @property
    def over_prefix(self) -> bool:
        """Whether R is over the prefix of each channel, not over the oscillators of a head."""
        return self.module.coupled_axis == "prefix"


@dataclass(frozen=True)
class Trace:
    """One layer's phases on B sequences, on the CPU.

    `uncoupled` and the R beside it are those of K = 0 with the same weights and layer inputs.
    `path` and `path_R` follow the first sequence through the integration `steps` listed.
    """

    layer: PhaseLayer
    x_BTD: Tensor  # the layer's input
    theta0_BTHN: Tensor
    theta_BTHN: Tensor
    uncoupled_BTHN: Tensor
    R_BTHC: Tensor
    R_uncoupled_BTHC: Tensor
    count_THC: Tensor  # phases behind each R; for forgetting prefixes the effective number
    R_steps_HS: Tensor  # mean over sequences and the tokens that count, after each step
    R_steps_uncoupled_HS: Tensor
    steps: tuple[int, ...]
    path_STHN: Tensor
    path_R_STH: Tensor

    @property
    def first(self) -> int:
        """Index of the first token that counts: prefixes of fewer than 32 are left out."""
        return self.layer.module.first_token(self.theta_BTHN.shape[1])

    def weights(self, time: int) -> Tensor:
        """What tokens 1..T weigh in R over their prefix, [T,H,N]: alike, or as it forgets."""
        return _weights(self.layer, time).flip(0)


def phase_layers(model: GPT, only: Sequence[int] | None = None) -> list[PhaseLayer]:
    """The layers with oscillators, or those of them in `only`.

    Raises ConfigError where there are none, and for layers that see the future.
    """
    if model.leaky:
        raise ConfigError(
            f"this model sees the future (attention={model.config.attention}); its synchronization "
            "is not that of a causal layer and is not measured"
        )
    if not model.oscillators:
        raise ConfigError(
            f"this model has no oscillators (attention={model.config.attention} in layers "
            f"{list(model.config.attention_layers)}); give one with phases, such as kuramoto or "
            f"phase_sync"
        )
    for index in only or ():
        if index not in model.oscillators:
            raise ConfigError(
                f"layers={list(only or ())}: layer {index} has no oscillators; choose from: "
                f"{', '.join(map(str, model.oscillators))}"
            )
    if only is not None and not only:
        raise ConfigError("layers=[] names no layer; leave it out for all that have oscillators")
    layers = []
    for index, oscillators in model.oscillators.items():
        if only is None or index in only:
            module = model.blocks[index].attn
            module = module.partner if isinstance(module, Hybrid) else module
            layers.append(PhaseLayer(index, model.config.attention, module, oscillators))
    return layers


@contextmanager
def integrating(layer: PhaseLayer, integrate: Integrate) -> Iterator[None]:
    """Inside, the layer's phases are `integrate(advance, theta0)`; advance(theta, steps) couples.

    The model's own is `advance(theta0, S)`. Of several the one entered last counts.
    """

    def replaced(module: torch.nn.Module, inputs: tuple[Any, ...], theta: Tensor) -> Tensor:
        advance, theta0, *_ = inputs
        return integrate(advance, theta0)

    hook = layer.oscillators.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()


def token_losses(model: GPT, ids_BT: Tensor) -> Tensor:
    """Cross-entropy of tokens 1.. of every row given those before, nats, [B,T-1], on the CPU.

    Rows are whole sequences, at most block_size + 1 tokens long; the model stays on its device.
    """
    if ids_BT.dim() != 2 or ids_BT.shape[1] < 2:
        raise ConfigError(
            f"ids have shape {tuple(ids_BT.shape)}; they must be [B,T] with at least 2 tokens a row"
        )
    device = next(model.parameters()).device
    losses = []
    with inference(model):
        for rows in ids_BT.split(max(1, _BATCH_TOKENS // (ids_BT.shape[1] - 1))):
            idx, targets = rows[:, :-1].to(device), rows[:, 1:].to(device)
            losses.append(token_nats(model(idx).logits, targets).cpu())
    return torch.cat(losses)


def trace(
    model: GPT, ids_BT: Tensor, layers: Sequence[int] | None = None
) -> tuple[Tensor, list[Trace]]:
    """Loss of every token (see token_losses) and the trace of every phase layer.

    ids_BT: B sequences; the last token of each is only a target. Raises ConfigError.
    """
    recorders = [_Recorder(layer) for layer in phase_layers(model, layers)]
    with ExitStack() as stack:
        for recorder in recorders:
            hook = recorder.layer.module.register_forward_pre_hook(recorder.see, with_kwargs=True)
            stack.callback(hook.remove)
        loss_BT = token_losses(model, ids_BT)
    with torch.inference_mode():
        return loss_BT, [recorder.trace() for recorder in recorders]


def order(layer: PhaseLayer, theta_BTHN: Tensor) -> Tensor:
    """The layer's order parameter as [B,T,H,C]."""
    R = layer.module.order_parameter(theta_BTHN)
    return R if layer.over_prefix else R.unsqueeze(-1)


def counts(layer: PhaseLayer, time: int) -> Tensor:
    """Number of phases behind each R, [T,H,C]: N, or t; with forgetting (sum w)^2 / sum w^2."""
    H, N = layer.oscillators.shape
    if not layer.over_prefix:
        return torch.full((time, H, 1), float(N))
    weights = _weights(layer, time)
    return weights.cumsum(0).square() / weights.square().cumsum(0)


def _weights(layer: PhaseLayer, time: int) -> Tensor:
    """Of tokens 0, 1, .. T - 1 back, [T,H,N]."""
    forget: Tensor | None = getattr(layer.module, "forget", None)
    shape = layer.oscillators.shape
    decay = torch.ones(shape) if forget is None else forget.detach().cpu().view(shape)
    return decay ** torch.arange(time).view(-1, 1, 1)


class _Recorder:
    """Keeps what a layer does with its input, batch by batch."""

    def __init__(self, layer: PhaseLayer) -> None:
        self.layer = layer
        S = layer.oscillators.steps
        kept = torch.linspace(0, S, min(S, _STEPS_KEPT) + 1).round().long()
        self.kept = tuple(int(s) for s in kept)
        self.batches: list[dict[str, Tensor]] = []
        self.path: list[Tensor] = []

    def see(self, _: torch.nn.Module, inputs: tuple[Tensor, ...], words: dict[str, Any]) -> None:
        """Follow the layer's phases for its input, step by step."""
        carried = {name: words[name] for name in ("carry",) if name in words}
        path = self.layer.module.trajectory(inputs[0], return_path=True, **carried)
        assert path is not None and path.path is not None
        theta0, first = path.theta0, self.layer.module.first_token(path.theta.shape[1])
        R, R_uncoupled = [], []
        for s, theta in enumerate(path.path):
            uncoupled = uncoupled_phases(theta0, path.omega, steps=s, dt=path.dt)
            uncoupled = uncoupled if path.free is None else path.free[s]
            coupled_R, uncoupled_R = order(self.layer, theta), order(self.layer, uncoupled)
            R.append(coupled_R[:, first:].mean((1, 3)))
            R_uncoupled.append(uncoupled_R[:, first:].mean((1, 3)))
            if not self.batches and s in self.kept:
                self.path.append(theta[0].cpu())
        batch = {
            "x_BTD": inputs[0],
            "theta0_BTHN": theta0,
            "theta_BTHN": theta,
            "uncoupled_BTHN": uncoupled,
            "R_BTHC": coupled_R,
            "R_uncoupled_BTHC": uncoupled_R,
            "R_BHS": torch.stack(R, -1),
            "R_uncoupled_BHS": torch.stack(R_uncoupled, -1),
        }
        self.batches.append({name: value.cpu() for name, value in batch.items()})

    def trace(self) -> Trace:
        whole = {name: torch.cat([b[name] for b in self.batches]) for name in self.batches[0]}
        path = torch.stack(self.path)
        on_device = path.to(self.layer.oscillators.coupling.device)
        return Trace(
            self.layer,
            R_steps_HS=whole.pop("R_BHS").mean(0),
            R_steps_uncoupled_HS=whole.pop("R_uncoupled_BHS").mean(0),
            count_THC=counts(self.layer, path.shape[1]),
            steps=self.kept,
            path_STHN=path,
            path_R_STH=order(self.layer, on_device).mean(-1).cpu(),
            **whole,
        )
