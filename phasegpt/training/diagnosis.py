"""Where the numbers of a training step stopped being finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from phasegpt.model.gpt import GPT, GPTOutput
from phasegpt.model.scoring import nats
from phasegpt.training.sharding import whole


def gradients_again(model: GPT, batch: dict[str, Tensor]) -> None:
    """Compute those of a batch once more; the weights must still be those that it met."""
    with torch.inference_mode(False), torch.enable_grad():
        out = uncompiled(model, batch["idx"])
        total, _ = nats(out.logits, batch["targets"])
        parameters = list(model.parameters())
        found = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient


@torch.no_grad()
def diagnosis(model: GPT, step: int, idx_BT: Tensor) -> str:
    """Where it was at this batch, in words: step, layer and R."""
    broken: list[int] = []
    hooks = [
        block.register_forward_hook(
            lambda _module, _args, out, layer=layer: (
                None if torch.isfinite(out.y).all() else broken.append(layer)
            )
        )
        for layer, block in enumerate(model.blocks)
    ]
    with torch.random.fork_rng(devices=[]):
        out = uncompiled(model, idx_BT, return_phase=True)
    for hook in hooks:
        hook.remove()
    where = f"layer {broken[0]} in the forward pass" if broken else _broken_gradient(model)
    order = ", ".join(f"layer {k}: {p.R.mean():.3f}" for k, p in out.phase.items())
    return (
        f"step {step}: the loss or its gradient is not finite, first in {where}; "
        f"R is {order or 'not defined (no phase layer)'}. Lower optimizer.lr or "
        f"attention.coupling"
    )


def uncompiled(model: GPT, idx_BT: Tensor, **words: Any) -> GPTOutput:
    """The model's output, with hooks of its blocks, which a compiled model leaves out."""
    run = model if isinstance(model, FSDPModule) else model.forward
    return run(idx_BT, **words)


def _broken_gradient(model: GPT) -> str:
    """The parameter nearest the loss whose gradient is not finite."""
    for name, p in reversed(list(model.named_parameters())):
        if p.grad is not None and not torch.isfinite(whole(p.grad)).all():
            return f"the gradient of {name}"
    return "the gradient norm"
