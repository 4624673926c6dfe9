"""Which heads' Values move the logits: all heads at once, by one backward pass, deterministic.

Turning the last W Values of head h by a small angle a, each in a random direction, moves its
output at token t by a sum over j of p_tj |v_j| w_j (w_j random unit tangents), so to second order

    KL(clean || turned) = a^2 score_h,
    score_h = 1/2 mean_t>=T/2 E_y sum_j |P_j sum_q p^q_tj g^q_t|^2 |v_j|^2 / (E - 1),

with g^q_t = d log p(y) / d o^q_t for y drawn from the model's own p at t, q the query heads that
share h, and P_j the projection across v_j. Earlier keys and Values are held fixed, as in decoding,
where a slip lasts for one token.

Shapes: B batch, T time, H query heads, G key/value heads, E head width, L layers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from phasegpt.core.errors import ConfigError
from phasegpt.core.eval_mode import evaluating, inference
from phasegpt.core.randomness import keyed_generator
from phasegpt.model.gpt import GPT
from phasegpt.samplers import _values
from phasegpt.samplers.models import Decoder, decoder
from phasegpt.samplers.prompt import Prompt

#: (layer, key/value head), both counted from 0.
Head = tuple[int, int]


_UNSEEN = (
    "this model does not compute its attention by scaled_dot_product_attention, where calibration "
    "reads it; give the heads and the angle"
)


@dataclass(frozen=True)
class HeadScores:
    """score[L,G] in nats per radian squared, NaN where a layer has no Values to turn."""

    scores: Tensor
    window: int
    tokens: int

    def top(self, count: int, *, layers: int | None = None) -> list[Head]:
        """The `count` heads of the last `layers` layers with the largest scores.

        None: the upper half, or all layers if there are no Values in it.
        """
        _values.whole("count", count, 1, " of heads")
        if layers is not None:
            _values.whole("layers", layers, 1, ", or None for the upper half")
        L, G = self.scores.shape
        first = L - min(L, max(1, (L + 1) // 2) if layers is None else layers)
        if layers is None and self.scores[first:].isnan().all():
            first = 0
        upper = self.scores[first:].nan_to_num(-1.0).flatten()
        best = upper.topk(min(count, len(upper)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        chosen = sorted((first + i // G, i % G) for i, score in pairs if score >= 0)
        if not chosen:
            raise ConfigError(
                f"none of the last {L - first} layers keeps Values; search more layers, or slip "
                f'phases: PhaseSlip(target="phases")'
            )
        return chosen

    def total(self, heads: Sequence[Head]) -> float:
        """Sum of the scores of `heads`: KL / angle^2 when they are turned together. ConfigError."""
        L, G = self.scores.shape
        for layer, head in heads:
            if not (0 <= layer < L and 0 <= head < G):
                raise ConfigError(
                    f"head ({layer}, {head}) is not there: the model has {L} layers of {G} heads "
                    f"of Values, counted from 0"
                )
            if self.scores[layer, head].isnan():
                raise ConfigError(f"layer {layer} keeps no values to rotate; choose another")
        return float(sum(self.scores[layer, head] for layer, head in heads))

    def __str__(self) -> str:
        """One line per layer, its largest score marked; a table for the screen."""
        best = self.scores.nan_to_num(-1.0)
        heads = self.scores.shape[1]
        lines = [
            f"KL / angle^2 (nats / rad^2), window {self.window}, {self.tokens} tokens",
            "layer " + " ".join(f"{f'head {h}':>9}" for h in range(heads)),
        ]
        for layer, row in enumerate(self.scores.tolist()):
            top = int(best[layer].argmax())
            cells = [
                f"{x:>8.1e}" + ("*" if h == top and not math.isnan(x) else " ")
                for h, x in enumerate(row)
            ]
            lines.append(f"{layer:>5} " + " ".join(cells))
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write layer,head,score as CSV; ConfigError where that cannot be done."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["layer", "head", "kl_per_squared_radian"])
        for layer, row in enumerate(self.scores.tolist()):
            table.writerows([layer, head, f"{score:.6g}"] for head, score in enumerate(row))
        try:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def calibrate_heads(model: Any, ids_BT: Tensor, *, window: int = 12) -> HeadScores:
    """Scores of every layer and key/value head on ids_BT[B,T], T >= 4; the same for the same ids.

    Costs one forward and one backward. Raises ConfigError.
    """
    decoding = decoder(model)
    _values.whole("window", window, 1, " of positions")
    ids_BT = _values.whole_numbers("ids", ids_BT)
    if ids_BT.ndim != 2 or ids_BT.shape[1] < 4:
        raise ConfigError(
            f"ids have shape {list(ids_BT.shape)}; to calibrate give [B,T] with at least 4 tokens, "
            f"better some hundred"
        )
    if decoding.context is not None and ids_BT.shape[1] > decoding.context:
        raise ConfigError(
            f"{ids_BT.shape[1]} tokens do not fit: the model attends to {decoding.context}"
        )
    Prompt(ids_BT).check(decoding, 0)
    groups = value_heads(decoding, ids_BT)
    with (
        evaluating(decoding.module),
        torch.inference_mode(False),
        torch.enable_grad(),
        ExitStack() as stack,
    ):
        calls = _observe(decoding, ids_BT.clone(), stack)
    scores = torch.full((len(decoding.blocks), groups), torch.nan)
    for call in calls:
        scores[call.layer] = scores[call.layer].nan_to_num(0.0) + call.score(groups, window).cpu()
    if not calls:
        raise ConfigError(_UNSEEN)
    return HeadScores(scores, window, ids_BT.numel())


@dataclass
class _Call:
    """One attention: what score needs of it."""

    layer: int
    width: int  # E; v may be padded beyond it
    p_BHTT: Tensor
    v_BHTE: Tensor
    leaf_BHTE: Tensor  # zeros added to the output
    gradient: Tensor | None = None

    def score(self, groups: int, window: int) -> Tensor:
        """score[G] of this layer."""
        assert self.gradient is not None
        g, T = self.gradient, self.gradient.shape[2]
        shared = g.shape[1] // groups
        first = T // 2  # as measured_kl: attention is less spread at the beginning of a text
        total = torch.zeros(groups, device=g.device)
        for back in range(min(window, T)):
            start = max(back, first)
            p = self.p_BHTT.diagonal(-back, -2, -1)[..., start - back :, None]
            u = (p * g[:, :, start:]).unflatten(1, (groups, shared)).sum(2)
            v = self.v_BHTE[:, ::shared, start - back : T - back]
            along = (u * v).sum(-1).square()
            total += (u.square().sum(-1) * v.square().sum(-1) - along).sum((0, 2))
        return total / (2 * (self.width - 1) * len(g) * (T - first))


class _Spy(TorchFunctionMode):
    """Replaces scaled_dot_product_attention by one whose past is fixed, and keeps its parts."""

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.layer: int | None = 0  # None: between layers, where no Values are turned
        self.width = width
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        shared = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
        T = query.shape[2]
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        logits = query @ key.detach().mT * factor
        own = (query * (key - key.detach())).sum(-1) * factor  # 0, with the newest key's gradient
        logits = logits + torch.diag_embed(own)
        if is_causal:
            seen = torch.ones(T, T, dtype=torch.bool, device=query.device).tril()
            logits = logits.masked_fill(~seen, -torch.inf)
        if attn_mask is not None:
            logits = (
                logits.masked_fill(~attn_mask, -torch.inf)
                if attn_mask.dtype == torch.bool
                else logits + attn_mask
            )
        p = logits.softmax(-1)
        newest = p.diagonal(0, -2, -1).unsqueeze(-1) * (value - value.detach())
        y = p @ value.detach() + newest
        leaf = torch.zeros_like(y, requires_grad=True)
        if self.layer is None:
            return y
        width = self.width or value.shape[-1]
        self.calls.append(_Call(self.layer, width, p.detach(), value.detach(), leaf))
        return y + leaf


def _observe(decoding: Decoder, ids_BT: Tensor, stack: ExitStack) -> list[_Call]:
    """Every attention of one forward, with the gradients of log p(y)."""
    module = decoding.module
    config = getattr(module, "config", None)
    own = isinstance(module, GPT)
    spy = _Spy(module.config.n_embd // module.config.n_head if own else None)
    implementation = getattr(config, "_attn_implementation", "sdpa")
    if implementation != "sdpa":
        try:
            module.set_attn_implementation("sdpa")
        except ValueError as error:
            raise ConfigError(_UNSEEN) from error
        stack.callback(module.set_attn_implementation, implementation)
    for layer, block in enumerate(decoding.blocks):
        hook = block.register_forward_pre_hook(lambda *_, i=layer: setattr(spy, "layer", i))
        stack.callback(hook.remove)
    if own and module.link is not None:
        hook = module.link.register_forward_pre_hook(lambda *_: setattr(spy, "layer", None))
        stack.callback(hook.remove)
    device = next(module.parameters()).device
    with spy:
        out = module.forward(ids_BT.to(device)) if own else module(
            input_ids=ids_BT.to(device), use_cache=False
        )  # fmt: skip
    log_p = out.logits.float().log_softmax(-1)
    clocks = torch.empty(log_p.shape).exponential_(generator=keyed_generator("calibrate", 0))
    y_BT = (log_p.detach().exp() / clocks.to(device)).argmax(-1, keepdim=True)
    gradients = torch.autograd.grad(
        log_p.gather(-1, y_BT).sum(), [call.leaf_BHTE for call in spy.calls]
    ) if spy.calls else ()  # fmt: skip
    for call, gradient in zip(spy.calls, gradients, strict=True):
        call.gradient = gradient
    return spy.calls


def value_heads(decoding: Decoder, ids_BT: Tensor) -> int:
    """Heads of Values in the memory; ConfigError where there are none, or it cannot be edited."""
    with inference(decoding.module):
        device = next(decoding.module.parameters()).device
        cache = decoding.editable(decoding.read(ids_BT[:1, :1].to(device), None, True)[1])
    parts = [part for layer in range(len(cache)) for part in cache.parts(layer)]
    heads = [part.values.shape[1] for part in parts if part.values is not None]
    if not heads:
        raise ConfigError(
            "no layer of this model keeps Values, so there are none to calibrate; a model that "
            'keeps phases can slip those: PhaseSlip(target="phases")'
        )
    return max(heads)
