"""What the phase layers of a model do with given tokens, step by step.

Every phase layer integrates through one door, `oscillators.integrate(advance, theta0, ...)`; a
trace stands in that door, and so does an intervention.

Shapes: B sequences, T time, D model width, H heads, N oscillators, S integration steps, C order
parameters of a head and token: 1 over its oscillators (kuramoto), N over the prefix of each
channel (phase_sync).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from phasegpt import ops
from phasegpt.attention import Attention
from phasegpt.attention._oscillators import Oscillators
from phasegpt.attention.hybrid import Hybrid
from phasegpt.core.errors import ConfigError
from phasegpt.core.eval_mode import inference
from phasegpt.model.gpt import GPT
from phasegpt.model.scoring import token_nats
from phasegpt.phase import first_prefix, order_parameter, uncoupled_phases

Integrate = Callable[[Callable[..., Tensor], Tensor], Tensor]

_BATCH_TOKENS = 1024
_STEPS_KEPT = 20


@dataclass(frozen=True)
class PhaseLayer:
    """A layer with oscillators; of a hybrid, its phase partner."""

    index: int
    name: str  # of the attention: kuramoto, phase_sync or hybrid
    module: Attention
    oscillators: Oscillators

    @property
    def mechanism(self) -> str:
        """The name of its own attention: kuramoto or phase_sync."""
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
        return first_token(self.layer, self.theta_BTHN.shape[1])


def first_token(layer: PhaseLayer, time: int) -> int:
    """0 where R is over oscillators; over prefixes that of 32 tokens, or the last of fewer."""
    return first_prefix(time) if layer.over_prefix else 0


def phase_layers(model: GPT, only: Sequence[int] | None = None) -> list[PhaseLayer]:
    """The layers with oscillators, or those of them in `only`.

    Raises ConfigError where there are none, and for layers that see the future.
    """
    if model.leaky:
        raise ConfigError(
            "this model sees the future (attention.as_coded=true); its synchronization is not "
            "that of a causal layer and is not measured"
        )
    if not model.oscillators:
        raise ConfigError(
            f"this model has no oscillators (attention={model.config.attention} in layers "
            f"{list(model.config.attention_layers)}); give one with kuramoto, phase_sync or a "
            f"hybrid"
        )
    for index in only or ():
        if index not in model.oscillators:
            raise ConfigError(
                f"layers={list(only or ())}: layer {index} has no oscillators; choose from: "
                f"{', '.join(map(str, model.oscillators))}"
            )
    layers = []
    for index, oscillators in model.oscillators.items():
        if not only or index in only:
            module = model.blocks[index].attn
            module = module.partner if isinstance(module, Hybrid) else module
            layers.append(PhaseLayer(index, model.config.attention, module, oscillators))
    return layers


@contextmanager
def integrating(layer: PhaseLayer, integrate: Integrate) -> Iterator[None]:
    """Inside, the layer's phases are `integrate(advance, theta0)`; advance(theta, steps) couples.

    The model's own is `advance(theta0, S)`. Training noise is absent.
    """

    def replaced(advance: Callable[..., Tensor], theta: Tensor, *_: object) -> Tensor:
        return integrate(advance, theta)

    instance = layer.oscillators.__dict__
    before = instance.get("integrate")
    instance["integrate"] = replaced
    try:
        yield
    finally:
        if before is None:
            del instance["integrate"]
        else:
            instance["integrate"] = before


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
            stack.enter_context(integrating(recorder.layer, recorder.integrate))
            hook = recorder.layer.module.register_forward_pre_hook(recorder.see)
            stack.callback(hook.remove)
        loss_BT = token_losses(model, ids_BT)
    with torch.inference_mode():
        return loss_BT, [recorder.trace() for recorder in recorders]


def order(layer: PhaseLayer, theta_BTHN: Tensor) -> Tensor:
    """R of the layer's own kind, [B,T,H,C]: over oscillators, or over prefixes with its weights."""
    if not layer.over_prefix:
        return order_parameter(theta_BTHN).unsqueeze(-1)
    oscillators = layer.oscillators
    scan = ops.kuramoto_scan(
        theta_BTHN.flatten(2),
        torch.zeros_like(oscillators.omega.flatten()),
        torch.zeros_like(oscillators.omega.flatten()),
        steps=0,
        dt=oscillators.options.dt,
        forget=_forget(layer),
        return_order=True,
    )
    assert scan.R is not None
    return scan.R[..., 0].view_as(theta_BTHN)


def counts(layer: PhaseLayer, time: int) -> Tensor:
    """Number of phases behind each R, [T,H,C]: N, or t; with forgetting (sum w)^2 / sum w^2."""
    H, N = layer.oscillators.omega.shape
    if not layer.over_prefix:
        return torch.full((time, H, 1), float(N))
    forget = _forget(layer)
    decay = torch.ones(H * N) if forget is None else forget.cpu()
    weights = decay ** torch.arange(time).unsqueeze(-1)
    return (weights.cumsum(0).square() / weights.square().cumsum(0)).view(time, H, N)


def _forget(layer: PhaseLayer) -> Tensor | None:
    logit = getattr(layer.module, "forget_logit", None)
    return None if logit is None else logit.sigmoid()


class _Recorder:
    """Stands in a layer's door and keeps what passes, batch by batch."""

    def __init__(self, layer: PhaseLayer) -> None:
        self.layer = layer
        self.options = layer.oscillators.options
        S = self.options.steps
        kept = torch.linspace(0, S, min(S, _STEPS_KEPT) + 1).round().long()
        self.kept = tuple(int(s) for s in kept)
        self.batches: list[dict[str, Tensor]] = []
        self.path: list[Tensor] = []

    def see(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.x_BTD = inputs[0]

    def integrate(self, advance: Callable[..., Tensor], theta0: Tensor) -> Tensor:
        """Integrate step by step: the phases are those of advance(theta0, S)."""
        o, omega = self.options, self.layer.oscillators.frequencies()
        first, theta, follow = first_token(self.layer, theta0.shape[1]), theta0, not self.batches
        R, R_uncoupled = [], []
        for s in range(o.steps + 1):
            theta = advance(theta, 1) if s else theta0
            uncoupled = uncoupled_phases(theta0, omega, steps=s, dt=o.dt)
            coupled_R, uncoupled_R = order(self.layer, theta), order(self.layer, uncoupled)
            R.append(coupled_R[:, first:].mean((1, 3)))
            R_uncoupled.append(uncoupled_R[:, first:].mean((1, 3)))
            if follow and s in self.kept:
                self.path.append(theta[0].cpu())
        batch = {
            "x_BTD": self.x_BTD,
            "theta0_BTHN": theta0,
            "theta_BTHN": theta,
            "uncoupled_BTHN": uncoupled,
            "R_BTHC": coupled_R,
            "R_uncoupled_BTHC": uncoupled_R,
            "R_BHS": torch.stack(R, -1),
            "R_uncoupled_BHS": torch.stack(R_uncoupled, -1),
        }
        self.batches.append({name: value.cpu() for name, value in batch.items()})
        return theta

    def trace(self) -> Trace:
        whole = {name: torch.cat([b[name] for b in self.batches]) for name in self.batches[0]}
        path = torch.stack(self.path)
        on_device = path.to(self.layer.oscillators.omega.device)
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
