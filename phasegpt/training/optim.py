"""AdamW's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from phasegpt.attention import Attention
from phasegpt.training.config import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Groups for AdamW: matrices decay, vectors do not, oscillator parameters never.

    Oscillator parameters take lr * oscillator_lr_factor * their own factor (Attention.lr_factors).
    """
    factors: dict[int, float] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            own = dict(module.named_parameters())
            for name, factor in module.lr_factors.items():
                if own.get(name) is not None:
                    factors[id(own[name])] = factor * config.oscillator_lr_factor
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        oscillator = id(parameter) in factors
        decay = config.weight_decay if parameter.dim() >= 2 and not oscillator else 0.0
        groups[factors.get(id(parameter), 1.0), decay].append(parameter)
    return [
        {"params": members, "lr": config.lr * factor, "weight_decay": decay}
        for (factor, decay), members in sorted(groups.items(), key=_order)
    ]


def _order(item: tuple[tuple[float, float], list[nn.Parameter]]) -> tuple[bool, float, float]:
    """The groups of plain parameters first: the first group's lr is the one that is logged."""
    (factor, decay), _ = item
    return factor != 1.0, factor, decay


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`."""
    groups = parameter_groups(model, config)
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def schedule(config: OptimizerConfig, max_steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear warm-up, then cosine to min_lr, or constant.

    The factor of step k is used by the update that follows k earlier ones.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
        floor = config.min_lr / config.lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
